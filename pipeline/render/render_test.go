package render_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"

	"assay.dev/assay/api"
	"assay.dev/assay/pipeline/render"
	"assay.dev/assay/plan"
)

var artifact = "oci:localhost:5055/staging/x@sha256:" + strings.Repeat("a", 64)

func input() render.Input {
	return render.Input{
		Spec: &v1.TaskSpec{
			Params:  v1.ParamSpecs{{Name: "SOURCE_ARTIFACT", Type: v1.ParamTypeString}, {Name: "OTHER", Type: v1.ParamTypeString, Default: v1.NewStructuredValues("")}, {Name: "LIST", Type: v1.ParamTypeArray, Default: v1.NewStructuredValues("a", "b")}},
			Results: []v1.TaskResult{{Name: "OUT_ARTIFACT"}, {Name: "commit"}, {Name: "IMAGE_URL"}, {Name: "IMAGE_DIGEST"}},
			Steps:   []v1.Step{{Name: "s", Image: "alpine", Script: "true"}},
		},
		Name: "t",
		Run:  &v1.TaskRun{Spec: v1.TaskRunSpec{Params: v1.Params{{Name: "SOURCE_ARTIFACT", Value: *v1.NewStructuredValues(artifact)}}}},
	}
}

func TestDeclarations(t *testing.T) {
	in := input()
	in.Annotations = map[string]string{
		api.AnnotationInputs:  "SOURCE_ARTIFACT=/src\n\n  OTHER=/other\n",
		api.AnnotationOutputs: "source OUT_ARTIFACT=/src\ncommit commit=/src/c\nimage IMAGE=/out/image",
		api.AnnotationNetwork: "none",
	}
	got, err := render.Task(in)
	if err != nil {
		t.Fatal(err)
	}
	wantIn := []plan.Input{{Param: "SOURCE_ARTIFACT", URI: artifact, Path: "/src"}, {Param: "OTHER", Path: "/other"}}
	wantOut := []plan.Output{{Kind: plan.OutputSource, Name: "OUT_ARTIFACT", Path: "/src"}, {Kind: plan.OutputCommit, Name: "commit", Path: "/src/c"}, {Kind: plan.OutputImage, Name: "IMAGE", Path: "/out/image"}}
	if d := cmp.Diff(wantIn, got.Inputs); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(wantOut, got.Outputs); d != "" {
		t.Error(d)
	}
	if got.Network != plan.NetworkNone {
		t.Errorf("network %q", got.Network)
	}
}

func TestDeclarationsRefused(t *testing.T) {
	for name, annotation := range map[string][2]string{
		"unknown network":        {api.AnnotationNetwork, "host"},
		"unknown parameter":      {api.AnnotationInputs, "NONE=/src"},
		"array parameter":        {api.AnnotationInputs, "LIST=/src"},
		"relative folder":        {api.AnnotationInputs, "SOURCE_ARTIFACT=src"},
		"folder with dots":       {api.AnnotationInputs, "SOURCE_ARTIFACT=/src/../etc"},
		"root":                   {api.AnnotationInputs, "SOURCE_ARTIFACT=/"},
		"no folder":              {api.AnnotationInputs, "SOURCE_ARTIFACT"},
		"one folder twice":       {api.AnnotationInputs, "SOURCE_ARTIFACT=/src\nOTHER=/src"},
		"unknown kind of output": {api.AnnotationOutputs, "artefact OUT_ARTIFACT=/src"},
		"no kind of output":      {api.AnnotationOutputs, "OUT_ARTIFACT=/src"},
		"undeclared result":      {api.AnnotationOutputs, "artifact NONE=/src"},
		"half an image":          {api.AnnotationOutputs, "image OUT=/src"},
		"output twice":           {api.AnnotationOutputs, "artifact OUT_ARTIFACT=/a\nsource OUT_ARTIFACT=/b"},
	} {
		in := input()
		in.Annotations = map[string]string{annotation[0]: annotation[1]}
		if _, err := render.Task(in); err == nil || !strings.Contains(err.Error(), annotation[0]) {
			t.Errorf("%s: %v", name, err)
		}
	}
	in := input()
	in.Annotations = map[string]string{api.AnnotationInputs: "SOURCE_ARTIFACT=/src"}
	in.Run.Spec.Params[0].Value = *v1.NewStructuredValues("docker://somewhere")
	if _, err := render.Task(in); err == nil {
		t.Error("an artifact of another form was accepted")
	}
}

// The TaskRun's annotations, which a PipelineRun's are copied to, declare
// nothing.
func TestRunAnnotationsDeclareNothing(t *testing.T) {
	in := input()
	in.Run.Annotations = map[string]string{api.AnnotationOutputs: "artifact OUT_ARTIFACT=/etc", api.AnnotationNetwork: "none"}
	got, err := render.Task(in)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Outputs) != 0 || got.Network != plan.NetworkOpen {
		t.Errorf("outputs %v, network %v", got.Outputs, got.Network)
	}
}

// Environment and $(NAME) as a kubelet has them.
func TestEnvironment(t *testing.T) {
	yes := true
	in := input()
	in.Spec.Steps = []v1.Step{{
		Name: "s", Image: "alpine",
		Command: []string{"$(A)", "$(FROM_k)", "$$(A)", "$(NONE)", "$$$(A)", "a$", "$(A", "$x"},
		EnvFrom: []corev1.EnvFromSource{{Prefix: "FROM_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}}},
		Env: []corev1.EnvVar{
			{Name: "A", Value: "1"},
			{Name: "B", Value: "$(A)$(LATER)$(FROM_k)"},
			{Name: "LATER", Value: "x"},
			{Name: "A", Value: "2"},
			{Name: "S", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Key: "k"}}},
			{Name: "T", Value: "<$(S)>"},
			{Name: "GONE", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Key: "k", Optional: &yes}}},
		},
	}}
	in.Sources = render.Sources{
		ConfigMap: func(name string) (map[string][]byte, bool) { return map[string][]byte{"k": []byte("v")}, name == "c" },
		Secret:    func(string) (map[string][]byte, bool) { return map[string][]byte{"k": []byte("hush")}, true },
	}
	got, err := render.Task(in)
	if err != nil {
		t.Fatal(err)
	}
	wantEnv := []plan.Env{{Name: "FROM_k", Value: "v"}, {Name: "A", Value: "2"}, {Name: "B", Value: "1$(LATER)$(FROM_k)"}, {Name: "LATER", Value: "x"}, {Name: "S", Value: "hush", Secret: true}, {Name: "T", Value: "<hush>", Secret: true}}
	if d := cmp.Diff(wantEnv, got.Steps[0].Env); d != "" {
		t.Error(d)
	}
	wantCommand := []string{"2", "v", "$(A)", "$(NONE)", "$2", "a$", "$(A", "$x"}
	if d := cmp.Diff(wantCommand, got.Steps[0].Command); d != "" {
		t.Error(d)
	}
	in.Sources.Secret, in.Sources.Opaque = nil, true
	if got, err = render.Task(in); err != nil {
		t.Fatal(err)
	}
	if e := got.Steps[0].Env; e[4].Value != "«secret:S»" || e[5].Value != "<«secret:S»>" {
		t.Errorf("rendered without the secret: %+v", e)
	}
}

func TestMissing(t *testing.T) {
	env := func(e corev1.EnvVarSource) func(*render.Input) {
		return func(in *render.Input) { in.Spec.Steps[0].Env = []corev1.EnvVar{{Name: "X", ValueFrom: &e}} }
	}
	volume := func(v corev1.VolumeSource) func(*render.Input) {
		return func(in *render.Input) { in.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: v}} }
	}
	for name, spoil := range map[string]func(*render.Input){
		"ConfigMap":   env(corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{Key: "k"}}),
		"Secret":      env(corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{Key: "k"}}),
		"field":       env(corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}),
		"files":       volume(corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}),
		"claim":       volume(corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}),
		"host folder": volume(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}),
		"StepAction":  func(in *render.Input) { in.Spec.Steps[0] = v1.Step{Ref: &v1.Ref{Name: "a"}} },
		"parameter":   func(in *render.Input) { in.Spec.Steps[0].Script = "$(params.none)" },
		"spec":        func(in *render.Input) { in.Spec = nil },
		"run":         func(in *render.Input) { in.Run = nil },
	} {
		in := input()
		spoil(&in)
		if got, err := render.Task(in); err == nil {
			t.Errorf("%s: rendered %+v", name, got)
		}
	}
}
