package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
)

var (
	namespaces      = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	serviceAccounts = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	configMaps      = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
)

// keeper does for namespaces what a controller manager would: it gives each its
// default ServiceAccount, without which no Pod is admitted, and the authority's
// certificate that Pods mount, and it empties and releases those that are being
// deleted.
type keeper struct {
	client    dynamic.Interface
	discovery *discovery.DiscoveryClient
	log       *slog.Logger
	ca        string
}

func newKeeper(c *rest.Config, log *slog.Logger) (*keeper, error) {
	c = rest.CopyConfig(c)
	// Emptying a namespace reads deprecated kinds too.
	c.WarningHandler = rest.NoWarnings{}
	client, err := dynamic.NewForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(c)
	if err != nil {
		return nil, fmt.Errorf("making a client: %w", err)
	}
	return &keeper{client: client, discovery: disco, log: log, ca: string(c.CAData)}, nil
}

// run keeps namespaces until ctx ends. What went wrong is tried again with the
// next look at all namespaces, a second later.
func (k *keeper) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := k.pass(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("keeping namespaces", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}
}

// pass looks at every namespace, then at changes for a while.
func (k *keeper) pass(ctx context.Context) error {
	list, err := k.client.Resource(namespaces).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("listing namespaces: %w", err)
	}
	var errs []error
	seconds := int64(30)
	for i := range list.Items {
		errs = append(errs, k.one(ctx, &list.Items[i]))
		if list.Items[i].GetDeletionTimestamp() != nil {
			seconds = 1 // what waits for others' finalizers is looked at soon again
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	w, err := k.client.Resource(namespaces).Watch(ctx, metav1.ListOptions{ResourceVersion: list.GetResourceVersion(), TimeoutSeconds: &seconds})
	if err != nil {
		return fmt.Errorf("watching namespaces: %w", err)
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.ResultChan():
			if !ok {
				return nil
			}
			switch e.Type {
			case watch.Added, watch.Modified:
			case watch.Error:
				return fmt.Errorf("watching namespaces: %w", apierrors.FromObject(e.Object))
			default:
				continue
			}
			ns, ok := e.Object.(*unstructured.Unstructured)
			if !ok {
				continue
			}
			if err := k.one(ctx, ns); err != nil || ns.GetDeletionTimestamp() != nil {
				return err
			}
		}
	}
}

func (k *keeper) one(ctx context.Context, ns *unstructured.Unstructured) error {
	if ns.GetDeletionTimestamp() != nil {
		return k.release(ctx, ns)
	}
	return k.furnish(ctx, ns.GetName())
}

// furnish makes what every namespace of a cluster has.
func (k *keeper) furnish(ctx context.Context, ns string) error {
	sa := &corev1.ServiceAccount{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
		ObjectMeta: metav1.ObjectMeta{Name: "default"},
	}
	ca := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: "kube-root-ca.crt"},
		Data:       map[string]string{"ca.crt": k.ca},
	}
	for r, obj := range map[schema.GroupVersionResource]any{serviceAccounts: sa, configMaps: ca} {
		u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(obj)
		if err != nil {
			return err
		}
		o := &unstructured.Unstructured{Object: u}
		// Looked for first: a start finds all there, and reads are cheap.
		_, err = k.client.Resource(r).Namespace(ns).Get(ctx, o.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = k.client.Resource(r).Namespace(ns).Create(ctx, o, metav1.CreateOptions{})
		}
		// The namespace may be on its way out.
		if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return fmt.Errorf("furnishing namespace %s: %w", ns, err)
		}
	}
	return nil
}

// release deletes what is in a namespace and, when nothing is left, lets it go.
// Objects that wait for finalizers of others keep it; the next look tries again.
func (k *keeper) release(ctx context.Context, ns *unstructured.Unstructured) error {
	finalizers, _, err := unstructured.NestedStringSlice(ns.Object, "spec", "finalizers")
	if err != nil || len(finalizers) == 0 {
		return err
	}
	lists, err := k.discovery.ServerPreferredNamespacedResources()
	// A group whose server is gone would hide its objects: then it stays.
	if err != nil {
		return fmt.Errorf("releasing namespace %s: %w", ns.GetName(), err)
	}
	left := 0
	for _, l := range lists {
		gv, err := schema.ParseGroupVersion(l.GroupVersion)
		if err != nil {
			return err
		}
		for _, r := range l.APIResources {
			if !verbs(r.Verbs, "list", "delete") {
				continue
			}
			n, err := k.empty(ctx, gv.WithResource(r.Name), ns.GetName())
			if err != nil {
				return fmt.Errorf("releasing namespace %s: %w", ns.GetName(), err)
			}
			left += n
		}
	}
	if left > 0 {
		return nil
	}
	done := ns.DeepCopy()
	unstructured.RemoveNestedField(done.Object, "spec", "finalizers")
	_, err = k.client.Resource(namespaces).Update(ctx, done, metav1.UpdateOptions{}, "finalize")
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("releasing namespace %s: %w", ns.GetName(), err)
	}
	return nil
}

// empty deletes the objects of one kind and returns how many remain.
func (k *keeper) empty(ctx context.Context, r schema.GroupVersionResource, ns string) (int, error) {
	c := k.client.Resource(r).Namespace(ns)
	list, err := c.List(ctx, metav1.ListOptions{Limit: 500})
	if apierrors.IsNotFound(err) || apierrors.IsMethodNotSupported(err) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("listing %s: %w", r.Resource, err)
	}
	if len(list.Items) == 0 {
		return 0, nil
	}
	// Nobody would end a Pod's grace period but the kubelet, which may be none.
	now := int64(0)
	for i := range list.Items {
		err := c.Delete(ctx, list.Items[i].GetName(), metav1.DeleteOptions{GracePeriodSeconds: &now})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return 0, fmt.Errorf("deleting %s: %w", r.Resource, err)
		}
	}
	list, err = c.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return 0, fmt.Errorf("listing %s: %w", r.Resource, err)
	}
	return len(list.Items), nil
}

func verbs(have metav1.Verbs, want ...string) bool {
	for _, w := range want {
		found := false
		for _, h := range have {
			found = found || h == w
		}
		if !found {
			return false
		}
	}
	return true
}
