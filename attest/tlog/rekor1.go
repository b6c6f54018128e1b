package tlog

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path"
	"regexp"

	common "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/store"
)

// errEd25519 is why an Ed25519 signature does not get into a hashedrekord.
var errEd25519 = errors.New("Rekor keeps a digest of what was signed, and Ed25519 signs the whole: sign with an ECDSA key, or use a log of `assay log serve`")

// addDSSE adds an envelope to Rekor v1. by says whose the signatures are.
func (r *Rekor) addDSSE(ctx context.Context, signed []Signed, by []store.Signature) (*rekor.TransparencyLogEntry, error) {
	e := &dsse.Envelope{PayloadType: signed[0].PayloadType, Payload: signed[0].Payload}
	var verifiers [][]byte
	for i, s := range signed {
		e.Signatures = append(e.Signatures, dsse.Signature{KeyID: by[i].KeyID, Sig: s.Sig})
		v := by[i].Cert
		if len(v) == 0 {
			v = s.Key.PEM()
		}
		verifiers = append(verifiers, v)
	}
	env, err := e.MarshalJSON()
	if err != nil {
		return nil, store.As(store.Permanent, fmt.Errorf("logging: %w", err))
	}
	return r.add1(ctx, map[string]any{
		"apiVersion": "0.0.1", "kind": "dsse",
		"spec": map[string]any{"proposedContent": map[string]any{"envelope": string(env), "verifiers": verifiers}},
	})
}

// addHashed1 adds an image's signature to Rekor v1.
func (r *Rekor) addHashed1(ctx context.Context, s Signed, cert []byte) (*rekor.TransparencyLogEntry, error) {
	if _, ok := s.Key.Crypto().(ed25519.PublicKey); ok {
		return nil, store.As(store.Permanent, fmt.Errorf("logging an image's signature: %w", errEd25519))
	}
	if len(cert) == 0 {
		cert = s.Key.PEM()
	}
	algorithm, digest := signedDigest(s)
	return r.add1(ctx, map[string]any{
		"apiVersion": "0.0.1", "kind": "hashedrekord",
		"spec": map[string]any{
			"data":      map[string]any{"hash": map[string]any{"algorithm": algorithm, "value": hex.EncodeToString(digest)}},
			"signature": map[string]any{"content": s.Sig, "publicKey": map[string]any{"content": cert}},
		},
	})
}

var uuidForm = regexp.MustCompile(`^([0-9a-f]{16})?[0-9a-f]{64}$`)

func (r *Rekor) add1(ctx context.Context, proposed map[string]any) (*rekor.TransparencyLogEntry, error) {
	body, err := json.Marshal(proposed)
	if err != nil {
		return nil, store.As(store.Permanent, fmt.Errorf("logging: %w", err))
	}
	header := http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}
	a, err := r.endpoint.do(ctx, http.MethodPost, "api/v1/log/entries", header, string(body), maxAnswer)
	if err != nil {
		return nil, err
	}
	if a.status == http.StatusConflict {
		// It is there already, from an earlier try or from somebody else.
		uuid := path.Base(a.header.Get("Location"))
		if !uuidForm.MatchString(uuid) {
			return nil, store.As(store.Permanent, fmt.Errorf("logging: log %s has the entry already and does not say where (%.80q)", r.endpoint.name, uuid))
		}
		if a, err = r.endpoint.do(ctx, http.MethodGet, "api/v1/log/entries/"+uuid, http.Header{"Accept": {"application/json"}}, "", maxAnswer); err != nil {
			return nil, err
		}
	}
	if a.status != http.StatusOK && a.status != http.StatusCreated {
		return nil, r.endpoint.fault(a, "logging")
	}
	e, err := parseEntry1(a.body)
	if err != nil {
		return nil, store.As(store.Permanent, fmt.Errorf("logging: reading the answer of log %s: %w", r.endpoint.name, err))
	}
	return e, nil
}

// parseEntry1 reads Rekor v1's answer: one entry under its id.
func parseEntry1(data []byte) (*rekor.TransparencyLogEntry, error) {
	if err := strictjson.Check(data, maxAnswer); err != nil {
		return nil, err
	}
	var m map[string]struct {
		Body           string `json:"body"`
		IntegratedTime int64  `json:"integratedTime"`
		LogID          string `json:"logID"`
		LogIndex       int64  `json:"logIndex"`
		Verification   struct {
			InclusionProof *struct {
				Checkpoint string   `json:"checkpoint"`
				Hashes     []string `json:"hashes"`
				LogIndex   int64    `json:"logIndex"`
				RootHash   string   `json:"rootHash"`
				TreeSize   int64    `json:"treeSize"`
			} `json:"inclusionProof"`
			SignedEntryTimestamp []byte `json:"signedEntryTimestamp"`
		} `json:"verification"`
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	if len(m) != 1 {
		return nil, fmt.Errorf("%d entries; want one", len(m))
	}
	for id, in := range m {
		if !uuidForm.MatchString(id) {
			return nil, fmt.Errorf("%.100q is no entry's id", id)
		}
		body, err := base64.StdEncoding.DecodeString(in.Body)
		if err != nil {
			return nil, fmt.Errorf("reading body: %w", err)
		}
		b, err := parseRekorBody(body)
		if err != nil {
			return nil, err
		}
		logID, err := hex.DecodeString(in.LogID)
		if err != nil || len(logID) != sha256.Size {
			return nil, errors.New("logID is no digest")
		}
		e := &rekor.TransparencyLogEntry{
			LogIndex: in.LogIndex, LogId: &common.LogId{KeyId: logID}, IntegratedTime: in.IntegratedTime,
			KindVersion:       &rekor.KindVersion{Kind: b.kind, Version: b.version},
			CanonicalizedBody: body,
		}
		if set := in.Verification.SignedEntryTimestamp; len(set) > 0 {
			e.InclusionPromise = &rekor.InclusionPromise{SignedEntryTimestamp: set}
		}
		if p := in.Verification.InclusionProof; p != nil {
			proof := &rekor.InclusionProof{LogIndex: p.LogIndex, TreeSize: p.TreeSize, Checkpoint: &rekor.Checkpoint{Envelope: p.Checkpoint}}
			if proof.RootHash, err = hex.DecodeString(p.RootHash); err != nil {
				return nil, errors.New("rootHash is not hex")
			}
			for _, h := range p.Hashes {
				raw, err := hex.DecodeString(h)
				if err != nil || len(raw) != sha256.Size {
					return nil, errors.New("a hash of the proof is no digest")
				}
				proof.Hashes = append(proof.Hashes, raw)
			}
			e.InclusionProof = proof
		}
		return e, nil
	}
	return nil, errors.New("no entry")
}
