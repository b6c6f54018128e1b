package catalog_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"knative.dev/pkg/apis"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/api"
	"assay.dev/assay/catalog"
)

const digest = "@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func images() map[string]string {
	return map[string]string{"task": "localhost:5055/catalog/task" + digest, "go": "localhost:5055/catalog/go" + digest}
}

func tasks(t *testing.T) map[string]*pipelinev1.Task {
	t.Helper()
	objects, err := catalog.Tasks(images())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]*pipelinev1.Task{}
	for _, o := range objects {
		out[o.Name] = decode(t, o, &pipelinev1.Task{})
	}
	return out
}

func bundles(t *testing.T) map[string]string {
	out := map[string]string{}
	for name := range tasks(t) {
		out[name] = "localhost:5055/catalog/" + name + digest
	}
	return out
}

// decode reads an object as Tekton does, strictly, and validates it.
func decode[T interface {
	apis.Defaultable
	apis.Validatable
}](t *testing.T, o catalog.Object, into T) T {
	t.Helper()
	// A server makes names of generateName before it validates.
	data := regexp.MustCompile(`generateName: (\S+)-`).ReplaceAll(o.YAML, []byte("name: $1"))
	if err := yaml.UnmarshalStrict(data, into); err != nil {
		t.Fatalf("%s: %v", o.Name, err)
	}
	ctx := context.Background()
	into.SetDefaults(ctx)
	if err := into.Validate(ctx); err != nil {
		t.Errorf("%s: %v", o.Name, err)
	}
	return into
}

func TestTasksAreValidAndHermeticAsSaid(t *testing.T) {
	network := map[string]string{}
	for name, task := range tasks(t) {
		network[name] = task.Annotations[api.AnnotationNetwork]
		if task.Spec.Description == "" {
			t.Errorf("%s has no description", name)
		}
		for _, s := range task.Spec.Steps {
			if !strings.HasSuffix(s.Image, digest) {
				t.Errorf("%s: step %s runs %s, which is not pinned", name, s.Name, s.Image)
			}
		}
		for _, p := range task.Spec.Params {
			if p.Description == "" {
				t.Errorf("%s: parameter %s has no description", name, p.Name)
			}
		}
	}
	want := map[string]string{
		"init": "none", "git-clone-oci-ta": "open", "prefetch-dependencies-oci-ta": "open", "build-go-image": "none",
		"build-image-index": "registry", "sast-unicode-check-oci-ta": "none", "apply-tags": "registry",
		"push-dockerfile-oci-ta": "registry", "show-sbom": "registry",
	}
	if diff := cmp.Diff(want, network); diff != "" {
		t.Errorf("networks (-want +got):\n%s", diff)
	}
}

var (
	inputLine  = regexp.MustCompile(`^([A-Za-z0-9_-]+)=(/\S+)$`)
	outputLine = regexp.MustCompile(`^(artifact|source|commit|image) ([A-Za-z0-9_-]+)=(/\S+)$`)
)

// Inputs are parameters, outputs are results, and both lie in a volume that
// the steps mount.
func checkArtifacts(t *testing.T, task *pipelinev1.Task) {
	t.Helper()
	params, results := map[string]bool{}, map[string]bool{}
	for _, p := range task.Spec.Params {
		params[p.Name] = true
	}
	for _, r := range task.Spec.Results {
		results[r.Name] = true
	}
	inside := func(path string) bool {
		for _, s := range task.Spec.Steps {
			mounts := s.VolumeMounts
			if task.Spec.StepTemplate != nil {
				mounts = append(slices.Clone(mounts), task.Spec.StepTemplate.VolumeMounts...)
			}
			for _, m := range mounts {
				if strings.HasPrefix(path, m.MountPath+"/") {
					return true
				}
			}
		}
		return false
	}
	lines := func(annotation string) []string {
		return strings.FieldsFunc(task.Annotations[annotation], func(r rune) bool { return r == '\n' })
	}
	for _, l := range lines(api.AnnotationInputs) {
		m := inputLine.FindStringSubmatch(l)
		if m == nil || !params[m[1]] || !strings.HasSuffix(m[1], "_ARTIFACT") || !inside(m[2]) {
			t.Errorf("%s: input %q is no parameter, or not in a volume", task.Name, l)
		}
	}
	for _, l := range lines(api.AnnotationOutputs) {
		m := outputLine.FindStringSubmatch(l)
		if m == nil || !inside(m[3]) {
			t.Errorf("%s: output %q is misspelled, or not in a volume", task.Name, l)
			continue
		}
		want := []string{m[2]}
		if m[1] == "image" {
			want = []string{m[2] + "_URL", m[2] + "_DIGEST", m[2] + "_REF"}
		}
		for _, name := range want {
			if !results[name] {
				t.Errorf("%s: output %q sets result %s, which is not declared", task.Name, l, name)
			}
		}
	}
}

func TestTasksDeclareWhatTheirAnnotationsName(t *testing.T) {
	for _, task := range tasks(t) {
		checkArtifacts(t, task)
	}
}

// checkPipeline makes sure that every parameter and result that a pipeline
// names exists in the task that its reference names.
func checkPipeline(t *testing.T, p *pipelinev1.Pipeline, known map[string]*pipelinev1.Task) {
	t.Helper()
	of := map[string]*pipelinev1.Task{}
	all := append(slices.Clone(p.Spec.Tasks), p.Spec.Finally...)
	for _, pt := range all {
		var name string
		for _, param := range pt.TaskRef.Params {
			if param.Name == "name" {
				name = param.Value.StringVal
			}
		}
		task := known[name]
		if task == nil {
			t.Fatalf("%s: task %s refers to %q, which is not there", p.Name, pt.Name, name)
		}
		of[pt.Name] = task
		given := map[string]bool{}
		for _, param := range pt.Params {
			given[param.Name] = true
		}
		if pt.Matrix != nil {
			for _, param := range pt.Matrix.Params {
				given[param.Name] = true
			}
		}
		for _, param := range task.Spec.Params {
			if param.Default == nil && !given[param.Name] {
				t.Errorf("%s: task %s is not given %s", p.Name, pt.Name, param.Name)
			}
			delete(given, param.Name)
		}
		for name := range given {
			t.Errorf("%s: task %s is given %s, which it does not know", p.Name, pt.Name, name)
		}
	}
	data, err := yaml.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`\$\(tasks\.([a-z-]+)\.results\.([A-Za-z0-9_-]+)`).FindAllStringSubmatch(string(data), -1) {
		task := of[m[1]]
		if task == nil || !slices.ContainsFunc(task.Spec.Results, func(r pipelinev1.TaskResult) bool { return r.Name == m[2] }) {
			t.Errorf("%s: there is no result %s of %s", p.Name, m[2], m[1])
		}
	}
}

func TestPipelinesFitTheirTasks(t *testing.T) {
	objects, err := catalog.Pipelines(bundles(t))
	if err != nil {
		t.Fatal(err)
	}
	if len(objects) != 1 || objects[0].Name != "build-go" {
		t.Fatalf("pipelines: %+v", objects)
	}
	p := decode(t, objects[0], &pipelinev1.Pipeline{})
	checkPipeline(t, p, tasks(t))
	var names []string
	for _, pt := range append(p.Spec.Tasks, p.Spec.Finally...) {
		names = append(names, pt.Name)
	}
	want := []string{"init", "clone-repository", "prefetch-dependencies", "build-images", "build-image-index", "sast-unicode-check", "apply-tags", "push-dockerfile", "show-sbom"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("tasks (-want +got):\n%s", diff)
	}
}

// The examples are filled in as the demo does it.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/run/*/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Glob("../examples/run/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, top...)
	if len(files) < 8 {
		t.Fatalf("only %d examples found", len(files))
	}
	refs := map[string]string{}
	for k, v := range images() {
		refs["image/"+k] = v
	}
	for k, v := range bundles(t) {
		refs["bundle/"+k] = v
	}
	for _, name := range []string{"build-go", "edit-source", "read-source", "restore-source", "edit-prefetch"} {
		refs["bundle/"+name] = "localhost:5055/catalog/" + name + digest
	}
	known := tasks(t)
	var pipelines []*pipelinev1.Pipeline
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if data, err = catalog.Fill(data, refs); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		objects, err := catalog.Parse(data)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, o := range objects {
			switch o.Kind {
			case "Task":
				known[o.Name] = decode(t, o, &pipelinev1.Task{})
				checkArtifacts(t, known[o.Name])
			case "Pipeline":
				pipelines = append(pipelines, decode(t, o, &pipelinev1.Pipeline{}))
			case "PipelineRun":
				decode(t, o, &pipelinev1.PipelineRun{})
			case "TaskRun":
				decode(t, o, &pipelinev1.TaskRun{})
			default:
				t.Errorf("%s: unexpected kind %s", name, o.Kind)
			}
		}
	}
	for _, p := range pipelines {
		checkPipeline(t, p, known)
	}
	if len(pipelines) != 2 {
		t.Errorf("%d example pipelines, want 2", len(pipelines))
	}
}

func TestFillRefusesWhatIsNotPinned(t *testing.T) {
	for name, c := range map[string]map[string]string{
		"none given":  {"task": images()["task"]},
		"by tag":      {"task": images()["task"], "go": "localhost:5055/catalog/go:latest"},
		"no registry": {"task": images()["task"], "go": digest},
		"a line more": {"task": images()["task"], "go": "x\nimage: y" + digest},
	} {
		if _, err := catalog.Tasks(c); err == nil {
			t.Errorf("%s: filled in without an error", name)
		}
	}
	if _, err := catalog.Pipelines(nil); err == nil || !strings.Contains(err.Error(), "bundle/init") {
		t.Errorf("no bundles: %v", err)
	}
	refs := map[string]string{}
	for k, v := range images() {
		refs["image/"+k] = v
	}
	for k, v := range bundles(t) {
		refs["bundle/"+k] = v
	}
	all, err := catalog.Objects(refs)
	if err != nil || len(all) != 10 {
		t.Errorf("%d objects, %v", len(all), err)
	}
}

func TestParse(t *testing.T) {
	objects, err := catalog.Parse([]byte("---\napiVersion: v1\nkind: A\nmetadata: {name: a}\n---\n\n---\napiVersion: v1\nkind: B\nmetadata: {generateName: b-}\n"))
	if err != nil || len(objects) != 2 || objects[0].Name != "a" || objects[1].Name != "b-" {
		t.Errorf("%+v, %v", objects, err)
	}
	for _, bad := range []string{"", "kind: A", "a: [", "apiVersion: v1\nkind: A\n"} {
		if _, err := catalog.Parse([]byte(bad)); err == nil {
			t.Errorf("%q: read without an error", bad)
		}
	}
}
