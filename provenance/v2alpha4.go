package provenance

import (
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"

	"assay.dev/assay/hint"
)

// v2alpha4 is SLSA v1.0 that reads StepActions' results too and tells build
// artifacts from others: subjects are images and outputs flagged
// isBuildArtifact; what is neither is a byproduct.
func (s *statement) v2alpha4() error {
	byproducts, err := s.byproducts()
	if err != nil {
		return err
	}
	deps, err := s.dependencies(true)
	if err != nil {
		return err
	}
	subjects, err := s.buildArtifacts()
	if err != nil {
		return err
	}
	return s.slsa1(subjects, deps, byproducts)
}

// buildArtifacts are the subjects: a TaskRun's steps before the TaskRun, but a
// PipelineRun before its tasks.
func (s *statement) buildArtifacts() ([]artifact, error) {
	var out artifacts
	own := func(h *hint.Hints) {
		var flagged []hint.Claim
		for _, c := range h.Outputs {
			if c.Build {
				flagged = append(flagged, c)
			}
		}
		s.subjects(&out, flagged)
		s.subjects(&out, h.Images)
	}
	task := func(steps []hint.Hints, h *hint.Hints) {
		for i := range steps {
			own(&steps[i])
		}
		own(h)
	}
	r := s.run
	if r.task != nil {
		task(hint.OfSteps(r.task), &r.hints)
		return s.left(out)
	}
	own(&r.hints)
	if s.cfg.DeepInspection {
		_ = r.executed(func(c *child) error { task(c.stepHints(), c.taskHints()); return nil })
	}
	return s.left(out)
}

// byproducts are the results that are no subjects, each under the name of the
// object that wrote it. Those of a step carry the TaskRun's name only, so two
// steps' results may share a name.
func (s *statement) byproducts() ([]descriptor, error) {
	var out []descriptor
	n, bytes := s.run.resultSizes()
	s.values = make([]byte, 0, bytes)
	add := func(prefix string, results []named) error {
		for _, res := range results {
			if out == nil {
				out = make([]descriptor, 0, n)
			}
			if !hint.IsByproduct(res.name, res.value.ObjectVal) {
				continue
			}
			d, err := s.byproduct(prefix, res)
			if err != nil {
				return err
			}
			out = append(out, d)
		}
		return nil
	}
	task := func(tr *v1.TaskRun) error {
		if err := add("taskRunResults/"+tr.Name+"/", taskResults(tr.Status.Results)); err != nil {
			return err
		}
		for i := range tr.Status.Steps {
			if len(tr.Status.Steps[i].Results) == 0 {
				continue
			}
			if err := add("stepResults/"+tr.Name+"/", taskResults(tr.Status.Steps[i].Results)); err != nil {
				return err
			}
		}
		return nil
	}
	r := s.run
	if r.task != nil {
		err := task(r.task)
		return out, err
	}
	if err := add("pipelineRunResults/"+r.meta.Name+"/", r.results); err != nil {
		return nil, err
	}
	if !s.cfg.DeepInspection {
		return out, nil
	}
	err := r.executed(func(c *child) error { return task(c.TaskRun) })
	return out, err
}

// resultSizes counts results, of TaskRuns and their steps too, and about the
// bytes they take as JSON.
func (r *run) resultSizes() (n, bytes int) {
	add := func(results []v1.TaskRunResult) {
		n += len(results)
		for i := range results {
			bytes += 8 + len(results[i].Value.StringVal)*9/8
		}
	}
	for i := range r.results {
		n++
		bytes += 8 + len(r.results[i].value.StringVal)*9/8
	}
	_ = r.executed(func(c *child) error {
		add(c.Status.Results)
		for i := range c.Status.Steps {
			add(c.Status.Steps[i].Results)
		}
		return nil
	})
	return n, bytes
}
