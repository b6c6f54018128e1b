package measure_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"assay.dev/assay/observe/measure"
	"assay.dev/assay/observe/tree"
)

func digest(b []byte) string {
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}

// TestRoundTrip is the law that the package stands for: what is unpacked is
// what was packed, by every way of looking at it.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tmp, err := os.MkdirTemp("", "assay-measure-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(tmp)
		from, to := filepath.Join(tmp, "from"), filepath.Join(tmp, "to")
		if err := errors.Join(os.Mkdir(from, 0o755), os.Mkdir(to, 0o755)); err != nil {
			t.Fatal(err)
		}
		drawTree(rt, t, from)
		ctx := context.Background()
		var blob, again bytes.Buffer
		packed, err := measure.Pack(ctx, from, &blob, measure.PackOptions{GitTree: true})
		if err != nil {
			rt.Fatal(err)
		}
		if packed.BlobDigest != digest(blob.Bytes()) || packed.Size != int64(blob.Len()) {
			rt.Fatalf("%+v does not describe the blob", packed)
		}
		measured, err := tree.Digest(ctx, from, tree.Options{GitTree: true})
		if err != nil {
			rt.Fatal(err)
		}
		sum, err := measure.Unpack(ctx, bytes.NewReader(blob.Bytes()), packed.BlobDigest, to, measure.UnpackOptions{GitTree: true})
		if err != nil {
			rt.Fatal(err)
		}
		unpacked, err := tree.Digest(ctx, to, tree.Options{GitTree: true})
		if err != nil {
			rt.Fatal(err)
		}
		for what, s := range map[string]tree.Sum{"measured": measured, "unpack said": sum, "unpacked": unpacked} {
			if s != packed.Sum {
				rt.Fatalf("%s %+v, packed %+v", what, s, packed.Sum)
			}
		}
		if _, err := measure.Pack(ctx, to, &again, measure.PackOptions{}); err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(again.Bytes(), blob.Bytes()) {
			rt.Fatal("the same tree gave another blob")
		}
	})
}

// TestBlobDoesNotDependOnCores packs what is larger than the compressor's blocks.
func TestBlobDoesNotDependOnCores(t *testing.T) {
	dir := t.TempDir()
	for i := range 40 {
		b := bytes.Repeat([]byte(strings.Repeat("x", i)+"\n"), 50_000)
		if err := os.WriteFile(filepath.Join(dir, string(rune('a'+i))), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	var want string
	for _, cores := range []int{1, 2, 8} {
		runtime.GOMAXPROCS(cores)
		p, err := measure.Pack(context.Background(), dir, io.Discard, measure.PackOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			want = p.BlobDigest
		}
		if p.BlobDigest != want {
			t.Errorf("%d cores: %s, want %s", cores, p.BlobDigest, want)
		}
	}
}

// drawTree makes a tree on disk, as a task may leave it.
func drawTree(rt *rapid.T, t *testing.T, root string) {
	name := rapid.OneOf(
		rapid.StringMatching(`[a-d]{1,3}`),
		rapid.SampledFrom([]string{"é", "\xff\xfe", "with space", "new\nline", strings.Repeat("n", 150), ".git", "..."}),
	)
	type dir struct {
		path  string
		depth int
	}
	dirs := []dir{{root, 0}}
	for range rapid.IntRange(0, 25).Draw(rt, "entries") {
		d := rapid.SampledFrom(dirs).Draw(rt, "folder")
		p := filepath.Join(d.path, name.Draw(rt, "name"))
		if _, err := os.Lstat(p); err == nil {
			continue
		}
		var err error
		switch rapid.IntRange(0, 4).Draw(rt, "kind") {
		case 0, 1:
			if err = os.Mkdir(p, 0o755); err == nil {
				err = unix.Chmod(p, uint32(rapid.SampledFrom([]int{0o755, 0o700, 0o3775, 0o711}).Draw(rt, "mode")))
				dirs = append(dirs, dir{p, d.depth + 1})
			}
		case 2:
			err = os.Symlink(strings.Repeat("../", rapid.IntRange(0, d.depth).Draw(rt, "up"))+"somewhere", p)
		default:
			size := rapid.SampledFrom([]int{0, 1, 100, 512, 70_000, 300_000}).Draw(rt, "size")
			if err = os.WriteFile(p, bytes.Repeat([]byte{byte(rapid.IntRange(0, 255).Draw(rt, "byte"))}, size), 0o600); err == nil {
				err = unix.Chmod(p, uint32(rapid.SampledFrom([]int{0o644, 0o755, 0o4755, 0o400, 0o600}).Draw(rt, "mode")))
			}
			if err == nil && rapid.Bool().Draw(rt, "link") {
				_ = os.Link(p, p+"2")
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// archive makes a tar of headers; a content is as long as its header says.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstdOf(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

func gzipOf(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func file(name string, size int64) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}
}

func link(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

func TestUnpackRefuses(t *testing.T) {
	good := file("ok/good", 10)
	small := measure.UnpackOptions{Limits: tree.Limits{Entries: 5, Bytes: 1000, Depth: 3, PathBytes: 60}}
	for _, c := range []struct {
		name string
		tar  []tar.Header
		opts measure.UnpackOptions
		says string
	}{
		{"parent folder", []tar.Header{good, file("../evil", 1)}, measure.UnpackOptions{}, `"../evil"`},
		{"parent folder inside", []tar.Header{good, file("a/../../evil", 1)}, measure.UnpackOptions{}, "not clean"},
		{"absolute", []tar.Header{good, file("/etc/evil", 1)}, measure.UnpackOptions{}, "absolute"},
		{"through a link of its own", []tar.Header{good, link("d", "ok"), file("d/evil", 1)}, measure.UnpackOptions{}, `below "d": it is a symbolic link`},
		{"through an outside link", []tar.Header{good, link("d", "/tmp"), file("d/evil", 1)}, measure.UnpackOptions{OutsideLinks: true}, `below "d"`},
		{"over a link", []tar.Header{good, link("d", "ok/good"), file("d", 1)}, measure.UnpackOptions{}, "twice"},
		{"absolute link", []tar.Header{good, link("l", "/etc/passwd")}, measure.UnpackOptions{}, "absolute"},
		{"link upwards", []tar.Header{good, link("ok/l", "../../x")}, measure.UnpackOptions{}, "leads out"},
		{"link up after a name", []tar.Header{good, link("ok/x", "."), link("l", "ok/x/../..")}, measure.UnpackOptions{}, ".. after a name"},
		{"hard link outside", []tar.Header{good, {Typeflag: tar.TypeLink, Name: "h", Linkname: "/etc/passwd"}}, measure.UnpackOptions{}, "hard link"},
		{"hard link to a link", []tar.Header{good, link("l", "ok/good"), {Typeflag: tar.TypeLink, Name: "h", Linkname: "l"}}, measure.UnpackOptions{}, "not a file earlier"},
		{"hard links as a bomb", []tar.Header{file("f", 600), {Typeflag: tar.TypeLink, Name: "h", Linkname: "f"}}, small, "more than 1000 bytes"},
		{"device", []tar.Header{good, {Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}}, measure.UnpackOptions{}, `"null"`},
		{"block device", []tar.Header{good, {Typeflag: tar.TypeBlock, Name: "sda"}}, measure.UnpackOptions{}, `"sda"`},
		{"fifo", []tar.Header{good, {Typeflag: tar.TypeFifo, Name: "pipe"}}, measure.UnpackOptions{}, `"pipe"`},
		{"twice", []tar.Header{good, good}, measure.UnpackOptions{}, "twice"},
		{"too many entries", []tar.Header{file("1", 0), file("2", 0), file("3", 0), file("4", 0), file("5", 0), file("6", 0)}, small, "more than 5 entries"},
		{"too many bytes", []tar.Header{file("1", 600), file("2", 600)}, small, "more than 1000 bytes"},
		{"too deep", []tar.Header{file("a/b/c/d/e", 1)}, small, "more than 3 nested"},
		{"path too long", []tar.Header{file(strings.Repeat("n", 70), 1)}, small, "more than 60 bytes"},
		{"root is a file", []tar.Header{good, file(".", 1)}, measure.UnpackOptions{}, "root"},
	} {
		t.Run(c.name, func(t *testing.T) {
			blob := zstdOf(t, archive(t, c.tar...))
			parent := t.TempDir()
			dir := filepath.Join(parent, "dir")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			sum, err := measure.Unpack(context.Background(), bytes.NewReader(blob), digest(blob), dir, c.opts)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want an error with %q", err, c.says)
			}
			if sum != (tree.Sum{}) {
				t.Errorf("a sum beside an error: %+v", sum)
			}
			checkEmpty(t, dir)
			if es, _ := os.ReadDir(parent); len(es) != 1 {
				t.Errorf("something was written beside the folder: %v", es)
			}
		})
	}
}

func checkEmpty(t testing.TB, dir string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil || len(es) != 0 {
		t.Errorf("the folder is not empty: %v %v", es, err)
	}
}

func TestUnpackBlob(t *testing.T) {
	good := archive(t, file("f", 100_000))
	blob := zstdOf(t, good)
	bomb := zstdOf(t, archive(t, file("f", 50<<20)))
	noise := append(bytes.Clone(blob), 0)
	for _, c := range []struct {
		name, want string
		blob       []byte
		opts       measure.UnpackOptions
		is         error
		says       string
	}{
		{"another digest", digest([]byte("x")), blob, measure.UnpackOptions{}, measure.ErrDigest, "nothing was extracted"},
		{"one byte more", digest(blob), noise, measure.UnpackOptions{}, measure.ErrDigest, ""},
		{"no digest", "", blob, measure.UnpackOptions{}, nil, "sha256:"},
		{"sha512", "sha512:ab", blob, measure.UnpackOptions{}, nil, "sha256:"},
		{"too large", digest(blob), blob, measure.UnpackOptions{BlobBytes: 10}, tree.ErrLimit, "10 bytes"},
		{"a bomb", digest(bomb), bomb, measure.UnpackOptions{Limits: tree.Limits{Bytes: 1 << 20}}, tree.ErrLimit, ""},
		{"not compressed", digest(good), good, measure.UnpackOptions{}, nil, "neither zstd nor gzip"},
		{"empty", digest(nil), nil, measure.UnpackOptions{}, nil, "neither zstd nor gzip"},
		{"truncated", digest(blob[:len(blob)/2]), blob[:len(blob)/2], measure.UnpackOptions{}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := measure.Unpack(context.Background(), bytes.NewReader(c.blob), c.want, dir, c.opts)
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v", err)
			}
			checkEmpty(t, dir)
		})
	}
	t.Run("folder not empty", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/mine", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := measure.Unpack(context.Background(), bytes.NewReader(blob), digest(blob), dir, measure.UnpackOptions{}); err == nil {
			t.Error("accepted")
		}
		if _, err := os.Stat(dir + "/mine"); err != nil {
			t.Error("what was there is gone")
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		dir := t.TempDir()
		if _, err := measure.Unpack(ctx, bytes.NewReader(blob), digest(blob), dir, measure.UnpackOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		checkEmpty(t, dir)
	})
}

// TestUnpackGzip takes what GNU tar makes of a folder: "./", hard links.
func TestUnpackGzip(t *testing.T) {
	blob := gzipOf(t, archive(t,
		tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700},
		tar.Header{Typeflag: tar.TypeDir, Name: "./d/", Mode: 0o555},
		file("./d/f", 3), link("./d/l", "f"),
		tar.Header{Typeflag: tar.TypeLink, Name: "./h", Linkname: "./d/f"},
		file("./implied/f", 1),
		tar.Header{Typeflag: tar.TypeDir, Name: "./implied", Mode: 0o700},
	))
	dir := t.TempDir()
	t.Cleanup(func() { _ = os.Chmod(dir+"/d", 0o700) })
	when := time.Unix(1_000_000_000, 0)
	sum, err := measure.Unpack(context.Background(), bytes.NewReader(blob), digest(blob), dir, measure.UnpackOptions{ModTime: when})
	if err != nil {
		t.Fatal(err)
	}
	got, err := tree.Digest(context.Background(), dir, tree.Options{})
	if err != nil || got != sum {
		t.Errorf("%+v %v, want %+v", got, err, sum)
	}
	modes := map[string]string{}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		i, err := d.Info()
		rel, _ := filepath.Rel(dir, p)
		modes[rel] = i.Mode().String()
		if !i.ModTime().Equal(when) {
			t.Errorf("%s is of %s", rel, i.ModTime())
		}
		return err
	})
	want := map[string]string{"d": "dr-xr-xr-x", "d/f": "-rw-r--r--", "d/l": "Lrwxrwxrwx", "h": "-rw-r--r--", "implied": "drwx------", "implied/f": "-rw-r--r--"}
	if d := cmp.Diff(want, modes); err != nil || d != "" {
		t.Error(err, d)
	}
}

func TestUnpackOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("giving files away needs root; run as root")
	}
	blob := zstdOf(t, archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "d/su", Mode: 0o4755, Size: 1}, link("d/l", "su")))
	dir := t.TempDir()
	o := measure.UnpackOptions{Owner: &measure.Owner{UID: 70001, GID: 70002}}
	if _, err := measure.Unpack(context.Background(), bytes.NewReader(blob), digest(blob), dir, o); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{".", "d", "d/su", "d/l"} {
		i, err := os.Lstat(filepath.Join(dir, p))
		if err != nil {
			t.Fatal(err)
		}
		if st := i.Sys().(*syscall.Stat_t); st.Uid != 70001 || st.Gid != 70002 {
			t.Errorf("%s belongs to %d:%d", p, st.Uid, st.Gid)
		}
		if p == "d/su" && i.Mode()&os.ModeSetuid == 0 {
			t.Error("set-user-id was lost to the change of owner")
		}
	}
}

func TestPackRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		make func(dir string) error
		is   error
		says string
	}{
		"fifo":     {func(d string) error { return unix.Mkfifo(d+"/pipe", 0o600) }, tree.ErrSpecial, `"pipe"`},
		"socket":   {func(d string) error { return unix.Mknod(d+"/sock", unix.S_IFSOCK|0o600, 0) }, tree.ErrSpecial, `"sock"`},
		"absolute": {func(d string) error { return os.Symlink("/etc/passwd", d+"/l") }, nil, "absolute"},
		"upwards":  {func(d string) error { return os.Symlink("../secret", d+"/l") }, nil, "leads out"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := c.make(dir); err != nil {
				t.Fatal(err)
			}
			p, err := measure.Pack(context.Background(), dir, io.Discard, measure.PackOptions{})
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) || p != (measure.Packed{}) {
				t.Errorf("got %+v, %v", p, err)
			}
		})
	}
}

func TestReadBounded(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(dir+"/d", 0o755), os.WriteFile(dir+"/d/f", []byte("12345"), 0o644), os.Symlink("f", dir+"/d/l"),
		os.Symlink("d", dir+"/dl"), unix.Mkfifo(dir+"/p", 0o600), os.WriteFile(filepath.Dir(dir)+"/outside", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		max  int64
		ok   bool
		is   error
	}{
		{"d/f", 5, true, nil}, {"d/f", 100, true, nil}, {"d/f", 4, false, tree.ErrLimit}, {"d/l", 100, false, nil}, {"dl/f", 100, false, nil},
		{"p", 100, false, tree.ErrSpecial}, {"d", 100, false, nil}, {"no", 1, false, os.ErrNotExist}, {"../outside", 100, false, nil},
		{"/etc/passwd", 1 << 20, false, nil}, {"d/..", 100, false, nil}, {".", 10, false, nil},
	} {
		b, err := measure.ReadBounded(dir, c.name, c.max)
		if c.ok != (err == nil) || c.ok && string(b) != "12345" || !c.ok && b != nil || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%q up to %d: %q, %v", c.name, c.max, b, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	seed := archive(f, tar.Header{Typeflag: tar.TypeDir, Name: "./d/", Mode: 0o500}, file("d/f", 10), link("d/l", "f"),
		tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "d/f"}, file("i/f", 1))
	f.Add(seed, byte(0))
	f.Add(seed, byte(1))
	f.Add(zstdOf(f, seed), byte(2))
	f.Add(archive(f, file("../x", 1)), byte(0))
	f.Add(archive(f, link("l", "/"), file("l/x", 1)), byte(0))
	f.Fuzz(func(t *testing.T, b []byte, how byte) {
		if len(b) > 1<<16 {
			return
		}
		// Mostly past the compression, to where paths are.
		switch how % 3 {
		case 0:
			b = zstdOf(t, b)
		case 1:
			b = gzipOf(t, b)
		}
		parent, err := os.MkdirTemp("", "assay-fuzz-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(parent)
		dir := filepath.Join(parent, "dir")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		o := measure.UnpackOptions{TempDir: parent, GitTree: true, Limits: tree.Limits{Entries: 100, Bytes: 1 << 20, Depth: 10, PathBytes: 1000}}
		sum, err := measure.Unpack(ctx, bytes.NewReader(b), digest(b), dir, o)
		if es, _ := os.ReadDir(parent); len(es) != 1 {
			t.Fatalf("beside the folder: %v", es)
		}
		if err != nil {
			checkEmpty(t, dir)
			return
		}
		got, err := tree.Digest(ctx, dir, tree.Options{GitTree: true})
		if err != nil || got != sum {
			t.Fatalf("unpack said %+v, on disk %+v %v", sum, got, err)
		}
		if _, err := measure.Pack(ctx, dir, io.Discard, measure.PackOptions{}); err != nil {
			t.Fatalf("what was unpacked cannot be packed: %v", err)
		}
	})
}
