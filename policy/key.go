package policy

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
)

// signerKey is the key that a policy's publicKey names.
type signerKey struct {
	digest string // SHA-256 of the PKIX form, hex, as verify.Identity.Key has it
}

// parsePublicKey reads publicKey: PEM text, or a file relative to the policy.
// A policy that names a key means it: evidence by any other does not count.
func parsePublicKey(value string, r *reader) (*signerKey, error) {
	if value == "" {
		return nil, nil
	}
	raw := []byte(value)
	if !strings.Contains(value, "-----BEGIN") {
		if i := strings.Index(value, "://"); i >= 0 {
			return nil, fmt.Errorf("reading publicKey: keys at %s:// are not read here; give the public key as PEM or a file", value[:i])
		}
		path, err := r.locate(value)
		if err != nil {
			return nil, fmt.Errorf("reading publicKey: %w", err)
		}
		if raw, err = readBounded(path); err != nil {
			return nil, fmt.Errorf("reading publicKey: %w", err)
		}
	}
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("reading publicKey: not a PEM block of type PUBLIC KEY")
	}
	if len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("reading publicKey: more than one PEM block")
	}
	if _, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		return nil, fmt.Errorf("reading publicKey: %w", err)
	}
	h := sha256.Sum256(block.Bytes)
	return &signerKey{digest: hex.EncodeToString(h[:])}, nil
}
