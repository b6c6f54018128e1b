package vsa

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/store"
)

var (
	sha256Form = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	uuidForm   = regexp.MustCompile(`^([0-9a-f]{16})?[0-9a-f]{64}$`)
)

const (
	// maxAnswer is the size in bytes of the largest answer of a log that is read.
	maxAnswer = 64 << 20
	// maxEntries is how many entries about one image are looked at.
	maxEntries = 200
)

// rekor speaks to a Rekor v1 log as Conforma does: entries of kind intoto 0.0.2, which
// hold the envelope, found by the image's digest. The log is a place to keep things
// here: what comes from it counts by its signature alone.
type rekor struct {
	url     string
	http    *http.Client
	retries int
	timeout time.Duration
}

func (p Place) rekor(rt http.RoundTripper) *rekor {
	return &rekor{url: strings.TrimSuffix(p.Where, "/"), http: &http.Client{Transport: rt}, retries: p.Retries, timeout: p.Timeout}
}

// proposed is an entry of kind intoto 0.0.2. Its bytes are base64 of what the envelope
// has as base64 already.
func proposed(env *dsse.Envelope, key dsse.PublicKey) ([]byte, error) {
	type signature struct {
		KeyID     string `json:"keyid,omitempty"`
		PublicKey []byte `json:"publicKey"`
		Sig       []byte `json:"sig"`
	}
	var sigs []signature
	for _, s := range env.Signatures {
		sigs = append(sigs, signature{s.KeyID, key.PEM(), []byte(base64.StdEncoding.EncodeToString(s.Sig))})
	}
	raw, err := env.MarshalJSON()
	if err != nil {
		return nil, err
	}
	type hash struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"value"`
	}
	sum := func(b []byte) hash {
		h := sha256.Sum256(b)
		return hash{"sha256", hex.EncodeToString(h[:])}
	}
	return json.Marshal(map[string]any{"apiVersion": "0.0.2", "kind": "intoto", "spec": map[string]any{"content": map[string]any{
		"envelope": map[string]any{
			"payload":     []byte(base64.StdEncoding.EncodeToString(env.Payload)),
			"payloadType": env.PayloadType, "signatures": sigs,
		},
		"hash": sum(raw), "payloadHash": sum(env.Payload),
	}}})
}

// upload adds an envelope and returns the entry's id. That it is there already is no
// error.
func (r *rekor) upload(ctx context.Context, env *dsse.Envelope, key dsse.PublicKey) (string, error) {
	body, err := proposed(env, key)
	if err != nil {
		return "", err
	}
	status, raw, header, err := r.do(ctx, http.MethodPost, "/api/v1/log/entries", body)
	if err != nil {
		return "", fmt.Errorf("adding an in-toto 0.0.2 entry: %w", err)
	}
	if status == http.StatusConflict {
		location := header.Get("Location")
		return location[strings.LastIndex(location, "/")+1:], nil
	}
	if status != http.StatusCreated && status != http.StatusOK {
		return "", fmt.Errorf("adding an in-toto 0.0.2 entry: %s answers %d: %.300s", r.url, status, bytes.TrimSpace(raw))
	}
	entries, err := parseEntries(raw)
	if err != nil {
		return "", fmt.Errorf("adding an in-toto 0.0.2 entry: reading the answer: %w", err)
	}
	for id := range entries {
		return id, nil
	}
	return "", errors.New("adding an in-toto 0.0.2 entry: the answer has none")
}

// find returns the envelopes that the log has about an image, the latest first.
func (r *rekor) find(ctx context.Context, digest string) ([]*dsse.Envelope, error) {
	query, err := json.Marshal(map[string]string{"hash": digest})
	if err != nil {
		return nil, err
	}
	status, raw, _, err := r.do(ctx, http.MethodPost, "/api/v1/index/retrieve", query)
	if err != nil {
		return nil, fmt.Errorf("failed to search Rekor index: %w", err)
	}
	if status != http.StatusOK {
		return nil, fmt.Errorf("failed to search Rekor index: %s answers %d: %.300s", r.url, status, bytes.TrimSpace(raw))
	}
	var ids []string
	if err := json.Unmarshal(raw, &ids); err != nil {
		return nil, fmt.Errorf("failed to search Rekor index: %w", err)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("no entries found in Rekor for image digest: %s (%w)", digest, ErrNotThere)
	}
	if len(ids) > maxEntries {
		return nil, fmt.Errorf("%s names %d entries for the image digest %s; at most %d are looked at", r.url, len(ids), digest, maxEntries)
	}
	type found struct {
		at  int64
		env *dsse.Envelope
	}
	var list []found
	for _, id := range ids {
		if !uuidForm.MatchString(id) {
			return nil, fmt.Errorf("failed to search Rekor index: %.100q is no entry's id", id)
		}
		status, raw, _, err := r.do(ctx, http.MethodGet, "/api/v1/log/entries/"+id, nil)
		if err != nil {
			return nil, fmt.Errorf("failed to fetch log entries: %w", err)
		}
		if status == http.StatusNotFound {
			continue // the index is ahead of the log
		}
		if status != http.StatusOK {
			return nil, fmt.Errorf("failed to fetch log entries: %s answers %d: %.300s", r.url, status, bytes.TrimSpace(raw))
		}
		entries, err := parseEntries(raw)
		if err != nil {
			return nil, fmt.Errorf("failed to fetch log entries: %w", err)
		}
		for _, e := range entries {
			// Entries of other kinds, and those that cannot be read, are nobody's summary:
			// anybody can add some.
			if env, err := e.envelope(); err == nil {
				list = append(list, found{e.IntegratedTime, env})
			}
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("no in-toto 0.0.2 entry found for image digest: %s (%w)", digest, ErrNotThere)
	}
	slices.SortStableFunc(list, func(a, b found) int { return int(min(max(b.at-a.at, -1), 1)) })
	var out []*dsse.Envelope
	for _, f := range list {
		out = append(out, f.env)
	}
	return out, nil
}

// entry is one of a log, as its answers have it.
type entry struct {
	Body           string `json:"body"`
	IntegratedTime int64  `json:"integratedTime"`
	Attestation    *struct {
		Data []byte `json:"data"`
	} `json:"attestation"`
}

func parseEntries(raw []byte) (map[string]entry, error) {
	if err := strictjson.Check(raw, maxAnswer); err != nil {
		return nil, err
	}
	var m map[string]entry
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	return m, nil
}

// envelope is what an entry of kind intoto 0.0.2 holds: the payload is kept beside the
// entry, which has the signatures.
func (e entry) envelope() (*dsse.Envelope, error) {
	body, err := base64.StdEncoding.DecodeString(e.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the entry: %w", err)
	}
	if err := strictjson.Check(body, maxAnswer); err != nil {
		return nil, fmt.Errorf("reading the entry: %w", err)
	}
	var doc struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Spec       struct {
			Content struct {
				Envelope struct {
					Payload     string `json:"payload"`
					PayloadType string `json:"payloadType"`
					Signatures  []struct {
						KeyID string `json:"keyid"`
						Sig   string `json:"sig"`
					} `json:"signatures"`
				} `json:"envelope"`
			} `json:"content"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, fmt.Errorf("reading the entry: %w", err)
	}
	if doc.Kind != "intoto" || doc.APIVersion != "0.0.2" {
		return nil, fmt.Errorf("the entry is of kind %.40q %.20q", doc.Kind, doc.APIVersion)
	}
	in := doc.Spec.Content.Envelope
	env := &dsse.Envelope{PayloadType: in.PayloadType}
	if e.Attestation != nil && len(e.Attestation.Data) > 0 {
		env.Payload = e.Attestation.Data
	} else if env.Payload, err = twice(in.Payload); err != nil {
		return nil, fmt.Errorf("reading the entry's payload: %w", err)
	}
	if env.PayloadType != store.PayloadType || len(env.Payload) == 0 || len(in.Signatures) == 0 || len(in.Signatures) > dsse.MaxSignatures {
		return nil, errors.New("the entry holds no signed in-toto statement")
	}
	for _, s := range in.Signatures {
		sig, err := twice(s.Sig)
		if err != nil {
			return nil, fmt.Errorf("reading the entry's signature: %w", err)
		}
		env.Signatures = append(env.Signatures, dsse.Signature{KeyID: s.KeyID, Sig: sig})
	}
	return env, nil
}

// twice decodes base64 of base64, and base64 alone where there is no more. Which of both
// it was is decided by the signature in the end.
func twice(s string) ([]byte, error) {
	once, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		return nil, err
	}
	if b, err := base64.StdEncoding.DecodeString(string(once)); err == nil {
		return b, nil
	}
	return once, nil
}

// do sends a request, again while the log is overloaded or away, and reads the answer.
func (r *rekor) do(ctx context.Context, method, path string, body []byte) (int, []byte, http.Header, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.timeout, fmt.Errorf("%s did not answer within %s", r.url, r.timeout))
	defer cancel()
	var last error
	for try := range r.retries + 1 {
		if try > 0 {
			select {
			case <-time.After(min(time.Duration(1<<try)*100*time.Millisecond, 5*time.Second)):
			case <-ctx.Done():
				return 0, nil, nil, errors.Join(context.Cause(ctx), last)
			}
		}
		req, err := http.NewRequestWithContext(ctx, method, r.url+path, bytes.NewReader(body))
		if err != nil {
			return 0, nil, nil, err
		}
		req.Header.Set("Accept", "application/json")
		if method == http.MethodPost {
			req.Header.Set("Content-Type", "application/json")
		}
		res, err := r.http.Do(req)
		if err != nil {
			if last = err; ctx.Err() != nil {
				return 0, nil, nil, context.Cause(ctx)
			}
			continue
		}
		raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
		res.Body.Close()
		switch {
		case err != nil:
			last = err
		case len(raw) > maxAnswer:
			return 0, nil, nil, fmt.Errorf("%s answers with more than %d bytes", r.url, maxAnswer)
		case res.StatusCode == http.StatusTooManyRequests || res.StatusCode >= 500:
			last = fmt.Errorf("%s answers %d: %.300s", r.url, res.StatusCode, bytes.TrimSpace(raw))
		default:
			return res.StatusCode, raw, res.Header, nil
		}
	}
	return 0, nil, nil, last
}
