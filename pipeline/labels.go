package pipeline

import (
	"maps"
	"regexp"
	"slices"

	"github.com/tektoncd/pipeline/pkg/apis/pipeline"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	tnames "github.com/tektoncd/pipeline/pkg/names"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// reservedAnnotation matches what Chains and its like write on a run; it is
// about that run and not handed on.
var reservedAnnotation = regexp.MustCompile(pipeline.TektonReservedAnnotationExpr)

// lastApplied is kubectl's copy of an object, never handed on.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// addMissing adds entries whose keys are not there yet.
func addMissing(to *map[string]string, from map[string]string) {
	if *to == nil {
		*to = map[string]string{}
	}
	for k, v := range from {
		if _, ok := (*to)[k]; !ok {
			(*to)[k] = v
		}
	}
}

// labelWithPipeline names the pipeline on its run before the pipeline is known.
func labelWithPipeline(pr *v1.PipelineRun) {
	if pr.Labels == nil {
		pr.Labels = map[string]string{}
	}
	if _, ok := pr.Labels[pipeline.PipelineLabelKey]; ok {
		return
	}
	label := pr.Name
	switch ref := pr.Spec.PipelineRef; {
	case ref != nil && ref.Name != "":
		label = ref.Name
	case pr.Spec.PipelineSpec != nil:
		if pr.GenerateName != "" {
			label = tnames.SimpleNameGenerator.RestrictLength(pr.GenerateName)
		}
	case ref != nil:
		params := map[string]string{}
		for _, p := range ref.Params {
			params[p.Name] = p.Value.StringVal
		}
		if params["kind"] == "pipeline" {
			label = params["name"]
		}
	}
	pr.Labels[pipeline.PipelineLabelKey] = label
}

// mergePipelineMeta hands the pipeline's labels and annotations to its run,
// whose own win.
func mergePipelineMeta(pr *v1.PipelineRun, meta *metav1.ObjectMeta) {
	addMissing(&pr.Labels, meta.Labels)
	if meta.Name != "" && (pr.Labels[pipeline.PipelineLabelKey] == "" || meta.GenerateName == "") {
		pr.Labels[pipeline.PipelineLabelKey] = meta.Name
	}
	addMissing(&pr.Annotations, without(meta.Annotations, lastApplied))
}

// mergeTaskMeta hands a Task's labels and annotations to its TaskRun.
func mergeTaskMeta(tr *v1.TaskRun, d *definition) {
	if tr.Spec.TaskRef == nil {
		return
	}
	addMissing(&tr.Annotations, without(d.annotations, lastApplied))
	addMissing(&tr.Labels, d.labels)
	tr.Labels[pipeline.TaskLabelKey] = d.name
}

func without(m map[string]string, key string) map[string]string {
	m = maps.Clone(m)
	delete(m, key)
	return m
}

// taskRunLabels: those of taskRunSpecs win over the run's, those over the
// embedded taskSpec's.
func taskRunLabels(pr *v1.PipelineRun, t *v1.PipelineTask) map[string]string {
	var out map[string]string
	if m := pr.GetTaskRunSpec(t.Name).Metadata; m != nil {
		addMissing(&out, m.Labels)
	}
	inherited := maps.Clone(pr.Labels)
	if inherited == nil {
		inherited = map[string]string{}
	}
	inherited[pipeline.PipelineRunLabelKey] = pr.Name
	inherited[pipeline.PipelineRunUIDLabelKey] = string(pr.UID)
	inherited[pipeline.PipelineTaskLabelKey] = t.Name
	if member := memberOf(pr.Status.PipelineSpec, t.Name); member != "" {
		inherited[pipeline.MemberOfLabelKey] = member
	}
	addMissing(&out, inherited)
	if t.TaskSpec != nil {
		addMissing(&out, t.TaskSpec.Metadata.Labels)
	}
	return out
}

func memberOf(spec *v1.PipelineSpec, name string) string {
	called := func(t v1.PipelineTask) bool { return t.Name == name }
	switch {
	case spec == nil:
	case slices.ContainsFunc(spec.Tasks, called):
		return v1.PipelineTasks
	case slices.ContainsFunc(spec.Finally, called):
		return v1.PipelineFinallyTasks
	}
	return ""
}

func taskRunAnnotations(pr *v1.PipelineRun, t *v1.PipelineTask) map[string]string {
	var out map[string]string
	if m := pr.GetTaskRunSpec(t.Name).Metadata; m != nil {
		addMissing(&out, m.Annotations)
	}
	inherited := maps.Clone(pr.Annotations)
	maps.DeleteFunc(inherited, func(k, _ string) bool { return reservedAnnotation.MatchString(k) })
	addMissing(&out, inherited)
	if t.TaskSpec != nil {
		addMissing(&out, t.TaskSpec.Metadata.Annotations)
	}
	if t.OnError == v1.PipelineTaskContinue {
		out[v1.PipelineTaskOnErrorAnnotation] = string(v1.PipelineTaskContinue)
	}
	return out
}
