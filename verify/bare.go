package verify

import (
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/store"
)

// certificateBundle says whether a bundle, which was read before, names a
// certificate.
func certificateBundle(it store.Item) bool {
	m, err := strictjson.Object(it.Content)
	if err == nil {
		m, err = strictjson.Object(m["verificationMaterial"])
	}
	return err == nil && m["publicKey"] == nil
}

// unlogged is the reason against an envelope that carries its signer's certificate
// and nothing else. Nobody says when it was signed, so a certificate that lived for
// ten minutes proves nothing; it is told nonetheless what the signature is worth.
func (c *checker) unlogged(env *dsse.Envelope) error {
	var last error
	for _, s := range env.Signatures {
		cert, key, err := c.named(s)
		if err != nil {
			last = as(KindInvalidSignature, err)
			continue
		}
		if err := key.Verify(env.PAE(), s.Sig); err != nil {
			last = as(KindInvalidSignature, fmt.Errorf("the certificate's key did not sign this: %w", err))
			continue
		}
		return kindf(KindNotLogged, "the signature verifies with the certificate of %q (issuer %q, valid %s to %s, issued by instance %q), but no log entry and no timestamp says when it was made; the certificate expired since, so anybody who got its key later could have made it",
			cert.SAN, cert.Issuer, cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339), cert.Instance)
	}
	if last == nil {
		last = kindf(KindInvalidSignature, "no signature carries a certificate")
	}
	return last
}

// named reads the certificate of a signature and finds its authority.
func (c *checker) named(s dsse.Signature) (*Certificate, dsse.PublicKey, error) {
	if s.Certificate == "" {
		return nil, dsse.PublicKey{}, errors.New("the signature carries no certificate, and no trusted key made it")
	}
	der, err := leafPEM(s.Certificate)
	if err != nil {
		return nil, dsse.PublicKey{}, fmt.Errorf("reading the signature's certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, dsse.PublicKey{}, fmt.Errorf("reading the signature's certificate: %w", err)
	}
	cert, err := readCertificate(leaf)
	if err != nil {
		return nil, dsse.PublicKey{}, err
	}
	key, err := dsse.NewPublicKey(leaf.PublicKey)
	if err != nil {
		return nil, dsse.PublicKey{}, err
	}
	in, err := c.instance(leaf)
	if err != nil {
		return nil, dsse.PublicKey{}, err
	}
	cert.Instance = in.name
	return cert, key, nil
}
