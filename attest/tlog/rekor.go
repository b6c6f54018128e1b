package tlog

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"

	"assay.dev/assay/store"
)

// DefaultRekor is the public Rekor, chains-config's default.
const DefaultRekor = "https://rekor.sigstore.dev"

// RekorVersion says which of Rekor's interfaces a log speaks. The words are those
// of assay.transparency.rekor-version.
type RekorVersion string

// Versions. Auto asks the log.
const (
	RekorAuto RekorVersion = "auto"
	Rekor1    RekorVersion = "1"
	Rekor2    RekorVersion = "2"
)

// RekorOptions say how to reach a Rekor log.
type RekorOptions struct {
	// URL, as transparency.url; empty: DefaultRekor.
	URL string
	// Version; empty: auto.
	Version RekorVersion
	// Key is the log's public key as PEM. Without it the key of a v1 log is asked
	// of the log at first use and kept from then on, in PinFile if that is set. A v2
	// log does not give its key away.
	Key []byte
	// PinFile keeps the key across restarts; where it exists, it must match.
	PinFile string
	// ReadURL is where a v2 log's tiles are read, if not below URL/api/v2.
	ReadURL string
	// Transport for the requests; nil: http.DefaultTransport.
	Transport http.RoundTripper
	// Timeout of one request; 0: a minute.
	Timeout time.Duration
}

// Rekor is a Rekor log, v1 or v2. Make one with NewRekor. It is safe for concurrent
// use.
type Rekor struct {
	endpoint *endpoint
	tiles    Tiles // v2's
	pin      string

	mu      sync.Mutex
	version RekorVersion // guarded by mu
	key     *RekorKey    // guarded by mu; nil until it is known
}

var _ Log = (*Rekor)(nil)

// NewRekor makes a client of a Rekor log. It fails for a bad address, key or version;
// the log itself is not asked.
func NewRekor(o RekorOptions) (*Rekor, error) {
	r, err := newRekor(o)
	return r, store.As(store.Configuration, err)
}

func newRekor(o RekorOptions) (*Rekor, error) {
	if o.URL == "" {
		o.URL = DefaultRekor
	}
	e, err := newEndpoint(o.URL, o.Transport, o.Timeout)
	if err != nil {
		return nil, err
	}
	r := &Rekor{endpoint: e, pin: o.PinFile, version: o.Version, tiles: Tiles{e.fetch("api/v2")}}
	switch o.Version {
	case "":
		r.version = RekorAuto
	case RekorAuto, Rekor1, Rekor2:
	default:
		return nil, fmt.Errorf("Rekor version %q is not known; known are auto, 1 and 2", o.Version)
	}
	if o.ReadURL != "" {
		if r.tiles.Fetch, err = NewFetch(o.ReadURL, o.Transport); err != nil {
			return nil, err
		}
	}
	if o.Key != nil {
		k, err := ParseRekorKey(r.endpoint.name, o.Key)
		if err != nil {
			return nil, err
		}
		r.key = &k
	}
	if o.PinFile == "" {
		return r, nil
	}
	pinned, err := os.ReadFile(o.PinFile)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the log's pinned key: %w", err)
	}
	k, err := ParseRekorKey(r.endpoint.name, pinned)
	if err != nil {
		return nil, fmt.Errorf("reading the log's pinned key %s: %w", o.PinFile, err)
	}
	if r.key != nil && r.key.public.Fingerprint() != k.public.Fingerprint() {
		return nil, fmt.Errorf("the configured key of log %s is not the one pinned in %s; remove that file if the log's key has changed", e.name, o.PinFile)
	}
	r.key = &k
	return r, nil
}

// Upload implements Log. To Rekor v1 goes a statement whole, as one entry of kind
// dsse with all signatures; to Rekor v2, and for images, one hashedrekord for each
// signature, in the record's order. An image that is signed as a statement too gets
// entries about that as well, of the same kinds. What the log answers is verified against its
// key before it is returned. An entry that is there already is no error.
//
// Both versions keep digests of messages, and Ed25519 signs whole messages: such
// signatures are refused, but for statements in Rekor v1.
func (r *Rekor) Upload(ctx context.Context, rec store.Record) ([]store.LogEntry, error) {
	if err := rec.Check(); err != nil {
		return nil, store.As(store.Permanent, fmt.Errorf("logging: %w", err))
	}
	version, err := r.detect(ctx)
	if err != nil {
		return nil, err
	}
	key, err := r.logKey(ctx, version)
	if err != nil {
		return nil, err
	}
	signed := SignedOf(rec)
	by := slices.Clone(rec.Signatures)
	for _, s := range imageStatements(rec) {
		by = append(by, rec.Signatures[s.of])
	}
	var out []store.LogEntry
	n := len(rec.Signatures)
	for _, part := range [][2]int{{0, n}, {n, len(signed)}} {
		entries, err := r.uploadAll(ctx, version, key, signed[part[0]:part[1]], by[part[0]:part[1]])
		if err != nil {
			return nil, err
		}
		out = append(out, entries...)
	}
	return out, nil
}

// uploadAll logs the signatures of one payload.
func (r *Rekor) uploadAll(ctx context.Context, version RekorVersion, key RekorKey, signed []Signed, by []store.Signature) ([]store.LogEntry, error) {
	if len(signed) == 0 {
		return nil, nil
	}
	if version == Rekor1 && signed[0].PayloadType == store.PayloadType {
		return r.upload(ctx, key, signed, func() (*rekor.TransparencyLogEntry, error) { return r.addDSSE(ctx, signed, by) })
	}
	var out []store.LogEntry
	for i, s := range signed {
		entries, err := r.upload(ctx, key, signed[i:i+1], func() (*rekor.TransparencyLogEntry, error) {
			if version == Rekor2 {
				return r.addHashed2(ctx, key, s, by[i].Cert)
			}
			return r.addHashed1(ctx, s, by[i].Cert)
		})
		if err != nil {
			return nil, err
		}
		out = append(out, entries...)
	}
	return out, nil
}

// upload adds one entry and checks that it covers all of the signatures.
func (r *Rekor) upload(_ context.Context, key RekorKey, signed []Signed, add func() (*rekor.TransparencyLogEntry, error)) ([]store.LogEntry, error) {
	e, err := add()
	if err != nil {
		return nil, err
	}
	for _, s := range signed {
		if _, err := CheckRekor(e, s, Trust{Rekor: []RekorKey{key}}); err != nil {
			return nil, store.As(store.Configuration, fmt.Errorf("logging: log %s gave an entry that does not hold; is its key the configured or pinned one? %w", r.endpoint.name, err))
		}
	}
	url := fmt.Sprintf("%s/api/v1/log/entries?logIndex=%d", r.endpoint.name, e.GetLogIndex())
	if e.GetInclusionPromise() == nil { // v2 has no entries by index, but bundles of them
		url = fmt.Sprintf("%s/api/v2/tile/entries/%s#%d", r.endpoint.name, tilePath(e.GetLogIndex()/tileWidth), e.GetLogIndex())
	}
	return []store.LogEntry{{URL: url, Rekor: e}}, nil
}

// detect asks the log which version it is, once.
func (r *Rekor) detect(ctx context.Context) (RekorVersion, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.version != RekorAuto {
		return r.version, nil
	}
	a, err := r.endpoint.do(ctx, http.MethodGet, "api/v1/log/publicKey", nil, "", maxAnswer)
	if err != nil {
		return "", err
	}
	if a.status == http.StatusOK {
		r.version = Rekor1
		return r.version, nil
	}
	if a.status != http.StatusNotFound && a.status != http.StatusMethodNotAllowed && a.status != http.StatusNotImplemented {
		return "", r.endpoint.fault(a, "asking for Rekor's version")
	}
	// A v2 server knows the path even where its tiles are served from elsewhere.
	b, err := r.endpoint.do(ctx, http.MethodGet, "api/v2/checkpoint", nil, "", maxAnswer)
	if err != nil {
		return "", err
	}
	if b.status == http.StatusOK || b.status == http.StatusNotImplemented {
		r.version = Rekor2
		return r.version, nil
	}
	if b.status >= 500 || b.status == http.StatusTooManyRequests {
		return "", r.endpoint.fault(b, "asking for Rekor's version")
	}
	return "", store.As(store.Configuration, fmt.Errorf("asking for Rekor's version: %s speaks neither v1 (publicKey: %d) nor v2 (checkpoint: %d); check transparency.url, or set the version", r.endpoint.name, a.status, b.status))
}

// logKey is the log's key: configured, pinned, or now asked for and pinned.
func (r *Rekor) logKey(ctx context.Context, version RekorVersion) (RekorKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.key != nil {
		return *r.key, nil
	}
	if version == Rekor2 {
		return RekorKey{}, store.As(store.Configuration, fmt.Errorf("checking log %s: Rekor v2 gives its key to nobody: configure it (PEM), from the trusted root of who runs the log", r.endpoint.name))
	}
	a, err := r.endpoint.do(ctx, http.MethodGet, "api/v1/log/publicKey", nil, "", maxAnswer)
	if err != nil {
		return RekorKey{}, err
	}
	if a.status != http.StatusOK {
		return RekorKey{}, r.endpoint.fault(a, "asking for the log's key")
	}
	k, err := ParseRekorKey(r.endpoint.name, a.body)
	if err != nil {
		return RekorKey{}, store.As(store.Configuration, fmt.Errorf("asking for the log's key: %w", err))
	}
	if r.pin != "" {
		if err := writeAtomic(r.pin, k.PEM(), 0o644); err != nil {
			return RekorKey{}, store.As(store.Configuration, fmt.Errorf("pinning the log's key: %w", err))
		}
	}
	r.key = &k
	return k, nil
}

// writeAtomic replaces a file as a whole, or leaves it as it was.
func writeAtomic(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".assay-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	for _, step := range []func() error{func() error { return f.Chmod(mode) }, f.Sync, f.Close} {
		if e := step(); err == nil {
			err = e
		}
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Covering returns those of a record's log entries that are about one of its
// signatures: what belongs beside it where each signature is kept by itself, as in
// Sigstore bundles. Nothing is verified.
func Covering(entries []store.LogEntry, s Signed) []store.LogEntry {
	var out []store.LogEntry
	for _, e := range entries {
		if e.Rekor != nil {
			if b, err := parseRekorBody(e.Rekor.GetCanonicalizedBody()); err == nil && b.covers(s) == nil {
				out = append(out, e)
			}
			continue
		}
		p, err := ParseProof(e.Proof)
		if err != nil {
			continue
		}
		if l, err := ParseLeaf(p.Extra); err == nil && l.Covers(s) == nil {
			out = append(out, e)
		}
	}
	return out
}
