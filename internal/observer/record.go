package observer

import (
	"encoding/json"
	"slices"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"assay.dev/assay/internal/registry"
	"assay.dev/assay/observe"
)

// observation writes down what the facts say; nothing in it is taken from the
// objects but names, parameters and references, which agree has compared.
func observation(a *agreed, c *claims, refs map[string]observe.Ref, pipeline *observe.Ref, uploads []registry.Upload, builder string) *observe.Observation {
	o := &observe.Observation{
		Run: observe.RunRecord{
			ID: a.rec.Admission.Run, Name: a.name(), SpecDigest: a.opened.SpecDigest,
			Opened: a.rec.Opened, Closed: a.rec.Closed, Outcome: a.rec.Ending.Outcome,
			Executor: a.opened.Executor, LedgerHead: a.rec.Head, Pipeline: pipeline,
		},
		Source: c.source, Claims: c.list, Builder: builder,
		Tasks: make([]observe.TaskRecord, 0, len(a.attempts)),
	}
	if o.Claims == nil {
		o.Claims = []observe.Claim{}
	}
	for _, f := range a.attempts {
		t := observe.TaskRecord{
			TaskRun: f.started.Task, PipelineTask: f.started.PipelineTask, Attempt: f.started.Attempt.Attempt,
			Ref: refs[f.started.Task], Started: f.started.Started, Finished: f.finished.Finished,
			Outcome: f.finished.Reason, Network: f.started.Network, Connections: f.finished.Network,
			Hermetic: f.finished.Hermetic, Token: f.finished.Token,
			Inputs: f.started.Inputs, Outputs: f.finished.Outputs, Volumes: f.started.Volumes,
			Steps: f.steps, Results: f.finished.Results,
		}
		if t.Outcome == "" {
			t.Outcome = "succeeded"
		}
		t.Params = params(a.runs[f.started.Task])
		for _, u := range uploads {
			if u.Task == t.TaskRun && u.Attempt == t.Attempt && u.Kind == "task" && !slices.Contains(t.Uploads, u.Digest) {
				t.Uploads = append(t.Uploads, u.Digest)
			}
		}
		o.Tasks = append(o.Tasks, t)
	}
	return o
}

// params are a TaskRun's parameters by name.
func params(tr *v1.TaskRun) json.RawMessage {
	if tr == nil || len(tr.Spec.Params) == 0 {
		return nil
	}
	m := map[string]v1.ParamValue{}
	for _, p := range tr.Spec.Params {
		m[p.Name] = p.Value
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil
	}
	return raw
}

func (a *agreed) name() string {
	if a.in.PipelineRun != nil {
		return a.in.PipelineRun.Name
	}
	return a.in.TaskRun.Name
}

// orderedRuns are the TaskRuns in the order of the record's input.
func orderedRuns(a *agreed) []*v1.TaskRun {
	if a.in.TaskRun != nil {
		return []*v1.TaskRun{a.in.TaskRun}
	}
	return a.in.Children
}
