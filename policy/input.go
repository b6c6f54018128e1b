package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"

	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/verify"
)

var digestPattern = regexp.MustCompile(`^sha256:[a-fA-F0-9]{64}$`)

// evidence is what this package reads of a *verify.Evidence. It is unexported
// so that evidence from nowhere else can be handed in; tests of the input
// document use their own.
type evidence interface {
	Ref() string
	Digest() string
	Manifest() []byte
	Signatures() []verify.Signature
	Statements() []verify.Statement
	Runs() []verify.Run
	Rejected() []verify.Rejected
}

var _ evidence = (*verify.Evidence)(nil)

// The input document: Conforma's keys, then ours under "assay".
type input struct {
	Attestations  []attestation   `json:"attestations"`
	Image         image           `json:"image"`
	Snapshot      Snapshot        `json:"snapshot"`
	ComponentName string          `json:"component_name"`
	PolicySpec    json.RawMessage `json:"policy_spec"`
	Assay         assay           `json:"assay"`
}

type attestation struct {
	Statement  json.RawMessage `json:"statement"`
	Signatures []sig           `json:"signatures,omitempty"`
}

type sig struct {
	KeyID string `json:"keyid"`
	Sig   string `json:"sig"`
}

type image struct {
	Ref        string          `json:"ref"`
	Signatures []sig           `json:"signatures,omitempty"`
	Config     json.RawMessage `json:"config,omitempty"`
	Parent     json.RawMessage `json:"parent,omitempty"`
	Files      json.RawMessage `json:"files,omitempty"`
	Source     json.RawMessage `json:"source,omitempty"`
}

type assay struct {
	// Manifest is the image's manifest or index, as its digest has it.
	Manifest   json.RawMessage    `json:"manifest"`
	Signatures []verify.Signature `json:"signatures"`
	// Statements says who signed each of input.attestations, in their order.
	Statements []signed `json:"statements"`
	// Logs and Witnesses are those that the verifier trusts, by name.
	Logs      []string          `json:"logs"`
	Witnesses []string          `json:"witnesses"`
	Runs      []run             `json:"runs"`
	Run       *run              `json:"run"`
	Rejected  []verify.Rejected `json:"rejected"`
}

// signed is who signed a statement and how independent he is.
type signed struct {
	PredicateType string            `json:"predicateType"`
	PayloadDigest string            `json:"payloadDigest"`
	Outcome       predicate.Outcome `json:"outcome,omitempty"`
	Identity      verify.Identity   `json:"identity"`
	// Unsaid lists what provenance of a GitHub workflow leaves open.
	Unsaid []verify.Omission `json:"unsaid,omitempty"`
}

type run struct {
	ID          string          `json:"id"`
	Provenance  json.RawMessage `json:"provenance"`
	Observation json.RawMessage `json:"observation"`
	// ProvenanceDigest is of the payload as signed; the observation names it.
	ProvenanceDigest string `json:"provenanceDigest,omitempty"`
	// Identity is who signed. Where provenance and observation differ it is the
	// less independent of the two, with a reason that says so.
	Identity verify.Identity `json:"identity"`
	// What the trusted logs prove of the two signatures: empty where none holds it,
	// for the reason given.
	ProvenanceLog        []tlog.Inclusion `json:"provenanceLog"`
	ProvenanceNotLogged  string           `json:"provenanceNotLogged,omitempty"`
	ObservationLog       []tlog.Inclusion `json:"observationLog"`
	ObservationNotLogged string           `json:"observationNotLogged,omitempty"`
}

// Snapshot is the set of components that the image is judged as part of.
type Snapshot struct {
	Application string         `json:"application"`
	Components  []Component    `json:"components"`
	Artifacts   map[string]any `json:"artifacts"`
}

// Component is one image of a snapshot.
type Component struct {
	Name           string          `json:"name"`
	ContainerImage string          `json:"containerImage"`
	Source         json.RawMessage `json:"source,omitempty"`
}

// facts are the evidence as rules see it, without the run under judgement.
type facts struct {
	doc    input
	target target
}

// images are the references of the snapshot's components.
func (f *facts) images() []string {
	var out []string
	for _, c := range f.doc.Snapshot.Components {
		out = append(out, c.ContainerImage)
	}
	return out
}

// newInput builds the input document. Where the policy says who signs, evidence by
// others moves to the rejected.
func newInput(e evidence, c *Context, spec json.RawMessage, by *signers) (*facts, error) {
	ref := e.Ref()
	repo, digest, ok := strings.Cut(ref, "@")
	if !ok || repo == "" || !digestPattern.MatchString(digest) || digest != e.Digest() {
		return nil, errors.New("reading evidence: it names no image by digest; evidence comes from verify.Image only")
	}
	repo = withoutTag(repo)
	component := c.Component
	if component == "" {
		component = path.Base(repo)
	}
	doc := input{
		Image:         image{Ref: ref, Config: c.ImageConfig, Parent: c.ImageParent, Files: c.ImageFiles, Source: c.ImageSource},
		ComponentName: component,
		PolicySpec:    spec,
		Snapshot:      Snapshot{Components: []Component{{Name: component, ContainerImage: ref}}, Artifacts: map[string]any{}},
		Assay:         assay{Manifest: e.Manifest(), Signatures: []verify.Signature{}, Statements: []signed{}, Logs: []string{}, Witnesses: []string{}, Runs: []run{}, Rejected: []verify.Rejected{}},
	}
	doc.Assay.Logs = append(doc.Assay.Logs, c.Logs...)
	doc.Assay.Witnesses = append(doc.Assay.Witnesses, c.Witnesses...)
	if c.Snapshot != nil {
		doc.Snapshot = *c.Snapshot
		if doc.Snapshot.Components == nil {
			doc.Snapshot.Components = []Component{}
		}
		if doc.Snapshot.Artifacts == nil {
			doc.Snapshot.Artifacts = map[string]any{}
		}
	}
	counts := func(list func() []who, id verify.Identity) bool { return by == nil || wanted(list(), id) }
	other := func(list func() []who, id verify.Identity, format, digest string) bool {
		if counts(list, id) {
			return false
		}
		signer := "key " + id.Key
		if id.Certificate != nil {
			signer = id.Certificate.SAN + " of " + id.Certificate.Issuer
		}
		doc.Assay.Rejected = append(doc.Assay.Rejected, verify.Rejected{Format: format, Digest: digest, Reason: "verified with " + signer + ", but the policy asks for " + names(list())})
		return true
	}
	images := func() []who { return by.image }
	of := func(predicateType string) func() []who { return func() []who { return by.of(predicateType) } }
	doc.Assay.Rejected = append(doc.Assay.Rejected, e.Rejected()...)
	for _, s := range e.Signatures() {
		if other(images, s.Identity, s.Format, digest) {
			continue
		}
		doc.Assay.Signatures = append(doc.Assay.Signatures, s)
		doc.Image.Signatures = append(doc.Image.Signatures, sig{KeyID: s.KeyID, Sig: s.Sig})
	}
	for _, s := range e.Statements() {
		if other(of(s.PredicateType), s.Identity, s.Format, s.PayloadDigest) {
			continue
		}
		doc.Assay.Statements = append(doc.Assay.Statements, signed{s.PredicateType, s.PayloadDigest, s.Outcome, s.Identity, verify.Unsaid(s.Typed, s.Certificate)})
		doc.Attestations = append(doc.Attestations, attestation{Statement: s.Payload, Signatures: []sig{{KeyID: s.KeyID, Sig: s.Sig}}})
	}
	for _, r := range e.Runs() {
		one := run{ID: r.ID, ProvenanceLog: []tlog.Inclusion{}, ObservationLog: []tlog.Inclusion{}}
		if s := r.Provenance; s != nil && counts(of(provenanceType), s.Identity) {
			one.Provenance, one.ProvenanceDigest, one.Identity = s.Payload, s.PayloadDigest, s.Identity
			one.ProvenanceLog, one.ProvenanceNotLogged = append(one.ProvenanceLog, s.Log...), s.NotLogged
		}
		if s := r.Observation; s != nil && counts(of(provenanceType), s.Identity) {
			one.Observation = s.Payload
			one.Identity = weaker(one.Provenance != nil, one.Identity, s.Identity)
			one.ObservationLog, one.ObservationNotLogged = append(one.ObservationLog, s.Log...), s.NotLogged
		}
		if one.Provenance != nil || one.Observation != nil {
			doc.Assay.Runs = append(doc.Assay.Runs, one)
		}
	}
	return &facts{doc: doc, target: target{repository: repo, digest: digest, component: component, parent: c.Parent}}, nil
}

// weaker is the identity of a run signed by two.
func weaker(both bool, provenance, observation verify.Identity) verify.Identity {
	if !both || provenance.Same(observation) && provenance.Grade == observation.Grade {
		return observation
	}
	out := provenance
	if provenance.Grade == verify.GradeObserver {
		out = observation
	}
	out.Reason = fmt.Sprintf("provenance signed by %s (%s), observation by %s (%s)", provenance.KeyName, provenance.Grade, observation.KeyName, observation.Grade)
	if !provenance.Same(observation) {
		// Two observers may each be trusted and still not have seen one run.
		out.Grade = verify.GradeUnknown
	}
	out.Independence.Grade = out.Grade
	out.Independence.Reasons = append([]verify.Reason{{Code: verify.ReasonTwoSigners, Text: out.Reason}}, out.Independence.Reasons...)
	return out
}

func withoutTag(repo string) string {
	if i := strings.LastIndex(repo, ":"); i > strings.LastIndex(repo, "/") {
		return repo[:i]
	}
	return repo
}
