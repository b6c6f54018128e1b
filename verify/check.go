package verify

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	sgverify "github.com/sigstore/sigstore-go/pkg/verify"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

// checker gathers what verified for one artifact. Its lists grow only by what
// was verified.
type checker struct {
	ring       []trusted
	instances  []*Instance
	identities []signer
	keysLogged bool
	at         time.Time
	log        LogTrust
	artifact   *Artifact
	expect     *Expectation

	signatures []Signature
	statements []Statement
	builders   []string // of statements, index by index; empty where none is named
	runs       []Run
	rejected   []Rejected
}

// Annotations in which cosign keeps what belongs to a layer of .sig and .att.
const (
	annotationSignature   = "dev.cosignproject.cosign/signature"
	annotationCertificate = "dev.sigstore.cosign/certificate"
	annotationTimestamp   = "dev.sigstore.cosign/rfc3161timestamp"
)

// errCertificate is the reason for what Fulcio's users sign.
var errCertificate = &kindError{KindUntrustedIdentity, errors.New("signed by a certificate; this trust holds only keys")}

// item verifies one piece and adds it, or says why not.
func (c *checker) item(it store.Item) error {
	if it.Err != nil {
		err := fmt.Errorf("reading it: %w", it.Err)
		if errors.Is(it.Err, store.ErrAltered) {
			return as(KindAltered, err)
		}
		return as(KindUnreadable, err)
	}
	switch {
	case it.Format == store.FormatBundle, it.Format == FormatBundleFile:
		return c.bundle(it)
	case it.MediaType == simplesigning.MediaType:
		return c.simple(it)
	case it.MediaType == api.MediaTypeDSSE:
		env, err := dsse.Parse(it.Content)
		if err != nil {
			return as(KindMalformed, err)
		}
		return c.envelope(it, env, nil)
	}
	return fmt.Errorf("media type %q is not known", it.MediaType)
}

// entity is a piece in the form that sigstore-go reads, made when it is needed.
type entity func() (sgverify.SignedEntity, error)

func (c *checker) bundle(it store.Item) error {
	b, err := bundle.Parse(it.Content)
	if err != nil {
		return as(KindMalformed, err)
	}
	read := func() (sgverify.SignedEntity, error) { return readEntity(it.Content, b) }
	if b.Certificate && len(c.instances) == 0 {
		return errCertificate
	}
	if b.Envelope != nil {
		return c.envelope(it, b.Envelope, read)
	}
	return c.message(it, b, read)
}

// message verifies a signature over the artifact itself.
func (c *checker) message(it store.Item, b *bundle.Bundle, read entity) error {
	digest, err := c.artifact.messageDigest(b.Message)
	if err != nil {
		return err
	}
	if b.Certificate {
		return c.certifiedSignature(it, b.Message.Sig, c.artifact, read)
	}
	return c.signature(it, signed{
		sig: b.Message.Sig, keyID: b.Hint, read: read,
		by: func(k dsse.PublicKey) error {
			return c.artifact.signedBy(k, b.Message.Algorithm, digest, b.Message.Sig)
		},
		// A log of ours never holds such a signature, Rekor knows it by its digest.
		logged: func(k dsse.PublicKey) tlog.Signed {
			s := tlog.Signed{Sig: b.Message.Sig, Key: k}
			s.Payload, _ = c.artifact.bytes() // without them no entry is found
			return s
		},
	})
}

// simple verifies an image signature of a .sig tag.
func (c *checker) simple(it store.Item) error {
	p, err := simplesigning.Parse(it.Content)
	if err != nil {
		return as(KindMalformed, err)
	}
	if p.Digest != c.artifact.Digest() {
		return kindf(KindOtherArtifact, "it signs %s, not this artifact", p.Digest)
	}
	encoded := it.Annotations[annotationSignature]
	if encoded == "" {
		return kindf(KindMalformed, "the layer has no annotation %s", annotationSignature)
	}
	sig, err := dsse.Base64(encoded)
	if err != nil {
		return as(KindMalformed, fmt.Errorf("reading annotation %s: %w", annotationSignature, err))
	}
	if it.Annotations[annotationCertificate] != "" && len(c.instances) > 0 {
		read := func() (sgverify.SignedEntity, error) { return layerMessage(it, sig) }
		if err := c.certifiedSignature(it, sig, manifestArtifact("payload", it.Content), read); err == nil || len(c.ring) == 0 {
			return err
		}
	}
	return c.signature(it, signed{
		sig: sig, by: func(k dsse.PublicKey) error { return k.Verify(it.Content, sig) },
		logged: func(k dsse.PublicKey) tlog.Signed {
			return tlog.Signed{PayloadType: simplesigning.MediaType, Payload: it.Content, Sig: sig, Key: k}
		},
	})
}

// signed is a signature that one of the keys may have made.
type signed struct {
	sig    []byte
	keyID  string
	by     func(dsse.PublicKey) error
	logged func(dsse.PublicKey) tlog.Signed
	read   entity // nil where it is no bundle
}

// signature adds an image signature if one of the keys made it.
func (c *checker) signature(it store.Item, s signed) error {
	for _, k := range c.ring {
		if len(k.Predicates) > 0 || s.by(k.public) != nil {
			continue
		}
		id := identity(k, first(s.keyID, k.public.KeyID()))
		entries, why := c.logged(it, s.logged(k.public))
		if err := c.demand(entries, why); err != nil {
			return as(KindNotLogged, err)
		}
		if err := c.timely(it, s.logged(k.public), &id, &entries, k, s.read); err != nil {
			return err
		}
		c.addSignature(Signature{
			Identity: id,
			Sig:      base64.StdEncoding.EncodeToString(s.sig),
			Format:   string(it.Format),
			Logged:   loggedAs(entries, why),
		})
		return nil
	}
	if it.Annotations[annotationCertificate] != "" {
		return errCertificate
	}
	return kindf(KindInvalidSignature, "the signature was made by none of the %d trusted keys, or for other bytes", len(c.ring))
}

// timely does for a key's signature what its trust demands beyond it: that an
// instance's log holds it (Options.KeysLogged), and that it was made while the key was
// valid. Read is nil for one in no bundle, whose entry may be beside it.
func (c *checker) timely(it store.Item, s tlog.Signed, id *Identity, entries *[]tlog.Inclusion, k trusted, read entity) error {
	bounded := !k.From.IsZero() || !k.Until.IsZero()
	if !c.keysLogged && !bounded {
		return nil
	}
	var found *seen
	var err error
	if read == nil {
		found, err = c.keyedLayer(it, s, k)
	} else {
		var e sgverify.SignedEntity
		if e, err = read(); err != nil {
			return as(KindMalformed, err)
		}
		found, err = c.keyed(e, k)
	}
	if err != nil {
		return as(KindNotLogged, fmt.Errorf("the signature verifies, but not that it is in a log, and made while the key was valid: %w", err))
	}
	id.Times = found.times
	mergeLog(entries, new(string), found.logged)
	return nil
}

func (c *checker) addSignature(s Signature) {
	// The same signature in two places of one form says nothing more.
	i := slices.IndexFunc(c.signatures, func(o Signature) bool {
		return o.Format == s.Format && o.Key == s.Key && o.Sig == s.Sig
	})
	if i < 0 {
		c.signatures = append(c.signatures, s)
		return
	}
	mergeLog(&c.signatures[i].Log, &c.signatures[i].NotLogged, s.Log)
}

// certifiedSignature verifies a signature by a certificate over an artifact, or over
// the payload that names it.
func (c *checker) certifiedSignature(it store.Item, sig []byte, over *Artifact, read entity) error {
	found, logged, err := c.byCertificate(it, read, over, func(k dsse.PublicKey) tlog.Signed {
		s := tlog.Signed{Sig: sig, Key: k}
		if it.MediaType == simplesigning.MediaType {
			s.PayloadType = simplesigning.MediaType
		}
		s.Payload, _ = over.bytes()
		return s
	})
	if err != nil {
		return err
	}
	if err := c.expect.signer(found.certificate); err != nil {
		return err
	}
	c.addSignature(Signature{
		Identity: certificateIdentity(found), Sig: base64.StdEncoding.EncodeToString(sig), Format: string(it.Format), Logged: logged,
	})
	return nil
}

// byCertificate verifies a piece whose signer a certificate names.
func (c *checker) byCertificate(it store.Item, read entity, over *Artifact, s func(dsse.PublicKey) tlog.Signed) (*seen, Logged, error) {
	e, err := read()
	if err != nil {
		return nil, Logged{}, as(KindMalformed, err)
	}
	found, err := c.certified(e, over)
	if err != nil {
		return nil, Logged{}, as(KindInvalidSignature, err)
	}
	entries := found.logged
	if c.log.known() {
		more, why := c.logged(it, s(found.key))
		if err := c.demand(more, why); err != nil {
			return nil, Logged{}, as(KindNotLogged, err)
		}
		// The trust's own logs know witnesses; the same entry is listed once.
		for _, in := range more {
			entries = slices.DeleteFunc(entries, func(o tlog.Inclusion) bool { return o.Index == in.Index && o.Kind == in.Kind && o.Size == in.Size })
			entries = append(entries, in)
		}
	}
	return found, Logged{Log: entries}, nil
}

// envelope verifies a DSSE envelope that holds a statement about the artifact. Read
// is nil for one that is in no bundle.
func (c *checker) envelope(it store.Item, env *dsse.Envelope, read entity) error {
	layer := it.Annotations[annotationCertificate] != ""
	if layer && len(c.instances) > 0 {
		read = func() (sgverify.SignedEntity, error) { return layerEnvelope(it, env) }
	}
	var (
		by     []voucher
		reason error
	)
	switch {
	case read != nil && len(c.instances) > 0 && (layer || certificateBundle(it)):
		var v voucher
		v, reason = c.voucherOf(it, env, read)
		if reason == nil {
			by = append(by, v)
		}
		if reason != nil && layer && len(c.ring) > 0 {
			by, reason = c.vouchers(it, env, nil)
		}
	case read == nil && env.Signatures[0].Certificate != "" && len(c.instances) > 0:
		if by, reason = c.vouchers(it, env, nil); reason != nil {
			reason = c.unlogged(env)
		}
	default:
		by, reason = c.vouchers(it, env, read)
	}
	// Signature first: what nobody we trust has signed is not even parsed.
	if reason != nil {
		return reason
	}
	if err := c.statement(it, env, by); err != nil {
		return &toldError{err}
	}
	return nil
}

// toldError is about what a trusted signer says, not about who he is.
type toldError struct{ error }

func (e *toldError) Unwrap() error { return e.error }

// voucher is a good signature of an envelope and what is known of it.
type voucher struct {
	identity Identity
	key      trusted // zero for a certificate's
	sig      []byte
	logged   Logged
}

// voucherOf is the certificate's signature.
func (c *checker) voucherOf(it store.Item, env *dsse.Envelope, read entity) (voucher, error) {
	sig := env.Signatures[0].Sig
	found, logged, err := c.byCertificate(it, read, c.artifact, func(k dsse.PublicKey) tlog.Signed {
		return inEnvelope(it, env, env.Signatures[0], k)
	})
	if err != nil {
		return voucher{}, err
	}
	return voucher{identity: certificateIdentity(found), sig: sig, logged: logged}, nil
}

// inEnvelope is what to ask logs about a signature of an envelope.
func inEnvelope(it store.Item, env *dsse.Envelope, sig dsse.Signature, key dsse.PublicKey) tlog.Signed {
	s := tlog.Signed{PayloadType: env.PayloadType, Payload: env.Payload, Sig: sig.Sig, Key: key, KeyID: sig.KeyID}
	if it.MediaType == api.MediaTypeDSSE {
		s.Envelope = it.Content
	}
	return s
}

// vouchers are the trusted keys' signatures, those that a log holds where one must.
func (c *checker) vouchers(it store.Item, env *dsse.Envelope, read entity) ([]voucher, error) {
	if len(c.ring) == 0 {
		return nil, kindf(KindUntrustedIdentity, "signed by a bare key; this trust holds only certificates' identities")
	}
	keys := make([]dsse.PublicKey, len(c.ring))
	for i, k := range c.ring {
		keys[i] = k.public
	}
	accepted, err := env.Verify(1, keys...)
	if err != nil {
		if it.Annotations[annotationCertificate] != "" {
			return nil, errCertificate
		}
		return nil, as(KindInvalidSignature, err)
	}
	var (
		out     []voucher
		refused error
	)
	for _, a := range accepted {
		i := slices.IndexFunc(c.ring, func(k trusted) bool { return k.public.Fingerprint() == a.Key.Fingerprint() })
		v := voucher{key: c.ring[i], sig: a.Signature.Sig, identity: identity(c.ring[i], first(a.Signature.KeyID, a.Key.KeyID()))}
		entries, why := c.logged(it, inEnvelope(it, env, a.Signature, a.Key))
		if err := c.demand(entries, why); err != nil {
			refused = as(KindNotLogged, err)
			continue
		}
		if err := c.timely(it, inEnvelope(it, env, a.Signature, a.Key), &v.identity, &entries, v.key, read); err != nil {
			refused = err
			continue
		}
		v.logged = loggedAs(entries, why)
		out = append(out, v)
	}
	if len(out) == 0 {
		return nil, refused
	}
	return out, nil
}

// statement adds what an envelope says, whose signatures are good.
func (c *checker) statement(it store.Item, env *dsse.Envelope, by []voucher) error {
	if env.PayloadType != api.PayloadTypeInToto {
		return kindf(KindMalformed, "payload type %q is not known; want %s", env.PayloadType, api.PayloadTypeInToto)
	}
	s, err := intoto.ParseUntyped(env.Payload)
	if err != nil {
		return as(KindMalformed, err)
	}
	about, err := c.artifact.subject(s)
	if err != nil {
		return err
	}
	if !about {
		return kindf(KindOtherArtifact, "the statement (%s) is about another artifact: none of its %d subjects is %s", s.PredicateType, len(s.Subjects), c.artifact.Digest())
	}
	typed, err := predicate.Parse(s.PredicateType, s.Predicate)
	if err != nil {
		return as(KindMalformed, err)
	}
	if by = slices.DeleteFunc(by, func(v voucher) bool {
		return len(v.key.Predicates) > 0 && !slices.Contains(v.key.Predicates, s.PredicateType)
	}); len(by) == 0 {
		return kindf(KindUntrustedIdentity, "signed by a key that is not trusted for statements of type %s", s.PredicateType)
	}
	builder := builderOf(typed)
	v := c.prefer(by, builder)
	sig := base64.StdEncoding.EncodeToString(v.sig)
	if s.PredicateType == intoto.PredicateImageSignature {
		if err := c.expect.signer(v.identity.Certificate); err != nil {
			return err
		}
		c.addSignature(Signature{Identity: v.identity, Sig: sig, Format: string(it.Format), Logged: v.logged})
		return nil
	}
	st := Statement{
		Identity:      v.identity,
		Format:        string(it.Format),
		Payload:       env.Payload,
		PayloadDigest: digestOf(env.Payload),
		Sig:           sig,
		StatementType: s.Type,
		PredicateType: s.PredicateType,
		Predicate:     s.Predicate,
		Typed:         typed,
		Outcome:       outcomeOf(typed),
		Logged:        v.logged,
	}
	if err := c.expect.check(&st, s); err != nil {
		return err
	}
	if i := slices.IndexFunc(c.statements, func(o Statement) bool { return o.PayloadDigest == st.PayloadDigest && o.Key == st.Key }); i >= 0 {
		mergeLog(&c.statements[i].Log, &c.statements[i].NotLogged, st.Log)
		return nil
	}
	c.statements = append(c.statements, st)
	c.builders = append(c.builders, builder)
	return nil
}

// prefer picks the signer to name where several signed: an observer's for this
// builder if there is one, else the first.
func (c *checker) prefer(by []voucher, builder string) voucher {
	best := by[0]
	for _, v := range by[1:] {
		if !best.key.speaksFor(builder) && v.key.speaksFor(builder) {
			best = v
		}
	}
	return best
}

func (k trusted) speaksFor(builder string) bool { return k.Observer && k.fits(builder) }

// identity is who signed, not yet graded.
func identity(k trusted, keyID string) Identity {
	return Identity{KeyID: keyID, Key: k.public.Fingerprint(), KeyName: k.Name, Grade: GradeUnknown}
}

func certificateIdentity(s *seen) Identity {
	return Identity{
		KeyID: s.key.KeyID(), Key: s.key.Fingerprint(), KeyName: s.certificate.SAN, Grade: GradeUnknown,
		Certificate: s.certificate, TrustedAs: s.by, Times: s.times,
	}
}

func loggedAs(entries []tlog.Inclusion, why error) Logged {
	if len(entries) > 0 {
		why = nil
	}
	return Logged{entries, reason(why)}
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
