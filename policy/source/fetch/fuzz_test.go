package fetch

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func FuzzParseGit(f *testing.F) {
	for _, s := range []string{
		"git::https://host/org/repo.git//sub?ref=main", "git@github.com:org/repo", "git::file:///x//y?ref=z", "git::./x", "github.com/a/b?depth=1//c",
		"git::ssh://git@host:22/x", "git::https://u:p@host/x", "git::https://[::1]:1/x", "git:://", "git::~/x//y",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 4096 {
			return
		}
		a, err := parseGit("/base", s)
		if err != nil {
			return
		}
		if a.subdir == ".." || strings.HasPrefix(a.subdir, "../") || strings.HasPrefix(a.subdir, "/") {
			t.Fatalf("%q: folder %q", s, a.subdir)
		}
		if (a.url == nil) == (a.folder == "") {
			t.Fatalf("%q: %+v", s, a)
		}
		if a.url != nil && a.url.Scheme != "https" && a.url.Scheme != "ssh" {
			t.Fatalf("%q is fetched by %s", s, a.url.Scheme)
		}
		if a.url != nil && a.url.User != nil {
			if p, ok := a.url.User.Password(); ok && len(p) > 8 && strings.Contains(a.at("c"), p) {
				t.Fatalf("%q is pinned to %q, with its password", s, a.at("c"))
			}
		}
	})
}

func FuzzRedacted(f *testing.F) {
	f.Add("git::https://u:p@h/x?ref=a@b")
	f.Add("https://h/x")
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 4096 {
			return
		}
		before, user, after := splitUser(s)
		if before+user+after != s {
			t.Fatalf("%q: %q %q %q", s, before, user, after)
		}
		if r := Redacted(s); Redacted(r) != r && !strings.Contains(r, "@") {
			t.Fatalf("%q: %q", s, r)
		}
	})
}

func FuzzParseOCI(f *testing.F) {
	f.Add("oci::quay.io/a/b:c")
	f.Add("oci://localhost:5000/a@sha256:" + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 4096 {
			return
		}
		if ref, err := parseOCI(s); err == nil && ref.Context().RegistryStr() == "" {
			t.Fatalf("%q: %v", s, ref)
		}
	})
}

func FuzzParseLock(f *testing.F) {
	f.Add([]byte(`{"version":1,"policy":"policy.yaml","sources":{"a":{"pinned":"b","digest":"sha256:` + strings.Repeat("a", 64) + `","path":"sources/a"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 64<<10 {
			return
		}
		l, err := ParseLock(raw)
		if err != nil {
			return
		}
		for _, e := range l.Sources {
			if e.Path != "" && !filepath.IsLocal(e.Path) {
				t.Fatalf("path %q", e.Path)
			}
		}
	})
}

func FuzzNetrc(f *testing.F) {
	f.Add("machine h login a password b\ndefault login c", "h")
	f.Add("macdef x\n machine h\n\nmachine h password p", "h")
	f.Fuzz(func(t *testing.T, text, host string) {
		if len(text) > 64<<10 {
			return
		}
		login, password, ok := parseNetrc(text, host)
		if !ok && (login != "" || password != "") {
			t.Fatal("somebody else's credentials")
		}
	})
}

// FuzzUnpack: whatever an archive or a title is called, nothing is written outside, and
// no more than the limits say.
func FuzzUnpack(f *testing.F) {
	f.Add("policy", archive(f, tar.Header{Name: "policy/a", Typeflag: tar.TypeReg, Linkname: "x"}))
	f.Add("policy", archive(f, tar.Header{Name: "policy/../../a", Typeflag: tar.TypeReg, Linkname: "x"}))
	f.Add("../a", []byte("x"))
	f.Add("a/b", archive(f, tar.Header{Name: "a/b", Typeflag: tar.TypeSymlink, Linkname: "/etc"}))
	f.Fuzz(func(t *testing.T, title string, b []byte) {
		if len(title) > 4096 || len(b) > 64<<10 {
			return
		}
		outer := t.TempDir()
		dir := filepath.Join(outer, "in")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		limits := Limits{Transfer: 1 << 20, Bytes: 1 << 16, File: 1 << 14, Files: 8}
		p := &place{root: root, limits: limits}
		_ = p.file(title, bytes.NewReader(b))
		if checkName(title) == nil {
			_ = p.tarGzip(title, bytes.NewReader(b))
		}
		if list, err := os.ReadDir(outer); err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		files := 0
		if err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				files++
				if info, err := d.Info(); err != nil || !info.Mode().IsRegular() || info.Size() > limits.File+1 {
					t.Fatalf("%v, %v", d, err)
				}
			}
			return err
		}); err != nil || files > limits.Files {
			t.Fatalf("%d files, %v", files, err)
		}
	})
}

func FuzzDelta(f *testing.F) {
	f.Add([]byte{0x90, 0x01, 0x05})
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := deltaTarget(b); err == nil && n < 0 {
			t.Fatal(n)
		}
	})
}

// FuzzPack: a pack that a stranger sent is read or refused.
func FuzzPack(f *testing.F) {
	f.Add([]byte("PACK\x00\x00\x00\x02\x00\x00\x00\x01\x33abc"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64<<10 {
			return
		}
		file, err := os.Create(filepath.Join(t.TempDir(), "pack"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if _, err := file.Write(b); err != nil {
			t.Fatal(err)
		}
		_, _ = unpack(file, filepath.Join(t.TempDir(), "objects"), Limits{Transfer: 1 << 20, Bytes: 1 << 20, File: 1 << 18, Files: 8})
	})
}
