package store

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"slices"

	"assay.dev/assay/attest/dsse"
)

// Same says whether what was found under the record's name is this record
// already: the same payload, signed by one of its keys, or, where certificates
// name the signer, by the same identity under the same issuer. Anything that does
// not verify is not the same, so that nobody can keep a record away by putting
// nonsense in its place.
func (r Record) Same(k Kept) bool {
	if !bytes.Equal(r.Payload, k.Payload) {
		return false
	}
	if r.Image != "" {
		return r.SignedBy(r.Payload, k.Signature, k.Cert)
	}
	e, err := dsse.Parse(k.Signature)
	return err == nil && r.SameEnvelope(e, k.Cert)
}

// SameEnvelope is Same for a statement's envelope; cert is the PEM of the
// certificate that was kept beside it, or empty.
func (r Record) SameEnvelope(e *dsse.Envelope, cert []byte) bool {
	if r.Statement == nil || e.PayloadType != PayloadType || !bytes.Equal(e.Payload, r.Payload) {
		return false
	}
	pae := e.PAE()
	return slices.ContainsFunc(e.Signatures, func(s dsse.Signature) bool { return r.SignedBy(pae, s.Sig, cert) })
}

// SignedBy says whether sig is a signature of message by one of the record's
// keys, or by the key in cert if that names an identity of the record's and comes
// from the issuer that the record's own chain names. The time of validity is not
// asked: keyless certificates are over in minutes.
func (r Record) SignedBy(message, sig, cert []byte) bool {
	for _, s := range r.Signatures {
		if s.Key.Verify(message, sig) == nil {
			return true
		}
	}
	leaf := firstCert(cert)
	if leaf == nil {
		return false
	}
	key, err := dsse.NewPublicKey(leaf.PublicKey)
	if err != nil || key.Verify(message, sig) != nil {
		return false
	}
	return slices.ContainsFunc(r.Signatures, func(s Signature) bool {
		own, issuer := firstCert(s.Cert), firstCert(s.Chain)
		return own != nil && issuer != nil && sameNames(own, leaf) && leaf.CheckSignatureFrom(issuer) == nil
	})
}

func firstCert(b []byte) *x509.Certificate {
	block, _ := pem.Decode(b)
	if block == nil {
		return nil
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil
	}
	return c
}

// sameNames compares what certificates of keyless signing name: there is one
// name at least, and all are equal.
func sameNames(a, b *x509.Certificate) bool {
	named := len(a.URIs)+len(a.EmailAddresses)+len(a.DNSNames) > 0
	return named && slices.Equal(a.EmailAddresses, b.EmailAddresses) && slices.Equal(a.DNSNames, b.DNSNames) &&
		slices.EqualFunc(a.URIs, b.URIs, func(x, y *url.URL) bool { return x.String() == y.String() })
}
