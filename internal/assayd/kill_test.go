package assayd_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
)

// TestKilled kills the whole program at random moments while it signs 60 runs.
// Each run ends marked, with each signature and statement stored once.
func TestKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings(konflux())
	runs := r.generate(60)
	r.load(runs...)
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 1))
	t.Logf("seed %d", seed)
	const kills = 5
	for i := range kills {
		o := r.observe("--threads-per-controller", "4", "--no-leader-election")
		// From when it has begun: a fifth of what there is to do takes some 300 ms.
		goal := r.countSigned() + 1 + random.IntN(3)
		kubetest.Eventually(t, "it to sign", func() (bool, error) { return r.countSigned() >= goal, nil })
		time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
		o.Kill()
		n := r.countSigned()
		t.Logf("kill %d: %d of %d runs are marked", i+1, n, len(runs))
		if i < 2 && n == len(runs) {
			t.Error("all runs are marked: the kills come too late to prove anything")
		}
	}
	o := r.observe("--no-leader-election")
	for _, run := range runs {
		r.signed(watchtest.PipelineRuns, run.PipelineRun.Name)
		r.complete(run)
	}
	o.Stop()
	// What killed processes left of their signers' sockets is gone.
	left, err := filepath.Glob(filepath.Join(r.dir, "assayd-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %q (%v)", left, err)
	}
}

func (r *rig) countSigned() int {
	r.t.Helper()
	list, err := r.c.Dynamic.Resource(watchtest.PipelineRuns).Namespace(r.ns).List(r.t.Context(), listAll)
	if err != nil {
		r.t.Fatal(err)
	}
	n := 0
	for _, u := range list.Items {
		if u.GetAnnotations()["chains.tekton.dev/signed"] == "true" {
			n++
		}
	}
	return n
}

// TestSignerKilled: a signer that dies is noticed, said, and started again.
func TestSignerKilled(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings(konflux())
	o := r.observe("--no-leader-election")
	first := r.generate(1)
	r.load(first...)
	r.signed(watchtest.PipelineRuns, first[0].PipelineRun.Name)
	o.says(200, "ready")

	// While runs are being signed.
	runs := r.generate(12)
	go func() {
		time.Sleep(100 * time.Millisecond)
		for _, pid := range childrenOf(t, o.PID) {
			kill(t, pid)
		}
	}()
	r.load(runs...)
	for _, run := range runs {
		r.signed(watchtest.PipelineRuns, run.PipelineRun.Name)
		r.complete(run)
	}
	o.says(200, "ready")

	// A signer that cannot be started again, here for want of its folder, is
	// shown, and its return too.
	if err := os.Rename(r.secrets, r.secrets+".away"); err != nil {
		t.Fatal(err)
	}
	for _, pid := range childrenOf(t, o.PID) {
		kill(t, pid)
	}
	kubetest.Eventually(t, "a signer without a key", func() (bool, error) { return len(childrenOf(t, o.PID)) == 1, nil })
	last := r.generate(1)
	r.load(last...)
	o.says(503, "signer")
	if err := os.Rename(r.secrets+".away", r.secrets); err != nil {
		t.Fatal(err)
	}
	r.signed(watchtest.PipelineRuns, last[0].PipelineRun.Name)
	r.complete(last[0])
	o.says(200, "ready")
}

// TestServerKilled: kube-apiserver is killed while runs are being signed, and
// comes back on the same data.
func TestServerKilled(t *testing.T) {
	t.Parallel()
	c := kubetest.StartOwn(t)
	r := rigOn(t, c)
	r.settings(konflux())
	runs := r.generate(30)
	r.load(runs...)
	o := r.observe("--threads-per-controller", "2")
	kubetest.Eventually(t, "it to sign", func() (bool, error) { return r.countSigned() >= 3, nil })
	_, api := c.Plane.Pids()
	kill(t, api)
	<-c.Plane.Done()
	if code, text := o.get("/healthz"); code != 200 {
		t.Errorf("healthz without an API server: %d %s", code, text)
	}
	if err := c.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, run := range runs {
		r.signed(watchtest.PipelineRuns, run.PipelineRun.Name)
		r.complete(run)
	}
	// Watches go on too.
	more := r.generate(1)
	r.load(more...)
	r.signed(watchtest.PipelineRuns, more[0].PipelineRun.Name)
	o.says(200, "ready")
}
