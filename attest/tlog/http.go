package tlog

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"assay.dev/assay/store"
)

// Defaults of requests to logs.
const (
	defaultTimeout = 60 * time.Second // a log answers when its next checkpoint is out
	maxAnswer      = 4 << 20
	maxRetryAfter  = time.Hour
)

// endpoint is a log's address and how to reach it.
type endpoint struct {
	name   string // for messages
	base   *url.URL
	client *http.Client
}

// newEndpoint takes http://, https:// and unix:///path/of/socket.
func newEndpoint(address string, rt http.RoundTripper, timeout time.Duration) (*endpoint, error) {
	u, err := url.Parse(strings.TrimRight(address, "/"))
	if err != nil {
		return nil, fmt.Errorf("reading log address %q: %w", address, err)
	}
	e := &endpoint{name: u.Redacted(), base: u}
	switch {
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.RawQuery == "" && u.Fragment == "":
	case u.Scheme == "unix" && u.Host == "" && strings.HasPrefix(u.Path, "/"):
		socket := u.Path
		e.base = &url.URL{Scheme: "http", Host: "log"}
		if rt == nil {
			rt = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				var d net.Dialer
				return d.DialContext(ctx, "unix", socket)
			}}
		}
	default:
		return nil, fmt.Errorf("reading log address %q: want http://HOST, https://HOST or unix:///SOCKET", address)
	}
	if timeout == 0 {
		timeout = defaultTimeout
	}
	e.client = &http.Client{Transport: rt, Timeout: timeout,
		// An upload that is sent elsewhere was not asked for.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return e, nil
}

// answer is what a log said.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do sends a request. Its errors carry a class; any answer at all is none.
func (e *endpoint) do(ctx context.Context, method, path string, header http.Header, body string, limit int64) (*answer, error) {
	u := e.base.JoinPath(path)
	req, err := http.NewRequestWithContext(ctx, method, u.String(), strings.NewReader(body))
	if err != nil {
		return nil, store.As(store.Configuration, fmt.Errorf("asking log %s: %w", e.name, err))
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", "assay")
	res, err := e.client.Do(req)
	if err != nil {
		return nil, store.As(classOfNetwork(err), fmt.Errorf("asking log %s: %w", e.name, err))
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, limit+1))
	if err != nil {
		return nil, store.As(store.Transient, fmt.Errorf("reading log %s: %w", e.name, err))
	}
	if int64(len(data)) > limit {
		return nil, store.As(store.Permanent, fmt.Errorf("reading log %s: an answer of more than %d bytes", e.name, limit))
	}
	return &answer{res.StatusCode, res.Header, data}, nil
}

// fetch is do as Fetch has it, for resources below a path.
func (e *endpoint) fetch(below string) Fetch {
	return func(ctx context.Context, path string, limit int64) ([]byte, error) {
		a, err := e.do(ctx, http.MethodGet, below+"/"+path, nil, "", limit)
		if err != nil {
			return nil, err
		}
		switch a.status {
		case http.StatusOK:
			return a.body, nil
		case http.StatusNotFound:
			return nil, store.As(store.Configuration, fmt.Errorf("reading %s of log %s: %w", path, e.name, fs.ErrNotExist))
		}
		return nil, e.fault(a, "reading "+path)
	}
}

// NewFetch reads a log's resources over HTTP, or over a Unix socket (unix:///PATH).
// It fails for any other address.
func NewFetch(address string, rt http.RoundTripper) (Fetch, error) {
	e, err := newEndpoint(address, rt, 0)
	if err != nil {
		return nil, err
	}
	return e.fetch(""), nil
}

// fault is an answer that is no success, with its class.
func (e *endpoint) fault(a *answer, doing string) error {
	f := &store.Fault{Class: store.Transient}
	hint := ""
	switch s := a.status; {
	case s == http.StatusUnauthorized || s == http.StatusForbidden:
		f.Class, hint = store.Configuration, "; the log does not take entries from us: check token and address"
	// Rekor v1 answers 500 to a body that is larger than it is set to take.
	case s == http.StatusRequestEntityTooLarge || bytes.Contains(a.body[:min(len(a.body), 4096)], []byte("request body too large")):
		f.Class, hint = store.Permanent, "; the record is larger than this log takes (the public Rekor: about 100 kB): use a log of your own, Rekor v2 or one of `assay log serve`, which both take digests only, or make smaller statements"
	case s == http.StatusTooManyRequests || s == http.StatusRequestTimeout || s == http.StatusTooEarly:
		f.RetryAfter = retryAfter(a.header, time.Now())
	case s == http.StatusNotImplemented || s == http.StatusNotFound || s == http.StatusMethodNotAllowed || s >= 300 && s < 400:
		f.Class, hint = store.Configuration, "; is this the log's address, and does it take entries?"
	case s >= 500:
		f.RetryAfter = retryAfter(a.header, time.Now())
	default:
		f.Class = store.Permanent
	}
	f.Err = fmt.Errorf("%s: log %s answers %d %s: %s%s", doing, e.name, a.status, http.StatusText(a.status), excerpt(a.body), hint)
	return f
}

// excerpt is the beginning of an answer, fit for a message.
func excerpt(b []byte) string {
	s := strings.Join(strings.Fields(strings.ToValidUTF8(string(b[:min(len(b), 300)]), "?")), " ")
	if s == "" {
		return "nothing more"
	}
	return s
}

// retryAfter is what the header Retry-After asks for: seconds or a date.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n > 0 {
		return min(time.Duration(min(n, 1<<20))*time.Second, maxRetryAfter)
	}
	if t, err := http.ParseTime(v); err == nil && t.After(now) {
		return min(t.Sub(now), maxRetryAfter)
	}
	return 0
}

// classOfNetwork tells what somebody has to mend from what mends itself.
func classOfNetwork(err error) store.Class {
	var (
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		invalid   x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &dns) && dns.IsNotFound,
		errors.As(err, &authority), errors.As(err, &host), errors.As(err, &invalid),
		errors.Is(err, fs.ErrPermission):
		return store.Configuration
	}
	return store.Transient
}
