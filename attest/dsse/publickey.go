package dsse

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"

	"assay.dev/assay/attest/strictjson"
)

// Bounds on public keys.
const (
	// MaxKeyPEM is the size in bytes of the largest PEM that ParsePublicKey reads.
	MaxKeyPEM = 64 << 10
	minRSA    = 2048
	maxRSA    = 16384 // verification time grows with the square of the size
)

// PublicKey is a public key that this package can verify with. Make one with
// NewPublicKey or ParsePublicKey; the zero value verifies nothing.
type PublicKey struct {
	key         crypto.PublicKey
	der         []byte // PKIX
	fingerprint string
	keyID       string
}

// NewPublicKey takes ECDSA keys on P-256 and P-384, Ed25519 keys and RSA keys
// of 2048 to 16384 bits, and refuses all others by name.
func NewPublicKey(key crypto.PublicKey) (PublicKey, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k == nil || k.Curve == nil {
			return PublicKey{}, errors.New("reading public key: empty ECDSA key")
		}
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return PublicKey{}, fmt.Errorf("reading public key: ECDSA on %s is not supported; use P-256, P-384 or Ed25519", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return PublicKey{}, fmt.Errorf("reading public key: Ed25519 key of %d bytes", len(k))
		}
	case *rsa.PublicKey:
		if k == nil || k.N == nil {
			return PublicKey{}, errors.New("reading public key: empty RSA key")
		}
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return PublicKey{}, fmt.Errorf("reading public key: RSA of %d bits is not supported; use %d to %d", n, minRSA, maxRSA)
		}
	default:
		return PublicKey{}, fmt.Errorf("reading public key: %T is not supported; use ECDSA P-256 or P-384, Ed25519 or RSA", key)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return PublicKey{}, fmt.Errorf("reading public key: %w", err)
	}
	sum := sha256.Sum256(der)
	ssh := sha256.Sum256(sshWire(key))
	return PublicKey{
		key:         key,
		der:         der,
		fingerprint: hex.EncodeToString(sum[:]),
		keyID:       "SHA256:" + base64.RawStdEncoding.EncodeToString(ssh[:]),
	}, nil
}

// ParsePublicKey reads a PEM block PUBLIC KEY (PKIX), as cosign and openssl
// write it. Anything else is refused by name: a private key, a certificate, a
// second block, text behind the block.
func ParsePublicKey(data []byte) (PublicKey, error) {
	if len(data) > MaxKeyPEM {
		return PublicKey{}, fmt.Errorf("reading public key: %d bytes, at most %d are read", len(data), MaxKeyPEM)
	}
	block, rest := pem.Decode(data)
	if block == nil {
		return PublicKey{}, errors.New("reading public key: no PEM block; want -----BEGIN PUBLIC KEY-----")
	}
	switch block.Type {
	case "PUBLIC KEY":
	case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "OPENSSH PRIVATE KEY",
		"ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY":
		return PublicKey{}, fmt.Errorf("reading public key: this is a private key (%s); give the public half and keep this file to the signer", block.Type)
	case "CERTIFICATE":
		return PublicKey{}, errors.New("reading public key: this is a certificate; give a PUBLIC KEY (openssl x509 -pubkey -noout -in FILE)")
	default:
		return PublicKey{}, fmt.Errorf("reading public key: PEM block %q; want PUBLIC KEY", block.Type)
	}
	for _, c := range rest {
		if c != ' ' && c != '\t' && c != '\r' && c != '\n' {
			return PublicKey{}, errors.New("reading public key: something follows the first PEM block; give one key a file")
		}
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return PublicKey{}, fmt.Errorf("reading public key: %w", err)
	}
	return NewPublicKey(key)
}

// ParseInTotoKey reads a public key in the JSON form of in-toto's and the
// securesystemslib's tools: an Ed25519 key in hex, others as PEM inside. Another key
// type than the key itself is an error, as is a private part.
func ParseInTotoKey(data []byte) (PublicKey, error) {
	k, err := parseInTotoKey(data)
	if err != nil {
		return PublicKey{}, fmt.Errorf("reading in-toto key: %w", err)
	}
	return k, nil
}

func parseInTotoKey(data []byte) (PublicKey, error) {
	if err := strictjson.Check(data, MaxKeyPEM); err != nil {
		return PublicKey{}, err
	}
	m, err := strictjson.Object(data)
	if err != nil {
		return PublicKey{}, err
	}
	kind, err := strictjson.String(m["keytype"])
	if err != nil {
		return PublicKey{}, fmt.Errorf("reading keytype: %w", err)
	}
	val, err := strictjson.Object(m["keyval"])
	if err != nil {
		return PublicKey{}, fmt.Errorf("reading keyval: %w", err)
	}
	if p := val["private"]; p != nil && string(p) != `""` && string(p) != "null" {
		return PublicKey{}, errors.New("it holds a private key; give the public half and keep this file to the signer")
	}
	public, err := strictjson.String(val["public"])
	if err != nil {
		return PublicKey{}, fmt.Errorf("reading public: %w", err)
	}
	if kind == "ed25519" {
		raw, err := hex.DecodeString(public)
		if err != nil {
			return PublicKey{}, fmt.Errorf("reading public: %w", err)
		}
		return NewPublicKey(ed25519.PublicKey(raw))
	}
	k, err := ParsePublicKey([]byte(public))
	if err != nil {
		return PublicKey{}, err
	}
	have := ""
	switch k.key.(type) {
	case *rsa.PublicKey:
		have = "rsa"
	case *ecdsa.PublicKey:
		have = "ecdsa"
	}
	if kind != have && kind != have+"-sha2-nistp256" && kind != have+"-sha2-nistp384" {
		return PublicKey{}, fmt.Errorf("keytype %.40q and the key is %q", kind, have)
	}
	return k, nil
}

// Verify returns nil if sig is this key's signature of message: ASN.1 DER over
// SHA-256 for ECDSA (for P-384 over SHA-384 too, since writers disagree),
// PKCS #1 v1.5 or, as in-toto's tools sign, PSS over SHA-256 for RSA, plain Ed25519.
func (k PublicKey) Verify(message, sig []byte) error {
	ok := false
	switch key := k.key.(type) {
	case *ecdsa.PublicKey:
		d := sha256.Sum256(message)
		ok = ecdsa.VerifyASN1(key, d[:], sig)
		if !ok && key.Curve == elliptic.P384() {
			d := sha512.Sum384(message)
			ok = ecdsa.VerifyASN1(key, d[:], sig)
		}
	case ed25519.PublicKey:
		ok = ed25519.Verify(key, message, sig)
	case *rsa.PublicKey:
		d := sha256.Sum256(message)
		ok = rsa.VerifyPKCS1v15(key, crypto.SHA256, d[:], sig) == nil || rsa.VerifyPSS(key, crypto.SHA256, d[:], sig, nil) == nil
	}
	if !ok {
		return fmt.Errorf("checking signature: %w: not a signature by key %s of these bytes", ErrNotVerified, k.keyID)
	}
	return nil
}

// VerifyDigest is Verify for a message of which only the digest is known, by ECDSA and
// RSA keys. Of Ed25519 keys it takes Ed25519ph over SHA-512, which no signature of a
// whole message can be mistaken for. It fails for a digest of another size than its
// hash has, and for hashes that keys of this kind do not sign with.
func (k PublicKey) VerifyDigest(hash crypto.Hash, digest, sig []byte) error {
	ok := false
	if hash.Available() && len(digest) == hash.Size() {
		switch key := k.key.(type) {
		case *ecdsa.PublicKey:
			ok = (hash == crypto.SHA256 || hash == crypto.SHA384 && key.Curve == elliptic.P384()) && ecdsa.VerifyASN1(key, digest, sig)
		case ed25519.PublicKey:
			ok = hash == crypto.SHA512 && ed25519.VerifyWithOptions(key, digest, sig, &ed25519.Options{Hash: crypto.SHA512}) == nil
		case *rsa.PublicKey:
			ok = hash == crypto.SHA256 && rsa.VerifyPKCS1v15(key, hash, digest, sig) == nil
		}
	}
	if !ok {
		return fmt.Errorf("checking signature: %w: not a signature by key %s of this digest", ErrNotVerified, k.keyID)
	}
	return nil
}

// Crypto is the key as the standard library has it; nil for the zero value.
func (k PublicKey) Crypto() crypto.PublicKey { return k.key }

// KeyID is how Tekton Chains names the key in envelopes: SHA256: and the
// unpadded base64 of the SHA-256 of its SSH wire form.
func (k PublicKey) KeyID() string { return k.keyID }

// Fingerprint is the hex SHA-256 of the key's PKIX form; it identifies the key.
func (k PublicKey) Fingerprint() string { return k.fingerprint }

// Hint is how cosign names the key in Sigstore bundles: the base64 SHA-256 of
// its PKIX form.
func (k PublicKey) Hint() string {
	if k.key == nil {
		return ""
	}
	sum := sha256.Sum256(k.der)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// PEM is the key as a PUBLIC KEY block, nil for the zero value.
func (k PublicKey) PEM() []byte {
	if k.key == nil {
		return nil
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.der})
}

// hinted says that a key id means this key in one of the ways in use.
func (k PublicKey) hinted(keyID string) bool {
	return keyID == k.keyID || keyID == k.fingerprint || keyID == k.Hint()
}

// sshWire is the key as RFC 4253 and RFC 5656 put it on the wire. Written out
// because golang.org/x/crypto/ssh would bring a protocol into every verifier.
func sshWire(key crypto.PublicKey) []byte {
	var b []byte
	str := func(s []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
		b = append(b, s...)
	}
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		curve := "nistp256"
		if k.Curve == elliptic.P384() {
			curve = "nistp384"
		}
		point, err := k.Bytes()
		if err != nil {
			return nil // not on the curve; MarshalPKIXPublicKey refused it before
		}
		str([]byte("ecdsa-sha2-" + curve))
		str([]byte(curve))
		str(point)
	case ed25519.PublicKey:
		str([]byte("ssh-ed25519"))
		str(k)
	case *rsa.PublicKey:
		str([]byte("ssh-rsa"))
		str(mpint(binary.BigEndian.AppendUint64(nil, uint64(k.E))))
		str(mpint(k.N.Bytes()))
	}
	return b
}

// mpint drops leading zeros and adds one where the number would look negative.
func mpint(b []byte) []byte {
	for len(b) > 0 && b[0] == 0 {
		b = b[1:]
	}
	if len(b) > 0 && b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return b
}
