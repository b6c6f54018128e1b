package doctor_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/internal/doctor"
)

var update = flag.Bool("update", false, "write golden files anew")

// healthy is an installation as Konflux has it.
func healthy() doctor.World {
	return doctor.World{
		Namespace: "tekton-chains", NamespaceExists: true, Unreadable: map[string]string{},
		Chains: &doctor.Deployment{Version: "v0.29.2", Replicas: 1, Ready: 1, Args: []string{"--threads-per-controller=32", "-kube-api-qps=50"}},
		Config: map[string]string{
			"artifacts.taskrun.storage": "", "artifacts.pipelinerun.storage": "oci", "artifacts.pipelinerun.format": "slsa/v1",
			"artifacts.pipelinerun.enable-deep-inspection": "true", "artifacts.oci.storage": "oci",
		},
		Secret: map[string]doctor.Entry{"cosign.key": {PEM: "ENCRYPTED SIGSTORE PRIVATE KEY", Bytes: 600}, "cosign.password": {Bytes: 10}, "cosign.pub": {PEM: "PUBLIC KEY", Bytes: 178}},
		CRDs:   map[string][]string{"taskruns.tekton.dev": {"v1beta1", "v1"}, "pipelineruns.tekton.dev": {"v1"}},
		Rights: []doctor.Right{{Verb: "patch", Group: "tekton.dev", Resource: "taskruns"}},
		Runs:   doctor.Runs{Seen: 120, Signed: 100, Failed: 5, Unmarked: 15, Stuck: 3},
	}
}

func TestReport(t *testing.T) {
	r := doctor.Diagnose(healthy())
	if !r.Ready() {
		t.Error("a healthy installation is not ready")
	}
	var b bytes.Buffer
	if err := r.Text(&b); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "healthy.txt")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("report (-want +got), -update writes it:\n%s", diff)
	}
}

// TestFindings alters one thing of the healthy installation at a time.
func TestFindings(t *testing.T) {
	tests := map[string]struct {
		change  func(*doctor.World)
		verdict doctor.Verdict
		want    string // in what it says, or in its remedy
	}{
		"an unknown key":         {func(w *doctor.World) { w.Config["artifact.oci.storage"] = "oci" }, doctor.Wrong, "artifact.oci.storage"},
		"a misspelt boolean":     {func(w *doctor.World) { w.Config["artifacts.pipelinerun.enable-deep-inspection"] = "yes" }, doctor.Wrong, "enable-deep-inspection"},
		"two faults, both named": {func(w *doctor.World) { w.Config["a"], w.Config["transparency.enabled"] = "1", "on" }, doctor.Wrong, "transparency.enabled"},
		"no key":                 {func(w *doctor.World) { w.Secret = nil }, doctor.Wrong, "generate-key-pair"},
		"no password":            {func(w *doctor.World) { delete(w.Secret, "cosign.password") }, doctor.Wrong, "cosign.password"},
		"a key of another form":  {func(w *doctor.World) { w.Secret["x509.pem"] = doctor.Entry{PEM: "EC PRIVATE KEY", Bytes: 1} }, doctor.Wrong, "pkcs8"},
		"kms without a key":      {func(w *doctor.World) { w.Config["artifacts.oci.signer"] = "kms" }, doctor.Wrong, "kmsref"},
		"kafka": {func(w *doctor.World) {
			w.Config["artifacts.oci.storage"], w.Config["storage.pubsub.topic"], w.Config["storage.pubsub.provider"], w.Config["storage.pubsub.kafka.bootstrap.servers"] = "kafka", "t", "kafka", "h:1"
		}, doctor.Differs, "kafka"},
		"Tekton missing":          {func(w *doctor.World) { delete(w.CRDs, "taskruns.tekton.dev") }, doctor.Wrong, "install Tekton"},
		"Tekton too old":          {func(w *doctor.World) { w.CRDs["taskruns.tekton.dev"] = []string{"v1beta1"} }, doctor.Wrong, "upgrade"},
		"a right missing":         {func(w *doctor.World) { w.Rights[0].Allowed = false }, doctor.Apply, "patch taskruns.tekton.dev"},
		"both running":            {func(w *doctor.World) { w.Ours = &doctor.Deployment{Replicas: 1} }, doctor.Wrong, "both"},
		"not readable":            {func(w *doctor.World) { w.Unreadable["Keys"] = "forbidden" }, doctor.Unknown, "forbidden"},
		"an unknown flag":         {func(w *doctor.World) { w.Chains.Args = []string{"--v=4"} }, doctor.Differs, "--v"},
		"credentials for a cloud": {func(w *doctor.World) { w.Chains.Env = []string{"AWS_REGION"} }, doctor.Apply, "AWS_REGION"},
		"no namespace":            {func(w *doctor.World) { w.NamespaceExists, w.Chains = false, nil }, doctor.Apply, "create namespace"},
		"a token in the open":     {func(w *doctor.World) { w.Config["signers.kms.auth.token"] = "s.x" }, doctor.Differs, "in the clear"},
		"deleted and waiting":     {func(w *doctor.World) { w.Runs.Deleting = 2 }, doctor.Differs, "2 deleted runs"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := healthy()
			tt.change(&w)
			r := doctor.Diagnose(w)
			for _, i := range r.Items {
				if i.Verdict == tt.verdict && strings.Contains(i.What+" "+i.Remedy, tt.want) {
					if bad := tt.verdict == doctor.Wrong || tt.verdict == doctor.Unknown; r.Ready() == bad {
						t.Errorf("ready is %t", r.Ready())
					}
					return
				}
			}
			t.Errorf("no item is %s and says %q: %+v", tt.verdict, tt.want, r.Items)
		})
	}
}
