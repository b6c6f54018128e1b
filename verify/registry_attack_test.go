package verify_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

// swap answers the nth request for a manifest of the image (and with always every one
// after it) with another image's bytes; digest says whether its headers go along.
type swap struct {
	rt        http.RoundTripper
	of        []string // the names by which the image is asked for
	bytes     []byte
	mediaType string
	nth       int
	always    bool
	headers   string // Docker-Content-Digest of the answer; empty: the swapped bytes' own
	asked     int
}

func (s *swap) RoundTrip(r *http.Request) (*http.Response, error) {
	_, ref, ok := strings.Cut(r.URL.Path, "/manifests/")
	if !ok || !contains(s.of, ref) {
		return s.rt.RoundTrip(r)
	}
	s.asked++
	if s.asked != s.nth && !(s.always && s.asked > s.nth) {
		return s.rt.RoundTrip(r)
	}
	h := http.Header{"Content-Type": {s.mediaType}, "Docker-Content-Digest": {s.headers}, "Content-Length": {fmt.Sprint(len(s.bytes))}}
	if s.headers == "" {
		h.Set("Docker-Content-Digest", storetest.Digest(s.bytes))
	}
	body := io.NopCloser(bytes.NewReader(s.bytes))
	if r.Method == http.MethodHead {
		body = http.NoBody
	}
	return &http.Response{StatusCode: http.StatusOK, Status: "200 OK", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: h, Body: body, ContentLength: int64(len(s.bytes)), Request: r}, nil
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// TestSwap: whichever read of the manifest a registry answers with another image's, and
// whatever its headers claim, evidence is of the signed image and its own bytes, or
// there is none.
func TestSwap(t *testing.T) {
	r := newRig(t)
	key := storetest.NewKey(t)
	r.put(storetest.Provenance(t, key, r.subject, "x"), storetest.Signature(t, key, r.subject))
	good := r.manifest()
	// Another image, that nobody signed.
	evil := bytes.Replace(good, []byte(`"schemaVersion"`), []byte(`"annotations":{"a":"evil"},"schemaVersion"`), 1)
	if bytes.Equal(good, evil) {
		t.Fatal("nothing was changed")
	}
	var m struct{ MediaType string }
	if err := json.Unmarshal(good, &m); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{r.subject.Repo + ":image", r.subject.Ref()} {
		for nth := 1; nth <= 4; nth++ {
			for _, always := range []bool{false, true} {
				for _, headers := range []string{"", r.subject.Digest} {
					s := &swap{rt: r.rt, of: []string{"image", r.subject.Digest}, bytes: evil, mediaType: m.MediaType, nth: nth, always: always, headers: headers}
					e, err := verify.Image(t.Context(), ref, verify.Options{Keys: []verify.Key{bare("k", key)}, Transport: s})
					swapped := s.asked >= nth
					at := fmt.Sprintf("%s, read %d (for good: %t), headers %q", ref, nth, always, headers)
					switch {
					case err != nil && e != nil:
						t.Errorf("%s: evidence beside an error", at)
					case err != nil && !swapped:
						t.Errorf("%s: %v", at, err)
					case err == nil && (e.Digest() != r.subject.Digest || !bytes.Equal(e.Manifest(), good) || e.Ref() != r.subject.Ref()):
						t.Errorf("%s: evidence of %s with the bytes of %s", at, e.Ref(), storetest.Digest(e.Manifest()))
					case err == nil && nth == 1:
						t.Errorf("%s: the first read was swapped and it verified", at)
					}
				}
			}
		}
	}
}

// TestIndexChild: what is signed of an index is not signed of its members, and the other
// way round.
func TestIndexChild(t *testing.T) {
	r := newRig(t)
	key := storetest.NewKey(t)
	repo, err := name.NewRepository(r.subject.Repo)
	if err != nil {
		t.Fatal(err)
	}
	raw := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d,"platform":{"architecture":"amd64","os":"linux"}}]}`,
		types.OCIImageIndex, types.OCIManifestSchema1, r.subject.Digest, len(r.manifest()))
	tag := repo.Tag("multi")
	if err := remote.Put(tag, rawIndex(raw), remote.WithTransport(r.rt)); err != nil {
		t.Fatal(err)
	}
	index := r.subject
	index.Digest, index.MediaType, index.Size = storetest.Digest([]byte(raw)), string(types.OCIImageIndex), int64(len(raw))
	child := r.subject
	r.subject = index
	r.put(storetest.Provenance(t, key, index, "x"), storetest.Signature(t, key, index))
	opts := verify.Options{Keys: []verify.Key{bare("k", key)}, Transport: r.rt}
	e, err := verify.Image(t.Context(), r.subject.Repo+":multi", opts)
	if err != nil || e.Digest() != index.Digest {
		t.Fatalf("the index itself: %v", err)
	}
	var none *verify.NoEvidenceError
	if _, err := verify.Image(t.Context(), child.Ref(), opts); !errors.As(err, &none) {
		t.Errorf("an unsigned member of a signed index: %v; want no evidence", err)
	}
	// Evidence of the index that is hung on the member is about another digest.
	items := r.items()
	r.subject = child
	e, err = verify.Items(child.Ref(), r.manifest(), items, opts)
	if !errors.As(err, &none) || e != nil {
		t.Errorf("the index's evidence for its member: %v", err)
	}
	for _, rejected := range none.Rejected {
		if rejected.Kind != verify.KindOtherArtifact {
			t.Errorf("rejected as %q: %s; want %q", rejected.Kind, rejected.Reason, verify.KindOtherArtifact)
		}
	}
}

// rawIndex is an index as it is.
type rawIndex string

func (r rawIndex) RawManifest() ([]byte, error)        { return []byte(r), nil }
func (r rawIndex) MediaType() (types.MediaType, error) { return types.OCIImageIndex, nil }

// TestForeignReferrer: a registry lists another image's evidence, whose manifests name
// that other image as their subject, as if it hung on this one.
func TestForeignReferrer(t *testing.T) {
	r := newRig(t)
	key := storetest.NewKey(t)
	signed := r.subject
	r.put(storetest.Provenance(t, key, signed, "x"), storetest.Signature(t, key, signed))
	unsigned := storetest.PushImage(t, r.rt, "localhost:5055", "staging/run", "another")
	tag := func(d string) string { return strings.Replace(d, ":", "-", 1) }
	liar := roundTripper(func(req *http.Request) (*http.Response, error) {
		req = req.Clone(req.Context())
		for _, form := range []func(string) string{func(d string) string { return "/referrers/" + d }, func(d string) string { return "/manifests/" + tag(d) }} {
			req.URL.Path = strings.Replace(req.URL.Path, form(unsigned.Digest), form(signed.Digest), 1)
		}
		return r.rt.RoundTrip(req)
	})
	opts := verify.Options{Keys: []verify.Key{bare("k", key)}, Transport: liar}
	if _, err := verify.Image(t.Context(), signed.Ref(), opts); err != nil {
		t.Fatalf("the signed image: %v", err)
	}
	e, err := verify.Image(t.Context(), unsigned.Ref(), opts)
	var none *verify.NoEvidenceError
	if e != nil || !errors.As(err, &none) || len(none.Rejected) == 0 {
		t.Fatalf("the other one: %v; want no evidence, and reasons", err)
	}
	said := false
	for _, rejected := range none.Rejected {
		said = said || strings.Contains(rejected.Reason, "subject")
		t.Log(rejected.Format, rejected.Reason)
	}
	if !said {
		t.Error("no reason says that a referrer's subject is another")
	}
}
