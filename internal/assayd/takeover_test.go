package assayd_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
)

// asChains applies annotations and the finalizer to a run, under the name by which
// the API server knows Chains.
func (r *rig) asChains(name string, annotations map[string]string, finalizer bool) {
	r.t.Helper()
	u := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "tekton.dev/v1", "kind": "PipelineRun"}}
	u.SetName(name)
	u.SetNamespace(r.ns)
	u.SetAnnotations(annotations)
	if finalizer {
		u.SetFinalizers([]string{"chains.tekton.dev/pipelinerun"})
	}
	body, err := json.Marshal(u)
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = r.c.Dynamic.Resource(watchtest.PipelineRuns).Namespace(r.ns).Patch(r.t.Context(), name, types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: "tekton-chains-controller", Force: new(true)})
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestLeftByChains: runs as Chains leaves them when it is stopped.
func TestLeftByChains(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings(konflux())
	runs := r.generate(6)
	r.load(runs...)
	name := func(i int) string { return runs[i].PipelineRun.Name }
	r.asChains(name(0), nil, true)                                                                // seen, no more
	r.asChains(name(1), map[string]string{"chains.tekton.dev/retries": "2"}, true)                // tried
	r.asChains(name(2), map[string]string{"chains.tekton.dev/signed": "true"}, false)             // done
	r.asChains(name(3), map[string]string{"chains.tekton.dev/signed": "failed"}, false)           // given up
	r.asChains(name(4), map[string]string{"chains.tekton.dev/payload-x": "e30="}, true)           // half stored
	r.asChains(name(5), map[string]string{"chains.tekton.dev/transparency": "https://log"}, true) // deleted meanwhile
	if err := r.c.Dynamic.Resource(watchtest.PipelineRuns).Namespace(r.ns).Delete(t.Context(), name(5), metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	before := map[int]string{}
	for _, i := range []int{2, 3} {
		before[i] = r.get(watchtest.PipelineRuns, name(i)).GetResourceVersion()
	}
	r.observe()
	for _, i := range []int{0, 1, 4} {
		u := r.signed(watchtest.PipelineRuns, name(i))
		r.complete(runs[i])
		if got := u.GetAnnotations()["chains.tekton.dev/retries"]; i == 1 && got != "2" {
			t.Errorf("chains.tekton.dev/retries is %q now", got)
		}
	}
	kubetest.Eventually(t, "the deleted run to go", func() (bool, error) {
		_, err := r.c.Dynamic.Resource(watchtest.PipelineRuns).Namespace(r.ns).Get(t.Context(), name(5), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	r.complete(runs[5])
	for i, version := range before {
		if now := r.get(watchtest.PipelineRuns, name(i)).GetResourceVersion(); now != version {
			t.Errorf("%s, which Chains was done with, was changed", name(i))
		}
		if n := len(r.layers(images(runs[i])[0], ".att")); n != 0 {
			t.Errorf("%s, which Chains was done with, was stated again", name(i))
		}
	}
}

// chainsSecrets is compiled into Chains' controller.
const chainsSecrets = "/etc/signing-secrets"

// chains starts Tekton Chains' own controller, with the rig's key.
func (r *rig) chains() *kubetest.Process {
	r.t.Helper()
	bin := os.Getenv("ASSAY_CHAINS")
	if bin == "" {
		r.t.Skip("ASSAY_CHAINS names no controller of Tekton Chains; nothing is compared with it")
	}
	if err := os.Mkdir(chainsSecrets, 0o755); err != nil {
		r.t.Skipf("Chains reads its key at %s, and that cannot be made: %v", chainsSecrets, err)
	}
	r.t.Cleanup(func() { _ = os.RemoveAll(chainsSecrets) })
	key, err := os.ReadFile(filepath.Join(r.secrets, "x509.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(chainsSecrets, "x509.pem"), key, 0o600)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	for _, name := range []string{"config-logging", "tekton-chains-config-observability", "tekton-chains-config-leader-election"} {
		r.c.Apply(r.t, "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: "+name+", namespace: "+r.ns+"}\n")
	}
	p, err := r.c.Run("chains", bin, []string{"--kubeconfig", r.c.Kubeconfig, "--namespace", r.ns}, []string{
		"SYSTEM_NAMESPACE=" + r.ns, "CONFIG_LOGGING_NAME=config-logging", "CONFIG_OBSERVABILITY_NAME=tekton-chains-config-observability",
		"CONFIG_LEADERELECTION_NAME=tekton-chains-config-leader-election", "METRICS_DOMAIN=tekton.dev/chains",
		"KUBERNETES_MIN_VERSION=v1.28.0", "POD_NAME=chains",
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		p.Stop()
		if r.t.Failed() {
			r.t.Logf("end of Chains' log:\n%s", kubetest.Tail(p.Log))
		}
	})
	return p
}

// TestTakeOver runs Tekton Chains' own controller, ours beside it, and then ours
// alone: ours stands back, goes on when Chains is gone, states the same, and
// stores nothing twice that Chains has stored.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.settings(konflux())
	theirs := r.chains()
	o := r.observe()
	o.says(503, "standing back")
	runs := r.generate(2)
	r.load(runs[0])
	r.marked(watchtest.PipelineRuns, runs[0].PipelineRun.Name)
	r.complete(runs[0])
	if n := o.metric("watcher_pipelinerun_marked_signed_total"); n != 0 {
		t.Fatalf("ours marked %g runs beside Chains", n)
	}
	stated := func() []any {
		var out []any
		for _, l := range r.layers(images(runs[0])[0], ".att") {
			out = append(out, decoded(t, l.payload))
		}
		return out
	}
	first := stated()
	if diff := cmp.Diff(first[0], r.attested("pipelinerun", runs[0].PipelineRun.Name)); diff != "" {
		t.Errorf("`assay attest` does not state what Chains does (-Chains +ours):\n%s", diff)
	}

	theirs.Stop()
	r.load(runs[1]) // ends while neither is at work
	began := time.Now()
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); time.Sleep(time.Second) {
		if code, _ := o.get("/readyz"); code == 200 {
			break
		}
	}
	t.Logf("ours went on after %s", time.Since(began).Round(time.Second))
	r.signed(watchtest.PipelineRuns, runs[1].PipelineRun.Name)
	r.complete(runs[1])

	// The first run again, as if Chains had been stopped before its mark.
	patch := `{"metadata":{"annotations":{"chains.tekton.dev/signed":null}}}`
	_, err := r.c.Dynamic.Resource(watchtest.PipelineRuns).Namespace(r.ns).Patch(t.Context(), runs[0].PipelineRun.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r.signed(watchtest.PipelineRuns, runs[0].PipelineRun.Name)
	again := stated()
	for _, s := range again {
		if diff := cmp.Diff(first[0], s); diff != "" {
			t.Errorf("ours states another thing than Chains (-Chains +ours):\n%s", diff)
		}
	}
	// Image signatures are the same bytes and recognised. Statements have the same
	// values in bytes that Chains itself does not make twice: ours stands beside.
	for _, image := range images(runs[0]) {
		if n := len(r.layers(image, ".sig")); n != 1 {
			t.Errorf("%s has %d signatures", image, n)
		}
		if n := len(r.layers(image, ".att")); n > 2 {
			t.Errorf("%s has %d statements", image, n)
		}
	}
}
