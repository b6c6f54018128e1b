package image_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"assay.dev/assay/image"
)

func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func packDigest(t testing.TB, o image.PackOptions) string {
	t.Helper()
	o.TempDir = t.TempDir()
	p, err := image.Pack(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	d := must(p.Digest()).String()
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if left := must(os.ReadDir(o.TempDir)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	return d
}

func TestPackIsReproducible(t *testing.T) {
	files := map[string]string{"b/x": "1", "b/y": strings.Repeat("z", 300000), "a": "2", "b.c": "3"}
	for _, compression := range []string{"", "gzip"} {
		one, two := t.TempDir(), t.TempDir()
		write(t, one, files)
		write(t, two, files)
		options := func(host string) image.PackOptions {
			return image.PackOptions{
				Folders: []image.Folder{{Host: host, Path: "/opt/x"}}, Files: []image.File{{Path: "/bin/z", Content: []byte("z")}, {Path: "/bin/a", Content: []byte("a")}},
				Entrypoint: []string{"/bin/a"}, Labels: map[string]string{"b": "1", "a": "2"}, SourceDateEpoch: 1234567890, Platform: amd64, Compression: compression,
			}
		}
		want := packDigest(t, options(one))
		if got := packDigest(t, options(one)); got != want {
			t.Error("twice the same folder, two digests")
		}
		old := time.Unix(1, 0)
		for _, p := range []string{"a", "b/x", "b"} {
			if err := os.Chtimes(filepath.Join(two, p), old, old); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(filepath.Join(two, "a"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := packDigest(t, options(two)); got != want {
			t.Error("times or modes of the machine change the digest")
		}
		if runtime.GOMAXPROCS(0) > 1 {
			old := runtime.GOMAXPROCS(1)
			got := packDigest(t, options(one))
			runtime.GOMAXPROCS(old)
			if got != want {
				t.Error("the number of cores changes the digest")
			}
		}
		if err := os.Chmod(filepath.Join(two, "a"), 0o755); err != nil {
			t.Fatal(err)
		}
		if got := packDigest(t, options(two)); got == want {
			t.Error("an executable file does not change the digest")
		}
	}
}

// TestPackRoundTrip packs, pushes, pulls and compares; twice the same folder
// shares its layer.
func TestPackRoundTrip(t *testing.T) {
	ctx := context.Background()
	host := t.TempDir()
	write(t, host, map[string]string{"src/main.go": "package main", "src/main_test.go": "x", "src/testdata/x": "x", "docs/x": "x", "bin/tool": "#!", "top": "t"})
	if err := os.Chmod(filepath.Join(host, "bin/tool"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("main.go", filepath.Join(host, "src/link")); err != nil {
		t.Fatal(err)
	}
	p, err := image.Pack(ctx, image.PackOptions{
		Folders: []image.Folder{
			{Host: host, Path: "/opt/all", Exclude: []string{"docs"}},
			{Host: host, Path: "/opt/some", Only: []string{"src", "bin/tool"}, Exclude: []string{"**/*_test.go", "**/testdata"}},
		},
		Files: []image.File{{Path: "/run", Host: filepath.Join(host, "top"), Executable: true}}, Platform: amd64, SourceDateEpoch: 99,
		Env: []string{"PATH=/opt/all/bin"}, User: "7:8", TempDir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r := newRig(t)
	ref := r.push(t, "packed", p)
	s, _ := openStore(t, r, t.TempDir(), nil)
	img, err := s.Ensure(ctx, ref, amd64)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for i, d := range img.Dirs() {
		err := filepath.WalkDir(d, func(p string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			fi, err := e.Info()
			got[fmt.Sprintf("%d%s", i, strings.TrimPrefix(p, d))] = fmt.Sprintf("%v %d", fi.Mode(), fi.ModTime().Unix())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(map[string]string{
		"0/opt/all/bin/tool": "-rwxr-xr-x 99", "0/opt/all/src/link": "Lrwxrwxrwx 99", "0/opt/all/src/main.go": "-rw-r--r-- 99",
		"0/opt/all/src/main_test.go": "-rw-r--r-- 99", "0/opt/all/src/testdata/x": "-rw-r--r-- 99", "0/opt/all/top": "-rw-r--r-- 99",
		"1/opt/some/bin/tool": "-rwxr-xr-x 99", "1/opt/some/src/link": "Lrwxrwxrwx 99", "1/opt/some/src/main.go": "-rw-r--r-- 99",
		"2/run": "-rwxr-xr-x 99",
	}, got); diff != "" {
		t.Error(diff)
	}
	if img.Config.User != "7:8" || len(img.Config.Env) != 1 {
		t.Errorf("config %+v", img.Config)
	}
	layout := filepath.Join(t.TempDir(), "layout")
	if err := image.WriteLayout(ctx, layout, "x:1", p); err != nil {
		t.Fatal(err)
	}
	pushed, err := r.remote(t).PushLayout(ctx, layout, r.host+"/elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	if len(pushed) != 1 || pushed[0] != img.Digest {
		t.Errorf("pushed %v, want %s", pushed, img.Digest)
	}
	if err := image.WriteLayout(ctx, layout, "", p); err == nil {
		t.Error("a folder that is not empty is written to")
	}
}

func TestPackRefuses(t *testing.T) {
	host := t.TempDir()
	write(t, host, map[string]string{"a": "1"})
	fifo := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(fifo, "f"), 0o600); err != nil {
		t.Fatal(err)
	}
	one := func(f image.Folder) image.PackOptions { return image.PackOptions{Folders: []image.Folder{f}} }
	for name, o := range map[string]image.PackOptions{
		"nothing":            {},
		"no such folder":     one(image.Folder{Host: filepath.Join(host, "none"), Path: "/"}),
		"relative path":      one(image.Folder{Host: host, Path: "opt"}),
		"path with dots":     one(image.Folder{Host: host, Path: "/opt/../.."}),
		"pattern leaves all": one(image.Folder{Host: host, Path: "/", Only: []string{"b"}}),
		"bad pattern":        one(image.Folder{Host: host, Path: "/", Only: []string{"[a"}}),
		"pattern with dots":  one(image.Folder{Host: host, Path: "/", Exclude: []string{"../a"}}),
		"fifo":               one(image.Folder{Host: fifo, Path: "/"}),
		"compression":        {Folders: []image.Folder{{Host: host, Path: "/"}}, Compression: "lz4"},
		"a path twice":       {Files: []image.File{{Path: "/a"}, {Path: "/a"}}},
		"folder as file":     {Files: []image.File{{Path: "/a", Host: host}}},
	} {
		t.Run(name, func(t *testing.T) {
			o.TempDir = t.TempDir()
			if _, err := image.Pack(context.Background(), o); err == nil {
				t.Fatal("accepted")
			}
			if left := must(os.ReadDir(o.TempDir)); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestPackOrder is the law that the order in which a file system lists names,
// and in which files were made, does not matter.
func TestPackOrder(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-c]{1,2}(/[a-c.]{1,2}x){0,2}y`), 1, 8, rapid.ID).Draw(rt, "names")
		other := rapid.Permutation(names).Draw(rt, "other order")
		var digests []string
		for _, order := range [][]string{names, other} {
			dir, err := os.MkdirTemp("", "assay-test-")
			if err != nil {
				rt.Fatal(err)
			}
			defer os.RemoveAll(dir)
			for _, n := range order {
				write(t, dir, map[string]string{n: n})
			}
			digests = append(digests, packDigest(t, image.PackOptions{Folders: []image.Folder{{Host: dir, Path: "/"}}, Platform: amd64}))
		}
		if digests[0] != digests[1] {
			rt.Fatalf("two orders, two digests: %v", names)
		}
	})
}

// TestGoRootBuilds builds a program with what GoRoot packs, for two platforms
// and with nothing else of the toolchain in reach.
func TestGoRootBuilds(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles a part of the standard library; runs without -short")
	}
	goroot := strings.TrimSpace(string(must(exec.Command("go", "env", "GOROOT").Output())))
	folders, err := image.GoRoot(goroot, "/go", image.Platform{})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	p, err := image.Pack(ctx, image.PackOptions{Folders: folders, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r := newRig(t)
	s, _ := openStore(t, r, t.TempDir(), nil)
	img, err := s.Ensure(ctx, r.push(t, "go", p), image.Platform{})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, d := range img.Dirs() {
		if out, err := exec.Command("cp", "-a", d+"/.", root).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	src := t.TempDir()
	write(t, src, map[string]string{"go.mod": "module x\n\ngo 1.21\n", "main.go": "package main\n\nimport \"strconv\"\n\nfunc main() { println(strconv.Itoa(42)) }\n"})
	cache := t.TempDir()
	for _, arch := range []string{"amd64", "arm64"} {
		cmd := exec.Command(filepath.Join(root, "go/bin/go"), "build", "-trimpath", "-o", filepath.Join(src, "x-"+arch), ".")
		cmd.Dir = src
		cmd.Env = []string{"HOME=" + src, "PATH=/nowhere", "GOROOT=" + filepath.Join(root, "go"), "GOCACHE=" + cache, "GOPATH=" + t.TempDir(),
			"GOFLAGS=-mod=mod", "GOPROXY=off", "GOTOOLCHAIN=local", "CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch, "GOTELEMETRY=off"}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building for %s: %v\n%s", arch, err, out)
		}
	}
	if _, err := image.GoRoot(src, "/go", image.Platform{}); err == nil {
		t.Error("a folder without a toolchain is accepted")
	}
}

func BenchmarkPack(b *testing.B) {
	goroot := strings.TrimSpace(string(must(exec.Command("go", "env", "GOROOT").Output())))
	folders, err := image.GoRoot(goroot, "/go", image.Platform{})
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []string{"zstd", "gzip"} {
		b.Run(c, func(b *testing.B) {
			for b.Loop() {
				packDigest(b, image.PackOptions{Folders: folders, Compression: c})
			}
		})
	}
}
