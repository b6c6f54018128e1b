// Package intoto reads in-toto statements, v0.1 and v1, strictly, and makes the
// one statement that signs an image. Predicates are carried as they are; what
// they mean is for the packages that know them.
package intoto

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/strictjson"
)

// Bounds on what strangers send.
const (
	// Max is the size in bytes of the largest statement that Parse reads.
	Max = 48 << 20
	// MaxSubjects is how many subjects a statement may have.
	MaxSubjects = 10_000
)

// PredicateImageSignature is the predicate type by which cosign 3 signs an
// image in a Sigstore bundle.
const PredicateImageSignature = "https://sigstore.dev/cosign/sign/v1"

// Statement is a parsed in-toto statement.
type Statement struct {
	Type          string // api.StatementV01 or api.StatementV1
	Subjects      []Subject
	PredicateType string
	Predicate     json.RawMessage // an object; nil where the statement has none
}

// Subject is one artifact that a statement speaks of.
type Subject struct {
	Name   string
	Digest map[string]string // algorithm → value
}

var digestForm = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Parse reads a statement. It fails on duplicate members, trailing data, an
// unknown statement type, no subjects, a subject without digest and a predicate
// that is no object. Members it does not know are left alone, as in-toto asks.
func Parse(data []byte) (*Statement, error) {
	s, err := parse(data)
	if err == nil && s.PredicateType == "" {
		err = errors.New("reading predicateType: empty")
	}
	if err != nil {
		return nil, fmt.Errorf("parsing in-toto statement: %w", err)
	}
	return s, nil
}

// ParseUntyped is Parse for verifiers: it takes a statement whose predicateType is
// there and empty, as some builders have made them. Such a predicate is of no type
// that anybody knows.
func ParseUntyped(data []byte) (*Statement, error) {
	s, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("parsing in-toto statement: %w", err)
	}
	return s, nil
}

func parse(data []byte) (*Statement, error) {
	if err := strictjson.Check(data, Max); err != nil {
		return nil, err
	}
	m, err := strictjson.Object(data)
	if err != nil {
		return nil, err
	}
	var s Statement
	if s.Type, err = strictjson.String(m["_type"]); err != nil {
		return nil, fmt.Errorf("reading _type: %w", err)
	}
	if s.Type != api.StatementV01 && s.Type != api.StatementV1 {
		return nil, fmt.Errorf("statement type %q is not known; known are %s and %s", s.Type, api.StatementV01, api.StatementV1)
	}
	if s.PredicateType, err = strictjson.String(m["predicateType"]); err != nil {
		return nil, fmt.Errorf("reading predicateType: %w", err)
	}
	switch k := strictjson.Kind(m["predicate"]); k {
	case "object":
		s.Predicate = m["predicate"]
	case "nothing", "null": // the field is optional
	default:
		return nil, fmt.Errorf("reading predicate: want an object, have %s", k)
	}
	subjects, err := strictjson.Array(m["subject"])
	if err != nil {
		return nil, fmt.Errorf("reading subject: %w", err)
	}
	if len(subjects) == 0 {
		return nil, errors.New("reading subject: none")
	}
	if len(subjects) > MaxSubjects {
		return nil, fmt.Errorf("reading subject: %d of them, at most %d are read", len(subjects), MaxSubjects)
	}
	for i, raw := range subjects {
		sub, err := subject(raw)
		if err != nil {
			return nil, fmt.Errorf("reading subject %d: %w", i, err)
		}
		s.Subjects = append(s.Subjects, sub)
	}
	return &s, nil
}

func subject(raw []byte) (Subject, error) {
	m, err := strictjson.Object(raw)
	if err != nil {
		return Subject{}, err
	}
	var s Subject
	if k := strictjson.Kind(m["name"]); k != "nothing" && k != "null" {
		if s.Name, err = strictjson.String(m["name"]); err != nil {
			return Subject{}, fmt.Errorf("reading name: %w", err)
		}
	}
	digests, err := strictjson.Object(m["digest"])
	if err != nil {
		return Subject{}, fmt.Errorf("reading digest: %w", err)
	}
	if len(digests) == 0 {
		return Subject{}, errors.New("reading digest: none")
	}
	s.Digest = make(map[string]string, len(digests))
	for algorithm, raw := range digests {
		value, err := strictjson.String(raw)
		if err != nil {
			return Subject{}, fmt.Errorf("reading digest %q: %w", algorithm, err)
		}
		if algorithm == "sha256" {
			if b, err := hex.DecodeString(value); err != nil || len(b) != 32 || strings.ToLower(value) != value {
				return Subject{}, fmt.Errorf("reading digest sha256: %q is not 64 lower-case hex digits", value)
			}
		}
		s.Digest[algorithm] = value
	}
	return s, nil
}

// About says whether one of the subjects is the artifact with this digest,
// sha256:….
func (s *Statement) About(digest string) bool {
	hex, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || hex == "" {
		return false
	}
	for _, sub := range s.Subjects {
		if sub.Digest["sha256"] == hex {
			return true
		}
	}
	return false
}

// ImageSignature is the statement that says nothing but "I sign this", with
// which cosign 3 signs images: one subject without name, an empty predicate. It
// fails unless digest is a sha256 digest.
func ImageSignature(digest string) ([]byte, error) {
	if !digestForm.MatchString(digest) {
		return nil, fmt.Errorf("making image signature statement: %q is not a sha256 digest", digest)
	}
	return []byte(`{"_type":"` + api.StatementV1 + `","subject":[{"digest":{"sha256":"` + strings.TrimPrefix(digest, "sha256:") +
		`"}}],"predicateType":"` + PredicateImageSignature + `","predicate":{}}`), nil
}
