package pullcache

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// try sends a request, and again while its failure may pass. Only requests
// without a body can be sent twice.
func (c *Cache) try(req *http.Request) (*http.Response, error) {
	wait := c.opts.Retry.Wait
	for n := 0; ; n++ {
		c.requests.Add(1)
		resp, err := c.base.RoundTrip(req)
		if n >= c.opts.Retry.Max || req.Body != nil && req.Body != http.NoBody || !passing(resp, err) {
			return resp, err
		}
		pause := wait
		if j := c.opts.Retry.Jitter; j > 0 && pause > 0 {
			pause += time.Duration(j * rand.Float64() * float64(pause))
		}
		if resp != nil {
			if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 && time.Duration(s)*time.Second <= c.opts.Retry.MaxWait {
				pause = time.Duration(s) * time.Second
			}
			_, _ = io.CopyN(io.Discard, resp.Body, 4<<10)
			resp.Body.Close()
		}
		if most := c.opts.Retry.MaxWait; most > 0 && pause > most {
			pause = most
		}
		if f := c.opts.Retry.Factor; f > 1 {
			wait = time.Duration(float64(wait) * f)
		}
		if err := sleep(req.Context(), pause); err != nil {
			return nil, err
		}
	}
}

// passing says whether a failure may be gone at the next try.
func passing(resp *http.Response, err error) bool {
	if err != nil {
		// A registry on this machine is tried with https first, and may speak http.
		// A certificate that is not believed will not be at the next try.
		var plain tls.RecordHeaderError
		var certificate *tls.CertificateVerificationError
		return !errors.As(err, &plain) && !errors.As(err, &certificate) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// maxRedirects is how often a registry may send us on for one blob.
const maxRedirects = 5

// follow sends a request for a blob and goes where the registry sends it,
// without the credentials as soon as that is another host, and never from https
// to http.
func (c *Cache) follow(req *http.Request) (*http.Response, error) {
	for n := 0; ; n++ {
		resp, err := c.try(req)
		if err != nil {
			return nil, err
		}
		to := resp.Header.Get("Location")
		if resp.StatusCode < 300 || resp.StatusCode >= 400 || to == "" {
			return resp, nil
		}
		resp.Body.Close()
		if n == maxRedirects {
			return nil, fmt.Errorf("reading %s: the registry redirects more than %d times", req.URL.Redacted(), maxRedirects)
		}
		u, err := req.URL.Parse(to)
		if err != nil {
			return nil, fmt.Errorf("reading %s: the registry redirects to %q: %w", req.URL.Redacted(), to, err)
		}
		if u.Scheme != "https" && !(u.Scheme == "http" && req.URL.Scheme == "http") {
			return nil, fmt.Errorf("reading %s: the registry redirects to %s, which is not https", req.URL.Redacted(), u.Redacted())
		}
		next := req.Clone(req.Context())
		next.URL, next.Host = u, ""
		if !strings.EqualFold(u.Host, req.URL.Host) {
			next.Header.Del("Authorization")
			next.Header.Del("Cookie")
		}
		req = next
	}
}
