package doctor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"assay.dev/assay/internal/doctor"
	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
)

// deployment is Chains' as far as it is looked at. Nothing runs it here.
const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata:
  name: tekton-chains-controller
  namespace: tekton-chains
  labels: {app.kubernetes.io/version: v0.29.2}
spec:
  replicas: %d
  selector: {matchLabels: {app: chains}}
  template:
    metadata: {labels: {app: chains}}
    spec:
      containers:
      - {name: c, image: chains, args: ["--threads-per-controller=32"], env: [{name: AWS_REGION, value: eu}]}
`

// TestCluster reads a real API server in the states that a change-over goes
// through. etcd, kube-apiserver and Tekton's definitions are the real ones.
func TestCluster(t *testing.T) {
	c := kubetest.StartOwn(t)
	// diagnose runs the command, as text and as JSON, and returns the report.
	diagnose := func(t *testing.T, ready bool) doctor.Report {
		t.Helper()
		var r doctor.Report
		for _, output := range []string{"text", "json"} {
			var out bytes.Buffer
			cmd := doctor.Command()
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			cmd.SetArgs([]string{"chains", "--kubeconfig", c.Kubeconfig, "-o", output})
			cmd.SetOut(&out)
			err := cmd.ExecuteContext(t.Context())
			if (err == nil) != ready || err != nil && !errors.Is(err, doctor.ErrNotReady) {
				t.Errorf("%s: %v; want ready: %t\n%s", output, err, ready, out.String())
			}
			if output == "text" {
				t.Logf("\n%s", out.String())
			} else if err := json.Unmarshal(out.Bytes(), &r); err != nil {
				t.Fatal(err)
			}
		}
		return r
	}
	// has fails unless an item has this verdict and says this, in itself or its
	// remedy.
	has := func(t *testing.T, r doctor.Report, v doctor.Verdict, says string) {
		t.Helper()
		for _, i := range r.Items {
			if i.Verdict == v && strings.Contains(i.What+" → "+i.Remedy, says) {
				return
			}
		}
		t.Errorf("no item is %s and says %q", v, says)
	}

	t.Run("nothing there", func(t *testing.T) {
		r := diagnose(t, false)
		has(t, r, doctor.Wrong, "install Tekton Pipelines first")
		has(t, r, doctor.Apply, "kubectl create namespace tekton-chains")
		has(t, r, doctor.Wrong, "generate-key-pair")
	})
	c.ApplyTektonCRDs(t)
	t.Run("Tekton, no Chains", func(t *testing.T) {
		r := diagnose(t, false)
		has(t, r, doctor.Same, "pipelineruns.tekton.dev is served as v1")
		has(t, r, doctor.Wrong, "there is no key in Secret signing-secrets")
		has(t, r, doctor.Apply, "patch taskruns.tekton.dev")
		has(t, r, doctor.Apply, "kubectl -n tekton-chains create configmap chains-config")
		for _, i := range r.Items {
			if i.Verdict == doctor.Unknown {
				t.Errorf("unknown: %+v", i)
			}
		}
	})

	c.Kubectl(t, "create", "namespace", "tekton-chains")
	ns := c.Namespace(t)
	c.Apply(t, fmt.Sprintf(deployment, 1)+`---
apiVersion: v1
kind: ConfigMap
metadata: {name: chains-config, namespace: tekton-chains}
data: {artifacts.taskrun.storage: "", artifacts.pipelinerun.enable-deep-inspection: "yes", artifact.oci.storage: oci}
---
apiVersion: v1
kind: Secret
metadata: {name: signing-secrets, namespace: tekton-chains}
stringData: {cosign.key: "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n"}
`)
	// Three runs: signed, with a child that is gone, and deleted but held.
	runs := []watchtest.Run{}
	for i := range 3 {
		runs = append(runs, watchtest.Generate(i, watchtest.Options{Namespace: ns, TaskRunBytes: 6000}))
	}
	runs[2].PipelineRun.Finalizers = []string{"chains.tekton.dev/pipelinerun"}
	if err := watchtest.Load(t.Context(), c.Dynamic, runs...); err != nil {
		t.Fatal(err)
	}
	signed := []byte(`{"metadata":{"annotations":{"chains.tekton.dev/signed":"true"}}}`)
	prs, trs := c.Dynamic.Resource(watchtest.PipelineRuns).Namespace(ns), c.Dynamic.Resource(watchtest.TaskRuns).Namespace(ns)
	_, err := prs.Patch(t.Context(), runs[0].PipelineRun.Name, types.MergePatchType, signed, metav1.PatchOptions{})
	err = errors.Join(err, trs.Delete(t.Context(), runs[1].TaskRuns[0].Name, metav1.DeleteOptions{}),
		prs.Delete(t.Context(), runs[2].PipelineRun.Name, metav1.DeleteOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("Chains with faults", func(t *testing.T) {
		r := diagnose(t, false)
		has(t, r, doctor.Apply, "(v0.29.2) runs with 0 of 1 replicas ready")
		has(t, r, doctor.Same, "--threads-per-controller=32 means the same")
		has(t, r, doctor.Apply, "AWS_REGION")
		has(t, r, doctor.Wrong, "artifact.oci.storage")
		has(t, r, doctor.Wrong, "enable-deep-inspection")
		has(t, r, doctor.Differs, "1 PipelineRuns are never signed by Chains")
		has(t, r, doctor.Differs, "1 deleted runs wait")
		if !strings.HasPrefix(r.Steps[0], "kubectl -n tekton-chains scale deployment/tekton-chains-controller --replicas=0") {
			t.Errorf("steps: %q", r.Steps)
		}
	})

	// What it said is done: settings and key mended, Chains stopped, ours applied.
	manifests, err := os.ReadFile(filepath.Join(testrig.Root(), "deploy", "observer.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	c.Apply(t, fmt.Sprintf(deployment, 0)+`---
apiVersion: v1
kind: Secret
metadata: {name: signing-secrets, namespace: tekton-chains}
stringData: {cosign.password: ""}
`)
	c.Kubectl(t, "-n", "tekton-chains", "delete", "configmap", "chains-config")
	c.Kubectl(t, "-n", "tekton-chains", "create", "configmap", "chains-config", "--from-literal=artifacts.pipelinerun.storage=oci")
	c.Apply(t, string(manifests))
	c.Kubectl(t, "-n", "tekton-chains", "patch", "secret", "signing-secrets", "--type=merge", "-p", `{"stringData":{"cosign.password":"","cosign.key":"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n"}}`)
	t.Run("after the change-over", func(t *testing.T) {
		r := diagnose(t, true)
		has(t, r, doctor.Same, "is scaled to 0")
		has(t, r, doctor.Same, "system:serviceaccount:tekton-chains:assay-observer has all")
		has(t, r, doctor.Same, "all 1 keys of chains-config are understood")
	})

	t.Run("without rights, what cannot be read is said", func(t *testing.T) {
		config := c.RESTConfig()
		config.Impersonate.UserName = "nobody"
		w, err := doctor.Read(context.WithoutCancel(t.Context()), config, doctor.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r := doctor.Diagnose(w)
		if r.Ready() {
			t.Error("ready, though nothing could be read")
		}
		for _, topic := range []string{"Tekton", "Chains", "Settings", "Keys", "Rights", "Runs"} {
			if w.Unreadable[topic] == "" {
				t.Errorf("%s was readable", topic)
			}
		}
	})
}
