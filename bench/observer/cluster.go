package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"assay.dev/assay/internal/kube"
	"assay.dev/assay/provenance/provenancetest"
)

const (
	system = "tekton-chains"
	// namespaces that the runs are spread over, as tenants' are: a list of one
	// run's children reads all of its namespace.
	namespaces = 50
	// exampleRegistry is where the generated runs say that their images are.
	exampleRegistry = "registry.example.com"
)

var (
	pipelineRuns = schema.GroupVersionResource{Group: "tekton.dev", Version: "v1", Resource: "pipelineruns"}
	taskRuns     = schema.GroupVersionResource{Group: "tekton.dev", Version: "v1", Resource: "taskruns"}
)

// cluster is a control plane and a registry.
type cluster struct {
	dir      string
	plane    *kube.Plane
	client   kubernetes.Interface
	dynamic  dynamic.Interface
	rest     rest.Interface
	registry *exec.Cmd
	closeReg io.Closer
	addr     string // of the registry
}

func newCluster(ctx context.Context, settings map[string]string) (_ *cluster, err error) {
	crds := os.Getenv("ASSAY_TEKTON_CONFIG")
	if crds == "" {
		return nil, errors.New(`ASSAY_TEKTON_CONFIG is not set: eval "$(tools/peers)", or use make bench`)
	}
	c := &cluster{}
	if c.dir, err = os.MkdirTemp("", "assay-bench-observer-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.plane, err = kube.Start(ctx, kube.Options{Dir: filepath.Join(c.dir, "kube"), Ephemeral: true}); err != nil {
		return nil, err
	}
	if c.client, err = kubernetes.NewForConfig(c.plane.RESTConfig()); err != nil {
		return nil, err
	}
	c.rest = c.client.CoreV1().RESTClient()
	if c.dynamic, err = dynamic.NewForConfig(c.plane.RESTConfig()); err != nil {
		return nil, err
	}
	objects, err := kube.ReadManifests(filepath.Join(crds, "300-crds"))
	if err != nil {
		return nil, err
	}
	for _, o := range objects {
		unstructured.RemoveNestedField(o.Object, "spec", "conversion")
	}
	objects = append(objects, object("v1", "Namespace", "", system, nil))
	for i := range namespaces {
		objects = append(objects, object("v1", "Namespace", "", namespace(i), nil))
	}
	data := map[string]any{}
	for k, v := range settings {
		data[k] = v
	}
	objects = append(objects, object("v1", "ConfigMap", system, "chains-config", map[string]any{"data": data}))
	for _, name := range []string{"config-logging", "tekton-chains-config-observability", "tekton-chains-config-leader-election"} {
		objects = append(objects, object("v1", "ConfigMap", system, name, nil))
	}
	if err := kube.Apply(ctx, c.plane.RESTConfig(), objects...); err != nil {
		return nil, err
	}
	return c, c.startRegistry()
}

func namespace(run int) string { return fmt.Sprintf("team-%02d", run%namespaces) }

func object(apiVersion, kind, ns, name string, more map[string]any) *unstructured.Unstructured {
	meta := map[string]any{"name": name}
	if ns != "" {
		meta["namespace"] = ns
	}
	o := map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": meta}
	for k, v := range more {
		o[k] = v
	}
	return &unstructured.Unstructured{Object: o}
}

func (c *cluster) startRegistry() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c.registry = exec.Command(self, registryArg)
	c.registry.Stderr = os.Stderr
	in, err := c.registry.StdinPipe()
	if err != nil {
		return err
	}
	c.closeReg = in
	out, err := c.registry.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.registry.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return fmt.Errorf("starting the registry: %w", err)
	}
	c.addr = strings.TrimSpace(line)
	return nil
}

func (c *cluster) close() {
	if c.closeReg != nil {
		_ = c.closeReg.Close()
		_ = c.registry.Wait()
	}
	if c.plane != nil {
		if err := c.plane.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "bench/observer:", err)
		}
	}
	if err := os.RemoveAll(c.dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench/observer:", err)
	}
}

// loaded is a PipelineRun in the cluster.
type loaded struct {
	name, namespace string
	children        []string // names of its TaskRuns

	status map[string]any // what finishes it
	object *unstructured.Unstructured
}

// load puts runs first to n-1 into the cluster: the TaskRuns finished, the
// PipelineRuns without their status.
func (c *cluster) load(ctx context.Context, first, n, script int) ([]*loaded, error) {
	out := make([]*loaded, n)
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			pr, trs := provenancetest.PipelineRun(namespace(first+i), fmt.Sprintf("build-%05d", first+i), script)
			u, err := c.here(pr)
			if err != nil {
				return err
			}
			status, _ := u.Object["status"].(map[string]any)
			delete(u.Object, "status")
			made, err := c.create(ctx, pipelineRuns, u)
			if err != nil {
				return err
			}
			out[i] = &loaded{name: made.GetName(), namespace: made.GetNamespace(), status: status, object: made}
			for _, tr := range trs {
				t, err := c.here(tr)
				if err != nil {
					return err
				}
				t.SetOwnerReferences([]metav1.OwnerReference{{
					APIVersion: "tekton.dev/v1", Kind: "PipelineRun", Name: made.GetName(), UID: made.GetUID(), Controller: new(true), BlockOwnerDeletion: new(true),
				}})
				labels := t.GetLabels()
				if labels == nil {
					labels = map[string]string{}
				}
				labels["tekton.dev/pipelineRun"], labels["tekton.dev/pipelineRunUID"] = made.GetName(), string(made.GetUID())
				t.SetLabels(labels)
				s, _ := t.Object["status"].(map[string]any)
				delete(t.Object, "status")
				m, err := c.create(ctx, taskRuns, t)
				if err != nil {
					return err
				}
				if _, err := c.setStatus(ctx, taskRuns, m, s); err != nil {
					return err
				}
				out[i].children = append(out[i].children, m.GetName())
			}
			return nil
		})
	}
	return out, g.Wait()
}

// here is an object whose images are in our registry.
func (c *cluster) here(o any) (*unstructured.Unstructured, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	b = bytes.ReplaceAll(b, []byte(exampleRegistry), []byte(c.addr))
	u := &unstructured.Unstructured{}
	return u, u.UnmarshalJSON(b)
}

func (c *cluster) create(ctx context.Context, r schema.GroupVersionResource, u *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	u.SetUID("")
	u.SetResourceVersion("")
	made, err := c.dynamic.Resource(r).Namespace(u.GetNamespace()).Create(ctx, u, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("creating %s %s: %w", r.Resource, u.GetName(), err)
	}
	return made, nil
}

// finish ends a PipelineRun, now.
func (c *cluster) finish(ctx context.Context, l *loaded) (err error) {
	l.status["completionTime"] = time.Now().UTC().Format(time.RFC3339)
	l.object, err = c.setStatus(ctx, pipelineRuns, l.object, l.status)
	return err
}

// setStatus gives an object its status. A controller may change the object
// meanwhile: then it is read and tried again.
func (c *cluster) setStatus(ctx context.Context, r schema.GroupVersionResource, u *unstructured.Unstructured, status map[string]any) (*unstructured.Unstructured, error) {
	runs := c.dynamic.Resource(r).Namespace(u.GetNamespace())
	for {
		u.Object["status"] = status
		out, err := runs.UpdateStatus(ctx, u, metav1.UpdateOptions{})
		if err == nil {
			return out, nil
		}
		if !apierrors.IsConflict(err) {
			return nil, fmt.Errorf("finishing %s %s: %w", r.Resource, u.GetName(), err)
		}
		if u, err = runs.Get(ctx, u.GetName(), metav1.GetOptions{}); err != nil {
			return nil, fmt.Errorf("finishing %s: %w", r.Resource, err)
		}
	}
}

// apiRequests is how many requests for runs, and for what belongs to them, the
// API server has answered; watches count when they end.
func (c *cluster) apiRequests(ctx context.Context) (float64, error) {
	b, err := c.rest.Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return 0, err
	}
	resources := []string{"taskruns", "pipelineruns", "events", "secrets", "serviceaccounts"}
	var sum float64
	for line := range strings.SplitSeq(string(b), "\n") {
		labels, ok := strings.CutPrefix(line, "apiserver_request_total{")
		if !ok || !slices.ContainsFunc(resources, func(r string) bool { return strings.Contains(labels, `resource="`+r+`"`) }) {
			continue
		}
		var n float64
		if _, err := fmt.Sscan(line[strings.LastIndexByte(line, ' ')+1:], &n); err != nil {
			return 0, fmt.Errorf("reading the API server's metrics: %w", err)
		}
		sum += n
	}
	return sum, nil
}
