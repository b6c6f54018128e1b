package tlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
)

// Bounds on leaves.
const (
	// MaxLeaf is the size in bytes of the largest leaf: what one entry of a tile
	// log may have (its length takes two bytes), with room to spare.
	MaxLeaf           = 48 << 10
	maxPayloadType    = 256
	maxLeafSignatures = dsse.MaxSignatures
	maxSignature      = 1 << 10 // bytes; RSA with 8192 bits has this many
)

const leafHeader = "assay.dev/log-entry@v1"

// Leaf is what a log of ours keeps of one record. Its text, the bytes whose
// RFC 6962 leaf hash is in the tree, is exactly
//
//	assay.dev/log-entry@v1
//	payload TYPE sha256:DIGEST
//	signature sha256:FINGERPRINT BASE64
//
// with one signature line for each signature, in ascending order of the lines'
// bytes, none twice, and a newline (U+000A) at the end of each line. TYPE is the
// DSSE payload type, or the media type of a simple signing document: 1 to 256
// bytes of printable ASCII without space. DIGEST is the SHA-256 of the payload,
// FINGERPRINT that of the key's PKIX form, both in 64 lower-case hex characters.
// BASE64 is the signature in the standard alphabet with padding. A signature of a
// simple signing document is over its bytes; of any other type over the DSSE PAE.
type Leaf struct {
	PayloadType string
	Digest      [sha256.Size]byte
	Signatures  []LeafSignature
}

// LeafSignature is one signature and the key that made it.
type LeafSignature struct {
	Fingerprint [sha256.Size]byte
	Sig         []byte
}

// Signed is one signature as evidence has it: the question that is asked of a log.
type Signed struct {
	// PayloadType is the DSSE payload type, or simplesigning.MediaType. Empty for a
	// signature of an artifact's own bytes, as Sigstore's message signatures are:
	// Rekor knows these, logs of ours do not.
	PayloadType string
	Payload     []byte
	Sig         []byte
	Key         dsse.PublicKey
	// Envelope is the DSSE envelope's text, as the signature was found in it, and KeyID
	// the key id that it has there. Only entries of Rekor that hold an envelope's digest
	// (kind intoto, version 0.0.1) need them; both may be empty.
	Envelope []byte
	KeyID    string
}

// Message is what the signature is over.
func (s Signed) Message() []byte {
	if s.PayloadType == simplesigning.MediaType || s.PayloadType == "" {
		return s.Payload
	}
	return dsse.PAE(s.PayloadType, s.Payload)
}

// SignedOf lists a record's signatures: those of its payload in the record's order,
// and then, for an image, those of the statement about it that Sigstore bundles
// carry (store.Signature.Statement), in the same order. The latter are left out
// where the image's reference has no sha256 digest, which Record.Check refuses.
func SignedOf(r store.Record) []Signed {
	payloadType := simplesigning.MediaType
	if r.Statement != nil {
		payloadType = store.PayloadType
	}
	out := make([]Signed, 0, len(r.Signatures))
	for _, s := range r.Signatures {
		out = append(out, Signed{PayloadType: payloadType, Payload: r.Payload, Sig: s.Sig, Key: s.Key})
	}
	for _, s := range imageStatements(r) {
		out = append(out, s.Signed)
	}
	return out
}

// imageStatement is an image's second signature, and which of the record's it is.
type imageStatement struct {
	Signed
	of int
}

func imageStatements(r store.Record) []imageStatement {
	if r.Image == "" {
		return nil
	}
	_, digest, _ := strings.Cut(r.Image, "@")
	payload, err := intoto.ImageSignature(digest)
	if err != nil {
		return nil
	}
	var out []imageStatement
	for i, s := range r.Signatures {
		if s.Statement != nil {
			out = append(out, imageStatement{Signed{PayloadType: store.PayloadType, Payload: payload, Sig: s.Statement, Key: s.Key}, i})
		}
	}
	return out
}

// RecordLeaves are the leaves of a record, one for each payload that is signed: a
// second one for an image that is signed as a statement too. It fails as NewLeaf
// does, and for a record that does not hold together.
func RecordLeaves(r store.Record) ([]*Leaf, error) {
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("making a log entry: %w", err)
	}
	signed := SignedOf(r)
	var out []*Leaf
	for _, part := range [][]Signed{signed[:len(r.Signatures)], signed[len(r.Signatures):]} {
		if len(part) == 0 {
			continue
		}
		l, err := NewLeaf(part...)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// NewLeaf is the leaf of one payload with all its signatures. It fails if there is
// none, if they are not of one payload, or if one is not made by its key: what a
// log has taken in stays there.
func NewLeaf(signed ...Signed) (*Leaf, error) {
	if len(signed) == 0 {
		return nil, errors.New("making a log entry: no signature")
	}
	l := &Leaf{PayloadType: signed[0].PayloadType, Digest: sha256.Sum256(signed[0].Payload)}
	for i, s := range signed {
		if s.PayloadType != l.PayloadType || sha256.Sum256(s.Payload) != l.Digest {
			return nil, errors.New("making a log entry: the signatures are of different payloads")
		}
		if err := s.Key.Verify(s.Message(), s.Sig); err != nil {
			return nil, fmt.Errorf("making a log entry: signature %d: %w", i, err)
		}
		print, err := fingerprint(s.Key)
		if err != nil {
			return nil, fmt.Errorf("making a log entry: %w", err)
		}
		l.Signatures = append(l.Signatures, LeafSignature{Fingerprint: print, Sig: s.Sig})
	}
	slices.SortFunc(l.Signatures, func(a, b LeafSignature) int { return strings.Compare(a.line(), b.line()) })
	l.Signatures = slices.CompactFunc(l.Signatures, func(a, b LeafSignature) bool { return a.line() == b.line() })
	if _, err := ParseLeaf(l.Bytes()); err != nil {
		return nil, fmt.Errorf("making a log entry: %w", err)
	}
	return l, nil
}

// Bytes is the leaf's text.
func (l *Leaf) Bytes() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\npayload %s sha256:%x\n", leafHeader, l.PayloadType, l.Digest)
	for _, s := range l.Signatures {
		b.WriteString(s.line())
	}
	return b.Bytes()
}

func (s LeafSignature) line() string {
	return fmt.Sprintf("signature sha256:%x %s\n", s.Fingerprint, base64.StdEncoding.EncodeToString(s.Sig))
}

// ParseLeaf reads a leaf's text. Anything but the one spelling of a leaf is an
// error, so that a log cannot be made to carry other people's bytes.
func ParseLeaf(text []byte) (*Leaf, error) {
	l, err := parseLeaf(text)
	if err != nil {
		return nil, fmt.Errorf("reading log entry: %w", err)
	}
	return l, nil
}

func parseLeaf(text []byte) (*Leaf, error) {
	if len(text) > MaxLeaf {
		return nil, fmt.Errorf("%d bytes; at most %d are read", len(text), MaxLeaf)
	}
	rest, ok := strings.CutSuffix(string(text), "\n")
	if !ok {
		return nil, errors.New("no newline at the end")
	}
	lines := strings.Split(rest, "\n")
	if lines[0] != leafHeader {
		return nil, fmt.Errorf("the first line is not %q", leafHeader)
	}
	if len(lines) < 3 || len(lines) > 2+maxLeafSignatures {
		return nil, fmt.Errorf("%d lines; want a payload and 1 to %d signatures", len(lines), maxLeafSignatures)
	}
	f := strings.Split(lines[1], " ")
	if len(f) != 3 || f[0] != "payload" {
		return nil, errors.New("the second line is not payload TYPE DIGEST")
	}
	l := &Leaf{PayloadType: f[1]}
	if l.PayloadType == "" || len(l.PayloadType) > maxPayloadType || strings.ContainsFunc(l.PayloadType, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, fmt.Errorf("payload type %.80q is not 1 to %d printable ASCII characters", l.PayloadType, maxPayloadType)
	}
	var err error
	if l.Digest, err = parseDigest(f[2]); err != nil {
		return nil, err
	}
	for i, line := range lines[2:] {
		f := strings.Split(line, " ")
		if len(f) != 3 || f[0] != "signature" {
			return nil, fmt.Errorf("line %d is not signature KEY BASE64", i+3)
		}
		var s LeafSignature
		if s.Fingerprint, err = parseDigest(f[1]); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+3, err)
		}
		s.Sig, err = base64.StdEncoding.Strict().DecodeString(f[2])
		if err != nil || len(s.Sig) == 0 || len(s.Sig) > maxSignature {
			return nil, fmt.Errorf("line %d: no signature of 1 to %d bytes in base64", i+3, maxSignature)
		}
		if i > 0 && lines[i+1] >= line {
			return nil, fmt.Errorf("line %d is out of order or twice", i+3)
		}
		l.Signatures = append(l.Signatures, s)
	}
	if !bytes.Equal(l.Bytes(), text) {
		return nil, errors.New("not in its one spelling")
	}
	return l, nil
}

func parseDigest(s string) (d [sha256.Size]byte, err error) {
	h, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(h) != 2*len(d) || strings.ToLower(h) != h {
		return d, fmt.Errorf("%.80q is not a sha256 digest", s)
	}
	if _, err := hex.Decode(d[:], []byte(h)); err != nil {
		return d, fmt.Errorf("%.80q is not a sha256 digest", s)
	}
	return d, nil
}

// Covers returns nil if the leaf is about this very signature: its payload, its
// key and its bytes.
func (l *Leaf) Covers(s Signed) error {
	if l.PayloadType != s.PayloadType {
		return fmt.Errorf("the log entry is about a payload of type %q, not %q", l.PayloadType, s.PayloadType)
	}
	if sum := sha256.Sum256(s.Payload); sum != l.Digest {
		return fmt.Errorf("the log entry is about payload sha256:%x, not sha256:%x", l.Digest, sum)
	}
	print, err := fingerprint(s.Key)
	if err != nil {
		return err
	}
	key := false
	for _, in := range l.Signatures {
		if in.Fingerprint != print {
			continue
		}
		key = true
		if bytes.Equal(in.Sig, s.Sig) {
			return nil
		}
	}
	if key {
		return errors.New("the log entry holds another signature by this key: this one was made without the log")
	}
	return errors.New("the log entry holds no signature by this key")
}

func fingerprint(k dsse.PublicKey) (print [sha256.Size]byte, err error) {
	n, err := hex.Decode(print[:], []byte(k.Fingerprint()))
	if err != nil || n != len(print) {
		return print, errors.New("signature without key")
	}
	return print, nil
}

// EvidenceLeaves are the leaves of a piece of evidence of a run that we executed:
// that of its envelope and, for an image signature, that of the simple signing
// document too, since each form is signed by itself. Which of the resulting log
// entries belongs beside which form is for Covering to say.
func EvidenceLeaves(e store.Evidence) ([]*Leaf, error) {
	if e.Envelope == nil {
		return nil, errors.New("making a log entry: evidence without envelope")
	}
	var signed []Signed
	for _, s := range e.Envelope.Signatures {
		signed = append(signed, Signed{PayloadType: e.Envelope.PayloadType, Payload: e.Envelope.Payload, Sig: s.Sig, Key: e.Key})
	}
	l, err := NewLeaf(signed...)
	if err != nil {
		return nil, err
	}
	if e.Simple == nil {
		return []*Leaf{l}, nil
	}
	simple, err := NewLeaf(Signed{PayloadType: simplesigning.MediaType, Payload: e.Simple.Payload, Sig: e.Simple.Sig, Key: e.Key})
	if err != nil {
		return nil, err
	}
	return []*Leaf{l, simple}, nil
}
