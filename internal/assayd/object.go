package assayd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"assay.dev/assay/internal/kubeaccess"
	"assay.dev/assay/internal/kubeobject"
)

// objectTimeout bounds each request for an object.
const objectTimeout = 30 * time.Second

// codedError is an error with an exit code of its own.
type codedError struct {
	error
	code int
}

func (e codedError) Unwrap() error { return e.error }

func objectCommand() *cobra.Command {
	var kubeconfig, contextName string
	c := &cobra.Command{
		Use:   "object RESOURCE [NAMESPACE/]NAME",
		Short: "Print one object of a cluster as JSON",
		Long: `Prints one object, as the API server has it. RESOURCE is the plural name of its kind,
with the group where it has one. Without a namespace it is that of the kubeconfig's
context. The other programs, which link no Kubernetes client, read objects by it:
keys (k8s://…), policies and snapshots.

Exit codes: 0 printed, 1 could not be read, 2 wrong usage, 4 there is none, 5 this
user may not read it.`,
		Example: `  assayd object secrets tekton-chains/signing-secrets
  assayd object enterprisecontractpolicies.appstudio.redhat.com default --kubeconfig prod.yaml`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, standing, err := kubeaccess.Find(kubeaccess.Options{Kubeconfig: kubeconfig, Context: contextName})
			if err != nil {
				return err
			}
			config.Timeout = objectTimeout
			namespace, name, ok := strings.Cut(args[1], "/")
			if !ok {
				namespace, name = standing, args[1]
			}
			if namespace == "" || name == "" || strings.Contains(name, "/") {
				return usageError{fmt.Errorf("%q: want NAME or NAMESPACE/NAME", args[1])}
			}
			o, err := object(cmd.Context(), config, args[0], namespace, name)
			if err != nil {
				return objectError(err, config.Host)
			}
			// As it came: values are the API server's.
			return json.NewEncoder(cmd.OutOrStdout()).Encode(o.Object)
		},
	}
	c.Flags().StringVar(&kubeconfig, "kubeconfig", "", "kubeconfig `file` ("+kubeaccess.Default+")")
	c.Flags().StringVar(&contextName, "context", "", "context of the kubeconfig")
	return c
}

// object gets an object of a resource that discovery knows. Namespaces of cluster-wide
// resources are left away.
func object(ctx context.Context, config *rest.Config, resource, namespace, name string) (*unstructured.Unstructured, error) {
	d, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	groups, err := restmapper.GetAPIGroupResources(d)
	if err != nil {
		return nil, fmt.Errorf("asking what the cluster serves: %w", err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	full, group := schema.ParseResourceArg(resource)
	var kind schema.GroupVersionKind
	if full != nil {
		kind, err = mapper.KindFor(*full)
	}
	if full == nil || err != nil {
		kind, err = mapper.KindFor(group.WithVersion(""))
	}
	if err != nil {
		return nil, err
	}
	m, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return nil, err
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	if m.Scope.Name() != meta.RESTScopeNameNamespace {
		return client.Resource(m.Resource).Get(ctx, name, metav1.GetOptions{})
	}
	return client.Resource(m.Resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
}

// objectError says what to do about an error, with the code for its kind.
func objectError(err error, host string) error {
	var (
		status apierrors.APIStatus
		lost   *url.Error
		dial   net.Error
	)
	switch {
	case meta.IsNoMatchError(err):
		return codedError{fmt.Errorf("%w; is its CustomResourceDefinition installed?", err), kubeobject.CodeNotFound}
	case apierrors.IsNotFound(err):
		return codedError{err, kubeobject.CodeNotFound}
	case apierrors.IsForbidden(err):
		return codedError{fmt.Errorf("%w; grant it the verb get, or use another --kubeconfig", err), kubeobject.CodeForbidden}
	case apierrors.IsUnauthorized(err):
		return codedError{fmt.Errorf("the API server at %s does not know this user: %w; is the kubeconfig's credential still valid?", host, err), kubeobject.CodeForbidden}
	case errors.As(err, &status):
		return err
	case errors.As(err, &lost), errors.As(err, &dial):
		return fmt.Errorf("the API server at %s does not answer: %w", host, err)
	}
	return err
}
