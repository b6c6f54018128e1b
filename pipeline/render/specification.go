package render

import (
	"encoding/json"
	"fmt"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/apis/pipeline/v1beta1"

	"assay.dev/assay/plan"
)

// Specification is what plan.Run.Spec holds: the run with everything it refers
// to, as it was before the first step. Its digest opens the run, so whoever has
// it can render every task of the run that was promised and compare. Secrets
// are not in it.
type Specification struct {
	// Run is the PipelineRun or TaskRun, without status.
	Run json.RawMessage `json:"run"`
	// Pipeline is empty for a bare TaskRun.
	Pipeline *SpecifiedPipeline `json:"pipeline,omitempty"`
	// Tasks are those of the pipeline, tasks before finally, each once however
	// many TaskRuns a matrix makes of it; or the one of a bare TaskRun.
	Tasks []SpecifiedTask `json:"tasks"`
	// ConfigMaps by name, as tasks may take variables and files from them.
	ConfigMaps map[string]map[string][]byte `json:"configMaps,omitempty"`
}

// SpecifiedPipeline is the pipeline with parameters, context and workspaces
// filled in, as in status.pipelineSpec.
type SpecifiedPipeline struct {
	Name         string           `json:"name,omitempty"`
	PipelineSpec *v1.PipelineSpec `json:"pipelineSpec"`
	RefSource    *v1.RefSource    `json:"refSource,omitempty"`
}

// SpecifiedTask is a Task as fetched or written, with nothing filled in but
// defaults.
type SpecifiedTask struct {
	// Name is the task's in the pipeline; empty for a bare TaskRun.
	Name string `json:"name,omitempty"`
	// Task is the definition's name; empty where it is written into the run.
	Task        string                `json:"task,omitempty"`
	Annotations map[string]string     `json:"annotations,omitempty"`
	Spec        *v1.TaskSpec          `json:"spec"`
	RefSource   *v1.RefSource         `json:"refSource,omitempty"`
	StepActions []SpecifiedStepAction `json:"stepActions,omitempty"`
}

// SpecifiedStepAction is what one step refers to.
type SpecifiedStepAction struct {
	Step      int                    `json:"step"` // index
	Name      string                 `json:"name"`
	Spec      v1beta1.StepActionSpec `json:"spec"`
	RefSource *v1.RefSource          `json:"refSource,omitempty"`
}

// ParseSpecification reads a plan.Run.Spec. It fails if that is no JSON of this
// form.
func ParseSpecification(run plan.Run) (*Specification, error) {
	var s Specification
	if err := json.Unmarshal(run.Spec, &s); err != nil {
		return nil, fmt.Errorf("reading the specification of run %s: %w", run.ID, err)
	}
	return &s, nil
}

// Input completes a render.Input for one TaskRun of this task. A TaskSpec that
// is written into the run is the TaskRun's own, since results of other tasks
// have been filled into it.
func (t *SpecifiedTask) Input(run *v1.TaskRun, src Sources) Input {
	in := Input{Spec: t.Spec, Name: t.Task, Annotations: t.Annotations, Run: run, Sources: src}
	if t.Task == "" {
		in.Name = run.Name
		if run.Spec.TaskSpec != nil {
			in.Spec = run.Spec.TaskSpec
		}
	}
	if len(t.StepActions) > 0 {
		in.StepActions = map[int]*v1beta1.StepAction{}
	}
	for _, a := range t.StepActions {
		action := &v1beta1.StepAction{Spec: a.Spec}
		action.Name = a.Name
		in.StepActions[a.Step] = action
	}
	return in
}
