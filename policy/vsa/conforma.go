package vsa

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path"
	"strconv"
	"strings"
	"time"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/strictjson"
)

// ConformaType is the type of the summaries that Conforma's ec writes and reads.
const ConformaType = "https://conforma.dev/verification_summary/v1"

// ConformaVerifier is what they say of who verified.
const ConformaVerifier = "conforma"

// Words of Conforma's status.
const (
	StatusPassed = "passed"
	StatusFailed = "failed"
)

// Conforma is the predicate about one component.
type Conforma struct {
	// Policy is the configuration with its sources as they were pinned, PolicySource
	// what was asked for.
	Policy       json.RawMessage `json:"policy"`
	PolicySource string          `json:"policySource"`
	ImageRefs    []string        `json:"imageRefs"`
	Timestamp    string          `json:"timestamp"`
	Status       string          `json:"status"`
	Verifier     string          `json:"verifier"`
	Summary      ConformaSummary `json:"summary"`
	PublicKey    string          `json:"publicKey"`
}

// ConformaSummary counts results. Its members are spelled as Conforma spells them.
type ConformaSummary struct {
	Violations int                 `json:"violations"`
	Warnings   int                 `json:"warnings"`
	Successes  int                 `json:"successes"`
	Components []ConformaDetail    `json:"Components"`
	Component  ConformaOfComponent `json:"component"`
}

// ConformaDetail is one image of the component: the image or index itself, then those
// that the index lists.
type ConformaDetail struct {
	Name       string `json:"Name"`
	ImageRef   string `json:"ImageRef"`
	Violations int    `json:"Violations"`
	Warnings   int    `json:"Warnings"`
	Successes  int    `json:"Successes"`
}

// ConformaOfComponent is the component as the report has it.
type ConformaOfComponent struct {
	Name           string          `json:"name"`
	ContainerImage string          `json:"containerImage"`
	Source         json.RawMessage `json:"source"`
}

// Snapshot is the predicate about all components of a snapshot.
type Snapshot struct {
	Policy    json.RawMessage `json:"policy"`
	ImageRefs []string        `json:"imageRefs"`
	Timestamp string          `json:"timestamp"`
	Status    string          `json:"status"`
	Verifier  string          `json:"verifier"`
	Summary   SnapshotSummary `json:"summary"`
}

// SnapshotSummary counts the results of a snapshot.
type SnapshotSummary struct {
	Snapshot         string           `json:"snapshot"`
	Components       int              `json:"components"`
	Success          bool             `json:"success"`
	Key              string           `json:"key"`
	Version          string           `json:"ec_version"`
	ComponentDetails []SnapshotDetail `json:"component_details"`
	Violations       int              `json:"Violations"`
	Warnings         int              `json:"Warnings"`
}

// SnapshotDetail is one component of a snapshot.
type SnapshotDetail struct {
	Name           string `json:"name"`
	ContainerImage string `json:"containerImage"`
	Success        bool   `json:"success"`
	Violations     int    `json:"violations"`
	Warnings       int    `json:"warnings"`
	Successes      int    `json:"successes"`
}

// ConformaStatement is the in-toto statement with a predicate of Conforma's, about what
// is called name and has the digest sha256:…. It fails for any other digest.
func ConformaStatement(name, digest string, predicate any) ([]byte, error) {
	if !sha256Form.MatchString(digest) {
		return nil, fmt.Errorf("making a verification summary: %q is no sha256 digest", digest)
	}
	return json.Marshal(struct {
		Type          string    `json:"_type"`
		Predicate     any       `json:"predicate"`
		PredicateType string    `json:"predicateType"`
		Subject       []subject `json:"subject"`
	}{"https://in-toto.io/Statement/v0.1", predicate, ConformaType, []subject{{name, map[string]string{"sha256": hexOf(digest)}}}})
}

// Conforma's words for why a summary does not count.
const (
	ReasonNone     = "no_vsa"
	ReasonExpired  = "expired"
	ReasonFailed   = "predicate_failed"
	ReasonPolicy   = "policy_mismatch"
	ReasonNotFound = "retrieval_failed"
)

// ConformaRefusal is why a summary of Conforma's does not count.
type ConformaRefusal struct {
	// Code is one of Conforma's words, or empty where it has none.
	Code    string
	Message string
	// Outcome is the summary's status where it was read.
	Outcome string
}

// Error implements error.
func (r *ConformaRefusal) Error() string { return r.Message }

// ParseConforma reads the payload of an envelope whose signature was verified. It fails
// unless it is an in-toto statement of Conforma's type with a predicate of the form,
// read one way only.
func ParseConforma(payload []byte) (*Conforma, *intoto.Statement, error) {
	s, err := intoto.Parse(payload)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the verification summary: %w", err)
	}
	if s.PredicateType != ConformaType {
		return nil, nil, fmt.Errorf("reading the verification summary: the statement is of type %.200q; want %s", s.PredicateType, ConformaType)
	}
	if len(s.Predicate) == 0 {
		return nil, nil, errors.New("reading the verification summary: the statement has no predicate")
	}
	if err := strictjson.Check(s.Predicate, intoto.Max); err != nil {
		return nil, nil, fmt.Errorf("reading the verification summary: %w", err)
	}
	c := new(Conforma)
	if err := json.Unmarshal(s.Predicate, c); err != nil {
		return nil, nil, fmt.Errorf("reading the verification summary: %w", err)
	}
	return c, s, nil
}

// CheckConforma returns nil if a verified summary is about the image, not older than
// allowed, and says that it passed: everything but the comparison of policies. An empty
// digest names no image; a maxAge of 0 allows any age.
func CheckConforma(c *Conforma, s *intoto.Statement, digest string, now time.Time, maxAge time.Duration) *ConformaRefusal {
	no := func(code, format string, args ...any) *ConformaRefusal {
		return &ConformaRefusal{Code: code, Message: fmt.Sprintf(format, args...), Outcome: c.Status}
	}
	if digest != "" && !s.About(digest) {
		return no(ReasonNone, "No VSA found for the specified identifier: the one that was found is about another image than %s", digest)
	}
	made, err := time.Parse(time.RFC3339, c.Timestamp)
	if err != nil {
		return no(ReasonNotFound, "failed to parse VSA timestamp: %v", err)
	}
	age := now.Sub(made)
	switch {
	case age < -Skew:
		return no("", "VSA is from the future: its timestamp is %s", c.Timestamp)
	case maxAge > 0 && age > maxAge:
		return no(ReasonExpired, "VSA expired %d day(s) ago", int(math.Ceil(age.Hours()/24)))
	case c.Status != StatusPassed:
		return no(ReasonFailed, "VSA predicate status is '%s' (not 'passed')", c.Status)
	case c.Summary.Violations > 0:
		return no(ReasonFailed, "VSA predicate status is 'passed' and it counts %d violations", c.Summary.Violations)
	}
	var policy struct {
		Sources []json.RawMessage `json:"sources"`
	}
	if json.Unmarshal(c.Policy, &policy) != nil || len(policy.Sources) == 0 {
		return no("", "VSA predicate does not contain policy sources")
	}
	return nil
}

// ParseExpiration reads how old a summary may be, as Conforma does: a number with d
// (days), w (weeks) or mo (30 days), or a duration of Go's with h, m (minutes) and s.
// It fails for anything else and for what is negative.
func ParseExpiration(s string) (time.Duration, error) {
	s = strings.TrimSpace(s)
	for _, u := range []struct {
		suffix string
		hours  float64
	}{{"mo", 30 * 24}, {"d", 24}, {"w", 7 * 24}} {
		n, ok := strings.CutSuffix(s, u.suffix)
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(n, 64)
		if err != nil {
			return 0, fmt.Errorf("%q is no time: want a number before %s", s, u.suffix)
		}
		if !(f >= 0 && f*u.hours <= float64(math.MaxInt64/int64(time.Hour))) {
			return 0, fmt.Errorf("%q is negative or too long", s)
		}
		return time.Duration(f * u.hours * float64(time.Hour)), nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, fmt.Errorf("%q is no time: want for example 24h, 7d, 1w or 1mo", s)
	}
	if d < 0 {
		return 0, fmt.Errorf("%q is negative", s)
	}
	return d, nil
}

// FileName is the name of a file for a component's summary. Names come from snapshots
// that others wrote, so what means something in a path does not get into it.
func FileName(component string) string {
	if component == "" {
		component = "unknown"
	}
	clean := strings.Map(func(r rune) rune {
		if r == '/' || r == '\\' || r < ' ' || r == 0x7f {
			return '-'
		}
		return r
	}, component)
	return path.Base("vsa-" + clean + ".json")
}
