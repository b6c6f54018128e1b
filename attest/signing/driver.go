package signing

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"errors"
	"fmt"

	"assay.dev/assay/store"
)

// Driver signs with one key, or one identity, wherever that is. It is safe for
// concurrent use. The packages attest/kms, attest/pkcs11 and attest/fulcio have
// drivers; only the signer's program links them.
type Driver interface {
	// Sign signs a message: ASN.1 DER over its SHA-256 for ECDSA, PKCS #1 v1.5
	// over its SHA-256 for RSA, the message itself for Ed25519. Errors carry their
	// class, see Service.
	Sign(ctx context.Context, m Message) (store.Signature, error)
	// Stale says that what the driver was opened with has changed since, such as
	// a file with a token, so that it should be opened anew.
	Stale() bool
	// Close releases what the driver holds. Signing afterwards fails.
	Close() error
}

// Verify returns an error unless s is a signature of m by the key that it names.
// It does what dsse.PublicKey.Verify does and uses the digest that is there.
func Verify(m Message, s store.Signature) error {
	ok := false
	switch key := s.Key.Crypto().(type) {
	case nil:
		return errors.New("checking signature: it names no key")
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(key, m.SHA256[:], s.Sig)
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(key, crypto.SHA256, m.SHA256[:], s.Sig) == nil
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, m.Bytes, s.Sig)
	}
	if ok {
		return nil
	}
	// Some key services sign with SHA-384 for P-384, which verifiers take too.
	if err := s.Key.Verify(m.Bytes, s.Sig); err != nil {
		return fmt.Errorf("checking signature: %w", err)
	}
	return nil
}
