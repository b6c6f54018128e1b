package oci_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

var update = flag.Bool("update", false, "write golden files")

// TestFaults breaks the n-th request of a Put, for every n. Nothing may be
// claimed then, and putting again must complete what is there.
func TestFaults(t *testing.T) {
	for _, status := range []int{http.StatusInternalServerError, http.StatusForbidden} {
		for n := int64(1); ; n++ {
			var count atomic.Int64
			var on atomic.Bool
			reg := storetest.Registry(t, true)
			tr := storetest.Transport(handler(reg, func(w http.ResponseWriter, r *http.Request) bool {
				if !on.Load() || count.Add(1) < n {
					return false
				}
				http.Error(w, "broken", status)
				return true
			}))
			subject := storetest.PushImage(t, tr, registry, "staging/run", "image")
			key := storetest.NewKey(t)
			evidence := func() []store.Evidence {
				return []store.Evidence{storetest.Provenance(t, key, subject, "x"), storetest.Signature(t, key, subject), storetest.Observation(t, key, subject, "x")}
			}
			on.Store(true)
			stored, err := open(t, subject, tr, oci.Options{Attempts: 1, Parallel: 1}).Put(t.Context(), subject, evidence()...)
			if err == nil {
				if n < 15 {
					t.Fatalf("Put took only %d requests", n)
				}
				t.Logf("status %d: Put of 3 pieces takes %d requests", status, n-1)
				break
			}
			var se *oci.StatusError
			if stored != nil || !errors.As(err, &se) || se.Status != status {
				t.Errorf("request %d broken with %d: Put = %v, %v; want the registry's answer and nothing stored", n, status, stored, err)
			}
			on.Store(false)
			if _, err := open(t, subject, tr, oci.Options{}).Put(t.Context(), subject, evidence()...); err != nil {
				t.Errorf("putting again after request %d broke: %v", n, err)
			}
			got := storetest.Payloads(t, open(t, subject, tr, oci.Options{}), subject.Digest)
			if len(got) != 4 {
				t.Errorf("after request %d broke and another try: %d payloads, want provenance, observation and a signature in two forms", n, len(got))
			}
		}
	}
}

// A registry that fails for a moment is asked again.
func TestRetries(t *testing.T) {
	var count atomic.Int64
	tr := storetest.Transport(handler(storetest.Registry(t, true), func(w http.ResponseWriter, r *http.Request) bool {
		if count.Add(1)%3 != 0 {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}))
	subject := store.Subject{}
	for subject.Digest == "" { // the helper's own client does not retry
		count.Store(0)
		subject = storetest.PushImage(t, tr, registry, "staging/run", "image")
	}
	key := storetest.NewKey(t)
	if _, err := open(t, subject, tr, oci.Options{}).Put(t.Context(), subject, storetest.Provenance(t, key, subject, "x")); err != nil {
		t.Fatal(err)
	}
}

// One writer puts its layer between our read and our write; the registry takes
// conditions. The layer must survive.
func TestForeignLayerSurvives(t *testing.T) {
	reg := &conditional{Handler: storetest.Registry(t, true)}
	direct := storetest.Transport(reg)
	subject := storetest.PushImage(t, direct, registry, "staging/run", "image")
	foreign := storetest.NewKey(t)
	tag := "/v2/staging/run/manifests/" + strings.Replace(subject.Digest, ":", "-", 1) + ".att"
	env := storetest.Provenance(t, foreign, subject, "foreign").Envelope

	var done atomic.Bool
	tr := storetest.Transport(handler(reg, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && r.URL.Path == tag && done.CompareAndSwap(false, true) {
			putForeign(t, direct, subject, tag, env)
		}
		return false
	}))
	key := storetest.NewKey(t)
	mine := storetest.Provenance(t, key, subject, "mine")
	if _, err := open(t, subject, tr, oci.Options{}).Put(t.Context(), subject, mine); err != nil {
		t.Fatal(err)
	}
	got := storetest.Payloads(t, open(t, subject, direct, oci.Options{}), subject.Digest)
	if len(got) != 2 {
		t.Errorf("%d payloads (%v, foreign written %t); want the foreign one and ours", len(got), got, done.Load())
	}
}

// Provenance that a Chains or cosign with our key has put into .att already is
// not appended again, though nothing but the payload says so.
func TestForeignLayerIsFound(t *testing.T) {
	tr := storetest.Transport(storetest.Registry(t, true))
	subject := storetest.PushImage(t, tr, registry, "staging/run", "image")
	key := storetest.NewKey(t)
	tag := "/v2/staging/run/manifests/" + strings.Replace(subject.Digest, ":", "-", 1) + ".att"
	putForeign(t, tr, subject, tag, storetest.Provenance(t, key, subject, "x").Envelope)
	if _, err := open(t, subject, tr, oci.Options{}).Put(t.Context(), subject, storetest.Provenance(t, key, subject, "x")); err != nil {
		t.Fatal(err)
	}
	items, err := open(t, subject, tr, oci.Options{}).List(t.Context(), subject.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if len(items) != 2 { // the foreign layer and our referrer
		t.Errorf("%d items; want the layer that was there and a referrer", len(items))
	}
}

func putForeign(t *testing.T, rt http.RoundTripper, subject store.Subject, tag string, env *dsse.Envelope) {
	t.Helper()
	b, err := env.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	send := func(method, path, contentType string, body []byte) {
		req, _ := http.NewRequestWithContext(t.Context(), method, "http://"+registry+path, bytes.NewReader(body))
		req.Header.Set("Content-Type", contentType)
		res, err := rt.RoundTrip(req)
		if err != nil || res.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: %v %v", method, path, res, err)
		}
	}
	config := []byte(`{"rootfs":{}}`)
	for _, blob := range [][]byte{b, config} {
		send(http.MethodPost, "/v2/staging/run/blobs/uploads/?digest="+digestOf(blob), "application/octet-stream", blob)
	}
	send(http.MethodPut, tag, "application/vnd.oci.image.manifest.v1+json", []byte(fmt.Sprintf(
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","annotations":{"keep":"me"},"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"mediaType":"application/vnd.dsse.envelope.v1+json","digest":%q,"size":%d,"data":"a2VlcA=="}]}`,
		digestOf(config), len(config), digestOf(b), len(b))))
}

// TestWritten keeps the manifests that others read as golden files.
func TestWritten(t *testing.T) {
	tr := storetest.Transport(storetest.Registry(t, true))
	subject := storetest.PushImage(t, tr, registry, "staging/run", "image")
	key := storetest.NewKey(t)
	stored, err := open(t, subject, tr, oci.Options{}).Put(t.Context(), subject,
		storetest.Provenance(t, key, subject, "x"), storetest.Signature(t, key, subject), storetest.Observation(t, key, subject, "x"))
	if err != nil {
		t.Fatal(err)
	}
	for name, ref := range map[string]string{
		"att": stored[0].Tag, "sig": stored[1].Tag,
		"referrer-provenance": stored[0].Referrer, "referrer-signature": stored[1].Referrer, "referrer-observation": stored[2].Referrer,
	} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+registry+"/v2/staging/run/manifests/"+ref, nil)
		req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
		res, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		var m any
		if err := json.Unmarshal(body, &m); err != nil {
			t.Fatal(err)
		}
		got, err := json.MarshalIndent(mask(m, ""), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name+".json")
		if *update {
			if err := os.WriteFile(path, append(got, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), string(got)+"\n"); d != "" {
			t.Errorf("%s differs (go test -update writes it): %s", name, d)
		}
	}
}

// mask replaces what depends on a signature, which is never the same twice.
func mask(v any, key string) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = mask(e, k)
		}
		return v
	case []any:
		for i, e := range v {
			v[i] = mask(e, key)
		}
		return v
	case string:
		switch {
		case key == "dev.cosignproject.cosign/signature" && v != "":
			return "«signature»"
		case key == "assay.dev/tag-layer":
			return "«descriptor»"
		case key == "digest" && strings.HasPrefix(v, "sha256:"):
			return "«digest»"
		}
	case float64:
		if key == "size" {
			return "«size»"
		}
	}
	return v
}

// What List cannot read completely it does not read.
func TestListBounds(t *testing.T) {
	tr := storetest.Transport(storetest.Registry(t, true))
	subject := storetest.PushImage(t, tr, registry, "staging/run", "image")
	key := storetest.NewKey(t)
	if _, err := open(t, subject, tr, oci.Options{}).Put(t.Context(), subject,
		storetest.Provenance(t, key, subject, strings.Repeat("x", 5000)), storetest.Signature(t, key, subject)); err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string]oci.Options{"items": {MaxItems: 3}, "bytes in all": {MaxTotalBytes: 6000}} {
		if items, err := open(t, subject, tr, opts).List(t.Context(), subject.Digest); !errors.Is(err, store.ErrTooMuch) || items != nil {
			t.Errorf("%s: %d items, %v; want ErrTooMuch", name, len(items), err)
		}
	}
	items, err := open(t, subject, tr, oci.Options{MaxItemBytes: 4000}).List(t.Context(), subject.Digest)
	if err != nil {
		t.Fatal(err)
	}
	bad := 0
	for _, it := range items {
		if it.Err != nil && it.Content == nil {
			bad++
		}
	}
	if len(items) != 4 || bad != 2 {
		t.Errorf("%d items, %d too large; want 4 and 2", len(items), bad)
	}
}

// A registry that lies about content is found out, piece by piece.
func TestListLies(t *testing.T) {
	reg := storetest.Registry(t, true)
	var victim atomic.Value
	victim.Store("none")
	tr := storetest.Transport(handler(reg, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/blobs/"+victim.Load().(string)) {
			fmt.Fprint(w, "something else")
			return true
		}
		return false
	}))
	subject := storetest.PushImage(t, tr, registry, "staging/run", "image")
	key := storetest.NewKey(t)
	if _, err := open(t, subject, tr, oci.Options{}).Put(t.Context(), subject, storetest.Provenance(t, key, subject, "one")); err != nil {
		t.Fatal(err)
	}
	items, err := open(t, subject, tr, oci.Options{}).List(t.Context(), subject.Digest)
	if err != nil {
		t.Fatal(err)
	}
	victim.Store(items[0].Digest)
	items, err = open(t, subject, tr, oci.Options{}).List(t.Context(), subject.Digest)
	if err != nil || items[0].Err == nil || items[0].Content != nil || items[1].Err != nil {
		t.Errorf("lying registry: %v, %+v", err, items)
	}
}

// A signature's payload that says nothing but which image it is of is known by its
// digest. Any other has to be read.
func TestListPredicted(t *testing.T) {
	reg := storetest.Registry(t, true)
	var blobs atomic.Int64
	tr := storetest.Transport(handler(reg, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			blobs.Add(1)
		}
		return false
	}))
	for _, test := range []struct {
		say, reference string
		annotations    map[string]any
		read           int64
	}{
		{"plain", "", nil, 0},
		{"annotated", "", map[string]any{"creator": "somebody"}, 1},
		{"signed elsewhere", "registry.example.com/other", nil, 1},
	} {
		t.Run(test.say, func(t *testing.T) {
			subject := storetest.PushImage(t, tr, registry, "staging/run", test.say)
			reference := test.reference
			if reference == "" {
				reference = subject.Repo
			}
			payload, err := simplesigning.New(reference, subject.Digest)
			if err != nil {
				t.Fatal(err)
			}
			if test.annotations != nil {
				optional, err := json.Marshal(test.annotations)
				if err != nil {
					t.Fatal(err)
				}
				payload = bytes.Replace(payload, []byte(`"optional":null`), append([]byte(`"optional":`), optional...), 1)
			}
			pushTag(t, tr, subject, ".sig", simplesigning.MediaType, payload)
			blobs.Store(0)
			items, err := open(t, subject, tr, oci.Options{}).List(t.Context(), subject.Digest)
			if err != nil || len(items) != 1 || items[0].Err != nil {
				t.Fatalf("%+v, %v; want one", items, err)
			}
			if diff := cmp.Diff(string(payload), string(items[0].Content)); diff != "" || blobs.Load() != test.read {
				t.Errorf("%d blobs were read, want %d; payload (-want +got):\n%s", blobs.Load(), test.read, diff)
			}
		})
	}
}

// pushTag makes cosign's tag of an image, with one layer.
func pushTag(t *testing.T, rt http.RoundTripper, subject store.Subject, suffix string, mediaType types.MediaType, content []byte) {
	t.Helper()
	repo, err := name.NewRepository(subject.Repo)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), mutate.Addendum{Layer: static.NewLayer(content, mediaType)})
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(repo.Tag(strings.Replace(subject.Digest, ":", "-", 1)+suffix), img, remote.WithTransport(rt)); err != nil {
		t.Fatal(err)
	}
}

func TestListUnreachable(t *testing.T) {
	for _, path := range []string{".sig", ".att", "/referrers/", "/blobs/"} {
		reg := storetest.Registry(t, true)
		var on atomic.Bool
		tr := storetest.Transport(handler(reg, func(w http.ResponseWriter, r *http.Request) bool {
			if !on.Load() || !strings.Contains(r.URL.Path, path) {
				return false
			}
			w.WriteHeader(http.StatusBadGateway)
			return true
		}))
		subject := storetest.PushImage(t, tr, registry, "staging/run", "image")
		key := storetest.NewKey(t)
		if _, err := open(t, subject, tr, oci.Options{}).Put(t.Context(), subject, storetest.Signature(t, key, subject)); err != nil {
			t.Fatal(err)
		}
		on.Store(true)
		if items, err := open(t, subject, tr, oci.Options{Attempts: 1}).List(t.Context(), subject.Digest); err == nil || items != nil {
			t.Errorf("%s unreachable: %d items, %v; want an error and nothing", path, len(items), err)
		}
	}
}

func digestOf(b []byte) string { return storetest.Digest(b) }
