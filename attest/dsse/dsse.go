// Package dsse reads, writes and verifies DSSE envelopes (Dead Simple Signing
// Envelope, https://github.com/secure-systems-lab/dsse) and holds the public
// half of keys. It makes no signatures: signers are in package attest, so that
// a verifier links no code that could hold a private key.
//
// An envelope is a payload, its type, and signatures over the pre-authentication
// encoding (PAE) of both. What this package insists on beyond the bare format:
//
//   - A document is read one way only: duplicate members, members whose names
//     differ in case, trailing data and sloppy base64 do not get through.
//   - A threshold counts keys, not signatures and not names: one key under two
//     key ids is one key.
//   - A key id is a hint. It orders the attempts; it never accepts or refuses.
//
// Payload bytes are handed out only as decoded; nobody has to decode twice.
package dsse

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"assay.dev/assay/attest/strictjson"
)

// Bounds on what strangers send.
const (
	// MaxEnvelope is the size in bytes of the largest envelope that Parse
	// reads. Provenance takes a few hundred KiB; SBOMs as attestations some MiB.
	MaxEnvelope = 64 << 20
	// MaxSignatures is how many signatures an envelope may carry. Each may
	// have to be tried with each key.
	MaxSignatures = 32
)

// Envelope is a payload with signatures that may or may not be good: see
// Verify.
type Envelope struct {
	PayloadType string
	Payload     []byte
	Signatures  []Signature
}

// Signature is one signature of an envelope.
type Signature struct {
	KeyID string // a hint, not authenticated
	Sig   []byte
	// Certificate is the member cert of some writers: PEM, not checked, empty for a
	// bare key.
	Certificate string
}

// PAE is what a DSSE signature signs: type and payload with their lengths.
func PAE(payloadType string, payload []byte) []byte {
	b := make([]byte, 0, len("DSSEv1")+len(payloadType)+len(payload)+32)
	b = append(b, "DSSEv1 "...)
	b = strconv.AppendInt(b, int64(len(payloadType)), 10)
	b = append(b, ' ')
	b = append(b, payloadType...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(payload)), 10)
	b = append(b, ' ')
	return append(b, payload...)
}

// PAE is what the envelope's signatures sign.
func (e *Envelope) PAE() []byte { return PAE(e.PayloadType, e.Payload) }

// MarshalJSON writes the envelope in standard base64. The same envelope always
// gives the same bytes.
func (e *Envelope) MarshalJSON() ([]byte, error) {
	// Payloads are large and need no escaping, so they are not handed to an encoder
	// that would look for it.
	enc := base64.StdEncoding
	size := len(`{"payloadType":,"payload":"","signatures":[]}`) + len(e.PayloadType) + enc.EncodedLen(len(e.Payload)) + 16
	for _, s := range e.Signatures {
		size += len(`{"keyid":,"sig":"","cert":},`) + len(s.KeyID) + len(s.Certificate) + enc.EncodedLen(len(s.Sig)) + 16
	}
	b := append(make([]byte, 0, size), `{"payloadType":`...)
	b, err := appendString(b, e.PayloadType)
	if err != nil {
		return nil, err
	}
	b = enc.AppendEncode(append(b, `,"payload":"`...), e.Payload)
	b = append(b, `","signatures":[`...)
	for i, s := range e.Signatures {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '{')
		if s.KeyID != "" {
			if b, err = appendString(append(b, `"keyid":`...), s.KeyID); err != nil {
				return nil, err
			}
			b = append(b, ',')
		}
		b = append(enc.AppendEncode(append(b, `"sig":"`...), s.Sig), '"')
		if s.Certificate != "" {
			if b, err = appendString(append(b, `,"cert":`...), s.Certificate); err != nil {
				return nil, err
			}
		}
		b = append(b, '}')
	}
	return append(b, `]}`...), nil
}

func appendString(to []byte, s string) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return nil, err
	}
	return append(to, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...), nil
}

// Parse reads an envelope and verifies nothing. It fails on anything that two
// readers could read differently, on an envelope without signatures and on one
// over MaxEnvelope or MaxSignatures. Unknown members are ignored, as the format
// asks.
func Parse(data []byte) (*Envelope, error) {
	if err := strictjson.Check(data, MaxEnvelope); err != nil {
		return nil, fmt.Errorf("parsing DSSE envelope: %w", err)
	}
	e, err := FromMembers(data)
	if err != nil {
		return nil, fmt.Errorf("parsing DSSE envelope: %w", err)
	}
	return e, nil
}

// FromMembers is Parse for an envelope inside a document that already passed
// strictjson.Check, such as a Sigstore bundle.
func FromMembers(data []byte) (*Envelope, error) {
	m, err := strictjson.Object(data)
	if err != nil {
		return nil, err
	}
	var e Envelope
	if e.PayloadType, err = strictjson.String(m["payloadType"]); err != nil {
		return nil, fmt.Errorf("reading payloadType: %w", err)
	}
	if e.PayloadType == "" {
		return nil, errors.New("reading payloadType: empty")
	}
	payload, err := strictjson.String(m["payload"])
	if err != nil {
		return nil, fmt.Errorf("reading payload: %w", err)
	}
	if e.Payload, err = Base64(payload); err != nil {
		return nil, fmt.Errorf("reading payload: %w", err)
	}
	sigs, err := strictjson.Array(m["signatures"])
	if err != nil {
		return nil, fmt.Errorf("reading signatures: %w", err)
	}
	if len(sigs) == 0 {
		return nil, errors.New("reading signatures: none")
	}
	if len(sigs) > MaxSignatures {
		return nil, fmt.Errorf("reading signatures: %d, at most %d are read", len(sigs), MaxSignatures)
	}
	for i, raw := range sigs {
		s, err := signature(raw)
		if err != nil {
			return nil, fmt.Errorf("reading signature %d: %w", i, err)
		}
		e.Signatures = append(e.Signatures, s)
	}
	return &e, nil
}

func signature(raw []byte) (Signature, error) {
	m, err := strictjson.Object(raw)
	if err != nil {
		return Signature{}, err
	}
	var s Signature
	// Some writers leave keyid out, some write null.
	if k := strictjson.Kind(m["keyid"]); k != "nothing" && k != "null" {
		if s.KeyID, err = strictjson.String(m["keyid"]); err != nil {
			return Signature{}, fmt.Errorf("reading keyid: %w", err)
		}
	}
	if k := strictjson.Kind(m["cert"]); k != "nothing" && k != "null" {
		if s.Certificate, err = strictjson.String(m["cert"]); err != nil {
			return Signature{}, fmt.Errorf("reading cert: %w", err)
		}
	}
	sig, err := strictjson.String(m["sig"])
	if err != nil {
		return Signature{}, fmt.Errorf("reading sig: %w", err)
	}
	if s.Sig, err = Base64(sig); err != nil {
		return Signature{}, fmt.Errorf("reading sig: %w", err)
	}
	if len(s.Sig) == 0 {
		return Signature{}, errors.New("reading sig: empty")
	}
	return s, nil
}

// Base64 decodes padded base64 in the standard or the URL-safe alphabet, as
// DSSE asks of its readers. It refuses a mixture of both, line breaks, and
// stray bits in the last character, so that one value has two spellings at
// most.
func Base64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, errors.New("decoding base64: line break")
	}
	enc := base64.StdEncoding
	if strings.ContainsAny(s, "-_") {
		enc = base64.URLEncoding
	}
	b, err := enc.Strict().DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("decoding base64: %w", err)
	}
	return b, nil
}
