package trace

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/verify/workflow"
)

// Build is what a provenance says of how the image was made. Its signer attests it;
// how the tasks hang together is read from that.
type Build struct {
	// Origin is executed (by an Assay, which observed it), watched (Tekton), workflow
	// (GitHub) or stated.
	Origin     string `json:"origin"`
	Builder    string `json:"builder"`
	Type       string `json:"predicateType"`
	BuildType  string `json:"buildType,omitempty"`
	Invocation string `json:"invocation,omitempty"`
	Outcome    string `json:"outcome,omitempty"`
	// By, Grade and Reason say who signed it, and what that is worth.
	By     string `json:"by"`
	Grade  string `json:"grade"`
	Reason string `json:"reason,omitempty"`
	Source Source `json:"source,omitzero"`
	Tasks  []Task `json:"tasks,omitempty"`
	// Inputs are what else the provenance says went in.
	Inputs []Input `json:"inputs,omitempty"`
	// Workflow is the one that signed, Caller the one that was started; from the
	// certificate.
	Workflow string `json:"workflow,omitempty"`
	Caller   string `json:"caller,omitempty"`
	// Unsaid is what the provenance leaves open.
	Unsaid []string `json:"unsaid,omitempty"`
	// Readings are what workflow files say was used: inferred, not attested.
	Readings []*workflow.Reading `json:"inferred,omitempty"`
}

// Source is what was built.
type Source struct {
	Repository string `json:"repository,omitempty"`
	Ref        string `json:"ref,omitempty"`
	Commit     string `json:"commit,omitempty"`
}

// Input is a dependency.
type Input struct {
	URI    string `json:"uri"`
	Digest string `json:"digest,omitempty"` // sha256:… or a commit
}

// Task is one task as a provenance tells of it.
type Task struct {
	Name    string `json:"name"`
	Ref     string `json:"ref,omitempty"` // where its definition came from
	Outcome string `json:"outcome,omitempty"`
	// After are tasks that ended before it, as the pipeline asks.
	After []string `json:"after,omitempty"`
	// Uses are tasks whose results the pipeline hands to it.
	Uses []string `json:"uses,omitempty"`
	// Makes and Takes are digests and commits in its results and its parameters.
	Makes []string `json:"makes,omitempty"`
	Takes []string `json:"takes,omitempty"`
}

// Bounds on what is drawn.
const (
	maxTasks  = 512
	maxInputs = 64
)

// OfProvenance reads a provenance; nil where p is none.
func OfProvenance(p predicate.Predicate) *Build {
	prov, ok := p.(predicate.Provenance)
	if !ok {
		return nil
	}
	s := prov.Source()
	b := &Build{
		Builder: prov.BuilderID(), Type: p.Type(), Outcome: string(prov.Outcome()), Origin: "stated",
		Source: Source{Repository: s.Repository, Ref: s.Ref, Commit: s.Commit},
	}
	switch p := p.(type) {
	case *predicate.Provenance1:
		b.BuildType = p.BuildDefinition.BuildType
		if m := p.RunDetails.Metadata; m != nil {
			b.Invocation = m.InvocationID
		}
		b.inputs(p.BuildDefinition.ResolvedDependencies)
		b.specTasks(p.BuildDefinition.ExternalParameters["runSpec"])
		b.byproducts(p.RunDetails.Byproducts)
	case *predicate.Provenance02:
		b.BuildType = p.BuildType
		if p.Metadata != nil {
			b.Invocation = p.Metadata.BuildInvocationID
		}
		b.inputs(p.Materials)
		b.configTasks(p.BuildConfig)
	case *predicate.Provenance01:
		b.BuildType = p.Recipe.Type
		if p.Metadata != nil {
			b.Invocation = p.Metadata.BuildInvocationID
		}
		b.inputs(p.Materials)
	}
	switch {
	case strings.HasPrefix(b.BuildType, "tekton.dev/"), strings.HasPrefix(b.BuildType, "https://tekton.dev/"):
		b.Origin = "watched"
		b.findSource()
	case strings.Contains(b.Builder, "github.com/"), strings.Contains(b.BuildType, "github"):
		b.Origin = "workflow"
	}
	return b
}

// inputs takes dependencies. Those that are what Tekton ran itself, steps' images and
// tasks, come last.
func (b *Build) inputs(list []predicate.Resource) {
	for _, r := range list {
		in := Input{URI: r.URI}
		for _, a := range []string{"sha256", "gitCommit", "sha1"} {
			if v := r.Digest[a]; v != "" && in.Digest == "" {
				in.Digest = v
				if a == "sha256" {
					in.Digest = "sha256:" + v
				}
			}
		}
		b.Inputs = append(b.Inputs, in)
	}
}

// findSource takes the one git repository among the inputs where the provenance does
// not say itself which it is.
func (b *Build) findSource() {
	if b.Source.Commit != "" {
		return
	}
	var found []Source
	for _, in := range b.Inputs {
		if commitForm.MatchString(in.Digest) || strings.HasPrefix(in.URI, "git+") {
			s := Source{Repository: strings.TrimSuffix(strings.TrimPrefix(in.URI, "git+"), ".git"), Commit: in.Digest}
			if !slices.Contains(found, s) {
				found = append(found, s)
			}
		}
	}
	if len(found) == 1 {
		b.Source = found[0]
	}
}

var (
	commitForm = regexp.MustCompile(`^[0-9a-f]{40}$`)
	valueForm  = regexp.MustCompile(`sha256:[0-9a-f]{64}|\b[0-9a-f]{40}\b`)
	resultForm = regexp.MustCompile(`\$\(tasks\.([a-z0-9][a-z0-9.-]*?)\.results[.\[]`)
)

// values are the digests and commits in JSON.
func values(raw []byte) []string {
	var out []string
	for _, m := range valueForm.FindAllString(string(raw), -1) {
		if !slices.Contains(out, m) {
			out = append(out, m)
		}
	}
	return out
}

// configTasks reads Tekton Chains' buildConfig of SLSA v0.2.
func (b *Build) configTasks(raw []byte) {
	var c struct {
		Tasks []struct {
			Name       string   `json:"name"`
			After      []string `json:"after"`
			Status     string   `json:"status"`
			Invocation struct {
				ConfigSource predicate.ConfigSource `json:"configSource"`
				Parameters   json.RawMessage        `json:"parameters"`
			} `json:"invocation"`
			Results json.RawMessage `json:"results"`
		} `json:"tasks"`
	}
	if json.Unmarshal(raw, &c) != nil {
		return // other builders have other shapes
	}
	for _, t := range c.Tasks[:min(len(c.Tasks), maxTasks)] {
		task := Task{Name: t.Name, After: t.After, Outcome: t.Status, Makes: values(t.Results), Takes: values(t.Invocation.Parameters)}
		if s := t.Invocation.ConfigSource; s.URI != "" {
			task.Ref = s.URI
			if d := s.Digest["sha256"]; d != "" {
				task.Ref += "@sha256:" + d
			}
		}
		b.Tasks = append(b.Tasks, task)
	}
}

// specTasks reads the pipeline that a run of v1 was asked to be.
func (b *Build) specTasks(raw []byte) {
	type task struct {
		Name    string          `json:"name"`
		After   []string        `json:"runAfter"`
		Params  json.RawMessage `json:"params"`
		TaskRef json.RawMessage `json:"taskRef"`
	}
	var s struct {
		PipelineSpec struct {
			Tasks   []task `json:"tasks"`
			Finally []task `json:"finally"`
		} `json:"pipelineSpec"`
	}
	if json.Unmarshal(raw, &s) != nil {
		return
	}
	tasks := append(s.PipelineSpec.Tasks, s.PipelineSpec.Finally...)
	for _, t := range tasks[:min(len(tasks), maxTasks)] {
		n := Task{Name: t.Name, After: t.After}
		for _, m := range resultForm.FindAllStringSubmatch(string(t.Params), -1) {
			if !slices.Contains(n.Uses, m[1]) {
				n.Uses = append(n.Uses, m[1])
			}
		}
		if v := values(t.TaskRef); len(v) > 0 {
			n.Ref = v[0]
		}
		b.Tasks = append(b.Tasks, n)
	}
}

// byproducts are results of tasks, named taskRunResults/NAME or
// pipelineRunResults/NAME: what was made, not by whom.
func (b *Build) byproducts(list []predicate.Resource) {
	for _, r := range list {
		if task, _, ok := strings.Cut(strings.TrimPrefix(r.Name, "taskRunResults/"), "/"); ok {
			if i := slices.IndexFunc(b.Tasks, func(t Task) bool { return t.Name == task }); i >= 0 {
				b.Tasks[i].Makes = append(b.Tasks[i].Makes, values(r.Content)...)
			}
		}
	}
}
