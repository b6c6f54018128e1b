package provenance_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"assay.dev/assay/hint"
	"assay.dev/assay/provenance"
	"assay.dev/assay/provenance/provenancetest"
)

const (
	hexA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	hexB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

func config(t testing.TB, pairs ...string) provenance.Config {
	t.Helper()
	data := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		data[pairs[i]] = pairs[i+1]
	}
	cfg, err := provenance.ParseConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// taskRun is a finished TaskRun with string results name=value.
func taskRun(name string, results ...string) *v1.TaskRun {
	tr := &v1.TaskRun{ObjectMeta: metav1.ObjectMeta{Name: name}}
	tr.Status.Steps = []v1.StepState{{Name: "run", ImageID: "r.example.com/tool@sha256:" + hexA}}
	for _, r := range results {
		k, v, _ := strings.Cut(r, "=")
		tr.Status.Results = append(tr.Status.Results, v1.TaskRunResult{Name: k, Type: "string", Value: *v1.NewStructuredValues(v)})
	}
	return tr
}

type statement struct {
	Subject []struct {
		Name   string
		Digest map[string]string
	}
	Predicate struct {
		Materials       []struct{ URI string }
		BuildDefinition struct {
			ResolvedDependencies []struct{ Name, URI string }
			ExternalParameters   json.RawMessage
		}
	}
}

func parse(t *testing.T, data []byte) statement {
	t.Helper()
	var s statement
	if err := json.Unmarshal(data, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestKeep(t *testing.T) {
	tr := taskRun("build",
		"good-IMAGE_URL=r.example.com/good", "good-IMAGE_DIGEST=sha256:"+hexA,
		"bad-IMAGE_URL=r.example.com/bad", "bad-IMAGE_DIGEST=sha256:"+hexB,
		"CHAINS-GIT_URL=https://git.example.com/other", "CHAINS-GIT_COMMIT=main")
	in := provenance.OfTaskRun(tr)
	keep := func(names ...string) provenance.Options {
		return provenance.Options{Keep: func(s provenance.Subject) bool {
			if s.Claim.Name != "build" || s.Claim.Kind != hint.Image || s.Name != s.Claim.URI {
				t.Errorf("Keep was asked about %+v", s)
			}
			for _, n := range names {
				if s.Name == n {
					return true
				}
			}
			return false
		}}
	}
	for _, format := range formats {
		data, err := provenance.Statement(in, config(t), format, keep("r.example.com/good"))
		if err != nil {
			t.Fatal(err)
		}
		if s := parse(t, data); len(s.Subject) != 1 || s.Subject[0].Name != "r.example.com/good" {
			t.Errorf("%s: subjects %+v, want only the kept one", format, s.Subject)
		}
		if data, err := provenance.Statement(in, config(t), format, keep()); !errors.Is(err, provenance.ErrNoSubjects) || data != nil {
			t.Errorf("%s: without subjects: %s, %v; want ErrNoSubjects and nothing", format, data, err)
		}
		opts := provenance.Options{KeepInput: func(c hint.Claim) bool { return c.Kind != hint.Git }}
		data, err = provenance.Statement(in, config(t), format, opts)
		if err != nil {
			t.Fatal(err)
		}
		// A result may still be quoted as one; it must not be stated as an input.
		s := parse(t, data)
		for _, m := range s.Predicate.Materials {
			if strings.Contains(m.URI, "git.example.com") {
				t.Errorf("%s: refused commit is a material", format)
			}
		}
		for _, d := range s.Predicate.BuildDefinition.ResolvedDependencies {
			if strings.Contains(d.URI, "git.example.com") {
				t.Errorf("%s: refused commit is a dependency", format)
			}
		}
	}
	images, err := provenance.SimpleSigning(in, keep("r.example.com/bad"))
	if err != nil || len(images) != 1 || images[0].FullKey != "r.example.com/bad@sha256:"+hexB {
		t.Errorf("SimpleSigning = %v, %v; want the kept image", images, err)
	}
}

// TestKeepBeforeMerge: two claims of one name that agree in one digest become
// one subject; refusing one of them must keep its digests out.
func TestKeepBeforeMerge(t *testing.T) {
	tr := taskRun("build", "x-ARTIFACT_URI=u", "x-ARTIFACT_DIGEST=sha256:"+hexA)
	object := v1.ParamValue{Type: v1.ParamTypeObject, ObjectVal: map[string]string{"uri": "u", "digest": "sha256:" + hexB}}
	tr.Status.Results = append(tr.Status.Results, v1.TaskRunResult{Name: "y-ARTIFACT_OUTPUTS", Value: object})
	opts := provenance.Options{Keep: func(s provenance.Subject) bool { return s.Digest.Hex == hexA }}
	data, err := provenance.Statement(provenance.OfTaskRun(tr), config(t), provenance.InToto, opts)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte(`"subject":[{"name":"u","digest":{"sha256":"`+hexA+`"}}]`)) == false {
		t.Errorf("subjects of %s", data)
	}
}

func TestRefusals(t *testing.T) {
	good := provenance.OfTaskRun(taskRun("build"))
	noDigest := taskRun("build")
	noDigest.Status.Steps[0].ImageID = ""
	noValue := taskRun("build")
	noValue.Status.Results = []v1.TaskRunResult{{Name: "x"}}
	custom := func(spec string) provenance.Input {
		pr := &v1.PipelineRun{}
		task := v1.PipelineTask{Name: "c", TaskSpec: &v1.EmbeddedTask{}}
		task.TaskSpec.Spec.Raw = []byte(spec)
		pr.Spec.PipelineSpec = &v1.PipelineSpec{Tasks: []v1.PipelineTask{task}}
		return provenance.Input{PipelineRun: pr}
	}
	tests := []struct {
		name   string
		in     provenance.Input
		cfg    provenance.Config
		format provenance.Format
		want   string
	}{
		{"zero input", provenance.Input{}, config(t), provenance.InToto, "no run given"},
		{"zero config", good, provenance.Config{}, provenance.InToto, "ParseConfig"},
		{"both kinds", provenance.Input{TaskRun: taskRun("a"), PipelineRun: &v1.PipelineRun{}}, config(t), provenance.InToto, "both"},
		{"children of a TaskRun", provenance.Input{TaskRun: taskRun("a"), Children: []*v1.TaskRun{taskRun("b")}}, config(t), provenance.InToto, "only PipelineRuns"},
		{"nil child", provenance.Input{PipelineRun: &v1.PipelineRun{}, Children: []*v1.TaskRun{nil}}, config(t), provenance.InToto, "child 0 is nil"},
		{"unknown format", good, config(t), "slsa/v3", "accepted: in-toto"},
		{"format of images", good, config(t), provenance.Simplesigning, "SimpleSigning"},
		{"step that never started", provenance.OfTaskRun(noDigest), config(t), provenance.InToto, "never started"},
		{"result without value", provenance.OfTaskRun(noValue), config(t), provenance.SLSAv2alpha4, "taskRunResults/build/x"},
		{"number beyond float64", custom(`{"n":1e999}`), config(t), provenance.SLSAv2alpha3, "64-bit float"},
		{"half a surrogate pair", custom(`{"s":"\ud800"}`), config(t), provenance.SLSAv2alpha3, "surrogate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data, err := provenance.Statement(tt.in, tt.cfg, tt.format, provenance.Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
			if data != nil {
				t.Errorf("wrote %s beside an error", data)
			}
		})
	}
}

// TestNumbers: what a 64-bit float cannot tell apart, a statement must not either.
func TestNumbers(t *testing.T) {
	pr := &v1.PipelineRun{}
	task := v1.PipelineTask{Name: "c", TaskSpec: &v1.EmbeddedTask{}}
	task.TaskSpec.Spec.Raw = []byte(`{"a":9007199254740993,"b":1.50,"c":-0,"d":1e-9,"e":123,"f":"9007199254740993 \" 1.50","g":"\ud83d\ude00"}`)
	pr.Spec.PipelineSpec = &v1.PipelineSpec{Tasks: []v1.PipelineTask{task}}
	data, err := provenance.Statement(provenance.Input{PipelineRun: pr}, config(t), provenance.SLSAv2alpha4, provenance.Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"a":9007199254740992,"b":1.5,"c":-0,"d":1e-9,"e":123,"f":"9007199254740993 \" 1.50","g":"\ud83d\ude00"}`
	if !bytes.Contains(data, []byte(want)) {
		t.Errorf("statement lacks %s:\n%s", want, data)
	}
}

// TestUnchanged: stating is reading. Upstream merges digests into the objects.
func TestUnchanged(t *testing.T) {
	in, cfg := loadGolden(t, "testdata/golden/pipelinerun-tekton")
	before := in.PipelineRun.DeepCopy()
	var children []*v1.TaskRun
	for _, c := range in.Children {
		children = append(children, c.DeepCopy())
	}
	for _, format := range formats {
		if _, err := provenance.Statement(in, cfg, format, provenance.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, in.PipelineRun); diff != "" {
		t.Errorf("PipelineRun changed:\n%s", diff)
	}
	if diff := cmp.Diff(children, in.Children); diff != "" {
		t.Errorf("children changed:\n%s", diff)
	}
}

func TestConfigFormat(t *testing.T) {
	cfg := config(t, "artifacts.taskrun.format", "slsa/v2alpha3", "artifacts.pipelinerun.format", "slsa/v2alpha4")
	if got := cfg.Format(provenance.OfTaskRun(taskRun("a"))); got != provenance.SLSAv2alpha3 {
		t.Errorf("TaskRun: %s", got)
	}
	if got := cfg.Format(provenance.Input{PipelineRun: &v1.PipelineRun{}}); got != provenance.SLSAv2alpha4 {
		t.Errorf("PipelineRun: %s", got)
	}
}

// TestConcurrent is for the race detector: observers state runs that they share
// with a cache.
func TestConcurrent(t *testing.T) {
	pr, trs := provenancetest.PipelineRun("team-a", "build-1", provenancetest.SmallScript)
	in, err := provenance.OfPipelineRun(pr, trs)
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range formats {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			cfg := config(t, "artifacts.pipelinerun.enable-deep-inspection", "true", "builddefinition.buildtype", string(provenance.BuildTypeTekton))
			if _, err := provenance.Statement(in, cfg, format, provenance.Options{}); err != nil {
				t.Error(err)
			}
		})
	}
}
