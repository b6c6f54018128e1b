package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// RemoteOptions say how registries are reached. The zero value works: default
// transport, the user's docker credentials, no mirrors.
type RemoteOptions struct {
	// Transport is asked for each registry host ("docker.io",
	// "localhost:5055"); nil, or a nil answer, means a default of our own. It is
	// how the embedded registry's Unix socket is reached by its name.
	Transport func(host string) http.RoundTripper
	// Mirrors are tried in order before the host itself, for reading only. A
	// mirror is a host, or host/prefix. Content read by tag is as the first
	// mirror that answers has it.
	Mirrors map[string][]string
	// Keychain has the credentials. Default: docker's configuration file and
	// credential helpers, $DOCKER_CONFIG heeded. A mirror gets its own
	// credentials, never those of the host it stands for.
	Keychain authn.Keychain
	// Insecure hosts are spoken to in plain HTTP. For localhost and other
	// private names both are tried, HTTPS first.
	Insecure []string
	// Bounds on what is read.
	Bounds Bounds
	// Attempts at a request that failed on the way or with 408, 429 or 5xx.
	// Default 3.
	Attempts int
	// RetryDelay is the wait after the first failure, three times as long after
	// each further one. Default 300 ms.
	RetryDelay time.Duration
	// Idle is how long a registry may send and take nothing. Default 1 minute.
	Idle time.Duration
}

func (o *RemoteOptions) insecure(host string) bool { return slices.Contains(o.Insecure, host) }

// Remote talks to registries. It is safe for concurrent use and keeps
// connections and tokens.
type Remote struct {
	opts     RemoteOptions
	fallback http.RoundTripper

	mu      sync.Mutex
	clients map[clientKey]*http.Client // guarded by mu
}

type clientKey struct {
	repo string
	push bool
}

// NewRemote checks the options. It does no request.
func NewRemote(o RemoteOptions) (*Remote, error) {
	var err error
	if o.Bounds, err = o.Bounds.withDefaults(); err != nil {
		return nil, err
	}
	if o.Keychain == nil {
		o.Keychain = authn.DefaultKeychain
	}
	if o.Attempts <= 0 {
		o.Attempts = 3
	}
	if o.RetryDelay <= 0 {
		o.RetryDelay = 300 * time.Millisecond
	}
	if o.Idle <= 0 {
		o.Idle = time.Minute
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 8
	return &Remote{opts: o, fallback: t, clients: map[clientKey]*http.Client{}}, nil
}

// Close drops idle connections of the default transport. Transports that the
// caller passed are the caller's.
func (r *Remote) Close() {
	if t, ok := r.fallback.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

// client authenticates once for a repository. The handshake – asking /v2/ for
// its challenge, fetching a token for it – is go-containerregistry's.
func (r *Remote) client(ctx context.Context, repo name.Repository, push bool) (*http.Client, error) {
	key := clientKey{repo.Name(), push}
	r.mu.Lock()
	c := r.clients[key]
	r.mu.Unlock()
	if c != nil {
		return c, nil
	}
	auth, err := authn.Resolve(ctx, r.opts.Keychain, repo)
	if err != nil {
		return nil, &kinded{ErrUnauthorized, fmt.Errorf("reading credentials for %s: %w", repo.RegistryStr(), err)}
	}
	host := hostOf(repo.Name())
	var rt http.RoundTripper
	if r.opts.Transport != nil {
		rt = r.opts.Transport(host)
	}
	if rt == nil {
		rt = r.fallback
	}
	if r.opts.insecure(host) {
		rt = &plain{host: repo.RegistryStr(), inner: rt}
	}
	scope := transport.PullScope
	if push {
		scope = transport.PushScope
	}
	rt, err = transport.NewWithContext(ctx, repo.Registry, auth, rt, []string{repo.Scope(scope)})
	if err != nil {
		return nil, err
	}
	c = &http.Client{Transport: rt}
	r.mu.Lock()
	r.clients[key] = c
	r.mu.Unlock()
	return c, nil
}

// forget drops a repository's token, which may have expired in the middle of
// an upload, where it cannot be renewed.
func (r *Remote) forget(repo name.Repository, push bool) {
	r.mu.Lock()
	delete(r.clients, clientKey{repo.Name(), push})
	r.mu.Unlock()
}

// plain refuses TLS to one host, so that the attempt at it, which comes first,
// costs nothing and cannot end up anywhere.
type plain struct {
	host  string
	inner http.RoundTripper
}

func (p *plain) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host == p.host && req.URL.Scheme != "http" {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, fmt.Errorf("%s is configured as plain HTTP", p.host)
	}
	return p.inner.RoundTrip(req)
}

// once does one request. Only the listed statuses are no error.
func (r *Remote) once(ctx context.Context, repo name.Repository, push bool, req *http.Request, statuses ...int) (*http.Response, error) {
	w := watch(ctx, r.opts.Idle)
	c, err := r.client(w.ctx, repo, push)
	if err != nil {
		return nil, w.stop(err)
	}
	req = req.WithContext(w.ctx)
	if req.Body != nil {
		req.Body = &watchedBody{ReadCloser: req.Body, w: w, keep: true}
	}
	resp, err := c.Do(req)
	if err != nil {
		return nil, w.stop(err)
	}
	if err := transport.CheckError(resp, statuses...); err != nil {
		resp.Body.Close()
		if te := (*transport.Error)(nil); !errors.As(err, &te) {
			// The status counts even where the page that comes with it is endless.
			err = &transport.Error{StatusCode: resp.StatusCode, Request: resp.Request}
		}
		return nil, w.stop(err)
	}
	resp.Body = &watchedBody{ReadCloser: resp.Body, w: w}
	return resp, nil
}

// url of something below a repository.
func endpoint(repo name.Repository, path string) string {
	return repo.Scheme() + "://" + repo.RegistryStr() + "/v2/" + repo.RepositoryStr() + path
}

// retry calls f until it succeeds, fails for good or was tried often enough.
func (r *Remote) retry(ctx context.Context, f func() error) error {
	delay := r.opts.RetryDelay
	for i := 1; ; i++ {
		err := f()
		if err == nil || i >= r.opts.Attempts || ctx.Err() != nil || !temporary(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(delay):
		}
		delay *= 3
	}
}

// temporary tells failures on the way and overload from answers.
func temporary(err error) bool {
	if te := (*transport.Error)(nil); errors.As(err, &te) {
		return te.StatusCode >= 500 && te.StatusCode != http.StatusNotImplemented ||
			te.StatusCode == http.StatusTooManyRequests || te.StatusCode == http.StatusRequestTimeout
	}
	kind, _ := classify(err, "")
	return kind == ErrUnreachable && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// read does f at each mirror and at last at the origin. What all said is in
// the error; its kind is the origin's.
func (r *Remote) read(ctx context.Context, ref name.Reference, f func(name.Reference) error) error {
	refs, err := r.opts.candidates(ref)
	if err != nil {
		return err
	}
	var mirrors []string
	for i, c := range refs {
		err := r.retry(ctx, func() error { return f(c) })
		if err == nil {
			return nil
		}
		if i < len(refs)-1 && ctx.Err() == nil {
			mirrors = append(mirrors, fmt.Sprintf("mirror %s: %v", c.Name(), err))
			continue
		}
		if len(mirrors) > 0 {
			err = fmt.Errorf("%w; before that, %s", err, strings.Join(mirrors, "; "))
		}
		return fail("reading", c.Name(), err)
	}
	panic("unreachable: candidates is never empty")
}

// readBounded reads a whole body of at most max bytes.
func readBounded(body io.Reader, max int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(body, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > max {
		return nil, bad("more than %d bytes", max)
	}
	return b, nil
}

// contentLength is the announced size, -1 if there is none.
func contentLength(h http.Header) int64 {
	n, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64)
	if err != nil || n < 0 {
		return -1
	}
	return n
}
