package sigstore

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
)

// Rekor serves the transparency log's search, /api/v1/log/entries/retrieve, until the
// test ends; asked counts the searches.
func (d *Deployment) Rekor() (url string, asked *atomic.Int32) {
	asked = new(atomic.Int32)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v1/log/entries/retrieve", func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		var q struct {
			Entries []struct {
				Kind string `json:"kind"`
				Spec struct {
					Data struct {
						Hash struct{ Value string }
					}
					Signature       struct{ Content []byte }
					ProposedContent struct{ Envelope string }
				} `json:"spec"`
			} `json:"entries"`
		}
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		answers := []any{}
		for _, p := range q.Entries {
			key := "message:" + p.Spec.Data.Hash.Value + base64.StdEncoding.EncodeToString(p.Spec.Signature.Content)
			if p.Kind == "dsse" {
				sum := sha256.Sum256([]byte(p.Spec.ProposedContent.Envelope))
				key = "envelope:" + hex.EncodeToString(sum[:])
			}
			d.mu.Lock()
			found := d.entries[key]
			d.mu.Unlock()
			for _, e := range found {
				answers = append(answers, e.served())
			}
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(answers) //nolint:errcheck // the client will notice
	})
	srv := httptest.NewServer(mux)
	d.t.Cleanup(srv.Close)
	return srv.URL, asked
}

// served is the entry as Rekor answers.
func (e Entry) served() any {
	leaf, checkpoint := e.proof()
	id := e.d.logID()
	return map[string]any{hex.EncodeToString(leaf[:]): map[string]any{
		"body": base64.StdEncoding.EncodeToString(e.Body), "integratedTime": e.At.Unix(), "logID": hex.EncodeToString(id[:]), "logIndex": e.Index,
		"verification": map[string]any{
			"signedEntryTimestamp": e.promise(),
			"inclusionProof": map[string]any{
				"checkpoint": checkpoint, "hashes": []string{}, "logIndex": 0, "rootHash": hex.EncodeToString(leaf[:]), "treeSize": 1,
			},
		},
	}}
}
