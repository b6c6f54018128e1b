// Package hint reads Tekton's type hints: the naming convention by which the
// results (and, for git, the parameters) of a TaskRun or PipelineRun say what
// the run consumed and what it made. The rules are Tekton Chains', kept in this
// one place so that provenance states, and the observer checks, the same list.
//
// A hint is a claim. Nothing here looks at a registry or a repository; a Claim
// says what was said, by whom and in which results, and somebody else finds out
// whether it is true.
//
//	result                                   claim
//	CHAINS-GIT_URL + CHAINS-GIT_COMMIT       input, git (also from params)
//	*ARTIFACT_INPUTS   {uri, digest}         input, object
//	*IMAGE_URL + *IMAGE_DIGEST               output, image
//	IMAGES             a@sha256:…, b@…       output, image
//	*ARTIFACT_URI + *ARTIFACT_DIGEST         output, artifact
//	*ARTIFACT_OUTPUTS  {uri, digest, …}      output, object; flagged
//	                                         isBuildArtifact, an image as well
//
// A star stands for any prefix, the empty one too; no separator is asked for.
// So SOURCE_IMAGE_URL is an image that the run claims to have made, whatever
// its author meant.
//
// Where upstream answers in random order (it ranges over a map), claims come in
// the order in which their first result was declared. What upstream drops with
// a line in its log is returned as Malformed, with the reason.
package hint

import (
	"slices"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
)

// Names and suffixes that make a result a hint.
const (
	GitURL          = "CHAINS-GIT_URL"
	GitCommit       = "CHAINS-GIT_COMMIT"
	Images          = "IMAGES"
	SuffixImageURL  = "IMAGE_URL"
	SuffixImageDig  = "IMAGE_DIGEST"
	SuffixURI       = "ARTIFACT_URI"
	SuffixURIDigest = "ARTIFACT_DIGEST"
	SuffixInputs    = "ARTIFACT_INPUTS"
	SuffixOutputs   = "ARTIFACT_OUTPUTS"
)

// LabelPipelineTask is the label by which a TaskRun names its pipeline task.
const LabelPipelineTask = "tekton.dev/pipelineTask"

// Kind says what sort of thing a claim names.
type Kind string

const (
	Git      Kind = "git"      // a commit in a repository
	Image    Kind = "image"    // an image in a registry
	Artifact Kind = "artifact" // an *ARTIFACT_URI pair
	Object   Kind = "object"   // an *ARTIFACT_INPUTS or *ARTIFACT_OUTPUTS object
)

// Role says which way the thing went.
type Role string

const (
	Input  Role = "input"
	Output Role = "output"
)

// Where says whose results a hint was read from.
type Where struct {
	Kind         string // TaskRun or PipelineRun
	Name         string // of that object
	PipelineTask string // of a TaskRun within a pipeline
	Step         string // whose StepAction wrote the result; empty: the object itself
}

// Claim is one well-formed hint.
type Claim struct {
	Where
	Kind Kind
	Role Role
	// Field is the hint without what varies between its halves: IMAGE for
	// IMAGE_URL and IMAGE_DIGEST, CHAINS-GIT, else the result's name.
	Field string
	// Results are the names of the results (for git: or parameters) it was made of.
	Results []string
	// URI is the thing's name as statements carry it: an image's repository
	// without tag, git+<url>.git, else as written.
	URI string
	// Digest is the thing's digest as statements carry it.
	Digest Digest
	// URL is the repository as it was written; only for git.
	URL string
	// Build is whether an output object says isBuildArtifact. Images made of
	// such an object carry it too.
	Build bool
}

// Value is the claim in one string: url@commit for git, uri@algorithm:hex else.
func (c Claim) Value() string {
	if c.Kind == Git {
		return c.URL + "@" + c.Digest.Hex
	}
	return c.URI + "@" + c.Digest.String()
}

// Malformed is a result that looks like a hint and makes no claim, or makes
// one that cannot be meant.
type Malformed struct {
	Where
	Result string // name of the result or parameter
	Reason string
	Remedy string // what its author should do
	Effect Effect
}

// Hints are the hints of one set of results. Each list has upstream's order.
type Hints struct {
	// Git is the commit, if one is named; at most one per set of results.
	Git []Claim
	// Inputs are the *ARTIFACT_INPUTS objects.
	Inputs []Claim
	// Images are pairs, then IMAGES, then build artifacts that are image
	// references. The same image may come more than once.
	Images []Claim
	// Artifacts are the *ARTIFACT_URI pairs.
	Artifacts []Claim
	// Outputs are the *ARTIFACT_OUTPUTS objects.
	Outputs []Claim
	// Malformed lists what was not understood, the first hundred at most.
	Malformed []Malformed
}

// Claims is all of h in one list: inputs, then outputs.
func (h Hints) Claims() []Claim {
	out := make([]Claim, 0, len(h.Git)+len(h.Inputs)+len(h.Images)+len(h.Artifacts)+len(h.Outputs))
	for _, list := range [][]Claim{h.Git, h.Inputs, h.Images, h.Artifacts, h.Outputs} {
		out = append(out, list...)
	}
	return out
}

// OfTaskRun reads the TaskRun's own results and git parameters, without what
// its steps' StepActions wrote; see OfSteps.
func OfTaskRun(tr *v1.TaskRun) Hints {
	w := Where{Kind: "TaskRun", Name: tr.Name, PipelineTask: tr.Labels[LabelPipelineTask]}
	results := taskResults(tr.Status.Results)
	h := read(w, results)

	g := gitHint{}
	if spec := tr.Status.TaskSpec; spec != nil {
		g.defaults(spec.Params)
	}
	g.params(tr.Spec.Params)
	g.results(results)
	g.claim(&h, w)
	return h
}

// OfSteps reads what the steps' StepActions wrote, one Hints per step of
// status.steps, or nil if no step wrote anything. The halves of a pair must come
// from the same step.
func OfSteps(tr *v1.TaskRun) []Hints {
	if !slices.ContainsFunc(tr.Status.Steps, func(s v1.StepState) bool { return len(s.Results) > 0 }) {
		return nil
	}
	out := make([]Hints, len(tr.Status.Steps))
	for i := range tr.Status.Steps {
		step := &tr.Status.Steps[i]
		if len(step.Results) == 0 {
			continue
		}
		w := Where{Kind: "TaskRun", Name: tr.Name, PipelineTask: tr.Labels[LabelPipelineTask], Step: step.Name}
		results := taskResults(step.Results)
		out[i] = read(w, results)
		g := gitHint{}
		g.results(results)
		g.claim(&out[i], w)
	}
	return out
}

// OfPipelineRun reads the PipelineRun's own results and git parameters.
func OfPipelineRun(pr *v1.PipelineRun) Hints {
	w := Where{Kind: "PipelineRun", Name: pr.Name}
	results := pipelineResults(pr)
	h := read(w, results)

	g := gitHint{needURL: true}
	if spec := pr.Status.PipelineSpec; spec != nil {
		g.defaults(spec.Params)
	}
	g.params(pr.Spec.Params)
	g.results(results)
	g.claim(&h, w)
	return h
}

// All reads everything that a run says: pr's own hints (pr may be nil), then
// each TaskRun's own and its steps', in the order given.
func All(pr *v1.PipelineRun, taskRuns ...*v1.TaskRun) ([]Claim, []Malformed) {
	var claims []Claim
	var malformed []Malformed
	add := func(h Hints) {
		claims = append(claims, h.Claims()...)
		malformed = append(malformed, h.Malformed...)
	}
	if pr != nil {
		add(OfPipelineRun(pr))
	}
	for _, tr := range taskRuns {
		add(OfTaskRun(tr))
		for _, h := range OfSteps(tr) {
			add(h)
		}
	}
	return claims, malformed
}

// result is what TaskRun, PipelineRun and step results have in common.
type result struct {
	name  string
	value *v1.ParamValue
}

func taskResults(in []v1.TaskRunResult) []result {
	out := make([]result, len(in))
	for i := range in {
		out[i] = result{in[i].Name, &in[i].Value}
	}
	return out
}

func pipelineResults(pr *v1.PipelineRun) []result {
	out := make([]result, len(pr.Status.Results))
	for i := range pr.Status.Results {
		out[i] = result{pr.Status.Results[i].Name, &pr.Status.Results[i].Value}
	}
	return out
}

// read applies every rule but git's, which wants parameters as well.
func read(w Where, results []result) Hints {
	h := Hints{}
	if !anyHint(results) {
		return h
	}
	r := reader{w: w, h: &h}
	r.imagePairs(results)
	r.imageLists(results)
	r.artifactPairs(results)
	r.objects(results)
	return h
}

// anyHint saves the common case, a task without hints, all further work.
func anyHint(results []result) bool {
	for _, r := range results {
		if strings.Contains(r.name, "ARTIFACT_") || strings.Contains(r.name, "IMAGE") {
			return true
		}
	}
	return false
}

// Bounds on what is reported of one set of results: a stranger's IMAGES can
// have a bad item every other byte.
const (
	maxReason    = 300 // bytes of one Malformed.Reason
	maxMalformed = 100
)

// reader collects the hints of one set of results.
type reader struct {
	w Where
	h *Hints
}

// malformed reports a hint that makes no claim, misread one that makes a claim
// all the same.
func (r *reader) malformed(result, reason, remedy string) { r.fault(Dropped, result, reason, remedy) }
func (r *reader) misread(result, reason, remedy string)   { r.fault(Misread, result, reason, remedy) }

func (r *reader) fault(effect Effect, result, reason, remedy string) {
	switch n := len(r.h.Malformed); {
	case n == maxMalformed:
		return
	case n == maxMalformed-1:
		reason, remedy = "is not the last fault; further ones are not listed", "mend those that are listed first"
	}
	r.h.Malformed = append(r.h.Malformed, Malformed{Where: r.w, Result: result, Reason: bounded(reason), Remedy: remedy, Effect: effect})
}

// bounded shortens what quotes values, which strangers wrote and of any size.
func bounded(s string) string {
	if len(s) > maxReason {
		return strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return s
}
