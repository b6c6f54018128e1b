package image_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"assay.dev/assay/image"
)

type logged struct {
	mu    sync.Mutex
	lines []string // guarded by mu
}

func (l *logged) add(s string) { l.mu.Lock(); l.lines = append(l.lines, s); l.mu.Unlock() }

func (l *logged) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.lines {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for files of other owners; make test-all runs it")
	}
}

func openStore(t testing.TB, r *rig, dir string, change func(*image.Options)) (*image.Store, *logged) {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	l := &logged{}
	o := image.Options{Dir: dir, Remote: r.options(), Log: l.add}
	if change != nil {
		change(&o)
	}
	s, err := image.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, l
}

// left lists what is below the store's folders of entries, made or half made.
func left(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	for _, sub := range []string{"tmp", "layers"} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, sub+"/"+e.Name())
		}
	}
	return out
}

func TestPlatforms(t *testing.T) {
	r := newRig(t)
	layer := archive(t, file("a", "1"))
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	digests := map[string]string{}
	for _, p := range []v1.Platform{{OS: "unknown", Architecture: "unknown"}, {OS: "linux", Architecture: "amd64"}, {OS: "linux", Architecture: "amd64", Variant: "v3"},
		{OS: "linux", Architecture: "arm64", Variant: "v8"}, {OS: "linux", Architecture: "arm", Variant: "v6"}, {OS: "linux", Architecture: "arm", Variant: "v7"}} {
		img := makePlatformImage(t, p.Architecture, p.Variant, layer)
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &p}})
		digests[image.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}.String()] = must(img.Digest()).String()
	}
	digest, err := r.remote(t).PushIndex(context.Background(), r.host+"/multi:1", idx)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := openStore(t, r, t.TempDir(), nil)
	for ask, want := range map[string]string{
		"linux/amd64": "linux/amd64", "linux/amd64/v2": "linux/amd64", "linux/amd64/v4": "linux/amd64/v3",
		"linux/arm64": "linux/arm64/v8", "linux/arm64/v8": "linux/arm64/v8",
		"linux/arm": "linux/arm/v7", "linux/arm/v6": "linux/arm/v6", "linux/arm/v5": "", "linux/s390x": "", "windows/amd64": "",
	} {
		for _, ref := range []string{r.host + "/multi:1", r.host + "/multi@" + digest} {
			img, err := s.Ensure(context.Background(), ref, must(image.ParsePlatform(ask)))
			if want == "" {
				if !errors.Is(err, image.ErrNotFound) || !strings.Contains(err.Error(), "linux/arm/v6") {
					t.Errorf("%s: %v", ask, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", ask, err)
				continue
			}
			if img.Digest != digests[want] || img.Index != digest {
				t.Errorf("%s gave %s of %s, want that of %s", ask, img.Digest, img.Index, want)
			}
		}
	}
	// An image that is no index must still be for the platform.
	ref := r.push(t, "single", makeImage(t, layer))
	if _, err := s.Ensure(context.Background(), ref, must(image.ParsePlatform("linux/arm64"))); !errors.Is(err, image.ErrNotFound) {
		t.Errorf("amd64 image for arm64: %v", err)
	}
	for _, bad := range []string{"linux", "/amd64", "linux/", "a/b/c/d", "linux/arm/"} {
		if _, err := image.ParsePlatform(bad); err == nil {
			t.Errorf("platform %q is accepted", bad)
		}
	}
}

func TestDamagedCache(t *testing.T) {
	r := newRig(t)
	ref := r.push(t, "app", makeImage(t, archive(t, file("a", strings.Repeat("content", 1000)), dir("d/"), file("d/.wh..wh..opq", ""))))
	ctx := context.Background()
	d := t.TempDir()
	blobs := func() []string { return must(filepath.Glob(filepath.Join(d, "blobs", "*"))) }
	damage := map[string]func(p string) error{
		"truncated": func(p string) error { return os.Truncate(p, 10) },
		"emptied":   func(p string) error { return os.Truncate(p, 0) },
		"altered": func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			b[len(b)/2] ^= 1
			return os.WriteFile(p, b, 0o644)
		},
	}
	for name, f := range damage {
		t.Run("blobs "+name, func(t *testing.T) {
			s, log := openStore(t, r, d, nil)
			if _, err := s.Ensure(ctx, ref, amd64); err != nil {
				t.Fatal(err)
			}
			if len(blobs()) != 3 {
				t.Fatalf("blobs: %v", blobs())
			}
			for _, p := range blobs() {
				if err := f(p); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.RemoveAll(filepath.Join(d, "layers")); err != nil {
				t.Fatal(err)
			}
			s, log = openStore(t, r, d, nil)
			img, err := s.Ensure(ctx, ref, amd64)
			if err != nil {
				t.Fatal(err)
			}
			if err := image.VerifyLayer(ctx, img.Layers[0]); err != nil {
				t.Error(err)
			}
			if !log.has("damaged") {
				t.Errorf("log: %v", log.lines)
			}
			for _, p := range blobs() {
				if b, _ := os.ReadFile(p); sum(b) != "sha256:"+filepath.Base(p) {
					t.Errorf("%s is not repaired", p)
				}
			}
		})
	}
	for name, f := range map[string]func(l image.Layer) error{
		"file altered":      func(l image.Layer) error { return os.WriteFile(filepath.Join(l.Dir, "a"), []byte("x"), 0o644) },
		"file added":        func(l image.Layer) error { return os.WriteFile(filepath.Join(l.Dir, "new"), nil, 0o644) },
		"file removed":      func(l image.Layer) error { return os.Remove(filepath.Join(l.Dir, "a")) },
		"opaque mark":       func(l image.Layer) error { return unix.Removexattr(filepath.Join(l.Dir, "d"), "user.overlay.opaque") },
		"mode":              func(l image.Layer) error { return os.Chmod(filepath.Join(l.Dir, "a"), 0o755) },
		"the whole of it":   func(l image.Layer) error { return os.RemoveAll(l.Dir) },
		"replaced by links": func(l image.Layer) error { return errors.Join(os.RemoveAll(l.Dir), os.Symlink("/", l.Dir)) },
	} {
		t.Run("layer "+name, func(t *testing.T) {
			s, log := openStore(t, r, d, nil)
			img, err := s.Ensure(ctx, ref, amd64)
			if err != nil {
				t.Fatal(err)
			}
			if err := f(img.Layers[0]); err != nil {
				t.Fatal(err)
			}
			if err := image.VerifyLayer(ctx, img.Layers[0]); err == nil {
				t.Fatal("not noticed")
			}
			if img, err = s.Recheck(ctx, ref, amd64); err != nil {
				t.Fatal(err)
			}
			if err := image.VerifyLayer(ctx, img.Layers[0]); err != nil {
				t.Error(err)
			}
			if !log.has("damaged") {
				t.Errorf("log: %v", log.lines)
			}
		})
	}
	t.Run("record truncated", func(t *testing.T) {
		s, _ := openStore(t, r, d, nil)
		img := must(s.Ensure(ctx, ref, amd64))
		if err := os.Truncate(filepath.Join(filepath.Dir(img.Layers[0].Dir), "layer.json"), 5); err != nil {
			t.Fatal(err)
		}
		if img, err := s.Ensure(ctx, ref, amd64); err != nil || image.VerifyLayer(ctx, img.Layers[0]) != nil {
			t.Errorf("%v", err)
		}
	})
}

func TestConcurrentEnsure(t *testing.T) {
	r := newRig(t)
	ref := r.push(t, "app", makeImage(t, archive(t, file("a", strings.Repeat("1", 100000))), archive(t, file("b", "2"))))
	d := t.TempDir()
	// Each store stands for a process: they share nothing but the folder.
	var stores []*image.Store
	for range 4 {
		s, _ := openStore(t, r, d, nil)
		stores = append(stores, s)
	}
	r.seen()
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for i := range 16 {
		wg.Go(func() {
			img, err := stores[i%4].Ensure(context.Background(), ref, amd64)
			for _, l := range img.Layers {
				err = errors.Join(err, image.VerifyLayer(context.Background(), l))
			}
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	seen := r.seen()
	layers := must(r.remote(t).Manifest(context.Background(), ref))
	var m v1.Manifest
	if err := json.Unmarshal(layers.Raw, &m); err != nil {
		t.Fatal(err)
	}
	for _, l := range m.Layers {
		if n := count(seen, "/blobs/"+l.Digest.String()); n != 1 {
			t.Errorf("layer %s was fetched %d times", l.Digest, n)
		}
	}
	if tmp := must(os.ReadDir(filepath.Join(d, "tmp"))); len(tmp) != 0 {
		t.Errorf("left behind: %v", tmp)
	}
}

func TestOpenSweeps(t *testing.T) {
	d := t.TempDir()
	dead := filepath.Join(d, "tmp", "t123", "layer", "fs")
	if err := os.MkdirAll(dead, 0o755); err != nil {
		t.Fatal(err)
	}
	alive := filepath.Join(d, "tmp", "t124")
	if err := os.MkdirAll(alive, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(alive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	openStore(t, newRig(t), d, nil)
	entries := must(os.ReadDir(filepath.Join(d, "tmp")))
	if len(entries) != 1 || entries[0].Name() != "t124" {
		t.Errorf("tmp holds %v, want only what somebody is making", entries)
	}
}

func TestEnsureCanceled(t *testing.T) {
	r := newRig(t)
	ref := r.push(t, "app", makeImage(t, archive(t, file("a", "1"))))
	ctx, cancel := context.WithCancel(context.Background())
	r.setHook(func(w http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, "/blobs/") {
			cancel()
			<-req.Context().Done()
			return true
		}
		return false
	})
	d := t.TempDir()
	s, _ := openStore(t, r, d, nil)
	if _, err := s.Ensure(ctx, ref, amd64); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if got := left(t, d); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

// TestDiskFull fills a file system of its own.
func TestDiskFull(t *testing.T) {
	needRoot(t)
	d := t.TempDir()
	if err := unix.Mount("tmpfs", d, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("a tmpfs cannot be mounted here: %v", err)
	}
	defer func() {
		if err := unix.Unmount(d, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	r := newRig(t)
	ref := r.push(t, "app", makeImage(t, archive(t, file("a", strings.Repeat("1", 4<<20)))))
	s, _ := openStore(t, r, d, nil)
	_, err := s.Ensure(context.Background(), ref, amd64)
	if !errors.Is(err, image.ErrLocal) || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("got %v", err)
	}
	if got := left(t, d); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

func TestShiftChanges(t *testing.T) {
	needRoot(t)
	r := newRig(t)
	ref := r.push(t, "app", makeImage(t, archive(t, file("a", "1"))))
	d := t.TempDir()
	for _, shift := range []int{0, 65536, 0} {
		s, _ := openStore(t, r, d, func(o *image.Options) { o.IDShift = shift })
		img, err := s.Ensure(context.Background(), ref, amd64)
		if err != nil {
			t.Fatal(err)
		}
		fi := must(os.Lstat(filepath.Join(img.Layers[0].Dir, "a")))
		if got := fi.Sys().(*syscall.Stat_t).Uid; int(got) != shift {
			t.Errorf("owner %d with shift %d", got, shift)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, o := range map[string]image.Options{
		"no folder":      {},
		"negative shift": {Dir: t.TempDir(), IDShift: -1},
		"negative bound": {Dir: t.TempDir(), Bounds: image.Bounds{Entries: -1}},
		"a file":         {Dir: "/proc/version"},
	} {
		if _, err := image.Open(o); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
