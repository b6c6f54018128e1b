package assayd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
)

// warns waits until an event about an object has this reason and says this.
func (r *rig) warns(object, reason, says string) {
	r.t.Helper()
	kubetest.Eventually(r.t, "an event "+reason+" about "+object, func() (bool, error) {
		events, err := r.c.Client.CoreV1().Events(r.ns).List(r.t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + object})
		if err != nil {
			return false, err
		}
		for _, e := range events.Items {
			if e.Reason == reason && e.Type == "Warning" && strings.Contains(e.Message, says) {
				return true, nil
			}
		}
		return false, nil
	})
}

// TestNonsenseInConfigMap: an edit that cannot be understood is shown and changes
// nothing.
func TestNonsenseInConfigMap(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings(konflux())
	o := r.observe()
	runs := r.generate(3)
	r.load(runs[0])
	r.signed(watchtest.PipelineRuns, runs[0].PipelineRun.Name)
	r.settings(konflux("artifacts.pipelinerun.format", "slsa/v9", "builder.id", "https://evil.example.com"))
	o.says(200, "slsa/v9", "last good ones stay in force")
	r.warns("chains-config", "InvalidSettings", "slsa/v9")
	r.load(runs[1])
	r.signed(watchtest.PipelineRuns, runs[1].PipelineRun.Name)
	r.complete(runs[1])
	atts := r.layers(images(runs[1])[0], ".att")
	if id := builder(decoded(t, atts[0].payload)); id != "https://tekton.example.com/chains/v2" {
		t.Errorf("builder.id is %q: settings that are refused are in force", id)
	}
	r.settings(konflux("builder.id", "https://new.example.com"))
	kubetest.Eventually(t, "the fault to be taken back", func() (bool, error) {
		_, text := o.get("/readyz")
		return !strings.Contains(text, "slsa/v9"), nil
	})
	r.load(runs[2])
	r.signed(watchtest.PipelineRuns, runs[2].PipelineRun.Name)
	atts = r.layers(images(runs[2])[0], ".att")
	if id := builder(decoded(t, atts[0].payload)); id != "https://new.example.com" {
		t.Errorf("builder.id is %q after the settings were mended", id)
	}
}

// TestGarbageForAKey: a key replaced by garbage signs nothing, also not with the
// one before; runs wait, say why, and go on when it is mended.
func TestGarbageForAKey(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings(konflux())
	o := r.observe()
	runs := r.generate(2)
	r.load(runs[0])
	r.signed(watchtest.PipelineRuns, runs[0].PipelineRun.Name)
	good, err := os.ReadFile(filepath.Join(r.secrets, "x509.pem"))
	if err != nil {
		t.Fatal(err)
	}
	r.replace(filepath.Join(r.secrets, "x509.pem"), []byte("-----BEGIN PRIVATE KEY-----\ngarbage\n-----END PRIVATE KEY-----\n"))
	r.load(runs[1])
	name := runs[1].PipelineRun.Name
	kubetest.Eventually(t, "the run to say why it waits", func() (bool, error) {
		return strings.Contains(r.get(watchtest.PipelineRuns, name).GetAnnotations()["assay.dev/reason"], "x509.pem"), nil
	})
	r.warns(name, "InternalError", "x509.pem")
	o.says(503, "signer", "x509.pem")
	if n := o.metric("assay_faults_total"); n == 0 {
		t.Error("no fault is counted")
	}
	if got := r.get(watchtest.PipelineRuns, name).GetAnnotations()["chains.tekton.dev/signed"]; got != "" {
		t.Errorf("signed is %q without a key", got)
	}
	if n := len(r.layers(images(runs[1])[0], ".sig")); n != 0 {
		t.Errorf("%d signatures with the key of before", n)
	}
	r.replace(filepath.Join(r.secrets, "x509.pem"), good)
	u := r.signed(watchtest.PipelineRuns, name)
	if why := u.GetAnnotations()["assay.dev/reason"]; why != "" {
		t.Errorf("assay.dev/reason is left: %s", why)
	}
	r.complete(runs[1])
	o.says(200, "ready")
}

// TestKeyRotation: what was signed with the old key verifies with that, what comes
// after with the new one; nothing waits.
func TestKeyRotation(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings(konflux())
	o := r.observe()
	runs := r.generate(8)
	r.load(runs[0])
	r.signed(watchtest.PipelineRuns, runs[0].PipelineRun.Name)
	done := make(chan string)
	go func() { done <- r.key(r.secrets, "second") }()
	r.load(runs[1:7]...)
	second := <-done
	for _, run := range runs[1:7] {
		r.signed(watchtest.PipelineRuns, run.PipelineRun.Name)
		r.complete(run)
	}
	r.load(runs[7])
	r.signed(watchtest.PipelineRuns, runs[7].PipelineRun.Name)
	for _, tt := range []struct {
		run  watchtest.Run
		key  string
		code int
	}{{runs[0], r.pub, 0}, {runs[0], second, 3}, {runs[7], second, 0}, {runs[7], r.pub, 3}} {
		image := images(tt.run)[4]
		if out, errb, code := r.tool("assay", "verify", image, "--key", tt.key); code != tt.code {
			t.Errorf("assay verify %s --key %s: exit %d, want %d\n%s%s", image, filepath.Base(tt.key), code, tt.code, out, errb)
		}
	}
	// Between them each run is signed with one of the two, whole.
	for _, run := range runs[1:7] {
		image := images(run)[4]
		_, _, with1 := r.tool("assay", "verify", image, "--key", r.pub)
		_, _, with2 := r.tool("assay", "verify", image, "--key", second)
		if with1 != 0 && with2 != 0 {
			t.Errorf("%s verifies with neither key", image)
		}
	}
	o.says(200, "ready")
}

// TestReplicas: two observers share four buckets; one is killed while runs are
// being signed. Each run is signed once.
func TestReplicas(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings(konflux())
	a := r.observe("--buckets", "4", "--threads-per-controller", "2")
	b := r.observe("--buckets", "4", "--threads-per-controller", "2")
	kubetest.Eventually(t, "each to hold two buckets", func() (bool, error) {
		return a.metric("assay_buckets_held") == 2 && b.metric("assay_buckets_held") == 2, nil
	})
	const marked = "watcher_pipelinerun_marked_signed_total"
	runs := r.generate(40)
	r.load(runs[:20]...)
	for _, run := range runs[:20] {
		r.signed(watchtest.PipelineRuns, run.PipelineRun.Name)
	}
	if na, nb := a.metric(marked), b.metric(marked); na+nb != 20 || na == 0 || nb == 0 {
		t.Errorf("%g and %g runs were marked; want 20 in all, some by each", na, nb)
	}
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		r.load(runs[20:]...)
	}()
	kubetest.Eventually(t, "it to sign more", func() (bool, error) { return a.metric(marked)+b.metric(marked) >= 23, nil })
	a.Kill()
	<-loaded
	for _, run := range runs {
		r.signed(watchtest.PipelineRuns, run.PipelineRun.Name)
		r.complete(run)
	}
	if n := b.metric("assay_buckets_held"); n != 4 {
		t.Errorf("the one left holds %g buckets; want 4", n)
	}
}
