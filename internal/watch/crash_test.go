package watch_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
	"assay.dev/assay/store"
)

// phases are the places where the process is killed: between any two of them
// there is one step of an attempt.
var phases = []string{"gathered", "stated", "signed", "logged", "kept:folder", "kept", "marking", "marked"}

// TestKilled kills the observer in each phase, in the middle of its second run,
// and starts another. Each run ends marked, with each of its records stored.
func TestKilled(t *testing.T) {
	r := newRig(t)
	runs := r.runs(4, watchtest.Options{})
	r.load(runs...)
	for i, phase := range phases {
		t.Run(phase, func(t *testing.T) {
			r := &rig{t: t, c: r.c, ns: r.ns, dir: r.dir}
			h := helper{Kubeconfig: r.c.Kubeconfig, Namespaces: []string{r.ns}, System: r.ns, Dir: t.TempDir(),
				Settings: pipelineLevel(), KillAt: phase, KillNth: 2, Workers: 2}
			r.dir = h.Dir
			if i > 0 {
				for _, run := range runs {
					r.unmark(run.PipelineRun.Name)
				}
			}
			p := startProcess(t, h)
			if err := p.cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatalf("the process ended otherwise: %v", err)
			}
			// Whatever is marked must be stored already.
			marked := 0
			for _, run := range runs {
				pr := r.get(watchtest.PipelineRuns, run.PipelineRun.Name)
				if pr.GetAnnotations()["chains.tekton.dev/signed"] != "" {
					marked++
					r.complete(pr.GetName(), string(pr.GetUID()), run)
				}
			}
			if marked == len(runs) {
				t.Error("all runs are marked: the process was killed too late to prove anything")
			}
			h.KillAt = ""
			startProcess(t, h)
			for _, run := range runs {
				pr := r.waitMark(watchtest.PipelineRuns, run.PipelineRun.Name)
				if got := pr.GetAnnotations()["chains.tekton.dev/signed"]; got != "true" {
					t.Errorf("signed is %q", got)
				}
				r.complete(pr.GetName(), string(pr.GetUID()), run)
			}
		})
	}
}

// unmark makes a run as if it had never been signed.
func (r *rig) unmark(name string) {
	r.t.Helper()
	at := r.dynamic().Resource(watchtest.PipelineRuns).Namespace(r.ns)
	_, err := at.Patch(r.t.Context(), name, "application/merge-patch+json", []byte(`{"metadata":{"annotations":{"chains.tekton.dev/signed":null}}}`), metav1.PatchOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
}

// complete fails unless every record of a run is stored, and once.
func (r *rig) complete(name, uid string, run watchtest.Run) {
	r.t.Helper()
	keys := []string{"pipelinerun-" + uid}
	for _, tr := range run.TaskRuns {
		for _, res := range tr.Status.Results {
			if res.Name == "IMAGE_DIGEST" {
				keys = append(keys, strings.TrimPrefix(res.Value.StringVal, "sha256:")[:12])
			}
		}
	}
	if len(keys) != 7 {
		r.t.Fatalf("%d records to look for", len(keys))
	}
	for _, key := range keys {
		if got := r.kept("PipelineRun", name, uid, key); len(got) != 1 {
			r.t.Errorf("%s: %s is stored %d times", name, key, len(got))
		}
	}
}

// TestReplicas shares the work of two buckets between two observers, kills one,
// and expects the other to take over.
func TestReplicas(t *testing.T) {
	r := newRig(t)
	h := helper{Kubeconfig: r.c.Kubeconfig, Namespaces: []string{r.ns}, System: r.ns, Dir: r.dir,
		Settings: pipelineLevel(), Buckets: 2, Lease: 3 * time.Second}
	a := startProcess(t, h)
	b := startProcess(t, h)
	kubetest.Eventually(t, "each to hold a bucket", func() (bool, error) {
		return a.metric("assay_buckets_held") == 1 && b.metric("assay_buckets_held") == 1, nil
	})
	first := r.runs(12, watchtest.Options{})
	r.load(first...)
	for _, run := range first {
		r.waitMark(watchtest.PipelineRuns, run.PipelineRun.Name)
	}
	na, nb := a.metric("watcher_pipelinerun_marked_signed_total"), b.metric("watcher_pipelinerun_marked_signed_total")
	if na+nb != 12 {
		t.Errorf("%g and %g runs were marked; want 12 in all, each by one", na, nb)
	}
	a.kill()
	var second []watchtest.Run
	for i := range 6 {
		second = append(second, watchtest.Generate(100+i, watchtest.Options{Namespace: r.ns}))
	}
	r.load(second...)
	for _, run := range second {
		r.waitMark(watchtest.PipelineRuns, run.PipelineRun.Name)
	}
	if got := b.metric("assay_buckets_held"); got != 2 {
		t.Errorf("the one left holds %g buckets; want 2", got)
	}
	// One more comes in good order, and one leaves in good order: no lease has to
	// run out for that.
	c := startProcess(t, h)
	kubetest.Eventually(t, "the new one to hold a bucket", func() (bool, error) {
		return c.metric("assay_buckets_held") == 1 && b.metric("assay_buckets_held") == 1, nil
	})
	b.stop()
	kubetest.Eventually(t, "the new one to hold both", func() (bool, error) { return c.metric("assay_buckets_held") == 2, nil })
}

// TestServerRestarts kills the API server while runs are being signed.
func TestServerRestarts(t *testing.T) {
	c := kubetest.StartOwn(t)
	c.ApplyTektonCRDs(t)
	r := rigOn(t, c)
	r.cfg.Settings = settings(t, pipelineLevel("assay.retry.max-backoff", "2s"))
	r.start(r.cfg)
	runs := r.runs(6, watchtest.Options{})
	gate := make(chan struct{})
	r.keepers.set(func([]store.Record) error { <-gate; return nil })
	r.load(runs...)
	if err := c.Plane.Stop(); err != nil {
		t.Fatal(err)
	}
	close(gate)
	time.Sleep(time.Second) // let marks fail
	if err := c.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, run := range runs {
		r.signedOnce(run.PipelineRun.Name, 7)
	}
	// Watches go on too.
	more := watchtest.Generate(99, watchtest.Options{Namespace: r.ns})
	r.load(more)
	r.signedOnce(more.PipelineRun.Name, 7)
}

// TestSettings edits the ConfigMap to nonsense and back, and changes what is
// signed, without a restart.
func TestSettings(t *testing.T) {
	r := newRig(t)
	data := pipelineLevel()
	data["builder.id"] = "https://example.com/one"
	bad := pipelineLevel("artifacts.pipelinerun.format", "slsa/v9")
	r.configMap(bad)
	o, _ := r.start(r.cfg)
	next := func(n int) string {
		run := watchtest.Generate(n, watchtest.Options{Namespace: r.ns})
		r.load(run)
		return run.PipelineRun.Name
	}
	first := next(1)
	ready := func() (int, string) { return ask(o.Handler(), "/readyz") }
	kubetest.Eventually(t, "the settings to be refused", func() (bool, error) {
		code, text := ready()
		return code == 503 && strings.Contains(text, "slsa/v9"), nil
	})
	if m := r.event("chains-config", "InvalidSettings"); !strings.Contains(m, "slsa/v9") {
		t.Errorf("event says %q", m)
	}
	if got := r.get(watchtest.PipelineRuns, first).GetAnnotations()["chains.tekton.dev/signed"]; got != "" {
		t.Errorf("signed is %q under settings that nobody understands", got)
	}
	r.configMap(data)
	r.signedOnce(first, 7)
	if code, text := ready(); code != 200 {
		t.Errorf("ready: %d %s", code, text)
	}
	// Nonsense again: the last good settings stay in force, and that is shown.
	r.configMap(bad)
	kubetest.Eventually(t, "the settings to be refused", func() (bool, error) {
		code, text := ready()
		return code == 200 && strings.Contains(text, "slsa/v9"), nil
	})
	kubetest.Eventually(t, "the ConfigMap to say so", func() (bool, error) {
		cm, err := r.c.Client.CoreV1().ConfigMaps(r.ns).Get(t.Context(), "chains-config", metav1.GetOptions{})
		return err == nil && strings.Contains(cm.Annotations["assay.dev/config-error"], "slsa/v9"), err
	})
	second := next(2)
	r.signedOnce(second, 7)
	r.says(second, `"https://example.com/one"`)
	// And good ones, with TaskRuns.
	data["builder.id"] = "https://example.com/two"
	data["assay.artifacts.taskrun.storage"] = "folder"
	r.configMap(data)
	kubetest.Eventually(t, "the ConfigMap to be well", func() (bool, error) {
		cm, err := r.c.Client.CoreV1().ConfigMaps(r.ns).Get(t.Context(), "chains-config", metav1.GetOptions{})
		return err == nil && cm.Annotations["assay.dev/config-error"] == "", err
	})
	third := next(3)
	r.signedOnce(third, 1)
	r.says(third, `"https://example.com/two"`)
}

// says fails unless a run's statement contains text.
func (r *rig) says(name, text string) {
	r.t.Helper()
	uid := string(r.get(watchtest.PipelineRuns, name).GetUID())
	kept := r.kept("PipelineRun", name, uid, "pipelinerun-"+uid)
	if len(kept) != 1 || !strings.Contains(string(kept[0].Payload), text) {
		r.t.Errorf("the statement of %s does not say %s", name, text)
	}
}

// TestChainsBesideUs: we stand back while Chains' Deployment has replicas, say
// so, and go on when it has none, or when told to.
func TestChainsBesideUs(t *testing.T) {
	r := newRig(t)
	deployment := func(replicas int) {
		r.c.Apply(t, fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"tekton-chains-controller","namespace":%q},
			"spec":{"replicas":%d,"selector":{"matchLabels":{"app":"c"}},"template":{"metadata":{"labels":{"app":"c"}},"spec":{"containers":[{"name":"c","image":"c"}]}}}}`, r.ns, replicas))
	}
	deployment(1)
	r.configMap(pipelineLevel())
	r.cfg.WatchPeer, r.cfg.PeerInterval = true, 200*time.Millisecond
	o, _ := r.start(r.cfg)
	run := r.runs(1, watchtest.Options{})[0]
	r.load(run)
	kubetest.Eventually(t, "us to stand back", func() (bool, error) {
		code, text := ask(o.Handler(), "/readyz")
		return code == 503 && strings.Contains(text, "tekton-chains-controller has replicas; standing back"), nil
	})
	r.event("chains-config", "StandingBack")
	if got := r.get(watchtest.PipelineRuns, run.PipelineRun.Name).GetAnnotations()["chains.tekton.dev/signed"]; got != "" {
		t.Errorf("signed is %q although Chains is at work", got)
	}
	deployment(0)
	r.signedOnce(run.PipelineRun.Name, 7)
	deployment(1)
	kubetest.Eventually(t, "us to stand back again", func() (bool, error) {
		code, _ := ask(o.Handler(), "/readyz")
		return code == 503, nil
	})
	r.configMap(pipelineLevel("assay.peer", "take-over"))
	second := watchtest.Generate(2, watchtest.Options{Namespace: r.ns})
	r.load(second)
	r.signedOnce(second.PipelineRun.Name, 7)
}
