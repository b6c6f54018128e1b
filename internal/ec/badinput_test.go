package ec_test

// The registry in these tests is olareg, a real one in this process; before it stands
// a proxy that does what registries do on bad days.

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/attest"
	"assay.dev/assay/store/storetest"
)

const (
	accessCheck = "builtin.image.accessible"
	sigCheck    = "builtin.image.signature_check"
	attCheck    = "builtin.attestation.signature_check"
	syntaxCheck = "builtin.attestation.syntax_check"
)

// fault answers a request instead of the registry, or says that it does not.
type fault func(w http.ResponseWriter, r *http.Request) bool

// faulty serves a registry behind a proxy with a fault, which is switched on.
type faulty struct {
	url string
	on  atomic.Pointer[fault]
}

func newFaulty(t *testing.T) *faulty {
	t.Helper()
	f, next := &faulty{}, storetest.Registry(t, true)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if on := f.on.Load(); on != nil && (*on)(w, r) {
			return
		}
		next.ServeHTTP(w, r)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	f.url = srv.URL
	return f
}

// could says whether the report has something as not checked.
func could(report map[string]any) (string, bool) {
	add, _ := report["assay"].(map[string]any)
	m, ok := add["couldNotCheck"].(map[string]any)
	return fmt.Sprint(m), ok
}

// status answers requests whose method and path match.
func status(pattern string, code int, header ...string) fault {
	re := regexp.MustCompile(pattern)
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !re.MatchString(r.Method + " " + r.URL.Path) {
			return false
		}
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		return true
	}
}

const (
	evidenceTags = `manifests/sha256-.*\.(sig|att)$`
	referrers    = `referrers/`
)

// TestRegistryFaults: what a registry does on a bad day is a violation that says so,
// with its cause apart from what images are to blame for, and never a pass.
func TestRegistryFaults(t *testing.T) {
	key := storetest.NewKey(t)
	f := newFaulty(t)
	s := stock(t, f.url, "app")
	s.signTag(nil, how{key: key})
	s.attestTag(nil, how{key: key})
	// The blob of the attestation.
	img, err := remote.Image(s.tag.Context().Tag(s.digest.Algorithm + "-" + s.digest.Hex + ".att"))
	must(t, err)
	layers, err := img.Layers()
	must(t, err)
	blob, err := layers[0].Digest()
	must(t, err)
	attestation := "blobs/" + blob.String() + "$"
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, `{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"AA=="}]}`) //nolint:errcheck // the client will notice
	}))
	t.Cleanup(elsewhere.Close)
	with := func(pattern string, answer func(w http.ResponseWriter, r *http.Request)) fault {
		re := regexp.MustCompile(pattern)
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !re.MatchString(r.Method + " " + r.URL.Path) {
				return false
			}
			answer(w, r)
			return true
		}
	}
	var once atomic.Int32
	both := []string{attCheck, sigCheck}
	for name, tt := range map[string]struct {
		fault      fault
		args       []string
		violations []string // nil: it passes
		unchecked  bool
		says       string
	}{
		"nothing":           {nil, nil, nil, false, ""},
		"401 for all":       {status(`.`, 401), nil, []string{accessCheck}, true, "401"},
		"401 for evidence":  {status(evidenceTags, 401), nil, both, true, "401"},
		"403 for evidence":  {status(evidenceTags, 403), nil, both, true, "403"},
		"404 for the image": {status(`manifests/1$`, 404), nil, []string{accessCheck}, false, "404"},
		"404 for evidence":  {status(evidenceTags, 404), nil, both, false, "no signatures found"},
		"404 for the blob":  {status(attestation, 404), nil, []string{attCheck}, false, ""},
		"429 for the image": {status(`manifests/1$`, 429, "Retry-After", "1"), nil, []string{accessCheck}, true, "429"},
		"429 for evidence":  {status(evidenceTags, 429, "Retry-After", "1"), nil, both, true, "429"},
		"429 once": {func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, ".att") || once.Add(1) > 1 {
				return false
			}
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}, []string{"--retry-max-retry", "2"}, nil, false, ""},
		"500 for the image": {status(`manifests/1$`, 500), nil, []string{accessCheck}, true, "500"},
		"500 for evidence":  {status(evidenceTags, 500), nil, both, true, "500"},
		"500 for referrers": {status(referrers, 500), nil, both, true, "500"},
		"500 for the blob":  {status(attestation, 500), nil, both, true, "500"},
		"cut midway": {with(attestation, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, `{"payloadType"`) //nolint:errcheck // it is cut anyway
			panic(http.ErrAbortHandler)
		}), nil, both, true, ""},
		"manifest cut midway": {with(`GET .*sha256-.*\.att$`, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, `{"schemaVersion"`) //nolint:errcheck // it is cut anyway
			panic(http.ErrAbortHandler)
		}), nil, both, true, ""},
		"redirected to a liar": {with(attestation, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+"/blob", http.StatusTemporaryRedirect)
		}), nil, []string{attCheck}, false, "other bytes than the digest says"},
		"403 for the blob": {status(attestation, 403), nil, []string{attCheck}, false, "403"},
		"redirected in circles": {with(attestation, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}), nil, both, true, ""},
		"lying about the blob": {with(attestation, func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"AA=="}]}`) //nolint:errcheck // the client will notice
		}), nil, []string{attCheck}, false, "other bytes than the digest says"},
		"lying about the image": {with(`GET .*manifests/sha256:`+s.digest.Hex, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			io.WriteString(w, `{"schemaVersion":2}`) //nolint:errcheck // the client will notice
		}), []string{"-i", s.tag.Context().Name() + "@" + s.digest.String()}, []string{accessCheck}, true, "other bytes than the digest says"},
		"no JSON for a manifest": {with(`sha256-.*\.att$`, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
			io.WriteString(w, `<html>`) //nolint:errcheck // the client will notice
		}), nil, []string{attCheck}, false, ""},
		"ten thousand referrers": {with(referrers, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", string(types.OCIImageIndex))
			fmt.Fprint(w, `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[`)
			for i := range 10_000 {
				if i > 0 {
					fmt.Fprint(w, ",")
				}
				fmt.Fprintf(w, `{"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.dev.sigstore.bundle.v0.3+json","size":500,"digest":"sha256:%064x"}`, i)
			}
			fmt.Fprint(w, `]}`)
		}), nil, both, true, "more evidence than the bounds allow"},
	} {
		t.Run(name, func(t *testing.T) {
			f.on.Store(nil)
			if tt.fault != nil {
				f.on.Store(&tt.fault)
			}
			defer f.on.Store(nil)
			code, report, stderr := s.validate(append([]string{"-k", string(key.PublicPEM()), "--ignore-rekor", "--retry-max-wait", "2s"}, tt.args...)...)
			if got := codes(report, "violations"); !slices.Equal(got, tt.violations) || (code == 0) != (tt.violations == nil) {
				t.Errorf("exit %d, violations %q, want %q\n%s\n%v", code, got, tt.violations, stderr, report)
			}
			why, unchecked := could(report)
			if unchecked != tt.unchecked {
				t.Errorf("not checked: %v %s, want %v", unchecked, why, tt.unchecked)
			}
			if text := fmt.Sprint(report); !strings.Contains(text, tt.says) {
				t.Errorf("the report does not say %q: %s", tt.says, text)
			}
		})
	}
}

// TestHugeAttestation: an attestation of a gigabyte is not read, whether the manifest
// says that it is one or not.
func TestHugeAttestation(t *testing.T) {
	key := storetest.NewKey(t)
	for name, size := range map[string]int64{"honest": 1 << 30, "said to be small": 1000} {
		t.Run(name, func(t *testing.T) {
			f := newFaulty(t)
			s := stock(t, f.url, "app")
			s.signTag(nil, how{key: key})
			blob := "sha256:" + strings.Repeat("ab", 32)
			config := "sha256:" + strings.Repeat("cd", 32)
			m, err := json.Marshal(map[string]any{
				"schemaVersion": 2, "mediaType": types.OCIManifestSchema1,
				"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
				"layers": []any{map[string]any{"mediaType": "application/vnd.dsse.envelope.v1+json", "digest": blob, "size": size}},
			})
			must(t, err)
			var sent atomic.Int64
			huge := fault(func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case strings.HasSuffix(r.URL.Path, ".att"):
					sum := sha256.Sum256(m)
					w.Header().Set("Content-Type", string(types.OCIManifestSchema1))
					w.Header().Set("Docker-Content-Digest", "sha256:"+hex.EncodeToString(sum[:]))
					w.Write(m) //nolint:errcheck // the client will notice
				case strings.HasSuffix(r.URL.Path, blob):
					block := bytes.Repeat([]byte(" "), 1<<20)
					for sent.Load() < 1<<30 {
						n, err := w.Write(block)
						if sent.Add(int64(n)); err != nil {
							break
						}
					}
				default:
					return false
				}
				return true
			})
			f.on.Store(&huge)
			code, report, stderr := s.validate("-k", string(key.PublicPEM()), "--ignore-rekor")
			if got := codes(report, "violations"); code != 1 || !slices.Contains(got, attCheck) {
				t.Errorf("exit %d, %q, %s", code, got, stderr)
			}
			// What is under way in sockets is sent too.
			if n := sent.Load(); n > 100<<20 {
				t.Errorf("%d MiB were read", n>>20)
			}
		})
	}
}

// TestBadEvidence: what is wrong with signatures and attestations themselves.
func TestBadEvidence(t *testing.T) {
	key, other := storetest.NewKey(t), storetest.NewKey(t)
	nested := func(s *shelf, n int) []byte {
		deep := strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n)
		return bytes.Replace(s.provenance("one"), []byte(`"externalParameters":{}`), []byte(`"externalParameters":{"x":`+deep+`}`), 1)
	}
	foreign := func(s *shelf) []byte {
		return bytes.Replace(s.provenance("one"), []byte(s.digest.Hex), []byte(strings.Repeat("0", 64)), 1)
	}
	twice := func(s *shelf) []byte {
		return bytes.Replace(s.provenance("one"), []byte(`"predicateType"`), []byte(`"predicateType":"https://example.com/other","predicateType"`), 1)
	}
	// In each form of evidence: signed and attested by the key but for the one thing.
	for name, tt := range map[string]struct {
		by      *attest.Key
		payload func(*shelf) []byte
		kind    string
		says    string
	}{
		"wrong key":           {by: other, says: "none of the"},
		"foreign subject":     {payload: foreign, says: "about another artifact"},
		"wrong payload type":  {kind: "application/json", says: "payload type"},
		"malformed statement": {payload: func(*shelf) []byte { return []byte(`{"_type":`) }},
		"no statement":        {payload: func(*shelf) []byte { return []byte(`[]`) }},
		"no subject": {payload: func(s *shelf) []byte {
			return []byte(`{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"https://slsa.dev/provenance/v1","predicate":{}}`)
		}},
		"duplicate keys": {payload: twice, says: "predicateType"},
		"deep nesting":   {payload: func(s *shelf) []byte { return nested(s, 100_000) }},
		"empty":          {payload: func(*shelf) []byte { return []byte(` `) }},
	} {
		for _, form := range []string{"tag", "bundle"} {
			t.Run(name+", "+form, func(t *testing.T) {
				s := newShelf(t)
				h := how{key: key, kind: tt.kind, unlogged: true}
				if tt.by != nil {
					h.key = tt.by
				}
				if tt.payload != nil {
					h.payload = tt.payload(s)
				}
				if form == "tag" {
					s.signTag(nil, how{key: key})
					s.attestTag(nil, h)
				} else {
					s.attestBundle(nil, h)
				}
				code, report, stderr := s.validate("-k", string(key.PublicPEM()), "--ignore-rekor")
				got := codes(report, "violations")
				if code != 1 || !slices.Contains(got, attCheck) && !slices.Contains(got, syntaxCheck) {
					t.Errorf("exit %d, %q, %s %v", code, got, stderr, report)
				}
				if text := fmt.Sprint(report); !strings.Contains(text, tt.says) {
					t.Errorf("the report does not say %q: %s", tt.says, text)
				}
			})
		}
	}
	t.Run("envelope with duplicate keys", func(t *testing.T) {
		s := newShelf(t)
		s.signTag(nil, how{key: key})
		env, _, _, _, _ := s.envelope(how{key: key})
		s.hang("att", "application/vnd.dsse.envelope.v1+json", bytes.Replace(env, []byte(`"payloadType"`), []byte(`"payload":"e30=","payloadType"`), 1), nil)
		code, report, stderr := s.validate("-k", string(key.PublicPEM()), "--ignore-rekor")
		if got := codes(report, "violations"); code != 1 || !slices.Equal(got, []string{attCheck}) {
			t.Errorf("exit %d, %q, %s %v", code, got, stderr, report)
		}
	})
	t.Run("signature of another image", func(t *testing.T) {
		s, o := newShelf(t), newShelf(t)
		s.signTag(nil, how{key: key, payload: o.claim()})
		s.attestTag(nil, how{key: key})
		code, report, stderr := s.validate("-k", string(key.PublicPEM()), "--ignore-rekor")
		if got := codes(report, "violations"); code != 1 || !slices.Equal(got, []string{sigCheck}) {
			t.Errorf("exit %d, %q, %s %v", code, got, stderr, report)
		}
	})
	t.Run("signature that is none", func(t *testing.T) {
		s := newShelf(t)
		s.hang("sig", "application/vnd.dev.cosign.simplesigning.v1+json", s.claim(), map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString([]byte("x"))})
		s.attestTag(nil, how{key: key})
		code, report, stderr := s.validate("-k", string(key.PublicPEM()), "--ignore-rekor")
		if got := codes(report, "violations"); code != 1 || !slices.Equal(got, []string{sigCheck}) {
			t.Errorf("exit %d, %q, %s %v", code, got, stderr, report)
		}
	})
}

// TestSnapshots: lists of images that are not as they should be.
func TestSnapshots(t *testing.T) {
	key := storetest.NewKey(t)
	url := realRegistry(t)
	good := func(repo string) *shelf {
		s := stock(t, url, repo)
		s.signTag(nil, how{key: key})
		s.attestTag(nil, how{key: key})
		return s
	}
	a, b, unsigned := good("a"), good("b"), stock(t, url, "unsigned")
	// An index as BuildKit pushes it: an image, and a manifest for its attestations
	// that is for no platform.
	var members []mutate.IndexAddendum
	for _, p := range []v1.Platform{{OS: "linux", Architecture: "amd64"}, {OS: "unknown", Architecture: "unknown"}} {
		img, err := random.Image(64, 1)
		must(t, err)
		members = append(members, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), members...)
	tag, err := name.NewTag(strings.TrimPrefix(url, "http://") + "/index:1")
	must(t, err)
	must(t, remote.WriteIndex(tag, index))
	list := func(pairs ...string) string {
		var out []any
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, map[string]string{"name": pairs[i], "containerImage": pairs[i+1]})
		}
		raw, err := json.Marshal(map[string]any{"components": out})
		must(t, err)
		return string(raw)
	}
	host := strings.TrimPrefix(url, "http://")
	for name, tt := range map[string]struct {
		images string
		code   int
		names  map[string]bool // of components, and whether they pass
		want   string          // on standard error
	}{
		"no components":     {`{"components":[]}`, 1, nil, "no components"},
		"no list":           {`{}`, 1, nil, "no components"},
		"no snapshot":       {`[]`, 1, nil, "unable to parse Snapshot"},
		"no JSON":           {`{"components":`, 1, nil, "unable to parse Snapshot"},
		"duplicate names":   {list("x", a.tag.Name(), "x", b.tag.Name()), 0, map[string]bool{"x": true}, ""},
		"equal images":      {list("x", a.tag.Name(), "y", a.tag.Name()), 0, map[string]bool{"x": true}, ""},
		"unreachable image": {list("a", a.tag.Name(), "none", host+"/none:1", "b", b.tag.Name()), 1, map[string]bool{"a": true, "none": false, "b": true}, ""},
		"unreachable host":  {list("a", a.tag.Name(), "none", "127.0.0.1:1/none:1"), 1, map[string]bool{"a": true, "none": false}, ""},
		"unsigned image":    {list("a", a.tag.Name(), "u", unsigned.tag.Name()), 1, map[string]bool{"a": true, "u": false}, ""},
		"no reference":      {list("a", a.tag.Name(), "bad", "not a reference!"), 1, nil, "not a reference!"},
		"empty reference":   {list("bad", ""), 1, nil, ""},
		"BuildKit's index":  {list("i", tag.Name()), 1, map[string]bool{"i": false, "amd64": false, "unknown": false}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "rules/main.rego", oneRule)
			code, stdout, stderr := run(t, dir, []string{"validate", "image", "--images", tt.images, "-p", onePolicy, "-k", string(key.PublicPEM()), "--ignore-rekor", "--output", "json", "--retry-max-retry", "0"})
			report, _ := parseReport(t, stdout).(map[string]any)
			if code != tt.code || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit %d, want %d, %q\n%s", code, tt.code, tt.want, stderr)
			}
			got := map[string]bool{}
			components, _ := report["components"].([]any)
			for _, c := range components {
				m := c.(map[string]any)
				n := m["name"].(string)
				if i := strings.LastIndex(n, "-"); i >= 0 {
					n = n[i+1:]
				}
				got[n] = m["success"].(bool)
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.names) {
				t.Errorf("components %v, want %v\n%s", got, tt.names, stderr)
			}
			if len(tt.names) > 0 && name == "duplicate names" && len(components) != 2 {
				t.Errorf("%d components", len(components))
			}
		})
	}
}
