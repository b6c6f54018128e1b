package tlog

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"assay.dev/assay/attest/dsse"
)

// Entries of kind intoto are those of envelopes that cosign 1 and 2, and Tekton
// Chains, attested with before Rekor had the kind dsse.
//
// Version 0.0.2 holds each signature and its key. Version 0.0.1 holds none: it has
// the signer's key, the digest of the payload (not in the oldest) and the digest of
// the envelope's very bytes. Payload and key alone would let through another
// signature by the same key, one that the log has never seen, so the envelope is
// what counts: the bytes that were logged must be at hand, and hold the signature.

// envelopeBody is what an entry of kind intoto, version 0.0.1, says of an envelope.
type envelopeBody struct {
	algorithm string
	digest    []byte // of the envelope's bytes
	verifier
}

func readIntoto1(b *rekorBody, spec []byte) error {
	type hash struct{ Algorithm, Value string }
	var s struct {
		Content struct {
			Hash        hash
			PayloadHash *hash
		}
		PublicKey []byte
	}
	if err := json.Unmarshal(spec, &s); err != nil {
		return err
	}
	b.payload = true
	if h := s.Content.PayloadHash; h != nil {
		if err := b.hash(h.Algorithm, h.Value); err != nil {
			return fmt.Errorf("reading payloadHash: %w", err)
		}
	}
	w := &envelopeBody{algorithm: strings.ToLower(s.Content.Hash.Algorithm)}
	var err error
	if w.digest, err = rekorDigest(w.algorithm, s.Content.Hash.Value); err != nil {
		return fmt.Errorf("reading hash: %w", err)
	}
	if w.verifier, err = readVerifier(s.PublicKey); err != nil {
		return err
	}
	b.whole = w
	return nil
}

func readIntoto2(b *rekorBody, spec []byte) error {
	var s struct {
		Content struct {
			PayloadHash struct{ Algorithm, Value string }
			Envelope    struct {
				Signatures []struct {
					Sig       []byte // base64 of base64
					PublicKey []byte
				}
			}
		}
	}
	if err := json.Unmarshal(spec, &s); err != nil {
		return err
	}
	b.payload = true
	if err := b.hash(s.Content.PayloadHash.Algorithm, s.Content.PayloadHash.Value); err != nil {
		return err
	}
	for _, in := range s.Content.Envelope.Signatures {
		if err := b.add64(string(in.Sig), in.PublicKey); err != nil {
			return err
		}
	}
	return nil
}

// covers returns nil if the envelope that was logged holds this very signature, by
// the key that the log checked it with.
func (w *envelopeBody) covers(s Signed) error {
	if w.key.Fingerprint() != s.Key.Fingerprint() {
		return errors.New("the log entry holds no signature by this key")
	}
	for _, text := range [][]byte{s.Envelope, s.envelope()} {
		if len(text) > 0 && bytes.Equal(sumOf(w.algorithm, text), w.digest) {
			return holds(text, s)
		}
	}
	return fmt.Errorf("the log entry is about an envelope with other bytes, %s:%x: with another signature by this key, which was made without the log, or written otherwise since", w.algorithm, w.digest)
}

// holds returns nil if an envelope has the signature, over the same payload.
func holds(envelope []byte, s Signed) error {
	env, err := dsse.Parse(envelope)
	if err != nil {
		return fmt.Errorf("reading the envelope that was logged: %w", err)
	}
	if env.PayloadType != s.PayloadType || !bytes.Equal(env.Payload, s.Payload) {
		return errors.New("the log entry is about an envelope with another payload")
	}
	if !slices.ContainsFunc(env.Signatures, func(e dsse.Signature) bool { return bytes.Equal(e.Sig, s.Sig) }) {
		return errors.New("the log entry is about an envelope without this signature")
	}
	return nil
}

// envelope is the signature's envelope as cosign and Chains write one: for evidence
// that was in another form since, a bundle's.
func (s Signed) envelope() []byte {
	type signature struct {
		KeyID string `json:"keyid"`
		Sig   string `json:"sig"`
	}
	text, err := json.Marshal(struct {
		PayloadType string      `json:"payloadType"`
		Payload     string      `json:"payload"`
		Signatures  []signature `json:"signatures"`
	}{s.PayloadType, base64.StdEncoding.EncodeToString(s.Payload), []signature{{s.KeyID, base64.StdEncoding.EncodeToString(s.Sig)}}})
	if err != nil { // strings
		return nil
	}
	return text
}
