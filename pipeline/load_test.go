package pipeline_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/pipeline"
)

const aTask = `apiVersion: tekton.dev/v1
kind: Task
metadata: {name: t}
spec:
  params: [{name: p}]
  workspaces: [{name: w, optional: true}]
  results: [{name: r}]
  steps: [{name: s, image: alpine, script: "true"}]
`

func run(spec string) string {
	return "apiVersion: tekton.dev/v1\nkind: PipelineRun\nmetadata: {name: run}\nspec:\n" + spec
}

// tasks is a PipelineRun with these tasks.
func tasks(list string) string { return run("  pipelineSpec:\n    tasks:\n" + list) }

// Everything wrong is found before anything runs and says where it is.
func TestInputErrors(t *testing.T) {
	for _, tc := range []struct{ name, doc, want string }{
		{"YAML", "a: [", "document 1: reading YAML"},
		{"tab", "apiVersion: v1\n\tkind: x", "document 1: reading YAML"},
		{"repeated key", "kind: Task\nkind: Task", "document 1: reading YAML"},
		{"no kind", "metadata: {name: x}", "document 1: apiVersion or kind is missing"},
		{"unknown kind", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}", "apps/v1 Deployment is not supported: this reads"},
		{"unknown version", "apiVersion: tekton.dev/v3\nkind: Task\nmetadata: {name: x}", "tekton.dev/v3 Task is not supported"},
		{"a claim", "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: x}", "--workspace name=path"},
		{"no name", "apiVersion: tekton.dev/v1\nkind: Task\nspec: {}", "metadata.name: is missing"},
		{"unknown field", aTask + "  stpes: []\n", `document 1: Task t: unknown field "spec.stpes"`},
		{"case of a field", strings.Replace(aTask, "image", "Image", 1), `unknown field "spec.steps[0].Image"`},
		{"wrong type", strings.Replace(aTask, "[{name: p}]", "3", 1), "document 1: Task t: json: cannot unmarshal"},
		{"Tekton's validation", strings.Replace(aTask, "image: alpine, ", "", 1), "missing field(s): spec.steps[0].Image"},
		{"the same name twice", aTask + "---\n" + aTask, "document 2: Task t: metadata.name: the same object is also in"},
		{"second document", aTask + "---\nkind: 3\n", "document 2: "},
		{"sidecars", aTask + "  sidecars: [{name: x, image: z}]\n", "Task t: spec.sidecars: field sidecars is not supported: "},
		{"hostPath", aTask + "  volumes: [{name: h, hostPath: {path: /}}]\n", "spec.volumes[0].hostPath"},
		{"projected", aTask + "  volumes: [{name: h, projected: {sources: []}}]\n", "spec.volumes[0].projected"},
		{"csi", aTask + "  volumes: [{name: h, csi: {driver: x}}]\n", "spec.volumes[0].csi"},
		{"privileged", strings.Replace(aTask, "image:", "securityContext: {privileged: true}, image:", 1), "spec.steps[0].securityContext.privileged: privileged steps"},
		{"capabilities", strings.Replace(aTask, "image:", "securityContext: {capabilities: {add: [ALL]}}, image:", 1), "spec.steps[0].securityContext.capabilities.add"},
		{"root by word", strings.Replace(aTask, "image:", "securityContext: {runAsNonRoot: true}, image:", 1), "runAsNonRoot without"},
		{"step when", strings.Replace(aTask, "image:", "when: [{input: a, operator: in, values: [a]}], image:", 1), "spec.steps[0].when"},
		{"downward API", strings.Replace(aTask, "image:", "env: [{name: x, valueFrom: {fieldRef: {fieldPath: a}}}], image:", 1), "spec.steps[0].env[0].valueFrom.fieldRef"},
		{"artifacts", strings.Replace(aTask, `"true"`, `"echo $(step.artifacts.path)"`, 1), "the variable $(step.artifacts.path) is not supported"},
		{"Windows", strings.Replace(aTask, `"true"`, `"#!win x"`, 1), "Windows"},

		{"no run", aTask, "no PipelineRun or TaskRun"},
		{"two runs", tasks("    - {name: a, taskRef: {name: t}}\n") + "---\n" + strings.Replace(tasks("    - {name: a, taskRef: {name: t}}\n"), "name: run", "name: run2", 1), "there are 2 runs"},
		{"unresolved task", tasks("    - {name: a, taskRef: {name: none}}\n"), `PipelineRun run: spec.tasks[0] of the pipeline (a).taskRef: Task "none" is not among`},
		{"unresolved pipeline", run("  pipelineRef: {name: none}\n"), `spec.pipelineRef: Pipeline "none" is not among`},
		{"no registry", run("  pipelineRef: {resolver: bundles, params: [{name: bundle, value: localhost:1/x}, {name: name, value: y}]}\n"), "no registry to fetch it from"},
		{"other resolver", run("  pipelineRef: {resolver: git, params: []}\n"), `spec.pipelineRef.resolver: resolver "git" is not supported`},
		{"half a bundle", run("  pipelineRef: {resolver: bundles, params: [{name: name, value: y}]}\n"), "needs the parameters bundle and name"},
		{"cycle", aTask + "---\n" + tasks("    - {name: a, taskRef: {name: t}, runAfter: [b], params: [{name: p, value: x}]}\n    - {name: b, taskRef: {name: t}, runAfter: [a], params: [{name: p, value: x}]}\n"), "cycle detected"},
		{"missing parameter", aTask + "---\n" + tasks("    - {name: a, taskRef: {name: t}}\n"), "spec.tasks[0] of the pipeline (a): invalid input params for task t: missing values for these params which have no default values: [p]"},
		{"missing parameter of the pipeline", run("  pipelineSpec:\n    params: [{name: x}]\n    tasks: [{name: a, taskSpec: {steps: [{name: s, image: i}]}}]\n"), "give it with --param"},
		{"wrong type of parameter", aTask + "---\n" + tasks("    - {name: a, taskRef: {name: t}, params: [{name: p, value: [x]}]}\n"), "param types don't match"},
		{"missing workspace", run("  pipelineSpec:\n    workspaces: [{name: w}]\n    tasks: [{name: a, workspaces: [{name: w}], taskSpec: {workspaces: [{name: w}], steps: [{name: s, image: i}]}}]\n"), "--workspace name=path"},
		{"result that nobody declares", aTask + "---\n" + tasks("    - {name: a, taskRef: {name: t}, params: [{name: p, value: x}]}\n    - {name: b, taskRef: {name: t}, params: [{name: p, value: $(tasks.a.results.none)}]}\n"), `"none"`},
		{"pipeline in pipeline", tasks("    - {name: a, pipelineRef: {name: t}}\n"), "spec.pipelineSpec.tasks[0].pipelineRef: field pipelineRef is not supported"},
		{"custom task", tasks("    - {name: a, taskRef: {apiVersion: example.dev/v1, kind: X, name: t}}\n"), "custom tasks are not supported"},
		{"podTemplate", run("  taskRunTemplate: {podTemplate: {nodeSelector: {a: b}}}\n  pipelineSpec:\n    tasks: [{name: a, taskSpec: {steps: [{name: s, image: i}]}}]\n"), "spec.taskRunTemplate.podTemplate"},
		{"claim in the run", run("  workspaces: [{name: w, persistentVolumeClaim: {claimName: x}}]\n  pipelineSpec:\n    tasks: [{name: a, taskSpec: {steps: [{name: s, image: i}]}}]\n"), "--workspace w=path"},
		{"claim with our prefix", run("  workspaces: [{name: w, persistentVolumeClaim: {claimName: assay-host-w}}]\n  pipelineSpec:\n    tasks: [{name: a, taskSpec: {steps: [{name: s, image: i}]}}]\n"), "--workspace w=path"},
		{"pending", run("  status: PipelineRunPending\n  pipelineSpec:\n    tasks: [{name: a, taskSpec: {steps: [{name: s, image: i}]}}]\n"), "spec.status"},
		{"annotation of the task", strings.Replace(aTask, "{name: t}", "{name: t, annotations: {assay.dev/network: host}}", 1) + "---\n" + tasks("    - {name: a, taskRef: {name: t}, params: [{name: p, value: x}]}\n"), "annotation assay.dev/network"},
		{"missing ConfigMap", tasks("    - {name: a, taskSpec: {steps: [{name: s, image: i, env: [{name: X, valueFrom: {configMapKeyRef: {name: none, key: k}}}]}]}}\n"), `ConfigMap "none" not found`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := pipeline.NewObjects()
			err := o.Add("dir/file.yaml", []byte(tc.doc))
			if err == nil {
				_, err = pipeline.Resolve(context.Background(), o, pipeline.Options{RunID: runID})
			}
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got  %v\nwant %q in it", err, tc.want)
			}
			var in *pipeline.InputError
			if errors.As(err, &in) && in.Origin.File != "dir/file.yaml" && !strings.HasPrefix(err.Error(), tc.want) {
				t.Errorf("names %q: %v", in.Origin.File, err)
			}
		})
	}
}

func TestLoadFiles(t *testing.T) {
	dir := t.TempDir()
	if _, err := pipeline.Load(); err == nil {
		t.Error("no file was loaded")
	}
	if _, err := pipeline.Load(filepath.Join(dir, "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if _, err := pipeline.Load(dir); err == nil {
		t.Error("an empty folder was loaded")
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("sub/task.yml", "# only a comment\n---\n"+aTask)
	write("run.yaml", tasks("    - {name: a, taskRef: {name: t}, params: [{name: p, value: x}]}\n"))
	write("README.md", "not YAML: [")
	o, err := pipeline.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := o.Runs(); len(got) != 1 || got[0] != "PipelineRun run" {
		t.Errorf("runs %v", got)
	}
	write("big.yaml", strings.Repeat("#", 9<<20))
	if _, err := pipeline.Load(dir); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("a file of 9 MiB: %v", err)
	}
}

func TestParams(t *testing.T) {
	doc := run(`  pipelineSpec:
    params: [{name: s}, {name: l, type: array}, {name: o, type: object, properties: {a: {type: string}, b: {type: string}}}]
    tasks: [{name: x, taskSpec: {steps: [{name: s, image: i}]}}]
`)
	for _, tc := range []struct {
		given []string
		want  string // in the specification, or in the error
		ok    bool
	}{
		{[]string{"s=a=b,c", "l=x,y", "o=a:1,b:2:3"}, `{"name":"s","value":"a=b,c"},{"name":"l","value":["x","y"]},{"name":"o","value":{"a":"1","b":"2:3"}}`, true},
		{[]string{"s=[1]", `l=["x,y","z"]`, `o={"a":"1","b":"2"}`}, `{"name":"s","value":"[1]"},{"name":"l","value":["x,y","z"]},{"name":"o","value":{"a":"1","b":"2"}}`, true},
		{[]string{"s=a", "l=x", "o=a:1"}, "missing", false},
		{[]string{"s=a", "l=[1]", "o=a:1,b:2"}, "JSON list of strings", false},
		{[]string{"s=a", "l=x", "o=nonsense"}, "key:value", false},
		{[]string{"s=a", "s=b"}, "given twice", false},
		{[]string{"s"}, "name=value", false},
	} {
		o := pipeline.NewObjects()
		if err := o.Add("f", []byte(doc)); err != nil {
			t.Fatal(err)
		}
		r, err := pipeline.Resolve(context.Background(), o, pipeline.Options{RunID: runID, Params: tc.given})
		switch {
		case tc.ok && err != nil:
			t.Errorf("%v: %v", tc.given, err)
		case tc.ok && !strings.Contains(string(r.Plan().Spec), tc.want):
			t.Errorf("%v: %s", tc.given, r.Plan().Spec)
		case !tc.ok && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%v: %v", tc.given, err)
		}
	}
}

// Whatever the bytes, loading and resolving end with an object or an error.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(aTask + "---\n" + tasks("    - {name: a, taskRef: {name: t}, params: [{name: p, value: x}]}\n")))
	files, _ := filepath.Glob("testdata/runs/*.yaml")
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil && !strings.Contains(file, "golden") {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64<<10 {
			t.Skip("long input only makes fuzzing slow")
		}
		o := pipeline.NewObjects()
		if err := o.Add("fuzz.yaml", data); err != nil {
			var in *pipeline.InputError
			if !errors.As(err, &in) {
				t.Errorf("%v is no InputError", err)
			}
			return
		}
		for _, name := range o.Runs() {
			r, err := pipeline.Resolve(context.Background(), o, pipeline.Options{RunID: runID, Run: name})
			if err == nil && len(r.Plan().Spec) == 0 {
				t.Error("resolved without a specification")
			}
		}
	})
}
