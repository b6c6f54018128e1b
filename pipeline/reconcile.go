package pipeline

import (
	"fmt"
	"maps"
	"slices"

	pipelineerrors "github.com/tektoncd/pipeline/pkg/apis/pipeline/errors"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	presources "github.com/tektoncd/pipeline/pkg/reconciler/pipelinerun/resources"
	"github.com/tektoncd/pipeline/pkg/reconciler/taskrun"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/apis"
)

// reconcile brings the PipelineRun up to date with its TaskRuns and makes the
// TaskRuns that are due. It is upstream's cycle with the API server left out.
//
//	state ─▶ facts ─▶ timeouts ─▶ next tasks ─▶ TaskRuns ─▶ condition, references, skipped, results
func (x *runner) reconcile() error {
	x.seen = x.clock.Now()
	facts, ok := x.facts()
	if !ok {
		return nil // the run has failed, and says why
	}
	if err := x.timeOutTasks(facts); err != nil {
		return err
	}
	if !x.scheduleNext(facts) {
		return nil
	}
	facts.ResetSkippedCache()
	if x.pr.HasTimedOut(x.ctx, x.clock) {
		if err := x.stopTasks(nil, v1.TaskRunCancelledByPipelineTimeoutMsg); err != nil {
			return err
		}
	}
	x.conclude(facts)
	return nil
}

// fail gives the PipelineRun an outcome that is none of its tasks'. Those that
// run are waited for.
func (x *runner) fail(reason v1.PipelineRunReason, format string, args ...any) {
	x.pr.Status.MarkFailed(reason.String(), "%s", fmt.Sprintf(format, args...))
	x.stampRun()
}

// stampRun puts our clock's time on an outcome, where upstream reads the real.
func (x *runner) stampRun() {
	now := metav1.Time{Time: x.clock.Now()}
	x.pr.Status.CompletionTime = &now
	for i := range x.pr.Status.Conditions {
		x.pr.Status.Conditions[i].LastTransitionTime = apis.VolatileTime{Inner: now}
	}
}

func (x *runner) getTaskRun(name string) (*v1.TaskRun, error) {
	if t := x.runs[name]; t != nil {
		return t.tr, nil
	}
	return nil, notFound(name)
}

// facts resolves the tasks that have run first, so that the others find their
// results.
func (x *runner) facts() (*presources.PipelineRunFacts, bool) {
	spec := x.r.pipelineSpec.DeepCopy()
	started := map[string]bool{}
	for _, c := range x.pr.Status.ChildReferences {
		started[c.PipelineTaskName] = true
	}
	var first, second []v1.PipelineTask
	for _, t := range slices.Concat(spec.Tasks, spec.Finally) {
		if started[t.Name] {
			first = append(first, t)
		} else {
			second = append(second, t)
		}
	}
	state, err := x.r.state(x.ctx, x.pr, first, x.getTaskRun, presources.PipelineRunState{})
	if err == nil {
		state, err = x.r.state(x.ctx, x.pr, second, x.getTaskRun, state)
	}
	if err != nil {
		x.fail(v1.PipelineRunReasonFailedValidation, "PipelineRun %s/%s can't be Run; couldn't resolve all references: %s", x.pr.Namespace, x.pr.Name, pipelineerrors.WrapUserError(err))
		return nil, false
	}
	for _, rpt := range state {
		if err := taskrun.ValidateResolvedTask(x.ctx, rpt.PipelineTask.Params, rpt.PipelineTask.Matrix, rpt.ResolvedTask); err != nil {
			x.fail(v1.PipelineRunReasonFailedValidation, "Validation failed for pipelinerun %s with error %s", x.pr.Name, pipelineerrors.WrapUserError(err))
			return nil, false
		}
		if err := rpt.EvaluateCEL(); err != nil {
			x.fail(v1.PipelineRunReasonCELEvaluationFailed, "Error evaluating CEL %s: %v", x.pr.Name, pipelineerrors.WrapUserError(err))
			return nil, false
		}
	}
	facts := &presources.PipelineRunFacts{
		State:           state,
		SpecStatus:      x.pr.Spec.Status,
		TasksGraph:      x.r.graph,
		FinalTasksGraph: x.r.finally,
		TimeoutsState:   presources.PipelineRunTimeoutsState{Clock: x.clock},
	}
	if t := x.pr.Status.StartTime; t != nil {
		facts.TimeoutsState.StartTime = &t.Time
	}
	if t := x.pr.Status.FinallyStartTime; t != nil {
		facts.TimeoutsState.FinallyStartTime = &t.Time
	}
	if t := x.pr.TasksTimeout(); t != nil {
		facts.TimeoutsState.TasksTimeout = &t.Duration
	}
	if t := x.pr.FinallyTimeout(); t != nil {
		facts.TimeoutsState.FinallyTimeout = &t.Duration
	}
	if t := x.pr.PipelineTimeout(x.ctx); t != 0 {
		facts.TimeoutsState.PipelineTimeout = &t
	}
	return facts, true
}

// timeOutTasks stops the tasks, or the finally tasks, whose share of the
// pipeline's time is over.
func (x *runner) timeOutTasks(facts *presources.PipelineRunFacts) error {
	final := x.pr.Status.FinallyStartTime != nil
	over := x.pr.HaveTasksTimedOut(x.ctx, x.clock)
	if final {
		over = x.pr.HasFinallyTimedOut(x.ctx, x.clock)
	}
	if !over {
		return nil
	}
	stop := map[string]bool{}
	for _, rpt := range facts.State {
		if rpt.IsFinalTask(facts) == final && rpt.IsRunning() {
			stop[rpt.PipelineTask.Name] = true
		}
	}
	if len(stop) == 0 {
		return nil
	}
	return x.stopTasks(stop, v1.TaskRunCancelledByPipelineTimeoutMsg)
}

// scheduleNext makes TaskRuns for what is ready. It returns false when the run
// has failed instead.
func (x *runner) scheduleNext(facts *presources.PipelineRunFacts) bool {
	next, err := facts.DAGExecutionQueue()
	if err != nil {
		x.fail(v1.PipelineRunReasonInvalidGraph, "PipelineRun %s/%s: %v", x.pr.Namespace, x.pr.Name, err)
		return false
	}
	for _, rpt := range next {
		err := presources.CheckMissingResultReferences(facts.State, rpt)
		if err == nil {
			continue
		}
		// A result that was promised and not written: the task that needs it is
		// not run, and neither is any other but the finally tasks.
		next = nil
		facts.ValidationFailedTask = append(facts.ValidationFailedTask, rpt)
		if facts.ValidationFailedErrors == nil {
			facts.ValidationFailedErrors = map[string]string{}
		}
		facts.ValidationFailedErrors[rpt.PipelineTask.Name] = err.Error()
	}
	final, ok := x.finalTasks(facts)
	if !ok {
		return false
	}
	next = append(next, final...)
	if x.pr.Status.FinallyStartTime == nil && facts.IsFinalTaskStarted() {
		x.startFinally(facts)
	}
	presources.ApplyResultsToWorkspaceBindings(facts.State.GetTaskRunsResults(), x.pr)
	for _, rpt := range next {
		if rpt.IsFinalTask(facts) {
			x.startFinally(facts)
		}
		if rpt.Skip(facts).IsSkipped || rpt.IsFinallySkipped(facts).IsSkipped {
			continue
		}
		presources.PropagateResults(rpt, facts.State)
		if rpt.PipelineTask.IsMatrixed() {
			if err := presources.ValidateParameterTypesInMatrix(facts.State); err != nil {
				x.fail(v1.PipelineRunReasonInvalidMatrixParameterTypes, "Failed to validate matrix %q with error %v", x.pr.Name, pipelineerrors.WrapUserError(err))
				return false
			}
		}
		if !x.create(rpt, facts) {
			return false
		}
	}
	return true
}

// finalTasks are the finally tasks that are due, with the states and results of
// the others filled in. One whose results are missing is left out here and
// counts as skipped.
func (x *runner) finalTasks(facts *presources.PipelineRunFacts) (presources.PipelineRunState, bool) {
	due := facts.GetFinalTasks()
	if len(due) == 0 {
		return nil, true
	}
	presources.ApplyPipelineTaskStateContext(due, facts.GetPipelineTaskStatus())
	var ready presources.PipelineRunState
	for _, rpt := range due {
		refs, _, err := presources.ResolveResultRef(facts.State, rpt)
		if err != nil {
			continue
		}
		presources.ApplyTaskResults(presources.PipelineRunState{rpt}, refs)
		if err := rpt.EvaluateCEL(); err != nil {
			x.fail(v1.PipelineRunReasonCELEvaluationFailed, "Error evaluating CEL %s: %v", x.pr.Name, pipelineerrors.WrapUserError(err))
			return nil, false
		}
		ready = append(ready, rpt)
	}
	return ready, true
}

func (x *runner) startFinally(facts *presources.PipelineRunFacts) {
	if x.pr.Status.FinallyStartTime == nil {
		x.pr.Status.FinallyStartTime = &metav1.Time{Time: x.clock.Now()}
	}
	if facts.TimeoutsState.FinallyStartTime == nil {
		facts.TimeoutsState.FinallyStartTime = &x.pr.Status.FinallyStartTime.Time
	}
}

// create makes the TaskRuns of one task.
func (x *runner) create(rpt *presources.ResolvedPipelineTask, facts *presources.PipelineRunFacts) bool {
	bindings, err := taskWorkspaces(x.pr, rpt)
	if err != nil {
		x.fail(v1.PipelineRunReasonCreateRunFailed, "%v", err)
		return false
	}
	var made []*v1.TaskRun
	for i := range rpt.TaskRunNames {
		tr := newTaskRun(x.ctx, x.pr, rpt, x.r.id, i, bindings, facts)
		tr.CreationTimestamp = metav1.Time{Time: x.clock.Now()}
		if err := taskrun.ValidateEnumParam(x.ctx, tr.Spec.Params, rpt.ResolvedTask.TaskSpec.Params); err != nil && x.r.flags.EnableParamEnum {
			x.fail(v1.PipelineRunReasonInvalidParamValue, "Invalid param value from PipelineTask \"%s\": %v", rpt.PipelineTask.Name, pipelineerrors.WrapUserError(err))
			return false
		}
		if err := tr.Validate(x.ctx); err != nil {
			x.fail(v1.PipelineRunReasonCreateRunFailed, "%v", err)
			return false
		}
		made = append(made, tr)
	}
	rpt.TaskRuns = made
	for _, tr := range made {
		x.add(tr, x.r.tasks[rpt.PipelineTask.Name], rpt.PipelineTask.Name)
	}
	return true
}

// conclude writes what follows from the state into the PipelineRun's status.
func (x *runner) conclude(facts *presources.PipelineRunFacts) {
	status := &x.pr.Status
	c := facts.GetPipelineConditionStatus(x.ctx, x.pr, zap.NewNop().Sugar(), x.clock)
	switch c.Status {
	case corev1.ConditionTrue:
		status.MarkSucceeded(c.Reason, "%s", c.Message)
	case corev1.ConditionFalse:
		status.MarkFailed(c.Reason, "%s", c.Message)
	default:
		status.MarkRunning(c.Reason, "%s", c.Message)
	}
	status.StartTime = facts.State.AdjustStartTime(status.StartTime)
	status.ChildReferences = facts.GetChildReferences()
	status.SkippedTasks = facts.GetSkippedTasks()
	if !x.pr.IsDone() {
		return
	}
	x.stampRun()
	states := facts.GetPipelineTaskStatus()
	maps.Copy(states, facts.GetPipelineFinalTaskStatus())
	results, err := presources.ApplyTaskResultsToPipelineResults(x.r.pipelineSpec.Results, facts.State.GetTaskRunsResults(), facts.State.GetRunsResults(), states)
	status.Results = results
	if err != nil {
		x.fail(v1.PipelineRunReasonCouldntGetPipelineResult, "Failed to get PipelineResult from TaskRun Results for PipelineRun %s: %s", x.pr.Name, err)
	}
}
