package pipeline

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	pipelineerrors "github.com/tektoncd/pipeline/pkg/apis/pipeline/errors"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/pod"
	"github.com/tektoncd/pipeline/pkg/result"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"knative.dev/pkg/kmeta"

	"assay.dev/assay/plan"
)

// Reasons of a step that Tekton's entrypoint gives inside a container whose own
// reason is Error or Completed.
var entrypointReasons = []string{pod.TerminationReasonTimeoutExceeded, pod.TerminationReasonSkipped, pod.TerminationReasonCancelled}

// podName is what upstream would call the pod of this attempt. There is none,
// but the field is not optional and messages speak of it.
func podName(tr *v1.TaskRun) string {
	suffix := "-pod"
	if n := len(tr.Status.RetriesStatus); n > 0 {
		suffix = fmt.Sprintf("%s-retry%d", suffix, n)
	}
	return kmeta.ChildName(tr.Name, suffix)
}

// completed lets upstream read the status off a pod that is made up from what
// the executor reports, so that reasons, messages and results are upstream's.
func (x *runner) completed(t *taskRun, d *plan.Done, finished time.Time) error {
	made, err := t.pod(d, finished)
	if err != nil {
		return fmt.Errorf("running %s: %w: %w", x.r.Name(), ErrLost, err)
	}
	tr := t.tr
	tr.Status.Steps = nil
	status, err := pod.MakeTaskRunStatus(x.ctx, zap.NewNop().Sugar(), *tr, made, nil, t.rendered.Spec)
	if err != nil {
		return x.end(t, v1.TaskRunReasonFailedValidation, err, finished)
	}
	tr.Status = status
	t.provenanceOfSteps()
	x.stamp(t, finished)
	if tr.IsSuccessful() && d.Reason != "" {
		// Every step went well, but not what comes after them: an export.
		message := d.Message
		if message == "" {
			message = "the task failed after its last step"
		}
		return x.end(t, v1.TaskRunReasonFailed, errors.New(message), finished)
	}
	if err := checkResults(tr, t.rendered.Spec.Results); err != nil {
		return x.end(t, v1.TaskRunReasonFailedValidation, err, finished)
	}
	return x.retryOrDone(t)
}

// pod makes up the pod. Where the executor says that all went well it must have
// said of every step that it ended.
func (t *taskRun) pod(d *plan.Done, finished time.Time) (*corev1.Pod, error) {
	p := &corev1.Pod{}
	p.Name = t.tr.Status.PodName
	p.Status.Phase = corev1.PodSucceeded
	last := -1
	for i, step := range t.rendered.Steps {
		s, ok := t.steps[step.Name]
		ended := ok && !s.Finished.IsZero()
		if !ended && d.Reason == "" {
			return nil, fmt.Errorf("it says that %s succeeded but not that step %s ended", t.tr.Name, step.Name)
		}
		if !ended {
			// Not run because an earlier one failed.
			s = plan.StepState{Name: step.Name, Image: s.Image, Started: finished, Finished: finished, ExitCode: 1, Reason: pod.TerminationReasonSkipped}
		} else {
			last = i
		}
		status := containerStatus(step, s)
		if status.State.Terminated.ExitCode != 0 || status.State.Terminated.Reason == "OOMKilled" {
			p.Status.Phase = corev1.PodFailed
		}
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: status.Name})
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, status)
	}
	if last >= 0 {
		// Tekton's last step to end tells the task's results.
		terminated := p.Status.ContainerStatuses[last].State.Terminated
		terminated.Message = withResults(terminated.Message, t.declaredResults(d.Results), result.TaskRunResultType)
	}
	return p, nil
}

// declaredResults are the results that the Task declares, in its order.
func (t *taskRun) declaredResults(reported []plan.Result) []plan.Result {
	return declared(t.rendered.Results, reported)
}

func declared(names []string, reported []plan.Result) []plan.Result {
	var out []plan.Result
	for _, name := range names {
		for _, r := range reported {
			if r.Name == name {
				out = append(out, r)
				break
			}
		}
	}
	return out
}

// containerStatus is how a kubelet, and Tekton's entrypoint inside, would have
// told of a step.
func containerStatus(step plan.Step, s plan.StepState) corev1.ContainerStatus {
	internal := func(key, value string) result.RunResult {
		return result.RunResult{Key: key, Value: value, ResultType: result.InternalTektonResultType}
	}
	const milliseconds = "2006-01-02T15:04:05.000Z07:00"
	messages := []result.RunResult{internal("StartedAt", s.Started.Format(milliseconds))}
	reason, code := s.Reason, s.ExitCode
	switch {
	case slices.Contains(entrypointReasons, reason):
		messages = append(messages, internal("Reason", reason))
		reason = "Error"
		if code == 0 {
			code = 1
		}
	case step.Continue && code != 0 && reason != "OOMKilled":
		// The entrypoint swallows the code, so that the next step starts.
		messages = append(messages, internal("ExitCode", fmt.Sprint(code)))
		reason, code = "Completed", 0
	case reason == "" || reason == "Completed" || reason == "Error":
		reason = "Completed"
		if code != 0 {
			reason = "Error"
		}
	}
	raw, _ := json.Marshal(messages)
	return corev1.ContainerStatus{
		Name:    "step-" + s.Name,
		ImageID: s.Image,
		Image:   step.Image,
		State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode:   int32(code),
			Reason:     reason,
			StartedAt:  metav1.Time{Time: s.Started},
			FinishedAt: metav1.Time{Time: s.Finished},
			Message:    withResults(string(raw), declared(step.Results, s.Results), result.StepResultType),
		}},
	}
}

// withResults adds results to a termination message.
func withResults(message string, results []plan.Result, kind result.ResultType) string {
	var list []result.RunResult
	if err := json.Unmarshal([]byte(message), &list); err != nil {
		return message
	}
	for _, r := range results {
		list = append(list, result.RunResult{Key: r.Name, Value: r.Value, ResultType: kind})
	}
	raw, err := json.Marshal(list)
	if err != nil {
		return message
	}
	return string(raw)
}

// provenanceOfSteps notes where StepActions came from.
func (t *taskRun) provenanceOfSteps() {
	for i, source := range t.def.stepSources {
		if source != nil && i < len(t.tr.Status.Steps) {
			t.tr.Status.Steps[i].Provenance = &v1.Provenance{RefSource: source}
		}
	}
}

// stopped ends a TaskRun that was ended from outside: what had ended keeps its
// state, what had not ends with the reason of the task.
func (x *runner) stopped(t *taskRun, reason v1.TaskRunReason, cause error, finished time.Time) error {
	tr := t.tr
	tr.Status.Steps = nil
	if t.rendered != nil {
		for _, step := range t.rendered.Steps {
			tr.Status.Steps = append(tr.Status.Steps, t.stepState(step, reason, finished))
		}
		t.provenanceOfSteps()
	}
	return x.end(t, reason, cause, finished)
}

func (t *taskRun) stepState(step plan.Step, reason v1.TaskRunReason, finished time.Time) v1.StepState {
	s := t.steps[step.Name]
	out := v1.StepState{Name: step.Name, Container: "step-" + step.Name, ImageID: s.Image}
	if !s.Finished.IsZero() {
		terminated := containerStatus(step, s).State.Terminated
		terminated.Message = ""
		terminated.ExitCode = int32(s.ExitCode)
		out.Terminated = terminated
		out.TerminationReason = terminated.Reason
		if slices.Contains(entrypointReasons, s.Reason) {
			out.TerminationReason = s.Reason
		}
		return out
	}
	started := metav1.Time{Time: s.Started}
	if s.Started.IsZero() {
		started = t.tr.CreationTimestamp
	}
	out.Terminated = &corev1.ContainerStateTerminated{
		ExitCode:   1,
		StartedAt:  started,
		FinishedAt: metav1.Time{Time: finished},
		Reason:     reason.String(),
		Message:    fmt.Sprintf("Step %s terminated as pod %s is terminated", step.Name, t.tr.Status.PodName),
	}
	out.TerminationReason = reason.String()
	return out
}

// checkResults holds the results to their declared types and keys. Those of
// another type are dropped: nobody may read them.
func checkResults(tr *v1.TaskRun, specs []v1.TaskResult) error {
	byName := map[string]v1.TaskResult{}
	for _, s := range specs {
		byName[s.Name] = s
	}
	wrong := map[string]string{}
	missing := map[string][]string{}
	var kept []v1.TaskRunResult
	for _, r := range tr.Status.Results {
		s, ok := byName[r.Name]
		if ok && s.Type != r.Type {
			wrong[r.Name] = fmt.Sprintf(" %q: task result is expected to be \"%v\" type but was initialized to a different type \"%v\"", r.Name, s.Type, r.Type)
			continue
		}
		kept = append(kept, r)
		for _, key := range slices.Sorted(maps.Keys(s.Properties)) {
			if _, ok := r.Value.ObjectVal[key]; !ok && s.Type == v1.ResultsTypeObject {
				missing[r.Name] = append(missing[r.Name], key)
			}
		}
	}
	tr.Status.Results = kept
	if len(wrong) > 0 {
		list := slices.Sorted(maps.Values(wrong))
		return pipelineerrors.WrapUserError(fmt.Errorf("Provided results don't match declared results; may be invalid JSON or missing result declaration: %s", strings.Join(list, ",")))
	}
	if len(missing) > 0 {
		return pipelineerrors.WrapUserError(fmt.Errorf("missing keys for these results which are required in TaskResult's properties %v", missing))
	}
	return nil
}
