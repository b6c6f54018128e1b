package pipeline

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline/v1beta1"
	fakeclient "github.com/tektoncd/pipeline/pkg/client/clientset/versioned/fake"
	tresources "github.com/tektoncd/pipeline/pkg/reconciler/taskrun/resources"
	"github.com/tektoncd/pipeline/pkg/workspace"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"pgregory.net/rapid"

	"assay.dev/assay/pipeline/render"
)

// upstreamSpec is status.taskSpec as upstream's reconciler makes it, with
// upstream's functions called in its order.
func upstreamSpec(ctx context.Context, in render.Input) (*v1.TaskSpec, error) {
	tr := in.Run.DeepCopy()
	spec := in.Spec.DeepCopy()
	spec.SetDefaults(ctx)
	var stored []runtime.Object
	for i, a := range in.StepActions {
		a = a.DeepCopy()
		a.Namespace, a.Name = tr.Namespace, fmt.Sprintf("action-%d", i)
		spec.Steps[i].Ref = &v1.Ref{Name: a.Name}
		stored = append(stored, a)
	}
	client := fakeclient.NewSimpleClientset(stored...)
	steps, err := tresources.GetStepActionsData(ctx, *spec, tr, client, nil, nil)
	if err != nil {
		return nil, err
	}
	spec.Steps = steps
	tresources.ApplyParametersToWorkspaceBindings(spec, tr)
	volumes := workspace.CreateVolumes(tr.Spec.Workspaces)
	spec = tresources.ApplyParameters(spec, tr, slices.Clone(spec.Params)...)
	spec = tresources.ApplyContexts(spec, in.Name, tr)
	spec = tresources.ApplyResults(spec)
	spec = tresources.ApplyArtifacts(spec)
	spec = tresources.ApplyStepExitCodePath(spec)
	for _, b := range tr.Spec.Workspaces {
		if !slices.ContainsFunc(spec.Workspaces, func(d v1.WorkspaceDeclaration) bool { return d.Name == b.Name }) {
			spec.Workspaces = append(spec.Workspaces, v1.WorkspaceDeclaration{Name: b.Name})
		}
	}
	return tresources.ApplyWorkspaces(ctx, spec, spec.Workspaces, tr.Spec.Workspaces, volumes), nil
}

// tasks whose every kind of reference is one more way to go wrong.
func TestRenderAsUpstream(t *testing.T) {
	ctx := tektonContext(context.Background(), nil)
	str := func(s string) *v1.ParamValue { return &v1.ParamValue{Type: v1.ParamTypeString, StringVal: s} }
	run := &v1.TaskRun{ObjectMeta: metav1.ObjectMeta{Name: "tr", Namespace: "ns", UID: "u-i-d"}}
	run.Status.RetriesStatus = make([]v1.TaskRunStatus, 2)
	run.Spec.Params = v1.Params{
		{Name: "s", Value: *str("from-run $(context.task.name)")},
		{Name: "a.b", Value: *v1.NewStructuredValues("dotted", "two", "three")},
		{Name: "o", Value: *v1.NewObject(map[string]string{"k": "run-k"})},
		{Name: "undeclared", Value: *str("x")},
	}
	run.Spec.Workspaces = []v1.WorkspaceBinding{
		{Name: "src", SubPath: "$(params.s)", EmptyDir: &corev1.EmptyDirVolumeSource{}},
		{Name: "extra", PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c-$(params.undeclared)"}},
	}
	step := v1.Step{
		Name: "one", Image: "img:$(params.s)", WorkingDir: "$(workspaces.src.path)/$(params['s'])",
		Script:  "$(params.s) $(inputs.params.s) $(params[\"a.b\"][1]) $(params.o.k) $(params.o.l) $(context.taskRun.uid) $(context.taskRun.name) $(context.taskRun.namespace) $(context.task.retry-count) $(results.r.path) $(results['r'].path) $(steps.step-one.exitCode.path) $(workspaces.opt.bound) $(workspaces.opt.path) $(workspaces.src.volume) $(workspaces.extra.claim) $(params.chain) $(steps.one.results.q)",
		Env:     []corev1.EnvVar{{Name: "E", Value: "$(params.s)"}, {Name: "F", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "$(params.d)"}, Key: "$(params.d)"}}}},
		Results: []v1.StepResult{{Name: "q", Type: v1.ResultsTypeString}},
		VolumeMounts: []corev1.VolumeMount{
			{Name: "v-$(params.d)", MountPath: "/m/$(params.d)", SubPath: "$(params.d)"},
		},
	}
	stream := step
	stream.Name, stream.Script = "", ""
	stream.Command, stream.Args = []string{"$(params['a.b'][*])"}, []string{"--", "$(params[\"a.b\"][*])", "$(params['a.b'][*])x", "$(step.results.q.path)"}
	isolated := step
	isolated.Name, isolated.Workspaces = "iso", []v1.WorkspaceUsage{{Name: "src", MountPath: "/elsewhere"}}
	withAction := v1.Step{Name: "acts", Ref: &v1.Ref{Name: "x"}, Params: v1.Params{
		{Name: "given", Value: *str("$(params.s)-$(params.o.k)")},
		{Name: "res", Value: *str("$(steps.one.results.q)")},
		{Name: "resarr", Value: *str("$(steps.one.results.arr[*])")},
		{Name: "resobj", Value: *str("$(steps.one.results.obj[*])")},
	}}
	action := &v1beta1.StepAction{Spec: v1beta1.StepActionSpec{
		Image: "act:$(params.given)", Script: "",
		Command: []string{"$(params.given)", "$(params.res)", "$(params.byref)"},
		Args:    []string{"$(params.resarr[*])", "$(params.resarr[1])", "$(params.resobj.k)", "$(params.list[*])"},
		Env:     []corev1.EnvVar{{Name: "A", Value: "$(params.plain) $(params['resarr'][0])"}},
		Params: v1.ParamSpecs{
			{Name: "given", Type: v1.ParamTypeString},
			{Name: "res", Type: v1.ParamTypeString},
			{Name: "resarr", Type: v1.ParamTypeArray},
			{Name: "resobj", Type: v1.ParamTypeObject, Properties: map[string]v1.PropertySpec{"k": {Type: "string"}}},
			{Name: "plain", Type: v1.ParamTypeString, Default: str("plain")},
			{Name: "byref", Type: v1.ParamTypeString, Default: str("<$(params.given)+$(params.second)>")},
			{Name: "second", Type: v1.ParamTypeString, Default: str("2 $(params.plain)")},
			{Name: "list", Type: v1.ParamTypeArray, Default: v1.NewStructuredValues("l1", "l2")},
		},
		Results: []v1.StepResult{{Name: "w", Type: v1.ResultsTypeString}},
	}}
	spec := &v1.TaskSpec{
		Params: v1.ParamSpecs{
			{Name: "s", Type: v1.ParamTypeString},
			{Name: "d", Type: v1.ParamTypeString, Default: str("def")},
			{Name: "a.b", Type: v1.ParamTypeArray, Default: v1.NewStructuredValues("x", "y")},
			{Name: "o", Type: v1.ParamTypeObject, Properties: map[string]v1.PropertySpec{"k": {Type: "string"}, "l": {Type: "string"}}, Default: v1.NewObject(map[string]string{"k": "def-k", "l": "def-l"})},
			{Name: "chain", Type: v1.ParamTypeString, Default: str("[$(params.d)]")},
		},
		Results:      []v1.TaskResult{{Name: "r", Type: v1.ResultsTypeString}},
		Workspaces:   []v1.WorkspaceDeclaration{{Name: "src", MountPath: "/src/$(params.d)"}, {Name: "opt", Optional: true}},
		StepTemplate: &v1.StepTemplate{Env: []corev1.EnvVar{{Name: "T", Value: "$(params.s)"}}},
		Volumes: []corev1.Volume{
			{Name: "v-$(params.d)", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "$(params.d)"}, Items: []corev1.KeyToPath{{Key: "$(params.d)", Path: "$(params.s)"}}}}},
			{Name: "sec", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "$(params.d)"}}},
		},
		Steps: []v1.Step{step, stream, isolated, withAction},
	}
	in := render.Input{
		Spec: spec, Name: "task-name", Run: run,
		StepActions: map[int]*v1beta1.StepAction{3: action},
		Sources: render.Sources{
			ConfigMap: func(string) (map[string][]byte, bool) { return map[string][]byte{"def": []byte("v")}, true },
			Secret:    func(string) (map[string][]byte, bool) { return nil, true },
			Host:      func(string) (string, bool) { return "h", true },
		},
	}
	want, err := upstreamSpec(ctx, in)
	if err != nil {
		t.Fatal(err)
	}
	got, err := render.Task(in)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got.Spec); d != "" {
		t.Errorf("(-upstream +render)\n%s", d)
	}
}

// Random tasks, runs and StepActions out of a small vocabulary, in which names
// collide and references go everywhere.
func TestRenderAsUpstreamRandom(t *testing.T) {
	ctx := tektonContext(context.Background(), nil)
	rapid.Check(t, func(t *rapid.T) {
		in := randomInput(t)
		want, err := upstreamSpec(ctx, in)
		got, gotErr := render.Task(in)
		if err != nil {
			if gotErr == nil {
				t.Fatalf("upstream refuses (%v), render does not", err)
			}
			return
		}
		if gotErr != nil {
			// What upstream only finds out when it makes the pod.
			return
		}
		if d := cmp.Diff(want, got.Spec); d != "" {
			t.Fatalf("(-upstream +render)\n%s", d)
		}
	})
}

var paramNames = []string{"p", "q", "x.y"}

func randomValue(t *rapid.T, label string, text *rapid.Generator[string]) *v1.ParamValue {
	switch rapid.IntRange(0, 2).Draw(t, label+" type") {
	case 0:
		return v1.NewStructuredValues(text.Draw(t, label))
	case 1:
		list := rapid.SliceOfN(text, 2, 3).Draw(t, label)
		return v1.NewStructuredValues(list[0], list[1:]...)
	}
	return v1.NewObject(rapid.MapOfN(rapid.SampledFrom([]string{"k", "l"}), text, 1, 2).Draw(t, label))
}

func randomSpecs(t *rapid.T, label string, text *rapid.Generator[string]) v1.ParamSpecs {
	var out v1.ParamSpecs
	for _, name := range paramNames {
		if label != "task" && !rapid.Bool().Draw(t, label+name+" declared") {
			continue
		}
		value := randomValue(t, label+name, text)
		p := v1.ParamSpec{Name: name, Type: value.Type}
		if value.Type == v1.ParamTypeObject {
			p.Properties = map[string]v1.PropertySpec{"k": {Type: "string"}, "l": {Type: "string"}}
		}
		if rapid.Bool().Draw(t, label+name+" default") {
			p.Default = value
		}
		out = append(out, p)
	}
	return out
}

func randomInput(t *rapid.T) render.Input {
	fragment := rapid.SampledFrom([]string{
		"a", "$(params.p)", "$(params.q)", "$(params['x.y'])", "$(params[\"x.y\"])", "$(params.p[0])", "$(params.q[1])", "$(params['x.y'][0])",
		"$(params.p[*])", "$(params.q[*])", "$(params.p.k)", "$(params.q.l)", "$(inputs.params.p)", "$(context.taskRun.name)", "$(context.task.name)",
		"$(results.r.path)", "$(workspaces.w.path)", "$(workspaces.w.bound)", "$$(X)", "$(X)",
	})
	text := rapid.Custom(func(t *rapid.T) string {
		s := ""
		for _, f := range rapid.SliceOfN(fragment, 1, 3).Draw(t, "fragments") {
			s += f
		}
		return s
	})
	// Mostly what is wanted, now and then something of another type.
	params := func(label string, specs v1.ParamSpecs) v1.Params {
		var out v1.Params
		for _, d := range specs {
			if d.Default != nil && rapid.Bool().Draw(t, label+d.Name+" by default") {
				continue
			}
			value := randomValue(t, label+d.Name, text)
			for range 8 {
				if value.Type != d.Type {
					value = randomValue(t, label+d.Name, text)
				}
			}
			out = append(out, v1.Param{Name: d.Name, Value: *value})
		}
		return out
	}
	spec := &v1.TaskSpec{
		Params:     randomSpecs(t, "task", text),
		Results:    []v1.TaskResult{{Name: "r", Type: v1.ResultsTypeString}},
		Workspaces: []v1.WorkspaceDeclaration{{Name: "w", Optional: rapid.Bool().Draw(t, "optional"), MountPath: rapid.SampledFrom([]string{"", "/at", "/at/$(params.p)"}).Draw(t, "mountPath")}},
	}
	run := &v1.TaskRun{ObjectMeta: metav1.ObjectMeta{Name: "run", Namespace: "ns", UID: "uid"}, Spec: v1.TaskRunSpec{Params: params("run", spec.Params)}}
	if rapid.Bool().Draw(t, "bound") {
		run.Spec.Workspaces = []v1.WorkspaceBinding{{Name: "w", SubPath: text.Draw(t, "subPath"), EmptyDir: &corev1.EmptyDirVolumeSource{}}}
	}
	in := render.Input{Spec: spec, Name: "task", Run: run, StepActions: map[int]*v1beta1.StepAction{}}
	for i := range rapid.IntRange(1, 3).Draw(t, "steps") {
		s := v1.Step{Name: rapid.SampledFrom([]string{"", fmt.Sprintf("s%d", i)}).Draw(t, "name")}
		list := func(label string) []string { return rapid.SliceOfN(text, 0, 3).Draw(t, label) }
		if rapid.IntRange(0, 2).Draw(t, "action") == 0 {
			declared := randomSpecs(t, "action", text)
			s.Ref, s.Params = &v1.Ref{Name: "a"}, params("step", declared)
			in.StepActions[i] = &v1beta1.StepAction{Spec: v1beta1.StepActionSpec{
				Image: text.Draw(t, "image"), Command: list("command"), Args: list("args"), WorkingDir: text.Draw(t, "dir"),
				Env: []corev1.EnvVar{{Name: "E", Value: text.Draw(t, "env")}}, Params: declared,
			}}
		} else {
			s.Image, s.Command, s.Args, s.WorkingDir = text.Draw(t, "image"), list("command"), list("args"), text.Draw(t, "dir")
			s.Env = []corev1.EnvVar{{Name: "E", Value: text.Draw(t, "env")}}
		}
		spec.Steps = append(spec.Steps, s)
	}
	return in
}
