package hint_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"pgregory.net/rapid"

	"assay.dev/assay/hint"
)

var (
	hexA   = strings.Repeat("a", 64)
	hexB   = strings.Repeat("b", 64)
	commit = strings.Repeat("c", 40)
)

func str(name, value string) v1.TaskRunResult {
	return v1.TaskRunResult{Name: name, Value: *v1.NewStructuredValues(value)}
}

func obj(name string, pairs ...string) v1.TaskRunResult {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return v1.TaskRunResult{Name: name, Value: v1.ParamValue{Type: v1.ParamTypeObject, ObjectVal: m}}
}

func list(name string, items ...string) v1.TaskRunResult {
	return v1.TaskRunResult{Name: name, Value: v1.ParamValue{Type: v1.ParamTypeArray, ArrayVal: items}}
}

func run(results ...v1.TaskRunResult) *v1.TaskRun {
	tr := &v1.TaskRun{}
	tr.Name = "build"
	tr.Status.Results = results
	return tr
}

// lines is a short form of claims: kind field value.
func lines(claims []hint.Claim) []string {
	var out []string
	for _, c := range claims {
		out = append(out, string(c.Kind)+" "+c.Field+" "+c.Value())
	}
	return out
}

func reasons(malformed []hint.Malformed) []string {
	var out []string
	for _, m := range malformed {
		out = append(out, m.Result+": "+m.Reason)
	}
	return out
}

func TestOfTaskRun(t *testing.T) {
	tests := []struct {
		name    string
		results []v1.TaskRunResult
		want    []string
		// wantMalformed are parts of "result: reason", in order.
		wantMalformed []string
	}{
		{name: "none", results: []v1.TaskRunResult{str("REPORT", "ok"), str("IMAGE_REF", "r.io/o/a@sha256:"+hexA)}},
		{
			name: "pairs in the order of their first half",
			results: []v1.TaskRunResult{
				str("b-IMAGE_DIGEST", "sha256:"+hexB), str("IMAGE_URL", " r.io/o/a:1\n"), str("b-IMAGE_URL", "bb"), str("IMAGE_DIGEST", "sha256:"+hexA),
			},
			want: []string{"image b-IMAGE index.docker.io/library/bb@sha256:" + hexB, "image IMAGE r.io/o/a@sha256:" + hexA},
		},
		{
			name: "half pairs, blanks and wrong types",
			results: []v1.TaskRunResult{
				str("a-IMAGE_URL", "r.io/o/a"), str("b-IMAGE_DIGEST", "sha256:"+hexA), str("c-IMAGE_URL", " "), list("d-IMAGE_URL", "r.io/o/d"),
			},
			wantMalformed: []string{"c-IMAGE_URL: is empty", "d-IMAGE_URL: is an array", "a-IMAGE_URL: has no a-IMAGE_DIGEST", "b-IMAGE_DIGEST: has no b-IMAGE_URL"},
		},
		{
			name: "digests no image has",
			results: []v1.TaskRunResult{
				str("a-IMAGE_URL", "r.io/o/a"), str("a-IMAGE_DIGEST", "sha256:abc"),
				str("b-IMAGE_URL", "r.io/o/b"), str("b-IMAGE_DIGEST", "sha512:"+hexA+hexA),
				str("c-IMAGE_URL", "r.io/o/c"), str("c-IMAGE_DIGEST", "sha256:"+strings.ToUpper(hexA)),
				str("d-IMAGE_URL", "r.io/o/d@sha256:"+hexA), str("d-IMAGE_DIGEST", "sha256:"+hexA),
			},
			wantMalformed: []string{"a-IMAGE_URL: ", "b-IMAGE_URL: ", "c-IMAGE_URL: ", "d-IMAGE_URL: "},
		},
		{
			name: "repositories of one character",
			results: []v1.TaskRunResult{
				str("IMAGES", "x@sha256:"+hexA+",r.io/x@sha256:"+hexA+",library/x@sha256:"+hexA),
			},
			want:          []string{"image IMAGES index.docker.io/library/x@sha256:" + hexA},
			wantMalformed: []string{"IMAGES: has an item", "IMAGES: has an item"},
		},
		{
			name:          "a name given twice",
			results:       []v1.TaskRunResult{str("IMAGE_URL", "r.io/o/a"), str("IMAGE_URL", "r.io/o/b"), str("IMAGE_DIGEST", "sha256:"+hexA)},
			want:          []string{"image IMAGE r.io/o/b@sha256:" + hexA},
			wantMalformed: []string{"IMAGE_URL: is there twice"},
		},
		{
			name:          "IMAGES keeps the good items",
			results:       []v1.TaskRunResult{str("IMAGES", "r.io/o/a@sha256:"+hexA+", bad,\n\nr.io/o/b:1@sha256:"+hexB+",")},
			want:          []string{"image IMAGES r.io/o/a@sha256:" + hexA, "image IMAGES r.io/o/b@sha256:" + hexB},
			wantMalformed: []string{"IMAGES: has an item"},
		},
		{name: "IMAGES is no list", results: []v1.TaskRunResult{list("IMAGES", "r.io/o/a@sha256:"+hexA)}, wantMalformed: []string{"IMAGES: is an array"}},
		{
			name: "artifact pairs take any known digest, raw",
			results: []v1.TaskRunResult{
				str("jar-ARTIFACT_URI", "pkg:maven/a"), str("jar-ARTIFACT_DIGEST", "SHA1:"+commit),
				str("x-ARTIFACT_URI", "x"), str("x-ARTIFACT_DIGEST", "md5:00"),
			},
			want:          []string{"artifact jar-ARTIFACT pkg:maven/a@SHA1:" + commit},
			wantMalformed: []string{"x-ARTIFACT_DIGEST: "},
		},
		{
			name: "objects; a build artifact that is an image is one too",
			results: []v1.TaskRunResult{
				obj("in-ARTIFACT_INPUTS", "uri", "git+x", "digest", " SHA1 :"+commit),
				obj("a-ARTIFACT_OUTPUTS", "uri", "r.io/o/a:1", "digest", "sha256:"+hexA, "isBuildArtifact", "true"),
				obj("b-ARTIFACT_OUTPUTS", "uri", "r.io/o/b", "digest", "sha256:"+hexB, "isBuildArtifact", "True"),
				obj("c-ARTIFACT_OUTPUTS", "uri", "pkg:npm/c@1", "digest", "sha256:"+hexB, "isBuildArtifact", "true"),
			},
			want: []string{
				"object in-ARTIFACT_INPUTS git+x@sha1:" + commit,
				"image a-ARTIFACT_OUTPUTS r.io/o/a@sha256:" + hexA,
				"object a-ARTIFACT_OUTPUTS r.io/o/a:1@sha256:" + hexA,
				"object b-ARTIFACT_OUTPUTS r.io/o/b@sha256:" + hexB,
				"object c-ARTIFACT_OUTPUTS pkg:npm/c@1@sha256:" + hexB,
			},
		},
		{
			name: "objects that are none",
			results: []v1.TaskRunResult{
				str("a-ARTIFACT_OUTPUTS", `{"uri":"x"}`), obj("b-ARTIFACT_OUTPUTS", "uri", "x"), obj("c-ARTIFACT_INPUTS", "uri", "x", "digest", "x"),
			},
			wantMalformed: []string{"a-ARTIFACT_OUTPUTS: is no object", "b-ARTIFACT_OUTPUTS: lacks", "c-ARTIFACT_INPUTS: parsing digest"},
		},
		{
			name:    "git",
			results: []v1.TaskRunResult{str("CHAINS-GIT_URL", "https://g.io/a"), str("CHAINS-GIT_COMMIT", commit)},
			want:    []string{"git CHAINS-GIT https://g.io/a@" + commit},
		},
		{
			name:          "git commit that is a branch is claimed and called out",
			results:       []v1.TaskRunResult{str("CHAINS-GIT_URL", "https://g.io/a"), str("CHAINS-GIT_COMMIT", "main")},
			want:          []string{"git CHAINS-GIT https://g.io/a@main"},
			wantMalformed: []string{"CHAINS-GIT_COMMIT: is no SHA-1"},
		},
		{
			name:          "git commit without url is claimed and called out",
			results:       []v1.TaskRunResult{str("CHAINS-GIT_COMMIT", commit)},
			want:          []string{"git CHAINS-GIT @" + commit},
			wantMalformed: []string{"CHAINS-GIT_COMMIT: names a commit without a repository"},
		},
		{
			name:          "git url without commit",
			results:       []v1.TaskRunResult{str("CHAINS-GIT_URL", "https://g.io/a")},
			wantMalformed: []string{"CHAINS-GIT_URL: names a repository without"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			claims, malformed := hint.All(nil, run(tt.results...))
			if diff := cmp.Diff(tt.want, lines(claims)); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
			got := reasons(malformed)
			if len(got) != len(tt.wantMalformed) {
				t.Fatalf("malformed %q, want %q", got, tt.wantMalformed)
			}
			for i := range got {
				if !strings.HasPrefix(got[i], tt.wantMalformed[i]) {
					t.Errorf("malformed %q, want %q", got[i], tt.wantMalformed[i])
				}
			}
		})
	}
}

// TestGitPrecedence: default < parameter < result, url and commit apart.
func TestGitPrecedence(t *testing.T) {
	spec := func(name, value string) v1.ParamSpec {
		return v1.ParamSpec{Name: name, Default: v1.NewStructuredValues(value)}
	}
	tr := run(str("CHAINS-GIT_COMMIT", "result"))
	tr.Status.TaskSpec = &v1.TaskSpec{Params: v1.ParamSpecs{spec("CHAINS-GIT_URL", "default"), spec("CHAINS-GIT_COMMIT", "default")}}
	tr.Spec.Params = v1.Params{{Name: "CHAINS-GIT_URL", Value: *v1.NewStructuredValues("param")}}
	if diff := cmp.Diff([]string{"git CHAINS-GIT param@result"}, lines(hint.OfTaskRun(tr).Git)); diff != "" {
		t.Errorf("TaskRun (-want +got):\n%s", diff)
	}

	pr := &v1.PipelineRun{}
	pr.Status.PipelineSpec = &v1.PipelineSpec{Params: v1.ParamSpecs{spec("CHAINS-GIT_URL", "default"), spec("CHAINS-GIT_COMMIT", "default")}}
	pr.Spec.Params = tr.Spec.Params
	if diff := cmp.Diff([]string{"git CHAINS-GIT param@default"}, lines(hint.OfPipelineRun(pr).Git)); diff != "" {
		t.Errorf("PipelineRun (-want +got):\n%s", diff)
	}
	// A PipelineRun's commit without repository is no claim, unlike a TaskRun's.
	pr.Spec.Params = v1.Params{{Name: "CHAINS-GIT_URL", Value: *v1.NewStructuredValues("")}}
	if h := hint.OfPipelineRun(pr); len(h.Git) != 0 || len(h.Malformed) == 0 {
		t.Errorf("PipelineRun without url: %v, %v; want no claim and a reason", h.Git, h.Malformed)
	}
}

// TestWhere: each claim says whose it is, and a pair must sit in one step.
func TestWhere(t *testing.T) {
	tr := run(str("IMAGES", "r.io/task@sha256:"+hexA))
	tr.Labels = map[string]string{hint.LabelPipelineTask: "compile"}
	tr.Status.Steps = []v1.StepState{
		{Name: "one", Results: []v1.TaskRunStepResult{str("x-IMAGE_URL", "r.io/o/x")}},
		{Name: "two"},
		{Name: "three", Results: []v1.TaskRunStepResult{str("x-IMAGE_DIGEST", "sha256:"+hexA), str("IMAGES", "r.io/step@sha256:"+hexB)}},
	}
	pr := &v1.PipelineRun{}
	pr.Name = "release"
	pr.Status.Results = []v1.PipelineRunResult{{Name: "IMAGES", Value: *v1.NewStructuredValues("r.io/run@sha256:" + hexA)}}

	claims, malformed := hint.All(pr, tr)
	var got []string
	for _, c := range claims {
		got = append(got, strings.Join([]string{c.Where.Kind, c.Name, c.PipelineTask, c.Step, c.URI, strings.Join(c.Results, "+")}, "|"))
	}
	want := []string{
		"PipelineRun|release|||r.io/run|IMAGES",
		"TaskRun|build|compile||r.io/task|IMAGES",
		"TaskRun|build|compile|three|r.io/step|IMAGES",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if len(malformed) != 2 || malformed[0].Step != "one" || malformed[1].Step != "three" {
		t.Errorf("malformed %+v, want one half in step one, the other in step three", malformed)
	}
}

// TestMalformedBounded: a hostile result must not make a list of its own size.
func TestMalformedBounded(t *testing.T) {
	h := hint.OfTaskRun(run(str("IMAGES", strings.Repeat("x,", 5000)+"r.io/o/a@sha256:"+hexA)))
	if len(h.Images) != 1 || len(h.Malformed) != 100 || !strings.Contains(h.Malformed[99].Reason, "not listed") {
		t.Errorf("%d images, %d malformed; want the good image, 100 and the last one saying so", len(h.Images), len(h.Malformed))
	}
}

func TestGitURI(t *testing.T) {
	for in, want := range map[string]string{
		"":                     "git+.git",
		"https://g.io/a":       "git+https://g.io/a.git",
		"https://g.io/a.git":   "git+https://g.io/a.git",
		"git+https://g.io/a/":  "git+https://g.io/a/.git",
		"git@g.io:a/b":         "git+git@g.io:a/b.git",
		"git+ssh://g.io/a.git": "git+ssh://g.io/a.git",
	} {
		if got := hint.GitURI(in); got != want {
			t.Errorf("GitURI(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestParseDigestStable: what is accepted is canonical after one pass.
func TestParseDigestStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.StringMatching(` ?([sS][hH][aA](1|256|384|512)|md5) ?:( ?[0-9a-fA-F]{40}| ?[0-9a-f]{64}|[0-9a-f]{96}|[0-9a-f]{128}|[0-9a-f]{3}) ?(:x)?`).Draw(t, "s")
		d, err := hint.ParseDigest(s)
		if err != nil {
			return
		}
		again, err := hint.ParseDigest(d.String())
		if err != nil || again != d {
			t.Fatalf("%q → %v → %v, %v", s, d, again, err)
		}
	})
}

// FuzzHints: no result, however odd, makes more of itself than a claim whose
// digest is well-formed, and reasons stay short.
func FuzzHints(f *testing.F) {
	f.Add("IMAGE_URL", "r.io/o/a:1", "IMAGE_DIGEST", "sha256:"+hexA)
	f.Add("IMAGES", "r.io/o/a@sha256:"+hexA+",\n", "CHAINS-GIT_COMMIT", commit)
	f.Add("x-ARTIFACT_URI", "https://x", "x-ARTIFACT_DIGEST", "Sha1: "+commit)
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		if len(name1)+len(value1)+len(name2)+len(value2) > 16<<10 {
			t.Skip("larger than a mutation needs to be")
		}
		object := obj(name1, "uri", value1, "digest", value2, "isBuildArtifact", "true")
		claims, malformed := hint.All(nil, run(str(name1, value1), str(name2, value2), object))
		for _, c := range claims {
			if c.Kind == hint.Git {
				continue
			}
			if _, err := hint.ParseDigest(c.Digest.String()); err != nil || c.URI == "" {
				t.Errorf("claim %+v: %v", c, err)
			}
		}
		for _, m := range malformed {
			if len(m.Reason) > 400 {
				t.Errorf("reason of %d bytes", len(m.Reason))
			}
		}
	})
}
