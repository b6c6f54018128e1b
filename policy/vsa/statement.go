package vsa

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/policy"
	"assay.dev/assay/store"
	"assay.dev/assay/verify"
)

// PredicateType is the type of SLSA's verification summaries that are made and taken.
const PredicateType = predicate.VSAv1

// SLSAVersion is the version of SLSA whose levels are meant.
const SLSAVersion = "1.2"

// DefaultVerifier is verifier.id where nobody chose another one.
const DefaultVerifier = "https://assay.dev/gate/v1"

// Results of a verification.
const (
	Passed = "PASSED"
	Failed = "FAILED"
)

// Circumstances are what an image was judged in: exceptions of a policy can be for one
// component alone, and rules see the whole snapshot.
type Circumstances struct {
	// Component is the image's name in the snapshot, Parent that of the index that it was
	// expanded from, Destination where it was to be released to.
	Component   string `json:"component,omitempty"`
	Parent      string `json:"parent,omitempty"`
	Destination string `json:"destination,omitempty"`
	// Source is the digest of what the snapshot says of the component's source, Snapshot
	// that of all that it says; each empty where it says nothing.
	Source   string `json:"source,omitempty"`
	Snapshot string `json:"snapshot,omitempty"`
}

// CircumstancesOf are those of a judgement that is made in a context. It fails for a
// snapshot that has no form as JSON.
func CircumstancesOf(c policy.Context) (Circumstances, error) {
	out := Circumstances{Component: c.Component, Parent: c.Parent, Destination: c.Destination}
	var err error
	if c.Snapshot != nil {
		if out.Snapshot, err = digestOf(c.Snapshot); err != nil {
			return Circumstances{}, fmt.Errorf("digesting the snapshot: %w", err)
		}
	}
	if out.Source, err = digestOf(c.ImageSource); err != nil {
		return Circumstances{}, fmt.Errorf("digesting the source: %w", err)
	}
	return out, nil
}

// digestOf is sha256:… of a value as JSON; empty for one that says nothing.
func digestOf(v any) (string, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	if s := string(raw); s == "null" || s == "{}" || s == `""` {
		return "", nil
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(raw)), nil
}

// Judgement is what a verdict depended on beside image and policy. In a summary it is
// the member assay_judgement.
type Judgement struct {
	Circumstances
	// EffectiveTime is when rules were taken as of, Expires when the verdict has to be
	// asked for again at the latest.
	EffectiveTime time.Time `json:"effectiveTime"`
	Expires       time.Time `json:"expires"`
	// Digests are all manifests that the verdict is about: an index with its images.
	Digests []string `json:"digests"`
	// Trust is the digest of whom the verifier trusted: see TrustDigest.
	Trust string `json:"trust"`
}

// slsa is the predicate as it is written and read.
type slsa struct {
	predicate.VSA
	Judgement *Judgement `json:"assay_judgement,omitempty"`
}

// Made says who verified, and by what.
type Made struct {
	// Verifier is verifier.id, a URI; empty: DefaultVerifier. Version are its parts'
	// versions by name.
	Verifier string
	Version  map[string]string
	// Time of the verification.
	Time time.Time
	// PolicyURI is where the policy is, for people; its digest is the verdict's.
	PolicyURI string
	// Trust is the digest of the trust that was verified with: see TrustDigest.
	Trust string
	// Circumstances are those of the judgement; component and destination are the
	// verdict's.
	Circumstances
	// Levels are what Levels found; empty: unevaluated. Dependencies counts the
	// dependencies that were verified at each level; nil: none was.
	Levels       []string
	Dependencies map[string]uint64
}

var sha256Form = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Statement is the in-toto statement that says that a verdict passed. It fails for a
// verdict that did not, or that is not about this evidence, so that no summary says
// more than was judged.
func Statement(e *verify.Evidence, v *policy.Verdict, m Made) ([]byte, error) {
	switch {
	case e == nil || v == nil:
		return nil, errors.New("making a verification summary: there is no verdict on verified evidence")
	case v.Result != policy.Pass || len(v.Violations) > 0:
		return nil, fmt.Errorf("making a verification summary: the verdict on %s is %q; a summary is made of a pass", v.Image, v.Result)
	case v.Image != e.Ref():
		return nil, fmt.Errorf("making a verification summary: the verdict is about %s and the evidence about %s", v.Image, e.Ref())
	case !slices.Contains(v.Digests, e.Digest()):
		return nil, fmt.Errorf("making a verification summary: the verdict on %s does not list it", v.Image)
	case !sha256Form.MatchString(v.Policy.Digest):
		return nil, fmt.Errorf("making a verification summary: the verdict names no policy (%q)", v.Policy.Digest)
	case !sha256Form.MatchString(m.Trust):
		return nil, errors.New("making a verification summary: the digest of the trust is missing")
	case m.Time.IsZero() || v.Expiry.IsZero() || v.EffectiveTime.IsZero():
		return nil, errors.New("making a verification summary: a time is missing")
	}
	if err := CheckLevels(m.Levels); err != nil {
		return nil, fmt.Errorf("making a verification summary: %w", err)
	}
	resource, err := Resource(e.Ref())
	if err != nil {
		return nil, fmt.Errorf("making a verification summary: %w", err)
	}
	m.Component, m.Destination = v.Component, v.Destination
	p := slsa{Judgement: &Judgement{
		Circumstances: m.Circumstances,
		EffectiveTime: v.EffectiveTime.UTC(), Expires: v.Expiry.UTC(),
		Digests: slices.Clone(v.Digests), Trust: m.Trust,
	}}
	p.Verifier.ID, p.Verifier.Version = m.Verifier, m.Version
	if p.Verifier.ID == "" {
		p.Verifier.ID = DefaultVerifier
	}
	if err := checkVerifier(p.Verifier.ID); err != nil {
		return nil, fmt.Errorf("making a verification summary: %w", err)
	}
	// Whole seconds: what is compared later must survive any writer of JSON.
	p.TimeVerified = m.Time.UTC().Truncate(time.Second)
	p.ResourceURI = resource
	p.Policy = predicate.Resource{URI: m.PolicyURI, Digest: map[string]string{"sha256": hexOf(v.Policy.Digest)}, Name: v.Policy.Name}
	p.InputAttestations = inputs(e)
	p.VerificationResult = Passed
	p.VerifiedLevels = m.Levels
	if len(p.VerifiedLevels) == 0 {
		p.VerifiedLevels = []string{Unevaluated}
	}
	for level, n := range m.Dependencies {
		if p.DependencyLevels == nil {
			p.DependencyLevels = map[string]json.Number{}
		}
		p.DependencyLevels[level] = json.Number(fmt.Sprint(n))
	}
	p.SLSAVersion = SLSAVersion
	repo, _, _ := strings.Cut(e.Ref(), "@")
	return json.Marshal(struct {
		Type          string    `json:"_type"`
		Subject       []subject `json:"subject"`
		PredicateType string    `json:"predicateType"`
		Predicate     slsa      `json:"predicate"`
	}{api.StatementV1, []subject{{repo, map[string]string{"sha256": hexOf(e.Digest())}}}, PredicateType, p})
}

type subject struct {
	Name   string            `json:"name"`
	Digest map[string]string `json:"digest"`
}

// inputs are the attestations that were verified, each by the digest of its payload:
// the same attestation is often there in two envelopes.
func inputs(e *verify.Evidence) []predicate.Resource {
	var out []predicate.Resource
	for _, s := range e.Statements() {
		if s.PredicateType == predicate.VSAv1 || s.PredicateType == predicate.VSAv02 || s.PredicateType == ConformaType {
			continue // somebody's verdict, which none was made of
		}
		out = append(out, predicate.Resource{
			Digest: map[string]string{"sha256": hexOf(s.PayloadDigest)}, Name: s.PredicateType, MediaType: store.PayloadType,
		})
	}
	return out
}

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// Resource is resourceUri of an image, REPOSITORY@sha256:…: its package URL. It fails
// for anything else.
func Resource(ref string) (string, error) {
	repo, digest, ok := strings.Cut(ref, "@")
	if !ok || !sha256Form.MatchString(digest) {
		return "", fmt.Errorf("%q is no image by digest (REPOSITORY@sha256:…)", ref)
	}
	// What somebody typed behind the name does not name anything else.
	if i := strings.LastIndex(repo, ":"); i > strings.LastIndex(repo, "/") {
		repo = repo[:i]
	}
	name := repo[strings.LastIndex(repo, "/")+1:]
	if name == "" {
		return "", fmt.Errorf("%q names no repository", ref)
	}
	return "pkg:oci/" + url.PathEscape(name) + "@" + url.QueryEscape(digest) + "?repository_url=" + url.QueryEscape(repo), nil
}

func checkVerifier(id string) error {
	u, err := url.Parse(id)
	if err != nil || u.Scheme == "" || strings.ContainsAny(id, " \t\r\n") {
		return fmt.Errorf("the verifier's id %q is no URI, such as https://gate.example.com/release", id)
	}
	return nil
}
