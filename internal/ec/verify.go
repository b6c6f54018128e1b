package ec

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/verify"
)

// cosignSign is the predicate type of an image signature that is a bundle.
const cosignSign = "https://sigstore.dev/cosign/sign/v1"

// signature is one as reports and policies' inputs have it.
type signature struct {
	KeyID       string            `json:"keyid"`
	Sig         string            `json:"sig"`
	Certificate string            `json:"certificate,omitempty"`
	Chain       []string          `json:"chain,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

// attestation is one with what was signed.
type attestation struct {
	statement  []byte
	signatures []signature
	bundle     bool // it came as a Sigstore bundle
}

// evidence is what hangs on an image and verified as was demanded, or why nothing
// did.
type evidence struct {
	signatures     []signature
	signatureErr   error
	attestations   []attestation
	attestationErr error
	// by says who signed what verified, and setAside what did not verify.
	by       []signedBy
	setAside []verify.Rejected
	// unanswered is why a log could not be asked.
	unanswered error
}

// signedBy says of a piece of evidence who signed it and how that is known.
type signedBy struct {
	What   string `json:"what"` // signature, or a statement's predicate type
	Format string `json:"format"`
	// Key is the SHA-256 of the public key; a certificate's stands for one signature.
	Key string `json:"key"`
	// Identity, Issuer and Instance are a certificate's, TrustedAs what it was
	// demanded to be.
	Identity  string `json:"identity,omitempty"`
	Issuer    string `json:"issuer,omitempty"`
	Instance  string `json:"instance,omitempty"`
	TrustedAs string `json:"trustedAs,omitempty"`
	// Log has the entries that hold the signature, Times when it existed.
	Log   []tlog.Inclusion   `json:"log,omitempty"`
	Times []verify.Timestamp `json:"times,omitempty"`
}

// unmatchedError says that there is something and none of it is as demanded.
type unmatchedError struct{ what, why string }

func (e *unmatchedError) Error() string { return fmt.Sprintf("no matching %s: %s", e.what, e.why) }

var errNoSignatures = errors.New("no signatures found")

// maxRemembered bounds, in bytes, what hangs on images and is remembered unverified,
// and as much again verified: enough for the images under way.
const maxRemembered = 4 << 20

// verifier verifies what hangs on images, each image once for each demand.
type verifier struct {
	transport http.RoundTripper // to registries
	keychain  authn.Keychain
	roots     *roots
	search    *searches
	// readKey reads a public key by its name: PEM, a file or an address.
	readKey func(ctx context.Context, name string) ([]byte, error)

	known *recent[*evidence] // by ref and demand
	items *recent[*found]    // by ref
	keys  sync.Map           // name of a key → its PEM
}

// found is what hangs on an image, unverified.
type found struct {
	manifest []byte
	items    []store.Item
}

func (f *found) size() int64 {
	n := int64(len(f.manifest))
	for _, it := range f.items {
		n += int64(len(it.Content)) + recentOverhead
	}
	return n
}

func (e *evidence) size() int64 {
	n := int64(len(e.signatures)+len(e.by)+len(e.setAside)) * recentOverhead
	for _, a := range e.attestations {
		n += int64(len(a.statement))
	}
	return n
}

var _ builtin.Verifier = (*verifier)(nil)

// list reads what hangs on an image.
func (v *verifier) list(ctx context.Context, ref name.Digest) (*found, error) {
	return v.items.get(ref.Name(), func() (*found, error) {
		ctx := context.WithoutCancel(ctx)
		rt, err := oci.Authorize(ctx, ref.Context(), v.transport, v.keychain, false)
		if err != nil {
			return nil, err
		}
		s := oci.New(ref.Context(), rt, oci.Options{Attempts: 1}) // the transport tries again
		_, manifest, err := s.Resolve(ctx, ref.DigestStr())
		if err != nil {
			return nil, err
		}
		items, err := s.List(ctx, ref.DigestStr())
		if err != nil {
			return nil, err
		}
		return &found{manifest, items}, nil
	})
}

// evidence verifies what hangs on an image. An error means that it could not be
// found out.
func (v *verifier) evidence(ctx context.Context, ref name.Digest, d *demand) (*evidence, error) {
	return v.known.get(ref.Name()+"\x00"+d.id(), func() (*evidence, error) {
		f, err := v.list(ctx, ref)
		if err != nil {
			return nil, err
		}
		return v.verified(context.WithoutCancel(ctx), ref, f, d), nil
	})
}

// verified verifies pieces one by one. Where there are bundles they alone count.
func (v *verifier) verified(ctx context.Context, ref name.Digest, f *found, d *demand) *evidence {
	e := &evidence{}
	var images, statements int
	why := map[string]string{}
	bundles := false
	for _, it := range f.items {
		bundles = bundles || it.Format == store.FormatBundle
	}
	// What the right signer signed and nobody can read is no evidence to be set aside.
	var malformed []error
	bundled := 0 // bundles that verified, whatever they say
	asked := 0
	for _, it := range f.items {
		if bundles && it.Format != store.FormatBundle {
			continue
		}
		what, add := e.piece(it)
		switch what {
		case "signatures":
			images++
		case "attestations":
			statements++
		}
		ok, err := verifyOne(ref, f.manifest, it, d)
		if err != nil && unlogged(it, d) && asked < maxSearches {
			asked++
			ok, err = v.online(ctx, ref, f.manifest, it, d, err)
			// A log that does not answer once is not waited for again and again.
			if errors.As(err, new(*unansweredError)) {
				e.unanswered, asked = err, maxSearches
			}
		}
		if err != nil {
			var none *verify.NoEvidenceError
			if errors.As(err, &none) && len(none.Rejected) > 0 {
				r := none.Rejected[0]
				e.setAside = append(e.setAside, none.Rejected...)
				if err = errors.New(r.Reason); r.Kind == verify.KindMalformed && r.Signed {
					malformed = append(malformed, fmt.Errorf("malformed attestation data: %s", r.Reason))
				}
			}
			why[what] = err.Error()
			continue
		}
		bundled++
		by, chain := signers(it, ok)
		e.by = append(e.by, by...)
		add(chain)
	}
	switch {
	case bundles && bundled > 0:
		// One of a bundle's kind is as good as the other here.
	case bundles:
		e.signatureErr = &unmatchedError{"attestations", why["attestations"]}
	case images == 0:
		e.signatureErr = errNoSignatures
	case len(e.signatures) == 0:
		e.signatureErr = &unmatchedError{"signatures", why["signatures"]}
	}
	switch {
	case len(malformed) > 0:
		e.attestationErr = errors.Join(malformed...)
	case len(e.attestations) == 0 && (!bundles || bundled == 0):
		e.attestationErr = &unmatchedError{"attestations", why["attestations"]}
	}
	return e
}

func verifyOne(ref name.Digest, manifest []byte, it store.Item, d *demand) (*verify.Evidence, error) {
	return verify.Items(ref.Context().Name()+"@"+ref.DigestStr(), manifest, []store.Item{it}, d.options)
}

// signers tells who signed a piece that verified, and the certificate of the
// signature with those above it; none where a key signed, whose envelope may carry a
// certificate that nobody has looked at.
func signers(it store.Item, ok *verify.Evidence) (by []signedBy, chain []*x509.Certificate) {
	add := func(what string, id verify.Identity, log []tlog.Inclusion) {
		s := signedBy{What: what, Format: string(it.Format), Key: id.Key, TrustedAs: id.TrustedAs, Log: log, Times: id.Times}
		if c := id.Certificate; c != nil {
			s.Identity, s.Issuer, s.Instance = c.SAN, c.Issuer, c.Instance
			chain, _ = chainOf(it) // it verified, so it can be read
			if len(chain) > 0 && fingerprint(chain[0]) != c.Fingerprint {
				chain = nil
			}
		}
		by = append(by, s)
	}
	for _, s := range ok.Signatures() {
		add("signature", s.Identity, s.Log)
	}
	for _, s := range ok.Statements() {
		add(s.PredicateType, s.Identity, s.Log)
	}
	return by, chain
}

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// piece says what an item is, and how to add it once it has verified, with the
// certificate that it was verified with.
func (e *evidence) piece(it store.Item) (what string, add func(chain []*x509.Certificate)) {
	nothing := func([]*x509.Certificate) {}
	one := func(sig string) func([]*x509.Certificate) {
		return func(chain []*x509.Certificate) {
			s := signature{Sig: sig}
			s.certify(chain)
			e.signatures = append(e.signatures, s)
		}
	}
	if it.MediaType == simplesigning.MediaType {
		return "signatures", one(it.Annotations[annotationSignature])
	}
	env, err := envelope(it)
	if err != nil {
		return "attestations", nothing
	}
	if env == nil { // a bundle over the image itself
		b, err := bundle.Parse(it.Content)
		if err != nil || b.Message == nil {
			return "signatures", nothing
		}
		return "signatures", one(base64.StdEncoding.EncodeToString(b.Message.Sig))
	}
	a := attestation{statement: env.Payload, signatures: signaturesOf(env), bundle: it.Format == store.FormatBundle}
	certify := func(chain []*x509.Certificate) {
		for i := range a.signatures {
			a.signatures[i].certify(chain)
		}
	}
	if a.bundle && predicateType(env.Payload) == cosignSign {
		return "attestations", func(chain []*x509.Certificate) {
			certify(chain)
			e.signatures = append(e.signatures, a.signatures...)
		}
	}
	return "attestations", func(chain []*x509.Certificate) {
		certify(chain)
		e.attestations = append(e.attestations, a)
	}
}

// envelope is the DSSE envelope of an item; nil for a bundle without.
func envelope(it store.Item) (*dsse.Envelope, error) {
	switch {
	case it.Err != nil:
		return nil, it.Err
	case it.Format == store.FormatBundle:
		b, err := bundle.Parse(it.Content)
		if err != nil {
			return nil, err
		}
		return b.Envelope, nil
	case it.MediaType == api.MediaTypeDSSE:
		return dsse.Parse(it.Content)
	}
	return nil, fmt.Errorf("media type %q is no attestation", it.MediaType)
}

func signaturesOf(env *dsse.Envelope) []signature {
	var out []signature
	for _, s := range env.Signatures {
		out = append(out, signature{KeyID: s.KeyID, Sig: base64.StdEncoding.EncodeToString(s.Sig)})
	}
	return out
}

func predicateType(statement []byte) string {
	var s struct {
		PredicateType string `json:"predicateType"`
	}
	if json.Unmarshal(statement, &s) != nil {
		return ""
	}
	return s.PredicateType
}

// unverified are the attestations that hang on an image, whoever signed them.
func (v *verifier) unverified(ctx context.Context, ref name.Digest) ([]attestation, error) {
	f, err := v.list(ctx, ref)
	if err != nil {
		return nil, err
	}
	var out []attestation
	for _, it := range f.items {
		if it.MediaType == simplesigning.MediaType {
			continue
		}
		env, err := envelope(it)
		if err != nil {
			return nil, fmt.Errorf("reading attestation %s: %w", it.Digest, err)
		}
		if env == nil || predicateType(env.Payload) == cosignSign {
			continue
		}
		out = append(out, attestation{statement: env.Payload, signatures: signaturesOf(env), bundle: it.Format == store.FormatBundle})
	}
	return out, nil
}

// VerifyImage implements builtin.Verifier.
func (v *verifier) VerifyImage(ctx context.Context, ref name.Digest, o builtin.SigstoreOptions) ([]builtin.Signature, error) {
	e, err := v.forOptions(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	if e.signatureErr != nil {
		return nil, e.signatureErr
	}
	return forRules(e.signatures), nil
}

// VerifyAttestation implements builtin.Verifier.
func (v *verifier) VerifyAttestation(ctx context.Context, ref name.Digest, o builtin.SigstoreOptions) ([]builtin.Attestation, error) {
	e, err := v.forOptions(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	if e.attestationErr != nil {
		return nil, e.attestationErr
	}
	var out []builtin.Attestation
	for _, a := range e.attestations {
		out = append(out, builtin.Attestation{Statement: a.statement, Signatures: forRules(a.signatures)})
	}
	return out, nil
}

func (v *verifier) forOptions(ctx context.Context, ref name.Digest, o builtin.SigstoreOptions) (*evidence, error) {
	d, err := v.demanded(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("opts parameter: %w", err)
	}
	return v.evidence(ctx, ref, d)
}

func forRules(sigs []signature) []builtin.Signature {
	out := make([]builtin.Signature, len(sigs))
	for i, s := range sigs {
		out[i] = builtin.Signature{KeyID: s.KeyID, Sig: s.Sig, Certificate: s.Certificate, Chain: s.Chain, Metadata: s.Metadata}
	}
	return out
}
