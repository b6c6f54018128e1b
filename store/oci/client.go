package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/store"
)

// StatusError is a registry's answer that was not what the request asked for.
// It is store.ErrNotFound for 404.
type StatusError struct {
	Method string
	URL    string
	Status int
	Body   string // first bytes of what the registry said
	Code   string // the registry's word for it, such as MANIFEST_INVALID; may be empty
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s %s: registry answered %d %s", e.Method, e.URL, e.Status, http.StatusText(e.Status))
	if e.Body != "" {
		s += ": " + e.Body
	}
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		s += " (check the credentials for this repository)"
	}
	return s
}

// Is makes a 404 store.ErrNotFound.
func (e *StatusError) Is(target error) bool {
	return target == store.ErrNotFound && e.Status == http.StatusNotFound
}

// client speaks the few requests of the OCI distribution specification that
// evidence needs. A general library costs twelve requests for an attestation.
type client struct {
	repo     name.Repository
	http     *http.Client
	attempts int
	// noMonolithic is set once the registry has shown that it does not take a
	// blob in one request.
	noMonolithic *atomic.Bool
	// access adds credentials to requests; nil where the transport does, or none
	// are needed.
	access *access
	// patience is the longest pause that a registry can ask for; where it asks
	// for more, the request fails at once. 0: ten seconds are waited at most.
	patience time.Duration
}

type response struct {
	status int
	header http.Header
	body   []byte
	url    *url.URL // after redirects
}

type request struct {
	method string
	url    *url.URL
	header http.Header
	body   []byte
	// limit is how many bytes of the answer are read; beyond it is errTooLarge.
	limit int64
	// accept lists the statuses that are no error.
	accept []int
}

// maxHint is up to where a registry's word on how long an answer is counts for the
// memory that is set aside for it.
const maxHint = 4 << 20

// errTooLarge says that a body exceeds its bound.
var errTooLarge = errors.New("larger than allowed")

func (c *client) url(elem ...string) *url.URL {
	scheme := c.repo.Scheme()
	if c.access != nil {
		scheme = c.access.host.scheme()
	}
	return &url.URL{
		Scheme: scheme,
		Host:   c.repo.RegistryStr(),
		Path:   "/v2/" + c.repo.RepositoryStr() + "/" + strings.Join(elem, "/"),
	}
}

// do sends a request, again where the registry is overloaded, broken for a
// moment or cut the connection. All requests here may be repeated: they read,
// or write content by its digest, or a tag's manifest whose effect is checked
// afterwards.
func (c *client) do(ctx context.Context, r request) (*response, error) {
	var (
		last    error
		renewed bool
	)
	for try := range c.attempts {
		if try > 0 {
			if err := wait(ctx, last, try); err != nil {
				return nil, errors.Join(err, last)
			}
		}
		res, used, err := c.once(ctx, r)
		if c.access != nil && statusOf(err) == http.StatusUnauthorized && !renewed {
			// A token may have run out.
			if renewed = true; c.access.refused(used) {
				res, _, err = c.once(ctx, r)
			}
		}
		if err == nil {
			return res, nil
		}
		last = err
		if ctx.Err() != nil || !temporary(err) || c.patience > 0 && retryAfter(err) > c.patience {
			break
		}
	}
	return nil, last
}

type retryError struct {
	error
	after time.Duration
}

func (e retryError) Unwrap() error { return e.error }

func temporary(err error) bool {
	var re retryError
	return errors.As(err, &re)
}

// retryAfter is the pause that the registry asked for, 0 if it did not.
func retryAfter(err error) time.Duration {
	var re retryError
	if errors.As(err, &re) {
		return re.after
	}
	return 0
}

// statusOf is the status of a registry's refusal, 0 for other errors.
func statusOf(err error) int {
	var se *StatusError
	if errors.As(err, &se) {
		return se.Status
	}
	return 0
}

// wait is 100 ms, doubled with each try, or what the registry asked for, ten
// seconds at most.
func wait(ctx context.Context, last error, try int) error {
	d := 100 * time.Millisecond << min(try-1, 6)
	var re retryError
	if errors.As(last, &re) && re.after > 0 {
		d = re.after
	}
	t := time.NewTimer(min(d, 10*time.Second))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *client) once(ctx context.Context, r request) (_ *response, used credential, _ error) {
	req, err := http.NewRequestWithContext(ctx, r.method, r.url.String(), bytes.NewReader(r.body))
	if err != nil {
		return nil, used, err
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if c.access != nil {
		if used, err = c.access.authorize(ctx, req); err != nil {
			return nil, used, err
		}
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, used, retryError{error: err}
	}
	defer res.Body.Close()
	out := &response{status: res.StatusCode, header: res.Header, url: res.Request.URL}
	for _, s := range r.accept {
		if res.StatusCode != s {
			continue
		}
		if r.method == http.MethodHead || r.limit == 0 {
			// What is left unread costs the connection.
			_, _ = io.CopyN(io.Discard, res.Body, 4096)
			return out, used, nil
		}
		var body bytes.Buffer
		if n := res.ContentLength; n > 0 && n <= min(r.limit, maxHint) {
			body.Grow(int(n) + bytes.MinRead)
		}
		if _, err = body.ReadFrom(io.LimitReader(res.Body, r.limit+1)); err != nil {
			return nil, used, retryError{error: fmt.Errorf("%s %s: reading answer: %w", r.method, r.url.Redacted(), err)}
		}
		out.body = body.Bytes()
		if int64(len(out.body)) > r.limit {
			return nil, used, fmt.Errorf("%s %s: answer is %w (%d bytes)", r.method, r.url.Redacted(), errTooLarge, r.limit)
		}
		return out, used, nil
	}
	se := &StatusError{Method: r.method, URL: withoutQuery(r.url), Status: res.StatusCode}
	if said, err := io.ReadAll(io.LimitReader(res.Body, 4096)); err == nil {
		se.Body, se.Code = message(said), code(said)
	}
	switch res.StatusCode {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		re := retryError{error: se}
		re.after = parseRetryAfter(res.Header.Get("Retry-After"), time.Now())
		return nil, used, re
	}
	return nil, used, se
}

// withoutQuery drops what may hold upload states and signed parameters.
func withoutQuery(u *url.URL) string {
	v := *u
	v.RawQuery = ""
	return v.Redacted()
}

// parseRetryAfter reads seconds or a date (RFC 9110, 10.2.3), an hour at most.
func parseRetryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.Atoi(s); err == nil {
		return time.Duration(min(max(n, 0), 3600)) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return min(max(t.Sub(now), 0), time.Hour)
	}
	return 0
}

// code is the first of the specification's error codes in an answer.
func code(body []byte) string {
	var e struct {
		Errors []struct {
			Code string `json:"code"`
		} `json:"errors"`
	}
	if json.Unmarshal(body, &e) != nil || len(e.Errors) == 0 || len(e.Errors[0].Code) > 64 {
		return ""
	}
	return e.Errors[0].Code
}

// message takes the words out of the specification's error form, or the first
// line of anything else, printable and short.
func message(body []byte) string {
	var e struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	s := string(body)
	if json.Unmarshal(body, &e) == nil && len(e.Errors) > 0 {
		s = strings.TrimSpace(e.Errors[0].Code + " " + e.Errors[0].Message)
	}
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, s)
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return strings.ToValidUTF8(s, "")
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// getBlob returns the blob's bytes, which match its digest.
func (c *client) getBlob(ctx context.Context, digest string, limit int64) ([]byte, error) {
	res, err := c.do(ctx, request{
		method: http.MethodGet, url: c.url("blobs", digest), limit: limit, accept: []int{http.StatusOK},
	})
	if err != nil {
		return nil, err
	}
	if got := digestOf(res.body); got != digest {
		return nil, fmt.Errorf("blob %s: registry gave bytes with digest %s", digest, got)
	}
	return res.body, nil
}

func (c *client) hasBlob(ctx context.Context, digest string, size int64) (bool, error) {
	res, err := c.do(ctx, request{
		method: http.MethodHead, url: c.url("blobs", digest), accept: []int{http.StatusOK, http.StatusNotFound},
	})
	if err != nil {
		return false, err
	}
	length := res.header.Get("Content-Length")
	return res.status == http.StatusOK && (length == "" || length == strconv.FormatInt(size, 10)), nil
}

// putBlob uploads a blob: in one request where the registry takes it so, else
// in two.
func (c *client) putBlob(ctx context.Context, b []byte) error {
	return c.putBlobAs(ctx, digestOf(b), b)
}

// putBlobAs is putBlob where the digest is known.
func (c *client) putBlobAs(ctx context.Context, digest string, b []byte) error {
	header := http.Header{"Content-Type": {"application/octet-stream"}}
	u := c.url("blobs", "uploads", "")
	r := request{method: http.MethodPost, url: u, header: header, accept: []int{http.StatusCreated, http.StatusAccepted}}
	if !c.noMonolithic.Load() {
		r.url = withDigest(u, digest)
		r.body = b
	}
	res, err := c.do(ctx, r)
	var se *StatusError
	if r.body != nil && errors.As(err, &se) && (se.Status == http.StatusBadRequest || se.Status == http.StatusRequestEntityTooLarge || se.Status == http.StatusMethodNotAllowed) {
		c.noMonolithic.Store(true)
		r.url, r.body = u, nil
		res, err = c.do(ctx, r)
	}
	if err != nil {
		return fmt.Errorf("uploading blob %s: %w", digest, err)
	}
	if res.status == http.StatusCreated {
		return nil
	}
	c.noMonolithic.Store(true)
	location, err := res.url.Parse(res.header.Get("Location"))
	if err != nil || res.header.Get("Location") == "" {
		return fmt.Errorf("uploading blob %s: registry gave no usable upload location", digest)
	}
	if _, err := c.do(ctx, request{
		method: http.MethodPut, url: withDigest(location, digest), header: header, body: b, accept: []int{http.StatusCreated},
	}); err != nil {
		return fmt.Errorf("uploading blob %s: %w", digest, err)
	}
	return nil
}

func withDigest(u *url.URL, digest string) *url.URL {
	v := *u
	q := v.Query()
	q.Set("digest", digest)
	v.RawQuery = q.Encode()
	return &v
}

const (
	mediaTypeManifest   = "application/vnd.oci.image.manifest.v1+json"
	mediaTypeIndex      = "application/vnd.oci.image.index.v1+json"
	mediaTypeConfig     = "application/vnd.oci.image.config.v1+json"
	mediaTypeEmpty      = "application/vnd.oci.empty.v1+json"
	mediaTypeDocker     = "application/vnd.docker.distribution.manifest.v2+json"
	mediaTypeDockerList = "application/vnd.docker.distribution.manifest.list.v2+json"
)

var acceptManifests = strings.Join([]string{mediaTypeManifest, mediaTypeIndex, mediaTypeDocker, mediaTypeDockerList}, ", ")

// getManifest returns a manifest by tag or digest with its media type.
func (c *client) getManifest(ctx context.Context, ref string, limit int64) ([]byte, string, error) {
	res, err := c.do(ctx, request{
		method: http.MethodGet, url: c.url("manifests", ref), limit: limit, accept: []int{http.StatusOK},
		header: http.Header{"Accept": {acceptManifests}},
	})
	if err != nil {
		return nil, "", err
	}
	if strings.HasPrefix(ref, "sha256:") {
		if got := digestOf(res.body); got != ref {
			return nil, "", fmt.Errorf("manifest %s: registry gave bytes with digest %s", ref, got)
		}
	}
	return res.body, res.header.Get("Content-Type"), nil
}

// condition says what a tag must be for a manifest to be put there. Registries
// that know conditional requests refuse otherwise; all others ignore it.
type condition struct {
	none   bool
	digest string // of the manifest the tag must have; empty: it must not exist
}

// errChanged says that the registry refused a conditional write.
var errChanged = errors.New("the tag has changed meanwhile")

// putManifest stores a manifest and reports whether the registry keeps the
// list of referrers by itself.
func (c *client) putManifest(ctx context.Context, ref, mediaType string, b []byte, cond condition) (referrers bool, err error) {
	header := http.Header{"Content-Type": {mediaType}}
	switch {
	case cond.none:
	case cond.digest == "":
		header.Set("If-None-Match", "*")
	default:
		header.Set("If-Match", strconv.Quote(cond.digest))
	}
	res, err := c.do(ctx, request{
		method: http.MethodPut, url: c.url("manifests", ref), header: header, body: b,
		accept: []int{http.StatusCreated, http.StatusOK, http.StatusAccepted, http.StatusPreconditionFailed},
	})
	if err != nil {
		return false, fmt.Errorf("storing manifest %s: %w", ref, err)
	}
	if res.status == http.StatusPreconditionFailed {
		return false, errChanged
	}
	return res.header.Get("OCI-Subject") != "", nil
}
