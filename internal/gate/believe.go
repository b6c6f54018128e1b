package gate

import (
	"crypto"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/policy"
	"assay.dev/assay/verify"
)

// Believe makes the gate believe those whom the policy itself asks for, where it does,
// and nobody else: a policy that names its signers means it, and a key on the command
// line does not widen that. What is known of them by other ways, such as that a key is
// an observer's, stays. What each may sign is held to when evidence is found. It fails
// on a key that is none.
func (g *Gate) Believe() error {
	asked := g.Policy.Signers()
	if len(asked) == 0 {
		return nil
	}
	var keys []verify.Key
	var ids []verify.CertificateIdentity
	for _, a := range asked {
		name := "the policy's"
		if a.For != "" {
			name += " for " + a.For
		}
		if a.PEM == "" {
			ids = append(ids, verify.CertificateIdentity{
				Name: name, SAN: a.Subject, SANRegexp: anywhere(a.SubjectRegExp), Issuer: a.Issuer, IssuerRegexp: anywhere(a.IssuerRegExp),
			})
			continue
		}
		k, err := verify.ParsePublicKey([]byte(a.PEM))
		if err != nil {
			return fmt.Errorf("reading the policy's public key: %w", err)
		}
		k.Name = name
		if old := g.known(k); old != nil {
			k = *old
		}
		keys = append(keys, k)
	}
	g.Keys, g.Identities = keys, ids
	return nil
}

// known is a key that is believed already.
func (g *Gate) known(k verify.Key) *verify.Key {
	for i, old := range g.Keys {
		if same, ok := old.Public.(interface{ Equal(x crypto.PublicKey) bool }); ok && same.Equal(k.Public) {
			return &g.Keys[i]
		}
	}
	return nil
}

// held holds evidence to what the policy says of who signs what: the image's signature
// must be by one who may sign images, and its provenance by one who may attest builds.
// A *verify.NoEvidenceError says that it is not; rules then have nothing to judge.
func (g *Gate) held(e *verify.Evidence) error {
	if g.Policy == nil {
		return nil
	}
	asked := g.Policy.Signers()
	if len(asked) == 0 {
		return nil
	}
	none := &verify.NoEvidenceError{Ref: e.Ref(), Found: len(e.Signatures()) + len(e.Statements()) + len(e.Rejected()), Rejected: e.Rejected()}
	other := func(format, digest string, id verify.Identity, what string) {
		who := id.KeyName
		if id.Certificate != nil {
			who = id.Certificate.SAN + " of " + id.Certificate.Issuer
		}
		none.Rejected = append(none.Rejected, verify.Rejected{Format: format, Digest: digest, Reason: "signed by " + who + ", whom the policy does not ask for " + what})
	}
	signed, attested := g.WithoutSignature, g.WithoutProvenance
	for _, s := range e.Signatures() {
		if ok := wanted(asked, s.Identity, "image"); ok {
			signed = true
		} else {
			other(s.Format, e.Digest(), s.Identity, "the image's signature")
		}
	}
	for _, s := range e.Statements() {
		if _, ok := s.Typed.(predicate.Provenance); !ok {
			continue
		}
		if ok := wanted(asked, s.Identity, "provenance"); ok {
			attested = true
		} else {
			other(s.Format, s.PayloadDigest, s.Identity, "provenance")
		}
	}
	if !signed {
		none.Missing = append(none.Missing, missingSignature)
	}
	if !attested {
		none.Missing = append(none.Missing, "provenance")
	}
	if len(none.Missing) == 0 {
		return nil
	}
	for _, k := range g.Keys {
		none.Keys = append(none.Keys, k.Name)
	}
	for _, i := range g.Identities {
		none.Identities = append(none.Identities, i.Name)
	}
	return none
}

// wanted says whether a signer is among those whom the policy asks for something.
func wanted(asked []policy.Asked, id verify.Identity, what string) bool {
	for _, a := range asked {
		if a.For != "" && !slices.Contains(strings.Split(a.For, ","), what) {
			continue
		}
		if a.PEM != "" {
			k, err := dsse.ParsePublicKey([]byte(a.PEM))
			if err == nil && id.Certificate == nil && k.Fingerprint() == id.Key {
				return true
			}
			continue
		}
		if c := id.Certificate; c != nil && fits(c.SAN, a.Subject, a.SubjectRegExp) && fits(c.Issuer, a.Issuer, a.IssuerRegExp) {
			return true
		}
	}
	return false
}

func fits(s, exact, expression string) bool {
	if expression == "" {
		return exact != "" && s == exact
	}
	re, err := regexp.Compile(expression)
	return err == nil && re.MatchString(s)
}
