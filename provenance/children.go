package provenance

import (
	"errors"
	"fmt"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Absence is a child that status.childReferences names and that a statement
// cannot speak of.
type Absence struct {
	Name         string
	Kind         string // as the reference has it; may be empty
	PipelineTask string
	Reason       string // for people, without the name
}

// OfPipelineRunByOwner is OfPipelineRun for whoever watches a cluster, where a
// name proves nothing: names are used again, and anybody who may create TaskRuns
// may choose them. A child is a TaskRun of the run's namespace that
// status.childReferences names and whose controlling owner is the run with
// exactly this uid. Every reference without such a TaskRun is an Absence, in the
// order of the references, and Input.Missing names it too. A run without
// references has no children, whoever claims to be one.
//
// It fails for a run without uid, and for two TaskRuns of one name and owner with
// different uids, of which nobody could say which one the run means.
func OfPipelineRunByOwner(pr *v1.PipelineRun, candidates []*v1.TaskRun) (Input, []Absence, error) {
	if pr.UID == "" {
		return Input{}, nil, errors.New("PipelineRun has no uid, so nothing can be known to belong to it")
	}
	owned := make(map[string]*v1.TaskRun, len(candidates))
	var strangers map[string]*v1.TaskRun
	for i, tr := range candidates {
		switch {
		case tr == nil:
			return Input{}, nil, fmt.Errorf("child %d is nil", i)
		case tr.Namespace != pr.Namespace:
		case !owns(pr, tr):
			if strangers == nil {
				strangers = make(map[string]*v1.TaskRun)
			}
			strangers[tr.Name] = tr
		case owned[tr.Name] != nil && owned[tr.Name].UID != tr.UID:
			return Input{}, nil, fmt.Errorf("two TaskRuns of this run are named %q: uids %s and %s", tr.Name, owned[tr.Name].UID, tr.UID)
		default:
			owned[tr.Name] = tr
		}
	}

	in := Input{PipelineRun: pr}
	var absent []Absence
	for _, ref := range pr.Status.ChildReferences {
		// The kind is not always filled in, so what the name leads to decides.
		if tr := owned[ref.Name]; tr != nil {
			in.Children = append(in.Children, tr)
			continue
		}
		a := Absence{Name: ref.Name, Kind: ref.Kind, PipelineTask: ref.PipelineTaskName}
		switch stranger := strangers[ref.Name]; {
		case stranger != nil:
			a.Reason = "a TaskRun has the name, but " + ownerOf(stranger)
		case ref.Kind != "" && ref.Kind != "TaskRun":
			a.Reason = "is a " + ref.Kind + ", about which no statement can be made"
		default:
			a.Reason = "is gone: deleted, pruned, or never seen"
		}
		absent = append(absent, a)
		in.Missing = append(in.Missing, ref.Name)
	}
	return in, absent, nil
}

// owns says whether pr is tr's controller.
func owns(pr *v1.PipelineRun, tr *v1.TaskRun) bool {
	owner := metav1.GetControllerOf(tr)
	return owner != nil && owner.Kind == "PipelineRun" && owner.UID == pr.UID
}

func ownerOf(tr *v1.TaskRun) string {
	owner := metav1.GetControllerOf(tr)
	if owner == nil {
		return "nothing owns it"
	}
	return fmt.Sprintf("%s %s with uid %s owns it", owner.Kind, owner.Name, owner.UID)
}
