package verify

import (
	"slices"

	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/attest/tlog"
)

// Evidence is what verification found to be true about one artifact. Only this
// package can make one, so holding it means that every signature in it was
// checked against the trust that the caller stated.
//
// Its zero value holds nothing and policy refuses it.
type Evidence struct {
	ref        string
	digest     string
	manifest   []byte
	signatures []Signature
	statements []Statement
	runs       []Run
	rejected   []Rejected
}

// Ref is repo@sha256:… as verified; a file's path, or a bare digest, where the
// artifact is no image.
func (e *Evidence) Ref() string { return e.ref }

// Digest is sha256:… of the artifact, or the digest by which it was asked for.
func (e *Evidence) Digest() string { return e.digest }

// Manifest is the image's manifest or index: the bytes that Digest is of. Empty for
// other artifacts.
func (e *Evidence) Manifest() []byte { return slices.Clone(e.manifest) }

// Signatures are the verified image signatures (simple signing or bundle).
func (e *Evidence) Signatures() []Signature { return slices.Clone(e.signatures) }

// Statements are the verified in-toto statements about this digest, in the
// order found, duplicates (the same payload as tag and as referrer) once.
func (e *Evidence) Statements() []Statement { return slices.Clone(e.statements) }

// Runs has one entry for each verified observation, with the provenance that it
// names and that the same key signed. Statements of two runs are never merged,
// even when both made this digest. Provenance that no observation names, such as
// that of other builders, is in Statements only.
func (e *Evidence) Runs() []Run { return slices.Clone(e.runs) }

// Rejected lists what was found and did not verify, with the reason. It is no
// error as long as something verified.
func (e *Evidence) Rejected() []Rejected { return slices.Clone(e.rejected) }

// Grade says how independent a signer is from the build; see docs/concepts.md.
type Grade string

const (
	GradeObserver  Grade = "observer"   // the verifier's trust binds this key to an observer, and builder.id fits
	GradeKeyHolder Grade = "key holder" // a bare key
	GradeUnknown   Grade = "unknown"
)

// Identity is who signed.
type Identity struct {
	KeyID   string `json:"keyid"`   // as the envelope has it
	Key     string `json:"key"`     // SHA-256 of the public key's PKIX form, hex
	KeyName string `json:"keyName"` // name in the trust, the file's for --key
	Grade   Grade  `json:"grade"`
	Reason  string `json:"reason"`
	// Independence is the grade with its reasons as codes, and the workflow that signed.
	Independence Independence `json:"independence,omitzero"`

	// Certificate is what an authority says of the signer; nil for a bare key. Key and
	// KeyID are then those of the certificate's own key, which signed once.
	Certificate *Certificate `json:"certificate,omitempty"`
	// TrustedAs is the name of the trust's identity that the certificate is.
	TrustedAs string `json:"trustedAs,omitempty"`
	// Times are when the signature existed, by those whom the trust believes.
	Times []Timestamp `json:"times,omitempty"`
}

// Same says whether two signers are one: the same key, or certificates of the same
// name, issuer and instance.
func (i Identity) Same(o Identity) bool {
	if i.Certificate == nil || o.Certificate == nil {
		return i.Certificate == nil && o.Certificate == nil && i.Key == o.Key
	}
	a, b := i.Certificate, o.Certificate
	return a.SAN == b.SAN && a.SANType == b.SANType && a.Issuer == b.Issuer && a.Instance == b.Instance
}

// Signature is a verified signature over the image's digest.
type Signature struct {
	Identity
	Sig    string `json:"sig"`    // base64
	Format string `json:"format"` // cosign-tag, bundle-referrer
	Logged
}

// Logged says which of the trusted transparency logs hold a signature.
type Logged struct {
	// Log has an entry for each log that proves, or promises, to hold it; an entry
	// without witnesses rests on the word of the log's operator alone.
	Log []tlog.Inclusion `json:"log,omitempty"`
	// NotLogged is why Log is empty, where logs are trusted.
	NotLogged string `json:"notLogged,omitempty"`
}

// Witnessed says whether a checkpoint over one of the entries is cosigned by a
// trusted witness.
func (l Logged) Witnessed() bool {
	return slices.ContainsFunc(l.Log, func(in tlog.Inclusion) bool { return len(in.Witnesses) > 0 })
}

// Statement is a verified in-toto statement whose subject is the artifact. Its
// predicate type may be one that nobody here knows; what it says is then only
// known to be said by the signer.
type Statement struct {
	Identity
	Format        string // cosign-tag, bundle-referrer, bundle-file, envelope-file, gcb-file
	Payload       []byte // as signed
	PayloadDigest string // sha256:… of Payload
	Sig           string // base64
	StatementType string
	PredicateType string
	Predicate     []byte // JSON
	// Typed is the predicate as its type's value; *predicate.Unknown where nobody here
	// knows the type.
	Typed predicate.Predicate
	// Outcome is how the run that it describes ended, as it says; empty where it
	// describes none. After verification it includes what an observation of the same
	// run by the same signer says.
	Outcome predicate.Outcome
	Logged
}

// Run is the provenance and the observation of one run.
type Run struct {
	// ID is the run's id as the observation has it.
	ID string
	// Provenance is nil where the observation names a payload that is not here.
	Provenance  *Statement
	Observation *Statement
}

// Rejected is evidence that did not verify.
type Rejected struct {
	Format string `json:"format"`
	Digest string `json:"digest"` // of the layer or manifest it was in
	Reason string `json:"reason"`
	Kind   Kind   `json:"kind,omitempty"`
	// Signed says that a trusted signer did sign it, and that what he says does not
	// count. It is for callers and not in reports.
	Signed bool `json:"-"`
}
