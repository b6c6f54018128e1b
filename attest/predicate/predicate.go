// Package predicate reads the predicates of in-toto statements into typed values.
//
// A statement's type says what its predicate means, and its signer vouches for
// both. So a predicate that says it is of a known type must have that type's shape,
// or it is an error and not a predicate of another kind: members that the type
// requires are there, each is what the type says it is, and no member's name differs
// from a known one in case alone, which some readers would take for it. Members that
// the type does not know are left alone, as in-toto asks, so that newer minor
// versions can be read.
//
// A predicate of a type that is not known here is Unknown: it is carried, and is
// nothing but its signer's words.
//
// Nothing here says that a predicate is true. Package verify does that, for those
// whose signatures it checked.
package predicate

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/observe"
)

// Types that are known, besides those of package api.
const (
	SLSAv01     = "https://slsa.dev/provenance/v0.1"
	VSAv02      = "https://slsa.dev/verification_summary/v0.2"
	VSAv1       = "https://slsa.dev/verification_summary/v1"
	CycloneDX   = "https://cyclonedx.org/bom"
	TestResult  = "https://in-toto.io/attestation/test-result/v0.1"
	VulnsV01    = "https://in-toto.io/attestation/vulns/v0.1"
	VulnsV02    = "https://in-toto.io/attestation/vulns/v0.2"
	VulnsCosign = "https://cosign.sigstore.dev/attestation/vuln/v1"
	NPMPublish  = "https://github.com/npm/attestation/tree/main/specs/publish/v0.1"
)

// max is the largest predicate that is read; a statement is bounded already.
const max = 48 << 20

// Predicate is one of Provenance01, Provenance02, Provenance1, SPDX, BOM, VSA,
// TestResults, Vulnerabilities, Publish, Observation and Unknown, as a pointer.
type Predicate interface {
	// Type is the predicate type that it was read as.
	Type() string
}

// Provenance is implemented by those that say how an artifact was made.
type Provenance interface {
	Predicate
	// BuilderID is builder.id; never empty.
	BuilderID() string
	// Source is what was built, as far as the predicate says it in one of the ways
	// in use; the zero value where it does not.
	Source() Source
	// Outcome is what the predicate says of how the run ended.
	Outcome() Outcome
}

// Source is where a build's source came from. Repository is an address without
// "git+" and without the ref.
type Source struct{ Repository, Ref, Commit string }

// Outcome is how a run ended, as evidence says.
type Outcome string

// Outcomes. Unstated is not a success: most provenance is made by the last step of a
// run, which cannot know how the run ends, and SLSA has no member for it.
const (
	Succeeded  Outcome = "succeeded"
	Failed     Outcome = "failed"
	Unfinished Outcome = "unfinished"
	Unstated   Outcome = "unstated"
)

// Unknown is a predicate whose type is not known here.
type Unknown struct {
	PredicateType string
	Raw           json.RawMessage
}

// Type implements Predicate.
func (u *Unknown) Type() string { return u.PredicateType }

// Observation is our own, see docs/observation.md.
type Observation struct{ observe.Observation }

// Type implements Predicate.
func (*Observation) Type() string { return api.PredicateObservation }

// Outcome says how the run that was observed ended.
func (o *Observation) Outcome() Outcome {
	switch {
	case o.Run.Outcome == "succeeded":
		return Succeeded
	case o.Run.Outcome != "":
		return Failed
	case !o.Run.Opened.IsZero() && o.Run.Closed.IsZero():
		return Unfinished
	}
	return Unstated
}

// reader is what all known predicates have in common.
type reader interface {
	Predicate
	check() error
}

// Known says whether Parse reads a type into a value of its own.
func Known(predicateType string) bool { return empty(predicateType) != nil }

// IsProvenance says whether a type is one of SLSA's for provenance.
func IsProvenance(predicateType string) bool {
	return predicateType == SLSAv01 || predicateType == api.PredicateSLSAv02 || predicateType == api.PredicateSLSAv1
}

func empty(predicateType string) reader {
	switch predicateType {
	case SLSAv01:
		return new(Provenance01)
	case api.PredicateSLSAv02:
		return new(Provenance02)
	case api.PredicateSLSAv1:
		return new(Provenance1)
	case VSAv02:
		return new(vsa02)
	case VSAv1:
		return &VSA{predicateType: predicateType}
	case TestResult:
		return new(TestResults)
	case VulnsV01, VulnsV02, VulnsCosign:
		return &Vulnerabilities{predicateType: predicateType}
	case NPMPublish:
		return new(Publish)
	case api.PredicateObservation:
		return new(Observation)
	}
	switch {
	case versioned(predicateType, api.PredicateSPDX):
		return &SPDX{predicateType: predicateType}
	case versioned(predicateType, CycloneDX):
		return &BOM{predicateType: predicateType}
	}
	return nil
}

// versioned says whether a type is a base type, or it with a version: both
// https://cyclonedx.org/bom and https://cyclonedx.org/bom/v1.6 are in use.
func versioned(predicateType, base string) bool {
	version, ok := strings.CutPrefix(predicateType, base)
	if !ok || version == "" {
		return ok
	}
	version, ok = strings.CutPrefix(version, "/v")
	return ok && version != "" && strings.Trim(version, "0123456789.") == ""
}

// Parse reads the predicate of a statement. It fails if the type is known and the
// predicate is not of it, or if there is no predicate; a type that is not known
// gives *Unknown.
func Parse(predicateType string, raw []byte) (Predicate, error) {
	p := empty(predicateType)
	if p == nil {
		return &Unknown{predicateType, slices.Clone(raw)}, nil
	}
	if err := read(raw, p); err != nil {
		return nil, fmt.Errorf("reading predicate %s: %w", predicateType, err)
	}
	if v, ok := p.(interface{ value() Predicate }); ok {
		return v.value(), nil
	}
	return p, nil
}

func read(raw []byte, p reader) error {
	if len(raw) == 0 {
		return errors.New("the statement has none")
	}
	if err := strictjson.Check(raw, max); err != nil {
		return err
	}
	if err := decode(raw, p); err != nil {
		return err
	}
	return p.check()
}

func (o *Observation) check() error {
	if o.Run.ID == "" {
		return errors.New("at [run id]: want a string that is not empty")
	}
	return nil
}

// missing is the error for a member that a type requires.
func missing(path string) error { return fmt.Errorf("at [%s]: missing or empty", path) }
