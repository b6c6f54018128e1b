package watch

import (
	"fmt"
	"slices"
	"time"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"assay.dev/assay/provenance"
)

// Decisions are pure: what is known goes in, what to do comes out.

// action is what to do about a run as the watch tells of it.
type action int

const (
	// ignore it: it is marked, another controller's, or older than settings ask for.
	ignore action = iota
	// observe it until it ends.
	observe
	// protect it with a finalizer, once it has lived for a moment.
	protect
	// release our finalizer, since it is being deleted and there is nothing left
	// to do.
	release
	// process it: state, sign and store.
	process
)

// decide says what to do about a run. started is when the observer began, which
// settings about old runs go by.
func decide(h head, cfg provenance.Config, p plan, started time.Time) action {
	switch {
	case !manages(h.managedBy, cfg.ManagedBy):
		return ignore
	case h.deleting && len(h.finalizers) > 0 && (h.marked() || !h.done):
		return release
	case h.marked():
		return ignore
	case h.kind == "PipelineRun" && !p.pipelineRuns, h.kind == "TaskRun" && p.taskRuns == noTaskRuns:
		return ignore
	case h.kind == "TaskRun" && p.taskRuns == standalone && (h.inPipeline || h.ownerUID != ""):
		return ignore // its PipelineRun speaks for it
	case h.done && cfg.Own.Since > 0 && !h.ended.IsZero() && h.ended.Before(started.Add(-cfg.Own.Since)):
		return ignore
	case h.done:
		return process
	case h.deleting || len(h.finalizers) > 0:
		return observe
	case h.kind == "TaskRun" && h.ownerUID != "" && !p.protectChildren:
		// The finalizer of its PipelineRun holds it too: what is deleted with its
		// owner goes after its owner.
		return observe
	}
	return protect
}

// manages says whether a run with this spec.managedBy is ours to observe: those
// that Tekton's own controller executes, and what settings add.
func manages(managedBy string, more []string) bool {
	return managedBy == "" || managedBy == managedByTekton || slices.Contains(more, managedBy)
}

// missing is a child that a PipelineRun lists and nobody can state.
type missing struct {
	Name   string
	Reason string
}

func (m missing) String() string { return m.Name + " (" + m.Reason + ")" }

// children is what is to be done about a PipelineRun, given its TaskRuns.
type children struct {
	// input for the formatter, children in the order of childReferences.
	input provenance.Input
	// waiting names children that have not ended; nothing can be said yet.
	waiting []string
	// unmarked names children that have ended and must be marked first.
	unmarked []string
	// absent are references to TaskRuns that were not among those given.
	absent []string
	// missing are references that no TaskRun will ever answer.
	missing []missing
}

// chooseChildren matches candidates to the run's references. A candidate counts
// only if this very PipelineRun controls it, by uid: a TaskRun of the right name
// made by somebody else, or by an earlier run of the name, is no child. gone
// says of names already looked for in vain why.
//
// unmarked says whether a TaskRun lacks the mark that it must carry before the
// PipelineRun can go on; nil where TaskRuns are not marked.
func chooseChildren(pr *v1.PipelineRun, candidates []*v1.TaskRun, gone map[string]string, unmarked func(*v1.TaskRun) bool) children {
	own := make(map[string]*v1.TaskRun, len(candidates))
	for _, tr := range candidates {
		if controlledBy(tr, pr) {
			own[tr.Name] = tr
		}
	}
	c := children{input: provenance.Input{PipelineRun: pr}}
	seen := make(map[string]bool, len(pr.Status.ChildReferences))
	for _, ref := range pr.Status.ChildReferences {
		// The kind is not always filled in; the name is what upstream goes by.
		key := ref.Name
		if ref.Kind != "" && ref.Kind != "TaskRun" {
			key = ref.Kind + " " + ref.Name
		}
		if seen[key] {
			continue
		}
		seen[key] = true
		tr := own[ref.Name]
		switch {
		case ref.Kind != "" && ref.Kind != "TaskRun":
			c.missing = append(c.missing, missing{ref.Name, "a " + ref.Kind + ", which provenance cannot describe"})
		case tr == nil && gone[ref.Name] != "":
			c.missing = append(c.missing, missing{ref.Name, gone[ref.Name]})
		case tr == nil:
			c.absent = append(c.absent, ref.Name)
		case !tr.IsDone():
			c.waiting = append(c.waiting, ref.Name)
		case unmarked != nil && unmarked(tr):
			c.unmarked = append(c.unmarked, ref.Name)
		default:
			c.input.Children = append(c.input.Children, tr)
		}
	}
	for _, m := range c.missing {
		c.input.Missing = append(c.input.Missing, m.Name)
	}
	return c
}

func controlledBy(tr *v1.TaskRun, pr *v1.PipelineRun) bool {
	for _, o := range tr.OwnerReferences {
		if o.Controller != nil && *o.Controller {
			return o.Kind == "PipelineRun" && o.UID == pr.UID && pr.UID != ""
		}
	}
	return false
}

// refuses says whether settings forbid to state a run with children missing,
// and why in words for its owner.
func (c children) refuses(cfg provenance.Config) (string, bool) {
	if len(c.missing) == 0 || cfg.Own.MissingChildren != "refuse" {
		return "", false
	}
	return fmt.Sprintf("children are missing and assay.children.missing is refuse: %s", listing(c.missing)), true
}

// listing is a list in one line, cut where it grows beyond what annotations and
// events are for.
func listing[T fmt.Stringer](items []T) string {
	const most = 2000
	out := ""
	for i, item := range items {
		next := item.String()
		if i > 0 {
			next = ", " + next
		}
		if len(out)+len(next) > most {
			return out + fmt.Sprintf(" and %d more", len(items)-i)
		}
		out += next
	}
	return out
}
