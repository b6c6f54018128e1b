package watch_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch"
	"assay.dev/assay/internal/watch/watchtest"
	"assay.dev/assay/provenance"
	"assay.dev/assay/store"
	"assay.dev/assay/store/annotations"
	"assay.dev/assay/store/folder"
)

// rig is a real API server with Tekton's definitions, a namespace of it, and
// what an observer there needs. Storage is a real folder behind a switch that
// tests turn; no Tekton controller runs, tests write the runs themselves.
type rig struct {
	t       *testing.T
	c       *kubetest.Cluster
	ns      string
	dir     string
	signer  *watchtest.Signer
	reg     *prometheus.Registry
	keepers *keepers
	cfg     watch.Config
}

func newRig(t *testing.T) *rig {
	t.Helper()
	c := kubetest.Start(t)
	c.ApplyTektonCRDs(t)
	return rigOn(t, c)
}

func rigOn(t *testing.T, c *kubetest.Cluster) *rig {
	t.Helper()
	signer, err := watchtest.NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, c: c, ns: c.Namespace(t), dir: t.TempDir(), signer: signer}
	r.keepers = &keepers{dir: r.dir}
	kube := c.RESTConfig()
	r.cfg = watch.Config{
		Kube: kube, Namespaces: []string{r.ns}, SystemNamespace: r.ns,
		Keepers: r.keepers.open, Signer: signer, ProtectAfter: 300 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	return r
}

// testWriter logs until the test ends.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Log(strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

// settings parses chains-config's words.
func settings(t testing.TB, data map[string]string) *provenance.Config {
	t.Helper()
	cfg, err := provenance.ParseConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	return &cfg
}

// pipelineLevel are Konflux's settings: statements about PipelineRuns only, deep
// inspection; here everything in one folder.
func pipelineLevel(more ...string) map[string]string {
	m := map[string]string{
		"artifacts.taskrun.storage": "", "artifacts.pipelinerun.storage": "", "artifacts.oci.storage": "",
		"assay.artifacts.pipelinerun.storage": "folder", "assay.artifacts.oci.storage": "folder",
		"assay.storage.folder.path":                    "/given/by/the/test",
		"artifacts.pipelinerun.enable-deep-inspection": "true", "artifacts.pipelinerun.format": "slsa/v1",
	}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = more[i+1]
	}
	return m
}

// start runs an observer until the test ends, or stop is called.
func (r *rig) start(cfg watch.Config) (o *watch.Observer, stop func()) {
	r.t.Helper()
	r.reg = prometheus.NewRegistry()
	cfg.Registry = r.reg
	o, err := watch.New(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.keepers.observer.Store(o)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := o.Run(ctx); err != nil {
			r.t.Errorf("observer: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(stop)
	return o, stop
}

func (r *rig) runs(n int, o watchtest.Options) []watchtest.Run {
	o.Namespace = r.ns
	var out []watchtest.Run
	for i := range n {
		out = append(out, watchtest.Generate(i, o))
	}
	return out
}

func (r *rig) load(runs ...watchtest.Run) {
	r.t.Helper()
	if err := watchtest.Load(r.t.Context(), r.dynamic(), runs...); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) dynamic() dynamic.Interface { return r.c.Dynamic }

func (r *rig) get(res schema.GroupVersionResource, name string) *unstructured.Unstructured {
	r.t.Helper()
	u, err := r.dynamic().Resource(res).Namespace(r.ns).Get(r.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return u
}

// waitMark waits until a run carries its mark and returns the run.
func (r *rig) waitMark(res schema.GroupVersionResource, name string) *unstructured.Unstructured {
	r.t.Helper()
	return r.waitAnnotation(res, name, "chains.tekton.dev/signed")
}

func (r *rig) waitAnnotation(res schema.GroupVersionResource, name, key string) (u *unstructured.Unstructured) {
	r.t.Helper()
	kubetest.Eventually(r.t, fmt.Sprintf("%s on %s", key, name), func() (bool, error) {
		u = r.get(res, name)
		return u.GetAnnotations()[key] != "", nil
	})
	return u
}

// requests is how many requests the observer made, by verb and resource.
func (r *rig) requests() map[string]int {
	r.t.Helper()
	out := map[string]int{}
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != "assay_api_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			l := map[string]string{}
			for _, p := range m.GetLabel() {
				l[p.GetName()] = p.GetValue()
			}
			out[l["verb"]+" "+l["resource"]] += int(m.GetCounter().GetValue())
		}
	}
	return out
}

// kept says what the folder has about a run, by key.
func (r *rig) kept(kind, name, uid string, key string) []store.Kept {
	r.t.Helper()
	k, err := folder.New(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	found, err := k.Find(r.t.Context(), store.Run{APIVersion: "tekton.dev/v1", Kind: kind, Namespace: r.ns, Name: name, UID: uid}, key)
	if err != nil {
		r.t.Fatal(err)
	}
	return found
}

// configMap writes chains-config.
func (r *rig) configMap(data map[string]string) {
	r.t.Helper()
	body, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "chains-config", "namespace": r.ns}, "data": data})
	if err != nil {
		r.t.Fatal(err)
	}
	r.c.Apply(r.t, string(body))
}

// keepers opens a real folder (and the annotations back end) for the observer,
// behind what a test does to it.
type keepers struct {
	dir string
	// observer knows the annotations of runs, once there is one.
	observer atomic.Pointer[watch.Observer]

	mu    sync.Mutex
	trap  func(records []store.Record) error // what Keep fails with
	calls int
	kept  map[string]int // times a record was stored, by run and key
}

func (k *keepers) open(provenance.Config) (map[string]store.Keeper, error) {
	f, err := folder.New(k.dir)
	if err != nil {
		return nil, err
	}
	return map[string]store.Keeper{
		"folder": &trapped{Keeper: f, k: k},
		"tekton": annotations.New(k.annotations),
	}, nil
}

func (k *keepers) annotations(ctx context.Context, run store.Run) (map[string]string, error) {
	return k.observer.Load().Annotations(ctx, run)
}

func (k *keepers) set(trap func([]store.Record) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.trap = trap
}

func (k *keepers) counts() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.kept)
}

type trapped struct {
	store.Keeper
	k *keepers
}

func (t *trapped) Keep(ctx context.Context, records []store.Record) []store.Outcome {
	t.k.mu.Lock()
	trap := t.k.trap
	t.k.calls++
	t.k.mu.Unlock()
	if trap != nil {
		if err := trap(records); err != nil {
			out := make([]store.Outcome, len(records))
			for i := range out {
				out[i].Err = err
			}
			return out
		}
	}
	out := t.Keeper.Keep(ctx, records)
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	if t.k.kept == nil {
		t.k.kept = map[string]int{}
	}
	for i, r := range records {
		if out[i].Err == nil && !out[i].Existing {
			t.k.kept[r.Run.Name+" "+r.Key]++
		}
	}
	return out
}

// ask gets a page of a handler.
func ask(h http.Handler, path string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}
