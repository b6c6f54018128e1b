package image_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"assay.dev/assay/image"
)

// addManifest puts raw and the empty blob it uses into a layout's files and
// its descriptor into index.json.
func addManifest(t testing.TB, dir string, raw []byte) {
	t.Helper()
	write(t, dir, map[string]string{"blobs/sha256/" + sum(raw)[7:]: string(raw), "blobs/sha256/" + sum([]byte("{}"))[7:]: "{}"})
	changeIndex(t, dir, func(idx *v1.IndexManifest) {
		h, _ := v1.NewHash(sum(raw))
		idx.Manifests = append(idx.Manifests, v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: h, Size: int64(len(raw))})
	})
}

func changeIndex(t testing.TB, dir string, change func(*v1.IndexManifest)) {
	t.Helper()
	p := filepath.Join(dir, "index.json")
	var idx v1.IndexManifest
	if err := json.Unmarshal(must(os.ReadFile(p)), &idx); err != nil {
		t.Fatal(err)
	}
	change(&idx)
	if err := os.WriteFile(p, must(json.Marshal(idx)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// writeLayout is a layout with one image, by go-containerregistry's hand.
func writeLayout(t testing.TB, img v1.Image) string {
	t.Helper()
	d := t.TempDir()
	p, err := layout.Write(d, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	return d
}

func descriptor(t testing.TB, img v1.Image) v1.Descriptor {
	t.Helper()
	raw := must(img.RawManifest())
	return v1.Descriptor{MediaType: types.OCIManifestSchema1, Digest: must(img.Digest()), Size: int64(len(raw))}
}

func TestPushLayout(t *testing.T) {
	ctx := context.Background()
	r := newRig(t)
	rem := r.remote(t)
	one := makeImage(t, archive(t, file("a", strings.Repeat("1", 200000))))
	two := makePlatformImage(t, "arm64", "v8", archive(t, file("a", "2")))

	t.Run("image with referrer", func(t *testing.T) {
		d := writeLayout(t, one)
		sbom := referrer(t, descriptor(t, one), "text/spdx+json")
		addManifest(t, d, sbom)
		changeIndex(t, d, func(idx *v1.IndexManifest) { slices.Reverse(idx.Manifests) })
		got, err := rem.PushLayout(ctx, d, r.host+"/x")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{must(one.Digest()).String(), sum(sbom)}, got); diff != "" {
			t.Error(diff)
		}
		refs, err := rem.Referrers(ctx, r.host+"/x@"+got[0], "text/spdx+json")
		if err != nil || len(refs) != 1 {
			t.Errorf("referrers %v, %v", refs, err)
		}
		r.seen()
		if _, err := rem.PushLayout(ctx, d, r.host+"/x"); err != nil {
			t.Errorf("a second time: %v", err)
		}
	})
	t.Run("requests for a small image", func(t *testing.T) {
		r.seen()
		if _, err := rem.PushLayout(ctx, writeLayout(t, two), r.host+"/small"); err != nil {
			t.Fatal(err)
		}
		var methods []string
		for _, s := range r.seen() {
			m, _, _ := strings.Cut(s, " ")
			methods = append(methods, m)
		}
		if diff := cmp.Diff([]string{"POST", "PUT", "POST", "PUT", "PUT"}, methods); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("index", func(t *testing.T) {
		d := t.TempDir()
		p := must(layout.Write(d, empty.Index))
		idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{Add: one}, mutate.IndexAddendum{Add: two})
		if err := p.AppendIndex(idx); err != nil {
			t.Fatal(err)
		}
		sbom := referrer(t, descriptor(t, two), "text/spdx+json")
		addManifest(t, d, sbom)
		got, err := rem.PushLayout(ctx, d, r.host+"/idx")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{must(idx.Digest()).String(), must(one.Digest()).String(), must(two.Digest()).String(), sum(sbom)}, got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestPushLayoutRefuses(t *testing.T) {
	img := makeImage(t, archive(t, file("a", strings.Repeat("1", 1000))))
	other := makeImage(t, archive(t, file("b", "2")))
	layerFile := func(d string) string {
		m := must(img.Manifest())
		return filepath.Join(d, "blobs", "sha256", m.Layers[0].Digest.Hex)
	}
	manifestFile := func(d string) string { return filepath.Join(d, "blobs", "sha256", must(img.Digest()).Hex) }
	replace := func(t *testing.T, p string, make func(string) error) {
		t.Helper()
		if err := errors.Join(os.RemoveAll(p), make(p)); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(t *testing.T, d string){
		"empty": func(t *testing.T, d string) {
			for _, e := range must(os.ReadDir(d)) {
				_ = os.RemoveAll(filepath.Join(d, e.Name()))
			}
		},
		"no version": func(t *testing.T, d string) { _ = os.Remove(filepath.Join(d, "oci-layout")) },
		"other version": func(t *testing.T, d string) {
			write(t, d, map[string]string{"oci-layout": `{"imageLayoutVersion":"2.0.0"}`})
		},
		"no index": func(t *testing.T, d string) { _ = os.Remove(filepath.Join(d, "index.json")) },
		"index is not JSON": func(t *testing.T, d string) {
			write(t, d, map[string]string{"index.json": "x"})
		},
		"index is huge": func(t *testing.T, d string) {
			_ = os.Truncate(filepath.Join(d, "index.json"), 1<<30)
		},
		"no image": func(t *testing.T, d string) { changeIndex(t, d, func(i *v1.IndexManifest) { i.Manifests = nil }) },
		"only a referrer": func(t *testing.T, d string) {
			changeIndex(t, d, func(i *v1.IndexManifest) { i.Manifests = nil })
			addManifest(t, d, referrer(t, descriptor(t, img), "x/y"))
		},
		"two images":       func(t *testing.T, d string) { addManifest(t, d, must(other.RawManifest())) },
		"foreign referrer": func(t *testing.T, d string) { addManifest(t, d, referrer(t, descriptor(t, other), "x/y")) },
		"sha512": func(t *testing.T, d string) {
			changeIndex(t, d, func(i *v1.IndexManifest) {
				i.Manifests[0].Digest = v1.Hash{Algorithm: "sha512", Hex: strings.Repeat("0", 128)}
			})
		},
		"digest with a path": func(t *testing.T, d string) {
			b := strings.ReplaceAll(string(must(os.ReadFile(filepath.Join(d, "index.json")))), must(img.Digest()).String(), "sha256:../../../../etc/passwd")
			write(t, d, map[string]string{"index.json": b})
		},
		"wrong size": func(t *testing.T, d string) { changeIndex(t, d, func(i *v1.IndexManifest) { i.Manifests[0].Size++ }) },
		"wrong type": func(t *testing.T, d string) {
			changeIndex(t, d, func(i *v1.IndexManifest) { i.Manifests[0].MediaType = types.OCIImageIndex })
		},
		"manifest altered": func(t *testing.T, d string) { _ = os.WriteFile(manifestFile(d), []byte("{}"), 0o644) },
		"manifest missing": func(t *testing.T, d string) { _ = os.Remove(manifestFile(d)) },
		"layer missing":    func(t *testing.T, d string) { _ = os.Remove(layerFile(d)) },
		"layer truncated":  func(t *testing.T, d string) { _ = os.Truncate(layerFile(d), 5) },
		"layer too long":   func(t *testing.T, d string) { _ = os.Truncate(layerFile(d), 5000) },
		"layer altered": func(t *testing.T, d string) {
			b := must(os.ReadFile(layerFile(d)))
			b[20] ^= 1
			_ = os.WriteFile(layerFile(d), b, 0o644)
		},
		"layer is a link": func(t *testing.T, d string) {
			replace(t, layerFile(d), func(p string) error { return os.Symlink("/etc/passwd", p) })
		},
		"layer is a fifo": func(t *testing.T, d string) {
			replace(t, layerFile(d), func(p string) error { return unix.Mkfifo(p, 0o644) })
		},
		"layer is a folder": func(t *testing.T, d string) {
			replace(t, layerFile(d), func(p string) error { return os.Mkdir(p, 0o755) })
		},
		"blobs is a link": func(t *testing.T, d string) {
			replace(t, filepath.Join(d, "blobs"), func(p string) error { return os.Symlink("/", p) })
		},
		"index is a link": func(t *testing.T, d string) {
			replace(t, filepath.Join(d, "index.json"), func(p string) error { return os.Symlink("/etc/passwd", p) })
		},
		"index is a fifo": func(t *testing.T, d string) {
			replace(t, filepath.Join(d, "index.json"), func(p string) error { return unix.Mkfifo(p, 0o644) })
		},
		"layout is a link": func(t *testing.T, d string) { replace(t, d, func(p string) error { return os.Symlink("/", p) }) },
		"layout is no folder": func(t *testing.T, d string) {
			replace(t, d, func(p string) error { return os.WriteFile(p, nil, 0o644) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			rem := r.remote(t)
			// Somebody else pushed the same image before: what is there already
			// must not stand in for what the layout lacks.
			r.push(t, "x", img)
			d := writeLayout(t, img)
			change(t, d)
			r.seen()
			got, err := rem.PushLayout(context.Background(), d, r.host+"/x")
			if !errors.Is(err, image.ErrBadImage) {
				t.Fatalf("%v, %v", got, err)
			}
			if s := r.seen(); len(s) != 0 {
				t.Errorf("sent all the same: %v", s)
			}
		})
	}
}

func TestPushLayoutRegistryFails(t *testing.T) {
	r := newRig(t)
	rem := r.remote(t)
	d := writeLayout(t, makeImage(t, archive(t, file("a", "1"))))
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodPut && strings.Contains(req.URL.Path, "/manifests/") {
			w.WriteHeader(500)
			return true
		}
		return false
	})
	_, err := rem.PushLayout(context.Background(), d, r.host+"/x")
	if !errors.Is(err, image.ErrUnreachable) || !strings.Contains(err.Error(), r.host+"/x") {
		t.Errorf("got %v", err)
	}
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method != http.MethodPost {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	if _, err := rem.PushLayout(context.Background(), d, r.host+"/y"); !errors.Is(err, image.ErrUnauthorized) {
		t.Errorf("got %v", err)
	}
	if _, err := rem.PushLayout(context.Background(), d, r.host+"/y:tag"); !errors.Is(err, image.ErrBadReference) {
		t.Errorf("got %v", err)
	}
}
