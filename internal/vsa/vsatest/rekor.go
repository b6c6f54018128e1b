// Package vsatest has what tests of verification summaries share: a transparency log
// that speaks Rekor v1's wire protocol and hands every entry to Rekor's own module (type
// intoto 0.0.2), which checks signatures, makes the stored form and names the keys of
// the index. It proves nothing and keeps everything in memory.
package vsatest

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/sigstore/rekor/pkg/generated/models"
	"github.com/sigstore/rekor/pkg/types"
	_ "github.com/sigstore/rekor/pkg/types/intoto/v0.0.2" // the type of entries that the log takes
)

// Rekor is the protocol of a Rekor v1 log around Rekor's own entry type, in memory.
type Rekor struct {
	mu      sync.Mutex
	entries map[string]map[string]any
	index   map[string][]string
	alter   func(map[string]any)
}

// Serve serves a log on loopback until the test ends, and returns its address.
func Serve(t testing.TB) (*Rekor, string) {
	t.Helper()
	r := &Rekor{entries: map[string]map[string]any{}, index: map[string][]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v1/log/entries", r.add)
	mux.HandleFunc("POST /api/v1/index/retrieve", r.search)
	mux.HandleFunc("GET /api/v1/log/entries/{id}", r.get)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return r, srv.URL
}

// Alter has f change what the log answers for an entry; nil: nothing is changed.
func (r *Rekor) Alter(f func(map[string]any)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.alter = f
}

// Len is how many entries there are.
func (r *Rekor) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.entries)
}

func (r *Rekor) add(w http.ResponseWriter, req *http.Request) {
	entry, attestation, err := r.parse(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	body, err := types.CanonicalizeEntry(req.Context(), entry)
	if err == nil {
		var keys []string
		if keys, err = entry.IndexKeys(); err == nil {
			r.keep(w, body, attestation, keys)
			return
		}
	}
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

func (r *Rekor) parse(req *http.Request) (types.EntryImpl, []byte, error) {
	pe, err := models.UnmarshalProposedEntry(req.Body, jsonConsumer{})
	if err != nil {
		return nil, nil, err
	}
	entry, err := types.CreateVersionedEntry(pe)
	if err != nil {
		return nil, nil, err
	}
	if a, ok := entry.(types.EntryWithAttestationImpl); ok {
		_, att := a.AttestationKeyValue()
		return entry, att, nil
	}
	return entry, nil, nil
}

type jsonConsumer struct{}

func (jsonConsumer) Consume(r io.Reader, v any) error { return json.NewDecoder(r).Decode(v) }

func (r *Rekor) keep(w http.ResponseWriter, body, attestation []byte, keys []string) {
	sum := sha256.Sum256(append([]byte{0}, body...))
	id := hex.EncodeToString(sum[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.entries[id]; ok {
		w.Header().Set("Location", "/api/v1/log/entries/"+id)
		http.Error(w, `{"code":409,"message":"an equivalent entry already exists"}`, http.StatusConflict)
		return
	}
	e := map[string]any{
		"body": base64.StdEncoding.EncodeToString(body), "integratedTime": 1_700_000_000 + len(r.entries), "logIndex": len(r.entries),
		"logID": strings.Repeat("0", 64), "attestation": map[string]any{"data": attestation},
	}
	r.entries[id] = e
	for _, k := range keys {
		r.index[k] = append(r.index[k], id)
	}
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{id: e})
}

func (r *Rekor) search(w http.ResponseWriter, req *http.Request) {
	var q struct{ Hash string }
	if err := json.NewDecoder(req.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := r.index[q.Hash]
	if ids == nil {
		ids = []string{}
	}
	_ = json.NewEncoder(w).Encode(ids)
}

func (r *Rekor) get(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.entries[req.PathValue("id")]
	if !ok {
		http.NotFound(w, req)
		return
	}
	raw, _ := json.Marshal(e)
	var answer map[string]any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	_ = dec.Decode(&answer)
	if r.alter != nil {
		r.alter(answer)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{req.PathValue("id"): answer})
}
