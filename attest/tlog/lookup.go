package tlog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"

	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/store"
)

// maxFound is how many entries of an answer to a search are looked at.
const maxFound = 16

// ErrNoEntry says that a log was asked and has no entry about a signature.
var ErrNoEntry = errors.New("the log holds no entry about this signature")

// Lookup searches a Rekor v1 log for entries about a signature that is kept without
// one. Envelope is the DSSE envelope as it was signed and logged, byte for byte, nil
// for other signatures; cert is the signer's certificate as PEM, nil where the key
// stands for itself.
//
// What is returned says that it is about the signature and is not verified: that is
// CheckRekor's work, with keys that did not come from the log. Its error is
// ErrNoEntry where there is none, and of class store.Configuration for a log of
// another version, which cannot be searched.
func (r *Rekor) Lookup(ctx context.Context, s Signed, envelope, cert []byte) ([]*rekor.TransparencyLogEntry, error) {
	out, err := r.lookup(ctx, s, envelope, cert)
	if err != nil {
		return nil, fmt.Errorf("searching log %s: %w", r.endpoint.name, err)
	}
	return out, nil
}

func (r *Rekor) lookup(ctx context.Context, s Signed, envelope, cert []byte) ([]*rekor.TransparencyLogEntry, error) {
	if len(cert) == 0 {
		cert = s.Key.PEM()
	}
	if s.Envelope == nil {
		s.Envelope = envelope
	}
	body, err := json.Marshal(map[string]any{"entries": proposals(s, envelope, cert)})
	if err != nil {
		return nil, store.As(store.Permanent, err)
	}
	header := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}
	a, err := r.endpoint.do(ctx, http.MethodPost, "api/v1/log/entries/retrieve", header, string(body), maxAnswer)
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusOK {
		return nil, r.endpoint.fault(a, "searching")
	}
	entries, err := parseFound(a.body)
	if err != nil {
		return nil, store.As(store.Permanent, fmt.Errorf("reading the answer: %w", err))
	}
	entries = slices.DeleteFunc(entries, func(e *rekor.TransparencyLogEntry) bool {
		b, err := parseRekorBody(e.GetCanonicalizedBody())
		return err != nil || b.covers(s) != nil
	})
	if len(entries) == 0 {
		return nil, ErrNoEntry
	}
	return entries, nil
}

// proposals are what the signature may have been logged as; the log finds an entry by
// what it would make of the same proposal.
func proposals(s Signed, envelope, cert []byte) []any {
	if envelope != nil {
		sum := sha256.Sum256(envelope)
		return []any{
			map[string]any{"apiVersion": "0.0.1", "kind": "dsse", "spec": map[string]any{
				"proposedContent": map[string]any{"envelope": string(envelope), "verifiers": [][]byte{cert}},
			}},
			map[string]any{"apiVersion": "0.0.1", "kind": "intoto", "spec": map[string]any{
				"content":   map[string]any{"envelope": string(envelope), "hash": map[string]any{"algorithm": "sha256", "value": hex.EncodeToString(sum[:])}},
				"publicKey": cert,
			}},
		}
	}
	algorithm, digest := signedDigest(s)
	return []any{map[string]any{"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": map[string]any{
		"data":      map[string]any{"hash": map[string]any{"algorithm": algorithm, "value": hex.EncodeToString(digest)}},
		"signature": map[string]any{"content": s.Sig, "publicKey": map[string]any{"content": cert}},
	}}}
}

// parseFound reads a list of answers, each as parseEntry1 does. Entries of kinds that
// are not read are left out: what was asked for decides, not what else is there.
func parseFound(data []byte) ([]*rekor.TransparencyLogEntry, error) {
	if err := strictjson.Check(data, maxAnswer); err != nil {
		return nil, err
	}
	list, err := strictjson.Array(data)
	if err != nil {
		return nil, err
	}
	if len(list) > maxFound {
		return nil, fmt.Errorf("%d entries; at most %d are read", len(list), maxFound)
	}
	var out []*rekor.TransparencyLogEntry
	for _, raw := range list {
		if e, err := parseEntry1(raw); err == nil {
			out = append(out, e)
		}
	}
	return out, nil
}
