package bundle

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"

	"assay.dev/assay/attest/dsse"
)

// Material is what comes with a signature besides the key.
type Material struct {
	// Leaf is the certificate that names the key, DER; empty for a bare key. A
	// bundle carries no chain: verifiers know their authorities.
	Leaf []byte
	// LogEntries are entries of Rekor logs about the signature, each as the JSON of
	// the protobuf message dev.sigstore.rekor.v1.TransparencyLogEntry.
	LogEntries []json.RawMessage
}

type certificateJSON struct {
	RawBytes []byte `json:"rawBytes"`
}

// Encode writes a bundle, version 0.3, of an envelope with one signature by the
// key, and what comes with it. It fails if the signature does not verify with the
// key, or the certificate names another one. Log entries are not checked.
func Encode(env *dsse.Envelope, key dsse.PublicKey, with Material) ([]byte, error) {
	b, err := New(env, key)
	if err != nil {
		return nil, err
	}
	type material struct {
		PublicKey   *publicKeyJSON    `json:"publicKey,omitempty"`
		Certificate *certificateJSON  `json:"certificate,omitempty"`
		LogEntries  []json.RawMessage `json:"tlogEntries,omitempty"`
	}
	m := material{LogEntries: with.LogEntries}
	if len(with.Leaf) == 0 {
		m.PublicKey = &publicKeyJSON{b.Hint}
	} else {
		cert, err := x509.ParseCertificate(with.Leaf)
		if err != nil {
			return nil, fmt.Errorf("making bundle: reading certificate: %w", err)
		}
		named, err := dsse.NewPublicKey(cert.PublicKey)
		if err != nil {
			return nil, fmt.Errorf("making bundle: reading certificate: %w", err)
		}
		if named.Fingerprint() != key.Fingerprint() {
			return nil, errors.New("making bundle: the certificate is another key's")
		}
		m.Certificate = &certificateJSON{with.Leaf}
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(struct {
		MediaType string         `json:"mediaType"`
		Material  material       `json:"verificationMaterial"`
		Envelope  *dsse.Envelope `json:"dsseEnvelope"`
	}{MediaType, m, env}); err != nil {
		return nil, fmt.Errorf("making bundle: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
