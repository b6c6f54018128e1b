package fetch

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func body(s string) io.ReadCloser { return io.NopCloser(strings.NewReader(s)) }

func TestHTTPS(t *testing.T) {
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "k: w") }))
	defer plain.Close()
	text := "k: v"
	mux := http.NewServeMux()
	mux.HandleFunc("/d.yaml", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
	mux.HandleFunc("/moved/d.yaml", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/d.yaml", http.StatusFound) })
	mux.HandleFunc("/plain.yaml", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL+"/d.yaml", http.StatusFound)
	})
	mux.HandleFunc("/loop.yaml", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop.yaml", http.StatusFound) })
	mux.HandleFunc("/large.yaml", func(w http.ResponseWriter, _ *http.Request) { w.Write(make([]byte, 1001)) })
	mux.HandleFunc("/cut.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "half")
	})
	mux.HandleFunc("/mine.yaml", func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "me" || p != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		io.WriteString(w, "k: mine")
	})
	s := httptest.NewTLSServer(mux)
	defer s.Close()
	t.Setenv("NETRC", t.TempDir()+"/none")
	net := &counter{base: s.Client().Transport}
	cache := t.TempDir()
	o := Options{Cache: cache, Limits: Limits{File: 1000}}
	first, err := fetcher(t, net, o).Fetch(t.Context(), s.URL+"/d.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"d.yaml"}, paths(t, first)); diff != "" {
		t.Error(diff)
	}
	if want := s.URL + "/d.yaml#" + sum([]byte("k: v")); first.Pinned != want {
		t.Errorf("pinned %s, want %s", first.Pinned, want)
	}
	moved, err := fetcher(t, net, o).Fetch(t.Context(), s.URL+"/moved/d.yaml")
	if err != nil || moved.Digest != first.Digest {
		t.Errorf("%v, %v", moved, err)
	}
	if _, err := fetcher(t, net, o).Fetch(t.Context(), strings.Replace(s.URL, "//", "//me:secret@", 1)+"/mine.yaml"); err != nil {
		t.Error(err)
	}
	text = "k: changed"
	changed, err := fetcher(t, net, o).Fetch(t.Context(), s.URL+"/d.yaml")
	if err != nil || changed.Digest == first.Digest {
		t.Errorf("%v, %v", changed, err)
	}
	// What is pinned is had from the cache, and from nobody else.
	net.cut.Store(true)
	again, err := fetcher(t, net, o).Fetch(t.Context(), first.Pinned)
	if err != nil || again.Digest != first.Digest {
		t.Errorf("%v, %v", again, err)
	}
	net.cut.Store(false)
	_, err = fetcher(t, net, Options{}).Fetch(t.Context(), first.Pinned)
	refused(t, err, sum([]byte("k: v")), sum([]byte("k: changed")))
	for address, want := range map[string]string{
		s.URL + "/plain.yaml": "plain http", s.URL + "/loop.yaml": "redirects more than 5 times", s.URL + "/large.yaml": "larger than is read",
		s.URL + "/cut.yaml": "unexpected EOF", s.URL + "/none.yaml": "404", s.URL + "/": "specify a path", s.URL: "specify a path", s.URL + "/mine.yaml": "401",
		s.URL + "/d.yaml#v1": "only sha256", plain.URL + "/d.yaml": "insecure",
	} {
		_, err := fetcher(t, net, o).Fetch(t.Context(), address)
		refused(t, err, want, fmt.Sprintf("%q", address))
	}
}
