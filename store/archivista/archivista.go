// Package archivista keeps records in Archivista, in-toto's store for
// attestations: an HTTP server that takes DSSE envelopes, files them under their
// gitoid (the name that git would give the same bytes) and indexes subjects,
// predicate type and payload digest for queries by GraphQL.
//
// A statement is uploaded as the envelope that upstream uploads; where a
// signature was made with a certificate, certificate and issuers travel in the
// members that in-toto's own tools (witness) read, since Archivista keeps
// nothing beside the envelope. Before, the server is asked for the payload's
// digest, and a statement that is there already, signed by one of the same keys
// or by the same identity, is not uploaded again. What does not verify counts for
// nothing: anybody may upload to most servers. Two observers that upload the
// same statement at the same instant both add theirs; so does a retry where
// GraphQL is switched off.
//
// Archivista takes envelopes only, so that the bare signature of an image, in
// Chains' simplesigning, has no place in it. Upstream fails on every image. Here
// the record is named in Outcome.Skipped and the run goes on: configure another
// back end beside this one for images.
//
// Archivista cannot be searched by run, so Find returns store.ErrWriteOnly;
// FindPayload and FindSubject search by what it indexes.
package archivista

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"assay.dev/assay/store"
)

// Options say where the server is.
type Options struct {
	// URL of the server, as storage.archivista.url has it; required.
	URL string
	// TokenFile holds a bearer token for a proxy before the server, which itself
	// asks for none. It is read for every request. Empty: no token.
	TokenFile string
	// Client sends the requests. Nil: one of its own, with a time limit.
	Client *http.Client
}

// Keeper keeps records in one Archivista. It is safe for concurrent use.
type Keeper struct {
	c client
	// proven is set once an upload could be downloaded again: a server without
	// object storage accepts envelopes and throws them away.
	proven atomic.Bool

	mu   sync.Mutex
	busy map[string]*sync.Mutex // by payload digest; guarded by mu
}

var _ store.Keeper = (*Keeper)(nil)

// Open returns a keeper. It connects nowhere; it fails on a URL that is not
// http or https.
func Open(o Options) (*Keeper, error) {
	u, err := url.Parse(strings.TrimSpace(o.URL))
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, store.As(store.Configuration, errors.New("storage.archivista.url must be set to the http or https URL of an Archivista"))
	}
	u.RawQuery, u.Fragment = "", ""
	k := &Keeper{c: client{base: u, http: o.Client, tokenFile: o.TokenFile}, busy: map[string]*sync.Mutex{}}
	if k.c.http == nil {
		k.c.http = &http.Client{
			Timeout: time.Minute,
			// A redirected upload would arrive as a request for a page.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	return k, nil
}

// Name implements store.Keeper.
func (k *Keeper) Name() string { return "archivista" }

// Keep uploads the envelopes of statements that the server does not have yet.
// Images are skipped. Refused credentials, a URL that leads elsewhere and a
// server without object storage are Configuration faults; envelopes that are
// too large or refused are Permanent; the rest is Transient.
func (k *Keeper) Keep(ctx context.Context, records []store.Record) []store.Outcome {
	outcomes := make([]store.Outcome, len(records))
	var todo []int
	for i, r := range records {
		if err := r.Check(); err != nil {
			outcomes[i].Err = store.As(store.Permanent, err)
			continue
		}
		if r.Statement == nil {
			outcomes[i].Skipped = []string{r.Image + ": Archivista takes DSSE envelopes only, not the simple signing of images; keep images elsewhere too, such as oci"}
			continue
		}
		todo = append(todo, i)
	}
	if len(todo) == 0 {
		return outcomes
	}
	// Calls of this process about the same statement wait for each other.
	digests := make([]string, len(records))
	for _, i := range todo {
		digests[i] = payloadDigest(records[i].Payload)
	}
	defer k.lock(digests)()
	there, err := k.c.search(ctx, "hasPayloadDigestsWith", digests)
	if err != nil && !errors.Is(err, errNoGraphQL) {
		for _, i := range todo {
			outcomes[i].Err = fmt.Errorf("asking %s for record %s: %w", k.c.base, records[i].Key, err)
		}
		return outcomes
	}
	byDigest := map[string][]string{}
	for _, h := range there {
		for _, d := range h.digests {
			byDigest[d] = append(byDigest[d], h.gitoid)
		}
	}
	var group sync.WaitGroup
	limit := make(chan struct{}, 4)
	for _, i := range todo {
		group.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			outcomes[i] = k.keep(ctx, records[i], byDigest[digests[i]])
		})
	}
	group.Wait()
	return outcomes
}

// lock holds the payloads with these digests, in an order that cannot end in a
// deadlock, and returns what lets go of them.
func (k *Keeper) lock(digests []string) func() {
	digests = slices.DeleteFunc(slices.Clone(digests), func(d string) bool { return d == "" })
	slices.Sort(digests)
	digests = slices.Compact(digests)
	if len(digests) == 0 {
		return func() {}
	}
	var held []*sync.Mutex
	for _, d := range digests {
		// One of 256 locks: few wait in vain, and the map stays small.
		d = d[:2]
		k.mu.Lock()
		m := k.busy[d]
		if m == nil {
			m = &sync.Mutex{}
			k.busy[d] = m
		}
		k.mu.Unlock()
		if !slices.Contains(held, m) {
			m.Lock()
			held = append(held, m)
		}
	}
	return func() {
		for _, m := range held {
			m.Unlock()
		}
	}
}

// keep makes sure of one record, given the gitoids that the server has for its
// payload.
func (k *Keeper) keep(ctx context.Context, r store.Record, there []string) store.Outcome {
	for _, gitoid := range there {
		// The index says that the envelope was there once; its bytes are what
		// counts.
		held, err := k.c.download(ctx, gitoid)
		if err != nil {
			continue
		}
		if one, err := held.kept(); err == nil && r.Same(one) {
			return store.Outcome{Where: []string{k.c.where(gitoid)}, Existing: true}
		}
	}
	data, err := encode(r)
	if err != nil {
		return store.Outcome{Err: store.As(store.Permanent, fmt.Errorf("encoding record %s: %w", r.Key, err))}
	}
	want := gitoid(data)
	got, err := k.c.upload(ctx, data)
	switch {
	case err != nil:
		// The server answers 500 to bytes that it has already: a request whose
		// answer was lost.
		if held, derr := k.c.download(ctx, want); derr == nil && string(held.Payload) == string(r.Payload) {
			if hits, serr := k.c.search(ctx, "hasPayloadDigestsWith", []string{payloadDigest(r.Payload)}); serr == nil &&
				slices.ContainsFunc(hits, func(h hit) bool { return h.gitoid == want }) {
				return store.Outcome{Where: []string{k.c.where(want)}, Existing: true}
			}
		}
		return store.Outcome{Err: fmt.Errorf("uploading record %s: %w", r.Key, err)}
	case got != want:
		return store.Outcome{Err: store.As(store.Transient, fmt.Errorf("uploading record %s: the server stored it as %q, but its bytes are %s", r.Key, got, want))}
	}
	if !k.proven.Load() {
		if held, err := k.c.download(ctx, want); err != nil {
			return store.Outcome{Err: fmt.Errorf("reading record %s back after its upload: %w", r.Key, err)}
		} else if string(held.Payload) != string(r.Payload) {
			return store.Outcome{Err: store.As(store.Transient, fmt.Errorf("reading record %s back after its upload: it has another payload", r.Key))}
		}
		k.proven.Store(true)
	}
	return store.Outcome{Where: []string{k.c.where(want)}}
}

// Find returns store.ErrWriteOnly: Archivista does not index runs.
func (k *Keeper) Find(context.Context, store.Run, string) ([]store.Kept, error) {
	return nil, fmt.Errorf("searching Archivista by run: %w; it can be searched by payload and by subject", store.ErrWriteOnly)
}

// FindPayload returns the envelopes with this payload, not verified; none is no
// error. It fails where GraphQL is switched off.
func (k *Keeper) FindPayload(ctx context.Context, payload []byte) ([]store.Kept, error) {
	return k.find(ctx, "hasPayloadDigestsWith", payloadDigest(payload))
}

// FindSubject returns the envelopes whose statements name the subject with this
// digest, sha256:…, not verified; none is no error. It fails where GraphQL is
// switched off, and with store.ErrTooMuch where there are more than it reads.
func (k *Keeper) FindSubject(ctx context.Context, digest string) ([]store.Kept, error) {
	return k.find(ctx, "hasStatementWith", strings.TrimPrefix(digest, "sha256:"))
}

func (k *Keeper) find(ctx context.Context, by, digest string) ([]store.Kept, error) {
	hits, err := k.c.search(ctx, by, []string{digest})
	if err != nil {
		return nil, fmt.Errorf("searching Archivista: %w", err)
	}
	var kept []store.Kept
	for _, h := range hits {
		e, err := k.c.download(ctx, h.gitoid)
		if err != nil {
			return nil, fmt.Errorf("reading %s from Archivista: %w", h.gitoid, err)
		}
		one, err := e.kept()
		if err != nil {
			return nil, fmt.Errorf("reading %s from Archivista: %w", h.gitoid, err)
		}
		one.Where = k.c.where(h.gitoid)
		kept = append(kept, one)
	}
	return kept, nil
}

// Close implements store.Keeper.
func (k *Keeper) Close() error {
	k.c.http.CloseIdleConnections()
	return nil
}

func payloadDigest(payload []byte) string {
	sum := sha256.Sum256(payload)
	return hex.EncodeToString(sum[:])
}

// gitoid is the SHA-256 name of a git blob.
func gitoid(data []byte) string {
	h := sha256.New()
	fmt.Fprintf(h, "blob %d\x00", len(data))
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil))
}
