package deploy_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/internal/cli"
	"assay.dev/assay/internal/testrig/kubetest"
)

// renderGate runs helm over the gate's chart.
func renderGate(t *testing.T, args ...string) string {
	t.Helper()
	helm := os.Getenv("ASSAY_HELM")
	if helm == "" {
		t.Skip("ASSAY_HELM names no helm: `make test-all`, which builds it, runs this")
	}
	args = append([]string{"template", "assay-gate", "helm/assay-gate", "--kube-version", "1.30.0"}, args...)
	out, err := exec.Command(helm, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("rendering the chart: %v\n%s", err, out)
	}
	return string(out)
}

// one finds the object of a kind among manifests, and reads it strictly.
func one[T any](t *testing.T, manifests, kind string) T {
	t.Helper()
	var out T
	for doc := range strings.SplitSeq(manifests, "\n---\n") {
		if strings.Contains(doc, "\nkind: "+kind+"\n") {
			if err := yaml.UnmarshalStrict([]byte(doc), &out); err != nil {
				t.Fatalf("%s: %v\n%s", kind, err, doc)
			}
			return out
		}
	}
	t.Fatalf("there is no %s", kind)
	return out
}

// variants are ways to set the chart up.
var variants = map[string][]string{
	"default": nil,
	"everything": {
		"--set", "certManager.issuer=ca", "--set", "tokensSecret=tokens", "--set", "registryConfigSecret=pull", "--set", "webhook.allowTags=true",
		"--set", "tls.clientCAConfigMap=ca", "--set", "tls.clientNames={kube-apiserver}", "--set", "anonymousAdmission=false", "--set", "tls.caBundle=YWJj",
		"--set", "networkPolicy.apiServers={192.0.2.0/24}", "--set", "extraArgs={--without-provenance}", "--set", "webhook.failurePolicy=Ignore",
		"--set", "webhook.objectSelector.matchLabels.a=b", "--set", "priorityClassName=system-cluster-critical",
	},
	"keyless": {"--set", "keys=null", "--set", "policyConfigMap=", "--set", "policy=github.com/owner/policy//release", "--set", "extraArgs={--repo=owner/name,--without-signature}"},
}

// TestGateManifests: gate.yaml is the chart with its default values, and what it says to
// the gate is what the gate understands.
func TestGateManifests(t *testing.T) {
	got := renderGate(t)
	if *update {
		if err := os.WriteFile("gate.yaml", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("gate.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("gate.yaml is not what the chart gives; -update renders it (-file +chart):\n%s", diff)
	}
	for name, args := range variants {
		t.Run(name, func(t *testing.T) {
			all := renderGate(t, args...)
			d := one[appsv1.Deployment](t, all, "Deployment")
			pod := d.Spec.Template.Spec
			c := pod.Containers[0]
			serve, rest, err := cli.Root().Find(append(c.Command[1:], c.Args...))
			if err != nil || serve.Name() != "serve" {
				t.Fatalf("%v: %v", c.Command, err)
			}
			if err := serve.ParseFlags(rest); err != nil {
				t.Errorf("the gate does not understand its arguments: %v", err)
			}
			if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken || !*pod.SecurityContext.RunAsNonRoot || *c.SecurityContext.AllowPrivilegeEscalation || !*c.SecurityContext.ReadOnlyRootFilesystem || c.Resources.Limits.Memory().IsZero() {
				t.Errorf("the gate's container may do more than it needs: %+v", c.SecurityContext)
			}
			mounted := map[string]bool{}
			for _, v := range pod.Volumes {
				mounted[v.Name] = true
			}
			for _, m := range c.VolumeMounts {
				if !mounted[m.Name] {
					t.Errorf("nothing is mounted at %s", m.MountPath)
				}
				delete(mounted, m.Name)
			}
			if len(mounted) > 0 {
				t.Errorf("volumes that are not mounted: %v", mounted)
			}
			w := one[admissionv1.ValidatingWebhookConfiguration](t, all, "ValidatingWebhookConfiguration")
			hook := w.Webhooks[0]
			if *hook.SideEffects != admissionv1.SideEffectClassNone || name == "default" && *hook.FailurePolicy != admissionv1.Fail || hook.NamespaceSelector == nil || len(hook.NamespaceSelector.MatchLabels) == 0 {
				t.Errorf("the webhook: %+v", hook)
			}
		})
	}
}

// TestGateApply has a real API server take the manifests; then nothing starts where the
// gate should judge and is not there, and the gate itself may run where it is put.
func TestGateApply(t *testing.T) {
	c := kubetest.Start(t)
	apply := func(manifests string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "manifests.yaml")
		if err := os.WriteFile(file, []byte(manifests), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Kubectl(t, "apply", "--server-side", "-f", file)
	}
	manifests, err := os.ReadFile("gate.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// The namespace first: kubectl applies in the order of the file.
	apply(string(manifests))
	hooks := c.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	t.Cleanup(func() {
		if err := hooks.Delete(context.Background(), "assay-gate", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	apply(renderGate(t, append(variants["everything"], "--set", "certManager.issuer=", "--set", "webhook.failurePolicy=Fail", "--set", "tls.caBundle=", "--set", "webhook.objectSelector=null")...))
	apply(string(manifests))

	pod := one[appsv1.Deployment](t, string(manifests), "Deployment").Spec.Template
	dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	if _, err := c.Client.CoreV1().Pods("assay-gate").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "gate", Labels: pod.Labels}, Spec: pod.Spec}, dry); err != nil {
		t.Errorf("the gate's own Pod, under the restricted standard: %v", err)
	}
	gated, free := c.Namespace(t), c.Namespace(t)
	c.Kubectl(t, "label", "namespace", gated, "assay.dev/gate=enforce")
	one := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "x", Image: "registry.invalid/x@sha256:" + strings.Repeat("0", 64)}}}}
	kubetest.Eventually(t, "the webhook to be asked", func() (bool, error) {
		_, err := c.Client.CoreV1().Pods(gated).Create(t.Context(), one, dry)
		return err != nil && strings.Contains(err.Error(), "failed calling webhook"), nil
	})
	if _, err := c.Client.CoreV1().Pods(free).Create(t.Context(), one, dry); err != nil {
		t.Errorf("a Pod where nobody judges: %v", err)
	}
}
