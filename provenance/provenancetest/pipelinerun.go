// Package provenancetest holds what tests of statements share: the cases of what
// Tekton Chains prints, and finished runs of a known shape for benchmarks and
// tests: a container build as large as they come, in the objects that Tekton
// would leave behind. Everything is derived from names, so the same arguments
// give the same bytes on every machine.
package provenancetest

import (
	"crypto/sha1" //nolint:gosec // git commits are named by it
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/tektoncd/pipeline/pkg/apis/config"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
)

// Sizes of the script of each step, which is what makes runs large or small:
// with SmallScript a TaskRun has about 6 kB and the SLSA v0.2 payload of the run
// 80 kB, with RealScript 24 kB and 434 kB, as Konflux's have.
const (
	SmallScript = 400
	RealScript  = 6000
)

// registry is where the run says it pushed.
const registry = "registry.example.com"

// task is one task of the pipeline.
type task struct {
	name    string
	ref     string
	steps   int
	after   []string // runAfter
	uses    []string // task.result, as parameters
	matrix  []string // platforms
	results []string // IMAGE, GIT, TRUSTED (artifact outside the hints), TEST
	finally bool
}

// build is the pipeline: 17 tasks, 20 TaskRuns, 59 steps, 6 images.
var build = []task{
	{name: "init", ref: "init", steps: 1, results: []string{"BUILD"}},
	{name: "clone-repository", ref: "git-clone-oci-ta", steps: 3, after: []string{"init"}, results: []string{"GIT", "TRUSTED"}},
	{name: "prefetch-dependencies", ref: "prefetch-dependencies-oci-ta", steps: 3, uses: []string{"clone-repository.SOURCE_ARTIFACT"}, results: []string{"TRUSTED"}},
	{
		name: "build-images", ref: "buildah-remote-oci-ta", steps: 6, uses: []string{"prefetch-dependencies.SOURCE_ARTIFACT"},
		matrix: []string{"linux/x86_64", "linux/arm64", "linux/ppc64le", "linux/s390x"}, results: []string{"IMAGE"},
	},
	{name: "build-image-index", ref: "build-image-index", steps: 3, uses: []string{"build-images.IMAGE_DIGEST[*]"}, results: []string{"IMAGE"}},
	{name: "build-source-image", ref: "source-build-oci-ta", steps: 3, uses: []string{"prefetch-dependencies.SOURCE_ARTIFACT", "build-image-index.IMAGE_DIGEST"}, results: []string{"IMAGE"}},
	{name: "deprecated-base-image-check", ref: "deprecated-image-check", steps: 1, uses: []string{"build-image-index.IMAGE_DIGEST"}, results: []string{"TEST"}},
	{name: "image-scan", ref: "clair-scan", steps: 4, uses: []string{"build-image-index.IMAGE_DIGEST"}, results: []string{"TEST"}},
	{name: "preflight-checks", ref: "ecosystem-cert-preflight-checks", steps: 5, uses: []string{"build-image-index.IMAGE_DIGEST"}, results: []string{"TEST"}},
	{name: "sast-snyk-check", ref: "sast-snyk-check-oci-ta", steps: 2, uses: []string{"prefetch-dependencies.SOURCE_ARTIFACT", "build-image-index.IMAGE_DIGEST"}, results: []string{"TEST"}},
	{name: "sast-shell-check", ref: "sast-shell-check-oci-ta", steps: 2, uses: []string{"prefetch-dependencies.SOURCE_ARTIFACT"}, results: []string{"TEST"}},
	{name: "virus-scan", ref: "clamav-scan", steps: 2, uses: []string{"build-image-index.IMAGE_DIGEST"}, results: []string{"TEST"}},
	{name: "apply-tags", ref: "apply-tags", steps: 1, uses: []string{"build-image-index.IMAGE_DIGEST"}},
	{name: "push-dockerfile", ref: "push-dockerfile-oci-ta", steps: 2, uses: []string{"prefetch-dependencies.SOURCE_ARTIFACT", "build-image-index.IMAGE_DIGEST"}},
	{name: "signature-scan", ref: "rpms-signature-scan", steps: 1, uses: []string{"build-image-index.IMAGE_DIGEST"}, results: []string{"TEST"}},
	{name: "show-sbom", ref: "show-sbom", steps: 1, uses: []string{"build-image-index.IMAGE_URL"}, finally: true},
	{name: "show-summary", ref: "summary", steps: 1, finally: true},
}

// PipelineRun makes the run of the given name in the given namespace and its
// TaskRuns in the order of its childReferences. Each step's script has about
// script bytes.
func PipelineRun(namespace, name string, script int) (*v1.PipelineRun, []*v1.TaskRun) {
	m := maker{namespace: namespace, name: name, script: script, start: time.Date(2026, 3, 4, 10, 20, 0, 0, time.UTC)}
	pr := &v1.PipelineRun{
		TypeMeta: metav1.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "PipelineRun"},
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Namespace: namespace, UID: m.uid("run"), Generation: 1, CreationTimestamp: m.at(0),
			Labels: map[string]string{
				"app.example.com/application": "acme", "app.example.com/component": "api", "app.example.com/type": "build",
				"tekton.dev/pipeline": name,
			},
			Annotations: map[string]string{
				"build.example.com/commit_sha": m.hex("commit", 40), "build.example.com/pull_request_number": "17",
				"build.example.com/repo": "https://git.example.com/acme/api",
			},
		},
	}
	m.pr = pr
	spec := &v1.PipelineSpec{
		Params: v1.ParamSpecs{
			{Name: "git-url", Type: v1.ParamTypeString}, {Name: "revision", Type: v1.ParamTypeString, Default: v1.NewStructuredValues("main")},
			{Name: "output-image", Type: v1.ParamTypeString}, {Name: "build-platforms", Type: v1.ParamTypeArray, Default: v1.NewStructuredValues("linux/x86_64", "linux/arm64")},
			{Name: "hermetic", Type: v1.ParamTypeString, Default: v1.NewStructuredValues("true")},
		},
		Results: []v1.PipelineResult{
			{Name: "IMAGE_URL", Value: *v1.NewStructuredValues("$(tasks.build-image-index.results.IMAGE_URL)")},
			{Name: "IMAGE_DIGEST", Value: *v1.NewStructuredValues("$(tasks.build-image-index.results.IMAGE_DIGEST)")},
			{Name: "CHAINS-GIT_URL", Value: *v1.NewStructuredValues("$(tasks.clone-repository.results.url)")},
			{Name: "CHAINS-GIT_COMMIT", Value: *v1.NewStructuredValues("$(tasks.clone-repository.results.commit)")},
		},
	}
	var children []*v1.TaskRun
	for i := range build {
		t := &build[i]
		pt := m.pipelineTask(t)
		if t.finally {
			spec.Finally = append(spec.Finally, pt)
		} else {
			spec.Tasks = append(spec.Tasks, pt)
		}
		platforms := t.matrix
		if platforms == nil {
			platforms = []string{""}
		}
		for j, platform := range platforms {
			suffix := t.name
			if platform != "" {
				suffix = fmt.Sprintf("%s-%d", t.name, j)
			}
			tr := m.taskRun(t, suffix, platform, i)
			children = append(children, tr)
			pr.Status.ChildReferences = append(pr.Status.ChildReferences, v1.ChildStatusReference{
				TypeMeta: runtime.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "TaskRun"}, Name: tr.Name, PipelineTaskName: t.name,
			})
		}
	}
	pr.Spec = v1.PipelineRunSpec{
		PipelineSpec: spec.DeepCopy(), // as Pipelines as Code sends them
		Params: v1.Params{
			{Name: "git-url", Value: *v1.NewStructuredValues("https://git.example.com/acme/api")},
			{Name: "revision", Value: *v1.NewStructuredValues(m.hex("commit", 40))},
			{Name: "output-image", Value: *v1.NewStructuredValues(registry + "/acme/api:" + m.hex("commit", 40))},
		},
		TaskRunTemplate: v1.PipelineTaskRunTemplate{ServiceAccountName: "builder"},
		Timeouts:        &v1.TimeoutFields{Pipeline: &metav1.Duration{Duration: 8 * time.Hour}},
	}
	index := imageOf("build-image-index")
	pr.Status.PipelineSpec = spec
	pr.Status.StartTime, pr.Status.CompletionTime = ptr(m.at(0)), ptr(m.at(1800))
	pr.Status.Status = done("Succeeded", "Tasks Completed: 20 (Failed: 0, Cancelled 0), Skipped: 0", m.at(1800))
	pr.Status.Provenance = &v1.Provenance{FeatureFlags: &config.FeatureFlags{EnableAPIFields: "beta", Coschedule: "workspaces", MaxResultSize: 4096}}
	pr.Status.Results = []v1.PipelineRunResult{
		{Name: "IMAGE_URL", Value: *v1.NewStructuredValues(index)},
		{Name: "IMAGE_DIGEST", Value: *v1.NewStructuredValues("sha256:" + m.hex("image build-image-index", 64))},
		{Name: "CHAINS-GIT_URL", Value: *v1.NewStructuredValues("https://git.example.com/acme/api")},
		{Name: "CHAINS-GIT_COMMIT", Value: *v1.NewStructuredValues(m.hex("commit", 40))},
	}
	return pr, children
}

// maker makes the objects of one run.
type maker struct {
	namespace, name string
	script          int
	start           time.Time
	pr              *v1.PipelineRun
}

func (m *maker) at(seconds int) metav1.Time {
	return metav1.NewTime(m.start.Add(time.Duration(seconds) * time.Second))
}

// hex are n hex characters that follow from label and the run's name.
func (m *maker) hex(label string, n int) string {
	if n == 40 {
		sum := sha1.Sum([]byte(m.name + label)) //nolint:gosec // a name, no protection
		return hex.EncodeToString(sum[:])
	}
	sum := sha256.Sum256([]byte(m.name + label))
	return hex.EncodeToString(sum[:])[:n]
}

func (m *maker) uid(label string) types.UID {
	h := m.hex("uid "+label, 32)
	return types.UID(h[:8] + "-" + h[8:12] + "-4" + h[13:16] + "-8" + h[17:20] + "-" + h[20:32])
}

func (m *maker) taskRef(t *task) v1.ResolverRef {
	bundle := fmt.Sprintf("%s/catalog/task-%s:0.4@sha256:%s", registry, t.ref, digest(t.ref))
	return v1.ResolverRef{Resolver: "bundles", Params: v1.Params{
		{Name: "name", Value: *v1.NewStructuredValues(t.ref)},
		{Name: "bundle", Value: *v1.NewStructuredValues(bundle)},
		{Name: "kind", Value: *v1.NewStructuredValues("task")},
	}}
}

func (m *maker) pipelineTask(t *task) v1.PipelineTask {
	pt := v1.PipelineTask{
		Name: t.name, RunAfter: t.after, TaskRef: &v1.TaskRef{Kind: v1.NamespacedTaskKind, ResolverRef: m.taskRef(t)},
		Params: v1.Params{{Name: "image-url", Value: *v1.NewStructuredValues("$(params.output-image)")}},
	}
	for i, use := range t.uses {
		from, result, _ := strings.Cut(use, ".")
		pt.Params = append(pt.Params, v1.Param{
			Name: fmt.Sprintf("input-%d", i), Value: *v1.NewStructuredValues("$(tasks." + from + ".results." + result + ")"),
		})
	}
	if t.matrix != nil {
		pt.Matrix = &v1.Matrix{Params: v1.Params{{Name: "PLATFORM", Value: *v1.NewStructuredValues(t.matrix[0], t.matrix[1:]...)}}}
	}
	return pt
}

func (m *maker) taskRun(t *task, suffix, platform string, position int) *v1.TaskRun {
	from, to := 60*position, 60*position+155
	tr := &v1.TaskRun{
		TypeMeta: metav1.TypeMeta{APIVersion: "tekton.dev/v1", Kind: "TaskRun"},
		ObjectMeta: metav1.ObjectMeta{
			Name: m.name + "-" + suffix, Namespace: m.namespace, UID: m.uid(suffix), Generation: 1, CreationTimestamp: m.at(from),
			Labels: map[string]string{
				"app.kubernetes.io/managed-by": "tekton-pipelines", "tekton.dev/memberOf": "tasks", "tekton.dev/pipeline": m.name,
				"tekton.dev/pipelineRun": m.name, "tekton.dev/pipelineRunUID": string(m.pr.UID), "tekton.dev/pipelineTask": t.name,
			},
			Annotations: map[string]string{
				"pipeline.tekton.dev/release": "v1.15.0", "build.example.com/repo": "https://git.example.com/acme/api",
				"build.example.com/commit_sha": m.hex("commit", 40),
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "tekton.dev/v1", Kind: "PipelineRun", Name: m.name, UID: m.pr.UID, Controller: ptr(true), BlockOwnerDeletion: ptr(true),
			}},
		},
		Spec: v1.TaskRunSpec{
			ServiceAccountName: "builder", Timeout: &metav1.Duration{Duration: 8 * time.Hour},
			TaskRef: &v1.TaskRef{Kind: v1.NamespacedTaskKind, ResolverRef: m.taskRef(t)},
			Params:  v1.Params{{Name: "image-url", Value: *v1.NewStructuredValues(registry + "/acme/api:build")}},
		},
	}
	if platform != "" {
		tr.Spec.Params = append(tr.Spec.Params, v1.Param{Name: "PLATFORM", Value: *v1.NewStructuredValues(platform)})
	}
	spec := &v1.TaskSpec{
		Description: t.name + " does its part.",
		Params: v1.ParamSpecs{
			{Name: "image-url", Type: v1.ParamTypeString, Default: v1.NewStructuredValues("")},
			{Name: "PLATFORM", Type: v1.ParamTypeString, Default: v1.NewStructuredValues("linux/amd64")},
		},
	}
	tr.Status.Status = done("Succeeded", "All Steps have completed executing", m.at(to))
	tr.Status.PodName = tr.Name + "-pod"
	tr.Status.StartTime, tr.Status.CompletionTime = ptr(m.at(from)), ptr(m.at(to))
	tr.Status.TaskSpec = spec
	tr.Status.Provenance = &v1.Provenance{RefSource: &v1.RefSource{
		URI: registry + "/catalog/task-" + t.ref, Digest: map[string]string{"sha256": digest(t.ref)}, EntryPoint: t.ref,
	}}
	for i := range t.steps {
		name := fmt.Sprintf("s%d", i)
		spec.Steps = append(spec.Steps, v1.Step{
			Name: name, Image: registry + "/tools/runner:1.4", Script: script(name, t.name, m.script),
			Env: []corev1.EnvVar{{Name: "IMAGE", Value: "$(params.image-url)"}},
		})
		image := fmt.Sprintf("%s-%d", t.ref, i%3)
		tr.Status.Steps = append(tr.Status.Steps, v1.StepState{
			Name: name, Container: "step-" + name, ImageID: registry + "/tools/" + image + "@sha256:" + digest("tool "+image),
			ContainerState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
				Reason: "Completed", StartedAt: m.at(from + 5), FinishedAt: m.at(to - 1), ContainerID: "containerd://" + m.hex("container "+suffix+name, 64),
			}},
			TerminationReason: "Completed",
		})
	}
	for _, kind := range t.results {
		for _, r := range m.results(kind, t, suffix) {
			spec.Results = append(spec.Results, v1.TaskResult{Name: r.Name, Type: v1.ResultsTypeString, Description: "written by " + t.name})
			tr.Status.Results = append(tr.Status.Results, r)
		}
	}
	return tr
}

func (m *maker) results(kind string, t *task, suffix string) []v1.TaskRunResult {
	image := imageOf(t.name)
	sum := "sha256:" + m.hex("image "+suffix, 64)
	var pairs []string
	switch kind {
	case "BUILD":
		pairs = []string{"build", "true"}
	case "GIT":
		pairs = []string{
			"CHAINS-GIT_URL", "https://git.example.com/acme/api", "CHAINS-GIT_COMMIT", m.hex("commit", 40),
			"url", "https://git.example.com/acme/api", "commit", m.hex("commit", 40), "commit-timestamp", "1772620000", "short-commit", m.hex("commit", 40)[:7],
		}
	case "TRUSTED":
		pairs = []string{"SOURCE_ARTIFACT", "oci:" + registry + "/acme/api@sha256:" + m.hex("source "+suffix, 64)}
	case "IMAGE":
		pairs = []string{
			"IMAGE_DIGEST", sum, "IMAGE_URL", image, "IMAGE_REF", image + "@" + sum,
			"SBOM_BLOB_URL", registry + "/acme/api@sha256:" + m.hex("sbom "+suffix, 64),
		}
	case "TEST":
		pairs = []string{
			"TEST_OUTPUT", `{"result":"SUCCESS","timestamp":"2026-03-04T10:30:00+00:00","note":"Task ` + t.name +
				` success: No problems found.","namespace":"default","successes":3,"failures":0,"warnings":0}` + "\n",
			"IMAGES_PROCESSED", `{"image": {"pullspec": "` + registry + `/acme/api:build", "digests": ["` + sum + `"]}}` + "\n",
		}
	}
	var out []v1.TaskRunResult
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, v1.TaskRunResult{Name: pairs[i], Type: v1.ResultsTypeString, Value: *v1.NewStructuredValues(pairs[i+1])})
	}
	return out
}

// imageOf is the repository and tag that a task says it pushed.
func imageOf(task string) string {
	if task == "build-source-image" {
		return registry + "/acme/api-source:build"
	}
	return registry + "/acme/api:build"
}

// script reads like a step's: words, quotes, and lines that end.
func script(step, task string, size int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "#!/usr/bin/env bash\nset -euo pipefail\necho \"step %s of %s\"\n", step, task)
	for i := 0; b.Len() < size; i++ {
		fmt.Fprintf(&b, "if [ -n \"${VALUE_%d:-}\" ]; then printf '%%s\\n' \"$VALUE_%d\" | tee -a /tmp/out.log; fi\n", i, i)
	}
	return b.String()
}

// digest is of things that runs share, such as tools and definitions.
func digest(label string) string {
	sum := sha256.Sum256([]byte(label))
	return hex.EncodeToString(sum[:])
}

func done(reason, message string, at metav1.Time) duckv1.Status {
	return duckv1.Status{Conditions: duckv1.Conditions{{
		Type: apis.ConditionSucceeded, Status: corev1.ConditionTrue, Reason: reason, Message: message,
		LastTransitionTime: apis.VolatileTime{Inner: at},
	}}}
}

func ptr[T any](v T) *T { return &v }
