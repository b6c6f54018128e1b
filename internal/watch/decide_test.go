package watch

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"

	"assay.dev/assay/provenance"
)

func TestDecide(t *testing.T) {
	started := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	all := plan{pipelineRuns: true, taskRuns: allTaskRuns}
	pipelines := plan{pipelineRuns: true, taskRuns: standalone}
	for name, test := range map[string]struct {
		h    head
		plan plan
		own  provenance.OwnConfig
		by   []string
		want action
	}{
		"ended":                         {h: head{kind: "PipelineRun", done: true}, plan: all, want: process},
		"marked":                        {h: head{kind: "PipelineRun", done: true, signed: "true"}, plan: all, want: ignore},
		"refused before":                {h: head{kind: "PipelineRun", done: true, signed: "failed"}, plan: all, want: ignore},
		"a word that is no mark":        {h: head{kind: "PipelineRun", done: true, signed: "maybe"}, plan: all, want: process},
		"new":                           {h: head{kind: "PipelineRun"}, plan: all, want: protect},
		"new and protected":             {h: head{kind: "PipelineRun", finalizers: []string{"x"}}, plan: all, want: observe},
		"being deleted, unfinished":     {h: head{kind: "PipelineRun", deleting: true, finalizers: []string{"x"}}, plan: all, want: release},
		"being deleted, marked":         {h: head{kind: "PipelineRun", done: true, signed: "true", deleting: true, finalizers: []string{"x"}}, plan: all, want: release},
		"being deleted, to be signed":   {h: head{kind: "PipelineRun", done: true, deleting: true, finalizers: []string{"x"}}, plan: all, want: process},
		"being deleted, not ours":       {h: head{kind: "PipelineRun", deleting: true}, plan: all, want: observe},
		"somebody else's":               {h: head{kind: "PipelineRun", done: true, managedBy: "kueue"}, plan: all, want: ignore},
		"Tekton's by name":              {h: head{kind: "PipelineRun", done: true, managedBy: "tekton.dev/pipeline"}, plan: all, want: process},
		"somebody else's, as set":       {h: head{kind: "PipelineRun", done: true, managedBy: "kueue"}, plan: all, by: []string{"kueue"}, want: process},
		"child, TaskRuns on":            {h: head{kind: "TaskRun", done: true, ownerUID: "u", inPipeline: true}, plan: all, want: process},
		"child, unfinished":             {h: head{kind: "TaskRun", ownerUID: "u"}, plan: all, want: observe},
		"child, its parent not ours":    {h: head{kind: "TaskRun", ownerUID: "u"}, plan: plan{taskRuns: allTaskRuns, protectChildren: true}, want: protect},
		"child, TaskRuns off":           {h: head{kind: "TaskRun", done: true, inPipeline: true}, plan: pipelines, want: ignore},
		"child without label":           {h: head{kind: "TaskRun", done: true, ownerUID: "u"}, plan: pipelines, want: ignore},
		"standalone, TaskRuns off":      {h: head{kind: "TaskRun", done: true}, plan: pipelines, want: process},
		"PipelineRuns off":              {h: head{kind: "PipelineRun", done: true}, plan: plan{taskRuns: allTaskRuns}, want: ignore},
		"ended long ago":                {h: head{kind: "PipelineRun", done: true, ended: started.Add(-2 * time.Hour)}, plan: all, own: provenance.OwnConfig{Since: time.Hour}, want: ignore},
		"ended just before the start":   {h: head{kind: "PipelineRun", done: true, ended: started.Add(-time.Minute)}, plan: all, own: provenance.OwnConfig{Since: time.Hour}, want: process},
		"ended long ago, all wanted":    {h: head{kind: "PipelineRun", done: true, ended: started.Add(-2 * time.Hour)}, plan: all, want: process},
		"ended in the future (a clock)": {h: head{kind: "PipelineRun", done: true, ended: started.Add(time.Hour)}, plan: all, own: provenance.OwnConfig{Since: time.Hour}, want: process},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := provenance.Config{Own: test.own, ManagedBy: test.by}
			if got := decide(test.h, cfg, test.plan, started); got != test.want {
				t.Errorf("action %d; want %d", got, test.want)
			}
		})
	}
}

func TestPlan(t *testing.T) {
	for name, test := range map[string]struct {
		data map[string]string
		want plan
	}{
		"Chains' defaults": {nil, plan{pipelineRuns: true, taskRuns: allTaskRuns}},
		"PipelineRuns only": {map[string]string{"artifacts.taskrun.storage": ""},
			plan{pipelineRuns: true, taskRuns: standalone}},
		"PipelineRuns, no images": {map[string]string{"artifacts.taskrun.storage": "", "artifacts.oci.storage": ""},
			plan{pipelineRuns: true}},
		"TaskRuns only": {map[string]string{"artifacts.pipelinerun.storage": ""},
			plan{taskRuns: allTaskRuns, protectChildren: true}},
		"images only": {map[string]string{"artifacts.pipelinerun.storage": "", "artifacts.taskrun.storage": ""},
			plan{pipelineRuns: true, taskRuns: standalone}},
		"nothing": {map[string]string{"artifacts.pipelinerun.storage": "", "artifacts.taskrun.storage": "", "artifacts.oci.signer": "none"},
			plan{}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := provenance.ParseConfig(test.data)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, planFor(cfg), cmp.AllowUnexported(plan{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func child(name, owner string, status corev1.ConditionStatus) *v1.TaskRun {
	yes := true
	return &v1.TaskRun{
		ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: []metav1.OwnerReference{
			{Kind: "PipelineRun", UID: "other"}, {Kind: "PipelineRun", UID: types.UID(owner), Controller: &yes}}},
		Status: v1.TaskRunStatus{Status: duckv1.Status{Conditions: duckv1.Conditions{{Type: apis.ConditionSucceeded, Status: status}}}},
	}
}

func TestChooseChildren(t *testing.T) {
	ref := func(kind, name string) v1.ChildStatusReference {
		return v1.ChildStatusReference{TypeMeta: runtime.TypeMeta{Kind: kind}, Name: name}
	}
	pr := &v1.PipelineRun{ObjectMeta: metav1.ObjectMeta{Name: "pr", UID: "u"}}
	pr.Status.ChildReferences = []v1.ChildStatusReference{
		ref("TaskRun", "b"), ref("", "a"), ref("CustomRun", "c"), ref("PipelineRun", "pr"), ref("TaskRun", "gone"),
		ref("TaskRun", "stolen"), ref("TaskRun", "running"), ref("TaskRun", "b"), ref("TaskRun", "bare"),
	}
	c := chooseChildren(pr, []*v1.TaskRun{
		child("a", "u", corev1.ConditionTrue), child("b", "u", corev1.ConditionFalse),
		child("stolen", "v", corev1.ConditionTrue), child("running", "u", corev1.ConditionUnknown),
		child("unlisted", "u", corev1.ConditionTrue), {ObjectMeta: metav1.ObjectMeta{Name: "bare"}},
	}, map[string]string{"gone": "deleted"}, nil)
	var names []string
	for _, tr := range c.input.Children {
		names = append(names, tr.Name)
	}
	if diff := cmp.Diff([]string{"b", "a"}, names); diff != "" {
		t.Errorf("children (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"stolen", "bare"}, c.absent); diff != "" {
		t.Errorf("absent (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"running"}, c.waiting); diff != "" {
		t.Errorf("waiting (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"c", "pr", "gone"}, c.input.Missing); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
	var cfg provenance.Config
	if _, refused := c.refuses(cfg); refused {
		t.Error("refused although settings say nothing")
	}
	cfg.Own.MissingChildren = "refuse"
	if why, refused := c.refuses(cfg); !refused || !strings.Contains(why, "gone (deleted)") {
		t.Errorf("not refused, or without a name: %q", why)
	}
}

// TestUnownedIsNoChild: a run without uid controls nothing, not even a TaskRun
// whose owner has no uid either.
func TestUnownedIsNoChild(t *testing.T) {
	pr := &v1.PipelineRun{ObjectMeta: metav1.ObjectMeta{Name: "pr"}}
	pr.Status.ChildReferences = []v1.ChildStatusReference{{Name: "a"}}
	if c := chooseChildren(pr, []*v1.TaskRun{child("a", "", corev1.ConditionTrue)}, nil, nil); len(c.input.Children) != 0 {
		t.Error("took a child that nobody owns")
	}
}
