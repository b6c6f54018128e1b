// Package bundle reads Sigstore bundles and makes those whose signer is a bare key.
//
// A bundle is one JSON document that holds a signature with everything needed
// to check it. Version 0.3 is made; 0.1 to 0.3 are read. Two contents exist: a
// DSSE envelope, which is what images carry, and a message signature over the
// artifact's bytes.
//
// Bundles signed with a certificate are read as far as to say so; checking
// certificates, transparency logs and timestamps is sigstore-go's work and not
// done here. A log entry in a bundle is counted and otherwise left alone: with a
// key that the verifier trusts it proves nothing more.
package bundle

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/strictjson"
)

// MediaType is the media type of the bundles that New makes, inside the
// document and in registries.
const MediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"

// Max is the size in bytes of the largest bundle that Parse reads.
const Max = dsse.MaxEnvelope + 1<<20

// mediaTypes are the versions that Parse reads, in both spellings in use.
var mediaTypes = [...]string{
	MediaType,
	"application/vnd.dev.sigstore.bundle+json;version=0.3",
	"application/vnd.dev.sigstore.bundle+json;version=0.2",
	"application/vnd.dev.sigstore.bundle+json;version=0.1",
}

// IsMediaType says whether an artifact type or media type means a Sigstore
// bundle of any version, read or not.
func IsMediaType(s string) bool {
	return strings.HasPrefix(s, "application/vnd.dev.sigstore.bundle.") ||
		strings.HasPrefix(s, "application/vnd.dev.sigstore.bundle+")
}

// Bundle is one signature and what it needs. Exactly one of Envelope and
// Message is set.
type Bundle struct {
	MediaType string
	// Hint names the public key; it is not authenticated. Empty in a bundle
	// that carries a certificate.
	Hint string
	// Certificate says that the signer is named by a certificate, not a key, and
	// Leaf is that certificate, DER, not checked, where the bundle has it alone.
	Certificate bool
	Leaf        []byte
	Envelope    *dsse.Envelope
	Message     *Message
	// LogEntries counts transparency log entries, Timestamps says whether
	// there are signed timestamps. Neither is checked.
	LogEntries int
	Timestamps bool
}

// Message is a signature over an artifact's bytes.
type Message struct {
	SHA256 []byte // digest of the artifact, as the bundle claims; nil where that is by another algorithm
	Sig    []byte
	// Algorithm is sha256, sha384 or sha512, and Digest the claimed one by it.
	Algorithm string
	Digest    []byte
}

// New makes a bundle of an envelope that the key's owner signed. It fails if
// the envelope does not verify with the key, so that no bundle is made that its
// own hint contradicts.
func New(env *dsse.Envelope, key dsse.PublicKey) (*Bundle, error) {
	if env == nil {
		return nil, errors.New("making bundle: no envelope")
	}
	// The format allows exactly one signature in a bundle's envelope.
	if len(env.Signatures) != 1 {
		return nil, fmt.Errorf("making bundle: envelope has %d signatures; a bundle holds one", len(env.Signatures))
	}
	if _, err := env.Verify(1, key); err != nil {
		return nil, fmt.Errorf("making bundle: %w", err)
	}
	return &Bundle{MediaType: MediaType, Hint: key.Hint(), Envelope: env}, nil
}

// NewMessage makes a bundle of a signature over an artifact, given whole. It
// fails if the signature does not verify with the key.
func NewMessage(artifact, sig []byte, digest [32]byte, key dsse.PublicKey) (*Bundle, error) {
	if err := key.Verify(artifact, sig); err != nil {
		return nil, fmt.Errorf("making bundle: %w", err)
	}
	return &Bundle{MediaType: MediaType, Hint: key.Hint(), Message: &Message{SHA256: digest[:], Sig: sig, Algorithm: "sha256", Digest: digest[:]}}, nil
}

type bundleJSON struct {
	MediaType string       `json:"mediaType"`
	Material  materialJSON `json:"verificationMaterial"`
	Message   *messageJSON `json:"messageSignature,omitempty"`
	Envelope  any          `json:"dsseEnvelope,omitempty"`
}

type materialJSON struct {
	PublicKey publicKeyJSON `json:"publicKey"`
}

type publicKeyJSON struct {
	Hint string `json:"hint"`
}

type messageJSON struct {
	Digest struct {
		Algorithm string `json:"algorithm"`
		Digest    string `json:"digest"`
	} `json:"messageDigest"`
	Signature string `json:"signature"`
}

// MarshalJSON writes a bundle as New and NewMessage make them. It fails for
// bundles with certificates or log entries, whose bytes must be kept instead.
func (b *Bundle) MarshalJSON() ([]byte, error) {
	if b.Certificate || b.LogEntries > 0 || b.Timestamps {
		return nil, errors.New("writing bundle: only bundles with bare public keys are written; keep the original bytes")
	}
	w := bundleJSON{MediaType: b.MediaType, Material: materialJSON{publicKeyJSON{b.Hint}}}
	if b.Envelope != nil {
		w.Envelope = b.Envelope
	}
	if b.Message != nil {
		if b.Message.SHA256 == nil {
			return nil, errors.New("writing bundle: only message signatures over SHA-256 are written; keep the original bytes")
		}
		w.Message = &messageJSON{Signature: base64.StdEncoding.EncodeToString(b.Message.Sig)}
		w.Message.Digest.Algorithm = "SHA2_256"
		w.Message.Digest.Digest = base64.StdEncoding.EncodeToString(b.Message.SHA256)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(w); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// Parse reads a bundle and verifies nothing. Unknown versions, members and
// digest algorithms are errors, as are a bundle with both contents or none, and
// one whose verification material names no signer or two.
func Parse(data []byte) (*Bundle, error) {
	b, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("parsing Sigstore bundle: %w", err)
	}
	return b, nil
}

func parse(data []byte) (*Bundle, error) {
	if err := strictjson.Check(data, Max); err != nil {
		return nil, err
	}
	m, err := strictjson.Object(data)
	if err != nil {
		return nil, err
	}
	if err := strictjson.Only(m, "mediaType", "verificationMaterial", "dsseEnvelope", "messageSignature"); err != nil {
		return nil, err
	}
	var b Bundle
	if b.MediaType, err = strictjson.String(m["mediaType"]); err != nil {
		return nil, fmt.Errorf("reading mediaType: %w", err)
	}
	if !slices.Contains(mediaTypes[:], b.MediaType) {
		return nil, fmt.Errorf("unknown version %q; known are %s", b.MediaType, strings.Join(mediaTypes[:], ", "))
	}
	if err := b.material(m["verificationMaterial"]); err != nil {
		return nil, fmt.Errorf("reading verificationMaterial: %w", err)
	}
	env, msg := m["dsseEnvelope"], m["messageSignature"]
	switch {
	case env != nil && msg != nil:
		return nil, errors.New("both dsseEnvelope and messageSignature; want one")
	case env != nil:
		if b.Envelope, err = dsse.FromMembers(env); err != nil {
			return nil, fmt.Errorf("reading dsseEnvelope: %w", err)
		}
		if n := len(b.Envelope.Signatures); n != 1 {
			return nil, fmt.Errorf("reading dsseEnvelope: %d signatures; a bundle holds one", n)
		}
	case msg != nil:
		if b.Message, err = message(msg); err != nil {
			return nil, fmt.Errorf("reading messageSignature: %w", err)
		}
	default:
		return nil, errors.New("neither dsseEnvelope nor messageSignature")
	}
	return &b, nil
}

func (b *Bundle) material(data []byte) error {
	m, err := strictjson.Object(data)
	if err != nil {
		return err
	}
	if err := strictjson.Only(m, "publicKey", "x509CertificateChain", "certificate", "tlogEntries", "timestampVerificationData"); err != nil {
		return err
	}
	signers := 0
	if pk := m["publicKey"]; pk != nil {
		signers++
		k, err := strictjson.Object(pk)
		if err != nil {
			return fmt.Errorf("reading publicKey: %w", err)
		}
		if err := strictjson.Only(k, "hint"); err != nil {
			return fmt.Errorf("reading publicKey: %w", err)
		}
		if h := k["hint"]; h != nil {
			if b.Hint, err = strictjson.String(h); err != nil {
				return fmt.Errorf("reading hint: %w", err)
			}
		}
	}
	for _, name := range []string{"x509CertificateChain", "certificate"} {
		if m[name] != nil {
			signers++
			b.Certificate = true
		}
	}
	if c := m["certificate"]; c != nil {
		if b.Leaf, err = leaf(c); err != nil {
			return fmt.Errorf("reading certificate: %w", err)
		}
	}
	if signers != 1 {
		return fmt.Errorf("%d of publicKey, certificate and x509CertificateChain; want one", signers)
	}
	if e := m["tlogEntries"]; e != nil && strictjson.Kind(e) != "null" {
		entries, err := strictjson.Array(e)
		if err != nil {
			return fmt.Errorf("reading tlogEntries: %w", err)
		}
		b.LogEntries = len(entries)
	}
	b.Timestamps = m["timestampVerificationData"] != nil
	return nil
}

// leaf is empty where a bundle names a certificate and does not carry it.
func leaf(data []byte) ([]byte, error) {
	m, err := strictjson.Object(data)
	if err != nil || m["rawBytes"] == nil {
		return nil, err
	}
	return base64Member(m["rawBytes"])
}

func message(data []byte) (*Message, error) {
	m, err := strictjson.Object(data)
	if err != nil {
		return nil, err
	}
	if err := strictjson.Only(m, "messageDigest", "signature"); err != nil {
		return nil, err
	}
	d, err := strictjson.Object(m["messageDigest"])
	if err != nil {
		return nil, fmt.Errorf("reading messageDigest: %w", err)
	}
	if err := strictjson.Only(d, "algorithm", "digest"); err != nil {
		return nil, fmt.Errorf("reading messageDigest: %w", err)
	}
	algorithm, err := strictjson.String(d["algorithm"])
	if err != nil {
		return nil, fmt.Errorf("reading algorithm: %w", err)
	}
	var msg Message
	size := 0
	switch algorithm {
	case "SHA2_256":
		msg.Algorithm, size = "sha256", 32
	case "SHA2_384":
		msg.Algorithm, size = "sha384", 48
	case "SHA2_512":
		msg.Algorithm, size = "sha512", 64
	default:
		return nil, fmt.Errorf("digest algorithm %q is not supported; want SHA2_256, SHA2_384 or SHA2_512", algorithm)
	}
	if msg.Digest, err = base64Member(d["digest"]); err != nil {
		return nil, fmt.Errorf("reading digest: %w", err)
	}
	if len(msg.Digest) != size {
		return nil, fmt.Errorf("reading digest: %d bytes; %s has %d", len(msg.Digest), msg.Algorithm, size)
	}
	if size == 32 {
		msg.SHA256 = msg.Digest
	}
	if msg.Sig, err = base64Member(m["signature"]); err != nil {
		return nil, fmt.Errorf("reading signature: %w", err)
	}
	return &msg, nil
}

func base64Member(data []byte) ([]byte, error) {
	s, err := strictjson.String(data)
	if err != nil {
		return nil, err
	}
	return dsse.Base64(s)
}
