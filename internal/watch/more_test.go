package watch_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
	"assay.dev/assay/provenance"
	"assay.dev/assay/store"
)

// standalone makes a TaskRun that no PipelineRun made.
func standalone(run watchtest.Run, i int) *v1.TaskRun {
	tr := run.TaskRuns[i].DeepCopy()
	tr.OwnerReferences = nil
	delete(tr.Labels, "tekton.dev/pipelineRun")
	return tr
}

// TestStandaloneTaskRun: with statements about TaskRuns off, the images of a
// TaskRun that no PipelineRun made are signed all the same, and it is marked.
func TestStandaloneTaskRun(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel())
	tr := standalone(r.runs(1, watchtest.Options{})[0], 3)
	if _, err := r.c.CreateFinished(t.Context(), tr); err != nil {
		t.Fatal(err)
	}
	r.start(r.cfg)
	u := r.waitMark(watchtest.TaskRuns, tr.Name)
	if got := u.GetAnnotations()["chains.tekton.dev/signed"]; got != "true" {
		t.Errorf("signed is %q", got)
	}
	if got := r.keepers.counts(); len(got) != 1 {
		t.Errorf("stored %v; want the image", got)
	}
}

// TestManagedBy leaves runs of other controllers alone.
func TestManagedBy(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel("filter.managed-by", "ours.example.com/x"))
	runs := r.runs(3, watchtest.Options{})
	theirs, ours := "theirs.example.com/x", "ours.example.com/x"
	runs[0].PipelineRun.Spec.ManagedBy = &theirs
	runs[1].PipelineRun.Spec.ManagedBy = &ours
	r.load(runs...)
	r.start(r.cfg)
	r.signedOnce(runs[1].PipelineRun.Name, 7)
	r.signedOnce(runs[2].PipelineRun.Name, 7)
	u := r.get(watchtest.PipelineRuns, runs[0].PipelineRun.Name)
	if u.GetAnnotations()["chains.tekton.dev/signed"] != "" || len(u.GetFinalizers()) > 0 {
		t.Errorf("touched another controller's run: %v, %q", u.GetAnnotations(), u.GetFinalizers())
	}
}

// TestNamespaces: an observer of two namespaces leaves the third alone.
func TestNamespaces(t *testing.T) {
	a := newRig(t)
	b, c := rigOn(t, a.c), rigOn(t, a.c)
	a.cfg.Settings = settings(t, pipelineLevel())
	a.cfg.Namespaces = []string{a.ns, b.ns}
	for _, r := range []*rig{a, b, c} {
		r.load(r.runs(1, watchtest.Options{})...)
	}
	a.start(a.cfg)
	for _, r := range []*rig{a, b} {
		r.waitMark(watchtest.PipelineRuns, "build-000000")
	}
	if got := c.get(watchtest.PipelineRuns, "build-000000").GetAnnotations()["chains.tekton.dev/signed"]; got != "" {
		t.Errorf("signed is %q in a namespace that is not watched", got)
	}
}

// TestTakeOverFinalizer: a finalizer that Chains set, with its own field manager,
// comes off with our mark; one on a run that Chains marked comes off when the run
// is deleted.
func TestTakeOverFinalizer(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel())
	runs := r.runs(2, watchtest.Options{})
	r.load(runs...)
	at := r.dynamic().Resource(watchtest.PipelineRuns).Namespace(r.ns)
	chains := func(i int, body string) {
		force := true
		full := `{"apiVersion":"tekton.dev/v1","kind":"PipelineRun","metadata":{"name":"` + runs[i].PipelineRun.Name + `",` + body + `}}`
		if _, err := at.Patch(t.Context(), runs[i].PipelineRun.Name, types.ApplyPatchType, []byte(full),
			metav1.PatchOptions{FieldManager: "tekton-chains-controller/finalizers", Force: &force}); err != nil {
			t.Fatal(err)
		}
	}
	chains(0, `"finalizers":["chains.tekton.dev/pipelinerun"]`)
	chains(1, `"finalizers":["chains.tekton.dev/pipelinerun"],"annotations":{"chains.tekton.dev/signed":"true"}`)
	r.start(r.cfg)
	r.waitMark(watchtest.PipelineRuns, runs[0].PipelineRun.Name)
	kubetest.Eventually(t, "the finalizer of Chains to be gone", func() (bool, error) {
		return len(r.get(watchtest.PipelineRuns, runs[0].PipelineRun.Name).GetFinalizers()) == 0, nil
	})
	if err := at.Delete(t.Context(), runs[1].PipelineRun.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, "the deleted run to be gone", func() (bool, error) {
		list, err := at.List(t.Context(), metav1.ListOptions{})
		return err == nil && len(list.Items) == 1, err
	})
}

// countingLog takes records, at first not at all.
type countingLog struct {
	mu      sync.Mutex
	down    bool
	entries map[string]int
}

func (l *countingLog) Upload(_ context.Context, r store.Record) ([]store.LogEntry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.down {
		return nil, errors.New("the log is down")
	}
	l.entries[r.Key]++
	return []store.LogEntry{{URL: "https://log.example.com/api/v1/log/entries?logIndex=7"}}, nil
}

// TestTransparency: an entry a record, however often the run is tried; nothing is
// stored before it is logged; and the annotation names it.
func TestTransparency(t *testing.T) {
	r := newRig(t)
	l := &countingLog{down: true, entries: map[string]int{}}
	r.cfg.Logs = func(provenance.Config) (tlog.Log, error) { return l, nil }
	r.cfg.Settings = settings(t, pipelineLevel("transparency.enabled", "manual", "assay.retry.max-backoff", "1s"))
	runs := r.runs(2, watchtest.Options{})
	runs[0].PipelineRun.Annotations["chains.tekton.dev/transparency-upload"] = "true"
	r.load(runs...)
	var once sync.Once
	r.keepers.set(func(records []store.Record) error {
		// The first that is logged fails to be stored once.
		var err error
		if len(records[0].Log) > 0 {
			once.Do(func() { err = errors.New("connection reset") })
		}
		return err
	})
	r.start(r.cfg)
	r.signedOnce(runs[1].PipelineRun.Name, 7) // asks for no entry, and needs no log
	r.waitAnnotation(watchtest.PipelineRuns, runs[0].PipelineRun.Name, "assay.dev/reason")
	for key := range r.keepers.counts() {
		if strings.HasPrefix(key, runs[0].PipelineRun.Name+" ") {
			t.Errorf("%s was stored before it was logged", key)
		}
	}
	l.mu.Lock()
	l.down = false
	l.mu.Unlock()
	r.signedOnce(runs[0].PipelineRun.Name, 7)
	a := r.get(watchtest.PipelineRuns, runs[0].PipelineRun.Name).GetAnnotations()
	if !strings.HasSuffix(a["chains.tekton.dev/transparency"], "logIndex=7") || a["chains.tekton.dev/transparency-upload"] != "true" {
		t.Errorf("annotations %v", a)
	}
	if len(l.entries) != 7 {
		t.Errorf("entries %v; want 7", l.entries)
	}
	for key, n := range l.entries {
		if n != 1 {
			t.Errorf("%s was logged %d times", key, n)
		}
	}
}

// TestHints: what is malformed is said where the run's owner looks.
func TestHints(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel())
	r.cfg.Hints = func(in provenance.Input) []string {
		if in.PipelineRun == nil || len(in.Children) != watchtest.Tasks {
			return nil
		}
		return []string{"result IMAGE_URL of TaskRun x has no IMAGE_DIGEST"}
	}
	run := r.runs(1, watchtest.Options{})[0]
	r.load(run)
	r.start(r.cfg)
	a := r.waitMark(watchtest.PipelineRuns, run.PipelineRun.Name).GetAnnotations()
	if !strings.Contains(a["assay.dev/hints"], "no IMAGE_DIGEST") {
		t.Errorf("annotations %v", a)
	}
	r.event(run.PipelineRun.Name, "MalformedHints")
}

// TestTraces: one trace a run, from its end to the mark.
func TestTraces(t *testing.T) {
	r := newRig(t)
	spans := tracetest.NewInMemoryExporter()
	r.cfg.Tracer = sdk.NewTracerProvider(sdk.WithSyncer(spans))
	r.cfg.Settings = settings(t, pipelineLevel())
	end := time.Now().Add(-3 * time.Second)
	run := r.runs(1, watchtest.Options{End: end})[0]
	r.load(run)
	_, stop := r.start(r.cfg)
	r.waitMark(watchtest.PipelineRuns, run.PipelineRun.Name)
	stop()
	got := map[string]tracetest.SpanStub{}
	for _, s := range spans.GetSpans() {
		got[s.Name] = s
	}
	root := got["run"]
	if !root.StartTime.Equal(end.Truncate(time.Second)) {
		t.Errorf("the trace begins at %s; the run ended at %s", root.StartTime, end)
	}
	for _, name := range []string{"queued", "gather", "sign", "keep", "keep folder", "mark"} {
		s, ok := got[name]
		if !ok || s.SpanContext.TraceID() != root.SpanContext.TraceID() {
			t.Errorf("no span %q in the run's trace", name)
		}
	}
}

// TestSince leaves old runs alone.
func TestSince(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel("assay.start.since", "1h"))
	old := watchtest.Generate(1, watchtest.Options{Namespace: r.ns, End: time.Now().Add(-2 * time.Hour)})
	fresh := watchtest.Generate(2, watchtest.Options{Namespace: r.ns})
	r.load(old, fresh)
	r.start(r.cfg)
	r.signedOnce(fresh.PipelineRun.Name, 7)
	if got := r.get(watchtest.PipelineRuns, old.PipelineRun.Name).GetAnnotations()["chains.tekton.dev/signed"]; got != "" {
		t.Errorf("signed is %q on a run that settings leave alone", got)
	}
}
