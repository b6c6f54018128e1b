package oci_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// served is a registry on loopback: olareg or go-containerregistry's, both real,
// behind a gate that counts, and breaks what a test wants broken.
type served struct {
	addr   string
	count  atomic.Int64
	answer atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]

	mu     sync.Mutex
	images []string // guarded by mu
	asked  []string // guarded by mu; requests since reset
}

// serve starts a registry, which stops with the test.
func serve(t testing.TB, h http.Handler) *served {
	t.Helper()
	s := &served{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.count.Add(1)
		s.mu.Lock()
		s.asked = append(s.asked, r.Method+" "+r.URL.Path)
		s.mu.Unlock()
		if f := s.answer.Load(); f != nil && (*f)(w, r) {
			return
		}
		h.ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // olareg writes some headers twice
	server.Start()
	t.Cleanup(server.Close)
	s.addr = strings.TrimPrefix(server.URL, "http://")
	return s
}

func (s *served) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count.Store(0)
	s.asked = nil
}

func (s *served) requests() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.asked, "\n")
}

// break answers requests itself where f does; nil mends.
func (s *served) breaks(f func(http.ResponseWriter, *http.Request) bool) {
	if f == nil {
		s.answer.Store(nil)
		return
	}
	s.answer.Store(&f)
}

func (s *served) image(t testing.TB, path, say string) string {
	t.Helper()
	subject := storetest.PushImage(t, &http.Transport{DisableKeepAlives: true}, s.addr, path, say)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images = append(s.images, subject.Ref())
	return subject.Ref()
}

func (s *served) all(context.Context, store.Run) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.images...), nil
}

func (s *served) keeper(t testing.TB, opts oci.KeeperOptions) *oci.Keeper {
	t.Helper()
	opts.Images = s.all
	k, err := oci.NewKeeper(opts)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func refuse(code int, said string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool { http.Error(w, said, code); return true }
}

const largest = 300_000

// keepers are the suite's hooks for a registry.
func keepers(h func(t testing.TB) http.Handler, opts oci.KeeperOptions) func(t *testing.T) storetest.Keepers {
	return func(t *testing.T) storetest.Keepers {
		inner := h(t)
		s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ContentLength > largest {
				http.Error(w, "too large", http.StatusRequestEntityTooLarge)
				return
			}
			inner.ServeHTTP(w, r)
		}))
		opts := opts
		if opts.Repository != "" {
			opts.Repository = s.addr + "/" + opts.Repository
		}
		bundles := opts.Encoding == oci.EncodingBundle
		return storetest.Keepers{
			Open:            func(t testing.TB) store.Keeper { return s.keeper(t, opts) },
			Image:           func(t testing.TB, say string) string { return s.image(t, "team/app", say) },
			ImagesOnly:      true,
			ImageStatements: bundles,
			NoChains:        bundles,
			TooLarge:        largest,
			Down: func(on bool) {
				if s.breaks(nil); on {
					s.breaks(refuse(http.StatusServiceUnavailable, "down"))
				}
			},
			Deny: func(on bool) {
				if s.breaks(nil); on {
					s.breaks(refuse(http.StatusForbidden, `{"errors":[{"code":"DENIED"}]}`))
				}
			},
		}
	}
}

func olareg(t testing.TB) http.Handler { return storetest.Registry(t, true) }

func googles(testing.TB) http.Handler {
	return ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)), ggcr.WithReferrersSupport(true))
}

// apart is long enough for a slow machine; see KeeperOptions.Settle.
const apart = 300 * time.Millisecond

func TestKeeperOlareg(t *testing.T) {
	t.Parallel()
	storetest.RunKeeper(t, keepers(olareg, oci.KeeperOptions{Settle: apart}))
}

func TestKeeperGoogles(t *testing.T) {
	t.Parallel()
	storetest.RunKeeper(t, keepers(googles, oci.KeeperOptions{Settle: apart}))
}

func TestKeeperConditional(t *testing.T) {
	t.Parallel()
	storetest.RunKeeper(t, keepers(func(t testing.TB) http.Handler { return &conditional{Handler: olareg(t)} }, oci.KeeperOptions{Rounds: 40}))
}

func TestKeeperRepository(t *testing.T) {
	t.Parallel()
	storetest.RunKeeper(t, keepers(func(t testing.TB) http.Handler { return &conditional{Handler: olareg(t)} }, oci.KeeperOptions{Rounds: 40, Repository: "evidence/all"}))
}

func TestKeeperBundles(t *testing.T) {
	t.Parallel()
	storetest.RunKeeper(t, keepers(func(t testing.TB) http.Handler { return &serial{Handler: olareg(t)} }, oci.KeeperOptions{Encoding: oci.EncodingBundle}))
}

func TestKeeperBundlesReferrersTag(t *testing.T) {
	t.Parallel()
	storetest.RunKeeper(t, keepers(func(t testing.TB) http.Handler {
		return &conditional{Handler: storetest.Registry(t, false)}
	}, oci.KeeperOptions{Encoding: oci.EncodingBundle, Rounds: 40}))
}

// work is what one PipelineRun of the benchmark leaves to keep: six images, their
// signatures, and a statement about all of them.
func work(t testing.TB, images []string, size int, s *storetest.RecordSigner) []store.Record {
	t.Helper()
	run := storetest.NewRun("PipelineRun")
	var subjects []intoto.Subject
	for _, i := range images {
		subjects = append(subjects, storetest.ImageSubject(i))
	}
	records := []store.Record{storetest.StatementRecord(t, run, strings.Repeat("x", size), subjects, s)}
	for _, i := range images {
		records = append(records, storetest.ImageRecord(t, run, i, s))
	}
	return records
}

// separate ignores the digest on a POST, as registries do that take no blob in one
// request.
func separate(_ http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodPost {
		r.URL.RawQuery = ""
		r.Body, r.ContentLength = http.NoBody, 0
	}
	return false
}

// TestRequests holds the firm target: 45 requests for the 12 objects of a
// PipelineRun with six images, and what it takes elsewhere. Six images in six
// repositories of a registry that ignores conditional writes are 48: for each of 12
// tags a read, a write and a look again, and 12 blobs, of which none can be left out:
// the read and the look are what keeps concurrent writers from losing anything.
func TestRequests(t *testing.T) {
	same := func(int) string { return "team/app" }
	own := func(i int) string { return fmt.Sprint("team/app-", i) }
	for _, tc := range []struct {
		name              string
		registry          http.Handler
		path              func(i int) string
		opts              oci.KeeperOptions
		breaks            func(http.ResponseWriter, *http.Request) bool
		first, next, last int64
	}{
		{"olareg, one repository", olareg(t), same, oci.KeeperOptions{}, nil, 45, 44, 43},
		{"go-containerregistry's, one repository", googles(t), same, oci.KeeperOptions{}, nil, 45, 44, 43},
		{"conditional writes honoured, one repository", &conditional{Handler: olareg(t)}, same, oci.KeeperOptions{}, nil, 45, 44, 31},
		{"conditional writes honoured, six repositories", &conditional{Handler: olareg(t)}, own, oci.KeeperOptions{}, nil, 55, 49, 36},
		{"two requests a blob, one repository", olareg(t), same, oci.KeeperOptions{}, separate, 53, 51, 50},
		{"six repositories", olareg(t), own, oci.KeeperOptions{}, nil, 55, 49, 48},
		{"bundles, one repository", olareg(t), same, oci.KeeperOptions{Encoding: oci.EncodingBundle}, nil, 39, 37, 37},
		{"bundles, six repositories", olareg(t), own, oci.KeeperOptions{Encoding: oci.EncodingBundle}, nil, 49, 42, 42},
		{"bundles, no referrers API, one repository", storetest.Registry(t, false), same, oci.KeeperOptions{Encoding: oci.EncodingBundle}, nil, 57, 49, 49},
		{"bundles, no referrers API, six repositories", storetest.Registry(t, false), own, oci.KeeperOptions{Encoding: oci.EncodingBundle}, nil, 67, 54, 54},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t, tc.registry)
			k := s.keeper(t, tc.opts)
			defer k.Close()
			signer := storetest.NewRecordSigner(t)
			for round, most := range []int64{tc.first, tc.next, tc.last, tc.last} {
				var images []string
				for i := range 6 {
					images = append(images, s.image(t, tc.path(i), fmt.Sprint("run ", round, " image ", i)))
				}
				records := work(t, images, 80_000, signer)
				s.reset()
				s.breaks(tc.breaks)
				for i, o := range k.Keep(t.Context(), records) {
					if o.Err != nil {
						t.Fatalf("record %d: %v", i, o.Err)
					}
				}
				s.breaks(nil)
				t.Logf("PipelineRun %d: %d requests", round+1, s.count.Load())
				if n := s.count.Load(); n > most {
					t.Errorf("PipelineRun %d took %d requests; want %d at most:\n%s", round+1, n, most, s.requests())
				}
			}
		})
	}
}
