// Package attached reads what somebody wants to put beside an image, or has put
// there, and says what form it has in the two places where tools look:
//
//	            tag sha256-<hex>.att, .sig        referrer (OCI 1.1)
//	            ───────────────────────────      ──────────────────────────
//	statement   DSSE envelope, with certificate,  Sigstore bundle: one envelope
//	            log entry and timestamp as        with one signature, and all that
//	            annotations of the layer          is needed to check it
//	image       simple signing payload, the       bundle of the statement that
//	signature   signature as an annotation        cosign 3 signs images with
//	SBOM        tag .sbom, one document           a manifest of its own
//
// Nothing here signs, so only what is signed alike in both places can go from one
// to the other: statements can, image signatures cannot, since the two forms sign
// different bytes.
//
// Nothing here says that evidence is true either, which is package verify's. But no
// form is made in which a signature does not verify with the key or certificate that
// is given with it: what was broken before must not look whole afterwards.
package attached

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
)

// Annotations of cosign's on layers and of Sigstore's on referrers.
const (
	annotationSignature     = "dev.cosignproject.cosign/signature"
	annotationCertificate   = "dev.sigstore.cosign/certificate"
	annotationChain         = "dev.sigstore.cosign/chain"
	annotationTimestamp     = "dev.sigstore.cosign/rfc3161timestamp"
	annotationPredicateType = "predicateType"
	annotationContent       = "dev.sigstore.bundle.content"
	annotationBundleType    = "dev.sigstore.bundle.predicateType"
)

// MaxCertificates is the size in bytes of the largest certificate chain that is read.
const MaxCertificates = 64 << 10

// Signer is who made a signature, as far as whoever attaches it says so: nobody, a
// bare key or a certificate. Neither is trusted for anything; the signature must
// verify with it.
type Signer struct {
	Key *dsse.PublicKey // bare key
	// Leaf is the signer's certificate and Chain those above it, the root last.
	Leaf  *x509.Certificate
	Chain []*x509.Certificate
}

// none says that nothing is known of the signer.
func (s Signer) none() bool { return s.Key == nil && s.Leaf == nil }

// public is the key that signatures must verify with.
func (s Signer) public() (dsse.PublicKey, error) {
	if s.Key != nil {
		return *s.Key, nil
	}
	return dsse.NewPublicKey(s.Leaf.PublicKey)
}

// ParseCertificates reads certificates in PEM, the first one first. It fails on
// anything else between or behind them, and if there is none.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	if len(data) > MaxCertificates {
		return nil, fmt.Errorf("reading certificates: %d bytes, at most %d are read", len(data), MaxCertificates)
	}
	var out []*x509.Certificate
	for rest := data; ; {
		block, after := pem.Decode(rest)
		if block == nil {
			if strings.TrimSpace(string(rest)) != "" {
				return nil, errors.New("reading certificates: there is something else than PEM")
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("reading certificates: PEM block %q; want CERTIFICATE", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading certificates: %w", err)
		}
		out, rest = append(out, c), after
	}
	if len(out) == 0 {
		return nil, errors.New("reading certificates: none; want -----BEGIN CERTIFICATE-----")
	}
	return out, nil
}

func encodeCertificates(certs ...*x509.Certificate) string {
	var b strings.Builder
	for _, c := range certs {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return "" // a strings.Builder takes everything
		}
	}
	return b.String()
}

// OtherImageError says that something speaks of another artifact.
type OtherImageError struct {
	What   string   // statement, signature, SBOM
	Names  []string // digests that it names, some of them
	Digest string   // of the image it was to be attached to
}

func (e *OtherImageError) Error() string {
	if len(e.Names) == 0 {
		return fmt.Sprintf("the %s names no digest, so nothing says that it speaks of %s", e.What, e.Digest)
	}
	return fmt.Sprintf("the %s is about %s, not %s; attach it to the image it was made for", e.What, strings.Join(e.Names, ", "), e.Digest)
}

// maxNamed is how many digests an OtherImageError lists.
const maxNamed = 3

// about reads a statement and makes sure that it names the image.
func about(env *dsse.Envelope, digest string) (*intoto.Statement, error) {
	if env.PayloadType != api.PayloadTypeInToto {
		return nil, fmt.Errorf("payload type %q; want %s, a statement", env.PayloadType, api.PayloadTypeInToto)
	}
	s, err := intoto.Parse(env.Payload)
	if err != nil {
		return nil, err
	}
	if s.About(digest) {
		return s, nil
	}
	e := &OtherImageError{What: "statement (" + s.PredicateType + ")", Digest: digest}
	for _, sub := range s.Subjects {
		if d := sub.Digest["sha256"]; d != "" && len(e.Names) < maxNamed {
			e.Names = append(e.Names, "sha256:"+d)
		}
	}
	return nil, e
}
