package provenance

import (
	"bytes"
	"encoding/json"
	"fmt"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"assay.dev/assay/api"
	"assay.dev/assay/hint"
)

// Names of resolved dependencies.
const (
	depTask         = "task"
	depPipeline     = "pipeline"
	depPipelineTask = "pipelineTask"
	depInput        = "inputs/result"
	depStepAction   = "stepAction/" // + step
)

// descriptor is an in-toto ResourceDescriptor.
type descriptor struct {
	prefix, name string // of one name
	uri          string
	digest       *digestSet // nil: none
	content      []byte     // JSON
}

// slsa1 writes an in-toto Statement v1 with SLSA provenance v1.0, which
// v2alpha3 and v2alpha4 fill differently.
func (s *statement) slsa1(subjects []artifact, deps, byproducts []descriptor) error {
	e, r := &s.enc, s.run
	spec, err := json.Marshal(r.spec)
	if err != nil {
		return fmt.Errorf("writing the spec: %w", err)
	}
	e.buf = make([]byte, 0, 4<<10+256*len(subjects)+len(spec)+size(deps)+size(byproducts))
	e.open('{')
	e.field("_type", api.StatementV1)
	e.statementSubjects(subjects)
	e.field("predicateType", api.PredicateSLSAv1)
	e.key("predicate")
	e.open('{')

	e.key("buildDefinition")
	e.open('{')
	e.field("buildType", string(s.cfg.BuildType))
	e.key("externalParameters")
	e.open('{')
	if r.source != nil && r.remote {
		e.key("buildConfigSource")
		e.open('{')
		e.field("ref", r.source.ref())
		e.field("repository", r.source.uri)
		e.field("path", r.source.entry)
		e.close('}')
	}
	e.key("runSpec")
	e.json(spec)
	e.close('}')
	e.key("internalParameters")
	e.open('{')
	if p := r.provenance; p != nil && p.FeatureFlags != nil {
		e.key("tekton-pipelines-feature-flags")
		e.typed(p.FeatureFlags)
	}
	if s.cfg.BuildType == BuildTypeTekton {
		e.key("labels")
		e.stringMap(r.meta.Labels)
		e.key("annotations")
		e.stringMap(r.meta.Annotations)
	}
	e.close('}')
	e.descriptors("resolvedDependencies", deps)
	e.close('}')

	e.key("runDetails")
	e.open('{')
	e.key("builder")
	e.open('{')
	e.field("id", s.cfg.BuilderID)
	e.close('}')
	e.key("metadata")
	e.open('{')
	e.optional("invocationId", string(r.meta.UID))
	if r.started != nil {
		text, err := timestamp(r.started)
		if err != nil {
			return err
		}
		e.field("startedOn", text)
	}
	if r.finished != nil {
		text, err := timestamp(r.finished)
		if err != nil {
			return err
		}
		e.field("finishedOn", text)
	}
	e.close('}')
	e.descriptors("byproducts", byproducts)
	e.close('}')

	e.close('}')
	e.close('}')
	return nil
}

// size is about the length of what descriptors will write.
func size(list []descriptor) int {
	n := 0
	for i := range list {
		d := &list[i]
		n += 64 + len(d.prefix) + len(d.name) + len(d.uri) + (len(d.content)+2)/3*4
		if d.digest != nil {
			n += 96 * len(d.digest.all)
		}
	}
	return n
}

// descriptors writes a list of descriptors, unless it is empty. What has
// content is JSON, which only byproducts say of themselves.
func (e *encoder) descriptors(key string, list []descriptor) {
	if len(list) == 0 {
		return
	}
	e.key(key)
	e.open('[')
	for i := range list {
		d := &list[i]
		e.open('{')
		if d.prefix != "" || d.name != "" {
			e.key("name")
			e.joined(d.prefix, d.name)
		}
		e.optional("uri", d.uri)
		if d.digest != nil && len(d.digest.all) > 0 {
			e.key("digest")
			e.digests(d.digest)
		}
		if len(d.content) > 0 {
			e.key("content")
			e.base64(d.content)
			if key == "byproducts" {
				e.field("mediaType", "application/json")
			}
		}
		e.close('}')
	}
	e.close(']')
}

// dependencies is a list in which two descriptors that have uri, digest and
// content in common are one, whatever their names; the first keeps its place.
// Definitions of the run and of StepActions all stay, since a reader looks them
// up by name.
type dependencies struct {
	list  []descriptor
	index chains
}

func (l *dependencies) add(d descriptor) {
	if d.name != depPipeline && d.prefix != depStepAction {
		for i := l.index.firstOf(d.uri); i >= 0; i = l.index.next(i) {
			if have := &l.list[i]; have.digest.equal(d.digest) && bytes.Equal(have.content, d.content) {
				return
			}
		}
	}
	l.index.add(d.uri)
	l.list = append(l.list, d)
}

// image adds what a container ran, which has no name.
func (l *dependencies) image(uri []byte, digest hint.Digest) {
	for i := l.index.first(uri); i >= 0; i = l.index.next(i) {
		have := &l.list[i]
		if have.digest != nil && len(have.digest.all) == 1 && have.digest.all[0] == digest && len(have.content) == 0 {
			return
		}
	}
	d := descriptor{uri: string(uri), digest: oneDigest(digest)}
	l.index.add(d.uri)
	l.list = append(l.list, d)
}

func (l *dependencies) inputs(from []artifact) {
	for _, a := range from {
		l.add(descriptor{name: depInput, uri: a.name, digest: a.digest})
	}
}

// stepActions adds the definitions of steps that were resolved from somewhere.
func (l *dependencies) stepActions(tr *v1.TaskRun) {
	for i := range tr.Status.Steps {
		if src := newSource(tr.Status.Steps[i].Provenance); src != nil {
			l.add(descriptor{prefix: depStepAction, name: tr.Status.Steps[i].Name, uri: src.uri, digest: &src.digest})
		}
	}
}

// dependencies are what went in. A TaskRun's own definition stands before and
// apart from the others.
func (s *statement) dependencies(stepActions bool) ([]descriptor, error) {
	r := s.run
	var deps dependencies
	if r.task != nil {
		if err := containers(r.task, deps.image); err != nil {
			return nil, err
		}
		if stepActions {
			deps.inputs(s.stepInputs(hint.OfSteps(r.task)))
			deps.stepActions(r.task)
		}
		var own artifacts
		s.inputs(&own, r.hints.Git)
		s.inputs(&own, r.hints.Inputs)
		deps.inputs(own.list)
		if r.source != nil {
			task := descriptor{name: depTask, uri: r.source.uri, digest: &r.source.digest}
			return append([]descriptor{task}, deps.list...), nil
		}
		return deps.list, nil
	}

	if r.source != nil {
		deps.add(descriptor{name: depPipeline, uri: r.source.uri, digest: &r.source.digest})
	}
	err := r.executed(func(c *child) error {
		d, err := s.pipelineTask(c)
		if err != nil {
			return err
		}
		if d != nil {
			deps.add(*d)
		}
		if stepActions {
			deps.stepActions(c.TaskRun)
		}
		return containers(c.TaskRun, deps.image)
	})
	if err != nil {
		return nil, err
	}
	if stepActions && s.cfg.DeepInspection {
		_ = r.executed(func(c *child) error { deps.inputs(s.stepInputs(c.stepHints())); return nil })
	}
	var in artifacts
	s.pipelineInputs(&in)
	deps.inputs(in.list)
	return deps.list, nil
}

// pipelineTask describes the definition of a pipeline's task, if it was
// resolved from somewhere. Under buildType slsa-tekton every task has one, with
// the whole TaskRun as content.
func (s *statement) pipelineTask(c *child) (*descriptor, error) {
	if c.source == nil && s.cfg.BuildType != BuildTypeTekton {
		return nil, nil
	}
	d := &descriptor{name: depPipelineTask}
	if c.source != nil {
		d.uri, d.digest = c.source.uri, &c.source.digest
	}
	if s.cfg.BuildType == BuildTypeTekton {
		var err error
		if d.content, err = json.Marshal(c.TaskRun); err != nil {
			return nil, fmt.Errorf("writing TaskRun %s as content: %w", c.Name, err)
		}
	}
	return d, nil
}

// stepInputs are the inputs that StepActions name: each step's commit, then all
// their objects.
func (s *statement) stepInputs(steps []hint.Hints) []artifact {
	var out artifacts
	for i := range steps {
		s.inputs(&out, steps[i].Git)
	}
	for i := range steps {
		s.inputs(&out, steps[i].Inputs)
	}
	return out.list
}

// byproduct describes a result. Its content is the value as encoding/json
// writes it, the very bytes upstream has.
func (s *statement) byproduct(prefix string, res named) (descriptor, error) {
	d := descriptor{prefix: prefix, name: res.name}
	from := len(s.values)
	values, ok := appendGoValue(s.values, res.value)
	if !ok {
		content, err := json.Marshal(res.value)
		if err != nil {
			return descriptor{}, fmt.Errorf("writing %s%s: %w", prefix, res.name, err)
		}
		values = append(values, content...)
	}
	s.values, d.content = values, values[from:len(values):len(values)]
	return d, nil
}
