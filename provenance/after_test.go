package provenance

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

// FuzzReferences: what Tekton's expression parser takes for a reference to a
// result, we do, and nothing else.
func FuzzReferences(f *testing.F) {
	for _, s := range []string{
		"", "$(tasks.a.results.b)", "x $(tasks.a.results.b[0]) $(tasks.c.results.d[*]).", "$(finally.a.results.b.c)", "$(tasks.a.status)",
		"$(tasks.a.results.b.c.d)", "$(tasks..results.)", "$($(tasks.a.results.b))", "$(tasks.a.results.b[1*])", "$(tasks.a.results.b[])",
		"$(params.a)", "$(tasks.a.results.b c)", "$$(tasks.a.results.b)", "$(tasks.a.results.b[1]x)", "$(tasks.a.results[0].b)", "$(context.x.results.y)",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4096 {
			return
		}
		var got, want []string
		references(text, func(task string) { got = append(got, task) })
		expressions, _ := v1.Param{Value: *v1.NewStructuredValues(text)}.GetVarSubstitutionExpressions()
		for _, ref := range v1.NewResultRefs(expressions) {
			want = append(want, ref.PipelineTask)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-tekton +assay):\n%s", text, diff)
		}
	})
}

// TestTasksUsed: we look where Tekton looks. Objects have one key here, because
// Tekton's answer for more is in random order.
func TestTasksUsed(t *testing.T) {
	text := rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom([]string{
			"", "plain", "$(tasks.a.results.x)", "$(tasks.b.results.y[0]) and $(tasks.c.results.z.key)", "$(params.p)", "$(tasks.d.status)",
		}).Draw(t, "text")
	})
	value := rapid.Custom(func(t *rapid.T) v1.ParamValue {
		switch rapid.IntRange(0, 3).Draw(t, "type") {
		case 0:
			return v1.ParamValue{Type: v1.ParamTypeArray, ArrayVal: rapid.SliceOfN(text, 0, 3).Draw(t, "array")}
		case 1:
			return v1.ParamValue{Type: v1.ParamTypeObject, ObjectVal: map[string]string{"k": text.Draw(t, "object")}}
		case 2:
			return v1.ParamValue{StringVal: text.Draw(t, "untyped")}
		}
		return *v1.NewStructuredValues(text.Draw(t, "string"))
	})
	params := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) v1.Param { return v1.Param{Name: "p", Value: value.Draw(t, "value")} }), 0, 3)
	env := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) corev1.EnvVar {
		e := corev1.EnvVar{Name: "E", Value: text.Draw(t, "env")}
		if rapid.Bool().Draw(t, "from") {
			e.ValueFrom = &corev1.EnvVarSource{
				SecretKeyRef:    &corev1.SecretKeySelector{Key: text.Draw(t, "key"), LocalObjectReference: corev1.LocalObjectReference{Name: text.Draw(t, "secret")}},
				ConfigMapKeyRef: &corev1.ConfigMapKeySelector{Key: text.Draw(t, "key"), LocalObjectReference: corev1.LocalObjectReference{Name: text.Draw(t, "map")}},
			}
		}
		return e
	}), 0, 2)
	rapid.Check(t, func(t *rapid.T) {
		pt := &v1.PipelineTask{Name: "t", Params: params.Draw(t, "params")}
		if rapid.Bool().Draw(t, "matrix") {
			pt.Matrix = &v1.Matrix{Params: params.Draw(t, "matrix"), Include: v1.IncludeParamsList{{Params: params.Draw(t, "include")}}}
		}
		if rapid.Bool().Draw(t, "when") {
			pt.When = v1.WhenExpressions{{Input: text.Draw(t, "input"), CEL: text.Draw(t, "cel"), Values: []string{text.Draw(t, "value")}}}
		}
		if rapid.Bool().Draw(t, "spec") {
			pt.TaskSpec = &v1.EmbeddedTask{TaskSpec: v1.TaskSpec{
				Steps: []v1.Step{{
					Name: text.Draw(t, "name"), Image: text.Draw(t, "image"), Script: text.Draw(t, "script"), WorkingDir: text.Draw(t, "dir"),
					ImagePullPolicy: corev1.PullPolicy(text.Draw(t, "pull")),
					Command:         []string{text.Draw(t, "command")}, Args: []string{text.Draw(t, "arg")}, Env: env.Draw(t, "env"),
				}},
				Sidecars: []v1.Sidecar{{
					Name: text.Draw(t, "name"), Image: text.Draw(t, "image"), Script: text.Draw(t, "script"), WorkingDir: text.Draw(t, "dir"),
					ImagePullPolicy: corev1.PullPolicy(text.Draw(t, "pull")),
					Command:         []string{text.Draw(t, "command")}, Args: []string{text.Draw(t, "arg")}, Env: env.Draw(t, "env"),
				}},
			}}
		}
		var got, want []string
		tasksUsed(pt, func(task string) { got = append(got, task) })
		for _, ref := range v1.PipelineTaskResultRefs(pt.DeepCopy()) {
			want = append(want, ref.PipelineTask)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-tekton +assay):\n%s", diff)
		}
	})
}

// TestTasksUsedStable: the same task gives the same order every time, and what
// lies behind its parameters in memory stays as it is.
func TestTasksUsedStable(t *testing.T) {
	object := map[string]string{}
	for _, k := range []string{"a", "b", "c", "d", "e", "f"} {
		object[k] = "$(tasks." + k + ".results.x)"
	}
	behind := v1.Params{{Name: "own"}, {Name: "behind"}}
	pt := &v1.PipelineTask{
		Params: behind[:1],
		Matrix: &v1.Matrix{Params: v1.Params{{Name: "o", Value: v1.ParamValue{Type: v1.ParamTypeObject, ObjectVal: object}}}},
	}
	for range 50 {
		got := order(stage{task: pt}, "")
		if !slices.Equal(got, []string{"a", "b", "c", "d", "e", "f"}) {
			t.Fatalf("order %q", got)
		}
	}
	if behind[1].Name != "behind" {
		t.Errorf("wrote %q behind the parameters", behind[1].Name)
	}
}
