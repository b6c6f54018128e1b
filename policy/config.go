package policy

import (
	"encoding/json"
	"fmt"
	"time"

	"assay.dev/assay/policy/spec"
)

// item is an include or exclude item with its bounds read.
type item struct {
	spec.VolatileItem
	on, until time.Time // zero: unbounded
}

// scoped are the volatile items of a source.
type scoped struct{ include, exclude []item }

func scopedOf(v *spec.VolatileConfig) (scoped, error) {
	var s scoped
	if v == nil {
		return s, nil
	}
	var err error
	if s.include, err = itemsOf(v.Include); err != nil {
		return s, err
	}
	s.exclude, err = itemsOf(v.Exclude)
	return s, err
}

func itemsOf(list []spec.VolatileItem) ([]item, error) {
	var out []item
	for _, v := range list {
		i := item{VolatileItem: v}
		var err error
		if i.on, i.until, err = v.Times(); err != nil {
			return nil, fmt.Errorf("reading the item %s of volatileConfig: %w", v.Value, err)
		}
		out = append(out, i)
	}
	return out, nil
}

// parseSpec reads a policy configuration, bare or as a whole resource, and checks
// that it means something.
func parseSpec(raw []byte) (*spec.Spec, error) {
	s, err := spec.Parse(raw)
	if err != nil {
		return nil, err
	}
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("reading policy configuration: %w", err)
	}
	return s, nil
}

// document is the spec as rules see it under input.policy_spec.
func document(s *spec.Spec) (json.RawMessage, error) {
	raw, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding policy configuration: %w", err)
	}
	return raw, nil
}
