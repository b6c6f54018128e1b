package image_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"

	"assay.dev/assay/image"
)

// rig is a real registry in memory, with a place to break things.
type rig struct {
	host string
	srv  *httptest.Server

	mu       sync.Mutex
	requests []string                                          // guarded by mu: "METHOD path"
	hook     func(w http.ResponseWriter, r *http.Request) bool // guarded by mu: true: it answered
}

func newRig(t testing.TB) *rig { return newRigReferrers(t, true) }

// newRigReferrers can leave out the referrers API, as older registries do.
func newRigReferrers(t testing.TB, api bool) *rig {
	t.Helper()
	reg := olareg.New(config.Config{
		Storage: config.ConfigStorage{StoreType: config.StoreMem},
		API:     config.ConfigAPI{Referrer: config.ConfigAPIReferrer{Enabled: &api}},
		Log:     slog.New(slog.DiscardHandler),
	})
	r := &rig{}
	r.srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.requests = append(r.requests, req.Method+" "+req.URL.Path)
		hook := r.hook
		r.mu.Unlock()
		if hook != nil && hook(w, req) {
			return
		}
		reg.ServeHTTP(w, req)
	}))
	r.srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(func() {
		r.srv.CloseClientConnections()
		r.srv.Close()
		_ = reg.Close()
	})
	r.host = strings.TrimPrefix(r.srv.URL, "http://")
	return r
}

func (r *rig) setHook(h func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = h
}

// seen returns the requests since the last call, without the handshake.
func (r *rig) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, s := range r.requests {
		if s != "GET /v2/" {
			out = append(out, s)
		}
	}
	r.requests = nil
	return out
}

func count(requests []string, part string) int {
	n := 0
	for _, r := range requests {
		if strings.Contains(r, part) {
			n++
		}
	}
	return n
}

func (r *rig) options() image.RemoteOptions {
	return image.RemoteOptions{Insecure: []string{r.host}, RetryDelay: time.Millisecond}
}

func (r *rig) remote(t testing.TB) *image.Remote {
	t.Helper()
	return newRemote(t, r.options())
}

func newRemote(t testing.TB, o image.RemoteOptions) *image.Remote {
	t.Helper()
	// The user's own credentials are not part of a test.
	if o.Keychain == nil {
		t.Setenv("DOCKER_CONFIG", t.TempDir())
	}
	rem, err := image.NewRemote(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rem.Close)
	return rem
}

// entry is one entry of a layer.
type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), ModTime: time.Unix(1000, 0)}, content: content}
}

func dir(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: time.Unix(1000, 0)}}
}

func link(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: time.Unix(1000, 0)}}
}

func hardlink(name, target string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// makeImage is an image for linux/amd64 with one layer for each archive.
func makeImage(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	return makePlatformImage(t, "amd64", "", layers...)
}

func makePlatformImage(t testing.TB, arch, variant string, layers ...[]byte) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, b := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, l); err != nil {
			t.Fatal(err)
		}
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Variant = "linux", arch, variant
	c.Config = v1.Config{Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "true"}, Env: []string{"A=b"}, User: "build", WorkingDir: "/work", Labels: map[string]string{"k": "v"}}
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// push puts an image into the rig and returns its reference by digest.
func (r *rig) push(t testing.TB, repo string, img v1.Image) string {
	t.Helper()
	digest, err := r.remote(t).PushImage(context.Background(), fmt.Sprintf("%s/%s:latest", r.host, repo), img)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s/%s@%s", r.host, repo, digest)
}

var amd64 = image.Platform{OS: "linux", Architecture: "amd64"}
