package remote_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/memory"
	orasremote "oras.land/oras-go/v2/registry/remote"

	"assay.dev/assay/api"
	"assay.dev/assay/sbom"
	"assay.dev/assay/task/layout"
	"assay.dev/assay/task/remote"
)

// registry is a real one, in memory; with a user name it wants a login.
func registry(t *testing.T, user, password string) string {
	t.Helper()
	reg := olareg.New(config.Config{Storage: config.ConfigStorage{StoreType: config.StoreMem}})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); user != "" && (u != user || p != password) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { srv.Close(); _ = reg.Close() })
	return strings.TrimPrefix(srv.URL, "http://")
}

// push puts an image for a platform into a repository, and, with a bill, that.
func push(t *testing.T, name string, p ocispec.Platform, bill []byte) digest.Digest {
	t.Helper()
	ctx := context.Background()
	repo, err := orasremote.NewRepository(name)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	mem := memory.New()
	put := func(mediaType string, data []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		if ok, _ := mem.Exists(ctx, d); !ok {
			if err := mem.Push(ctx, d, strings.NewReader(string(data))); err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	manifest := func(m ocispec.Manifest) ocispec.Descriptor {
		data, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		d := put(ocispec.MediaTypeImageManifest, data)
		if err := oras.CopyGraph(ctx, mem, repo, d, oras.DefaultCopyGraphOptions); err != nil {
			t.Fatal(err)
		}
		return d
	}
	config, err := json.Marshal(ocispec.Image{Platform: p, Config: ocispec.ImageConfig{Labels: map[string]string{ocispec.AnnotationTitle: "app"}}})
	if err != nil {
		t.Fatal(err)
	}
	image := manifest(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: put(ocispec.MediaTypeImageConfig, config), Layers: []ocispec.Descriptor{put(ocispec.MediaTypeImageLayer, []byte(p.Architecture))},
	})
	if bill != nil {
		put(ocispec.MediaTypeEmptyJSON, []byte("{}"))
		manifest(layout.Referrer(api.MediaTypeSPDX, put(api.MediaTypeSPDX, bill), image, nil))
	}
	return image.Digest
}

func bill(t *testing.T, name string) []byte {
	t.Helper()
	data, err := sbom.WriteSPDX(&sbom.Document{Name: name, Packages: []sbom.Package{{Name: name}}})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

var (
	amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}
	arm64 = ocispec.Platform{OS: "linux", Architecture: "arm64"}
)

func TestBuildIndex(t *testing.T) {
	ctx := context.Background()
	host := registry(t, "", "")
	name := host + "/staging/run"
	a := push(t, name, amd64, bill(t, "amd"))
	b := push(t, name, arm64, bill(t, "arm"))
	build := func(image string, images ...digest.Digest) *remote.IndexResult {
		t.Helper()
		var refs []string
		for _, d := range images {
			refs = append(refs, name+"@"+d.String())
		}
		res, err := remote.BuildIndex(ctx, remote.IndexOptions{
			Image: image, Images: refs, Epoch: time.Unix(1700000000, 0), Annotations: map[string]string{ocispec.AnnotationRevision: "c"},
		}, remote.Credentials{})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	res := build(name+":v1", b, a)
	if diff := cmp.Diff([]string{name + "@" + a.String(), name + "@" + b.String()}, res.Images); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
	if again := build(name, a, b); again.Index.Digest != res.Index.Digest || again.SBOMBlob.Digest != res.SBOMBlob.Digest {
		t.Errorf("the same images in another order made %s and %s", res.Index.Digest, again.Index.Digest)
	}
	// As any client sees it.
	repo, err := orasremote.NewRepository(name)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	_, data, err := oras.FetchBytes(ctx, repo, "v1", oras.DefaultFetchBytesOptions)
	if err != nil {
		t.Fatal(err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for _, m := range index.Manifests {
		platforms = append(platforms, m.Platform.OS+"/"+m.Platform.Architecture)
	}
	if diff := cmp.Diff([]string{"linux/amd64", "linux/arm64"}, platforms); diff != "" {
		t.Errorf("platforms (-want +got):\n%s", diff)
	}
	for _, d := range []digest.Digest{a, b, res.Index.Digest} {
		if _, err := repo.Resolve(ctx, layout.SBOMTag(d)); err != nil {
			t.Errorf("cosign's tag of the bill of %s: %v", d, err)
		}
	}
	r, err := remote.Open(name, remote.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	bills, err := r.Bills(ctx, res.Index.Digest)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, b := range bills {
		names = append(names, b.Platform+" "+b.Document.Name)
	}
	if diff := cmp.Diff([]string{" app", "linux/amd64 amd", "linux/arm64 arm"}, names); diff != "" {
		t.Errorf("bills of materials (-want +got):\n%s", diff)
	}
	variants := 0
	for _, rel := range bills[0].Document.Relations {
		if rel.Type == sbom.VariantOf {
			variants++
		}
	}
	if variants != 2 {
		t.Errorf("the index's bill names %d variants", variants)
	}
}

func TestBuildIndexRefuses(t *testing.T) {
	host := registry(t, "", "")
	name := host + "/staging/run"
	a := push(t, name, amd64, nil)
	other := push(t, host+"/staging/other", arm64, nil)
	bare := push(t, name, ocispec.Platform{}, nil)
	gone := digest.FromString("gone")
	for reason, c := range map[string]struct {
		image  string
		images []string
	}{
		"no images":                   {name, nil},
		"an image by tag":             {name, []string{name + ":v1"}},
		"an image that is not there":  {name, []string{name + "@" + gone.String()}},
		"an image of another repo":    {name, []string{host + "/staging/other@" + other.String()}},
		"another repo's digest here":  {name, []string{name + "@" + other.String()}},
		"an image without a platform": {name, []string{name + "@" + bare.String()}},
		"one platform twice":          {name, []string{name + "@" + a.String(), name + "@" + a.String()}},
		"a target without a host":     {"run", []string{name + "@" + a.String()}},
		"a target with a bad tag":     {name + ":-x", []string{name + "@" + a.String()}},
	} {
		_, err := remote.BuildIndex(context.Background(), remote.IndexOptions{Image: c.image, Images: c.images}, remote.Credentials{})
		if err == nil {
			t.Errorf("%s: an index was made", reason)
		}
		if reason == "an image that is not there" && !errors.Is(err, remote.ErrNotFound) {
			t.Errorf("%s: %v", reason, err)
		}
	}
}

func TestTag(t *testing.T) {
	ctx := context.Background()
	host := registry(t, "", "")
	name := host + "/staging/run"
	a := push(t, name, amd64, nil)
	r, err := remote.Open(name, remote.Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Tag(ctx, a, []string{"v1", "latest"}); err != nil {
		t.Fatal(err)
	}
	repo, err := orasremote.NewRepository(name)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	if d, err := repo.Resolve(ctx, "latest"); err != nil || d.Digest != a {
		t.Errorf("latest is %s, %v", d.Digest, err)
	}
	for _, tag := range []string{"", "a b", "-x", "x/y", strings.Repeat("x", 129), layout.SBOMTag(a), strings.TrimSuffix(layout.SBOMTag(a), ".sbom") + ".att", strings.TrimSuffix(layout.SBOMTag(a), ".sbom")} {
		if err := r.Tag(ctx, a, []string{"fine", tag}); err == nil {
			t.Errorf("tag %q was set", tag)
		}
	}
	if _, err := repo.Resolve(ctx, "fine"); err == nil {
		t.Error("a tag was set beside one that was refused")
	}
	if err := r.Tag(ctx, digest.FromString("gone"), []string{"x"}); !errors.Is(err, remote.ErrNotFound) {
		t.Errorf("tagging what is not there: %v", err)
	}
}

func TestLogin(t *testing.T) {
	host := registry(t, "run", "token")
	login := base64.StdEncoding.EncodeToString([]byte("run:token"))
	wrong := base64.StdEncoding.EncodeToString([]byte("run:other"))
	for name, c := range map[string]struct {
		config string
		want   error // ErrNotFound: let in, and nothing there
	}{
		"right":               {`{"auths":{"` + host + `":{"auth":"` + login + `"}}}`, remote.ErrNotFound},
		"most specific entry": {`{"auths":{"` + host + `":{"auth":"` + wrong + `"},"` + host + `/staging/run":{"auth":"` + login + `"}}}`, remote.ErrNotFound},
		"wrong":               {`{"auths":{"` + host + `":{"auth":"` + wrong + `"}}}`, nil},
		"somebody else's":     {`{"auths":{"` + host + `/staging/ru":{"auth":"` + login + `"}}}`, nil},
	} {
		creds, err := remote.ParseCredentials([]byte(c.config))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		r, err := remote.Open(host+"/staging/run", creds)
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Resolve(context.Background(), digest.FromString("x"))
		if err == nil || errors.Is(err, remote.ErrNotFound) != (c.want != nil) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "other") {
			t.Errorf("%s: the error tells the password: %v", name, err)
		}
	}
}

func TestReadCredentials(t *testing.T) {
	if _, err := remote.ReadCredentials(filepath.Join(t.TempDir(), "config.json")); err != nil {
		t.Errorf("no file: %v", err)
	}
	for _, bad := range []string{"", "[]", `{"credsStore":"desktop"}`, `{"credHelpers":{"x":"y"}}`, `{"auths":{"h":{"auth":"%%"}}}`, `{"auths":{"h":{"auth":"c2VjcmV0"}}}`} {
		path := filepath.Join(t.TempDir(), "config.json")
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := remote.ReadCredentials(path); err == nil {
			t.Errorf("%s: read without an error", bad)
		} else if strings.Contains(err.Error(), "c2VjcmV0") || strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the secret: %v", err)
		}
	}
}

func TestParseRef(t *testing.T) {
	d := "sha256:" + strings.Repeat("ab", 32)
	for in, want := range map[string]remote.Ref{
		"localhost:5055/staging/x":      {Name: "localhost:5055/staging/x"},
		"localhost:5055/x:v1":           {Name: "localhost:5055/x", Tag: "v1"},
		"localhost/x@" + d:              {Name: "localhost/x", Digest: digest.Digest(d)},
		"r.example/a/b:t@" + d:          {Name: "r.example/a/b", Tag: "t", Digest: digest.Digest(d)},
		"[::1]:5000/x":                  {Name: "[::1]:5000/x"},
		"registry.example:443/team/app": {Name: "registry.example:443/team/app"},
	} {
		got, err := remote.ParseRef(in)
		if strings.HasPrefix(in, "[") && err != nil {
			continue // the library decides about IPv6 literals
		}
		if err != nil || got != want || got.String() != in {
			t.Errorf("%s: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", "library/x", "localhost:5055", "r.example/X", "r.example/x@sha256:ab", "r.example/x:", "r.example/x@", "r.example/../x", "https://r.example/x"} {
		if got, err := remote.ParseRef(in); err == nil {
			t.Errorf("%q: read as %+v", in, got)
		}
	}
}

func FuzzParseRef(f *testing.F) {
	f.Add("localhost:5055/staging/x:v1@sha256:" + strings.Repeat("ab", 32))
	f.Fuzz(func(t *testing.T, in string) {
		if len(in) > 4096 {
			return
		}
		r, err := remote.ParseRef(in)
		if err == nil && r.String() != in {
			t.Fatalf("%q reads as %q", in, r)
		}
	})
}

func FuzzParseCredentials(f *testing.F) {
	f.Add([]byte(`{"auths":{"localhost:5055":{"auth":"cnVuOnRva2Vu"}}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<16 {
			return
		}
		c, err := remote.ParseCredentials(in)
		if err == nil {
			c.For("localhost:5055/staging/x")
		}
	})
}
