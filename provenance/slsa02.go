package provenance

import (
	"slices"
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

	e.buf = make([]byte, 0, 4<<10+256*(len(subjects)+len(materials))+r.buildConfigSize())
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
	r := s.run
	if r.task != nil {
		if err := containers(r.task, out.addOne); err != nil {
			return nil, err
		}
		s.inputs(&out, r.hints.Git)
		s.inputs(&out, r.hints.Inputs)
		return out.list, nil
	}

	if r.source != nil {
		out.add(r.source.uri, &r.source.digest)
	}
	err := r.executed(func(c *child) error {
		if err := containers(c.TaskRun, out.addOne); err != nil {
			return err
		}
		if c.source != nil {
			out.add(c.source.uri, &c.source.digest)
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
			e.digests(&src.digest)
		}
		e.optional("entryPoint", src.entry)
	}
	e.close('}')

	e.key("parameters")
	e.parameters(params, specs)

	told := false // by an annotation
	for k := range meta.Annotations {
		told = told || aboutBuild(k)
	}
	if told || len(meta.Labels) > 0 {
		e.key("environment")
		e.open('{')
		if told {
			e.key("annotations")
			e.sorted(meta.Annotations, aboutBuild)
		}
		if len(meta.Labels) > 0 {
			e.key("labels")
			e.stringMap(meta.Labels)
		}
		e.close('}')
	}
	e.close('}')
}

// aboutBuild tells a build's annotations from the signer's own bookkeeping and
// kubectl's copy of the object.
func aboutBuild(annotation string) bool {
	return annotation != corev1.LastAppliedConfigAnnotation && !strings.HasPrefix(annotation, "chains.tekton.dev/")
}

// parameters writes the values in force, in the order in which they were first
// declared: the definition's defaults, overridden by what the run gives.
func (e *encoder) parameters(params []v1.Param, specs []v1.ParamSpec) {
	var room [16]named
	list := room[:0]
	var index map[string]int // of list, once that is long
	set := func(name string, v *v1.ParamValue) {
		at := -1
		if index != nil {
			if i, ok := index[name]; ok {
				at = i
			}
		} else {
			at = slices.IndexFunc(list, func(n named) bool { return n.name == name })
		}
		if at >= 0 {
			list[at].value = v
			return
		}
		if index != nil {
			index[name] = len(list)
		}
		list = append(list, named{name, v})
		if index == nil && len(list) == len(room) {
			index = make(map[string]int, len(params)+len(specs))
			for i, n := range list {
				index[n.name] = i
			}
		}
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
	for _, n := range list {
		e.key(n.name)
		e.param(n.value)
	}
	e.close('}')
}

// optionalTime writes a time as statements of v0.2 do: RFC 3339 in UTC.
func (e *encoder) optionalTime(key string, t *metav1.Time) {
	if t == nil {
		return
	}
	e.key(key)
	e.buf = append(e.buf, '"')
	var err error
	if e.buf, err = t.UTC().AppendText(e.buf); err != nil {
		e.fail(err)
	}
	e.buf = append(e.buf, '"')
}

// buildConfigSize is about the length of what buildConfig and the invocation
// will be, so that a large statement is not copied while it grows. An escape
// every sixteen characters is what scripts have.
func (r *run) buildConfigSize() int {
	n := 0
	text := func(s string) { n += len(s) + len(s)/16 + 8 }
	strings := func(m map[string]string) {
		for k, v := range m {
			text(k)
			text(v)
		}
	}
	task := func(tr *v1.TaskRun) {
		n += 1 << 10
		if spec := tr.Status.TaskSpec; spec != nil {
			for i := range spec.Steps {
				n += 256
				text(spec.Steps[i].Script)
				for _, arg := range spec.Steps[i].Args {
					text(arg)
				}
			}
		}
		for i := range tr.Status.Results {
			n += 32
			text(tr.Status.Results[i].Name)
			text(tr.Status.Results[i].Value.StringVal)
		}
		strings(tr.Labels)
		strings(tr.Annotations)
	}
	strings(r.meta.Labels)
	strings(r.meta.Annotations)
	if r.task != nil {
		task(r.task)
	}
	_ = r.executed(func(c *child) error { task(c.TaskRun); return nil })
	return n
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
	switch {
	case entry != "":
	case len(step.Command) == 1:
		entry = step.Command[0]
	default:
		entry = strings.Join(step.Command, " ")
	}
	e.open('{')
	e.field("entryPoint", entry)
	e.key("arguments")
	e.strings(step.Args)
	e.key("environment")
	e.open('{')
	e.field("container", state.Name)
	e.key("image")
	e.joined("oci://", strings.TrimPrefix(state.ImageID, pullable))
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

// taskRef writes a reference as Tekton does.
func (e *encoder) taskRef(ref *v1.TaskRef) {
	e.open('{')
	e.optional("name", ref.Name)
	e.optional("kind", string(ref.Kind))
	e.optional("apiVersion", ref.APIVersion)
	e.optional("resolver", string(ref.Resolver))
	if len(ref.Params) > 0 {
		e.key("params")
		e.open('[')
		for i := range ref.Params {
			e.open('{')
			e.field("name", ref.Params[i].Name)
			e.key("value")
			e.param(&ref.Params[i].Value)
			e.close('}')
		}
		e.close(']')
	}
	e.close('}')
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
		e.taskRef(pt.TaskRef)
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
