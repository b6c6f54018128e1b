package verify

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
)

// checker gathers what verified for one artifact. Its lists grow only by what
// was verified.
type checker struct {
	ring     []trusted
	log      LogTrust
	digest   string
	manifest []byte

	signatures []Signature
	statements []Statement
	builders   []string // of statements, index by index; empty where none is named
	runs       []Run
	rejected   []Rejected
}

// Annotations in which cosign keeps what belongs to a layer of .sig.
const (
	annotationSignature   = "dev.cosignproject.cosign/signature"
	annotationCertificate = "dev.sigstore.cosign/certificate"
)

// errCertificate is the reason for what Fulcio's users sign.
var errCertificate = errors.New("signed by a certificate; this trust holds only keys")

// item verifies one piece and adds it, or says why not.
func (c *checker) item(it store.Item) error {
	if it.Err != nil {
		return fmt.Errorf("reading it: %w", it.Err)
	}
	switch {
	case it.Format == store.FormatBundle:
		return c.bundle(it)
	case it.MediaType == simplesigning.MediaType:
		return c.simple(it)
	case it.MediaType == api.MediaTypeDSSE:
		env, err := dsse.Parse(it.Content)
		if err != nil {
			return err
		}
		return c.envelope(it, env)
	}
	return fmt.Errorf("media type %q is not known", it.MediaType)
}

func (c *checker) bundle(it store.Item) error {
	b, err := bundle.Parse(it.Content)
	if err != nil {
		return err
	}
	if b.Certificate {
		return errCertificate
	}
	if b.Envelope != nil {
		return c.envelope(it, b.Envelope)
	}
	if claimed := "sha256:" + hex.EncodeToString(b.Message.SHA256); claimed != c.digest {
		return fmt.Errorf("it signs %s, not this artifact", claimed)
	}
	return c.signature(it, "", c.manifest, b.Message.Sig, b.Hint)
}

// simple verifies an image signature of a .sig tag.
func (c *checker) simple(it store.Item) error {
	p, err := simplesigning.Parse(it.Content)
	if err != nil {
		return err
	}
	if p.Digest != c.digest {
		return fmt.Errorf("it signs %s, not this artifact", p.Digest)
	}
	encoded := it.Annotations[annotationSignature]
	if encoded == "" {
		return fmt.Errorf("the layer has no annotation %s", annotationSignature)
	}
	sig, err := dsse.Base64(encoded)
	if err != nil {
		return fmt.Errorf("reading annotation %s: %w", annotationSignature, err)
	}
	return c.signature(it, simplesigning.MediaType, it.Content, sig, "")
}

// signature adds an image signature if one of the keys made it. The payload type is
// empty for a signature of the manifest's own bytes.
func (c *checker) signature(it store.Item, payloadType string, message, sig []byte, keyID string) error {
	for _, k := range c.ring {
		if k.public.Verify(message, sig) != nil {
			continue
		}
		if keyID == "" {
			keyID = k.public.KeyID()
		}
		entries, why := c.logged(it, tlog.Signed{PayloadType: payloadType, Payload: message, Sig: sig, Key: k.public})
		if err := c.demand(entries, why); err != nil {
			return err
		}
		c.addSignature(Signature{
			Identity: identity(k, keyID),
			Sig:      base64.StdEncoding.EncodeToString(sig),
			Format:   string(it.Format),
			Logged:   Logged{entries, reason(why)},
		})
		return nil
	}
	if it.Annotations[annotationCertificate] != "" {
		return errCertificate
	}
	return fmt.Errorf("the signature was made by none of the %d trusted keys, or for other bytes", len(c.ring))
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

// envelope verifies a DSSE envelope that holds a statement about the artifact.
func (c *checker) envelope(it store.Item, env *dsse.Envelope) error {
	keys := make([]dsse.PublicKey, len(c.ring))
	for i, k := range c.ring {
		keys[i] = k.public
	}
	// Signature first: what nobody we trust has signed is not even parsed.
	accepted, err := env.Verify(1, keys...)
	if err != nil {
		if it.Annotations[annotationCertificate] != "" {
			return errCertificate
		}
		return err
	}
	if env.PayloadType != api.PayloadTypeInToto {
		return fmt.Errorf("payload type %q is not known; want %s", env.PayloadType, api.PayloadTypeInToto)
	}
	s, err := intoto.Parse(env.Payload)
	if err != nil {
		return err
	}
	if !s.About(c.digest) {
		return fmt.Errorf("the statement (%s) is about another artifact: none of its %d subjects is %s", s.PredicateType, len(s.Subjects), c.digest)
	}
	builder, err := builderOf(s)
	if err != nil {
		return fmt.Errorf("reading predicate %s: %w", s.PredicateType, err)
	}
	accepted, entries, err := c.inLogs(it, env, accepted)
	if err != nil {
		return err
	}
	by, with := c.signer(accepted, builder)
	logged := entries[by.public.Fingerprint()]
	keyID := with.KeyID
	if keyID == "" {
		keyID = by.public.KeyID()
	}
	sig := base64.StdEncoding.EncodeToString(with.Sig)
	if s.PredicateType == intoto.PredicateImageSignature {
		c.addSignature(Signature{Identity: identity(by, keyID), Sig: sig, Format: string(it.Format), Logged: logged})
		return nil
	}
	st := Statement{
		Identity:      identity(by, keyID),
		Format:        string(it.Format),
		Payload:       env.Payload,
		PayloadDigest: digestOf(env.Payload),
		Sig:           sig,
		StatementType: s.Type,
		PredicateType: s.PredicateType,
		Predicate:     s.Predicate,
		Logged:        logged,
	}
	if i := slices.IndexFunc(c.statements, func(o Statement) bool { return o.PayloadDigest == st.PayloadDigest && o.Key == st.Key }); i >= 0 {
		mergeLog(&c.statements[i].Log, &c.statements[i].NotLogged, logged.Log)
		return nil
	}
	c.statements = append(c.statements, st)
	c.builders = append(c.builders, builder)
	return nil
}

// inLogs asks the logs for each accepted signature. Where an entry is required, only
// those that have one remain.
func (c *checker) inLogs(it store.Item, env *dsse.Envelope, accepted []dsse.Accepted) ([]dsse.Accepted, map[string]Logged, error) {
	var (
		out     []dsse.Accepted
		refused error
	)
	logged := map[string]Logged{}
	for _, a := range accepted {
		entries, why := c.logged(it, tlog.Signed{PayloadType: env.PayloadType, Payload: env.Payload, Sig: a.Signature.Sig, Key: a.Key})
		if err := c.demand(entries, why); err != nil {
			refused = err
			continue
		}
		out = append(out, a)
		logged[a.Key.Fingerprint()] = Logged{entries, reason(why)}
	}
	if len(out) == 0 {
		return nil, nil, refused
	}
	return out, logged, nil
}

// signer picks the key to name where several signed: an observer's for this
// builder if there is one, else the first.
func (c *checker) signer(accepted []dsse.Accepted, builder string) (trusted, dsse.Signature) {
	best, with := -1, dsse.Signature{}
	for _, a := range accepted {
		i := slices.IndexFunc(c.ring, func(k trusted) bool { return k.public.Fingerprint() == a.Key.Fingerprint() })
		if best < 0 || !c.speaksFor(c.ring[best], builder) && c.speaksFor(c.ring[i], builder) {
			best, with = i, a.Signature
		}
	}
	return c.ring[best], with
}

func (c *checker) speaksFor(k trusted, builder string) bool { return k.Observer && k.fits(builder) }

// identity is who signed, not yet graded.
func identity(k trusted, keyID string) Identity {
	return Identity{KeyID: keyID, Key: k.public.Fingerprint(), KeyName: k.Name, Grade: GradeUnknown}
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
