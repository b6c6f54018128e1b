package pipeline

import (
	"encoding/json"
	"maps"
	"slices"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"assay.dev/assay/pipeline/render"
)

// specification writes render.Specification as canonical JSON (RFC 8785).
func (r *Resolved) specification() (json.RawMessage, error) {
	s := render.Specification{ConfigMaps: map[string]map[string][]byte{}}
	var run any
	if r.taskRun != nil {
		tr := r.taskRun.DeepCopy()
		tr.Status = v1.TaskRunStatus{}
		run = tr
		s.Tasks = []render.SpecifiedTask{r.task.specified("")}
	} else {
		pr := r.pipelineRun.DeepCopy()
		s.Pipeline = &render.SpecifiedPipeline{Name: r.pipelineName, PipelineSpec: r.pipelineSpec}
		if p := pr.Status.Provenance; p != nil {
			s.Pipeline.RefSource = p.RefSource
		}
		pr.Status = v1.PipelineRunStatus{}
		run = pr
		for _, t := range slices.Concat(r.pipelineSpec.Tasks, r.pipelineSpec.Finally) {
			s.Tasks = append(s.Tasks, r.tasks[t.Name].specified(t.Name))
		}
	}
	var err error
	if s.Run, err = json.Marshal(run); err != nil {
		return nil, err
	}
	for name := range r.objects.configMaps {
		s.ConfigMaps[name], _ = r.objects.configMapData(name)
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return jsoncanonicalizer.Transform(raw)
}

func (d *definition) specified(name string) render.SpecifiedTask {
	t := render.SpecifiedTask{Name: name, Task: d.name, Annotations: d.annotations, Spec: d.spec, RefSource: d.source}
	for _, i := range slices.Sorted(maps.Keys(d.stepActions)) {
		t.StepActions = append(t.StepActions, render.SpecifiedStepAction{
			Step:      i,
			Name:      d.stepActions[i].Name,
			Spec:      d.stepActions[i].Spec,
			RefSource: d.stepSources[i],
		})
	}
	return t
}
