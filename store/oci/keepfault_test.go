package oci_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// mustKeep keeps records and counts the requests anew.
func (s *served) mustKeep(t testing.TB, k *oci.Keeper, records ...store.Record) []store.Outcome {
	t.Helper()
	s.reset()
	out := k.Keep(t.Context(), records)
	for i, o := range out {
		if o.Err != nil {
			t.Fatalf("record %d: %v", i, o.Err)
		}
	}
	return out
}

func (s *served) found(t testing.TB, r store.Record) int {
	t.Helper()
	k := s.keeper(t, oci.KeeperOptions{})
	defer k.Close()
	kept, err := k.Find(t.Context(), r.Run, r.Key)
	if err != nil {
		t.Fatal(err)
	}
	return len(kept)
}

// TestKeeperFaults breaks the n-th request of a Keep and all that follow, for every
// n and several ways to break. Nothing may be claimed that is not there, and keeping
// again must complete what is, and add nothing twice.
func TestKeeperFaults(t *testing.T) {
	ways := map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		class  store.Class
	}{
		"500":  {refuse(http.StatusInternalServerError, "broken"), store.Transient},
		"401":  {refuse(http.StatusUnauthorized, "who are you"), store.Configuration},
		"cut":  {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, store.Transient},
		"late": {cutLate, store.Transient},
	}
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := olareg(t)
			for n := int64(1); ; n++ {
				s := serve(t, reg)
				image := s.image(t, fmt.Sprintf("team/%s-%d", name, n), "x")
				signer := storetest.NewRecordSigner(t)
				run := storetest.NewRun("PipelineRun")
				records := func() []store.Record {
					return []store.Record{
						storetest.StatementRecord(t, run, "x", []intoto.Subject{storetest.ImageSubject(image)}, signer),
						storetest.ImageRecord(t, run, image, signer),
					}
				}
				var count atomic.Int64
				s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
					return count.Add(1) >= n && way.answer(w, r)
				})
				k := s.keeper(t, oci.KeeperOptions{Attempts: 1, Parallel: 1, Settle: time.Millisecond})
				out := k.Keep(t.Context(), records())
				s.breaks(nil)
				k.Close()
				if count.Load() < n {
					if n < 10 {
						t.Fatalf("Keep took only %d requests", n-1)
					}
					return
				}
				for i, o := range out {
					switch {
					case o.Err == nil && s.found(t, records()[i]) != 1:
						t.Errorf("request %d: record %d was claimed and is not there", n, i)
					case o.Err != nil && store.ClassOf(o.Err) != way.class:
						t.Errorf("request %d, record %d: %s: %v; want %s", n, i, store.ClassOf(o.Err), o.Err, way.class)
					}
				}
				k = s.keeper(t, oci.KeeperOptions{Settle: time.Millisecond})
				s.mustKeep(t, k, records()...)
				k.Close()
				for i, r := range records() {
					if found := s.found(t, r); found != 1 {
						t.Errorf("request %d: record %d is there %d times after keeping again; want once", n, i, found)
					}
				}
			}
		})
	}
}

// cutLate begins an answer and cuts the connection.
func cutLate(w http.ResponseWriter, _ *http.Request) bool {
	w.Header().Set("Content-Length", "100")
	w.WriteHeader(http.StatusOK)
	_, _ = io.WriteString(w, "{")
	panic(http.ErrAbortHandler)
}

// A registry that accepts a manifest and loses it is noticed; once is mended, always
// is said.
func TestKeeperLost(t *testing.T) {
	for _, encoding := range []string{oci.EncodingDSSE, oci.EncodingBundle} {
		s := serve(t, olareg(t))
		signer := storetest.NewRecordSigner(t)
		var lose atomic.Int64
		s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/sha256") || lose.Add(-1) < 0 {
				return false
			}
			b, _ := io.ReadAll(r.Body)
			w.Header().Set("Docker-Content-Digest", storetest.Digest(b))
			w.Header().Set("OCI-Subject", "yes")
			w.WriteHeader(http.StatusCreated)
			return true
		})
		k := s.keeper(t, oci.KeeperOptions{Encoding: encoding, Settle: time.Millisecond})
		image := s.image(t, "team/app", "once")
		r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image, signer)
		lose.Store(1)
		s.mustKeep(t, k, r)
		if kept, err := k.Find(t.Context(), r.Run, r.Key); err != nil || len(kept) != 1 {
			t.Errorf("%s: lost once: %d found, %v; want it mended", encoding, len(kept), err)
		}
		image = s.image(t, "team/app", "always")
		lose.Store(1000)
		o := k.Keep(t.Context(), []store.Record{storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image, signer)})[0]
		if o.Err == nil || store.ClassOf(o.Err) != store.Transient || !strings.Contains(o.Err.Error(), "accepted the manifest") {
			t.Errorf("%s: lost always: %+v; want a transient error that says so", encoding, o)
		}
		k.Close()
	}
}

// A writer that has read the tag before we wrote it writes it after. Ours is there
// again, and his too.
func TestKeeperOverwritten(t *testing.T) {
	for _, when := range []string{"before we look", "between reading and writing"} {
		reg := olareg(t)
		s := serve(t, reg)
		image := s.image(t, "staging/run", "image")
		repo, digest, _ := strings.Cut(image, "@")
		subject := store.Subject{Repo: repo, Digest: digest, MediaType: "m", Size: 1}
		tag := "/v2/staging/run/manifests/" + strings.Replace(digest, ":", "-", 1) + ".att"
		env := storetest.Provenance(t, storetest.NewKey(t), subject, "foreign").Envelope
		var done atomic.Bool
		s.breaks(func(_ http.ResponseWriter, r *http.Request) bool {
			trigger := when == "before we look" && r.Method == http.MethodHead
			if r.URL.Path == tag && trigger && done.CompareAndSwap(false, true) {
				putForeign(t, storetest.Transport(reg), subject, tag, env)
			}
			return false
		})
		if when != "before we look" {
			cond := &conditional{Handler: reg}
			s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == tag && r.Method == http.MethodPut && done.CompareAndSwap(false, true) {
					putForeign(t, storetest.Transport(reg), subject, tag, env)
				}
				cond.ServeHTTP(w, r)
				return true
			})
		}
		k := s.keeper(t, oci.KeeperOptions{Settle: time.Millisecond})
		r := storetest.StatementRecord(t, storetest.NewRun("PipelineRun"), "x", []intoto.Subject{storetest.ImageSubject(image)}, storetest.NewRecordSigner(t))
		s.mustKeep(t, k, r)
		s.breaks(nil)
		if layers := tagLayers(t, reg, tag); len(layers) != 2 || !done.Load() {
			t.Errorf("%s: %d layers; want the foreign one and ours", when, len(layers))
		}
		if n := s.found(t, r); n != 1 {
			t.Errorf("%s: ours found %d times", when, n)
		}
		k.Close()
	}
}

func tagLayers(t *testing.T, reg http.Handler, path string) []map[string]any {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+registry+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	res, err := storetest.Transport(reg).RoundTrip(req)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("reading tag: %v %v", res, err)
	}
	var m struct {
		Layers []map[string]any `json:"layers"`
	}
	if err := json.NewDecoder(res.Body).Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m.Layers
}

// What a Chains with our key attached is not attached again, though nothing but the
// payload says that it is the same.
func TestKeeperAfterChains(t *testing.T) {
	reg := olareg(t)
	s := serve(t, reg)
	image := s.image(t, "staging/run", "image")
	repo, digest, _ := strings.Cut(image, "@")
	signer := storetest.NewRecordSigner(t)
	run := storetest.NewRun("PipelineRun")
	record := func() store.Record {
		return storetest.StatementRecord(t, run, "x", []intoto.Subject{storetest.ImageSubject(image)}, signer)
	}
	tag := "/v2/staging/run/manifests/" + strings.Replace(digest, ":", "-", 1) + ".att"
	putForeign(t, storetest.Transport(reg), store.Subject{Repo: repo, Digest: digest}, tag, record().Envelope())
	k := s.keeper(t, oci.KeeperOptions{})
	defer k.Close()
	if o := s.mustKeep(t, k, record())[0]; !o.Existing {
		t.Errorf("%+v; want it existing", o)
	}
	if n := len(tagLayers(t, reg, tag)); n != 1 {
		t.Errorf("%d layers; want the one that was there", n)
	}
	// The same by another key is another attestation.
	if o := s.mustKeep(t, k, storetest.StatementRecord(t, run, "x", []intoto.Subject{storetest.ImageSubject(image)}, storetest.NewRecordSigner(t)))[0]; o.Existing {
		t.Errorf("%+v; want it new", o)
	}
	if n := len(tagLayers(t, reg, tag)); n != 2 {
		t.Errorf("%d layers; want two", n)
	}
}

// One repository that refuses costs the others nothing.
func TestKeeperOneDenied(t *testing.T) {
	s := serve(t, olareg(t))
	signer := storetest.NewRecordSigner(t)
	images := []string{s.image(t, "team/one", "1"), s.image(t, "team/closed", "2"), s.image(t, "team/three", "3")}
	records := work(t, images, 10, signer)
	s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/closed/") {
			w.WriteHeader(http.StatusForbidden)
			return true
		}
		return false
	})
	k := s.keeper(t, oci.KeeperOptions{Settle: time.Millisecond})
	defer k.Close()
	out := k.Keep(t.Context(), records)
	for i, wantErr := range []bool{true, false, true, false} {
		if (out[i].Err != nil) != wantErr || wantErr && store.ClassOf(out[i].Err) != store.Configuration {
			t.Errorf("record %d: %+v; want a configuration error: %t", i, out[i], wantErr)
		}
	}
	s.breaks(nil)
	again := s.mustKeep(t, k, records...)
	for i, existing := range []bool{false, true, false, true} {
		if again[i].Existing != existing {
			t.Errorf("record %d again: %+v; want existing %t", i, again[i], existing)
		}
	}
	if n := s.found(t, records[0]); n != 1 {
		t.Errorf("statement found %d times", n)
	}
}

// What the registry says about waiting reaches whoever tries again.
func TestKeeperRetryAfter(t *testing.T) {
	s := serve(t, olareg(t))
	image := s.image(t, "team/app", "x")
	k := s.keeper(t, oci.KeeperOptions{})
	defer k.Close()
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image, storetest.NewRecordSigner(t))
	for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
		s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/v2/" {
				return false
			}
			w.Header().Set("Retry-After", "120")
			w.WriteHeader(status)
			return true
		})
		o := k.Keep(t.Context(), []store.Record{r})[0]
		var f *store.Fault
		if !errors.As(o.Err, &f) || f.Class != store.Transient || f.RetryAfter != 2*time.Minute {
			t.Errorf("%d: %+v; want transient, to be tried after two minutes", status, o)
		}
	}
}

// Blobs that were swept up after we had noted them go up again.
func TestKeeperSwept(t *testing.T) {
	s := serve(t, olareg(t))
	signer := storetest.NewRecordSigner(t)
	k := s.keeper(t, oci.KeeperOptions{Settle: time.Millisecond})
	defer k.Close()
	s.mustKeep(t, k, storetest.ImageRecord(t, storetest.NewRun("TaskRun"), s.image(t, "team/app", "1"), signer))
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), s.image(t, "team/app", "2"), signer)
	var once sync.Once
	s.breaks(func(w http.ResponseWriter, r *http.Request) (answered bool) {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
			once.Do(func() {
				w.WriteHeader(http.StatusNotFound)
				_, _ = io.WriteString(w, `{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN"}]}`)
				answered = true
			})
		}
		return answered
	})
	s.mustKeep(t, k, r)
	if posts := strings.Count(s.requests(), "POST "); posts != 3 {
		t.Errorf("%d uploads; want the layer, and then layer and config again", posts)
	}
	if n := s.found(t, r); n != 1 {
		t.Errorf("found %d times", n)
	}
}

// What stands in the tag's place and is no image manifest is for a person to mend.
func TestKeeperGarbage(t *testing.T) {
	s := serve(t, olareg(t))
	image := s.image(t, "team/app", "x")
	s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, ".sig") {
			return false
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		_, _ = io.WriteString(w, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
		return true
	})
	k := s.keeper(t, oci.KeeperOptions{})
	defer k.Close()
	o := k.Keep(t.Context(), []store.Record{storetest.ImageRecord(t, storetest.NewRun("TaskRun"), image, storetest.NewRecordSigner(t))})[0]
	if store.ClassOf(o.Err) != store.Configuration {
		t.Errorf("%+v; want a configuration error", o)
	}
}

// A simple signing signature cannot stand in a bundle; upstream puts it there, and
// nobody can verify it.
func TestKeeperBundleNeedsStatement(t *testing.T) {
	s := serve(t, olareg(t))
	k := s.keeper(t, oci.KeeperOptions{Encoding: oci.EncodingBundle})
	defer k.Close()
	r := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), s.image(t, "team/app", "x"), storetest.NewRecordSigner(t))
	r.Signatures[0].Statement = nil
	o := k.Keep(t.Context(), []store.Record{r})[0]
	if store.ClassOf(o.Err) != store.Permanent || !strings.Contains(o.Err.Error(), "dsse") {
		t.Errorf("%+v; want a permanent error that names the remedy", o)
	}
}

func TestKeeperOptions(t *testing.T) {
	for name, opts := range map[string]oci.KeeperOptions{
		"unknown encoding": {Encoding: "jws"}, "bad repository": {Repository: "Not A Repository"},
	} {
		if _, err := oci.NewKeeper(opts); store.ClassOf(err) != store.Configuration {
			t.Errorf("%s: %v; want a configuration error", name, err)
		}
	}
	// Ignored with bundles, as upstream has it.
	if _, err := oci.NewKeeper(oci.KeeperOptions{Repository: "Not A Repository", Encoding: oci.EncodingBundle}); err != nil {
		t.Error(err)
	}
}
