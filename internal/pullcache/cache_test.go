// The registry in these tests is an HTTP server of the test's own: what matters
// is what goes over the wire, and what a registry that lies or breaks does.
package pullcache_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"assay.dev/assay/internal/pullcache"
)

func digestOf(s string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(s))) }

func get(t *testing.T, c *pullcache.Cache, method, url string) (int, string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

func TestOnce(t *testing.T) {
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		if strings.HasSuffix(r.URL.Path, "/none") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = io.WriteString(w, "content")
	}))
	defer srv.Close()
	for _, path := range []string{"/v2/", "/v2/a/manifests/latest", "/v2/a/manifests/" + digestOf("content"), "/v2/a/blobs/" + digestOf("content"), "/v2/a/referrers/" + digestOf("x"), "/v2/a/manifests/none"} {
		t.Run(path, func(t *testing.T) {
			n.Store(0)
			c := pullcache.New(nil, pullcache.Options{})
			var wg sync.WaitGroup
			for range 20 {
				wg.Go(func() {
					if _, _, err := get(t, c, "GET", srv.URL+path); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if strings.Contains(path, "manifests") {
				if _, body, err := get(t, c, "HEAD", srv.URL+path); err != nil || body != "" {
					t.Errorf("HEAD: %q, %v", body, err)
				}
			}
			if n.Load() != 1 || c.Requests() != 1 {
				t.Errorf("%d requests arrived, %d counted, want 1", n.Load(), c.Requests())
			}
		})
	}
}

func TestLies(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/latest") {
			w.Header().Set("Docker-Content-Digest", digestOf("something else"))
		}
		_, _ = io.WriteString(w, "content")
	}))
	defer srv.Close()
	c := pullcache.New(nil, pullcache.Options{})
	for _, path := range []string{"/v2/a/manifests/" + digestOf("other"), "/v2/a/blobs/" + digestOf("other"), "/v2/a/manifests/latest"} {
		for range 2 {
			if _, _, err := get(t, c, "GET", srv.URL+path); !errors.Is(err, pullcache.ErrDigest) {
				t.Errorf("%s: %v, want ErrDigest", path, err)
			}
		}
	}
}

func TestRetry(t *testing.T) {
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) < 3 {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		_, _ = io.WriteString(w, "at last")
	}))
	defer srv.Close()
	c := pullcache.New(nil, pullcache.Options{Retry: pullcache.Retry{Max: 2, Wait: time.Millisecond, MaxWait: time.Second}})
	if code, body, err := get(t, c, "GET", srv.URL+"/v2/a/manifests/latest"); err != nil || code != 200 || body != "at last" {
		t.Errorf("%d %q %v", code, body, err)
	}
	n.Store(0)
	c = pullcache.New(nil, pullcache.Options{})
	if code, _, err := get(t, c, "GET", srv.URL+"/v2/a/manifests/latest"); err != nil || code != 429 {
		t.Errorf("without retries: %d %v, want 429", code, err)
	}
	// The failure was not kept.
	n.Store(5)
	if code, _, err := get(t, c, "GET", srv.URL+"/v2/a/manifests/latest"); err != nil || code != 200 {
		t.Errorf("after the failure: %d %v", code, err)
	}
}

// What cannot change by itself is not asked for again.
func TestNoRetry(t *testing.T) {
	var n atomic.Int64
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			n.Add(1)
		}
	}
	srv.StartTLS()
	defer srv.Close()
	c := pullcache.New(nil, pullcache.Options{Retry: pullcache.Retry{Max: 3, Wait: time.Millisecond, MaxWait: time.Second}})
	if _, _, err := get(t, c, "GET", srv.URL+"/v2/a/manifests/latest"); err == nil {
		t.Error("a certificate of nobody was believed")
	}
	if n.Load() != 1 {
		t.Errorf("%d connections, want 1", n.Load())
	}
}

func TestRedirect(t *testing.T) {
	var authorised atomic.Bool
	var n atomic.Int64
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		authorised.Store(r.Header.Get("Authorization") != "")
		_, _ = io.WriteString(w, "blob")
	}))
	defer store.Close()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, digestOf("loop")) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return
		}
		http.Redirect(w, r, store.URL+"/elsewhere", http.StatusTemporaryRedirect)
	}))
	defer srv.Close()
	c := pullcache.New(nil, pullcache.Options{})
	for range 2 {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/v2/a/blobs/"+digestOf("blob"), nil)
		req.Header.Set("Authorization", "Bearer x")
		resp, err := c.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "blob" {
			t.Errorf("got %q", b)
		}
	}
	if authorised.Load() {
		t.Error("the credential was sent to another host")
	}
	if n.Load() != 1 {
		t.Errorf("fetched %d times", n.Load())
	}
	if _, _, err := get(t, c, "GET", srv.URL+"/v2/a/blobs/"+digestOf("loop")); err == nil {
		t.Error("endless redirects: no error")
	}
}

func TestBounds(t *testing.T) {
	big := strings.Repeat("x", 2000)
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		_, _ = io.WriteString(w, big)
	}))
	defer srv.Close()
	c := pullcache.New(nil, pullcache.Options{MaxManifest: 1000, MaxKept: 1000})
	if _, _, err := get(t, c, "GET", srv.URL+"/v2/a/manifests/latest"); err == nil {
		t.Error("a manifest above the bound was read")
	}
	if _, body, err := get(t, c, "GET", srv.URL+"/v2/a/blobs/"+digestOf(big)); err != nil || body != big {
		t.Errorf("a blob above what is kept: %d bytes, %v", len(body), err)
	}
	c = pullcache.New(nil, pullcache.Options{MaxTotal: 5000})
	n.Store(0)
	for i := range 4 {
		if _, _, err := get(t, c, "GET", fmt.Sprintf("%s/v2/a/manifests/%d", srv.URL, i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := get(t, c, "GET", srv.URL+"/v2/a/manifests/3"); err != nil || n.Load() != 4 {
		t.Errorf("the last was not kept: %d requests, %v", n.Load(), err)
	}
	if _, _, err := get(t, c, "GET", srv.URL+"/v2/a/manifests/0"); err != nil || n.Load() != 5 {
		t.Errorf("the first was kept above the bound: %d requests, %v", n.Load(), err)
	}
}

// TestByDigest: what a tag led to is not asked for again by its digest.
func TestByDigest(t *testing.T) {
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		_, _ = io.WriteString(w, "content")
	}))
	defer srv.Close()
	c := pullcache.New(nil, pullcache.Options{})
	for _, path := range []string{"/v2/a/manifests/latest", "/v2/a/manifests/" + digestOf("content"), "/v2/b/manifests/" + digestOf("content")} {
		if _, body, err := get(t, c, "GET", srv.URL+path); err != nil || body != "content" {
			t.Fatalf("%s: %q, %v", path, body, err)
		}
	}
	// The other repository may be another's.
	if n.Load() != 2 {
		t.Errorf("%d requests, want 2", n.Load())
	}
}

// TestShelves: blobs do not drive out manifests, nor does either grow without end.
func TestShelves(t *testing.T) {
	var n atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		if strings.Contains(r.URL.Path, "/blobs/") {
			_, _ = io.WriteString(w, strings.Repeat(path.Base(r.URL.Path)[7:17], 20_000))
			return
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	defer srv.Close()
	c := pullcache.New(nil, pullcache.Options{MaxTotal: 1 << 20})
	ask := func(url string) {
		t.Helper()
		if _, _, err := get(t, c, "GET", srv.URL+url); err != nil {
			t.Fatal(err)
		}
	}
	ask("/v2/a/manifests/first")
	for i := range 10 {
		ask(fmt.Sprintf("/v2/a/blobs/unnamed%010d", i)) // no digest, so that nothing is checked
	}
	n.Store(0)
	ask("/v2/a/manifests/first")
	if n.Load() != 0 {
		t.Error("blobs drove out what is small")
	}
	ask("/v2/a/blobs/unnamed0000000000")
	if n.Load() != 1 {
		t.Error("more blobs were kept than the bound allows")
	}
	for i := range 10_000 {
		ask(fmt.Sprintf("/v2/a/manifests/%d", i))
	}
	n.Store(0)
	ask("/v2/a/manifests/first")
	if n.Load() != 1 {
		t.Error("answers without a body are kept without end")
	}
}

// TestLeaver: one who gives up waiting takes nothing from those who still wait.
func TestLeaver(t *testing.T) {
	started, release := make(chan bool), make(chan bool)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(started)
		<-release
		_, _ = io.WriteString(w, "content")
	}))
	defer srv.Close()
	c := pullcache.New(nil, pullcache.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		req, _ := http.NewRequestWithContext(ctx, "GET", srv.URL+"/v2/a/manifests/latest", nil)
		resp, err := c.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		gone <- err
	}()
	<-started
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the one who left: %v", err)
	}
	close(release)
	if _, body, err := get(t, c, "GET", srv.URL+"/v2/a/manifests/latest"); err != nil || body != "content" {
		t.Errorf("the one who stayed: %q, %v", body, err)
	}
}
