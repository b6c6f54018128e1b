// What conftest's own packages do is tested with the program, in package ec; here is
// what is around them.
package conftest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/policy/source"
)

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestExpand(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a/x.yaml", "")
	write(t, dir, "a/x.unknown", "")
	write(t, dir, "a/b/Dockerfile", "")
	write(t, dir, "c/y.json", "")
	for from, to := range map[string]string{"a/folder": "c", "a/file": "c/y.json", "c/back": "a"} {
		if err := os.Symlink(filepath.Join(dir, to), filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "none"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		files  []string
		ignore string
		want   []string
		err    string
	}{
		"a file, whatever it is called": {files: []string{"a/x.unknown"}, want: []string{"a/x.unknown"}},
		"standard input":                {files: []string{"-", ""}, want: []string{"-"}},
		"a folder and what links name":  {files: []string{"a"}, want: []string{"a/b/Dockerfile", "c/y.json", "c/y.json", "a/x.yaml"}},
		"but for":                       {files: []string{"a"}, ignore: "fol|/file$", want: []string{"a/b/Dockerfile", "a/x.yaml"}},
		"nothing":                       {files: []string{"none"}, err: "no files found"},
		"no such file":                  {files: []string{"other"}, err: "get file info"},
		"no expression":                 {files: []string{"a"}, ignore: "(", err: "regexp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(dir)
			got, err := expand(tt.files, tt.ignore)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("%v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			for i := range got {
				got[i] = strings.TrimPrefix(got[i], dir+"/")
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

type fetcher struct{ err error }

func (f fetcher) Fetch(ctx context.Context, address string) (*source.Tree, error) {
	if f.err != nil {
		return nil, f.err
	}
	return source.Local{}.Fetch(ctx, address)
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	in := write(t, dir, "in.yaml", "a: 1\n---\na: 2\n")
	remote := filepath.Dir(write(t, dir, "remote/sub/deny.rego", "package main\n\ndeny contains \"two\" if input.a == 2\n"))
	o := Options{Policy: []string{filepath.Join(dir, "policy")}, Namespace: []string{"main"}, RegoVersion: "v1", Update: []string{filepath.Dir(remote)}, Sources: fetcher{}}
	list, err := Run(t.Context(), []string{in}, o)
	if err != nil {
		t.Fatal(err)
	}
	if list.ExitCode() != 1 || !Evaluated(list) {
		t.Errorf("%+v", list)
	}
	var b bytes.Buffer
	if err := Write(&b, list, Form{Name: "tap"}); err != nil || !strings.Contains(b.String(), "not ok") {
		t.Errorf("%v\n%s", err, &b)
	}
	o.Combine = true
	if list, err = Run(t.Context(), []string{in}, o); err != nil || list.ExitCode() != 0 {
		t.Errorf("combined: %+v %v", list, err)
	}
	o.Namespace = []string{"other"}
	if list, err = Run(t.Context(), []string{in}, o); err != nil || Evaluated(list) {
		t.Errorf("of another package: %+v %v", list, err)
	}
	for name, tt := range map[string]struct {
		change func(*Options)
		want   string
	}{
		"nothing to fetch with": {func(o *Options) { o.Sources = nil }, "update policies"},
		"not fetched":           {func(o *Options) { o.Sources = fetcher{errors.New("gone")} }, "update policies: gone"},
		"no capabilities":       {func(o *Options) { o.Capabilities = "none.json" }, "load capabilities"},
		"no version":            {func(o *Options) { o.RegoVersion = "v7" }, "invalid Rego version"},
		"no parser":             {func(o *Options) { o.Parser = "none" }, "unknown parser"},
	} {
		x := o
		tt.change(&x)
		if list, err := Run(t.Context(), []string{in}, x); err == nil || !strings.Contains(err.Error(), tt.want) || list != nil {
			t.Errorf("%s: %v, %v", name, list, err)
		}
	}
}
