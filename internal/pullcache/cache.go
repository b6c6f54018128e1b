package pullcache

import (
	"bytes"
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"assay.dev/assay/store"
)

// Options bound a Cache. The zero value has the defaults.
type Options struct {
	// MaxManifest is the largest manifest or list that is read. Default: 8 MiB.
	MaxManifest int64
	// MaxKept is the largest blob that is kept; larger ones pass through. Default:
	// 4 MiB.
	MaxKept int64
	// MaxTotal bounds what is kept in all; what was longest not asked for goes
	// first. Small answers, such as manifests, and large ones have half of it for
	// themselves, so that blobs that are read once do not drive out manifests that
	// are read again. Default: 16 MiB.
	MaxTotal int64
	// Timeout bounds one request with its body. Default: one minute.
	Timeout time.Duration
	// Retry says how often and when a failed request is tried again.
	Retry Retry
}

// Retry is how failures are tried again: Max further tries, the first after
// Wait, each later one after Factor times as long, with Jitter (a fraction of
// it) added at random, never longer than MaxWait. A registry's Retry-After
// counts instead where it is shorter than MaxWait. The zero value never tries
// again.
type Retry struct {
	Max     int
	Wait    time.Duration
	MaxWait time.Duration
	Factor  float64
	Jitter  float64
}

// Cache is an http.RoundTripper that remembers. Make one with New; it is safe
// for concurrent use.
type Cache struct {
	base http.RoundTripper
	opts Options

	flight   singleflight.Group
	requests atomic.Int64

	mu    sync.Mutex // guards what follows
	kept  map[string]*list.Element
	small shelf
	large shelf
	hosts map[string]bool
}

// shelf has answers in the order that they were asked for.
type shelf struct {
	order *list.List // of *entry, the last asked for first
	size  int64
}

type entry struct {
	key  string
	ans  *answer
	size int64
}

const (
	// maxSmall is the largest answer that counts as small.
	maxSmall = 64 << 10
	// overhead is about what an answer takes beside its body.
	overhead = 256
)

// answer is a response whose body was read.
type answer struct {
	status int
	header http.Header
	body   []byte
}

var _ http.RoundTripper = (*Cache)(nil)

// New makes an empty Cache over base, which is http.DefaultTransport if nil.
func New(base http.RoundTripper, opts Options) *Cache {
	if base == nil {
		base = http.DefaultTransport
	}
	if opts.MaxManifest <= 0 {
		opts.MaxManifest = 8 << 20
	}
	if opts.MaxKept <= 0 {
		opts.MaxKept = 4 << 20
	}
	if opts.MaxTotal <= 0 {
		opts.MaxTotal = 16 << 20
	}
	if opts.Timeout <= 0 {
		opts.Timeout = time.Minute
	}
	return &Cache{base: base, opts: opts, kept: map[string]*list.Element{}, small: shelf{order: list.New()}, large: shelf{order: list.New()}, hosts: map[string]bool{}}
}

// Requests is how many requests went over the wire, redirects and tries
// counted.
func (c *Cache) Requests() int64 { return c.requests.Load() }

// Hosts are the hosts (with port) that were asked for anything of a registry,
// sorted. Where a registry redirects to is not among them.
func (c *Cache) Hosts() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.hosts))
}

// ErrDigest is in the error of what does not match the digest that it was asked
// for by. It is a store.ErrAltered.
var ErrDigest = fmt.Errorf("%w: the registry sent other bytes than the digest says", store.ErrAltered)

// resource is a path of the distribution API: what kind of thing, and which.
var resource = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs|referrers)/([^/]+)$`)

// accept is what every manifest is asked for as, so that answers do not depend
// on who asked first.
var accept = strings.Join([]string{
	"application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json",
	"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
	"application/vnd.docker.distribution.manifest.v1+prettyjws", "application/vnd.docker.distribution.manifest.v1+json",
}, ", ")

// RoundTrip implements http.RoundTripper. What is not a read of the
// distribution API passes through, tried again like the rest.
func (c *Cache) RoundTrip(req *http.Request) (*http.Response, error) {
	m := resource.FindStringSubmatch(req.URL.Path)
	if strings.HasPrefix(req.URL.Path, "/v2/") {
		c.mu.Lock()
		c.hosts[req.URL.Host] = true
		c.mu.Unlock()
	}
	if req.URL.Path == "/v2/" && req.Method == http.MethodGet && req.Header.Get("Authorization") == "" {
		// How a registry wants to be authorised at is asked before each repository.
		m = []string{"", "", "ping", ""}
	}
	if m == nil || req.Header.Get("Range") != "" || req.Method != http.MethodGet && req.Method != http.MethodHead || m[2] == "blobs" && req.Method == http.MethodHead {
		return c.try(req)
	}
	kind, id := m[2], m[3]
	key := req.URL.String()
	if ans := c.find(key); ans != nil {
		return ans.response(req), nil
	}
	if kind == "blobs" {
		return c.blob(req, key, id)
	}
	ch := c.flight.DoChan(key, func() (any, error) { return c.fetch(req, key, kind, id) })
	select {
	case <-req.Context().Done():
		return nil, req.Context().Err()
	case r := <-ch:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*answer).response(req), nil
	}
}

// fetch reads a manifest or a list. It does not end with the request of who
// came first: others wait for it too.
func (c *Cache) fetch(first *http.Request, key, kind, id string) (*answer, error) {
	if ans := c.find(key); ans != nil {
		return ans, nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(first.Context()), c.opts.Timeout)
	defer cancel()
	req := first.Clone(ctx)
	req.Method = http.MethodGet
	if kind == "manifests" {
		req.Header.Set("Accept", accept)
	}
	resp, err := c.try(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	ans, err := c.read(resp, c.opts.MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", req.URL.Redacted(), err)
	}
	if ans.status == http.StatusOK && kind == "manifests" {
		if got := digest(ans.body); isDigest(id) {
			if got != id {
				return nil, fmt.Errorf("reading %s: %w: they have %s", req.URL.Redacted(), ErrDigest, got)
			}
		} else if ans.header.Get("Docker-Content-Digest") == "" {
			ans.header.Set("Docker-Content-Digest", got)
		} else if said := ans.header.Get("Docker-Content-Digest"); isDigest(said) && said != got {
			return nil, fmt.Errorf("reading %s: %w: they have %s, not %s", req.URL.Redacted(), ErrDigest, got, said)
		}
	}
	if ans.status == http.StatusOK || ans.status == http.StatusNotFound || kind == "ping" && ans.status == http.StatusUnauthorized {
		c.keep(key, ans)
	}
	if ans.status == http.StatusOK && kind == "manifests" && !isDigest(id) {
		// What a tag led to is often asked for by its digest next.
		byDigest := *req.URL
		byDigest.Path, byDigest.RawPath = strings.TrimSuffix(byDigest.Path, id)+digest(ans.body), ""
		c.keep(byDigest.String(), ans)
	}
	return ans, nil
}

// blob reads a blob; a small one is checked and kept, a large one passes.
func (c *Cache) blob(req *http.Request, key, id string) (*http.Response, error) {
	v, err, _ := c.flight.Do(key, func() (any, error) {
		if ans := c.find(key); ans != nil {
			return ans, nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(req.Context()), c.opts.Timeout)
		defer cancel()
		resp, err := c.follow(req.Clone(ctx))
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.ContentLength > c.opts.MaxKept {
			return nil, errLarge
		}
		ans, err := c.read(resp, c.opts.MaxKept)
		if errors.Is(err, errLarge) {
			return nil, errLarge
		}
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", req.URL.Redacted(), err)
		}
		if ans.status == http.StatusOK && isDigest(id) {
			if got := digest(ans.body); got != id {
				return nil, fmt.Errorf("reading %s: %w: they have %s", req.URL.Redacted(), ErrDigest, got)
			}
		}
		if ans.status == http.StatusOK || ans.status == http.StatusNotFound {
			c.keep(key, ans)
		}
		return ans, nil
	})
	switch {
	case errors.Is(err, errLarge):
		return c.follow(req)
	case err != nil:
		return nil, err
	}
	return v.(*answer).response(req), nil
}

var errLarge = errors.New("larger than is read at once")

func (c *Cache) read(resp *http.Response, limit int64) (*answer, error) {
	var b bytes.Buffer
	if n := resp.ContentLength; n > 0 && n <= limit {
		b.Grow(int(n) + bytes.MinRead) // what is kept is no larger than it has to be
	}
	if _, err := b.ReadFrom(io.LimitReader(resp.Body, limit+1)); err != nil {
		return nil, err
	}
	body := b.Bytes()
	if int64(len(body)) > limit {
		return nil, fmt.Errorf("%w (%d bytes)", errLarge, limit)
	}
	h := resp.Header.Clone()
	// What follows describes the transfer, not the thing.
	for _, k := range []string{"Connection", "Transfer-Encoding", "Content-Encoding", "Set-Cookie"} {
		h.Del(k)
	}
	return &answer{status: resp.StatusCode, header: h, body: body}, nil
}

func (a *answer) response(req *http.Request) *http.Response {
	h := a.header.Clone()
	h.Set("Content-Length", strconv.Itoa(len(a.body)))
	r := &http.Response{
		Status: fmt.Sprintf("%d %s", a.status, http.StatusText(a.status)), StatusCode: a.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Request: req, ContentLength: int64(len(a.body)), Body: http.NoBody,
	}
	if req.Method != http.MethodHead {
		r.Body = io.NopCloser(bytes.NewReader(a.body))
	}
	return r
}

func (c *Cache) find(key string) *answer {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.kept[key]
	if e == nil {
		return nil
	}
	kept := e.Value.(*entry)
	c.shelf(kept.size).order.MoveToFront(e)
	return kept.ans
}

// shelf is where an answer of a size belongs. It is called with mu held.
func (c *Cache) shelf(size int64) *shelf {
	if size <= maxSmall {
		return &c.small
	}
	return &c.large
}

func (c *Cache) keep(key string, ans *answer) {
	e := &entry{key, ans, int64(len(ans.body)) + overhead}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kept[key] != nil || e.size > c.opts.MaxTotal {
		return
	}
	at := c.shelf(e.size)
	c.kept[key] = at.order.PushFront(e)
	at.size += e.size
	for c.small.size+c.large.size > c.opts.MaxTotal {
		from := &c.small
		if c.large.size > c.opts.MaxTotal/2 {
			from = &c.large
		}
		old := from.order.Remove(from.order.Back()).(*entry)
		delete(c.kept, old.key)
		from.size -= old.size
	}
}

func digest(b []byte) string {
	h := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(h[:])
}

func isDigest(s string) bool { return strings.HasPrefix(s, "sha256:") }
