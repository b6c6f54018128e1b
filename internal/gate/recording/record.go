package recording

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Recorder writes a recording. Make one with Create; it is safe for concurrent use.
type Recorder struct {
	dir string

	mu       sync.Mutex // guards what follows
	requests map[string]*request
	policy   files
	err      error // the first failure to write
}

// Create begins a recording in a folder, which must be empty or not there.
func Create(dir string) (*Recorder, error) {
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("recording into %s: the folder is not empty; name a new one", dir)
	}
	if err := os.MkdirAll(filepath.Join(dir, blobFolder), 0o755); err != nil {
		return nil, fmt.Errorf("recording: %w", err)
	}
	return &Recorder{dir: dir, requests: map[string]*request{}}, nil
}

// Tap is a gate's Tap: what is read through the result is recorded.
func (r *Recorder) Tap(base http.RoundTripper) http.RoundTripper { return &tap{r, base} }

type tap struct {
	*Recorder
	base http.RoundTripper
}

// Headers of an answer that readers of registries look at. Retry-After is none: a
// recording never makes anybody wait.
var kept = []string{"Content-Type", "Docker-Content-Digest", "Link", "Oci-Filters-Applied", "Location", "Content-Range"}

// recorded says whether a request is for what a verdict is made of; others are how
// one signs in.
func recorded(req *http.Request) bool {
	return strings.HasPrefix(req.URL.Path, "/v2/") && (req.Method == http.MethodGet || req.Method == http.MethodHead)
}

// RoundTrip implements http.RoundTripper.
func (t *tap) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.base.RoundTrip(req)
	if !recorded(req) {
		return resp, err
	}
	out := &request{Method: req.Method, URL: req.URL.String(), Range: req.Header.Get("Range")}
	if err != nil {
		// That the caller gave up says nothing of the registry.
		if !errors.Is(err, context.Canceled) {
			out.Error = err.Error()
			t.add(out)
		}
		return nil, err
	}
	out.Status, out.Length = resp.StatusCode, resp.ContentLength
	for _, k := range kept {
		if v := resp.Header.Values(k); len(v) > 0 {
			if out.Header == nil {
				out.Header = map[string][]string{}
			}
			out.Header[k] = v
		}
	}
	if old := t.has(out.key()); old != nil && old.final() && old.Cut == "" {
		return resp, nil
	}
	if req.Method == http.MethodHead {
		t.add(out)
		return resp, nil
	}
	f, err := os.CreateTemp(t.dir, ".body-*")
	if err != nil {
		t.fail(err)
		return resp, nil
	}
	resp.Body = &tee{from: resp.Body, rec: t.Recorder, out: out, file: f, sum: sha256.New()}
	return resp, nil
}

func (r *Recorder) has(key string) *request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests[key]
}

// add keeps an answer. One that is final is not replaced by a failure, nor a longer
// one by a shorter.
func (r *Recorder) add(q *request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := r.requests[q.key()]
	if old != nil && old.final() && (!q.final() || old.Cut == "" || q.Cut != "" && q.Length < old.Length) {
		return
	}
	r.requests[q.key()] = q
}

func (r *Recorder) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = fmt.Errorf("recording: %w", err)
	}
}

// tee records a body while it is read.
type tee struct {
	from io.ReadCloser
	rec  *Recorder
	out  *request
	file *os.File
	sum  hash.Hash
	n    int64
	cut  string
	ended,
	closed bool
}

func (t *tee) Read(p []byte) (int, error) {
	n, err := t.from.Read(p)
	if n > 0 && t.file != nil {
		t.sum.Write(p[:n])
		t.n += int64(n)
		if _, werr := t.file.Write(p[:n]); werr != nil {
			t.rec.fail(werr)
		}
	}
	switch {
	case err == io.EOF:
		t.ended = true
		t.finish()
	case err != nil:
		t.cut = err.Error()
	}
	return n, err
}

func (t *tee) Close() error {
	if !t.closed {
		t.closed = true
		t.finish()
	}
	return t.from.Close()
}

func (t *tee) finish() {
	if t.file == nil {
		return
	}
	name := t.file.Name()
	err := t.file.Close()
	t.file = nil
	if !t.ended && t.n != t.out.Length {
		t.out.Cut = cmp.Or(t.cut, enough)
	}
	d := "sha256:" + hex.EncodeToString(t.sum.Sum(nil))
	if err == nil {
		err = os.Rename(name, t.rec.path(d))
	}
	if err != nil {
		t.rec.fail(err)
		return
	}
	t.out.Body = d
	t.rec.add(t.out)
}

func (r *Recorder) path(digest string) string {
	return filepath.Join(r.dir, blobFolder, strings.TrimPrefix(digest, "sha256:"))
}

// put keeps bytes.
func (r *Recorder) put(b []byte) (digest string, err error) {
	h := sha256.Sum256(b)
	digest = "sha256:" + hex.EncodeToString(h[:])
	if _, err := os.Stat(r.path(digest)); err == nil {
		return digest, nil
	}
	f, err := os.CreateTemp(r.dir, ".body-*")
	if err != nil {
		return "", fmt.Errorf("recording: %w", err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), r.path(digest))
	}
	if err != nil {
		return "", fmt.Errorf("recording: %w", err)
	}
	return digest, nil
}

// Close writes what the recording is of, and returns its digest: whoever keeps that
// can tell later that nothing was replaced. It fails where anything could not be
// written, and the recording is then none.
func (r *Recorder) Close(c Case) (digest string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return "", r.err
	}
	doc := document{Format: Format, Case: c, Policy: r.policy, Requests: []request{}}
	used := map[string]bool{}
	for _, q := range r.requests {
		doc.Requests = append(doc.Requests, *q)
		used[q.Body] = true
	}
	slices.SortFunc(doc.Requests, func(a, b request) int { return strings.Compare(a.key(), b.key()) })
	slices.SortFunc(doc.Policy.Sources, func(a, b tree) int { return strings.Compare(a.Asked, b.Asked) })
	for _, c := range doc.Policy.contents() {
		used[c.Digest] = true
	}
	if err := r.sweep(used); err != nil {
		return "", fmt.Errorf("recording: %w", err)
	}
	raw, err := json.MarshalIndent(doc, "", " ")
	if err != nil {
		return "", fmt.Errorf("recording: %w", err)
	}
	raw = append(raw, '\n')
	h := sha256.Sum256(raw)
	sum := hex.EncodeToString(h[:])
	if err := os.WriteFile(filepath.Join(r.dir, digestFile), []byte(sum+"  "+mainFile+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("recording: %w", err)
	}
	// Last: without it there is no recording.
	if err := os.WriteFile(filepath.Join(r.dir, mainFile), raw, 0o644); err != nil {
		return "", fmt.Errorf("recording: %w", err)
	}
	return "sha256:" + sum, nil
}

// sweep removes what nothing names: bodies that were replaced, and half-read ones.
func (r *Recorder) sweep(used map[string]bool) error {
	entries, err := os.ReadDir(filepath.Join(r.dir, blobFolder))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !used["sha256:"+e.Name()] {
			if err := os.Remove(filepath.Join(r.dir, blobFolder, e.Name())); err != nil {
				return err
			}
		}
	}
	left, err := filepath.Glob(filepath.Join(r.dir, ".body-*"))
	for _, f := range left {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

func (f *files) contents() []content {
	out := slices.Concat(f.Files, f.Data, f.Resources, f.Keys)
	for _, t := range f.Sources {
		out = append(out, t.Files...)
	}
	return out
}
