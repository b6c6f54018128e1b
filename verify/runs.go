package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/observe"
)

func isProvenance(predicateType string) bool {
	return predicateType == api.PredicateSLSAv02 || predicateType == api.PredicateSLSAv1
}

// builderOf is the builder.id that a statement names, if its predicate is one
// that names one; empty for predicates we do not know. A known predicate that
// has another shape is an error: it may not pass for what it says it is.
func builderOf(s *intoto.Statement) (string, error) {
	switch s.PredicateType {
	case api.PredicateSLSAv02:
		return stringAt(s.Predicate, "builder", "id")
	case api.PredicateSLSAv1:
		return stringAt(s.Predicate, "runDetails", "builder", "id")
	case api.PredicateObservation:
		if _, err := observation(s.Predicate); err != nil {
			return "", err
		}
		m, err := strictjson.Object(s.Predicate)
		if err != nil {
			return "", err
		}
		if m["builder"] == nil {
			return "", nil
		}
		return strictjson.String(m["builder"])
	}
	return "", nil
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

// observation reads from an observation what grouping needs, by exact names,
// and makes sure that the rest has the shape that its type promises.
func observation(predicate []byte) (spoken, error) {
	var whole observe.Observation
	if err := json.Unmarshal(predicate, &whole); err != nil {
		return spoken{}, err
	}
	var (
		s   spoken
		err error
	)
	if s.run, err = stringAt(predicate, "run", "id"); err != nil {
		return spoken{}, err
	}
	if s.run == "" {
		return spoken{}, errors.New("at [run id]: empty")
	}
	m, err := strictjson.Object(predicate)
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
	for i, raw := range list {
		digest, err := stringAt(raw, "digest")
		if err != nil {
			return spoken{}, fmt.Errorf("at [provenance %d]: %w", i, err)
		}
		s.provenance = append(s.provenance, digest)
	}
	return s, nil
}

// group puts each observation together with the provenance it names, if the
// same key signed both: an observation may vouch for its signer's words only.
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
			if isProvenance(p.PredicateType) && p.Key == o.Key && slices.Contains(s.provenance, p.PayloadDigest) {
				run.Provenance = p
				break
			}
		}
		c.runs = append(c.runs, run)
	}
}

// grade says how independent each signer is, from what the caller's trust binds
// to the key and from the builder that the signed words name.
func (c *checker) grade() {
	spoke := map[string]bool{} // keys whose provenance fits their binding
	for i := range c.statements {
		st := &c.statements[i]
		k := c.key(st.Key)
		builder := c.builders[i]
		switch {
		case !k.Observer:
			st.Grade, st.Reason = GradeKeyHolder, "the trust holds this key without a role"
		case builder == "":
			st.Grade, st.Reason = GradeKeyHolder, "the statement names no builder that the key's binding as observer could fit"
		case !k.fits(builder):
			st.Grade, st.Reason = GradeKeyHolder, fmt.Sprintf("builder %q is none of those for which the trust binds this key as observer", builder)
		default:
			st.Grade, st.Reason = GradeObserver, fmt.Sprintf("the trust binds this key as observer for builder %q", builder)
			if isProvenance(st.PredicateType) {
				spoke[st.Key] = true
			}
		}
	}
	for i := range c.signatures {
		s := &c.signatures[i]
		switch k := c.key(s.Key); {
		case !k.Observer:
			s.Grade, s.Reason = GradeKeyHolder, "the trust holds this key without a role"
		case !spoke[s.Key]:
			// A signature names no builder; the binding must be met by the
			// provenance beside it.
			s.Grade, s.Reason = GradeKeyHolder, "no provenance by this key names a builder for which the trust binds it as observer"
		default:
			s.Grade, s.Reason = GradeObserver, "the trust binds this key as observer, and its provenance names a builder that fits"
		}
	}
}

func (c *checker) key(fingerprint string) trusted {
	i := slices.IndexFunc(c.ring, func(k trusted) bool { return k.public.Fingerprint() == fingerprint })
	return c.ring[i]
}
