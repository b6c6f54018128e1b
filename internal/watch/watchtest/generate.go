// Package watchtest makes finished runs of the size and shape that Konflux's
// build pipelines leave behind, for tests and benchmarks of the observer: a
// PipelineRun with 20 TaskRuns, 59 steps and 6 images. The same number gives the
// same run, whatever the machine.
package watchtest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
)

// Options shape generated runs; the zero value is a run of real size whose images
// nobody has.
type Options struct {
	Namespace string // default: default
	// TaskRunBytes is about how large each TaskRun is as JSON; default 10 kB, so
	// that a run has 200 kB in all. Less than 6,000 is 6,000.
	TaskRunBytes int
	// Images the run says it pushed, repository@sha256:…; the first four by
	// platform builds, then the index, then the source image. Default: digests
	// that only the run's number decides, below registry.example.com.
	Images []string
	// End of the runs; default now.
	End time.Time
	// ServiceAccount of every run; default: default.
	ServiceAccount string
}

// Tasks is how many TaskRuns a generated PipelineRun has.
const Tasks = 20

// task is a task of the pipeline: its name, its steps, and which image it pushes.
type task struct {
	name  string
	steps int
	image int // index into Options.Images; -1: none
	after []string
}

// pipelineTasks has 20 tasks, 59 steps and 6 images.
var pipelineTasks = []task{
	{"init", 1, -1, nil},
	{"clone-repository", 2, -1, []string{"init"}},
	{"prefetch-dependencies", 3, -1, []string{"clone-repository"}},
	{"build-images-amd64", 6, 0, []string{"prefetch-dependencies"}},
	{"build-images-arm64", 6, 1, []string{"prefetch-dependencies"}},
	{"build-images-ppc64le", 6, 2, []string{"prefetch-dependencies"}},
	{"build-images-s390x", 6, 3, []string{"prefetch-dependencies"}},
	{"build-image-index", 3, 4, nil},
	{"build-source-image", 3, 5, []string{"build-image-index"}},
	{"deprecated-base-image-check", 2, -1, []string{"build-image-index"}},
	{"clair-scan", 3, -1, []string{"build-image-index"}},
	{"ecosystem-cert-preflight-checks", 4, -1, []string{"build-image-index"}},
	{"sast-shell-check", 2, -1, []string{"build-image-index"}},
	{"sast-unicode-check", 2, -1, []string{"build-image-index"}},
	{"sast-snyk-check", 2, -1, []string{"build-image-index"}},
	{"clamav-scan", 2, -1, []string{"build-image-index"}},
	{"apply-tags", 1, -1, []string{"build-image-index"}},
	{"push-dockerfile", 1, -1, []string{"build-image-index"}},
	{"rpms-signature-scan", 2, -1, []string{"build-image-index"}},
	{"show-sbom", 2, -1, nil},
}

// Run is a PipelineRun and its TaskRuns.
type Run struct {
	PipelineRun *v1.PipelineRun
	TaskRuns    []*v1.TaskRun
}

// Generate makes run number n, which ended with success.
func Generate(n int, o Options) Run {
	if o.Namespace == "" {
		o.Namespace = "default"
	}
	if o.TaskRunBytes == 0 {
		o.TaskRunBytes = 10_000
	}
	if o.End.IsZero() {
		o.End = time.Now()
	}
	if o.ServiceAccount == "" {
		o.ServiceAccount = "default"
	}
	if len(o.Images) == 0 {
		for i := range 6 {
			o.Images = append(o.Images, fmt.Sprintf("registry.example.com/team-%d/app-%d@sha256:%s", n%50, i, digest("image", n, i)))
		}
	}
	name := fmt.Sprintf("build-%06d", n)
	g := generator{n: n, o: o, name: name, start: metav1.NewTime(o.End.Add(-10 * time.Minute).Truncate(time.Second)),
		end: metav1.NewTime(o.End.Truncate(time.Second))}
	pr := g.pipelineRun()
	r := Run{PipelineRun: pr}
	for i, t := range pipelineTasks {
		r.TaskRuns = append(r.TaskRuns, g.taskRun(i, t))
	}
	return r
}

type generator struct {
	n          int
	o          Options
	name       string
	start, end metav1.Time
}

func digest(parts ...any) string {
	sum := sha256.Sum256([]byte(fmt.Sprint(parts...)))
	return hex.EncodeToString(sum[:])
}

// uid stands in until an API server gives its own.
func (g generator) uid(of string) types.UID {
	d := digest(of, g.n)
	return types.UID(d[:8] + "-" + d[8:12] + "-4" + d[13:16] + "-8" + d[17:20] + "-" + d[20:32])
}

func (g generator) commit() string { return digest("commit", g.n)[:40] }

func (g generator) source(path string) *v1.Provenance {
	return &v1.Provenance{RefSource: &v1.RefSource{
		URI:        "git+https://github.com/konflux-ci/build-definitions.git",
		Digest:     map[string]string{"sha1": digest("definitions")[:40]},
		EntryPoint: path,
	}}
}

func (g generator) succeeded(message string) duckv1.Status {
	return duckv1.Status{Conditions: duckv1.Conditions{{
		Type: apis.ConditionSucceeded, Status: corev1.ConditionTrue, Reason: "Succeeded", Message: message,
		LastTransitionTime: apis.VolatileTime{Inner: g.end},
	}}}
}

func text(s string) v1.ParamValue { return *v1.NewStructuredValues(s) }

func (g generator) labels(task string) map[string]string {
	l := map[string]string{
		"appstudio.openshift.io/application":             "application",
		"appstudio.openshift.io/component":               "component",
		"pipelines.appstudio.openshift.io/type":          "build",
		"pipelinesascode.tekton.dev/event-type":          "push",
		"pipelinesascode.tekton.dev/sha":                 g.commit(),
		"pipelinesascode.tekton.dev/url-org":             "org",
		"pipelinesascode.tekton.dev/url-repository":      "repository",
		"tekton.dev/pipeline":                            g.name,
		"test.appstudio.openshift.io/pr-group-sha-label": digest("group", g.n)[:40],
	}
	if task != "" {
		l["app.kubernetes.io/managed-by"] = "tekton-pipelines"
		l["tekton.dev/memberOf"] = "tasks"
		l["tekton.dev/pipelineRun"] = g.name
		l["tekton.dev/pipelineTask"] = task
		l["tekton.dev/task"] = task
	}
	return l
}

func (g generator) annotations() map[string]string {
	return map[string]string{
		"build.appstudio.openshift.io/repo":           "https://github.com/org/repository?rev=" + g.commit(),
		"build.appstudio.redhat.com/commit_sha":       g.commit(),
		"build.appstudio.redhat.com/target_branch":    "main",
		"pipeline.tekton.dev/release":                 "v1.15.0",
		"pipelinesascode.tekton.dev/log-url":          "https://console.example.com/ns/" + g.o.Namespace + "/pipelinerun/" + g.name,
		"pipelinesascode.tekton.dev/sha-title":        "build: a change number " + fmt.Sprint(g.n),
		"pipelinesascode.tekton.dev/source-repo-url":  "https://github.com/org/repository",
		"results.tekton.dev/recordSummaryAnnotations": `{"repo":"repository","commit":"` + g.commit() + `","eventType":"push"}`,
	}
}

func (g generator) params() v1.Params {
	return v1.Params{
		{Name: "git-url", Value: text("https://github.com/org/repository")},
		{Name: "revision", Value: text(g.commit())},
		{Name: "output-image", Value: text("registry.example.com/team/app:" + g.commit())},
		{Name: "dockerfile", Value: text("Containerfile")},
		{Name: "hermetic", Value: text("true")},
		{Name: "prefetch-input", Value: text(`[{"type":"gomod","path":"."},{"type":"rpm","path":"."}]`)},
		{Name: "build-platforms", Value: *v1.NewStructuredValues("linux/x86_64", "linux/arm64", "linux/ppc64le", "linux/s390x")},
	}
}

func (g generator) pipelineRun() *v1.PipelineRun {
	pr := &v1.PipelineRun{
		TypeMeta: metav1.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "PipelineRun"},
		ObjectMeta: metav1.ObjectMeta{Name: g.name, Namespace: g.o.Namespace, UID: g.uid("pr"),
			Labels: g.labels(""), Annotations: g.annotations(), CreationTimestamp: g.start},
		Spec: v1.PipelineRunSpec{
			Params: g.params(),
			PipelineRef: &v1.PipelineRef{ResolverRef: v1.ResolverRef{Resolver: "git", Params: v1.Params{
				{Name: "url", Value: text("https://github.com/konflux-ci/build-definitions.git")},
				{Name: "revision", Value: text(digest("definitions")[:40])},
				{Name: "pathInRepo", Value: text("pipelines/docker-build/docker-build.yaml")},
			}}},
			TaskRunTemplate: v1.PipelineTaskRunTemplate{ServiceAccountName: g.o.ServiceAccount},
		},
	}
	spec := &v1.PipelineSpec{}
	for _, p := range g.params() {
		spec.Params = append(spec.Params, v1.ParamSpec{Name: p.Name, Type: p.Value.Type, Description: "what the task " + p.Name + " is given"})
	}
	for i, t := range pipelineTasks {
		pt := v1.PipelineTask{Name: t.name, RunAfter: t.after,
			TaskRef: &v1.TaskRef{ResolverRef: v1.ResolverRef{Resolver: "bundles", Params: v1.Params{
				{Name: "name", Value: text(t.name)},
				{Name: "bundle", Value: text("quay.io/konflux-ci/tekton-catalog/task-" + t.name + ":0.1@sha256:" + digest("bundle", i))},
				{Name: "kind", Value: text("task")},
			}}},
			Params: v1.Params{{Name: "SOURCE", Value: text("$(tasks.clone-repository.results.commit)")},
				{Name: "IMAGE", Value: text("$(params.output-image)")}},
		}
		if t.name == "show-sbom" {
			spec.Finally = append(spec.Finally, pt)
		} else {
			spec.Tasks = append(spec.Tasks, pt)
		}
		pr.Status.ChildReferences = append(pr.Status.ChildReferences, v1.ChildStatusReference{
			TypeMeta: runtime.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "TaskRun"}, Name: g.name + "-" + t.name, PipelineTaskName: t.name})
	}
	index := g.o.Images[min(4, len(g.o.Images)-1)]
	repository, hex, _ := strings.Cut(index, "@")
	pr.Status.Status = g.succeeded("Tasks Completed: 20 (Failed: 0, Cancelled 0), Skipped: 0")
	pr.Status.StartTime, pr.Status.CompletionTime = &g.start, &g.end
	pr.Status.PipelineSpec = spec
	pr.Status.Provenance = g.source("pipelines/docker-build/docker-build.yaml")
	pr.Status.Results = []v1.PipelineRunResult{
		{Name: "IMAGE_URL", Value: text(repository + ":" + g.commit())},
		{Name: "IMAGE_DIGEST", Value: text(hex)},
		{Name: "CHAINS-GIT_URL", Value: text("https://github.com/org/repository")},
		{Name: "CHAINS-GIT_COMMIT", Value: text(g.commit())},
	}
	return pr
}

func (g generator) taskRun(i int, t task) *v1.TaskRun {
	yes := true
	tr := &v1.TaskRun{
		TypeMeta: metav1.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "TaskRun"},
		ObjectMeta: metav1.ObjectMeta{Name: g.name + "-" + t.name, Namespace: g.o.Namespace, UID: g.uid(t.name),
			Labels: g.labels(t.name), Annotations: g.annotations(), CreationTimestamp: g.start,
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "tekton.dev/v1", Kind: "PipelineRun",
				Name: g.name, UID: g.uid("pr"), Controller: &yes, BlockOwnerDeletion: &yes}},
		},
		Spec: v1.TaskRunSpec{
			ServiceAccountName: g.o.ServiceAccount,
			TaskRef: &v1.TaskRef{Kind: "Task", ResolverRef: v1.ResolverRef{Resolver: "bundles", Params: v1.Params{
				{Name: "name", Value: text(t.name)},
				{Name: "bundle", Value: text("quay.io/konflux-ci/tekton-catalog/task-" + t.name + ":0.1@sha256:" + digest("bundle", i))},
				{Name: "kind", Value: text("task")},
			}}},
			Params: v1.Params{{Name: "SOURCE", Value: text(g.commit())}, {Name: "IMAGE", Value: text("registry.example.com/team/app:" + g.commit())}},
		},
	}
	tr.Status.Status = g.succeeded("All Steps have completed executing")
	tr.Status.StartTime, tr.Status.CompletionTime = &g.start, &g.end
	tr.Status.PodName = tr.Name + "-pod"
	tr.Status.Provenance = &v1.Provenance{RefSource: &v1.RefSource{
		URI:    "quay.io/konflux-ci/tekton-catalog/task-" + t.name,
		Digest: map[string]string{"sha256": digest("bundle", i)}, EntryPoint: t.name}}
	spec := &v1.TaskSpec{Description: "what task " + t.name + " does"}
	for _, p := range tr.Spec.Params {
		spec.Params = append(spec.Params, v1.ParamSpec{Name: p.Name, Type: v1.ParamTypeString})
	}
	for s := range t.steps {
		image := "quay.io/konflux-ci/task-runner:1.0@sha256:" + digest("runner", i, s%3)
		spec.Steps = append(spec.Steps, v1.Step{Name: fmt.Sprintf("step-%d", s), Image: image, WorkingDir: "/workspace",
			Env: []corev1.EnvVar{{Name: "SOURCE", Value: "$(params.SOURCE)"}, {Name: "HOME", Value: "/tekton/home"}}})
		tr.Status.Steps = append(tr.Status.Steps, v1.StepState{
			Name: fmt.Sprintf("step-%d", s), Container: fmt.Sprintf("step-step-%d", s), ImageID: image,
			ContainerState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				Reason: "Completed", StartedAt: g.start, FinishedAt: g.end,
				ContainerID: "cri-o://" + digest("container", g.n, i, s)}},
			TerminationReason: "Completed",
		})
	}
	tr.Status.TaskSpec = spec
	tr.Status.Results = []v1.TaskRunResult{{Name: "TEST_OUTPUT", Type: v1.ResultsTypeString,
		Value: text(`{"result":"SUCCESS","timestamp":"2026-01-01T00:00:00+00:00","note":"Task ` + t.name + ` completed","namespace":"default","successes":1,"failures":0,"warnings":0}`)}}
	if t.name == "clone-repository" {
		tr.Status.Results = append(tr.Status.Results,
			v1.TaskRunResult{Name: "CHAINS-GIT_URL", Type: v1.ResultsTypeString, Value: text("https://github.com/org/repository")},
			v1.TaskRunResult{Name: "CHAINS-GIT_COMMIT", Type: v1.ResultsTypeString, Value: text(g.commit())})
	}
	if t.image >= 0 && t.image < len(g.o.Images) {
		repository, hex, _ := strings.Cut(g.o.Images[t.image], "@")
		tr.Status.Results = append(tr.Status.Results,
			v1.TaskRunResult{Name: "IMAGE_URL", Type: v1.ResultsTypeString, Value: text(repository + ":" + g.commit())},
			v1.TaskRunResult{Name: "IMAGE_DIGEST", Type: v1.ResultsTypeString, Value: text(hex)})
	}
	g.fill(tr)
	return tr
}

// fill grows the scripts until the TaskRun has the size asked for: scripts are
// what real TaskRuns are large with.
func (g generator) fill(tr *v1.TaskRun) {
	data, err := json.Marshal(tr)
	if err != nil {
		panic(fmt.Sprintf("encoding a generated TaskRun: %v", err))
	}
	lack := g.o.TaskRunBytes - len(data)
	if lack <= 0 {
		return
	}
	steps := tr.Status.TaskSpec.Steps
	for i := range steps {
		steps[i].Script = script(lack / len(steps))
	}
}

// script is shell of about so many bytes as JSON.
func script(size int) string {
	var b strings.Builder
	b.WriteString("#!/bin/bash\nset -euo pipefail\n")
	for i := 0; b.Len() < size*9/10; i++ {
		fmt.Fprintf(&b, "if [ \"$(params.SOURCE)\" = \"line %d\" ]; then\n  echo 'number %d' | tee -a \"$HOME/log\"\nfi\n", i, i)
	}
	return b.String()
}
