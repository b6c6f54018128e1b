package watch_test

import (
	"testing"
	"time"

	"assay.dev/assay/internal/watch/watchtest"
)

// TestPipelineLevel signs a PipelineRun of 20 TaskRuns with three requests.
func TestPipelineLevel(t *testing.T) {
	r := newRig(t)
	r.cfg.Settings = settings(t, pipelineLevel())
	r.start(r.cfg)
	run := r.runs(1, watchtest.Options{})[0]
	finish, err := watchtest.Create(t.Context(), r.dynamic(), run)
	if err != nil {
		t.Fatal(err)
	}
	// It lives long enough to be protected.
	protected := func() bool {
		return len(r.get(watchtest.PipelineRuns, run.PipelineRun.Name).GetFinalizers()) == 1
	}
	for deadline := time.Now().Add(time.Minute); !protected() && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if !protected() {
		t.Error("an unfinished PipelineRun got no finalizer")
	}
	if err := finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	pr := r.waitMark(watchtest.PipelineRuns, run.PipelineRun.Name)
	if got := pr.GetAnnotations()["chains.tekton.dev/signed"]; got != "true" {
		t.Errorf("signed is %q: %v", got, pr.GetAnnotations())
	}
	if f := pr.GetFinalizers(); len(f) > 0 {
		t.Errorf("finalizers %q are left", f)
	}
	uid := string(pr.GetUID())
	if got := r.kept("PipelineRun", pr.GetName(), uid, "pipelinerun-"+uid); len(got) != 1 {
		t.Errorf("%d statements are stored", len(got))
	}
	if got := len(r.keepers.counts()); got != 7 {
		t.Errorf("%d records are stored; want a statement and 6 images", got)
	}
	got := r.requests()
	if n := got["apply pipelineruns"]; n != 2 {
		t.Errorf("%d applies; want one for the finalizer and one for the mark", n)
	}
	if n := got["list taskruns"]; n != 1 {
		t.Errorf("%d lists of children; want 1", n)
	}
	for what, n := range got {
		switch what {
		case "apply pipelineruns", "list taskruns", "watch pipelineruns", "watch taskruns":
		default:
			t.Errorf("%d requests of %s; want none", n, what)
		}
	}
	for _, tr := range run.TaskRuns {
		u := r.get(watchtest.TaskRuns, tr.Name)
		if len(u.GetFinalizers()) > 0 || u.GetAnnotations()["chains.tekton.dev/signed"] != "" {
			t.Errorf("TaskRun %s carries finalizers %q and annotations %v", tr.Name, u.GetFinalizers(), u.GetAnnotations())
		}
	}
}
