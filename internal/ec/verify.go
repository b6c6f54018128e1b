package ec

import (
	"bytes"
	"context"
	"encoding/base64"
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

// evidence is what hangs on an image and verified with one key, or why nothing
// did.
type evidence struct {
	signatures     []signature
	signatureErr   error
	attestations   []attestation
	attestationErr error
	// setAside are pieces that did not verify.
	setAside []verify.Rejected
}

// unmatchedError says that there is something and none of it is by the key.
type unmatchedError struct{ what, why string }

func (e *unmatchedError) Error() string { return fmt.Sprintf("no matching %s: %s", e.what, e.why) }

var errNoSignatures = errors.New("no signatures found")

// verifier verifies by key what hangs on images, each image once for each key.
type verifier struct {
	transport http.RoundTripper
	keychain  authn.Keychain

	known sync.Map // ref and key → func() (*evidence, error)
	items sync.Map // ref → func() (*found, error)
}

// found is what hangs on an image, unverified.
type found struct {
	manifest []byte
	items    []store.Item
}

var _ builtin.Verifier = (*verifier)(nil)

// list reads what hangs on an image.
func (v *verifier) list(ctx context.Context, ref name.Digest) (*found, error) {
	once, _ := v.items.LoadOrStore(ref.Name(), sync.OnceValues(func() (*found, error) {
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
	}))
	return once.(func() (*found, error))()
}

// evidence verifies what hangs on an image with a key. An error means that it
// could not be found out.
func (v *verifier) evidence(ctx context.Context, ref name.Digest, key verify.Key, pem string) (*evidence, error) {
	once, _ := v.known.LoadOrStore(ref.Name()+"\x00"+pem, sync.OnceValues(func() (*evidence, error) {
		f, err := v.list(ctx, ref)
		if err != nil {
			return nil, err
		}
		return verified(ref, f, key), nil
	}))
	return once.(func() (*evidence, error))()
}

// verified verifies pieces one by one. Where there are bundles they alone count.
func verified(ref name.Digest, f *found, key verify.Key) *evidence {
	e := &evidence{}
	var images, statements int
	why := map[string]string{}
	bundles := false
	for _, it := range f.items {
		bundles = bundles || it.Format == store.FormatBundle
	}
	// What the right key signed and nobody can read is no evidence to be set aside.
	var malformed []error
	bundled := 0 // bundles that verified, whatever they say
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
		if err := verifyOne(ref, f.manifest, it, key); err != nil {
			var none *verify.NoEvidenceError
			if errors.As(err, &none) && len(none.Rejected) > 0 {
				e.setAside = append(e.setAside, none.Rejected...)
				r := none.Rejected[0]
				if err = errors.New(r.Reason); r.Kind == verify.KindMalformed && signedBy(it, key) {
					malformed = append(malformed, fmt.Errorf("malformed attestation data: %s", r.Reason))
				}
			}
			why[what] = err.Error()
			continue
		}
		bundled++
		add()
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

func verifyOne(ref name.Digest, manifest []byte, it store.Item, key verify.Key) error {
	_, err := verify.Items(ref.Context().Name()+"@"+ref.DigestStr(), manifest, []store.Item{it}, verify.Options{
		Keys: []verify.Key{key}, WithoutSignature: true, WithoutProvenance: true,
	})
	return err
}

// signedBy says whether a key signed the envelope of an item, whatever is in it.
func signedBy(it store.Item, key verify.Key) bool {
	env, err := envelope(it)
	if err != nil || env == nil {
		return false
	}
	pub, err := dsse.NewPublicKey(key.Public)
	if err != nil {
		return false
	}
	_, err = env.Verify(1, pub)
	return err == nil
}

// piece says what an item is, and how to add it once it has verified.
func (e *evidence) piece(it store.Item) (what string, add func()) {
	nothing := func() {}
	if it.MediaType == simplesigning.MediaType {
		return "signatures", func() {
			e.signatures = append(e.signatures, signature{Sig: it.Annotations["dev.cosignproject.cosign/signature"]})
		}
	}
	env, err := envelope(it)
	if err != nil {
		return "attestations", nothing
	}
	if env == nil { // a bundle over the image itself
		return "signatures", func() {
			if b, err := bundle.Parse(it.Content); err == nil && b.Message != nil {
				e.signatures = append(e.signatures, signature{Sig: base64.StdEncoding.EncodeToString(b.Message.Sig)})
			}
		}
	}
	a := attestation{statement: env.Payload, signatures: signaturesOf(env), bundle: it.Format == store.FormatBundle}
	if a.bundle && predicateType(env.Payload) == cosignSign {
		return "attestations", func() { e.signatures = append(e.signatures, a.signatures...) }
	}
	return "attestations", func() { e.attestations = append(e.attestations, a) }
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

// errOnlyKeys is the error for what verification by a key alone cannot answer.
var errOnlyKeys = errors.New("only signatures by a long-lived key are verified, without a transparency log: name a public key, and ignore Rekor (--ignore-rekor)")

func keyOf(o builtin.SigstoreOptions) (verify.Key, error) {
	if o.PublicKey == "" || !o.IgnoreRekor {
		return verify.Key{}, errOnlyKeys
	}
	return verify.ParsePublicKey([]byte(o.PublicKey))
}

// VerifyImage implements builtin.Verifier.
func (v *verifier) VerifyImage(ctx context.Context, ref name.Digest, o builtin.SigstoreOptions) ([]builtin.Signature, error) {
	key, err := keyOf(o)
	if err != nil {
		return nil, err
	}
	e, err := v.evidence(ctx, ref, key, o.PublicKey)
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
	key, err := keyOf(o)
	if err != nil {
		return nil, err
	}
	e, err := v.evidence(ctx, ref, key, o.PublicKey)
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

func forRules(sigs []signature) []builtin.Signature {
	out := make([]builtin.Signature, len(sigs))
	for i, s := range sigs {
		out[i] = builtin.Signature{KeyID: s.KeyID, Sig: s.Sig, Certificate: s.Certificate, Chain: s.Chain, Metadata: s.Metadata}
	}
	return out
}

// publicKey reads a key that is PEM text or a file, and returns it with its PEM.
func publicKey(value string) (verify.Key, string, error) {
	raw := []byte(value)
	if !bytes.Contains(raw, []byte("-----BEGIN")) {
		if k, ok := keyScheme(value); ok {
			return verify.Key{}, "", fmt.Errorf("reading the public key: keys at %s:// are not read by this command; give the public key as PEM or a file", k)
		}
		var err error
		if raw, err = readFile(value); err != nil {
			return verify.Key{}, "", fmt.Errorf("reading the public key: %w", err)
		}
	}
	key, err := verify.ParsePublicKey(raw)
	if err != nil {
		return verify.Key{}, "", fmt.Errorf("reading the public key: %w", err)
	}
	pub, err := dsse.NewPublicKey(key.Public)
	if err != nil {
		return verify.Key{}, "", fmt.Errorf("reading the public key: %w", err)
	}
	return key, string(pub.PEM()), nil
}
