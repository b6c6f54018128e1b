package unicheck_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/task/unicheck"
)

func scan(t *testing.T, files map[string]string) *unicheck.Report {
	t.Helper()
	dir := t.TempDir()
	for name, s := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := unicheck.Scan(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestScan(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  []string // file:line:column severity rune
	}{
		"plain text":                 {map[string]string{"a.go": "package a // ä ö 漢字\n"}, nil},
		"trojan source":              {map[string]string{"a.go": "x\n/* \u202e } \u2066 */"}, []string{"a.go:2:4 failure 202E", "a.go:2:8 failure 2066"}},
		"every control of a line":    {map[string]string{"a": "\u202a\u202b\u202c\u202d\u2067\u2068\u2069\u200e\u200f\u061c"}, []string{"a:1:1 failure 202A", "a:1:2 failure 202B", "a:1:3 failure 202C", "a:1:4 failure 202D", "a:1:5 failure 2067", "a:1:6 failure 2068", "a:1:7 failure 2069", "a:1:8 failure 200E", "a:1:9 failure 200F", "a:1:10 failure 061C"}},
		"zero width space in a name": {map[string]string{"a": "is\u200bAdmin"}, []string{"a:1:3 warning 200B"}},
		"byte order mark":            {map[string]string{"a": "\ufeffok"}, nil},
		"byte order mark inside":     {map[string]string{"a": "o\ufeffk"}, []string{"a:1:2 warning FEFF"}},
		"joiner in an emoji":         {map[string]string{"a": "👩\u200d💻"}, nil},
		"joiner in Persian":          {map[string]string{"a": "می\u200cخواهم"}, nil},
		"joiner after Latin":         {map[string]string{"a": "ad\u200dmin"}, []string{"a:1:3 warning 200D"}},
		"emoji presentation, keycap": {map[string]string{"a": "❤\ufe0f 1\ufe0f\u20e3"}, nil},
		"bytes hidden in selectors":  {map[string]string{"a": "x\ufe01\ufe02"}, []string{"a:1:2 warning FE01", "a:1:3 warning FE02"}},
		"hidden prompt in tags":      {map[string]string{"a": "x\U000e0041"}, []string{"a:1:2 warning E0041"}},
		"hangul filler identifier":   {map[string]string{"a": "const { \u3164 } = x"}, []string{"a:1:9 warning 3164"}},
		"file name":                  {map[string]string{"d/x\u202egnp.exe": "x"}, []string{"d/x\u202egnp.exe:0:2 failure 202E"}},
		"binary file":                {map[string]string{"a": "\x00\u202e"}, nil},
		"not UTF-8":                  {map[string]string{"a": "\xff\xfe caf\xe9\n\u202e"}, []string{"a:2:1 failure 202E"}},
		"across the buffer's end":    {map[string]string{"a": strings.Repeat("x", 65535) + "\u202e"}, []string{"a:1:65536 failure 202E"}},
		"hidden folder":              {map[string]string{".x/.y": "\u202e"}, []string{".x/.y:1:1 failure 202E"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := scan(t, c.files)
			var got []string
			for _, f := range r.Findings {
				got = append(got, fmt.Sprintf("%s:%d:%d %s %04X", f.File, f.Line, f.Column, f.Severity, f.Rune))
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			if len(r.Findings) != r.Failures+r.Warnings {
				t.Errorf("%d findings, counted %d and %d", len(r.Findings), r.Failures, r.Warnings)
			}
		})
	}
}

func TestScanCountsBeyondItsList(t *testing.T) {
	r := scan(t, map[string]string{"a": strings.Repeat("\u202e", unicheck.MaxFindings+5)})
	if r.Failures != unicheck.MaxFindings+5 || len(r.Findings) != unicheck.MaxFindings {
		t.Errorf("counted %d, listed %d", r.Failures, len(r.Findings))
	}
}

func TestScanDoesNotFollowLinksOrOpenPipes(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(out, []byte("\u202e"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(out, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := unicheck.Scan(context.Background(), dir)
	if err != nil || r.Files != 0 || r.Failures != 0 {
		t.Errorf("report %+v, error %v", r, err)
	}
}

func FuzzScan(f *testing.F) {
	f.Add([]byte("package a\n/* \u202e */"))
	f.Add([]byte("\ufeff\xff\u200d"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<14 {
			return
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "f"), in, 0o644); err != nil {
			t.Fatal(err)
		}
		r, err := unicheck.Scan(context.Background(), dir)
		if err != nil {
			t.Fatal(err)
		}
		head := in[:min(len(in), 8<<10)]
		if r.Binary == 0 && strings.ContainsAny(string(in), "\u202e\u2066\u200f") && r.Failures == 0 {
			t.Fatalf("missed a bidirectional control in %q", in)
		}
		if (r.Binary == 1) != strings.ContainsRune(string(head), 0) {
			t.Fatalf("%q taken for binary: %v", in, r.Binary == 1)
		}
		for _, x := range r.Findings {
			for _, c := range x.String() {
				if c < 0x20 || c >= utf8.RuneSelf {
					t.Fatalf("finding prints %U", c)
				}
			}
		}
	})
}
