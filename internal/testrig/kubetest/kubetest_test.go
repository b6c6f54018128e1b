// Tests of the rig against the real programs: etcd, kube-apiserver, Tekton's
// controller, all built from their modules by tools/peers. See Start for when
// they skip.
package kubetest_test

import (
	"fmt"
	"testing"
	"time"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"

	"assay.dev/assay/internal/testrig/kubetest"
)

// Tekton's controller makes TaskRuns and Pods of a PipelineRun; nothing carries
// them out here.
func TestTektonReconciles(t *testing.T) {
	c := kubetest.Start(t)
	c.StartTekton(t, kubetest.Tekton{})
	ns := c.Namespace(t)
	c.Apply(t, `
apiVersion: tekton.dev/v1
kind: PipelineRun
metadata: {name: smoke, namespace: `+ns+`}
spec:
  pipelineSpec:
    tasks:
    - name: one
      taskSpec:
        steps:
        - {name: say, image: "registry.invalid/none@sha256:0000000000000000000000000000000000000000000000000000000000000000", script: "echo hello"}
`)
	kubetest.Eventually(t, "a TaskRun and its Pod", func() (bool, error) {
		runs, err := c.Dynamic.Resource(kubetest.TaskRuns).Namespace(ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		pods, err := c.Client.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{})
		return err == nil && len(runs.Items) == 1 && len(pods.Items) == 1, err
	})
}

func finished(ns, name string) []runtime.Object {
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	done := duckv1.Status{Conditions: duckv1.Conditions{{Type: apis.ConditionSucceeded, Status: corev1.ConditionTrue, Reason: "Succeeded"}}}
	pr := &pipelinev1.PipelineRun{
		TypeMeta:   metav1.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "PipelineRun"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns, UID: "old"},
		Spec:       pipelinev1.PipelineRunSpec{PipelineRef: &pipelinev1.PipelineRef{Name: "p"}},
		Status: pipelinev1.PipelineRunStatus{Status: done, PipelineRunStatusFields: pipelinev1.PipelineRunStatusFields{
			StartTime: &now, CompletionTime: &now,
		}},
	}
	tr := &pipelinev1.TaskRun{
		TypeMeta: metav1.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "TaskRun"},
		ObjectMeta: metav1.ObjectMeta{Name: name + "-t", Namespace: ns, OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "tekton.dev/v1", Kind: "PipelineRun", Name: name, UID: "old"},
		}},
		Spec:   pipelinev1.TaskRunSpec{TaskRef: &pipelinev1.TaskRef{Name: "t"}},
		Status: pipelinev1.TaskRunStatus{Status: done, TaskRunStatusFields: pipelinev1.TaskRunStatusFields{StartTime: &now, CompletionTime: &now, PodName: "p"}},
	}
	// The child before its owner, on purpose.
	return []runtime.Object{tr, pr}
}

func TestCreateFinished(t *testing.T) {
	c := kubetest.Start(t)
	c.ApplyTektonCRDs(t)
	ns := c.Namespace(t)
	var all []runtime.Object
	for i := range 50 {
		all = append(all, finished(ns, fmt.Sprintf("run-%d", i))...)
	}
	got, err := c.CreateFinished(t.Context(), all...)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(got); i += 2 {
		tr, pr := got[i], got[i+1]
		if ref := tr.GetOwnerReferences(); len(ref) != 1 || ref[0].UID != pr.GetUID() || pr.GetUID() == "old" {
			t.Fatalf("%s is owned by %v, not %s", tr.GetName(), ref, pr.GetUID())
		}
		for _, run := range got[i : i+2] {
			if status, reason, _ := kubetest.Succeeded(run); status != "True" || reason != "Succeeded" {
				t.Fatalf("%s %s has %q %q", run.GetKind(), run.GetName(), status, reason)
			}
		}
	}
}

// Tekton's own code refuses, defaults and converts.
func TestTektonWebhook(t *testing.T) {
	c := kubetest.StartOwn(t)
	c.StartTektonWebhook(t)
	ns := c.Namespace(t)
	c.Apply(t, `
apiVersion: tekton.dev/v1beta1
kind: TaskRun
metadata: {name: old, namespace: `+ns+`}
spec:
  taskSpec:
    steps: [{name: s, image: busybox, script: "true", resources: {requests: {cpu: 10m}}}]
`)
	run, err := c.Dynamic.Resource(kubetest.TaskRuns).Namespace(ns).Get(t.Context(), "old", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	steps, _, _ := unstructured.NestedSlice(run.Object, "spec", "taskSpec", "steps")
	if len(steps) != 1 || steps[0].(map[string]any)["computeResources"] == nil {
		t.Errorf("not converted: %v", steps)
	}
	if sa, _, _ := unstructured.NestedString(run.Object, "spec", "serviceAccountName"); sa != "default" || run.GetAPIVersion() != "tekton.dev/v1" {
		t.Errorf("%s, serviceAccountName %q", run.GetAPIVersion(), sa)
	}
}
