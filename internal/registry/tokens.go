package registry

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"sync/atomic"

	"assay.dev/assay/api"
)

// Kind is what a token is for.
type Kind string

const (
	// KindTask is a token that a task holds.
	KindTask Kind = "task"
	// KindExport is one that the executor keeps to itself, to export what the
	// task left behind.
	KindExport Kind = "export"
)

// TokenRequest asks for a token for one attempt of one TaskRun.
type TokenRequest struct {
	Run     string `json:"run"`
	Task    string `json:"task"`
	Attempt int    `json:"attempt"`
	Kind    Kind   `json:"kind"`
}

// token is one credential. Only its hash is kept.
type token struct {
	TokenRequest
	uid   uint32 // who minted it
	repo  string
	spent *atomic.Int64 // bytes sent by all tokens of the run

	mu      sync.Mutex // guards what follows
	revoked bool
	cancel  map[*guard]struct{} // requests under way
	idle    sync.WaitGroup
}

// begin counts a request as under way. It says false if the token is revoked.
func (t *token) begin(g *guard) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.revoked {
		return false
	}
	t.cancel[g] = struct{}{}
	t.idle.Add(1)
	return true
}

func (t *token) end(g *guard) {
	t.mu.Lock()
	delete(t.cancel, g)
	t.mu.Unlock()
	t.idle.Done()
}

// revoke fails all requests under way and waits until they are over.
func (t *token) revoke() {
	t.mu.Lock()
	t.revoked = true
	for g := range t.cancel {
		g.stop(errRevoked)
	}
	t.mu.Unlock()
	t.idle.Wait()
}

// tokens are the credentials of this process; a restart forgets them all.
type tokens struct {
	mu     sync.Mutex // guards what follows
	byHash map[[sha256.Size]byte]*token
	spent  map[string]*atomic.Int64 // by run
}

func newTokens() *tokens {
	return &tokens{byHash: map[[sha256.Size]byte]*token{}, spent: map[string]*atomic.Int64{}}
}

func (ts *tokens) mint(r TokenRequest, uid uint32) string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	secret := "assay_" + base64.RawURLEncoding.EncodeToString(b[:])
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if ts.spent[r.Run] == nil {
		ts.spent[r.Run] = new(atomic.Int64)
	}
	ts.byHash[sha256.Sum256([]byte(secret))] = &token{
		TokenRequest: r, uid: uid, repo: api.StagingPrefix + r.Run, spent: ts.spent[r.Run], cancel: map[*guard]struct{}{},
	}
	return secret
}

func (ts *tokens) find(secret string) *token {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.byHash[sha256.Sum256([]byte(secret))]
}

// revoke revokes every token that which picks, and returns how many, when none
// of their requests is under way any more.
func (ts *tokens) revoke(which func(*token) bool) int {
	ts.mu.Lock()
	var gone []*token
	for h, t := range ts.byHash {
		if which(t) {
			delete(ts.byHash, h)
			gone = append(gone, t)
		}
	}
	ts.mu.Unlock()
	for _, t := range gone {
		t.revoke()
	}
	return len(gone)
}
