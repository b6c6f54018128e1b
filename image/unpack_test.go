package image_test

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"golang.org/x/sys/unix"

	"assay.dev/assay/image"
)

func TestEnsure(t *testing.T) {
	needRoot(t)
	r := newRig(t)
	owned := file("app/file", "hello")
	owned.Uid, owned.Gid, owned.Mode = 1000, 100, 0o640
	suid := file("bin/su", "x")
	suid.Mode = 0o4755
	sticky := dir("tmp")
	sticky.Mode = 0o1777
	capable := file("bin/cap", "x")
	capable.PAXRecords = map[string]string{"SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.security.capability": "x"}
	null := entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3}}
	ref := r.push(t, "app", makeImage(t, archive(t,
		dir("./"), dir("app/"), owned, suid, capable, sticky, null,
		link("out", "/etc/shadow"), hardlink("app/same", "/app/file"), file("/abs", "a"), file("deep/er/x", ""))))
	d := t.TempDir()
	s, log := openStore(t, r, d, func(o *image.Options) { o.IDShift = 65536 })
	img, err := s.Ensure(context.Background(), ref, amd64)
	if err != nil {
		t.Fatal(err)
	}
	_, digest, _ := strings.Cut(ref, "@")
	want := &image.Image{Ref: ref, Repository: r.host + "/app", Digest: digest, Layers: img.Layers, Config: image.Config{
		Platform: amd64, Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "true"}, Env: []string{"A=b"},
		User: "build", WorkingDir: "/work", Labels: map[string]string{"k": "v"}}}
	if diff := cmp.Diff(want, img); diff != "" {
		t.Error(diff)
	}
	if got := img.Pinned(); got != ref {
		t.Errorf("pinned %s, want %s", got, ref)
	}
	l := img.Layers[0]
	type meta struct {
		Mode     string
		UID, GID uint32
		Time     int64
		Size     int64
	}
	got := map[string]meta{}
	err = filepath.WalkDir(l.Dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		m := meta{fi.Mode().String(), st.Uid, st.Gid, fi.ModTime().Unix(), fi.Size()}
		if !fi.Mode().IsRegular() {
			m.Size = 0
		}
		got[strings.TrimPrefix(p, l.Dir)] = m
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	const z = 65536
	if diff := cmp.Diff(map[string]meta{
		"":           {"drwxr-xr-x", z, z, 1000, 0},
		"/abs":       {"-rw-r--r--", z, z, 1000, 1},
		"/bin":       {"drwxr-xr-x", z, z, 0, 0},
		"/bin/cap":   {"-rw-r--r--", z, z, 1000, 1},
		"/bin/su":    {"-rwxr-xr-x", z, z, 1000, 1},
		"/deep":      {"drwxr-xr-x", z, z, 0, 0},
		"/deep/er":   {"drwxr-xr-x", z, z, 0, 0},
		"/deep/er/x": {"-rw-r--r--", z, z, 1000, 0},
		"/out":       {"Lrwxrwxrwx", z, z, 1000, 0},
		"/tmp":       {"dtrwxrwxrwx", z, z, 1000, 0},
		"/app":       {"drwxr-xr-x", z, z, 1000, 0},
		"/app/file":  {"-rw-r-----", z + 1000, z + 100, 1000, 5},
		"/app/same":  {"-rw-r-----", z + 1000, z + 100, 1000, 5},
	}, got); diff != "" {
		t.Error(diff)
	}
	var buf [16]byte
	if _, err := unix.Getxattr(filepath.Join(l.Dir, "bin/cap"), "user.overlay.opaque", buf[:]); !errors.Is(err, unix.ENODATA) {
		t.Errorf("an image wrote an overlay attribute: %v", err)
	}
	for _, part := range []string{"device or fifo left out", "2 × extended attribute", "set-user-id"} {
		if !log.has(part) {
			t.Errorf("the log does not say %q: %v", part, log.lines)
		}
	}
	if err := image.VerifyLayer(context.Background(), l); err != nil {
		t.Error(err)
	}
	if b, err := json.Marshal(img); err != nil {
		t.Error(err)
	} else if back := new(image.Image); json.Unmarshal(b, back) != nil || !cmp.Equal(back, img) {
		t.Errorf("JSON does not come back: %s", b)
	}

	// All is cached: no registry is needed for a digest, but for a tag.
	r.srv.Close()
	if _, err := s.Ensure(context.Background(), ref, amd64); err != nil {
		t.Errorf("from the cache: %v", err)
	}
	if _, err := s.Ensure(context.Background(), r.host+"/app:latest", amd64); !errors.Is(err, image.ErrUnreachable) {
		t.Errorf("by tag without registry: %v", err)
	}
}

// TestOverlay mounts the layers as the sandbox does and looks at the result.
func TestOverlay(t *testing.T) {
	needRoot(t)
	r := newRig(t)
	ref := r.push(t, "app", makeImage(t,
		archive(t, file("gone", "1"), dir("d/"), file("d/old", "1"), dir("o/"), file("o/old", "1"), dir("w/"), file("w/old", "1"), file("i/old", ""), file("kept", "1")),
		archive(t, file(".wh.gone", ""), file("d/new", "2"), file("o/.wh..wh..opq", ""), file("o/new", "2"),
			file(".wh.w", ""), dir("w/"), file("w/new", "2"), file(".wh.i", ""), file("i/new", "2"), file(".wh..wh.plnk", ""))))
	s, _ := openStore(t, r, t.TempDir(), nil)
	img, err := s.Ensure(context.Background(), ref, amd64)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"i", "o", "w"}, img.Layers[1].Opaque); diff != "" {
		t.Error(diff)
	}
	mnt := t.TempDir()
	err = unix.Mount("overlay", mnt, "overlay", unix.MS_RDONLY, "userxattr,lowerdir="+img.Layers[1].Dir+":"+img.Layers[0].Dir)
	if err != nil {
		t.Skipf("overlayfs with userxattr cannot be mounted here: %v", err)
	}
	defer func() {
		if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	var got []string
	err = filepath.WalkDir(mnt, func(p string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			got = append(got, strings.TrimPrefix(p, mnt+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"d/new", "d/old", "i/new", "kept", "o/new", "w/new"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestEvilLayers(t *testing.T) {
	device := entry{Header: tar.Header{Typeflag: 'V', Name: "x"}}
	owner := file("a", "")
	owner.Uid = 70000
	for name, entries := range map[string][]entry{
		"dot dot":                  {file("../escaped", "x")},
		"dot dot inside":           {dir("a/"), file("a/../../escaped", "x")},
		"through an absolute link": {link("a", "/tmp"), file("a/escaped", "x")},
		"through a relative link":  {link("a", "../../.."), file("a/escaped", "x")},
		"through a link inside":    {dir("b/"), link("a", "b"), file("a/x", "x")},
		"folder through a link":    {link("a", "/tmp"), dir("a/escaped/")},
		"hard link outside":        {hardlink("a", "../../../blobs")},
		"hard link to nothing":     {hardlink("a", "etc/passwd")},
		"hard link through a link": {link("d", "/etc"), hardlink("a", "d/passwd")},
		"hard link to a folder":    {dir("d/"), hardlink("a", "d")},
		"hard link, then write":    {link("l", "/etc/passwd"), hardlink("a", "l"), file("a/x", "")},
		"below a file":             {file("a", ""), file("a/b", "")},
		"full folder replaced":     {file("a/b", ""), file("a", "")},
		"root replaced":            {link("./", "/tmp")},
		"whiteout of nothing":      {file("d/.wh.", "")},
		"whiteout of dot":          {file("d/.wh..", "")},
		"whiteout of dot dot":      {file("d/.wh...", "")},
		"whiteout through a link":  {link("a", "/tmp"), file("a/.wh.x", "")},
		"opaque root":              {file(".wh..wh..opq", "")},
		"unknown type":             {device},
		"long name":                {file(strings.Repeat("n", 300), "")},
		"deep":                     {file(strings.Repeat("d/", 600)+"x", "")},
		"owner out of range":       {owner},
		"too many entries":         {file("a", ""), file("b", ""), file("c", ""), file("d", ""), file("e", "")},
		"implied entries count":    {file("a/b/c/d/e/f", "")},
		"too big":                  {file("a", strings.Repeat("x", 60<<10))},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			ref := r.push(t, "evil", makeImage(t, archive(t, entries...)))
			d := t.TempDir()
			s, _ := openStore(t, r, d, func(o *image.Options) { o.Bounds.Entries = 4; o.Bounds.LayerBytes = 50 << 10 })
			if strings.Contains(name, "deep") {
				s, _ = openStore(t, r, d, nil)
			}
			_, err := s.Ensure(context.Background(), ref, amd64)
			if !errors.Is(err, image.ErrBadImage) {
				t.Fatalf("got %v", err)
			}
			if got := left(t, d); len(got) != 0 {
				t.Errorf("left behind: %v", got)
			}
			if _, err := os.Lstat("/tmp/escaped"); err == nil {
				_ = os.RemoveAll("/tmp/escaped")
				t.Error("a layer wrote to /tmp")
			}
		})
	}
}

func TestBadImages(t *testing.T) {
	layer := archive(t, file("a", "1"))
	for name, img := range map[string]func(*testing.T) v1.Image{
		"wrong diffID": func(t *testing.T) v1.Image {
			img := makeImage(t, layer)
			c := must(img.ConfigFile()).DeepCopy()
			c.RootFS.DiffIDs[0].Hex = strings.Repeat("0", 64)
			return must(mutate.ConfigFile(img, c))
		},
		"too few diffIDs": func(t *testing.T) v1.Image {
			img := makeImage(t, layer)
			c := must(img.ConfigFile()).DeepCopy()
			c.RootFS.DiffIDs = nil
			return must(mutate.ConfigFile(img, c))
		},
		"an artifact": func(t *testing.T) v1.Image {
			return mutate.ConfigMediaType(makeImage(t, layer), "application/vnd.cncf.helm.config.v1+json")
		},
		"not an archive": func(t *testing.T) v1.Image { return makeImage(t, []byte(strings.Repeat("no tar", 500))) },
		"too many layers": func(t *testing.T) v1.Image {
			return makeImage(t, layer, archive(t, file("b", "")), archive(t, file("c", "")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			ref := r.push(t, "bad", img(t))
			d := t.TempDir()
			s, _ := openStore(t, r, d, func(o *image.Options) { o.Bounds.Layers = 2 })
			if _, err := s.Ensure(context.Background(), ref, amd64); !errors.Is(err, image.ErrBadImage) {
				t.Fatalf("got %v", err)
			}
			if got := left(t, d); len(got) != 0 {
				t.Errorf("left behind: %v", got)
			}
		})
	}
}

// BenchmarkUnpack unpacks 4,000 small files; its size is the archive's.
func BenchmarkUnpack(b *testing.B) {
	var entries []entry
	for i := range 4000 {
		entries = append(entries, file(fmt.Sprintf("d%d/f%d", i/100, i), strings.Repeat("x", 4000)))
	}
	a := archive(b, entries...)
	r := newRig(b)
	ref := r.push(b, "app", makeImage(b, a))
	for _, cached := range []bool{false, true} {
		b.Run(fmt.Sprintf("cached=%v", cached), func(b *testing.B) {
			d := b.TempDir()
			s, _ := openStore(b, r, d, nil)
			if _, err := s.Ensure(context.Background(), ref, amd64); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(a)))
			for b.Loop() {
				if !cached {
					b.StopTimer()
					for _, l := range must(filepath.Glob(filepath.Join(d, "layers", "*"))) {
						_ = os.RemoveAll(l)
					}
					b.StartTimer()
				}
				if _, err := s.Ensure(context.Background(), ref, amd64); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
