package fetch

import (
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func fill(text string) func(context.Context, *place) error {
	return func(_ context.Context, p *place) error {
		return errors.Join(p.file("a.rego", strings.NewReader(text)), p.file("docs/README", strings.NewReader("x")))
	}
}

// TestCacheBelievesNothing: an entry that is not as it was written is none.
func TestCacheBelievesNothing(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, dir string){
		"rule changed":  func(t *testing.T, dir string) { write(t, dir, map[string]string{"tree/a.rego": "package evil"}) },
		"other changed": func(t *testing.T, dir string) { write(t, dir, map[string]string{"tree/docs/README": "y"}) },
		"file added":    func(t *testing.T, dir string) { write(t, dir, map[string]string{"tree/b.rego": "package b"}) },
		"hidden added":  func(t *testing.T, dir string) { write(t, dir, map[string]string{"tree/..b": "x"}) },
		"file gone":     func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "tree/a.rego"))) },
		"link": func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, "tree/docs/README")))
			must(t, os.Symlink("/etc/hostname", filepath.Join(dir, "tree/docs/README")))
		},
		"other entry": func(t *testing.T, dir string) { write(t, dir, map[string]string{"entry.json": `{"key":"other"}`}) },
		"no entry":    func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "entry.json"))) },
		"no json":     func(t *testing.T, dir string) { write(t, dir, map[string]string{"entry.json": `{`}) },
		"no tree":     func(t *testing.T, dir string) { must(t, os.RemoveAll(filepath.Join(dir, "tree"))) },
	} {
		t.Run(name, func(t *testing.T) {
			c := &cache{dir: t.TempDir(), limits: Limits{}.withDefaults()}
			put := func() {
				tree, err := c.put(t.Context(), "k", "pinned", fill("package a"))
				if err != nil || tree.Pinned != "pinned" {
					t.Fatalf("%v, %v", tree, err)
				}
			}
			put()
			if _, err := c.get("k", "p"); err != nil {
				t.Fatal(err)
			}
			harm(t, c.place("k"))
			if tree, err := c.get("k", "p"); !errors.Is(err, errMissing) {
				t.Fatalf("%v, %v", tree, err)
			}
			put()
			if _, err := c.get("k", "p"); err != nil {
				t.Error(err)
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCacheAtOnce(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			c := &cache{dir: dir, limits: Limits{}.withDefaults()} // as another process has it
			for range 4 {
				if tree, err := c.put(t.Context(), "k", "p", fill("package a")); err != nil || len(paths(t, tree)) != 1 {
					t.Errorf("%v, %v", tree, err)
				}
			}
		})
	}
	wg.Wait()
	if list, err := os.ReadDir(filepath.Join(dir, "v1")); err != nil || len(list) != 1 {
		t.Errorf("left: %v, %v", list, err)
	}
}

// TestCacheKilled: a process that dies leaves nothing that is half there. The test's
// own binary is that process.
func TestCacheKilled(t *testing.T) {
	if dir := os.Getenv("ASSAY_TEST_CACHE"); dir != "" {
		c := &cache{dir: dir, limits: Limits{}.withDefaults()}
		_, _ = c.put(t.Context(), "k", "p", func(_ context.Context, p *place) error {
			_ = p.file("a.rego", strings.NewReader("package half"))
			os.Exit(3)
			return nil
		})
	}
	dir := t.TempDir()
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCacheKilled$")
	c.Env = append(os.Environ(), "ASSAY_TEST_CACHE="+dir)
	var exit *exec.ExitError
	if err := c.Run(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Fatal(err)
	}
	k := &cache{dir: dir, limits: Limits{}.withDefaults()}
	if _, err := k.get("k", "p"); !errors.Is(err, errMissing) {
		t.Error(err)
	}
	list, err := filepath.Glob(filepath.Join(dir, "v1", "tmp-*"))
	if err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	old := time.Now().Add(-2 * keepAside)
	must(t, os.Chtimes(list[0], old, old))
	if _, err := k.put(t.Context(), "k", "p", fill("package a")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(list[0]); err == nil {
		t.Error("what the dead left is still there")
	}
	// What nobody asked for in a long time goes.
	old = time.Now().Add(-2 * keepEntry)
	must(t, os.Chtimes(k.place("k"), old, old))
	if _, err := k.put(t.Context(), "k2", "p", fill("package b")); err != nil {
		t.Error(err)
	}
	if _, err := k.get("k", "p"); !errors.Is(err, errMissing) {
		t.Error("an old entry is still there")
	}
}

// TestNoHome: without a folder of one's own, there is one in /tmp that is ours alone,
// or none.
func TestNoHome(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"file": "x"})
	c := &cache{dir: filepath.Join(dir, "file", "x"), other: filepath.Join(dir, "tmp"), limits: Limits{}.withDefaults()}
	if _, err := c.put(t.Context(), "k", "p", fill("package a")); err != nil {
		t.Error(err)
	}
	must(t, os.Chmod(filepath.Join(dir, "tmp"), 0o777))
	c = &cache{other: filepath.Join(dir, "tmp"), limits: Limits{}.withDefaults()}
	_, err := c.get("k", "p")
	refused(t, err, "XDG_CACHE_HOME", "somebody else's")
	c = &cache{dir: filepath.Join(dir, "file", "x")}
	_, err = c.put(t.Context(), "k", "p", fill("package a"))
	refused(t, err, "XDG_CACHE_HOME")
}

func TestChecksums(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"a/x.rego": "package x", "b/y.rego": "package y"})
	f := fetcher(t, http.DefaultTransport, Options{Base: dir})
	a, err := f.Fetch(t.Context(), "./a")
	must(t, err)
	b, err := f.Fetch(t.Context(), "./b")
	must(t, err)
	sums := map[string]string{"./a": a.Digest}
	f = fetcher(t, http.DefaultTransport, Options{Base: dir, Checksums: sums})
	if _, err := f.Fetch(t.Context(), "./a"); err != nil {
		t.Error(err)
	}
	_, err = f.Fetch(t.Context(), "./b")
	refused(t, err, `"./b"`, "do not list it", b.Digest)
	sums["./b"] = a.Digest
	_, err = f.Fetch(t.Context(), "./b")
	refused(t, err, `"./b"`, a.Digest, b.Digest)
}
