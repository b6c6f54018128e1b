package pipeline

import (
	"time"

	"knative.dev/pkg/apis"
)

// ProgressType says what a Progress is about.
type ProgressType string

// The kinds of progress, in the order in which they come.
const (
	ProgressRun  ProgressType = "run"  // the run is open: Name, KeySeparation
	ProgressTask ProgressType = "task" // a TaskRun changed: TaskRun, PipelineTask, Attempt, State, Reason, Message
	ProgressStep ProgressType = "step" // a step changed: TaskRun, Step, Image, State, Reason, ExitCode
	ProgressLog  ProgressType = "log"  // output: TaskRun, Step, Data
)

// Progress is one thing that happened, for whoever watches. As JSON it is one
// line of what assay-planner prints; fields that do not apply are left out.
type Progress struct {
	Type ProgressType `json:"type"`
	Time time.Time    `json:"time,omitzero"`
	Name string       `json:"name,omitempty"` // of the run

	KeySeparation string `json:"keySeparation,omitempty"`

	TaskRun      string `json:"taskRun,omitempty"`
	PipelineTask string `json:"pipelineTask,omitempty"`
	Attempt      int    `json:"attempt,omitempty"`
	Step         string `json:"step,omitempty"`
	Image        string `json:"image,omitempty"`

	// State is queued, running, retrying, succeeded or failed.
	State    string `json:"state,omitempty"`
	Reason   string `json:"reason,omitempty"` // Tekton's
	Message  string `json:"message,omitempty"`
	ExitCode int    `json:"exitCode,omitempty"`
	Data     []byte `json:"data,omitempty"` // base64 in JSON
}

func (x *runner) tell(p Progress) {
	p.Time = x.clock.Now()
	x.progress(p)
}

func (x *runner) tellTask(t *taskRun, state string) {
	p := Progress{Type: ProgressTask, TaskRun: t.tr.Name, PipelineTask: t.pipelineTask, Attempt: t.attempt(), State: state}
	if c := t.tr.Status.GetCondition(apis.ConditionSucceeded); c != nil {
		p.Reason, p.Message = c.Reason, c.Message
	}
	x.tell(p)
}
