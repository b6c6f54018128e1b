// Tests here use real servers: git's own http-backend over TLS and repositories made
// with git itself; olareg, a registry; net/http over TLS.
package fetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"

	"assay.dev/assay/internal/pullcache"
	"assay.dev/assay/policy/source"
)

// write writes files below dir.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// git runs git in dir and returns what it says.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), "git", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// repository is one with a history:
//
//	first  (tag v1, annotated; branch old)   rules/a.rego
//	second (branch main)                     rules/a.rego, rules/b.rego, data/d.yaml
type repo struct{ dir, first, second string }

func newRepository(t testing.TB, bare string) repo {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git (apt-get install git)")
	}
	work := t.TempDir()
	git(t, work, "init", "--quiet", "--initial-branch=main")
	write(t, work, map[string]string{"rules/a.rego": "package a\n", "README.md": "x"})
	git(t, work, "add", "--all")
	git(t, work, "commit", "--quiet", "-m", "first")
	git(t, work, "tag", "-a", "v1", "-m", "v1")
	git(t, work, "branch", "old")
	first := git(t, work, "rev-parse", "HEAD")
	write(t, work, map[string]string{"rules/b.rego": "package b\n", "data/d.yaml": "k: v\n", "rules/x/same.rego": "package a\n"})
	git(t, work, "add", "--all")
	git(t, work, "commit", "--quiet", "-m", "second")
	second := git(t, work, "rev-parse", "HEAD")
	git(t, work, "clone", "--quiet", "--bare", work, bare)
	return repo{bare, first, second}
}

// gitServer serves the repositories below root over https, behind a gate.
func gitServer(t testing.TB, root string, gate func(w http.ResponseWriter, r *http.Request) bool) *httptest.Server {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "git", "--exec-path").Output()
	if err != nil {
		t.Skip("needs git (apt-get install git)")
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"),
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
		InheritEnv: []string{"PATH"},
	}
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if gate == nil || gate(w, r) {
			backend.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// counter counts requests, and fails them once it is cut.
type counter struct {
	base http.RoundTripper
	n    atomic.Int64
	cut  atomic.Bool
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	c.n.Add(1)
	if c.cut.Load() {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, errors.New("there is no network")
	}
	return c.base.RoundTrip(r)
}

// fetcher has a cache of its own unless o names one.
func fetcher(t testing.TB, rt http.RoundTripper, o Options) *Fetcher {
	t.Helper()
	if o.Cache == "" {
		o.Cache = t.TempDir()
	}
	o.Transport, o.Keychain = rt, authn.NewMultiKeychain()
	if o.Retry == nil {
		o.Retry = &pullcache.Retry{}
	}
	f, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// paths are those of what a tree counts.
func paths(t testing.TB, tree *source.Tree) []string {
	t.Helper()
	list, err := tree.Files(nil)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range list {
		out = append(out, f.Path)
	}
	return out
}

// refused checks that an error has all words.
func refused(t testing.TB, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
	}
	if i := slices.IndexFunc(words, func(w string) bool { return !strings.Contains(err.Error(), w) }); i >= 0 {
		t.Errorf("error %q lacks %q", err, words[i])
	}
}

// newRegistry is a registry; its address has no scheme.
func newRegistry(t testing.TB) (addr string) {
	t.Helper()
	yes := true
	s := httptest.NewServer(olareg.New(config.Config{
		Storage: config.ConfigStorage{StoreType: config.StoreMem},
		API:     config.ConfigAPI{PushEnabled: &yes, DeleteEnabled: &yes, Referrer: config.ConfigAPIReferrer{Enabled: &yes}},
		Log:     slog.New(slog.DiscardHandler),
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// layer is one of an artifact.
type layer struct {
	title string
	bytes []byte
	more  map[string]string
}

// pushArtifact puts an artifact into a registry and returns its digest.
func pushArtifact(t testing.TB, ref string, layers ...layer) string {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + tag.RegistryStr() + "/v2/" + tag.RepositoryStr()
	digest := func(b []byte) string {
		h := sha256.Sum256(b)
		return "sha256:" + hex.EncodeToString(h[:])
	}
	put := func(url, mediaType string, b []byte) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", mediaType)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode/100 != 2 {
			t.Fatalf("PUT %s: %s", url, resp.Status)
		}
	}
	blob := func(b []byte) {
		resp, err := http.Post(base+"/blobs/uploads/", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		at, err := resp.Location()
		if err != nil {
			t.Fatal(err)
		}
		q := at.Query()
		q.Set("digest", digest(b))
		at.RawQuery = q.Encode()
		put(at.String(), "application/octet-stream", b)
	}
	type desc struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	of := func(l layer) desc {
		blob(l.bytes)
		a := map[string]string{}
		if l.title != "" {
			a[titleKey] = l.title
		}
		for k, v := range l.more {
			a[k] = v
		}
		return desc{fileType, digest(l.bytes), len(l.bytes), a}
	}
	m := struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
		Config        desc   `json:"config"`
		Layers        []desc `json:"layers"`
	}{2, "application/vnd.oci.image.manifest.v1+json", of(layer{bytes: []byte("{}")}), []desc{}}
	for _, l := range layers {
		m.Layers = append(m.Layers, of(l))
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	put(base+"/manifests/"+tag.TagStr(), m.MediaType, raw)
	return digest(raw)
}

// archive is a compressed tar with entries, in order.
func archive(t testing.TB, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, h := range entries {
		text := h.Linkname
		if h.Typeflag == tar.TypeReg {
			h.Size, h.Linkname = int64(len(text)), ""
		}
		h.Mode = 0o644
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
