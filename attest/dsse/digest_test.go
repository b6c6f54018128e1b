package dsse_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"strings"
	"testing"

	"assay.dev/assay/attest/dsse"
)

// TestVerifyDigest: each kind of key by the digests that it signs, and no signature
// passes for one of another kind.
func TestVerifyDigest(t *testing.T) {
	message := []byte("message")
	d256, d384, d512 := sha256.Sum256(message), sha512.Sum384(message), sha512.Sum512(message)
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(s crypto.Signer, digest []byte, h crypto.SignerOpts) []byte {
		sig, err := s.Sign(rand.Reader, digest, h)
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	plain := ed25519.Sign(ed, message)
	ph := sign(ed, d512[:], &ed25519.Options{Hash: crypto.SHA512})
	for _, tc := range []struct {
		name   string
		key    crypto.Signer
		hash   crypto.Hash
		digest []byte
		sig    []byte
		want   bool
	}{
		{"P-256", p256, crypto.SHA256, d256[:], sign(p256, d256[:], crypto.SHA256), true},
		{"P-256 over SHA-384", p256, crypto.SHA384, d384[:], sign(p256, d384[:], crypto.SHA384), false},
		{"P-384", p384, crypto.SHA384, d384[:], sign(p384, d384[:], crypto.SHA384), true},
		{"P-384 over SHA-256", p384, crypto.SHA256, d256[:], sign(p384, d256[:], crypto.SHA256), true},
		{"P-384 by another name", p384, crypto.SHA256, d384[:], sign(p384, d384[:], crypto.SHA384), false},
		{"RSA", r, crypto.SHA256, d256[:], sign(r, d256[:], crypto.SHA256), true},
		{"RSA over SHA-512", r, crypto.SHA512, d512[:], sign(r, d512[:], crypto.SHA512), false},
		{"Ed25519ph", ed, crypto.SHA512, d512[:], ph, true},
		{"Ed25519 as Ed25519ph", ed, crypto.SHA512, d512[:], plain, false},
		{"Ed25519 over the digest", ed, crypto.SHA512, d512[:], ed25519.Sign(ed, d512[:]), false},
		{"Ed25519 by SHA-256", ed, crypto.SHA256, d256[:], ed25519.Sign(ed, d256[:]), false},
		{"another key's", p256, crypto.SHA256, d256[:], sign(p384, d256[:], crypto.SHA256), false},
	} {
		k, err := dsse.NewPublicKey(tc.key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if err := k.VerifyDigest(tc.hash, tc.digest, tc.sig); (err == nil) != tc.want {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	k, err := dsse.NewPublicKey(ed.Public())
	if err != nil {
		t.Fatal(err)
	}
	if k.Verify(message, ph) == nil {
		t.Error("Ed25519ph passed for Ed25519")
	}
	if (dsse.PublicKey{}).VerifyDigest(crypto.SHA256, d256[:], plain) == nil {
		t.Error("the zero key verified")
	}
}

func TestParseInTotoKey(t *testing.T) {
	const hexKey = "7345b8334c1e1e1d4bb1b4a7c3d2b6a2f5d3c6b7a8e9f0a1b2c3d4e5f6071829"
	for _, tc := range []struct{ doc, says string }{
		{`{"keytype":"ed25519","scheme":"ed25519","keyval":{"public":"` + hexKey + `"}}`, ""},
		{`{"keytype":"ed25519","keyval":{"public":"` + hexKey + `","private":"00"}}`, "private key"},
		{`{"keytype":"ed25519","keyval":{"public":"00"}}`, "1 bytes"},
		{`{"keytype":"ed25519","keytype":"rsa","keyval":{"public":"` + hexKey + `"}}`, "duplicate"},
		{`{"keytype":"rsa","keyval":{"public":"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAOT5nGyAPlkxJCD00qGf12YnsHGnfe2Z1j+RxyFkbE5w=\n-----END PUBLIC KEY-----\n"}}`, "keytype"},
		{`{}`, "keytype"},
	} {
		_, err := dsse.ParseInTotoKey([]byte(tc.doc))
		if tc.says == "" && err != nil || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
			t.Errorf("%s: %v; want %q", tc.doc, err, tc.says)
		}
	}
}
