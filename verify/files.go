package verify

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"crypto/x509"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/store"
)

// Formats of evidence in files.
const (
	FormatBundleFile   store.Format = "bundle-file"
	FormatEnvelopeFile store.Format = "envelope-file"
)

// Bounds on files of evidence.
const (
	maxFile  = 256 << 20
	maxLines = 1024
)

// ReadFile finds the pieces of evidence in a file, and verifies nothing: a Sigstore
// bundle, a DSSE envelope, npm's attestation document, or lines of these. A piece
// that is none of them is listed with its error; a file that is no JSON at all is an
// error, as is one with nothing in it.
func ReadFile(data []byte) ([]store.Item, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("reading evidence: %d bytes, at most %d are read", len(data), maxFile)
	}
	if json.Valid(data) {
		return documents(data)
	}
	var items []store.Item
	for i, line := range bytes.Split(data, []byte("\n")) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if len(items) >= maxLines {
			return nil, fmt.Errorf("reading evidence: more than %d pieces", maxLines)
		}
		if !json.Valid(line) {
			if len(items) == 0 {
				return nil, errors.New("reading evidence: no JSON; want a Sigstore bundle, a DSSE envelope or lines of them")
			}
			items = append(items, piece(line, fmt.Errorf("line %d is no JSON", i+1)))
			continue
		}
		more, err := documents(line)
		if err != nil {
			return nil, err
		}
		items = append(items, more...)
	}
	if len(items) == 0 {
		return nil, errors.New("reading evidence: the file is empty")
	}
	return items, nil
}

// piece is a document as it is; what it is not is known from err.
func piece(data []byte, err error) store.Item {
	it := store.Item{Format: FormatEnvelopeFile, Digest: digestOf(data), MediaType: api.MediaTypeDSSE, Content: data}
	if err != nil {
		it.Err = as(KindMalformed, err)
	}
	return it
}

// documents are the pieces in one JSON document.
func documents(data []byte) ([]store.Item, error) {
	if err := strictjson.Check(data, max(bundle.Max, dsse.MaxEnvelope)); err != nil {
		return []store.Item{piece(data, err)}, nil
	}
	m, err := strictjson.Object(data)
	if err != nil {
		return []store.Item{piece(data, err)}, nil
	}
	switch {
	case m["attestations"] != nil:
		return npm(m["attestations"])
	case m["mediaType"] != nil || m["verificationMaterial"] != nil:
		it := piece(data, nil)
		it.Format, it.MediaType = FormatBundleFile, api.MediaTypeBundle
		return []store.Item{it}, nil
	case m["payloadType"] != nil || m["payload"] != nil:
		return []store.Item{piece(data, nil)}, nil
	}
	return []store.Item{piece(data, errors.New("neither a Sigstore bundle nor a DSSE envelope"))}, nil
}

// npm is npm's document: bundles with their predicate types beside them.
func npm(data []byte) ([]store.Item, error) {
	list, err := strictjson.Array(data)
	if err != nil {
		return nil, fmt.Errorf("reading attestations: %w", err)
	}
	if len(list) == 0 || len(list) > maxLines {
		return nil, fmt.Errorf("reading attestations: %d of them; want one to %d", len(list), maxLines)
	}
	var items []store.Item
	for i, raw := range list {
		m, err := strictjson.Object(raw)
		if err != nil {
			return nil, fmt.Errorf("reading attestation %d: %w", i, err)
		}
		it := piece(m["bundle"], nil)
		it.Format, it.MediaType = FormatBundleFile, api.MediaTypeBundle
		if m["bundle"] == nil {
			it.Err = kindf(KindMalformed, "attestation %d has no bundle", i)
		}
		items = append(items, it)
	}
	return items, nil
}

// IsNPM says whether a file is npm's attestation document, whose pieces must all
// verify: provenance by the package's own workflow and the registry's word that it
// published what the provenance is about.
func IsNPM(data []byte) bool {
	if !json.Valid(data) {
		return false
	}
	m, err := strictjson.Object(data)
	return err == nil && m["attestations"] != nil
}

// npmKeys is npm's public keys as Sigstore's TUF repository keeps them.
//
//go:embed roots/npm-keys.json
var npmKeys []byte

// NPMKeys are the keys by which npm's registry says what it published, trusted for
// that and nothing else. They are bounded in time, so an instance must vouch for when
// they signed.
func NPMKeys() ([]Key, error) { return ParseNPMKeys(npmKeys) }

// ParseNPMKeys reads npm's registry keys: those for attestations.
func ParseNPMKeys(data []byte) ([]Key, error) {
	if err := strictjson.Check(data, MaxTrust); err != nil {
		return nil, fmt.Errorf("reading npm's keys: %w", err)
	}
	var doc struct {
		Keys []struct {
			KeyID     string `json:"keyId"`
			KeyUsage  string `json:"keyUsage"`
			PublicKey struct {
				RawBytes string `json:"rawBytes"`
				ValidFor struct {
					Start time.Time `json:"start"`
					End   time.Time `json:"end"`
				} `json:"validFor"`
			} `json:"publicKey"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("reading npm's keys: %w", err)
	}
	var keys []Key
	for i, k := range doc.Keys {
		if k.KeyUsage != "npm:attestations" {
			continue
		}
		der, err := base64.StdEncoding.DecodeString(k.PublicKey.RawBytes)
		if err != nil {
			return nil, fmt.Errorf("reading npm's key %d: %w", i, err)
		}
		public, err := x509.ParsePKIXPublicKey(der)
		if err != nil {
			return nil, fmt.Errorf("reading npm's key %d: %w", i, err)
		}
		keys = append(keys, Key{
			Name: "npm registry " + k.KeyID, Public: public, From: k.PublicKey.ValidFor.Start, Until: k.PublicKey.ValidFor.End,
			Predicates: []string{predicate.NPMPublish},
		})
	}
	if len(keys) == 0 {
		return nil, errors.New("reading npm's keys: none is for attestations")
	}
	return keys, nil
}
