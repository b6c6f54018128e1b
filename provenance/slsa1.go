package provenance

import (
	"encoding/json"
	"fmt"
	"strings"

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
	name, uri string
	digest    *digestSet // nil: none
	content   []byte
}

// slsa1 writes an in-toto Statement v1 with SLSA provenance v1.0, which
// v2alpha3 and v2alpha4 fill differently.
func (s *statement) slsa1(subjects []artifact, deps, byproducts []descriptor) error {
	e, r := &s.enc, s.run
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
	e.typed(r.spec)
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

// descriptors writes a list of descriptors, unless it is empty. What has
// content is JSON, which only byproducts say of themselves.
func (e *encoder) descriptors(key string, list []descriptor) {
	if len(list) == 0 {
		return
	}
	e.key(key)
	e.open('[')
	for _, d := range list {
		e.open('{')
		e.optional("name", d.name)
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

// dependencies are what went in. Two that have uri, digest and content in
// common are one, whatever their names; the first keeps its place. A TaskRun's
// own definition stands before and apart from that.
func (s *statement) dependencies(stepActions bool) ([]descriptor, error) {
	r := s.run
	var list []descriptor
	named := func(name string, from []artifact) {
		for _, a := range from {
			list = append(list, descriptor{name: name, uri: a.name, digest: a.digest})
		}
	}
	images := func(tr *v1.TaskRun) error {
		steps, err := stepImages(tr)
		if err != nil {
			return err
		}
		sidecars, err := sidecarImages(tr)
		if err != nil {
			return err
		}
		named("", steps)
		named("", sidecars)
		return nil
	}

	if r.task != nil {
		if err := images(r.task); err != nil {
			return nil, err
		}
		if stepActions {
			named(depInput, s.stepInputs(hint.OfSteps(r.task)))
			list = append(list, remoteStepActions(r.task)...)
		}
		var own artifacts
		s.inputs(&own, r.hints.Git)
		s.inputs(&own, r.hints.Inputs)
		named(depInput, own.list)
		list = distinct(list)
		if r.source != nil {
			list = append([]descriptor{{name: depTask, uri: r.source.uri, digest: r.source.digest}}, list...)
		}
		return list, nil
	}

	if r.source != nil {
		list = append(list, descriptor{name: depPipeline, uri: r.source.uri, digest: r.source.digest})
	}
	err := r.executed(func(c *child) error {
		d, err := s.pipelineTask(c)
		if err != nil {
			return err
		}
		if d != nil {
			list = append(list, *d)
		}
		if stepActions {
			list = append(list, remoteStepActions(c.TaskRun)...)
		}
		return images(c.TaskRun)
	})
	if err != nil {
		return nil, err
	}
	if stepActions && s.cfg.DeepInspection {
		_ = r.executed(func(c *child) error { named(depInput, s.stepInputs(c.stepHints())); return nil })
	}
	var in artifacts
	s.pipelineInputs(&in)
	named(depInput, in.list)
	return distinct(list), nil
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
		d.uri, d.digest = c.source.uri, c.source.digest
	}
	if s.cfg.BuildType == BuildTypeTekton {
		var err error
		if d.content, err = json.Marshal(c.TaskRun); err != nil {
			return nil, fmt.Errorf("writing TaskRun %s as content: %w", c.Name, err)
		}
	}
	return d, nil
}

// remoteStepActions describes the definitions of steps resolved from somewhere.
func remoteStepActions(tr *v1.TaskRun) []descriptor {
	var out []descriptor
	for i := range tr.Status.Steps {
		if src := newSource(tr.Status.Steps[i].Provenance); src != nil {
			out = append(out, descriptor{name: depStepAction + tr.Status.Steps[i].Name, uri: src.uri, digest: src.digest})
		}
	}
	return out
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

// distinct drops what an earlier descriptor already says, except definitions of
// the run and of StepActions, which a reader looks up by name.
func distinct(list []descriptor) []descriptor {
	type key struct{ uri, digest, content string }
	seen := make(map[key]bool, len(list))
	out := list[:0]
	for _, d := range list {
		k := key{uri: d.uri, content: string(d.content)}
		if d.digest != nil {
			k.digest = d.digest.key()
		}
		if seen[k] && d.name != depTask && d.name != depPipeline && !strings.HasPrefix(d.name, depStepAction) {
			continue
		}
		seen[k] = true
		out = append(out, d)
	}
	return out
}

// byproduct describes a result. Its content is the value as encoding/json
// writes it, the very bytes upstream has.
func byproduct(name string, v v1.ParamValue) (descriptor, error) {
	content, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, fmt.Errorf("writing %s: %w", name, err)
	}
	return descriptor{name: name, content: content}, nil
}
