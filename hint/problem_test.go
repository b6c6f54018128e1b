package hint_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"pgregory.net/rapid"

	"assay.dev/assay/hint"
)

// TestProblems has one case for each corner of the convention.
func TestProblems(t *testing.T) {
	sum := "sha256:" + hexA
	tests := []struct {
		name    string
		results []v1.TaskRunResult
		params  v1.Params
		want    []string // effect hint: part of what
	}{
		{name: "sound hints", results: []v1.TaskRunResult{
			str("IMAGE_URL", "r.io/o/a"), str("IMAGE_DIGEST", sum), str("CHAINS-GIT_URL", "https://g.io/a.git"), str("CHAINS-GIT_COMMIT", commit),
			obj("x-ARTIFACT_OUTPUTS", "uri", "pkg:npm/x@1", "digest", sum, "isBuildArtifact", "false"), str("IMAGES", "r.io/o/a@"+sum+",\nr.io/o/b@"+sum),
		}},
		{name: "url alone", results: []v1.TaskRunResult{str("IMAGE_URL", "r.io/o/a")}, want: []string{"dropped IMAGE_URL: has no IMAGE_DIGEST"}},
		{name: "digest alone", results: []v1.TaskRunResult{str("a_IMAGE_DIGEST", sum)}, want: []string{"dropped a_IMAGE_DIGEST: has no a_IMAGE_URL"}},
		{name: "artifact alone", results: []v1.TaskRunResult{str("ARTIFACT_URI", "x")}, want: []string{"dropped ARTIFACT_URI: has no ARTIFACT_DIGEST"}},
		{name: "blank", results: []v1.TaskRunResult{str("IMAGE_URL", " \n"), str("IMAGE_DIGEST", sum)}, want: []string{"dropped IMAGE_URL: is empty", "dropped IMAGE_DIGEST: has no"}},
		{name: "array for a string", results: []v1.TaskRunResult{list("IMAGE_URL", "r.io/o/a"), str("IMAGE_DIGEST", sum)}, want: []string{"dropped IMAGE_URL: is an array", "dropped IMAGE_DIGEST: has no"}},
		{name: "object for a string", results: []v1.TaskRunResult{obj("IMAGES", "a", "b")}, want: []string{"dropped IMAGES: is an object"}},
		{name: "short digest", results: []v1.TaskRunResult{str("IMAGE_URL", "r.io/o/a"), str("IMAGE_DIGEST", "sha256:abc")}, want: []string{"dropped IMAGE_URL: is with IMAGE_DIGEST no image"}},
		{name: "upper-case digest", results: []v1.TaskRunResult{str("IMAGE_URL", "r.io/o/a"), str("IMAGE_DIGEST", strings.ToUpper(sum))}, want: []string{"dropped IMAGE_URL: is with IMAGE_DIGEST no image"}},
		{name: "no reference", results: []v1.TaskRunResult{str("IMAGE_URL", "R.io/UPPER case"), str("IMAGE_DIGEST", sum)}, want: []string{"dropped IMAGE_URL: is with IMAGE_DIGEST no image"}},
		{name: "scheme before an image", results: []v1.TaskRunResult{str("IMAGE_URL", "https://r.io/o/a"), str("IMAGE_DIGEST", sum)}, want: []string{`misread IMAGE_URL: begins with https://`}},
		{name: "source image", results: []v1.TaskRunResult{str("SOURCE_IMAGE_URL", "r.io/o/a"), str("SOURCE_IMAGE_DIGEST", sum)}, want: []string{"misread SOURCE_IMAGE_URL: ends in IMAGE_URL"}},
		{name: "base image", results: []v1.TaskRunResult{str("MY_BASE_IMAGE_DIGEST", sum), str("MY_BASE_IMAGE_URL", "r.io/o/a")}, want: []string{"misread MY_BASE_IMAGE_URL: ends in IMAGE_URL"}},
		{name: "twice", results: []v1.TaskRunResult{str("IMAGE_URL", "r.io/o/a"), str("IMAGE_URL", "r.io/o/b"), str("IMAGE_DIGEST", sum)}, want: []string{"misread IMAGE_URL: is there twice"}},
		{name: "items that are no images", results: []v1.TaskRunResult{str("IMAGES", "r.io/o/a,r.io/o/b@"+sum+" r.io/o/c@"+sum)}, want: []string{"dropped IMAGES: has an item", "dropped IMAGES: has an item"}},
		{name: "unknown algorithm", results: []v1.TaskRunResult{str("ARTIFACT_URI", "x"), str("ARTIFACT_DIGEST", "md5:00")}, want: []string{"dropped ARTIFACT_DIGEST: parsing digest"}},
		{name: "algorithm in capitals", results: []v1.TaskRunResult{str("ARTIFACT_URI", "x"), str("ARTIFACT_DIGEST", "SHA256:"+hexA)}, want: []string{`misread ARTIFACT_DIGEST: has a digest that is copied`}},
		{name: "blank in the algorithm", results: []v1.TaskRunResult{obj("ARTIFACT_OUTPUTS", "uri", "x", "digest", "sha256 :"+hexA)}, want: []string{`misread ARTIFACT_OUTPUTS: has a digest that is copied`}},
		{name: "string for an object", results: []v1.TaskRunResult{str("ARTIFACT_OUTPUTS", `{"uri":"x"}`)}, want: []string{"dropped ARTIFACT_OUTPUTS: is no object"}},
		{name: "array for an object", results: []v1.TaskRunResult{list("x_ARTIFACT_INPUTS", "x")}, want: []string{"dropped x_ARTIFACT_INPUTS: is no object"}},
		{name: "half an object", results: []v1.TaskRunResult{obj("ARTIFACT_INPUTS", "uri", "x")}, want: []string{"dropped ARTIFACT_INPUTS: lacks uri or digest"}},
		{name: "bad digest in an object", results: []v1.TaskRunResult{obj("ARTIFACT_INPUTS", "uri", "x", "digest", "latest")}, want: []string{"dropped ARTIFACT_INPUTS: parsing digest"}},
		{name: "flag in capitals", results: []v1.TaskRunResult{obj("ARTIFACT_OUTPUTS", "uri", "r.io/a/b", "digest", sum, "isBuildArtifact", "True")}, want: []string{`misread ARTIFACT_OUTPUTS: has isBuildArtifact "True"`}},
		{name: "branch for a commit", results: []v1.TaskRunResult{str("CHAINS-GIT_URL", "https://g.io/a"), str("CHAINS-GIT_COMMIT", "main")}, want: []string{"misread CHAINS-GIT_COMMIT: is no SHA-1"}},
		{name: "SHA-256 commit", results: []v1.TaskRunResult{str("CHAINS-GIT_URL", "https://g.io/a"), str("CHAINS-GIT_COMMIT", hexA)}, want: []string{"misread CHAINS-GIT_COMMIT: is no SHA-1"}},
		{name: "commit without repository", results: []v1.TaskRunResult{str("CHAINS-GIT_COMMIT", commit)}, want: []string{"misread CHAINS-GIT_COMMIT: names a commit without"}},
		{name: "repository without commit", results: []v1.TaskRunResult{str("CHAINS-GIT_URL", "https://g.io/a")}, want: []string{"dropped CHAINS-GIT_URL: names a repository without"}},
		{name: "empty result over a parameter", results: []v1.TaskRunResult{str("CHAINS-GIT_COMMIT", "")}, params: v1.Params{{Name: "CHAINS-GIT_URL", Value: *v1.NewStructuredValues("https://g.io/a")}}, want: []string{"dropped CHAINS-GIT_URL: names a repository without"}},
		{name: "line end behind the repository", results: []v1.TaskRunResult{str("CHAINS-GIT_URL", "https://g.io/a\n"), str("CHAINS-GIT_COMMIT", commit)}, want: []string{"misread CHAINS-GIT_URL: is taken as it is"}},
		{name: "slash behind the repository", results: []v1.TaskRunResult{str("CHAINS-GIT_URL", "https://g.io/a/"), str("CHAINS-GIT_COMMIT", commit)}, want: []string{"misread CHAINS-GIT_URL: is taken as it is"}},
		{name: "git hint with a prefix", results: []v1.TaskRunResult{str("lib-CHAINS-GIT_URL", "https://g.io/a")}, want: []string{"ignored lib-CHAINS-GIT_URL: is not read"}},
		{
			name:   "parameters that look like hints",
			params: v1.Params{{Name: "IMAGES"}, {Name: "x_IMAGE_URL"}, {Name: "ARTIFACT_INPUTS"}, {Name: "image-url"}},
			want:   []string{"ignored IMAGES: is a parameter", "ignored x_IMAGE_URL: is a parameter", "ignored ARTIFACT_INPUTS: is a parameter"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tr := run(tt.results...)
			tr.Spec.Params = tt.params
			got := hint.Problems(nil, tr)
			if len(got) != len(tt.want) {
				t.Fatalf("%d problems %v, want %q", len(got), got, tt.want)
			}
			for i, p := range got {
				if line := string(p.Effect) + " " + p.Hint + ": " + p.What; !strings.HasPrefix(line, tt.want[i]) {
					t.Errorf("problem %q, want %q", line, tt.want[i])
				}
				if p.Remedy == "" || p.Name != "build" || p.Where.Kind != "TaskRun" {
					t.Errorf("problem %+v lacks its remedy or place", p)
				}
			}
			if diff := cmp.Diff(got, hint.Problems(nil, tr)); diff != "" {
				t.Errorf("not the same twice:\n%s", diff)
			}
		})
	}
}

// TestProblemsPlaces: a problem says whose hint it is, down to the step.
func TestProblemsPlaces(t *testing.T) {
	tr := run(str("IMAGE_URL", "r.io/o/a"))
	tr.Labels = map[string]string{hint.LabelPipelineTask: "compile"}
	tr.Status.Steps = []v1.StepState{{Name: "one"}, {Name: "two", Results: []v1.TaskRunStepResult{str("IMAGE_DIGEST", "sha256:"+hexA)}}}
	pr := &v1.PipelineRun{}
	pr.Name = "release"
	pr.Status.Results = []v1.PipelineRunResult{{Name: "IMAGES", Value: *v1.NewStructuredValues("x")}}
	var got []string
	for _, p := range hint.Problems(pr, tr) {
		line, _, _ := strings.Cut(p.String(), " has")
		got = append(got, line+" "+p.PipelineTask)
	}
	want := []string{"PipelineRun release: IMAGES ", "TaskRun build: IMAGE_URL compile", "TaskRun build, step two: IMAGE_DIGEST compile"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestProblemsNone: without a name that looks like a hint there is nothing to
// complain about, whatever the values are.
func TestProblemsNone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := run()
		for range rapid.IntRange(0, 8).Draw(t, "n") {
			name := rapid.StringMatching(`[a-z]{1,5}([-_.](url|digest|Image|REF|COMMIT|URI))?`).Draw(t, "name")
			value := rapid.SampledFrom([]string{"", " ", "sha256:x", "https://g.io/a/", "r.io/o/a@sha256:" + hexA, "{}"}).Draw(t, "value")
			tr.Status.Results = append(tr.Status.Results, rapid.SampledFrom([]v1.TaskRunResult{str(name, value), list(name, value), obj(name, "uri", value)}).Draw(t, "type"))
			tr.Spec.Params = append(tr.Spec.Params, v1.Param{Name: name, Value: *v1.NewStructuredValues(value)})
		}
		tr.Status.Steps = []v1.StepState{{Name: "s", Results: tr.Status.Results}}
		if got := hint.Problems(nil, tr); len(got) > 0 {
			t.Fatalf("problems without hints: %v", got)
		}
	})
}

// TestProblemsBounded: a hostile result must not make a list, or a line, of its
// own size.
func TestProblemsBounded(t *testing.T) {
	var results []v1.TaskRunResult
	for range 5000 {
		results = append(results, str("x-CHAINS-GIT_URL", ""), str(strings.Repeat("y", 50)+"IMAGE_URL", ""))
	}
	results = append(results, str("CHAINS-GIT_URL", strings.Repeat("z", 1<<20)+"/"), str("CHAINS-GIT_COMMIT", commit))
	got := hint.Problems(nil, run(results...))
	if len(got) != 200 {
		t.Errorf("%d problems, want 200", len(got))
	}
	for _, p := range got {
		if len(p.What) > 400 {
			t.Fatalf("%d bytes in %.100s", len(p.What), p.What)
		}
	}
}
