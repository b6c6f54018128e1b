package gomod_test

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"

	"assay.dev/assay/sbom"
	"assay.dev/assay/task/gomod"
)

// proxy writes a module proxy with one module, example.com/dep v1.0.0, and
// returns its address and the module's go.sum lines. extra is added to one of
// its files.
func proxy(t *testing.T, extra string) (url, sums string) {
	t.Helper()
	src := t.TempDir()
	write(t, filepath.Join(src, "go.mod"), "module example.com/dep\n\ngo 1.21\n")
	write(t, filepath.Join(src, "dep.go"), "package dep\n\nconst Word = \"dep\""+extra+"\n")
	dir := t.TempDir()
	v := filepath.Join(dir, "example.com/dep/@v")
	write(t, filepath.Join(v, "list"), "v1.0.0\n")
	write(t, filepath.Join(v, "v1.0.0.info"), `{"Version":"v1.0.0","Time":"2024-01-01T00:00:00Z"}`)
	write(t, filepath.Join(v, "v1.0.0.mod"), "module example.com/dep\n\ngo 1.21\n")
	var b bytes.Buffer
	m := module.Version{Path: "example.com/dep", Version: "v1.0.0"}
	if err := modzip.CreateFromDir(&b, m, src); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(v, "v1.0.0.zip")
	write(t, file, b.String())
	h, err := dirhash.HashZip(file, dirhash.Hash1)
	if err != nil {
		t.Fatal(err)
	}
	hm, err := dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return os.Open(filepath.Join(src, "go.mod"))
	})
	if err != nil {
		t.Fatal(err)
	}
	return "file://" + dir, "example.com/dep v1.0.0 " + h + "\nexample.com/dep v1.0.0/go.mod " + hm + "\n"
}

func write(t *testing.T, path, s string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
		t.Fatal(err)
	}
}

func source(t *testing.T, sums string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "go.mod"), "module example.com/app\n\ngo 1.21\n\nrequire example.com/dep v1.0.0\n")
	write(t, filepath.Join(dir, "go.sum"), sums)
	return dir
}

func goroot(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Skipf("no go command on this machine, which prefetching needs: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func fetch(t *testing.T, src, proxy string) (string, []gomod.Module, error) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out")
	var log bytes.Buffer
	f := gomod.Fetcher{GoRoot: goroot(t), Proxy: proxy, Work: t.TempDir(), Log: &log}
	mods, err := f.Fetch(context.Background(), src, []gomod.Package{{Path: "."}}, out, time.Unix(1700000000, 0))
	if err != nil {
		t.Logf("go: %s", log.String())
	}
	return out, mods, err
}

// tree lists the files below dir with their content.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		rel, _ := filepath.Rel(dir, p)
		out[filepath.ToSlash(rel)] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestFetchWritesWhatGoSumPins(t *testing.T) {
	url, sums := proxy(t, "")
	out, mods, err := fetch(t, source(t, sums), url)
	if err != nil {
		t.Fatal(err)
	}
	if len(mods) != 1 || mods[0].Path != "example.com/dep" || mods[0].Sum == "" || mods[0].GoModSum == "" {
		t.Errorf("modules: %+v", mods)
	}
	files := tree(t, out)
	var names []string
	for n := range files {
		names = append(names, strings.TrimPrefix(n, gomod.ProxyDir+"/"))
	}
	want := map[string]bool{"bom.json": true, "example.com/dep/@v/v1.0.0.mod": true, "example.com/dep/@v/v1.0.0.zip": true}
	for _, n := range names {
		if !want[n] {
			t.Errorf("file %s does not belong into the tree", n)
		}
	}
	if len(names) != len(want) {
		t.Errorf("files %v, want %v", names, want)
	}
	doc, err := sbom.ReadSPDX([]byte(files["bom.json"]))
	if err != nil {
		t.Fatal(err)
	}
	if len(doc.Packages) != 1 || doc.Packages[0].PURL != "pkg:golang/example.com/dep@v1.0.0" || !strings.Contains(doc.Packages[0].Comment, "h1:") {
		t.Errorf("bill of materials: %+v", doc.Packages)
	}
	// Another time, another place, a zip packed otherwise: the same tree.
	src := strings.TrimPrefix(url, "file://") + "/example.com/dep/@v/v1.0.0.zip"
	repackOtherwise(t, src)
	again, _, err := fetch(t, source(t, sums), url)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(files, tree(t, again)); diff != "" {
		t.Errorf("fetching again gives another tree:\n%s", diff)
	}
}

// repackOtherwise writes the same content as a zip with other bytes.
func repackOtherwise(t *testing.T, path string) {
	t.Helper()
	r, err := zip.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i := len(r.File) - 1; i >= 0; i-- {
		e, err := w.CreateHeader(&zip.FileHeader{Name: r.File[i].Name, Method: zip.Deflate, Modified: time.Now()})
		if err != nil {
			t.Fatal(err)
		}
		in, err := r.File[i].Open()
		if err != nil {
			t.Fatal(err)
		}
		var c bytes.Buffer
		if _, err := c.ReadFrom(in); err != nil {
			t.Fatal(err)
		}
		if _, err := e.Write(c.Bytes()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	write(t, path, b.String())
}

func TestFetchRefusesWhatGoSumDoesNotPin(t *testing.T) {
	url, sums := proxy(t, "")
	other, _ := proxy(t, " + \" with a back door\"")
	lines := strings.SplitAfter(sums, "\n")
	for name, c := range map[string]struct{ url, sums string }{
		"a proxy with other bytes": {other, sums},
		"an empty go.sum":          {url, ""},
		"a go.sum without the zip": {url, lines[1]},
		"a go.sum that is no text": {url, "\x00\x01"},
		"no proxy":                 {"off", sums},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, err := fetch(t, source(t, c.sums), c.url); err == nil {
				t.Error("fetched without an error")
			}
		})
	}
}

func TestVerifyNotesEveryEdit(t *testing.T) {
	url, lines := proxy(t, "")
	sums, err := gomod.ParseSums([]byte(lines))
	if err != nil {
		t.Fatal(err)
	}
	zipName := gomod.ProxyDir + "/example.com/dep/@v/v1.0.0.zip"
	modName := gomod.ProxyDir + "/example.com/dep/@v/v1.0.0.mod"
	for name, c := range map[string]struct {
		edit  func(t *testing.T, dir string)
		fails bool
		extra []string
	}{
		"nothing":          {edit: func(*testing.T, string) {}},
		"another go.mod":   {edit: func(t *testing.T, dir string) { write(t, filepath.Join(dir, modName), "module example.com/evil\n") }, fails: true},
		"a zip that isn't": {edit: func(t *testing.T, dir string) { write(t, filepath.Join(dir, zipName), "PK") }, fails: true},
		"an extra file":    {edit: func(t *testing.T, dir string) { write(t, filepath.Join(dir, "deps/NOTE"), "x") }, extra: []string{"deps/NOTE"}},
		"a module nobody pinned": {
			edit: func(t *testing.T, dir string) {
				write(t, filepath.Join(dir, gomod.ProxyDir, "example.com/x/@v/v1.0.0.mod"), "x")
			},
			extra: []string{gomod.ProxyDir + "/example.com/x/@v/v1.0.0.mod"},
		},
		"a link in place of the zip": {edit: func(t *testing.T, dir string) {
			if err := os.Rename(filepath.Join(dir, zipName), filepath.Join(dir, "zip")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("../../../../../../../../../zip", filepath.Join(dir, zipName)); err != nil {
				t.Fatal(err)
			}
		}, extra: []string{zipName, "zip"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, _, err := fetch(t, source(t, lines), url)
			if err != nil {
				t.Fatal(err)
			}
			c.edit(t, out)
			_, extra, err := gomod.Verify(out, sums)
			if (err != nil) != c.fails {
				t.Fatalf("error %v, want one: %v", err, c.fails)
			}
			if diff := cmp.Diff(c.extra, extra); diff != "" {
				t.Errorf("files without a sum (-want +got):\n%s", diff)
			}
		})
	}
}

func TestVerifyMismatchNamesBothSums(t *testing.T) {
	url, lines := proxy(t, "")
	out, _, err := fetch(t, source(t, lines), url)
	if err != nil {
		t.Fatal(err)
	}
	_, other := proxy(t, "+\"x\"")
	sums, err := gomod.ParseSums([]byte(other))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = gomod.Verify(out, sums)
	var mismatch *gomod.MismatchError
	if !errors.As(err, &mismatch) || mismatch.Module.Path != "example.com/dep" || len(mismatch.Want) != 1 || mismatch.Got == "" {
		t.Errorf("error %v is not a full MismatchError", err)
	}
}

func TestParseInput(t *testing.T) {
	dot := []gomod.Package{{Path: "."}}
	for in, want := range map[string][]gomod.Package{
		"":                            nil,
		"gomod":                       dot,
		`{"type":"gomod","path":"."}`: dot,
		`{"type":"gomod"}`:            dot,
		`[{"type":"gomod"},{"type":"gomod","path":"./sub/"}]`:   {{Path: "."}, {Path: "sub"}},
		`{"packages":[{"type":"gomod","path":"a"}],"flags":[]}`: {{Path: "a"}},
	} {
		got, err := gomod.ParseInput(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", in, diff)
		}
	}
	for _, in := range []string{
		"npm", `{"type":"pip"}`, `{"type":"gomod","path":"../x"}`, `{"type":"gomod","path":"/x"}`, `{"type":"gomod","pth":"x"}`,
		`{"packages":[{"type":"gomod"}],"flags":["gomod-vendor"]}`, `[]`, `{}`, `[{"type":"gomod"}] x`, `{"packages":[]}`, `[`,
	} {
		if got, err := gomod.ParseInput(in); err == nil {
			t.Errorf("%s: read as %v", in, got)
		}
	}
}

func TestParseSumsRefuses(t *testing.T) {
	for _, in := range []string{"x", "example.com/a v1.0.0", "example.com/a v1 h1:x", "../a v1.0.0 h1:x", "example.com/a v1.0.0 nothing"} {
		if _, err := gomod.ParseSums([]byte(in)); err == nil {
			t.Errorf("%q: read without an error", in)
		}
	}
}

func TestAddRefusesContradiction(t *testing.T) {
	a, err := gomod.ParseSums([]byte("example.com/a v1.0.0 h1:x\n"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := gomod.ParseSums([]byte("example.com/a v1.0.0 h1:y\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Add(b); err == nil {
		t.Error("two go.sum files that contradict each other were joined")
	}
}

func FuzzParseSums(f *testing.F) {
	f.Add([]byte("example.com/a v1.0.0 h1:x\nexample.com/a v1.0.0/go.mod h1:y\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<16 {
			return
		}
		sums, err := gomod.ParseSums(in)
		if err != nil {
			return
		}
		for v, list := range sums {
			if v.Path == "" || len(list) == 0 {
				t.Fatalf("entry %v pins nothing", v)
			}
		}
	})
}

func FuzzParseInput(f *testing.F) {
	f.Add(`{"packages":[{"type":"gomod","path":"a"}],"flags":[]}`)
	f.Add(`[{"type":"gomod"}]`)
	f.Fuzz(func(t *testing.T, in string) {
		if len(in) > 1<<16 {
			return
		}
		pkgs, err := gomod.ParseInput(in)
		if err != nil {
			return
		}
		for _, p := range pkgs {
			if !filepath.IsLocal(p.Path) {
				t.Fatalf("path %q leaves the source", p.Path)
			}
		}
	})
}
