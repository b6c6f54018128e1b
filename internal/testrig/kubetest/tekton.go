package kubetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"assay.dev/assay/internal/kube"
)

// TektonNamespace is where Tekton's settings are.
const TektonNamespace = "tekton-pipelines"

// Kinds of Tekton's that tests touch.
var (
	PipelineRuns = schema.GroupVersionResource{Group: "tekton.dev", Version: "v1", Resource: "pipelineruns"}
	TaskRuns     = schema.GroupVersionResource{Group: "tekton.dev", Version: "v1", Resource: "taskruns"}
)

// ApplyTektonCRDs applies Tekton's custom resource definitions, its namespace, the
// ConfigMaps of its settings, and nothing that runs. Without the webhook
// (StartTektonWebhook) the definitions convert between v1 and v1beta1 by the name
// of the version alone. The second call does nothing. It skips the test without
// ASSAY_TEKTON_CONFIG.
func (c *Cluster) ApplyTektonCRDs(t testing.TB) {
	t.Helper()
	dir := tektonVariable(t, "ASSAY_TEKTON_CONFIG", "tekton-controller")
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.tekton {
		return
	}
	if err := c.applyTekton(t.Context(), dir); err != nil {
		t.Fatalf("kubetest: %v", err)
	}
	c.tekton = true
}

func (c *Cluster) applyTekton(ctx context.Context, dir string) error {
	crds, err := kube.ReadManifests(filepath.Join(dir, "300-crds"))
	if err != nil {
		return err
	}
	for _, o := range crds {
		unstructured.RemoveNestedField(o.Object, "spec", "conversion")
	}
	settings, err := filepath.Glob(filepath.Join(dir, "config-*.yaml"))
	if err != nil {
		return err
	}
	objects, err := kube.ReadManifests(settings...)
	if err != nil {
		return err
	}
	ns, err := kube.ParseManifests([]byte("apiVersion: v1\nkind: Namespace\nmetadata: {name: " + TektonNamespace + "}\n"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return kube.Apply(ctx, c.RESTConfig(), append(append(crds, ns...), objects...)...)
}

// tektonVariable is the value of a variable that tools/peers prints.
func tektonVariable(t testing.TB, name, peer string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Skipf(`needs Tekton (%s): eval "$(tools/peers %s)"`, name, peer)
	}
	return v
}

// Tekton says with which images the controller makes pods. The zero value names
// images that do not exist, which is enough where no pod is carried out.
type Tekton struct {
	// Entrypoint, Nop and Shell are references; Nop also stands for the others.
	Entrypoint, Nop, Shell string
	// FeatureFlags are put into the ConfigMap of that name, and stay there.
	FeatureFlags map[string]string
}

// StartTekton runs Tekton's own controller against the cluster. It is one process
// for all tests of the package; it is started again if it is gone, and replaced
// if other images are named than before. It applies Tekton's definitions too.
func (c *Cluster) StartTekton(t testing.TB, o Tekton) *Process {
	t.Helper()
	bin := tektonVariable(t, "ASSAY_TEKTON_CONTROLLER", "tekton-controller")
	c.ApplyTektonCRDs(t)
	if len(o.FeatureFlags) > 0 {
		c.setFeatureFlags(t, o.FeatureFlags)
	}
	for _, ref := range []*string{&o.Entrypoint, &o.Nop, &o.Shell} {
		if *ref == "" {
			*ref = "registry.invalid/none@sha256:0000000000000000000000000000000000000000000000000000000000000000"
		}
	}
	args := []string{
		"-kubeconfig", c.Kubeconfig, "-kube-api-qps", "1000", "-kube-api-burst", "2000", "-disable-ha",
		"-entrypoint-image", o.Entrypoint, "-nop-image", o.Nop, "-shell-image", o.Shell, "-shell-image-win", o.Shell,
		"-sidecarlogresults-image", o.Nop, "-workingdirinit-image", o.Nop,
	}
	p, err := c.once("tekton-controller", bin, args, c.tektonEnv(t, "config-leader-election-controller"))
	if err != nil {
		t.Fatalf("kubetest: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of Tekton's log:\n%s", Tail(p.Log))
		}
	})
	return p
}

// tektonEnv is what Tekton's programs want to know on a cluster.
func (c *Cluster) tektonEnv(t testing.TB, leader string) []string {
	return []string{
		"SYSTEM_NAMESPACE=" + TektonNamespace, "KUBERNETES_MIN_VERSION=v1.28.0",
		"CONFIG_DEFAULTS_NAME=config-defaults", "CONFIG_LOGGING_NAME=config-logging",
		"CONFIG_OBSERVABILITY_NAME=config-observability", "CONFIG_FEATURE_FLAGS_NAME=feature-flags",
		"CONFIG_LEADERELECTION_NAME=" + leader, "CONFIG_SPIRE=config-spire",
		"METRICS_DOMAIN=tekton.dev/pipeline", "POD_NAME=kubetest",
		fmt.Sprintf("PROBES_PORT=%d", FreePort(t)), fmt.Sprintf("METRICS_PROMETHEUS_PORT=%d", FreePort(t)),
		fmt.Sprintf("PROFILING_PORT=%d", FreePort(t)),
	}
}

func (c *Cluster) setFeatureFlags(t testing.TB, flags map[string]string) {
	t.Helper()
	maps := c.Client.CoreV1().ConfigMaps(TektonNamespace)
	cm, err := maps.Get(t.Context(), "feature-flags", metav1.GetOptions{})
	if err != nil {
		t.Fatalf("kubetest: %v", err)
	}
	for k, v := range flags {
		cm.Data[k] = v
	}
	if _, err := maps.Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatalf("kubetest: %v", err)
	}
}

// Finished waits until a run is done and returns it, whatever the outcome.
func (c *Cluster) Finished(t testing.TB, r schema.GroupVersionResource, namespace, name string) *unstructured.Unstructured {
	t.Helper()
	var run *unstructured.Unstructured
	Eventually(t, r.Resource+" "+name+" to finish", func() (bool, error) {
		var err error
		run, err = c.Dynamic.Resource(r).Namespace(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		status, _, _ := Succeeded(run)
		return status == "True" || status == "False", nil
	})
	return run
}

// Succeeded is the condition of that name; all empty where there is none.
func Succeeded(run *unstructured.Unstructured) (status, reason, message string) {
	v, _, _ := unstructured.NestedFieldNoCopy(run.Object, "status", "conditions")
	list, _ := v.([]any)
	for _, c := range list {
		if c, ok := c.(map[string]any); ok && c["type"] == "Succeeded" {
			status, _ = c["status"].(string)
			reason, _ = c["reason"].(string)
			message, _ = c["message"].(string)
		}
	}
	return status, reason, message
}

// Result is one of a run.
type Result struct {
	Name  string
	Value any
}

// Results are those in a run's status, of TaskRuns and PipelineRuns alike.
func Results(run *unstructured.Unstructured) []Result {
	v, _, _ := unstructured.NestedFieldNoCopy(run.Object, "status", "results")
	list, _ := v.([]any)
	var out []Result
	for _, r := range list {
		if r, ok := r.(map[string]any); ok {
			name, _ := r["name"].(string)
			out = append(out, Result{Name: name, Value: r["value"]})
		}
	}
	return out
}
