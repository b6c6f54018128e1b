package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// FuzzUnpack: whatever the archive holds, nothing outside of the layer's
// folder changes, and no failure is without a kind.
func FuzzUnpack(f *testing.F) {
	add := func(headers ...tar.Header) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			_ = w.WriteHeader(&h)
			_, _ = w.Write(bytes.Repeat([]byte("x"), int(h.Size)))
		}
		_ = w.Close()
		f.Add(b.Bytes())
	}
	add(tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "d/f", Typeflag: tar.TypeReg, Size: 3, Mode: 0o4755})
	add(tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, tar.Header{Name: "l/x", Typeflag: tar.TypeReg})
	add(tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "l/outside"})
	add(tar.Header{Name: ".wh.a", Typeflag: tar.TypeReg}, tar.Header{Name: "a/.wh..wh..opq", Typeflag: tar.TypeReg}, tar.Header{Name: "a", Typeflag: tar.TypeDir})
	add(tar.Header{Name: "../outside", Typeflag: tar.TypeReg, Size: 1})
	add(tar.Header{Name: "/outside", Typeflag: tar.TypeReg}, tar.Header{Name: "c", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3})
	own, err := newOwners(0)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		top := t.TempDir()
		outside, fs := filepath.Join(top, "outside"), filepath.Join(top, "a", "fs")
		if err := errors.Join(os.WriteFile(outside, []byte("o"), 0o600), os.MkdirAll(fs, 0o755)); err != nil {
			t.Fatal(err)
		}
		bounds, _ := Bounds{LayerBytes: 1 << 20, Entries: 100}.withDefaults()
		u := &unpacker{dir: fs, owners: own, bounds: bounds, log: &onceLog{log: func(string) {}}}
		err := u.compressed(bytes.NewReader(b), digestOf(b))
		if err != nil && !errors.Is(err, ErrBadImage) && !errors.Is(err, ErrLocal) {
			t.Errorf("a failure without a kind: %v", err)
		}
		if got, err := os.ReadFile(outside); err != nil || string(got) != "o" {
			t.Errorf("outside changed: %q %v", got, err)
		}
		for _, dir := range []string{top, filepath.Join(top, "a")} {
			entries, err := os.ReadDir(dir)
			if want := map[string]int{top: 2}[dir]; err != nil || len(entries) != max(want, 1) {
				t.Errorf("%s holds %v, %v", dir, entries, err)
			}
		}
	})
}

// FuzzLayout: index.json and one manifest are a stranger's.
func FuzzLayout(f *testing.F) {
	h, _ := v1.NewHash(digestOf([]byte("{}")))
	image, _ := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: v1.Descriptor{MediaType: types.OCIConfigJSON, Size: 2, Digest: h}})
	index, _ := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{{MediaType: types.OCIManifestSchema1, Size: 2, Digest: h}}})
	// DIGEST and SIZE stand for the manifest's, which the fuzzer cannot compute.
	f.Add(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"DIGEST","size":SIZE}]}`, image)
	f.Add(`{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"DIGEST","size":SIZE}]}`, index)
	f.Add(`{"manifests":[{"digest":"sha256:../../x"}]}`, []byte(`{"layers":[],"manifests":[]}`))
	f.Fuzz(func(t *testing.T, index string, manifest []byte) {
		if len(index) > 16<<10 || len(manifest) > 16<<10 {
			return
		}
		index = strings.NewReplacer("DIGEST", digestOf(manifest), "SIZE", fmt.Sprint(len(manifest))).Replace(index)
		d := t.TempDir()
		blobs := filepath.Join(d, "blobs", "sha256")
		err := errors.Join(os.MkdirAll(blobs, 0o755), os.WriteFile(filepath.Join(blobs, hexOf(digestOf(manifest))), manifest, 0o644),
			os.WriteFile(filepath.Join(d, "index.json"), []byte(index), 0o644), os.WriteFile(filepath.Join(d, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
		if err != nil {
			t.Fatal(err)
		}
		dir, err := os.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		l, err := OpenLayout(dir, Bounds{})
		if err != nil {
			if !errors.Is(err, ErrBadImage) {
				t.Errorf("a failure of another kind: %v", err)
			}
			return
		}
		// What is accepted is the one manifest that there is, or it and none.
		for _, m := range l.Manifests() {
			if m != digestOf(manifest) {
				t.Errorf("accepted %s, which is not there", m)
			}
		}
	})
}

// FuzzUserFiles: /etc/passwd and /etc/group are the image's.
func FuzzUserFiles(f *testing.F) {
	f.Add("root:x:0:0::/:\nbuild:x:1:2::/:", "wheel:x:10:", "build:wheel")
	f.Add("a:b:99999999999:-1", "", "a")
	f.Fuzz(func(t *testing.T, passwd, group, spec string) {
		if len(passwd)+len(group)+len(spec) > 16<<10 {
			return
		}
		d := t.TempDir()
		etc := filepath.Join(d, "etc")
		if err := errors.Join(os.Mkdir(etc, 0o755), os.WriteFile(filepath.Join(etc, "passwd"), []byte(passwd), 0o644), os.WriteFile(filepath.Join(etc, "group"), []byte(group), 0o644)); err != nil {
			t.Fatal(err)
		}
		uid, gid, err := User([]string{d}, spec)
		if err == nil && (uid >= ids || gid >= ids) || err != nil && (uid != 0 || gid != 0) {
			t.Errorf("%q: %d:%d, %v", spec, uid, gid, err)
		}
	})
}

func TestGlobs(t *testing.T) {
	for _, c := range []struct {
		pattern, path   string
		covers, leadsTo bool
	}{
		{"a", "a", true, false},
		{"a", "a/b/c", true, false},
		{"a", "b", false, false},
		{"a/b", "a", false, true},
		{"a/*/c", "a/x/c/d", true, false},
		{"a/*/c", "a/x/y", false, false},
		{"*.go", "x.go", true, false},
		{"*.go", "d/x.go", false, false},
		{"**/*.go", "x.go", true, true},
		{"**/*.go", "d/e/x.go", true, true},
		{"**/testdata", "d/testdata/x", true, true},
		{"a/**/z", "a/z", true, true},
		{"a/**/z", "b", false, false},
		{"**", "anything/at/all", true, true},
		{"[ab]/c", "b/c", true, false},
		{"/a/", "a", true, false},
	} {
		g, err := parseGlobs([]string{c.pattern})
		if err != nil {
			t.Fatal(err)
		}
		if got := g.covers(c.path); got != c.covers {
			t.Errorf("%s covers %s: %v", c.pattern, c.path, got)
		}
		if got := g.leadsTo(c.path); got != c.leadsTo {
			t.Errorf("%s leads to something in %s: %v", c.pattern, c.path, got)
		}
	}
}
