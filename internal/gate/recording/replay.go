package recording

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/policy/source"
)

// Recording is a recording that was read back. Make one with Open.
type Recording struct {
	dir      string
	digest   string
	doc      document
	requests map[string]*request
}

// Open reads a recording and checks every byte of it: see the package comment. Want is
// the digest that Close returned, or empty where nobody kept it. It fails on a
// recording that was tampered with, by the name of the file.
func Open(dir, want string) (*Recording, error) {
	r := &Recording{dir: dir, requests: map[string]*request{}}
	if err := r.open(want); err != nil {
		return nil, fmt.Errorf("reading the recording %s: %w", dir, err)
	}
	return r, nil
}

func (r *Recording) open(want string) error {
	raw, err := source.ReadFile(filepath.Join(r.dir, mainFile), maxMain)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w; a recording is what `assay gate --record` leaves, once it has ended", err)
	}
	if err != nil {
		return err
	}
	r.digest = digestOf(raw)
	beside, err := source.ReadFile(filepath.Join(r.dir, digestFile), 4<<10)
	if err != nil {
		return err
	}
	if got := strings.TrimPrefix(r.digest, "sha256:") + "  " + mainFile + "\n"; string(beside) != got {
		return fmt.Errorf("%s was changed since it was recorded: it has %s, and %s says otherwise", mainFile, r.digest, digestFile)
	}
	if want != "" && want != r.digest {
		return fmt.Errorf("it is another recording: %s has %s, not %s", mainFile, r.digest, want)
	}
	if err := strictjson.Check(raw, maxMain); err != nil {
		return fmt.Errorf("%s: %w", mainFile, err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r.doc); err != nil {
		return fmt.Errorf("%s: %w", mainFile, err)
	}
	if r.doc.Format != Format {
		return fmt.Errorf("%s: the format is %q, this program reads %s", mainFile, r.doc.Format, Format)
	}
	return r.check()
}

// check reads all contents, and looks for what is too much.
func (r *Recording) check() error {
	named := map[string]bool{}
	for i := range r.doc.Requests {
		q := &r.doc.Requests[i]
		if r.requests[q.key()] != nil {
			return fmt.Errorf("%s: %s %s stands there twice", mainFile, q.Method, q.URL)
		}
		r.requests[q.key()] = q
		if q.Body != "" {
			named[q.Body] = true
		}
	}
	for _, c := range r.doc.Policy.contents() {
		named[c.Digest] = true
	}
	for d := range named {
		if !digestForm.MatchString(d) {
			return fmt.Errorf("%s: %q is no sha256 digest", mainFile, d)
		}
		f, err := os.Open(r.path(d))
		if err != nil {
			return err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		f.Close()
		if err != nil {
			return err
		}
		if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != d {
			return fmt.Errorf("%s was changed since it was recorded: it has %s", r.path(d), got)
		}
	}
	entries, err := os.ReadDir(filepath.Join(r.dir, blobFolder))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !named["sha256:"+e.Name()] {
			return fmt.Errorf("%s was added since it was recorded", filepath.Join(r.dir, blobFolder, e.Name()))
		}
	}
	return nil
}

// Digest is that of recording.json, as Close returned it.
func (r *Recording) Digest() string { return r.digest }

// Case is what was recorded.
func (r *Recording) Case() Case { return r.doc.Case }

func (r *Recording) path(digest string) string {
	return filepath.Join(r.dir, blobFolder, strings.TrimPrefix(digest, "sha256:"))
}

// blob is a content, checked again.
func (r *Recording) blob(digest string) ([]byte, error) {
	if !digestForm.MatchString(digest) {
		return nil, fmt.Errorf("%q is no sha256 digest", digest)
	}
	b, err := source.ReadFile(r.path(digest), maxInMemory)
	if err != nil {
		return nil, err
	}
	if got := digestOf(b); got != digest {
		return nil, fmt.Errorf("%s was changed since it was recorded: it has %s", r.path(digest), got)
	}
	return b, nil
}

// Tap is a gate's Tap that never asks what is below it: the recording answers.
func (r *Recording) Tap(http.RoundTripper) http.RoundTripper { return r }

// RoundTrip implements http.RoundTripper. What was not asked when the recording was
// made has no answer, and is an error that names it.
func (r *Recording) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		req.Body.Close()
	}
	if err := req.Context().Err(); err != nil {
		return nil, err
	}
	q := r.requests[(&request{Method: req.Method, URL: req.URL.String(), Range: req.Header.Get("Range")}).key()]
	switch {
	case !recorded(req) || q == nil:
		return nil, fmt.Errorf("%s %s is not in the recording; it was not asked for when that was made", req.Method, req.URL.Redacted())
	case q.Error != "":
		return nil, errors.New(q.Error)
	}
	resp := &http.Response{
		Status: fmt.Sprintf("%d %s", q.Status, http.StatusText(q.Status)), StatusCode: q.Status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Request: req, ContentLength: q.Length, Body: http.NoBody,
	}
	for k, v := range q.Header {
		resp.Header[http.CanonicalHeaderKey(k)] = slices.Clone(v)
	}
	if q.Length >= 0 {
		resp.Header.Set("Content-Length", fmt.Sprint(q.Length))
	}
	if req.URL.Path == "/v2/" && q.Status == http.StatusUnauthorized {
		// Nobody has to sign in to a recording.
		resp.Status, resp.StatusCode, resp.ContentLength = "200 OK", http.StatusOK, 0
		return resp, nil
	}
	if req.Method == http.MethodHead || q.Body == "" {
		return resp, nil
	}
	b, err := r.blob(q.Body)
	if err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(&body{bytes.NewReader(b), q.Cut})
	return resp, nil
}

// body ends as the recorded one did.
type body struct {
	*bytes.Reader
	cut string
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF && b.cut == enough {
		return n, errors.New("the recording holds no more of this: nobody read on when it was made")
	}
	if err == io.EOF && b.cut != "" {
		return n, errors.New(b.cut)
	}
	return n, err
}

func digestOf(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}
