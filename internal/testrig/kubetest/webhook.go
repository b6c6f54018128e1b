package kubetest

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"assay.dev/assay/internal/kube"
)

// webhookService is where the API server looks for Tekton's webhook.
const webhookService = `
apiVersion: v1
kind: Service
metadata: {name: tekton-pipelines-webhook, namespace: ` + TektonNamespace + `}
spec: {type: ExternalName, externalName: localhost}
`

var (
	crdResource       = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	mutatingWebhook   = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"}
	validatingWebhook = schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}
)

// StartTektonWebhook runs Tekton's own webhook: from its return on objects are
// defaulted and refused as on a cluster with Tekton, and v1beta1 is converted to
// v1 and back by Tekton's code. It is one process for all tests of the package.
// It stays in force: if the process dies, nothing of Tekton can be created until
// it is started again, as on a cluster. Upstream's webhook listens on every
// address of the machine; it cannot be told otherwise.
func (c *Cluster) StartTektonWebhook(t testing.TB) *Process {
	t.Helper()
	bin := tektonVariable(t, "ASSAY_TEKTON_WEBHOOK", "tekton-webhook")
	dir := tektonVariable(t, "ASSAY_TEKTON_CONFIG", "tekton-webhook")
	c.ApplyTektonCRDs(t)
	c.mu.Lock()
	if c.webhookPort == 0 {
		c.webhookPort = FreePort(t)
	}
	port, running := c.webhookPort, c.procs["tekton-webhook"]
	c.mu.Unlock()
	if running == nil {
		if err := c.applyWebhook(t.Context(), dir, port); err != nil {
			t.Fatalf("kubetest: %v", err)
		}
	}
	p, err := c.once("tekton-webhook", bin, []string{"-kubeconfig", c.Kubeconfig, "-disable-ha"}, append(c.tektonEnv(t, "config-leader-election-webhook"),
		fmt.Sprintf("WEBHOOK_PORT=%d", port), "WEBHOOK_SERVICE_NAME=tekton-pipelines-webhook",
		"WEBHOOK_SECRET_NAME=webhook-certs", "WEBHOOK_ADMISSION_CONTROLLER_NAME=webhook.pipeline.tekton.dev"))
	if err != nil {
		t.Fatalf("kubetest: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("end of the webhook's log:\n%s", Tail(p.Log))
		}
	})
	Eventually(t, "Tekton's webhook", func() (bool, error) {
		select {
		case <-p.done:
			return false, fmt.Errorf("it died:\n%s", Tail(p.Log))
		default:
		}
		return c.webhookReady(t.Context())
	})
	return p
}

// applyWebhook applies what the API server needs to know of the webhook, with the
// port at which it listens here.
func (c *Cluster) applyWebhook(ctx context.Context, dir string, port int) error {
	crds, err := kube.ReadManifests(filepath.Join(dir, "300-crds"))
	if err != nil {
		return err
	}
	hooks, err := kube.ReadManifests(filepath.Join(dir, "500-webhooks.yaml"))
	if err != nil {
		return err
	}
	service, err := kube.ParseManifests([]byte(webhookService))
	if err != nil {
		return err
	}
	for _, o := range crds {
		if _, ok, _ := unstructured.NestedMap(o.Object, "spec", "conversion", "webhook"); ok {
			if err := unstructured.SetNestedField(o.Object, int64(port), "spec", "conversion", "webhook", "clientConfig", "service", "port"); err != nil {
				return err
			}
		}
	}
	for _, o := range hooks {
		list, ok, err := unstructured.NestedSlice(o.Object, "webhooks")
		if err != nil || !ok {
			continue // the Secret
		}
		for i := range list {
			if m, ok := list[i].(map[string]any); ok {
				if err := unstructured.SetNestedField(m, int64(port), "clientConfig", "service", "port"); err != nil {
					return err
				}
			}
		}
		if err := unstructured.SetNestedSlice(o.Object, list, "webhooks"); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return kube.Apply(ctx, c.RESTConfig(), append(append(service, hooks...), crds...)...)
}

// webhookReady says whether the webhook has written its certificate everywhere,
// and the API server gets answers from it.
func (c *Cluster) webhookReady(ctx context.Context) (bool, error) {
	for r, names := range map[schema.GroupVersionResource][]string{
		crdResource:       {"taskruns.tekton.dev", "pipelineruns.tekton.dev", "tasks.tekton.dev", "pipelines.tekton.dev"},
		mutatingWebhook:   {"webhook.pipeline.tekton.dev"},
		validatingWebhook: {"validation.webhook.pipeline.tekton.dev", "config.webhook.pipeline.tekton.dev"},
	} {
		for _, name := range names {
			o, err := c.Dynamic.Resource(r).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return false, err
			}
			config, _, _ := unstructured.NestedMap(o.Object, "spec", "conversion", "webhook", "clientConfig")
			if r != crdResource {
				list, _, _ := unstructured.NestedSlice(o.Object, "webhooks")
				if len(list) > 0 {
					m, _ := list[0].(map[string]any)
					config, _, _ = unstructured.NestedMap(m, "clientConfig")
				}
			}
			if ca, _ := config["caBundle"].(string); ca == "" {
				return false, nil
			}
		}
	}
	// What it refuses is refused by it: an object that says nothing.
	_, err := c.Dynamic.Resource(TaskRuns).Namespace("default").Create(ctx, &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "tekton.dev/v1", "kind": "TaskRun", "metadata": map[string]any{"name": "refused"}, "spec": map[string]any{},
	}}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err != nil && isDenied(err), nil
}

// isDenied says that an admission webhook answered no.
func isDenied(err error) bool {
	return strings.Contains(err.Error(), "admission webhook") && strings.Contains(err.Error(), "denied the request")
}
