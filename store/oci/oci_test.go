package oci_test

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

const registry = "localhost:5055"

// fixed keeps what is written the same from run to run.
func fixed() time.Time { return time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC) }

func open(t *testing.T, subject store.Subject, rt http.RoundTripper, opts oci.Options) *oci.Store {
	t.Helper()
	repo, err := name.NewRepository(subject.Repo)
	if err != nil {
		t.Fatal(err)
	}
	if opts.Now == nil {
		opts.Now = fixed
	}
	return oci.New(repo, rt, opts)
}

func back(rt func(http.Handler) http.RoundTripper, referrers bool) func(t *testing.T) storetest.Back {
	return func(t *testing.T) storetest.Back {
		tr := rt(storetest.Registry(t, referrers))
		subject := storetest.PushImage(t, tr, registry, "staging/run", "image")
		return storetest.Back{Subject: subject, Open: func() store.Store { return open(t, subject, tr, oci.Options{Rounds: 40}) }}
	}
}

// olareg reads, changes and writes its list of referrers without a lock, so two
// referrers written at once can lose one. Serial is what our own registry puts
// before it; TestStoreOneWriter is against olareg as it is.
func TestStore(t *testing.T) {
	storetest.Run(t, back(func(h http.Handler) http.RoundTripper { return storetest.Transport(&serial{Handler: h}) }, true))
}

func TestStoreOneWriter(t *testing.T) {
	b := back(storetest.Transport, true)(t)
	key := storetest.NewKey(t)
	for _, say := range []string{"one", "two"} {
		if _, err := b.Open().Put(t.Context(), b.Subject, storetest.Provenance(t, key, b.Subject, say),
			storetest.Signature(t, key, b.Subject), storetest.Observation(t, key, b.Subject, say)); err != nil {
			t.Fatal(err)
		}
	}
	if got := storetest.Payloads(t, b.Open(), b.Subject.Digest); len(got) != 6 {
		t.Errorf("%d payloads; want 2 provenances, 2 observations and a signature in two forms", len(got))
	}
}

// serial is a registry that takes one manifest at a time.
type serial struct {
	http.Handler
	mu sync.Mutex
}

func (s *serial) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	s.Handler.ServeHTTP(w, r)
}

func TestStoreConditional(t *testing.T) {
	storetest.Run(t, back(func(h http.Handler) http.RoundTripper {
		return storetest.Transport(&conditional{Handler: h})
	}, true))
}

// Without the referrers API the list of referrers is a tag itself, and only
// conditional writes keep concurrent writers apart.
func TestStoreReferrersTag(t *testing.T) {
	storetest.Run(t, back(func(h http.Handler) http.RoundTripper {
		return storetest.Transport(&conditional{Handler: h})
	}, false))
}

// A registry that refuses every conditional write, whatever it says.
func TestStoreMisunderstoodConditions(t *testing.T) {
	tr := storetest.Transport(handler(storetest.Registry(t, true), func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("If-Match") == "" && r.Header.Get("If-None-Match") == "" {
			return false
		}
		w.WriteHeader(http.StatusPreconditionFailed)
		return true
	}))
	subject := storetest.PushImage(t, tr, registry, "staging/run", "image")
	key := storetest.NewKey(t)
	if _, err := open(t, subject, tr, oci.Options{}).Put(t.Context(), subject, storetest.Provenance(t, key, subject, "x")); err != nil {
		t.Fatal(err)
	}
}

// conditional is a registry that honours conditional writes of tags.
type conditional struct {
	http.Handler
	mu sync.Mutex
}

func (c *conditional) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") {
		c.Handler.ServeHTTP(w, r)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if match != "" || none != "" {
		head := r.Clone(r.Context())
		head.Method, head.Body, head.ContentLength = http.MethodHead, http.NoBody, 0
		head.Header = http.Header{} // the condition is ours to judge
		head.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json")
		res, err := storetest.Transport(c.Handler).RoundTrip(head)
		if err != nil {
			panic(err)
		}
		exists := res.StatusCode == http.StatusOK
		if none == "*" && exists || match != "" && match != `"`+res.Header.Get("Docker-Content-Digest")+`"` {
			w.WriteHeader(http.StatusPreconditionFailed)
			return
		}
	}
	c.Handler.ServeHTTP(w, r)
}

// handler is a registry before which f may answer.
func handler(h http.Handler, f func(http.ResponseWriter, *http.Request) bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !f(w, r) {
			h.ServeHTTP(w, r)
		}
	})
}
