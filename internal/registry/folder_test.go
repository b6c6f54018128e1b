package registry_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"assay.dev/assay/internal/registry"
)

// TestReadOnlyFolder reads the folder while a server writes it.
func TestReadOnlyFolder(t *testing.T) {
	g := start(t, t.TempDir())
	tok := g.mint(t, task("run1"))
	h, err := registry.OpenReadOnly(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	tr := remote.WithTransport(registry.Route(host, registry.InProcess(h), nil))
	if _, err := remote.Image(ref(t, "staging/run1:v0"), tr); status(err) != 404 {
		t.Errorf("before anything: %v", err)
	}
	// Every image is seen as soon as its push returned, also under an old tag.
	for i := range 5 {
		img := image(t)
		for _, tag := range []string{"latest", fmt.Sprint("v", i)} {
			if err := remote.Write(ref(t, "staging/run1:"+tag), img, g.opts(tok)...); err != nil {
				t.Fatal(err)
			}
		}
		got, err := remote.Image(ref(t, "staging/run1:latest"), tr)
		if err != nil {
			t.Fatal(err)
		}
		if hash(t, got) != hash(t, img) {
			t.Errorf("push %d: an old image came back", i)
		}
		layers, err := got.Layers()
		if err != nil {
			t.Fatal(err)
		}
		r, err := layers[0].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(r); err != nil || len(b) == 0 {
			t.Errorf("layer: %d bytes, %v", len(b), err)
		}
		r.Close()
	}
	if err := remote.Write(ref(t, "staging/run1:x"), image(t), tr); status(err) != 403 {
		t.Errorf("write: %v", err)
	}
	if _, err := remote.Image(ref(t, "staging/run1:v1"), remote.WithTransport(registry.Route("elsewhere:1", registry.InProcess(h), nil))); err == nil {
		t.Error("another registry was reached")
	}
	if _, err := registry.OpenReadOnly(filepath.Join(g.dir, "no")); err == nil {
		t.Error("a folder that is not there was opened")
	}
	err = filepath.WalkDir(g.dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err == nil && i.Mode().IsRegular() && i.Mode().Perm()&0o044 != 0o044 {
			t.Errorf("%s is not readable for others: %s", p, i.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestServeReadOnly(t *testing.T) {
	g := start(t, t.TempDir())
	tok := g.mint(t, task("run1"))
	img := image(t)
	if err := remote.Write(ref(t, "staging/run1:v1"), img, g.opts(tok)...); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.ServeReadOnly(l) }()
	t.Cleanup(func() {
		g.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r, err := name.ParseReference(l.Addr().String() + "/staging/run1:v1")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := remote.Image(r); err != nil || hash(t, got) != hash(t, img) {
		t.Errorf("reading by TCP: %v", err)
	}
	if err := remote.Write(r, image(t), remote.WithAuth(&authn.Basic{Username: "x", Password: tok})); status(err) != 403 {
		t.Errorf("writing by TCP with a token: %v", err)
	}
	resp, err := http.Post("http://"+l.Addr().String()+"/assay/v1/tokens", "application/json", strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 404 {
		t.Errorf("control by TCP: %d", resp.StatusCode)
	}
}

// TestReopen leaves a server as a kill does and opens the folder again.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	tok := g.mint(t, task("run1"))
	img := image(t)
	if err := remote.Write(ref(t, "staging/run1:v1"), img, g.opts(tok)...); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.New(registry.Config{Dir: dir, Name: host, Runs: g.runs, Roles: func(uint32) registry.Role { return 0 }}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("a second writer: %v", err)
	}
	// An upload under way and half a line of memory.
	req, _ := http.NewRequest("POST", "http://"+host+"/v2/staging/run1/blobs/uploads/", nil)
	req.SetBasicAuth("x", tok)
	if resp, err := g.client.HTTPTransport().RoundTrip(req); err != nil || resp.StatusCode != 202 {
		t.Fatal(resp, err)
	}
	killed := t.TempDir()
	if err := os.CopyFS(filepath.Join(killed, "registry"), os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(killed, "registry")
	f, err := os.OpenFile(filepath.Join(dir, "uploads.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"upload":{"run":"run1","ta`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	before, err := registry.ReadUploads(dir, "run1")
	if err != nil || len(before) != 4 {
		t.Fatalf("after the kill: %v %v", before, err)
	}

	again := start(t, dir)
	if got, err := remote.Image(ref(t, "staging/run1:v1"), again.opts("")...); err != nil || hash(t, got) != hash(t, img) {
		t.Errorf("the image: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "staging/run1/_uploads/*")); len(left) != 0 {
		t.Errorf("unfinished uploads: %v", left)
	}
	if err := remote.Write(ref(t, "staging/run1:v2"), image(t), again.opts(tok)...); status(err) != 403 {
		t.Errorf("the old token: %v", err)
	}
	// The run was open, so its repository may hold what it holds.
	fresh := again.mint(t, task("run1"))
	if err := remote.Write(ref(t, "staging/run1:v2"), image(t), again.opts(fresh)...); err != nil {
		t.Error(err)
	}
	after, err := registry.ReadUploads(dir, "run1")
	if err != nil || len(after) != 8 {
		t.Errorf("%d uploads, %v", len(after), err)
	}
	if d := cmp.Diff(before, after[:4]); d != "" {
		t.Error(d)
	}
}

// TestNothingIsCollected: blobs that no manifest names are artifacts.
func TestNothingIsCollected(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	tok := g.mint(t, task("run1"))
	req, _ := http.NewRequest("POST", "http://"+host+"/v2/staging/run1/blobs/uploads/?digest="+digestOf("artifact"), strings.NewReader("artifact"))
	req.SetBasicAuth("x", tok)
	resp, err := g.client.HTTPTransport().RoundTrip(req)
	if err != nil || resp.StatusCode != 201 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
	if i, err := os.Stat(filepath.Join(dir, "staging/run1/index.json")); err != nil || i.Mode().Perm() != 0o644 {
		t.Errorf("the index cannot be read by others: %v %v", i.Mode(), err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	h, err := registry.OpenReadOnly(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := remote.Layer(ref(t, "staging/run1@"+digestOf("artifact")).(name.Digest), remote.WithTransport(registry.InProcess(h)))
	if err != nil {
		t.Fatal(err)
	}
	r, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "artifact" {
		t.Errorf("%q %v", b, err)
	}
}

func TestDamagedMemory(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "uploads.jsonl"), []byte("{\"opened\":\"r\"}\nnonsense\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := registry.ReadUploads(dir, "r"); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("read: %v", err)
	}
	if _, err := registry.New(registry.Config{Dir: dir, Name: host, Runs: &runs{}, Roles: func(uint32) registry.Role { return 0 }}); err == nil {
		t.Error("opened")
	}
	if _, err := registry.New(registry.Config{Dir: dir}); err == nil {
		t.Error("an incomplete configuration was accepted")
	}
}
