package provenance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline/v1beta1"
	"knative.dev/pkg/apis"
)

// MaxObject bounds one object given to Load, in bytes. A cluster stores 1.5 MB
// at most; our own runs may carry larger results.
const MaxObject = 16 << 20

// Input is one finished run: either a TaskRun, or a PipelineRun and the
// TaskRuns it ran. Its zero value is refused. Nothing in it is changed.
type Input struct {
	TaskRun     *v1.TaskRun
	PipelineRun *v1.PipelineRun
	// Children are the PipelineRun's TaskRuns in the order of its
	// status.childReferences.
	Children []*v1.TaskRun
	// Missing names the children that status.childReferences lists and nobody
	// gave: TaskRuns that are gone, CustomRuns, nested PipelineRuns. A statement
	// about such a run is silent about them; a watcher should say so.
	Missing []string
}

func (in Input) check() error {
	switch {
	case in.TaskRun == nil && in.PipelineRun == nil:
		return errors.New("no run given")
	case in.TaskRun != nil && in.PipelineRun != nil:
		return errors.New("both a TaskRun and a PipelineRun given")
	case in.TaskRun != nil && len(in.Children) > 0:
		return errors.New("children given for a TaskRun; only PipelineRuns have children")
	}
	for i, tr := range in.Children {
		if tr == nil {
			return fmt.Errorf("child %d is nil", i)
		}
	}
	return nil
}

// OfTaskRun is the Input for one TaskRun.
func OfTaskRun(tr *v1.TaskRun) Input { return Input{TaskRun: tr} }

// OfPipelineRun is the Input for a PipelineRun. Of candidates it takes those
// that status.childReferences names, in that order; a run without any
// childReferences takes all, in the order given. Two candidates of one name
// where names decide are refused: it could not be said which one ran.
func OfPipelineRun(pr *v1.PipelineRun, candidates []*v1.TaskRun) (Input, error) {
	in := Input{PipelineRun: pr}
	if len(pr.Status.ChildReferences) == 0 {
		in.Children = candidates
		return in, in.check()
	}
	byName := make(map[string]*v1.TaskRun, len(candidates))
	twice := map[string]bool{} // names
	for i, tr := range candidates {
		if tr == nil {
			return Input{}, fmt.Errorf("child %d is nil", i)
		}
		if byName[tr.Name] != nil {
			twice[tr.Name] = true
		}
		byName[tr.Name] = tr
	}
	for _, ref := range pr.Status.ChildReferences {
		if twice[ref.Name] {
			return Input{}, fmt.Errorf("two TaskRuns are named %q; give each child once", ref.Name)
		}
		// As upstream does, by name alone: the kind is not always filled in.
		if tr := byName[ref.Name]; tr != nil {
			in.Children = append(in.Children, tr)
		} else {
			in.Missing = append(in.Missing, ref.Name)
		}
	}
	return in, nil
}

// Load reads a run and, for a PipelineRun, its TaskRuns, each one object in
// JSON or YAML of apiVersion tekton.dev/v1 or tekton.dev/v1beta1; the latter is
// converted by Tekton's own code. Children are then chosen and ordered by
// OfPipelineRun.
//
// Fields unknown to Tekton's types are dropped, as an API server does. Load
// fails for any other kind or version, for a field given twice, for more than
// one object where one is wanted (see Documents for files of several), and for
// objects larger than MaxObject.
func Load(run []byte, children ...[]byte) (Input, error) {
	obj, err := decode(run)
	if err != nil {
		return Input{}, fmt.Errorf("reading run: %w", err)
	}
	if obj.taskRun != nil {
		if len(children) > 0 {
			return Input{}, errors.New("reading children: given for a TaskRun; only PipelineRuns have children")
		}
		return OfTaskRun(obj.taskRun), nil
	}
	trs := make([]*v1.TaskRun, 0, len(children))
	for i, data := range children {
		child, err := decode(data)
		if err != nil {
			return Input{}, fmt.Errorf("reading child %d: %w", i, err)
		}
		if child.taskRun == nil {
			return Input{}, fmt.Errorf("reading child %d: is a PipelineRun; only TaskRuns are read as children", i)
		}
		trs = append(trs, child.taskRun)
	}
	in, err := OfPipelineRun(obj.pipelineRun, trs)
	if err != nil {
		return Input{}, fmt.Errorf("choosing children of %s: %w", obj.pipelineRun.Name, err)
	}
	return in, nil
}

// object is what decode found; one field is set.
type object struct {
	taskRun     *v1.TaskRun
	pipelineRun *v1.PipelineRun
}

func decode(data []byte) (object, error) {
	if len(data) > MaxObject {
		return object{}, fmt.Errorf("object has %d bytes, more than the %d accepted", len(data), MaxObject)
	}
	objects, err := Documents(data)
	switch {
	case err != nil:
		return object{}, err
	case len(objects) == 0:
		return object{}, errors.New("object is empty")
	case len(objects) > 1:
		return object{}, fmt.Errorf("file holds more than one object, %d of them; give one run per file", len(objects))
	}
	data = objects[0]
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return object{}, fmt.Errorf("parsing apiVersion and kind: %w", err)
	}
	if err := checkDuplicates(data); err != nil {
		return object{}, fmt.Errorf("parsing object: %w", err)
	}
	switch {
	case head.APIVersion == "tekton.dev/v1" && head.Kind == "TaskRun":
		tr := &v1.TaskRun{}
		return object{taskRun: tr}, unmarshal(data, tr)
	case head.APIVersion == "tekton.dev/v1" && head.Kind == "PipelineRun":
		pr := &v1.PipelineRun{}
		return object{pipelineRun: pr}, unmarshal(data, pr)
	case head.APIVersion == "tekton.dev/v1beta1" && head.Kind == "TaskRun":
		old, tr := &v1beta1.TaskRun{}, &v1.TaskRun{}
		if err := unmarshal(data, old); err != nil {
			return object{}, err
		}
		err := convert(old, tr)
		tr.APIVersion, tr.Kind = "tekton.dev/v1", "TaskRun"
		return object{taskRun: tr}, err
	case head.APIVersion == "tekton.dev/v1beta1" && head.Kind == "PipelineRun":
		old, pr := &v1beta1.PipelineRun{}, &v1.PipelineRun{}
		if err := unmarshal(data, old); err != nil {
			return object{}, err
		}
		err := convert(old, pr)
		pr.APIVersion, pr.Kind = "tekton.dev/v1", "PipelineRun"
		return object{pipelineRun: pr}, err
	}
	return object{}, fmt.Errorf("object is %.100q of %.100q; accepted are TaskRun and PipelineRun of tekton.dev/v1 and tekton.dev/v1beta1",
		head.Kind, head.APIVersion)
}

// unmarshal decodes as upstream reads files: unknown fields are dropped, names
// match in any case, since old Tekton releases wrote some in Go's spelling.
func unmarshal(data []byte, into any) error {
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("parsing object: %w", err)
	}
	return nil
}

// convert runs Tekton's own conversion. It is written for objects that passed
// admission and may panic on others, which must not take us down.
func convert(from, to apis.Convertible) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("converting v1beta1 to v1: object is not as Tekton admits it: %v", p)
		}
	}()
	if err := from.ConvertTo(context.Background(), to); err != nil {
		return fmt.Errorf("converting v1beta1 to v1: %w", err)
	}
	return nil
}
