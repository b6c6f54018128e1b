package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"

	"assay.dev/assay/attest/dsse"
)

// Kind is a kind of key that GenerateKey makes.
type Kind string

// Kinds of keys. ECDSA P-256 is what every tool in the field verifies.
const (
	ECDSAP256 Kind = "ecdsa-p256"
	ECDSAP384 Kind = "ecdsa-p384"
	Ed25519   Kind = "ed25519"
)

// Kinds lists the kinds of keys, the default first.
func Kinds() []Kind { return []Kind{ECDSAP256, ECDSAP384, Ed25519} }

// Key is a private key in memory. It has no zero value of use: make one with
// GenerateKey, ParseKey or LoadSigner.
type Key struct {
	private crypto.Signer
	public  dsse.PublicKey
}

var _ Signer = (*Key)(nil)

// GenerateKey makes a new key. An unknown kind is an error.
func GenerateKey(kind Kind) (*Key, error) {
	var (
		private crypto.Signer
		err     error
	)
	switch kind {
	case ECDSAP256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case ECDSAP384:
		private, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case Ed25519:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	default:
		return nil, fmt.Errorf("generating key: kind %q is not known; known are %v", kind, Kinds())
	}
	if err != nil {
		return nil, fmt.Errorf("generating key: %w", err)
	}
	return newKey(private)
}

func newKey(private crypto.Signer) (*Key, error) {
	public, err := dsse.NewPublicKey(private.Public())
	if err != nil {
		return nil, err
	}
	return &Key{private, public}, nil
}

// Sign implements Signer. ECDSA signs the message's SHA-256 on both curves, as
// Tekton Chains and cosign's --key do.
func (k *Key) Sign(ctx context.Context, message []byte) ([]byte, error) {
	return k.SignHashed(ctx, message, sha256.Sum256(message))
}

// SignHashed is Sign for a message whose SHA-256 is known. Who gives another
// message's gets a signature that verifies for neither.
func (k *Key) SignHashed(ctx context.Context, message []byte, sum [sha256.Size]byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	var (
		sig []byte
		err error
	)
	switch k.private.(type) {
	case ed25519.PrivateKey:
		sig, err = k.private.Sign(rand.Reader, message, crypto.Hash(0))
	default:
		sig, err = k.private.Sign(rand.Reader, sum[:], crypto.SHA256)
	}
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return sig, nil
}

// Public implements Signer.
func (k *Key) Public() crypto.PublicKey { return k.public.Crypto() }

// KeyID implements Signer.
func (k *Key) KeyID() string { return k.public.KeyID() }

// PublicPEM is the public half as a PUBLIC KEY block.
func (k *Key) PublicPEM() []byte { return k.public.PEM() }

// PEM types of private keys.
const (
	pemPKCS8    = "PRIVATE KEY"
	pemSigstore = "ENCRYPTED SIGSTORE PRIVATE KEY"
	pemCosign   = "ENCRYPTED COSIGN PRIVATE KEY"
)

// PrivatePEM is the private key as PEM: as cosign's encrypted format where
// password is not nil (an empty password is one), else as plain PKCS #8.
func (k *Key) PrivatePEM(password []byte) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k.private)
	if err != nil {
		return nil, fmt.Errorf("writing private key: %w", err)
	}
	if password == nil {
		return pem.EncodeToMemory(&pem.Block{Type: pemPKCS8, Bytes: der}), nil
	}
	box, err := encrypted.Encrypt(der, password)
	if err != nil {
		return nil, fmt.Errorf("encrypting private key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemSigstore, Bytes: box}), nil
}

// Errors that callers may tell apart with errors.Is.
var (
	// ErrPassword says that the password of an encrypted key is wrong.
	ErrPassword = errors.New("wrong password")
	// ErrNoPassword says that a key is encrypted and no password was given.
	ErrNoPassword = errors.New("key is encrypted and no password was given")
	// ErrKeyKind says that the bytes are a key, but none that can sign here.
	ErrKeyKind = errors.New("wrong kind of key")
	// ErrPermissions says that a key file is open to others.
	ErrPermissions = errors.New("key file is open to others")
)

// Password gives the password of an encrypted key; it is called only for one.
type Password func() ([]byte, error)

// StaticPassword is a Password known beforehand.
func StaticPassword(p []byte) Password {
	return func() ([]byte, error) { return p, nil }
}

// ParseKey reads a private key from PEM: PKCS #8 in the clear, or cosign's
// encrypted format under either of its names. Errors are ErrKeyKind for other
// kinds of keys, ErrNoPassword and ErrPassword.
func ParseKey(data []byte, password Password) (*Key, error) {
	k, err := ParseKeyOrRSA(data, password)
	if err != nil {
		return nil, err
	}
	if _, ok := k.private.(*rsa.PrivateKey); ok {
		return nil, fmt.Errorf("reading private key: %w: RSA keys verify here but do not sign; make an %s key", ErrKeyKind, ECDSAP256)
	}
	return k, nil
}

// ParseKeyOrRSA is ParseKey for keys that others chose: it takes RSA keys of 2048
// bits and more too, which sign with PKCS #1 v1.5 over SHA-256.
func ParseKeyOrRSA(data []byte, password Password) (*Key, error) {
	if len(data) > maxKeyFile {
		return nil, fmt.Errorf("reading private key: %d bytes, at most %d are read", len(data), maxKeyFile)
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("reading private key: %w: no PEM block; want PRIVATE KEY or %s", ErrKeyKind, pemSigstore)
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, fmt.Errorf("reading private key: %w: a second PEM block %q follows; give one key a file", ErrKeyKind, next.Type)
	}
	der := block.Bytes
	switch block.Type {
	case pemPKCS8:
	case pemSigstore, pemCosign:
		var err error
		if der, err = decrypt(block.Bytes, password); err != nil {
			return nil, fmt.Errorf("reading private key: %w", err)
		}
	case "EC PRIVATE KEY", "RSA PRIVATE KEY":
		return nil, fmt.Errorf("reading private key: %w: %s; convert it with: openssl pkcs8 -topk8 -nocrypt -in FILE", ErrKeyKind, block.Type)
	case "ENCRYPTED PRIVATE KEY":
		return nil, fmt.Errorf("reading private key: %w: PKCS #8 with its own encryption; use cosign's format: cosign import-key-pair --key FILE", ErrKeyKind)
	case "PUBLIC KEY":
		return nil, fmt.Errorf("reading private key: %w: this is the public half, which cannot sign", ErrKeyKind)
	default:
		return nil, fmt.Errorf("reading private key: %w: PEM block %q; want PRIVATE KEY or %s", ErrKeyKind, block.Type, pemSigstore)
	}
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("reading private key: %w", err)
	}
	switch p := private.(type) {
	case *ecdsa.PrivateKey, ed25519.PrivateKey, *rsa.PrivateKey:
		return newKey(p.(crypto.Signer))
	default:
		return nil, fmt.Errorf("reading private key: %w: %T; want ECDSA P-256 or P-384, or Ed25519", ErrKeyKind, private)
	}
}

func decrypt(box []byte, password Password) ([]byte, error) {
	if password == nil {
		return nil, ErrNoPassword
	}
	p, err := password()
	if err != nil {
		return nil, fmt.Errorf("asking for the password: %w", err)
	}
	if p == nil {
		return nil, ErrNoPassword
	}
	der, err := encrypted.Decrypt(box, p)
	if err != nil {
		// The library tells a wrong password from a malformed box only in
		// words; TestParseKeyErrors notices should they change.
		if strings.HasSuffix(err.Error(), "decryption failed") {
			return nil, fmt.Errorf("decrypting: %w", ErrPassword)
		}
		return nil, fmt.Errorf("decrypting: %w", err)
	}
	return der, nil
}
