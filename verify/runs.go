package verify

import (
	"errors"
	"fmt"
	"slices"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/attest/strictjson"
)

func isProvenance(predicateType string) bool { return predicate.IsProvenance(predicateType) }

// builderOf is the builder.id that a predicate names, if it is one that names one;
// empty for predicates we do not know.
func builderOf(p predicate.Predicate) string {
	switch p := p.(type) {
	case predicate.Provenance:
		return p.BuilderID()
	case *predicate.Observation:
		return p.Builder
	}
	return ""
}

// outcomeOf is how the run that a predicate describes ended, as it says itself.
func outcomeOf(p predicate.Predicate) predicate.Outcome {
	if p, ok := p.(interface{ Outcome() predicate.Outcome }); ok {
		return p.Outcome()
	}
	return ""
}

// stringAt follows exact member names to a string.
func stringAt(data []byte, path ...string) (string, error) {
	for i, name := range path {
		m, err := strictjson.Object(data)
		if err != nil {
			return "", fmt.Errorf("at %v: %w", path[:i], err)
		}
		data = m[name]
	}
	s, err := strictjson.String(data)
	if err != nil {
		return "", fmt.Errorf("at %v: %w", path, err)
	}
	return s, nil
}

// spoken is what an observation says of the run it belongs to.
type spoken struct {
	run        string
	provenance []string // payload digests
}

// observation reads from an observation what grouping needs, by exact names.
func observation(raw []byte) (spoken, error) {
	var (
		s   spoken
		err error
	)
	if s.run, err = stringAt(raw, "run", "id"); err != nil {
		return spoken{}, err
	}
	if s.run == "" {
		return spoken{}, errors.New("at [run id]: empty")
	}
	m, err := strictjson.Object(raw)
	if err != nil {
		return spoken{}, err
	}
	if k := strictjson.Kind(m["provenance"]); k == "nothing" || k == "null" {
		return s, nil
	}
	list, err := strictjson.Array(m["provenance"])
	if err != nil {
		return spoken{}, fmt.Errorf("at [provenance]: %w", err)
	}
	for i, one := range list {
		digest, err := stringAt(one, "digest")
		if err != nil {
			return spoken{}, fmt.Errorf("at [provenance %d]: %w", i, err)
		}
		s.provenance = append(s.provenance, digest)
	}
	return s, nil
}

// group puts each observation together with the provenance it names, if the
// same signer made both: an observation may vouch for its signer's words only.
func (c *checker) group() {
	for i := range c.statements {
		o := &c.statements[i]
		if o.PredicateType != api.PredicateObservation {
			continue
		}
		s, err := observation(o.Predicate)
		if err != nil {
			continue // it was read before it was added
		}
		run := Run{ID: s.run, Observation: o}
		for j := range c.statements {
			p := &c.statements[j]
			if isProvenance(p.PredicateType) && p.Same(o.Identity) && slices.Contains(s.provenance, p.PayloadDigest) {
				run.Provenance = p
				// The observer saw the run end; the provenance may not say.
				if so := o.Outcome; so != predicate.Unstated && (p.Outcome == predicate.Unstated || p.Outcome == predicate.Succeeded) {
					p.Outcome = so
				}
				break
			}
		}
		c.runs = append(c.runs, run)
	}
}

// grade says how independent each signer is; see Independent.
func (c *checker) grade() {
	for i := range c.statements {
		st := &c.statements[i]
		st.grade(c.independence(*st, c.builders[i]))
	}
	for i := range c.signatures {
		s := &c.signatures[i]
		s.grade(c.independenceOfSignature(*s))
	}
}

func (id *Identity) grade(i Independence) {
	id.Grade, id.Reason, id.Independence = i.Grade, i.Reason(), i
}

func (c *checker) key(fingerprint string) trusted {
	i := slices.IndexFunc(c.ring, func(k trusted) bool { return k.public.Fingerprint() == fingerprint })
	return c.ring[i]
}
