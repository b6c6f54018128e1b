package verify

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	sgbundle "github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgtlog "github.com/sigstore/sigstore-go/pkg/tlog"
	sgverify "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/tlog"
)

// Timestamp is a time by which a signature existed, by somebody whom the caller
// trusts for it.
type Timestamp struct {
	Time time.Time `json:"time"`
	// Kind is log (Rekor signed the time of its entry) or authority (RFC 3161).
	Kind string `json:"kind"`
	// Source is the log's or authority's address, as the trusted root has it.
	Source string `json:"source,omitempty"`
}

// Kinds of timestamps.
const (
	TimeLog       = "log"
	TimeAuthority = "authority"
)

// seen is what an instance's verification found to be true of one signature.
type seen struct {
	certificate *Certificate // nil for a key's
	key         dsse.PublicKey
	times       []Timestamp
	logged      []tlog.Inclusion
	by          string // name of the identity of the trust
}

// oidSAN is X.509's subject alternative name.
var oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}

// readEntity reads a bundle that package bundle has read, again, with the library
// that verifies it, and makes sure that both see the same signed bytes.
func readEntity(data []byte, b *bundle.Bundle) (*sgbundle.Bundle, error) {
	entity := new(sgbundle.Bundle)
	if err := entity.UnmarshalJSON(data); err != nil {
		return nil, err
	}
	return entity, sameContent(entity, b)
}

func sameContent(entity *sgbundle.Bundle, b *bundle.Bundle) error {
	content, err := entity.SignatureContent()
	if err != nil {
		return err
	}
	if b.Envelope != nil {
		env := content.EnvelopeContent()
		if env == nil {
			return errors.New("two readers disagree about what the bundle holds")
		}
		raw := env.RawEnvelope()
		payload, err := base64.StdEncoding.DecodeString(raw.Payload)
		if err != nil || !bytes.Equal(payload, b.Envelope.Payload) || raw.PayloadType != b.Envelope.PayloadType ||
			!bytes.Equal(content.Signature(), b.Envelope.Signatures[0].Sig) {
			return errors.New("two readers disagree about what the bundle's envelope holds")
		}
		return nil
	}
	m := content.MessageSignatureContent()
	if m == nil || !bytes.Equal(m.Digest(), b.Message.Digest) || !bytes.Equal(m.Signature(), b.Message.Sig) {
		return errors.New("two readers disagree about what the bundle's message signature holds")
	}
	return nil
}

// certified verifies a signature by a certificate: the chain to an authority of one
// of the trusted instances at a time that others vouch for, what else the instance
// demands, the signature, and that the name is one of those that may sign.
func (c *checker) certified(entity sgverify.SignedEntity, over *Artifact) (*seen, error) {
	content, err := entity.VerificationContent()
	if err != nil {
		return nil, err
	}
	leaf := content.Certificate()
	if leaf == nil {
		return nil, errors.New("no certificate")
	}
	cert, err := readCertificate(leaf)
	if err != nil {
		return nil, err
	}
	key, err := dsse.NewPublicKey(leaf.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate's key: %w", err)
	}
	in, err := c.instance(leaf)
	if err != nil {
		return nil, err
	}
	cert.Instance = in.name
	// The name before the rest: it is cheap, and who asks for one signer need not
	// hear what is wrong with others. What is not verified is not reported as true.
	by, err := c.may(cert)
	if err != nil {
		return nil, err
	}
	var out *seen
	if a, ok := entity.(*apart); ok {
		out, err = c.apart(a, leaf, key, in)
	} else {
		out, err = c.entity(entity, over, in, in.root, in.need, false)
	}
	if err != nil {
		return nil, err
	}
	out.certificate, out.key, out.by = cert, key, by
	return out, nil
}

// instance finds whose authority issued a certificate.
func (c *checker) instance(leaf *x509.Certificate) (*Instance, error) {
	// The standard library leaves user names (OtherName) to its callers, and they
	// were read.
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, func(id asn1.ObjectIdentifier) bool { return id.Equal(oidSAN) })
	var names []string
	for _, in := range c.instances {
		if in.issued(leaf) {
			return in, nil
		}
		names = append(names, in.name)
	}
	return nil, fmt.Errorf("the certificate was issued by %q, which is an authority of none of the trusted instances (%s), or was not valid when it was used to issue",
		leaf.Issuer.String(), strings.Join(names, ", "))
}

// may says which of the trusted identities a certificate is.
func (c *checker) may(cert *Certificate) (string, error) {
	var reasons []string
	for _, id := range c.identities {
		err := id.match(cert)
		if err == nil {
			return id.Name, nil
		}
		reasons = append(reasons, err.Error())
	}
	return "", kindf(KindUntrustedIdentity, "the certificate's identity %q (issuer %q) is none of those that are trusted: %s", cert.SAN, cert.Issuer, strings.Join(reasons, "; "))
}

// entity has sigstore-go verify a bundle against an instance.
func (c *checker) entity(entity sgverify.SignedEntity, over *Artifact, in *Instance, material root.TrustedMaterial, need Thresholds, key bool) (*seen, error) {
	opts := []sgverify.VerifierOption{sgverify.WithoutStatementPredicate()}
	if need.SCTs > 0 {
		opts = append(opts, sgverify.WithSignedCertificateTimestamps(need.SCTs))
	}
	if need.LogEntries > 0 {
		opts = append(opts, sgverify.WithTransparencyLog(need.LogEntries))
	}
	if need.SignedTimestamps > 0 {
		opts = append(opts, sgverify.WithSignedTimestamps(need.SignedTimestamps))
	}
	if need.Timestamps > 0 {
		opts = append(opts, sgverify.WithObserverTimestamps(need.Timestamps))
	}
	if need.Current {
		// The library looks at the clock itself; the caller's instant has to agree.
		if content, err := entity.VerificationContent(); err != nil || !content.ValidAtTime(c.at, material) {
			return nil, fmt.Errorf("the certificate is not valid at the instant of verification, %s, and nobody is asked when it was used", c.at.UTC().Format(time.RFC3339))
		}
		opts = append(opts, sgverify.WithCurrentTime())
	}
	if key && need.SignedTimestamps+need.Timestamps == 0 {
		opts = append(opts, sgverify.WithNoObserverTimestamps())
	}
	if entries, err := entity.TlogEntries(); err == nil && len(entries) < need.LogEntries {
		return nil, kindf(KindNotLogged, "not enough verified log entries: it carries %d, instance %q needs %d", len(entries), in.name, need.LogEntries)
	}
	v, err := sgverify.NewVerifier(material, opts...)
	if err != nil {
		return nil, err
	}
	artifact, err := demanded(entity, over)
	if err != nil {
		return nil, err
	}
	identity := sgverify.WithoutIdentitiesUnsafe() // package verify matched it
	if key {
		identity = sgverify.WithKey()
	}
	result, err := v.Verify(entity, sgverify.NewPolicy(artifact, identity))
	if err != nil {
		return nil, fmt.Errorf("verifying against instance %q: %w", in.name, err)
	}
	out := &seen{}
	for _, t := range result.VerifiedTimestamps {
		if t.Type == "CurrentTime" { // nobody vouches for it
			continue
		}
		stamp := Timestamp{Time: t.Timestamp.UTC(), Kind: TimeAuthority, Source: t.URI}
		if t.Type == "Tlog" {
			stamp.Kind = TimeLog
		}
		if stamp.Time.After(c.at) {
			return nil, fmt.Errorf("the signature was made at %s, after the instant of verification, %s", stamp.Time.Format(time.RFC3339), c.at.UTC().Format(time.RFC3339))
		}
		// With both options of time the library gives those of authorities twice.
		if !slices.Contains(out.times, stamp) {
			out.times = append(out.times, stamp)
		}
	}
	if need.LogEntries > 0 {
		if out.logged, err = inclusions(entity, material); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// demanded is what the signature has to be over. For an envelope that is decided by
// its statement, strictly, elsewhere.
func demanded(entity sgverify.SignedEntity, over *Artifact) (sgverify.ArtifactPolicyOption, error) {
	content, err := entity.SignatureContent()
	if err != nil {
		return nil, err
	}
	m := content.MessageSignatureContent()
	if m == nil {
		return sgverify.WithoutArtifactUnsafe(), nil
	}
	algorithm, ok := algorithms[m.DigestAlgorithm()]
	if !ok {
		return nil, fmt.Errorf("digest algorithm %q is not known", m.DigestAlgorithm())
	}
	digest, err := over.messageDigest(&bundle.Message{Algorithm: algorithm, Digest: m.Digest()})
	if err != nil {
		return nil, err
	}
	return sgverify.WithArtifactDigest(algorithm, digest), nil
}

// algorithms are the digests of message signatures, as bundles spell them.
var algorithms = map[string]string{"SHA2_256": "sha256", "SHA2_384": "sha384", "SHA2_512": "sha512"}

// one is an entity with a single one of its log entries.
type one struct {
	sgverify.SignedEntity
	entry *sgtlog.Entry
}

func (o one) TlogEntries() ([]*sgtlog.Entry, error) { return []*sgtlog.Entry{o.entry}, nil }

// inclusions says which log entries of a verified entity count. The library says
// only that enough do.
func inclusions(entity sgverify.SignedEntity, material root.TrustedMaterial) ([]tlog.Inclusion, error) {
	entries, err := entity.TlogEntries()
	if err != nil {
		return nil, err
	}
	var out []tlog.Inclusion
	for _, e := range entries {
		log := material.RekorLogs()[hex.EncodeToString([]byte(e.LogKeyID()))]
		if log == nil {
			continue
		}
		if len(entries) > 1 {
			if _, err := sgverify.VerifyTlogEntry(one{entity, e}, material, 1, false); err != nil {
				continue
			}
		}
		in := tlog.Inclusion{Log: log.BaseURL, Kind: tlog.KindRekor, Index: e.LogIndex(), Promise: !e.HasInclusionProof(), Witnesses: []string{}}
		in.Size = e.TransparencyLogEntry().GetInclusionProof().GetTreeSize()
		if e.HasInclusionPromise() {
			in.Time = e.IntegratedTime().UTC()
		}
		out = append(out, in)
	}
	return out, nil
}

// keyed verifies that one of the instances' logs holds a signature by a key, at a
// time when the key was valid.
func (c *checker) keyed(entity sgverify.SignedEntity, k trusted) (*seen, error) {
	hint := ""
	if content, err := entity.VerificationContent(); err != nil || content.PublicKey() == nil {
		return nil, errors.New("the bundle names no key")
	} else {
		hint = content.PublicKey().Hint()
	}
	signs, err := entity.SignatureContent()
	if err != nil {
		return nil, err
	}
	v, err := verifierOf(k.public.Crypto(), signs.EnvelopeContent() == nil)
	if err != nil {
		return nil, err
	}
	expiring := root.NewExpiringKey(v, k.From, k.Until)
	var errs []error
	for _, in := range c.instances {
		if in.need.LogEntries == 0 {
			continue
		}
		material := root.TrustedMaterialCollection{root.NewTrustedPublicKeyMaterial(func(name string) (root.TimeConstrainedVerifier, error) {
			if name != hint {
				return nil, fmt.Errorf("key %q is not known", name)
			}
			return expiring, nil
		}), in.root}
		need := Thresholds{LogEntries: in.need.LogEntries}
		// Without an end, a key is as good at any time, and nobody has to tell it.
		if timed(entity) || !k.From.IsZero() || !k.Until.IsZero() {
			need.Timestamps = max(1, in.need.Timestamps)
		}
		out, err := c.entity(entity, c.artifact, in, material, need, true)
		if err == nil {
			out.key, out.by = k.public, k.Name
			return out, nil
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errors.New("none of the trusted instances has a log in which a key's signature could be")
	}
	return nil, errors.Join(errs...)
}

// timed says whether a bundle carries any time.
func timed(entity sgverify.SignedEntity) bool {
	if ts, err := entity.Timestamps(); err != nil || len(ts) > 0 {
		return true
	}
	entries, err := entity.TlogEntries()
	return err != nil || slices.ContainsFunc(entries, func(e *sgtlog.Entry) bool { return e.HasInclusionPromise() })
}

// verifierOf is a key as the library wants it. Message signatures by Ed25519 are in
// logs only as Ed25519ph, which signs a digest.
func verifierOf(key crypto.PublicKey, message bool) (signature.Verifier, error) {
	if message {
		return signature.LoadDefaultVerifier(key, options.WithED25519ph())
	}
	return signature.LoadDefaultVerifier(key)
}
