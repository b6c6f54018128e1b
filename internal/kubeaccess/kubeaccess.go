// Package kubeaccess finds the cluster that a command is to work with, in one order
// for all of them: what flags name; what KUBECONFIG names; in a Pod, the Pod's own
// account; ~/.kube/config. Where there is nothing, the error says where it looked
// and what to do.
package kubeaccess

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Options are what flags say; the zero value leaves all to the usual rules.
type Options struct {
	Kubeconfig string // file
	Context    string // of the kubeconfig; default: its current one
	Server     string // address of the API server, instead of the kubeconfig's
}

// Default says in the words of a flag's help where a cluster is looked for.
const Default = "default: KUBECONFIG, else the Pod's account, else ~/.kube/config"

// Find returns how to reach the cluster, and the namespace that the context has
// (default, where it has none). It connects to nothing. It fails where no cluster is
// named anywhere, and on files that cannot be read as a kubeconfig.
func Find(o Options) (*rest.Config, string, error) {
	pod := rest.ErrNotInCluster
	if o == (Options{}) && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" {
		var c *rest.Config
		if c, pod = rest.InClusterConfig(); pod == nil {
			return c, podNamespace(), nil
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = o.Kubeconfig
	rules.WarnIfAllMissing = false // the error says it
	overrides := &clientcmd.ConfigOverrides{CurrentContext: o.Context}
	overrides.ClusterInfo.Server = o.Server
	raw, err := rules.Load()
	if err != nil {
		return nil, "", fmt.Errorf("finding the cluster: %w; name another kubeconfig with --kubeconfig or KUBECONFIG", err)
	}
	loading := clientcmd.NewNonInteractiveClientConfig(*raw, o.Context, overrides, rules)
	c, err := loading.ClientConfig()
	switch {
	case clientcmd.IsEmptyConfig(err):
		return nil, "", errors.New(nowhere(o, rules, pod))
	case err != nil:
		return nil, "", fmt.Errorf("finding the cluster: %w; name another kubeconfig with --kubeconfig or KUBECONFIG, or another context", err)
	}
	namespace, _, err := loading.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("finding the namespace of the kubeconfig's context: %w", err)
	}
	return c, namespace, nil
}

// nowhere says where was looked in vain.
func nowhere(o Options, rules *clientcmd.ClientConfigLoadingRules, pod error) string {
	var looked []string
	paths := rules.GetLoadingPrecedence()
	if o.Kubeconfig != "" {
		paths = []string{o.Kubeconfig}
	}
	for _, p := range paths {
		if _, err := os.Stat(p); err != nil {
			looked = append(looked, p+" is not there")
		} else {
			looked = append(looked, p+" names no cluster")
		}
	}
	if o.Kubeconfig == "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" {
		looked = append([]string{clientcmd.RecommendedConfigPathEnvVar + " is not set"}, looked...)
		if errors.Is(pod, rest.ErrNotInCluster) {
			looked = append(looked, "this is no Pod of a cluster")
		} else {
			looked = append(looked, "the Pod's account cannot be used: "+pod.Error())
		}
	}
	return "finding the cluster: " + strings.Join(looked, "; ") +
		". Name a kubeconfig with --kubeconfig or KUBECONFIG, or run a cluster of your own: `assayd up`, and then `assayd kubeconfig` prints its kubeconfig"
}

// podNamespace is the namespace of the Pod we are in.
func podNamespace() string {
	b, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
	if ns := strings.TrimSpace(string(b)); err == nil && ns != "" {
		return ns
	}
	return "default"
}
