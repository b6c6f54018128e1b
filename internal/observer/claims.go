package observer

import (
	"bytes"
	"fmt"
	"strings"

	"assay.dev/assay/api"
	"assay.dev/assay/hint"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/observe"
	"assay.dev/assay/provenance"
)

// claims are a run's type hints, each held against what this run really did.
type claims struct {
	list []observe.Claim
	// keep are the outputs that may be subjects, by who said it and what.
	keep map[claimKey]bool
	// inputs are the inputs that were not found untrue.
	inputs map[claimKey]bool
	source *observe.Source
	// outputs counts the claims of outputs.
	outputs int
}

type claimKey struct{ where, value string }

func keyOf(c hint.Claim) claimKey {
	where := ""
	if c.Where.Kind == "TaskRun" {
		where = c.Where.Name
	}
	return claimKey{where, c.Value()}
}

// check tests each claim of an agreed run. repo is the run's own repository,
// uploads what was put there.
func check(a *agreed, repo string, uploads []registry.Upload) *claims {
	c := &claims{keep: map[claimKey]bool{}, inputs: map[claimKey]bool{}}
	for _, f := range a.attempts {
		if s := sourceOf(f); s != nil && c.source == nil {
			c.source = s
		}
	}
	all, malformed := hint.All(a.in.PipelineRun, orderedRuns(a)...)
	for _, cl := range all {
		out := observe.Claim{Field: cl.Field, Value: cl.Value()}
		if cl.Where.Kind == "TaskRun" {
			out.TaskRun = cl.Where.Name
		}
		switch {
		case cl.Kind == hint.Git:
			out.Status, out.Reason = a.checkGit(cl)
			c.inputs[keyOf(cl)] = out.Status != observe.Failed
		case cl.Role == hint.Input:
			out.Status, out.Reason = observe.Claimed, "an input named by a result; nothing of ours fetched it"
			c.inputs[keyOf(cl)] = true
		default:
			c.outputs++
			out.Status, out.Reason = a.checkOutput(cl, repo, uploads)
			if out.Status == observe.Checked {
				c.keep[keyOf(cl)] = true
			}
		}
		c.list = append(c.list, out)
	}
	for _, m := range malformed {
		out := observe.Claim{Field: m.Result, Status: observe.Failed, Reason: "malformed: " + m.Reason}
		if m.Where.Kind == "TaskRun" {
			out.TaskRun = m.Where.Name
		}
		c.list = append(c.list, out)
	}
	return c
}

func (c *claims) options() provenance.Options {
	return provenance.Options{
		Keep:      func(s provenance.Subject) bool { return c.keep[keyOf(s.Claim)] },
		KeepInput: func(cl hint.Claim) bool { return c.inputs[keyOf(cl)] },
	}
}

// failed are the claims found untrue.
func (c *claims) failed() []observe.Claim {
	var out []observe.Claim
	for _, cl := range c.list {
		if cl.Status == observe.Failed {
			out = append(out, cl)
		}
	}
	return out
}

// checkOutput: an artifact is this run's when an attempt of the very task that
// claims it put it into the run's own repository. What the pipeline claims must
// have been put there by a task that says so itself: else one task could have
// another's upload pass for the run's product.
func (a *agreed) checkOutput(c hint.Claim, repo string, uploads []registry.Upload) (observe.Knowledge, string) {
	digest := c.Digest.String()
	if c.URI != repo {
		return observe.Failed, fmt.Sprintf("%s is not this run's repository %s", c.URI, repo)
	}
	for _, u := range uploads {
		if u.Digest != digest {
			continue
		}
		if c.Where.Kind == "TaskRun" && u.Task == c.Where.Name || c.Where.Kind != "TaskRun" && a.names(u) {
			return observe.Checked, fmt.Sprintf("put into the registry by %s, attempt %d", u.Task, u.Attempt)
		}
	}
	for _, u := range uploads {
		if u.Digest == digest {
			return observe.Claimed, fmt.Sprintf("it was put into the registry by %s, which is not who claims it", u.Task)
		}
	}
	return observe.Failed, "this run put no such artifact into the registry"
}

// names tells whether the task that uploaded something names it in a result, or
// had it exported as a declared output.
func (a *agreed) names(u registry.Upload) bool {
	if u.Kind == registry.KindExport {
		return true
	}
	for _, f := range a.attemptsOf(u.Task) {
		for _, r := range f.finished.Results {
			if strings.Contains(r.Value, u.Digest) {
				return true
			}
		}
	}
	return false
}

// checkGit: a commit is checked when the task that names it handed in a commit
// object that hashes to it, and exported a tree whose git id that object names.
func (a *agreed) checkGit(c hint.Claim) (observe.Knowledge, string) {
	commit := c.Digest.Hex
	for _, f := range a.attempts {
		if c.Where.Kind == "TaskRun" && f.started.Task != c.Where.Name {
			continue
		}
		s := sourceOf(f)
		if s == nil || s.Commit != commit {
			continue
		}
		if s.CommitStatus != observe.Checked {
			return observe.Failed, s.Reason
		}
		if s.Repository != c.URL {
			return observe.Failed, fmt.Sprintf("the task that cloned this commit names repository %s", s.Repository)
		}
		if s.RepositoryStatus != observe.Checked {
			return observe.Claimed, "the commit and its tree are checked; that it is in this repository is not: " + s.Reason
		}
		return observe.Checked, fmt.Sprintf("commit object, exported tree and %s of the repository agree", s.Ref)
	}
	return observe.Failed, "no task of this run exported the tree of this commit"
}

// sourceOf reads what one attempt's facts say of a cloned source.
func sourceOf(f *attemptFacts) *observe.Source {
	if f.finished.Reason != "" {
		return nil
	}
	var commit, tree *observe.Tree
	for i := range f.finished.Outputs {
		switch o := &f.finished.Outputs[i]; o.Kind {
		case "commit":
			commit = o
		case "source":
			tree = o
		}
	}
	if commit == nil || tree == nil {
		return nil
	}
	s := &observe.Source{
		Task: f.started.Task, Commit: commit.CommitID,
		GitTree: tree.GitTree, Tree: tree.Digest, Artifact: tree.URI,
		CommitStatus: observe.Failed, RepositoryStatus: observe.Claimed,
	}
	switch named := treeOfCommit(commit.Commit); {
	case named == "":
		s.Reason = "the commit object names no tree"
	case named != tree.GitTree:
		s.Reason = fmt.Sprintf("commit %s has tree %s, the exported source has tree %s", s.Commit, named, tree.GitTree)
	default:
		s.CommitStatus = observe.Checked
	}
	if f.source == nil {
		s.Reason = join(s.Reason, "the task names no repository for this commit")
		return s
	}
	s.Repository = f.source.Repository
	switch {
	case f.source.CommitID != s.Commit:
		s.Reason = join(s.Reason, fmt.Sprintf("the task claims commit %s and exported %s", f.source.CommitID, s.Commit))
	case !f.source.Found:
		s.Reason = join(s.Reason, f.source.Reason)
	case s.CommitStatus == observe.Checked:
		s.RepositoryStatus, s.Ref = observe.Checked, f.source.Ref
	}
	return s
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// treeOfCommit reads the first header of a commit object.
func treeOfCommit(b []byte) string {
	line, _, ok := bytes.Cut(b, []byte("\n"))
	id, isTree := strings.CutPrefix(string(line), "tree ")
	if !ok || !isTree || len(id) != 40 {
		return ""
	}
	return id
}

// repository is where a run may write.
func repository(registryName, run string) string {
	return registryName + "/" + api.StagingPrefix + run
}
