package watch_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
	"assay.dev/assay/store"
)

// The tests below are the failures in which Tekton Chains loses provenance, or
// says that it has signed what it has not.

// signedOnce fails unless a run is marked true and each of its records was stored
// exactly once.
func (r *rig) signedOnce(name string, records int) {
	r.t.Helper()
	pr := r.waitMark(watchtest.PipelineRuns, name)
	if got := pr.GetAnnotations()["chains.tekton.dev/signed"]; got != "true" {
		r.t.Errorf("signed is %q: %v", got, pr.GetAnnotations())
	}
	if got := pr.GetAnnotations()["assay.dev/reason"]; got != "" {
		r.t.Errorf("the reason of a trouble that is over is left: %q", got)
	}
	if f := pr.GetFinalizers(); len(f) > 0 {
		r.t.Errorf("finalizers %q are left", f)
	}
	n := 0
	for key, times := range r.keepers.counts() {
		if strings.HasPrefix(key, name+" ") {
			n++
			if times != 1 {
				r.t.Errorf("%s was stored %d times", key, times)
			}
		}
	}
	if n != records {
		r.t.Errorf("%d records are stored; want %d", n, records)
	}
}

// event waits for a Warning about an object and returns its message.
func (r *rig) event(name, reason string) (message string) {
	r.t.Helper()
	kubetest.Eventually(r.t, "event "+reason+" about "+name, func() (bool, error) {
		list, err := r.c.Client.CoreV1().Events(r.ns).List(r.t.Context(), metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		for _, e := range list.Items {
			if e.InvolvedObject.Name == name && e.Reason == reason && e.Type == corev1.EventTypeWarning {
				message = e.Message
				return true, nil
			}
		}
		return false, nil
	})
	return message
}

// TestStoreRefusesForAWhile: ten seconds of 401 cost Chains every run of the
// span, for good. Here the run waits, says why, and is signed when it is over.
func TestStoreRefusesForAWhile(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel("assay.retry.max-backoff", "2s"))
	r.keepers.set(func([]store.Record) error {
		return store.As(store.Configuration, errors.New("registry.example.com says 401 Unauthorized"))
	})
	r.start(r.cfg)
	run := r.runs(1, watchtest.Options{})[0]
	r.load(run)
	name := run.PipelineRun.Name
	pr := r.waitAnnotation(watchtest.PipelineRuns, name, "assay.dev/reason")
	a := pr.GetAnnotations()
	if !strings.Contains(a["assay.dev/reason"], "configuration: ") || !strings.Contains(a["assay.dev/reason"], "401") {
		t.Errorf("reason %q says neither class nor cause", a["assay.dev/reason"])
	}
	if a["chains.tekton.dev/signed"] != "" || a["chains.tekton.dev/retries"] == "" {
		t.Errorf("annotations of a run that waits: %v", a)
	}
	if len(pr.GetFinalizers()) != 1 {
		t.Errorf("a run that waits has finalizers %q", pr.GetFinalizers())
	}
	if m := r.event(name, "InternalError"); !strings.Contains(m, "401") {
		t.Errorf("event says %q", m)
	}
	r.keepers.set(nil)
	r.signedOnce(name, 7)
	if got := r.signer.Signs(); got != 7 {
		t.Errorf("%d signatures were made for 7 records: attempts signed again", got)
	}
}

// TestNoKey: nothing is marked signed without a signature.
func TestNoKey(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel("assay.retry.max-backoff", "1s"))
	r.signer.Fail(store.As(store.Configuration, errors.New("no key: signing-secrets holds neither x509.pem nor cosign.key")))
	r.start(r.cfg)
	run := r.runs(1, watchtest.Options{})[0]
	r.load(run)
	pr := r.waitAnnotation(watchtest.PipelineRuns, run.PipelineRun.Name, "assay.dev/reason")
	if got := pr.GetAnnotations(); !strings.Contains(got["assay.dev/reason"], "signing-secrets") || got["chains.tekton.dev/signed"] != "" {
		t.Errorf("annotations %v", got)
	}
	r.signer.Fail(nil)
	r.signedOnce(run.PipelineRun.Name, 7)
}

// TestOneRecordCannotBeKept: a permanent refusal of one record costs only that
// one, and is said.
func TestOneRecordCannotBeKept(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel())
	r.keepers.set(func(records []store.Record) error {
		return store.As(store.Permanent, errors.New("records of this kind are not taken"))
	})
	r.start(r.cfg)
	run := r.runs(1, watchtest.Options{})[0]
	r.load(run)
	pr := r.waitMark(watchtest.PipelineRuns, run.PipelineRun.Name)
	a := pr.GetAnnotations()
	if a["chains.tekton.dev/signed"] != "failed" || !strings.Contains(a["assay.dev/reason"], "not taken") {
		t.Errorf("annotations %v", a)
	}
	r.event(run.PipelineRun.Name, "ProvenanceRefused")
}

// TestFormatterFails: a step that never started has an image id without digest,
// of which no statement can be made. The images are signed all the same.
func TestFormatterFails(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel())
	r.start(r.cfg)
	run := r.runs(1, watchtest.Options{})[0]
	run.TaskRuns[0].Status.Steps[0].ImageID = ""
	r.load(run)
	name := run.PipelineRun.Name
	a := r.waitMark(watchtest.PipelineRuns, name).GetAnnotations()
	if a["chains.tekton.dev/signed"] != "failed" || !strings.Contains(a["assay.dev/reason"], "image id") {
		t.Errorf("annotations %v", a)
	}
	if got := len(r.keepers.counts()); got != 6 {
		t.Errorf("%d records are stored; want the 6 images", got)
	}
}

// TestMissingChildren: Chains never signs such a PipelineRun, and says nothing.
func TestMissingChildren(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		t.Run(fmt.Sprintf("refuse=%t", refuse), func(t *testing.T) {
			r := newRig(t)
			data := pipelineLevel()
			if refuse {
				data["assay.children.missing"] = "refuse"
			}
			r.cfg.Settings = settings(t, data)
			run := r.runs(1, watchtest.Options{})[0]
			ref := func(kind, name string) v1.ChildStatusReference {
				return v1.ChildStatusReference{TypeMeta: runtime.TypeMeta{APIVersion: "tekton.dev/v1", Kind: kind}, Name: name}
			}
			pr := run.PipelineRun
			// A custom task, a nested pipeline, itself, and a TaskRun that was pruned.
			pr.Status.ChildReferences = append(pr.Status.ChildReferences, ref("CustomRun", "approval"),
				ref("PipelineRun", "nested"), ref("PipelineRun", pr.Name), ref("TaskRun", "pruned"))
			// One that somebody else made under a name that is listed.
			stranger := run.TaskRuns[19].DeepCopy()
			stranger.Name, stranger.Labels = "stranger", nil
			stranger.OwnerReferences = nil
			pr.Status.ChildReferences = append(pr.Status.ChildReferences, ref("TaskRun", "stranger"))
			// One that has lost its label is still a child.
			delete(run.TaskRuns[3].Labels, "tekton.dev/pipelineRun")
			r.load(run)
			if _, err := r.c.CreateFinished(t.Context(), stranger); err != nil {
				t.Fatal(err)
			}
			r.start(r.cfg)
			a := r.waitMark(watchtest.PipelineRuns, pr.Name).GetAnnotations()
			want, records := "true", 7
			if refuse {
				want, records = "failed", 6
			}
			if a["chains.tekton.dev/signed"] != want {
				t.Errorf("signed is %q; want %s: %v", a["chains.tekton.dev/signed"], want, a)
			}
			for _, name := range []string{"approval (a CustomRun", "nested (a PipelineRun", pr.Name + " (a PipelineRun", "pruned (deleted)", "stranger (the TaskRun of that name belongs to somebody else)"} {
				if !strings.Contains(a["assay.dev/missing-children"], name) {
					t.Errorf("annotation %q does not name %s", a["assay.dev/missing-children"], name)
				}
			}
			if strings.Contains(a["assay.dev/missing-children"], "build-images-amd64") {
				t.Error("a child without label counts as missing")
			}
			r.event(pr.Name, "MissingChildren")
			if got := len(r.keepers.counts()); got != records {
				t.Errorf("%d records are stored; want %d", got, records)
			}
		})
	}
}

// TestDeletedWhileSigned: what a run made is stored though the run is gone.
func TestDeletedWhileSigned(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel("assay.retry.max-backoff", "1s"))
	run := r.runs(1, watchtest.Options{})[0]
	deleted := make(chan struct{})
	r.keepers.set(func([]store.Record) error {
		select {
		case <-deleted:
			return nil
		default:
			return errors.New("connection refused")
		}
	})
	_, stop := r.start(r.cfg)
	r.load(run)
	name := run.PipelineRun.Name
	r.waitAnnotation(watchtest.PipelineRuns, name, "assay.dev/reason")
	// The finalizer would hold it: whoever deletes it takes that away too.
	at := r.dynamic().Resource(watchtest.PipelineRuns).Namespace(r.ns)
	if _, err := at.Patch(t.Context(), name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := at.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, "the run to be gone", func() (bool, error) {
		_, err := at.Get(t.Context(), name, metav1.GetOptions{})
		return apierrors.IsNotFound(err), nil
	})
	close(deleted)
	kubetest.Eventually(t, "its records to be stored", func() (bool, error) { return len(r.keepers.counts()) == 7, nil })
	stop()
	if _, err := at.Get(t.Context(), name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the mark brought the run back: %v", err)
	}
}

// TestConflicts: others keep changing the run while it is being signed.
func TestConflicts(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel())
	run := r.runs(1, watchtest.Options{})[0]
	name := run.PipelineRun.Name
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	at := r.dynamic().Resource(watchtest.PipelineRuns).Namespace(r.ns)
	var changes atomic.Int64
	storm := func() {
		for ctx.Err() == nil {
			n := changes.Add(1)
			_, err := at.Patch(ctx, name, types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{"example.com/n":"%d"}}}`, n), metav1.PatchOptions{})
			if err != nil && ctx.Err() == nil {
				t.Errorf("changing the run: %v", err)
				return
			}
		}
	}
	r.keepers.set(func([]store.Record) error {
		if changes.Load() == 0 {
			go storm()
			for changes.Load() < 3 {
				time.Sleep(time.Millisecond)
			}
		}
		return nil
	})
	r.load(run)
	r.start(r.cfg)
	r.signedOnce(name, 7)
	cancel()
	if got := r.get(watchtest.PipelineRuns, name).GetAnnotations()["example.com/n"]; got == "" {
		t.Error("the mark took away somebody else's annotation")
	}
}

// TestTwoObservers: two by mistake, without leases, store nothing twice.
func TestTwoObservers(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel())
	other := r.cfg
	runs := r.runs(10, watchtest.Options{})
	r.start(r.cfg)
	r.start(other)
	r.load(runs...)
	for _, run := range runs {
		r.signedOnce(run.PipelineRun.Name, 7)
	}
}

// TestTooLargeForAnnotations: Kubernetes' limit is 256 KiB for all annotations.
func TestTooLargeForAnnotations(t *testing.T) {
	for name, test := range map[string]struct{ own, signed, event string }{
		"alone":          {"", "failed", "ProvenanceRefused"},
		"beside another": {"folder", "true", "StoredElsewhere"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			data := pipelineLevel("artifacts.pipelinerun.storage", "tekton", "assay.artifacts.pipelinerun.storage", test.own)
			if test.own == "" {
				delete(data, "assay.artifacts.pipelinerun.storage")
			}
			r.cfg.Settings = settings(t, data)
			r.start(r.cfg)
			run := r.runs(1, watchtest.Options{TaskRunBytes: 20_000})[0]
			r.load(run)
			a := r.waitMark(watchtest.PipelineRuns, run.PipelineRun.Name).GetAnnotations()
			if a["chains.tekton.dev/signed"] != test.signed {
				t.Errorf("signed is %q; want %s: %v", a["chains.tekton.dev/signed"], test.signed, a)
			}
			r.event(run.PipelineRun.Name, test.event)
			if test.signed == "failed" && !strings.Contains(a["assay.dev/reason"], "storage") {
				t.Errorf("reason %q does not name a remedy", a["assay.dev/reason"])
			}
		})
	}
}

// TestAnnotations: what fits is on the run, in one request with the mark.
func TestAnnotations(t *testing.T) {
	r := newRig(t)
	data := pipelineLevel("artifacts.pipelinerun.storage", "tekton", "artifacts.pipelinerun.format", "slsa/v2alpha4")
	delete(data, "assay.artifacts.pipelinerun.storage")
	r.cfg.Settings = settings(t, data)
	run := r.runs(1, watchtest.Options{})[0]
	r.load(run)
	r.start(r.cfg)
	pr := r.waitMark(watchtest.PipelineRuns, run.PipelineRun.Name)
	for _, key := range []string{"payload", "signature", "cert", "chain"} {
		if _, ok := pr.GetAnnotations()["chains.tekton.dev/"+key+"-pipelinerun-"+string(pr.GetUID())]; !ok {
			t.Errorf("no annotation %s", key)
		}
	}
	if n := r.requests()["apply pipelineruns"]; n != 1 {
		t.Errorf("%d applies; want 1", n)
	}
}

// TestTaskRunLevel: statements about TaskRuns as well: one request more for each.
func TestTaskRunLevel(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel("assay.artifacts.taskrun.storage", "folder"))
	run := r.runs(1, watchtest.Options{})[0]
	r.load(run)
	r.start(r.cfg)
	r.signedOnce(run.PipelineRun.Name, 1)
	for _, tr := range run.TaskRuns {
		if got := r.get(watchtest.TaskRuns, tr.Name).GetAnnotations()["chains.tekton.dev/signed"]; got != "true" {
			t.Errorf("TaskRun %s: signed is %q", tr.Name, got)
		}
	}
	if got := len(r.keepers.counts()); got != 27 {
		t.Errorf("%d records are stored; want 21 statements and 6 images", got)
	}
	total := 0
	for what, n := range r.requests() {
		if !strings.HasPrefix(what, "watch ") {
			total += n
		}
	}
	if total != 22 {
		t.Errorf("%d requests; want a mark for each run and one list: %v", total, r.requests())
	}
}

// TestHuge: ten thousand results, and one of a megabyte.
func TestHuge(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel())
	many := r.runs(2, watchtest.Options{})
	pr := many[0].PipelineRun
	for i := range 10_000 {
		pr.Status.Results = append(pr.Status.Results, v1.PipelineRunResult{Name: fmt.Sprintf("r%05d", i), Value: *v1.NewStructuredValues("x")})
	}
	pr = many[1].PipelineRun
	pr.Status.Results = append(pr.Status.Results, v1.PipelineRunResult{Name: "large", Value: *v1.NewStructuredValues(strings.Repeat("x", 1<<20))})
	r.load(many...)
	r.start(r.cfg)
	for _, run := range many {
		r.signedOnce(run.PipelineRun.Name, 7)
	}
}
