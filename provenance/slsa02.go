package provenance

import (
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"assay.dev/assay/api"
)

// labelReproducible set to "true" makes v0.2 call the build reproducible. It is
// the author's word; nobody checks it.
const labelReproducible = "chains.tekton.dev/reproducible"

// slsa02 writes an in-toto Statement v0.1 with SLSA provenance v0.2.
//
// buildConfig lists the steps really run and, of a pipeline, its tasks with
// their order, parameters and results: the richest of the versions, and the one
// that most policies read.
func (s *statement) slsa02() error {
	e, r := &s.enc, s.run
	subjects, err := s.allOutputs()
	if err != nil {
		return err
	}
	materials, err := s.materials()
	if err != nil {
		return err
	}

	e.open('{')
	e.field("_type", api.StatementV01)
	e.field("predicateType", api.PredicateSLSAv02)
	e.statementSubjects(subjects)
	e.key("predicate")
	e.open('{')
	e.key("builder")
	e.open('{')
	e.field("id", s.cfg.BuilderID)
	e.close('}')
	e.field("buildType", "tekton.dev/v1/"+r.kind)
	e.key("invocation")
	e.invocation(r.meta, r.source, r.params, r.specs)
	e.key("buildConfig")
	if r.task != nil {
		e.taskBuildConfig(r.task)
	} else {
		e.pipelineBuildConfig(r)
	}
	e.key("metadata")
	e.open('{')
	e.optionalTime("buildStartedOn", r.started)
	e.optionalTime("buildFinishedOn", r.finished)
	e.key("completeness")
	e.literal(`{"parameters":false,"environment":false,"materials":false}`)
	e.key("reproducible")
	if r.meta.Labels[labelReproducible] == "true" {
		e.literal("true")
	} else {
		e.literal("false")
	}
	e.close('}')
	if len(materials) > 0 {
		e.key("materials")
		e.open('[')
		for _, m := range materials {
			e.open('{')
			e.optional("uri", m.name)
			if len(m.digest.all) > 0 {
				e.key("digest")
				e.digests(m.digest)
			}
			e.close('}')
		}
		e.close(']')
	}
	e.close('}')
	e.close('}')
	return nil
}

// statementSubjects writes the statement's subjects, which every version has
// alike; without any, the field is left out.
func (e *encoder) statementSubjects(subjects []artifact) {
	if len(subjects) == 0 {
		return
	}
	e.key("subject")
	e.open('[')
	for _, sub := range subjects {
		e.open('{')
		e.optional("name", sub.name)
		e.key("digest")
		e.digests(sub.digest)
		e.close('}')
	}
	e.close(']')
}

// materials are what went in: images of steps and sidecars, definitions, and
// the hints for inputs. A TaskRun's own definition is, as upstream has it, no
// material; a pipeline's and its tasks' are.
func (s *statement) materials() ([]artifact, error) {
	var out artifacts
	containers := func(tr *v1.TaskRun) error {
		steps, err := stepImages(tr)
		if err != nil {
			return err
		}
		sidecars, err := sidecarImages(tr)
		if err != nil {
			return err
		}
		for _, a := range append(steps, sidecars...) {
			out.add(a.name, a.digest)
		}
		return nil
	}
	r := s.run
	if r.task != nil {
		if err := containers(r.task); err != nil {
			return nil, err
		}
		s.inputs(&out, r.hints.Git)
		s.inputs(&out, r.hints.Inputs)
		return out.list, nil
	}

	if r.source != nil {
		out.add(r.source.uri, r.source.digest)
	}
	err := r.executed(func(c *child) error {
		if err := containers(c.TaskRun); err != nil {
			return err
		}
		if c.source != nil {
			out.add(c.source.uri, c.source.digest)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.pipelineInputs(&out)
	return out.list, nil
}

// pipelineInputs adds a PipelineRun's hints for inputs: its own objects, with
// deep inspection its tasks' hints, and its own commit last.
func (s *statement) pipelineInputs(to *artifacts) {
	r := s.run
	s.inputs(to, r.hints.Inputs)
	if s.cfg.DeepInspection {
		_ = r.executed(func(c *child) error {
			h := c.taskHints()
			s.inputs(to, h.Git)
			s.inputs(to, h.Inputs)
			return nil
		})
	}
	s.inputs(to, r.hints.Git)
}

// invocation says from which definition and with which parameters and metadata
// the run or one of its tasks was started.
func (e *encoder) invocation(meta *metav1.ObjectMeta, src *source, params []v1.Param, specs []v1.ParamSpec) {
	e.open('{')
	e.key("configSource")
	e.open('{')
	if src != nil {
		e.optional("uri", src.uri)
		if len(src.digest.all) > 0 {
			e.key("digest")
			e.digests(src.digest)
		}
		e.optional("entryPoint", src.entry)
	}
	e.close('}')

	e.key("parameters")
	e.parameters(params, specs)

	annotations := make(map[string]string, len(meta.Annotations))
	for k, v := range meta.Annotations {
		// The signer's own bookkeeping and kubectl's copy of the object say
		// nothing about the build.
		if k != corev1.LastAppliedConfigAnnotation && !strings.HasPrefix(k, "chains.tekton.dev/") {
			annotations[k] = v
		}
	}
	if len(annotations) > 0 || len(meta.Labels) > 0 {
		e.key("environment")
		e.open('{')
		if len(annotations) > 0 {
			e.key("annotations")
			e.stringMap(annotations)
		}
		if len(meta.Labels) > 0 {
			e.key("labels")
			e.stringMap(meta.Labels)
		}
		e.close('}')
	}
	e.close('}')
}

// parameters writes the values in force, in the order in which they were first
// declared: the definition's defaults, overridden by what the run gives.
func (e *encoder) parameters(params []v1.Param, specs []v1.ParamSpec) {
	var order []string
	values := make(map[string]*v1.ParamValue, len(params)+len(specs))
	set := func(name string, v *v1.ParamValue) {
		if _, known := values[name]; !known {
			order = append(order, name)
		}
		values[name] = v
	}
	for i := range specs {
		if specs[i].Default != nil {
			set(specs[i].Name, specs[i].Default)
		}
	}
	for i := range params {
		set(params[i].Name, &params[i].Value)
	}
	e.open('{')
	for _, name := range order {
		e.key(name)
		e.param(values[name])
	}
	e.close('}')
}

func (e *encoder) optionalTime(key string, t *metav1.Time) {
	if t == nil {
		return
	}
	text, err := utc(t)
	if err != nil {
		e.fail(err)
		return
	}
	e.field(key, text)
}

// taskBuildConfig lists a TaskRun's steps, each with the step of the definition
// that has its name; an unnamed one has none and stays empty.
func (e *encoder) taskBuildConfig(tr *v1.TaskRun) {
	byName := map[string]*v1.Step{}
	if spec := tr.Status.TaskSpec; spec != nil {
		for i := range spec.Steps {
			if name := spec.Steps[i].Name; byName[name] == nil {
				byName[name] = &spec.Steps[i]
			}
		}
	}
	e.open('{')
	e.key("steps")
	e.open('[')
	for i := range tr.Status.Steps {
		state := &tr.Status.Steps[i]
		step := byName[state.Name]
		if step == nil {
			step = &v1.Step{}
		}
		e.step(step, state)
	}
	e.close(']')
	e.close('}')
}

// step writes one step. Its environment's "container" is the step's name.
func (e *encoder) step(step *v1.Step, state *v1.StepState) {
	entry := step.Script
	if entry == "" {
		entry = strings.Join(step.Command, " ")
	}
	e.open('{')
	e.field("entryPoint", entry)
	e.key("arguments")
	e.strings(step.Args)
	e.key("environment")
	e.open('{')
	e.field("container", state.Name)
	e.field("image", "oci://"+strings.TrimPrefix(state.ImageID, pullable))
	e.close('}')
	e.key("annotations")
	e.literal("null")
	e.close('}')
}

// pipelineBuildConfig lists the TaskRuns that completed. A TaskRun whose steps
// cannot be matched with its definition is left out here, as upstream leaves it
// out; its images and artifacts are stated all the same.
func (e *encoder) pipelineBuildConfig(r *run) {
	e.open('{')
	e.key("tasks")
	if r.pipeline.Status.PipelineSpec == nil {
		e.literal("null")
		e.close('}')
		return
	}
	e.open('[')
	var last string // task before the finally tasks that has TaskRuns
	for _, st := range r.stages {
		if len(st.runs) == 0 {
			continue
		}
		after := order(st, last)
		for _, c := range st.runs {
			if c.Status.CompletionTime != nil && stepsMatch(c.TaskRun) {
				e.task(r, st.task, c, after)
			}
		}
		if !st.finally {
			last = st.task.Name
		}
	}
	e.close(']')
	e.close('}')
}

// order lists the tasks that st came after: those it says, then those whose
// results it uses. A finally task that says nothing came after the last task.
func order(st stage, last string) []string {
	after := append([]string(nil), st.task.RunAfter...)
	known := make(map[string]bool, len(after))
	for _, name := range after {
		known[name] = true
	}
	for _, ref := range v1.PipelineTaskResultRefs(st.task) {
		if !known[ref.PipelineTask] {
			known[ref.PipelineTask] = true
			after = append(after, ref.PipelineTask)
		}
	}
	if len(after) == 0 && st.finally && last != "" {
		after = append(after, last)
	}
	return after
}

// stepsMatch says whether states and definitions of steps belong together by
// position: as many of one as of the other, and no named one run as unnamed.
func stepsMatch(tr *v1.TaskRun) bool {
	spec := tr.Status.TaskSpec
	if spec == nil || len(spec.Steps) != len(tr.Status.Steps) {
		return false
	}
	for i := range spec.Steps {
		if spec.Steps[i].Name != "" && strings.HasPrefix(tr.Status.Steps[i].Name, "unnamed-") {
			return false
		}
	}
	return true
}

// task writes one TaskRun of a pipeline. The service account is the pipeline's
// default, whatever the task ran as: upstream's rule.
func (e *encoder) task(r *run, pt *v1.PipelineTask, c *child, after []string) {
	tr := c.TaskRun
	e.open('{')
	e.optional("name", pt.Name)
	if len(after) > 0 {
		e.key("after")
		e.strings(after)
	}
	e.key("ref")
	if pt.TaskRef != nil {
		e.typed(pt.TaskRef)
	} else {
		e.literal("{}")
	}
	e.optionalTime("startedOn", tr.Status.StartTime)
	e.optionalTime("finishedOn", tr.Status.CompletionTime)
	e.optional("serviceAccountName", r.pipeline.Spec.TaskRunTemplate.ServiceAccountName)
	if conditions := tr.Status.Conditions; len(conditions) > 0 {
		switch conditions[0].Status {
		case corev1.ConditionTrue:
			e.field("status", "Succeeded")
		case corev1.ConditionFalse:
			e.field("status", "Failed")
		case corev1.ConditionUnknown:
			e.field("status", "Running")
		}
	}
	if spec := tr.Status.TaskSpec; len(spec.Steps) > 0 {
		e.key("steps")
		e.open('[')
		for i := range spec.Steps {
			e.step(&spec.Steps[i], &tr.Status.Steps[i])
		}
		e.close(']')
	}
	e.key("invocation")
	e.invocation(&tr.ObjectMeta, c.source, tr.Spec.Params, tr.Status.TaskSpec.Params)
	if len(tr.Status.Results) > 0 {
		e.key("results")
		e.open('[')
		for i := range tr.Status.Results {
			res := &tr.Status.Results[i]
			e.open('{')
			e.field("name", res.Name)
			e.optional("type", string(res.Type))
			e.key("value")
			e.param(&res.Value)
			e.close('}')
		}
		e.close(']')
	}
	e.close('}')
}
