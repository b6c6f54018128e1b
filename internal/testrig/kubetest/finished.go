package kubetest

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// loaders is how many requests CreateFinished has in flight.
const loaders = 32

// CreateFinished loads runs that are over: it creates each object and then sets
// its status by the status subresource, many at a time. Objects without owners
// come first; those whose ownerReferences name one of them (by apiVersion, kind
// and name, in the same namespace) get its new uid. Resource versions, uids and
// managed fields of the given objects are ignored, and the objects are not
// changed. It returns the objects as they are stored, in the given order.
//
// Tekton's controller, if StartTekton has started it, is ended before and started
// again after: it would begin with a run that has no status yet. It fails with the
// first object that is refused.
func (c *Cluster) CreateFinished(ctx context.Context, objects ...runtime.Object) (out []*unstructured.Unstructured, err error) {
	err = c.without("tekton-controller", func() error {
		out, err = c.load(ctx, objects)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (c *Cluster) load(ctx context.Context, objects []runtime.Object) ([]*unstructured.Unstructured, error) {
	out := make([]*unstructured.Unstructured, len(objects))
	for i, o := range objects {
		u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			return nil, fmt.Errorf("encoding object %d: %w", i, err)
		}
		out[i] = (&unstructured.Unstructured{Object: u}).DeepCopy()
		if out[i].GetKind() == "" || out[i].GetName() == "" || out[i].GetNamespace() == "" {
			return nil, fmt.Errorf("object %d: want apiVersion, kind, namespace and name", i)
		}
	}
	type key struct{ apiVersion, kind, namespace, name string }
	uids := map[key]types.UID{}
	for _, owned := range []bool{false, true} {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(loaders)
		for i, u := range out {
			refs := u.GetOwnerReferences()
			if (len(refs) > 0) != owned {
				continue
			}
			for k := range refs {
				if uid, ok := uids[key{refs[k].APIVersion, refs[k].Kind, u.GetNamespace(), refs[k].Name}]; ok {
					refs[k].UID = uid
				}
			}
			if owned {
				u.SetOwnerReferences(refs)
			}
			g.Go(func() error {
				var err error
				out[i], err = c.createFinished(gctx, u)
				return err
			})
		}
		if err := g.Wait(); err != nil {
			return nil, err
		}
		for _, u := range out {
			uids[key{u.GetAPIVersion(), u.GetKind(), u.GetNamespace(), u.GetName()}] = u.GetUID()
		}
	}
	return out, nil
}

func (c *Cluster) createFinished(ctx context.Context, u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	gvr, _ := meta.UnsafeGuessKindToResource(u.GroupVersionKind())
	for _, f := range []string{"resourceVersion", "uid", "managedFields", "creationTimestamp", "generation", "selfLink"} {
		unstructured.RemoveNestedField(u.Object, "metadata", f)
	}
	status, has := u.Object["status"]
	delete(u.Object, "status")
	r := c.Dynamic.Resource(gvr).Namespace(u.GetNamespace())
	made, err := r.Create(ctx, u, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("creating %s %s: %w", u.GetKind(), u.GetName(), err)
	}
	if !has {
		return made, nil
	}
	made.Object["status"] = status
	done, err := r.UpdateStatus(ctx, made, metav1.UpdateOptions{})
	if err != nil {
		return nil, fmt.Errorf("setting the status of %s %s: %w", u.GetKind(), u.GetName(), err)
	}
	return done, nil
}

// Resource is the resource of a kind as tests name it, such as TaskRun.
func Resource(apiVersion, kind string) schema.GroupVersionResource {
	r, _ := meta.UnsafeGuessKindToResource(schema.FromAPIVersionAndKind(apiVersion, kind))
	return r
}
