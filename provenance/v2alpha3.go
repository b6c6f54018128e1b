package provenance

// v2alpha3 is SLSA v1.0 without StepActions: subjects are those of v0.2, and
// every own result is a byproduct, subjects among them.
func (s *statement) v2alpha3() error {
	prefix := "taskRunResults/"
	if s.run.pipeline != nil {
		prefix = "pipelineRunResults/"
	}
	byproducts := make([]descriptor, 0, len(s.run.results))
	for _, res := range s.run.results {
		d, err := s.byproduct(prefix, res)
		if err != nil {
			return err
		}
		byproducts = append(byproducts, d)
	}
	deps, err := s.dependencies(false)
	if err != nil {
		return err
	}
	subjects, err := s.allOutputs()
	if err != nil {
		return err
	}
	return s.slsa1(subjects, deps, byproducts)
}
