package hint

import (
	"fmt"
	"slices"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
)

// Effect says what becomes of a hint with a fault.
type Effect string

const (
	// Dropped: it claims nothing; no statement mentions it as a hint.
	Dropped Effect = "dropped"
	// Misread: it claims something that its author cannot have meant, and
	// statements say so.
	Misread Effect = "misread"
	// Ignored: it is in a place or under a name where hints are not read. Nothing
	// is wrong unless its author thinks otherwise, so this is for who looks, not
	// for an alarm.
	Ignored Effect = "ignored"
)

// Problem is something about a hint that its author should know.
type Problem struct {
	Where
	Hint   string // name of the result or parameter
	What   string // is wrong, to be read behind Hint
	Remedy string // what the author should do
	Effect Effect
}

// String is the problem as one line for people.
func (p Problem) String() string {
	step := ""
	if p.Step != "" {
		step = ", step " + p.Step
	}
	return fmt.Sprintf("%s %s%s: %s %s (%s): %s", p.Kind, p.Name, step, p.Hint, p.What, p.Effect, p.Remedy)
}

// Problems lists what is wrong with the hints of pr (which may be nil) and of
// TaskRuns, in the order given: of each object first what its own results say,
// then its steps'. Besides what is Malformed these are hints that read well and
// cannot be meant. A run without hints has none. Of one set of results about two
// hundred are listed at most.
func Problems(pr *v1.PipelineRun, taskRuns ...*v1.TaskRun) []Problem {
	var out []Problem
	add := func(w Where, h Hints, results []result, params []v1.Param) {
		for _, m := range h.Malformed {
			out = append(out, Problem{Where: m.Where, Hint: m.Result, What: m.Reason, Remedy: m.Remedy, Effect: m.Effect})
		}
		c := critic{w: w}
		c.claims(h)
		c.results(results)
		c.params(params)
		out = append(out, c.out...)
	}
	if pr != nil {
		add(Where{Kind: "PipelineRun", Name: pr.Name}, OfPipelineRun(pr), pipelineResults(pr), pr.Spec.Params)
	}
	for _, tr := range taskRuns {
		w := Where{Kind: "TaskRun", Name: tr.Name, PipelineTask: tr.Labels[LabelPipelineTask]}
		add(w, OfTaskRun(tr), taskResults(tr.Status.Results), tr.Spec.Params)
		for i, h := range OfSteps(tr) {
			if results := tr.Status.Steps[i].Results; len(results) > 0 {
				w.Step = tr.Status.Steps[i].Name
				add(w, h, taskResults(results), nil)
			}
		}
	}
	return out
}

// critic reads one set of hints as their author would.
type critic struct {
	w   Where
	out []Problem
}

func (c *critic) say(effect Effect, name, what, remedy string) {
	if len(c.out) < maxMalformed {
		c.out = append(c.out, Problem{Where: c.w, Hint: name, What: bounded(what), Remedy: remedy, Effect: effect})
	}
}

// inputPrefixes are what people put before IMAGE_URL when the image went in.
var inputPrefixes = [...]string{"SOURCE_", "BASE_"}

// claims looks at hints that read well.
func (c *critic) claims(h Hints) {
	for _, g := range h.Git {
		// Without a URL the hint is reported as malformed.
		if trimmed := strings.TrimRight(strings.TrimSpace(g.URL), "/"); g.URL != "" && trimmed != g.URL {
			c.say(Misread, GitURL, fmt.Sprintf("is taken as it is, so statements name the repository %q", g.URI), "write it without blanks, line ends and slashes around it")
		}
	}
	for _, img := range h.Images {
		name := img.Results[0]
		for _, p := range inputPrefixes {
			if strings.HasSuffix(img.Field, p+"IMAGE") {
				c.say(Misread, name, "ends in "+SuffixImageURL+", so "+img.URI+" counts as made by this run and is signed",
					"name the result otherwise ("+p+"IMAGE_REF), or say what went in with a result that ends in "+SuffixInputs)
			}
		}
		if registry, _, found := strings.Cut(img.URI, "://"); found {
			c.say(Misread, name, fmt.Sprintf("begins with %s://, which is taken for a registry of the name %q", registry, registry+":"), "write the reference without a scheme")
		}
	}
	for _, a := range slices.Concat(h.Artifacts, h.Outputs) {
		if d, err := ParseDigest(a.Digest.String()); err == nil && d != a.Digest {
			c.say(Misread, a.Results[len(a.Results)-1], fmt.Sprintf("has a digest that is copied as it is, so statements carry the algorithm %q", a.Digest.Algorithm),
				"write the algorithm in lower case and no blanks: "+d.Algorithm+":<hex>")
		}
	}
}

// results looks at results that are read in part or not at all.
func (c *critic) results(results []result) {
	for _, r := range results {
		for _, git := range []string{GitURL, GitCommit} {
			if r.name != git && strings.HasSuffix(r.name, git) {
				c.say(Ignored, r.name, "is not read: this hint has no prefix", "name it "+git)
			}
		}
		if strings.HasSuffix(r.name, SuffixOutputs) {
			if flag, ok := r.value.ObjectVal["isBuildArtifact"]; ok && flag != "true" && flag != "false" {
				c.say(Misread, r.name, fmt.Sprintf("has isBuildArtifact %q, which is not the word true, so it is no build artifact", flag), `write "true" or "false"`)
			}
		}
	}
}

// params looks for hints where none but git's are read.
func (c *critic) params(params []v1.Param) {
	for i := range params {
		name := params[i].Name
		for _, suffix := range []string{SuffixImageURL, SuffixImageDig, SuffixURI, SuffixURIDigest, SuffixInputs, SuffixOutputs} {
			if strings.HasSuffix(name, suffix) {
				c.say(Ignored, name, "is a parameter, and this hint is read from results only", "write a result of that name where it should count")
			}
		}
		if name == Images {
			c.say(Ignored, name, "is a parameter, and this hint is read from results only", "write a result of that name where it should count")
		}
	}
}
