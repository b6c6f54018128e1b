package pubsub

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"assay.dev/assay/store"
)

// Message is one record on its way.
type Message struct {
	// ID is the SHA-256, in hexadecimal, of run, key and payload: the same for
	// the same statement, whoever signed it and whenever.
	ID string
	// Key groups what is about one record: run's uid, slash, record's key.
	Key string
	// Body is the record's signature as Tekton Chains keeps it.
	Body []byte
	// Metadata are words about the body. Upstream's are payload (the payload in
	// base64) and signature (the body; in base64 for images, whose signatures
	// are not text: upstream's library refuses those). Ours are id, key,
	// format, kind, namespace, name and uid of the run, image for images, cert
	// and chain (PEM) where the first signature has them, and signatures, where
	// there are several: a JSON list of objects with keyid, sig (base64), cert
	// and chain.
	Metadata map[string]string
}

// NewMessage makes the message of a record. It fails on a record that does not
// pass its Check.
func NewMessage(r store.Record) (Message, error) {
	if err := r.Check(); err != nil {
		return Message{}, err
	}
	body, err := r.SignatureBytes()
	if err != nil {
		return Message{}, err
	}
	m := Message{Key: r.Run.UID + "/" + r.Key, Body: body}
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s%d:", len(m.Key), m.Key, len(r.Payload))
	h.Write(r.Payload)
	m.ID = hex.EncodeToString(h.Sum(nil))
	signature := string(body)
	if r.Statement == nil {
		signature = base64.StdEncoding.EncodeToString(body)
	}
	m.Metadata = map[string]string{
		"payload":   base64.StdEncoding.EncodeToString(r.Payload),
		"signature": signature,
		"id":        m.ID,
		"key":       r.Key,
		"format":    r.Format,
		"kind":      r.Run.Kind,
		"namespace": r.Run.Namespace,
		"name":      r.Run.Name,
		"uid":       r.Run.UID,
	}
	first := r.Signatures[0]
	for name, value := range map[string]string{
		"image": r.Image, "cert": string(first.Cert), "chain": string(first.Chain),
	} {
		if value != "" {
			m.Metadata[name] = value
		}
	}
	if len(r.Signatures) > 1 {
		type one struct {
			KeyID string `json:"keyid"`
			Sig   []byte `json:"sig"`
			Cert  string `json:"cert,omitempty"`
			Chain string `json:"chain,omitempty"`
		}
		var all []one
		for _, s := range r.Signatures {
			all = append(all, one{s.KeyID, s.Sig, string(s.Cert), string(s.Chain)})
		}
		list, err := json.Marshal(all)
		if err != nil {
			return Message{}, err
		}
		m.Metadata["signatures"] = string(list)
	}
	return m, nil
}

// names of the metadata, in an order that does not change.
func (m Message) names() []string { return slices.Sorted(maps.Keys(m.Metadata)) }

// size is about what the message takes on the wire.
func (m Message) size() int {
	n := len(m.Key) + len(m.Body)
	for k, v := range m.Metadata {
		n += len(k) + len(v) + 10
	}
	return n
}
