package pipeline

import (
	"errors"
	"fmt"
	"time"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/pod"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"

	"assay.dev/assay/pipeline/render"
	"assay.dev/assay/plan"
)

// taskRun is a TaskRun on its way:
//
//	add ─▶ queued ─▶ running ─▶ done
//	          ▲         │
//	          └─ retry ─┘
type taskRun struct {
	tr           *v1.TaskRun
	def          *definition
	pipelineTask string

	running  bool // at the executor
	rendered *render.Rendered
	steps    map[string]plan.StepState // of this attempt, latest
}

// attempt counts from 0.
func (t *taskRun) attempt() int { return len(t.tr.Status.RetriesStatus) }

// add queues a TaskRun.
func (x *runner) add(tr *v1.TaskRun, def *definition, pipelineTask string) {
	t := &taskRun{tr: tr, def: def, pipelineTask: pipelineTask}
	x.runs[tr.Name] = t
	x.order = append(x.order, t)
	x.tellTask(t, "queued")
}

// startQueued starts what there is room for, and says whether a TaskRun ended
// by that.
func (x *runner) startQueued() (ended bool, err error) {
	room := x.parallel
	for _, t := range x.order {
		if t.running {
			room--
		}
	}
	for _, t := range x.order {
		if room <= 0 {
			break
		}
		if t.running || t.tr.IsDone() {
			continue
		}
		if err := x.start(t); err != nil {
			return ended, err
		}
		if t.running {
			room--
		} else {
			ended = true
		}
	}
	return ended, nil
}

// start prepares one attempt and sends it. A TaskRun that turns out invalid
// ends here, with the reason that a controller would give. An error means that
// the executor is gone.
func (x *runner) start(t *taskRun) error {
	tr := t.tr
	now := metav1.Time{Time: x.clock.Now()}
	tr.Status.StartTime = &now
	tr.Status.MarkResourceOngoing(v1.TaskRunReasonStarted, "")
	mergeTaskMeta(tr, t.def)
	spec := t.def.spec
	if tr.Spec.TaskSpec != nil {
		spec = tr.Spec.TaskSpec
	}
	tr.Status.TaskSpec = spec.DeepCopy()
	tr.Status.Provenance = &v1.Provenance{FeatureFlags: x.r.flags, RefSource: t.def.source}
	tr.Status.Steps, tr.Status.Results, tr.Status.Artifacts = nil, nil, nil

	if err := checkTaskRun(x.ctx, tr, t.def); err != nil {
		return x.end(t, v1.TaskRunReasonFailedValidation, err, x.clock.Now())
	}
	rendered, err := x.r.render(tr, t.def)
	if err != nil {
		hint := "invalid TaskSpec"
		if tr.Spec.TaskRef != nil {
			hint = fmt.Sprintf("missing or invalid Task %s/%s", tr.Namespace, tr.Spec.TaskRef.Name)
		}
		return x.end(t, v1.TaskRunReasonPodCreationFailed, fmt.Errorf("failed to create task run pod %q: %w. Maybe %s", tr.Name, err, hint), x.clock.Now())
	}
	tr.Status.TaskSpec = rendered.Spec
	tr.Status.PodName = podName(tr)
	tr.Status.MarkResourceOngoing(v1.TaskRunReasonRunning, "Not all Steps in the Task have finished executing")
	t.rendered, t.steps, t.running = rendered, map[string]plan.StepState{}, true
	err = x.ex.Send(plan.Command{Start: &plan.Task{
		Name:         tr.Name,
		PipelineTask: t.pipelineTask,
		Task:         t.def.name,
		Bundle:       t.def.bundle(),
		Attempt:      t.attempt(),
		Steps:        rendered.Steps,
		Volumes:      rendered.Volumes,
		Inputs:       rendered.Inputs,
		Outputs:      rendered.Outputs,
		Results:      rendered.Results,
		Network:      rendered.Network,
		Timeout:      tr.GetTimeout(x.ctx),
	}})
	if err != nil {
		return fmt.Errorf("starting %s: %w: %w", tr.Name, ErrLost, err)
	}
	x.tellTask(t, "running")
	return nil
}

// stepChanged keeps what the executor says of a step.
func (x *runner) stepChanged(t *taskRun, s *plan.StepState) error {
	known := false
	for _, step := range t.rendered.Steps {
		known = known || step.Name == s.Name
	}
	if !known {
		return fmt.Errorf("running %s: %w: it speaks of step %q of %s, which has none of that name", x.r.Name(), ErrLost, s.Name, s.Task)
	}
	t.steps[s.Name] = *s
	p := Progress{Type: ProgressStep, TaskRun: s.Task, PipelineTask: t.pipelineTask, Attempt: s.Attempt, Step: s.Name, Image: s.Image, State: "running"}
	if !s.Finished.IsZero() {
		p.State, p.Reason, p.ExitCode = "succeeded", s.Reason, s.ExitCode
		if s.ExitCode != 0 {
			p.State = "failed"
		}
	}
	x.tell(p)
	return nil
}

// attemptDone turns the end of an attempt into a status.
func (x *runner) attemptDone(t *taskRun, d *plan.Done) error {
	t.running = false
	finished := d.Finished
	if finished.IsZero() {
		finished = x.clock.Now()
	}
	if !d.Started.IsZero() {
		t.tr.Status.StartTime = &metav1.Time{Time: d.Started}
	}
	switch reason := v1.TaskRunReason(d.Reason); reason {
	case "", v1.TaskRunReasonFailed:
		if d.Reason != "" && d.Message != "" && t.unexplained() {
			return x.stopped(t, reason, errors.New(d.Message), finished)
		}
		return x.completed(t, d, finished)
	case v1.TaskRunReasonCancelled:
		return x.cancelled(t, finished)
	case v1.TaskRunReasonTimedOut:
		return x.stopped(t, reason, fmt.Errorf("TaskRun %q failed to finish within %q", t.tr.Name, t.tr.GetTimeout(x.ctx)), finished)
	case v1.TaskRunReasonImagePullFailed:
		return x.stopped(t, reason, t.pullFailed(d.Message), finished)
	default:
		message := d.Message
		if message == "" {
			message = "the executor gave no message"
		}
		return x.stopped(t, reason, errors.New(message), finished)
	}
}

// unexplained says that the attempt's failure is no step's: one did not come to
// its end and none ended badly. Read off the steps alone it would look as if
// the unfinished one had failed, and the executor's message, an input that could
// not be unpacked or a full disk, would be lost.
func (t *taskRun) unexplained() bool {
	unfinished := false
	for _, step := range t.rendered.Steps {
		s := t.steps[step.Name]
		switch {
		case s.Finished.IsZero() || s.Reason == pod.TerminationReasonSkipped:
			unfinished = true
		case s.ExitCode != 0 && !step.Continue || s.Reason == "OOMKilled":
			return false
		}
	}
	return unfinished
}

// pullFailed says it of the first step that did not start.
func (t *taskRun) pullFailed(message string) error {
	for _, s := range t.rendered.Steps {
		if t.steps[s.Name].Started.IsZero() {
			return fmt.Errorf("the step %q in TaskRun %q failed to pull the image %q. The pod errored with the message: %q", s.Name, t.tr.Name, s.Image, message+".")
		}
	}
	return errors.New(message)
}

func (x *runner) cancelled(t *taskRun, finished time.Time) error {
	return x.stopped(t, v1.TaskRunReasonCancelled, fmt.Errorf("TaskRun %q was cancelled. %s", t.tr.Name, t.tr.Spec.StatusMessage), finished)
}

// end gives a TaskRun the outcome of failure, and another attempt where it has
// one left and was not cancelled.
func (x *runner) end(t *taskRun, reason v1.TaskRunReason, cause error, finished time.Time) error {
	t.tr.Status.MarkResourceFailed(reason, cause)
	x.stamp(t, finished)
	return x.retryOrDone(t)
}

// stamp puts the executor's time on the outcome.
func (x *runner) stamp(t *taskRun, finished time.Time) {
	at := metav1.Time{Time: finished}
	t.tr.Status.CompletionTime = &at
	for i := range t.tr.Status.Conditions {
		t.tr.Status.Conditions[i].LastTransitionTime = apis.VolatileTime{Inner: at}
	}
}

func (x *runner) retryOrDone(t *taskRun) error {
	tr := t.tr
	c := tr.Status.GetCondition(apis.ConditionSucceeded)
	if !c.IsFalse() || tr.IsCancelled() || !tr.IsRetriable() {
		state := "succeeded"
		if c.IsFalse() {
			state = "failed"
		}
		x.tellTask(t, state)
		return nil
	}
	past := tr.Status.DeepCopy()
	past.RetriesStatus = nil
	tr.Status.RetriesStatus = append(tr.Status.RetriesStatus, *past)
	tr.Status.StartTime, tr.Status.CompletionTime = nil, nil
	tr.Status.PodName, tr.Status.Results = "", nil
	tr.Status.MarkResourceOngoing(v1.TaskRunReasonToBeRetried, c.Message)
	x.tellTask(t, "retrying")
	return nil
}

// cancelRun is what happens on an interrupt: as if someone had set the run's
// spec.status.
func (x *runner) cancelRun() error {
	if x.pr == nil {
		return x.stop(x.order[0], "")
	}
	if x.pr.IsDone() {
		return x.stopTasks(nil, v1.TaskRunCancelledByPipelineMsg)
	}
	x.pr.Spec.Status = v1.PipelineRunSpecStatusCancelled
	if err := x.stopTasks(nil, v1.TaskRunCancelledByPipelineMsg); err != nil {
		return err
	}
	x.fail(v1.PipelineRunReasonCancelled, "PipelineRun %q was cancelled", x.pr.Name)
	return nil
}

// stopTasks stops the TaskRuns of the named tasks; nil: all.
func (x *runner) stopTasks(tasks map[string]bool, message v1.TaskRunSpecStatusMessage) error {
	for _, t := range x.order {
		if tasks != nil && !tasks[t.pipelineTask] {
			continue
		}
		if err := x.stop(t, message); err != nil {
			return err
		}
	}
	return nil
}

// stop cancels one TaskRun. If it is at the executor, its end is waited for: it
// may still have succeeded.
func (x *runner) stop(t *taskRun, message v1.TaskRunSpecStatusMessage) error {
	if t.tr.IsDone() || t.tr.IsCancelled() {
		return nil
	}
	t.tr.Spec.Status = v1.TaskRunSpecStatusCancelled
	t.tr.Spec.StatusMessage = message
	if !t.running {
		return x.cancelled(t, x.clock.Now())
	}
	if err := x.ex.Send(plan.Command{Cancel: &plan.Cancel{Task: t.tr.Name, Reason: v1.TaskRunReasonCancelled.String()}}); err != nil {
		return fmt.Errorf("cancelling %s: %w: %w", t.tr.Name, ErrLost, err)
	}
	return nil
}

// condition is the run's outcome.
func (x *runner) condition() *apis.Condition {
	if x.pr != nil {
		return x.pr.Status.GetCondition(apis.ConditionSucceeded)
	}
	return x.order[0].tr.Status.GetCondition(apis.ConditionSucceeded)
}
