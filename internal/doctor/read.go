package doctor

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Options say where to look.
type Options struct {
	// Namespace of Chains. Default: tekton-chains.
	Namespace string
	// Namespaces that the observer is to watch, where it needs no rights elsewhere.
	// Default: those that its Deployment, or Chains', is told by --namespace; else all.
	Namespaces []string
	// MaxRuns bounds how many runs of each kind are looked at. Default: 5000.
	MaxRuns int
}

// Read looks at a cluster. It fails only if the cluster cannot be reached at
// all; what else cannot be read is named in World.Unreadable.
func Read(ctx context.Context, config *rest.Config, o Options) (World, error) {
	if o.Namespace == "" {
		o.Namespace = Namespace
	}
	if o.MaxRuns <= 0 {
		o.MaxRuns = 5000
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return World{}, fmt.Errorf("making a client: %w", err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return World{}, fmt.Errorf("making a client: %w", err)
	}
	if _, err := client.Discovery().ServerVersion(); err != nil {
		return World{}, fmt.Errorf("reaching the cluster: %w", err)
	}
	r := reader{client: client, dynamic: dyn, o: o, seen: map[string]bool{}, w: World{Namespace: o.Namespace, Namespaces: o.Namespaces, Unreadable: map[string]string{}}}
	for _, part := range []struct {
		topic string
		read  func(context.Context) error
	}{
		{"Tekton", r.crds}, {"Chains", r.installation}, {"Settings", r.config},
		{"Keys", r.secret}, {"Runs", r.runs}, {"Rights", r.rights},
	} {
		if err := part.read(ctx); err != nil {
			if ctx.Err() != nil {
				return World{}, ctx.Err()
			}
			r.w.Unreadable[part.topic] = err.Error()
		}
	}
	return r.w, nil
}

type reader struct {
	client  kubernetes.Interface
	dynamic dynamic.Interface
	o       Options
	w       World
	seen    map[string]bool // namespaces that have runs
}

var tektonGroup = schema.GroupVersion{Group: "tekton.dev", Version: "v1"}

func (r *reader) crds(ctx context.Context) error {
	r.w.CRDs = map[string][]string{}
	gvr := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	for _, name := range []string{"taskruns.tekton.dev", "pipelineruns.tekton.dev", "customruns.tekton.dev"} {
		crd, err := r.dynamic.Resource(gvr).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
		if err != nil {
			return err
		}
		served := []string{}
		for _, v := range versions {
			m, _ := v.(map[string]any)
			if s, _ := m["served"].(bool); s {
				name, _ := m["name"].(string)
				served = append(served, name)
			}
		}
		r.w.CRDs[name] = served
	}
	return nil
}

func (r *reader) installation(ctx context.Context) error {
	_, err := r.client.CoreV1().Namespaces().Get(ctx, r.o.Namespace, metav1.GetOptions{})
	switch {
	case err == nil:
		r.w.NamespaceExists = true
	case !apierrors.IsNotFound(err):
		return err
	}
	if r.w.Chains, err = r.deployment(ctx, DeploymentName); err != nil {
		return err
	}
	if r.w.Ours, err = r.deployment(ctx, OurDeployment); err != nil {
		return err
	}
	for _, d := range []*Deployment{r.w.Ours, r.w.Chains} {
		if len(r.w.Namespaces) == 0 && d != nil {
			r.w.Namespaces = watched(d.Args)
		}
	}
	return nil
}

func (r *reader) deployment(ctx context.Context, name string) (*Deployment, error) {
	d, err := r.client.AppsV1().Deployments(r.o.Namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return summary(d), nil
}

func summary(d *appsv1.Deployment) *Deployment {
	out := &Deployment{Version: d.Labels["app.kubernetes.io/version"], Replicas: 1, Ready: d.Status.ReadyReplicas}
	if out.Version == "" {
		out.Version = d.Labels["version"]
	}
	if d.Spec.Replicas != nil {
		out.Replicas = *d.Spec.Replicas
	}
	for _, c := range d.Spec.Template.Spec.Containers {
		out.Args = append(out.Args, c.Args...)
		for _, e := range c.Env {
			out.Env = append(out.Env, e.Name)
		}
	}
	return out
}

func (r *reader) config(ctx context.Context) error {
	cm, err := r.client.CoreV1().ConfigMaps(r.o.Namespace).Get(ctx, ConfigMapName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	r.w.Config = cm.Data
	if r.w.Config == nil {
		r.w.Config = map[string]string{}
	}
	return nil
}

func (r *reader) secret(ctx context.Context) error {
	s, err := r.client.CoreV1().Secrets(r.o.Namespace).Get(ctx, SecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	r.w.Secret = map[string]Entry{}
	for name, value := range s.Data {
		e := Entry{Bytes: len(value)}
		if block, _ := pem.Decode(value); block != nil {
			e.PEM = block.Type
		}
		r.w.Secret[name] = e
	}
	return nil
}

func (r *reader) runs(ctx context.Context) error {
	if r.w.CRDs["pipelineruns.tekton.dev"] == nil {
		return errors.New("there are no PipelineRuns in this cluster")
	}
	namespaces := r.w.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{""}
	}
	for _, ns := range namespaces {
		if err := r.runsIn(ctx, ns); err != nil {
			return err
		}
	}
	return nil
}

// runsIn counts the runs of one namespace; empty: of all.
func (r *reader) runsIn(ctx context.Context, namespace string) error {
	taskRuns := map[string]bool{} // namespace/name of those that are there
	for _, resource := range []string{"taskruns", "pipelineruns"} {
		seen, token := 0, ""
		for {
			page, err := r.dynamic.Resource(tektonGroup.WithResource(resource)).Namespace(namespace).List(ctx, metav1.ListOptions{Limit: 500, Continue: token})
			if err != nil {
				return err
			}
			for i := range page.Items {
				r.seen[page.Items[i].GetNamespace()] = true
				if resource == "taskruns" {
					taskRuns[page.Items[i].GetNamespace()+"/"+page.Items[i].GetName()] = true
				}
				r.count(&page.Items[i], resource, taskRuns)
			}
			seen += len(page.Items)
			if token = page.GetContinue(); token == "" {
				break
			}
			if seen >= r.o.MaxRuns {
				r.w.Runs.Truncated = true
				break
			}
		}
	}
	return nil
}

// count adds one run to the totals, if it is finished.
func (r *reader) count(u *unstructured.Unstructured, resource string, taskRuns map[string]bool) {
	n := &r.w.Runs
	if u.GetDeletionTimestamp() != nil {
		for _, f := range u.GetFinalizers() {
			if strings.HasPrefix(f, "chains.tekton.dev") {
				n.Deleting++
				break
			}
		}
	}
	if !finished(u) {
		return
	}
	n.Seen++
	switch u.GetAnnotations()["chains.tekton.dev/signed"] {
	case "true":
		n.Signed++
		return
	case "failed":
		n.Failed++
		return
	}
	n.Unmarked++
	if resource != "pipelineruns" || n.Truncated {
		return // without all TaskRuns it cannot be said which are gone
	}
	refs, _, _ := unstructured.NestedSlice(u.Object, "status", "childReferences")
	for _, ref := range refs {
		m, _ := ref.(map[string]any)
		name, _ := m["name"].(string)
		if kind, _ := m["kind"].(string); kind != "" && kind != "TaskRun" || !taskRuns[u.GetNamespace()+"/"+name] {
			n.Stuck++
			return
		}
	}
}

func finished(u *unstructured.Unstructured) bool {
	conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, c := range conditions {
		m, _ := c.(map[string]any)
		if m["type"] == "Succeeded" {
			return m["status"] != "Unknown"
		}
	}
	return false
}
