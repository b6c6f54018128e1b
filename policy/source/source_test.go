package source

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestKindOf(t *testing.T) {
	for address, want := range map[string]Kind{
		"./rules": File, "/etc/rules": File, "rules": File, "~/r": File, "file::x": File, "file:///x": File, ".": File, "../x": File, "policy/release": File,
		"/home/github.com/x": File, "./x.git": File,
		"github.com/a/b//c?ref=d": Git, "git::https://x/y": Git, "https://github.com/a/b": Git, "x/y.git": Git, "x/y.git?ref=z": Git, "git@host:a/b": Git,
		"git://host/x": Git, "git::file:///x": Git, "git::./x": Git, "https://www.gitlab.com/a": Git, "bitbucket.org/a/b": Git, "git::ssh://git@h/x": Git,
		"oci::quay.io/a/b": OCI, "quay.io/a/b:c": OCI, "oci://x": OCI, "localhost:5000/a": OCI, "127.0.0.1/a": OCI,
		"x.azurecr.io/a": OCI, "eu.gcr.io/a": OCI, "us-docker.pkg.dev/p/r": OCI, "123456789012.dkr.ecr.us-east-1.amazonaws.com/a": OCI,
		"https://example.com/p.tar": HTTPS, "https://example.com/github.com/x": HTTPS, "https://example.com/x.git": HTTPS,
		"https://raw.githubusercontent.com/a/b/main/policy.yaml": HTTPS, "HTTPS://example.com/x": HTTPS,
		// As go-gather: these are no registry of its list, and so a path.
		"docker.io/a": File, "ghcr.io/a": File, "amazonaws.com/a": File, "xquay.io/a": File,
		// A known git host counts before a registry.
		"registry.gitlab.com/a/b": Git, "registry.gitlab.com": Git,
	} {
		if got, err := KindOf(address); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", address, got, err, want)
		}
	}
	for address, want := range map[string]string{
		"": "empty", " ": "empty", "http://x/y": "insecure", "git::http://x/y": "insecure", "HTTP://x": "insecure", "http:x": "insecure", "GIT::HTTP://x": "insecure",
		"s3::https://x": `"s3"`, "hg::x": `"hg"`, "ftp://x": `"ftp"`, "https::https://x": `"https"`,
	} {
		if got, err := KindOf(address); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v, want an error with %q", address, got, err, want)
		}
	}
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func paths(t *testing.T, tree *Tree, want func(string) bool) []string {
	t.Helper()
	list, err := tree.Files(want)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range list {
		out = append(out, f.Path)
	}
	return out
}

func TestLocal(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"p/a.rego": "package a", "p/a_test.rego": "package a", "p/b/c.REGO": "package c", "p/b/d.json": "{}", "p/e.yaml": "", "p/f.yml": "", "p/README.md": "x",
		"p/.git/x.rego": "", "p/.ec/policy.yaml": "", "outside/x.rego": "package x", "outside/f.rego": "package f",
	})
	// A mounted ConfigMap.
	write(t, dir, map[string]string{"cm/..2026/rules.rego": "package cm"})
	for from, to := range map[string]string{"cm/..data": "..2026", "cm/rules.rego": "..data/rules.rego", "p/inside": "b", "p/linked.rego": "../outside/f.rego", "p/dead": "nowhere"} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	l := Local{Base: dir}
	tree, err := l.Fetch(t.Context(), "./p")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{".ec/policy.yaml", "a.rego", "b/c.REGO", "b/d.json", "e.yaml", "f.yml", "linked.rego"}, paths(t, tree, nil)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"a.rego", "b/c.REGO", "linked.rego"}, paths(t, tree, IsRego)); diff != "" {
		t.Error(diff)
	}
	if tree.Address != "./p" || tree.Pinned != "file::./p" {
		t.Errorf("%+v", tree)
	}
	// What was read is what is evaluated, whatever happens to the files.
	write(t, dir, map[string]string{"p/a.rego": "package changed"})
	again, err := tree.Files(IsRego)
	if err != nil || string(again[0].Bytes) != "package a" {
		t.Errorf("%s, %v", again[0].Bytes, err)
	}
	if cm, err := l.Fetch(t.Context(), "file::cm"); err != nil {
		t.Error(err)
	} else if diff := cmp.Diff([]string{"rules.rego"}, paths(t, cm, nil)); diff != "" {
		t.Error(diff)
	}
	if one, err := l.Fetch(t.Context(), "p/a.rego"); err != nil || len(paths(t, one, IsRego)) != 1 || len(paths(t, one, IsData)) != 0 {
		t.Errorf("%v, %v", one, err)
	}
	// A bare name that looks like a registry's is a folder if there is one.
	write(t, dir, map[string]string{"quay.io/org/x.rego": "package x"})
	if q, err := l.Fetch(t.Context(), "quay.io/org"); err != nil || len(paths(t, q, nil)) != 1 {
		t.Error(err)
	}
	if err := os.Symlink("../outside", filepath.Join(dir, "p", "out")); err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"./p": "link to a folder outside", "./none": "no such file", "quay.io/other": "oci sources are not fetched here", "git::https://x/y": "git sources are not fetched",
		"http://x": "insecure", "file::": "names no file", "/dev/null": "",
	} {
		_, err := l.Fetch(t.Context(), address)
		if want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), address)) {
			t.Errorf("%s: %v, want %q", address, err, want)
		}
	}
}

// TestDigest: the digest is of what counts, not of where it lies.
func TestDigest(t *testing.T) {
	files := map[string]string{"a.rego": "package a", "b/c.json": "{}"}
	one, two := t.TempDir(), t.TempDir()
	write(t, one, files)
	write(t, two, files)
	write(t, two, map[string]string{"README": "", "a_test.rego": "package t", ".git/config": ""})
	a, err := Open(one)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(two)
	if err != nil {
		t.Fatal(err)
	}
	if a.Digest != b.Digest {
		t.Errorf("%s, %s", a.Digest, b.Digest)
	}
	write(t, two, map[string]string{"b/d.yml": ""})
	if b, err = Open(two); err != nil || a.Digest == b.Digest {
		t.Errorf("%v, %v", b, err)
	}
}

func TestDigestLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		file := rapid.Custom(func(t *rapid.T) Content {
			return Content{rapid.StringMatching(`[a-z]{1,3}(/[a-z]{1,3})?\.rego`).Draw(t, "path"), rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "bytes")}
		})
		by := func(c Content) string { return c.Path }
		a := rapid.SliceOfNDistinct(file, 0, 6, by).Draw(t, "a")
		b := rapid.Permutation(a).Draw(t, "b")
		if DigestOf(a) != DigestOf(b) {
			t.Fatal("order matters")
		}
		c := rapid.SliceOfNDistinct(file, 0, 6, by).Draw(t, "c")
		set := func(l []Content) map[string]string {
			m := map[string]string{}
			for _, f := range l {
				m[f.Path] = string(f.Bytes)
			}
			return m
		}
		if same := cmp.Equal(set(a), set(c)); same != (DigestOf(a) == DigestOf(c)) {
			t.Fatalf("the same files: %v, digests %s, %s", same, DigestOf(a), DigestOf(c))
		}
	})
}

func TestBounds(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.json")
	f, err := os.Create(big)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(MaxFileBytes+1), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "larger than 64 MiB") {
		t.Error(err)
	}
	if err := os.Remove(big); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(big, 0o755); err != nil {
		t.Fatal(err)
	}
	if tree, err := Open(dir); err != nil || len(paths(t, tree, nil)) != 0 {
		t.Errorf("a folder by a file's name: %v", err)
	}
}

type counted struct {
	n    atomic.Int64
	fail atomic.Bool
}

func (c *counted) Fetch(_ context.Context, address string) (*Tree, error) {
	c.n.Add(1)
	if c.fail.Load() {
		return nil, errors.New("down")
	}
	return &Tree{Address: address}, nil
}

func TestOnce(t *testing.T) {
	c := &counted{}
	f := Once(c)
	c.fail.Store(true)
	if _, err := f.Fetch(t.Context(), "a"); err == nil {
		t.Error("no error")
	}
	c.fail.Store(false)
	var wg sync.WaitGroup
	trees := make([]*Tree, 16)
	for i := range trees {
		wg.Go(func() {
			var err error
			if trees[i], err = f.Fetch(t.Context(), "a"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, tree := range trees {
		if tree != trees[0] {
			t.Error("two trees of one address")
		}
	}
	if n := c.n.Load(); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

func FuzzKindOf(f *testing.F) {
	for _, s := range []string{"git::https://x/y//z?ref=a", "oci::quay.io/a@sha256:b", "https://[::1]:1/x", "file::~/x", "a::b::c", "http:", "localhost:x/y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 4096 {
			return
		}
		kind, err := KindOf(s)
		if (kind == "") != (err != nil) {
			t.Fatalf("%q: %q, %v", s, kind, err)
		}
		if err == nil && kind != File && strings.HasPrefix(strings.ToLower(s), "http:") {
			t.Fatalf("%q is fetched over plain http", s)
		}
		if kind == File {
			if p, err := Path("/base", s); err == nil && !filepath.IsAbs(p) && !strings.HasPrefix(s, "~/") {
				t.Fatalf("%q: %q", s, p)
			}
		}
	})
}
