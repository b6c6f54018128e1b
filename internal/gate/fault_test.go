package gate

import (
	"bytes"
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

	"assay.dev/assay/api"
	"assay.dev/assay/internal/pullcache"
	"assay.dev/assay/policy"
	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
)

// fault stands before a registry and answers some requests itself.
type fault struct {
	base http.RoundTripper
	do   func(n int, req *http.Request) (*http.Response, error) // nil, nil: the registry answers
	mu   sync.Mutex                                             // guards n
	n    map[string]int
}

func (f *fault) RoundTrip(req *http.Request) (*http.Response, error) {
	f.mu.Lock()
	if f.n == nil {
		f.n = map[string]int{}
	}
	f.n[req.URL.Path]++
	n := f.n[req.URL.Path]
	f.mu.Unlock()
	if resp, err := f.do(n, req); resp != nil || err != nil {
		return resp, err
	}
	return f.base.RoundTrip(req)
}

func says(req *http.Request, status int, body io.Reader, header ...string) *http.Response {
	h := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	return &http.Response{StatusCode: status, Status: fmt.Sprint(status, " ", http.StatusText(status)), Header: h, Body: io.NopCloser(body), ContentLength: -1, Request: req, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
}

// endless is a body without an end; it counts what is read of it.
type endless struct{ n atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	clear(p)
	e.n.Add(int64(len(p)))
	return len(p), nil
}

// cut ends a body midway, as a lost connection does.
type cut struct{ io.Reader }

func (c cut) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// TestRegistryFaults: what a registry can do to us. The image beside it passes all the
// same, and nothing passes that was not seen to.
func TestRegistryFaults(t *testing.T) {
	path := func(part string) func(*http.Request) bool {
		return func(req *http.Request) bool {
			return strings.Contains(req.URL.Path, "/app/ill/") && strings.Contains(req.URL.Path, part)
		}
	}
	status := func(part string, times, code int, header ...string) func(int, *http.Request) (*http.Response, error) {
		is := path(part)
		return func(n int, req *http.Request) (*http.Response, error) {
			if !is(req) || n > times {
				return nil, nil
			}
			return says(req, code, strings.NewReader(`{"errors":[]}`), header...), nil
		}
	}
	const always = 1 << 20
	huge := &endless{}
	for name, tc := range map[string]struct {
		do   func(n int, req *http.Request) (*http.Response, error)
		want string // pass, or in the error or reason
	}{
		"no answer": {func(_ int, req *http.Request) (*http.Response, error) {
			if path("")(req) {
				return nil, errors.New("connection refused")
			}
			return nil, nil
		}, "connection refused"},
		"401":                 {status("", always, 401), "401"},
		"403":                 {status("", always, 403), "403"},
		"404":                 {status("manifests/sha256:", always, 404), "no such artifact"},
		"429 once":            {status("", 1, 429, "Retry-After", "0"), "pass"},
		"429 for ever":        {status("", always, 429, "Retry-After", "0"), "429"},
		"500 once":            {status("", 1, 500), "pass"},
		"500 for ever":        {status("referrers", always, 500), "500"},
		"503 for a signature": {status("blobs", always, 503), "503"},
		"cut once": {func(n int, req *http.Request) (*http.Response, error) {
			if path("blobs")(req) && n == 1 {
				return says(req, 200, cut{strings.NewReader("{")}), nil
			}
			return nil, nil
		}, "pass"},
		"cut always": {func(_ int, req *http.Request) (*http.Response, error) {
			if path("blobs")(req) {
				return says(req, 200, cut{strings.NewReader("{")}), nil
			}
			return nil, nil
		}, "unexpected EOF"},
		"lies about a manifest": {func(_ int, req *http.Request) (*http.Response, error) {
			if path("manifests/sha256:")(req) {
				return says(req, 200, strings.NewReader(`{"schemaVersion":2}`), "Content-Type", imageType, "Docker-Content-Digest", req.URL.Path[strings.LastIndex(req.URL.Path, "/")+1:]), nil
			}
			return nil, nil
		}, "other bytes than the digest says"},
		"lies about a blob": {func(_ int, req *http.Request) (*http.Response, error) {
			if path("blobs/sha256:")(req) {
				return says(req, 200, strings.NewReader("lie")), nil
			}
			return nil, nil
		}, "other bytes than the digest says"},
		"redirects to http": {func(_ int, req *http.Request) (*http.Response, error) {
			if path("blobs/sha256:")(req) {
				r := says(req, 307, http.NoBody, "Location", "ftp://elsewhere.example/x")
				return r, nil
			}
			return nil, nil
		}, "which is not https"},
		"redirects for ever": {func(_ int, req *http.Request) (*http.Response, error) {
			if path("blobs/sha256:")(req) {
				return says(req, 307, http.NoBody, "Location", req.URL.String()), nil
			}
			return nil, nil
		}, "redirects more than"},
		"ten thousand referrers": {func(_ int, req *http.Request) (*http.Response, error) {
			if !path("referrers")(req) {
				return nil, nil
			}
			var list []map[string]any
			for i := range 10_000 {
				list = append(list, map[string]any{"mediaType": imageType, "artifactType": api.MediaTypeBundle, "digest": digestN(i), "size": 1})
			}
			b, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": list})
			return says(req, 200, bytes.NewReader(b), "Content-Type", "application/vnd.oci.image.index.v1+json"), err
		}, "more than"},
		"an attestation without end": {func(_ int, req *http.Request) (*http.Response, error) {
			if path("blobs/sha256:")(req) {
				return says(req, 200, huge), nil
			}
			return nil, nil
		}, "verified"},
		"a list of nonsense": {func(_ int, req *http.Request) (*http.Response, error) {
			if path("referrers")(req) {
				return says(req, 200, strings.NewReader("<html>"), "Content-Type", "application/vnd.oci.image.index.v1+json"), nil
			}
			return nil, nil
		}, "referrers"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			well := r.good("app/well", "1")
			ill := storetest.PushImage(t, r.rt.base, registryName, "app/ill", "2")
			tagged(t, r, ill, r.signature(ill), r.provenance(ill))
			g := r.gate(loadPolicy(t, plain))
			g.Transport, g.Workers = &fault{base: r.rt.base, do: tc.do}, 1
			g.Retry = pullcache.Retry{Max: 2, Wait: time.Millisecond}
			list, n := r.stream(g, policy.Component{Name: "ill", ContainerImage: ill.Ref()}, policy.Component{Name: "well", ContainerImage: well.Ref()})
			if !list[1].Passed() {
				t.Errorf("the one beside it: %+v", list[1])
			}
			if tc.want == "pass" {
				if !list[0].Passed() {
					t.Errorf("%v %+v", list[0].Err, list[0].Verdict)
				}
				return
			}
			said := fmt.Sprint(list[0].Err)
			if v := list[0].Verdict; v != nil && len(v.Violations) > 0 {
				said = v.Violations[0].Msg
			}
			for _, x := range list[0].Rejected {
				said += "\n" + x.Reason
			}
			if n.Passed != 1 || !strings.Contains(said, tc.want) {
				t.Errorf("%+v, %s; want %q", n, said, tc.want)
			}
		})
	}
	if n := huge.n.Load(); n > 2<<30 {
		t.Errorf("%d bytes of an attestation without end were read", n)
	}
}

// TestEvidenceFaults: what can hang on an image. It is refused, by name, and never
// could not be checked: the registry answered.
func TestEvidenceFaults(t *testing.T) {
	elsewhere := func(r *rig, s store.Subject) store.Evidence {
		s.Digest = digestN(7)
		return storetest.Provenance(t, r.key, s, "another")
	}
	raw := func(payload string) func(*rig, store.Subject) []byte {
		return func(r *rig, s store.Subject) []byte {
			e := storetest.Provenance(t, r.key, s, "x")
			b, err := json.Marshal(e.Envelope)
			if err != nil {
				t.Fatal(err)
			}
			return []byte(strings.NewReplacer("PAYLOAD", base64Of(e.Envelope.Payload), "SIG", base64Of(e.Envelope.Signatures[0].Sig), "WHOLE", string(b)).Replace(payload))
		}
	}
	for name, tc := range map[string]struct {
		make func(r *rig, s store.Subject) []byte
		want string
	}{
		"foreign subject": {func(r *rig, s store.Subject) []byte {
			b, _ := json.Marshal(elsewhere(r, s).Envelope) //nolint:errcheck // made here
			return b
		}, "subject"},
		"wrong payload type":  {raw(`{"payloadType":"text/plain","payload":"PAYLOAD","signatures":[{"sig":"SIG"}]}`), "payload"},
		"no statement":        {raw(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"SIG"}]}`), ""},
		"no JSON":             {raw(`<html>`), ""},
		"two payloads":        {raw(`{"payloadType":"application/vnd.in-toto+json","payload":"PAYLOAD","payload":"e30=","signatures":[{"sig":"SIG"}]}`), "payload"},
		"no signature":        {raw(`{"payloadType":"application/vnd.in-toto+json","payload":"PAYLOAD","signatures":[]}`), "signature"},
		"nested":              {raw(strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000)), ""},
		"something behind it": {raw(`WHOLE{}`), ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			s := storetest.PushImage(t, r.rt.base, registryName, "app/ill", "2")
			tagged(t, r, s, r.signature(s))
			pushManifest(t, r, s, tagOf(s, ".att"), layer{api.MediaTypeDSSE, tc.make(r, s), map[string]string{}})
			list, n := r.stream(r.gate(loadPolicy(t, plain)), policy.Component{Name: "ill", ContainerImage: s.Ref()})
			if n.Refused != 1 || list[0].Verdict == nil || list[0].Verdict.Violations[0].Code != CodeProvenance {
				t.Fatalf("%+v %v %+v", n, list[0].Err, list[0].Verdict)
			}
			if why := fmt.Sprint(list[0].Verdict.Violations[0].Details["because"], list[0].Rejected); !strings.Contains(why, tc.want) || len(list[0].Rejected) != 1 {
				t.Errorf("because %s, want %q", why, tc.want)
			}
		})
	}
}

// TestIndex: an index is judged with its images, under Conforma's names for them, and
// what BuildKit lists beside them is said not to be judged.
func TestIndex(t *testing.T) {
	r := newRig(t)
	one, two := r.good("app/multi", "1"), r.image("app/multi", "2")
	raw := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
		{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"amd64"}},
		{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"arm64"}},
		{"mediaType":%q,"digest":%q,"size":%d,"platform":{"os":"unknown","architecture":"unknown"},
		 "annotations":{"vnd.docker.reference.type":"attestation-manifest","vnd.docker.reference.digest":%q}}]}`,
		imageType, one.Digest, one.Size, imageType, two.Digest, two.Size, imageType, r.image("app/multi", "att").Digest, two.Size, one.Digest)
	send(t, r, http.MethodPut, "http://"+registryName+"/v2/app/multi/manifests/index", "application/vnd.oci.image.index.v1+json", []byte(raw))
	list, n := r.stream(r.gate(loadPolicy(t, plain)), policy.Component{Name: "multi", ContainerImage: registryName + "/app/multi:index"})
	if n != (Outcome{Passed: 1, Refused: 2}) || len(list) != 3 {
		t.Fatalf("%+v %v", n, states(list))
	}
	for i, want := range []string{"multi", "multi-" + one.Digest + "-amd64", "multi-" + two.Digest + "-arm64"} {
		if list[i].Component != want {
			t.Errorf("component %d is called %s", i, list[i].Component)
		}
	}
	if len(list[0].Aside) != 1 || list[1].Parent != "multi" {
		t.Errorf("%+v", list[0].Aside)
	}
	// An index whose child is unsigned does not pass, whoever signed the index.
	j, err := r.gate(loadPolicy(t, plain)).Judge(t.Context(), registryName+"/app/multi:index")
	if err != nil || j.Passed() || j.Unchecked() || len(j.Digests) != 3 {
		t.Errorf("%+v, %v", j, err)
	}
}
