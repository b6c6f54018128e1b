// The registry is go-containerregistry's, over HTTP on loopback; git repositories are
// made by git itself and served by its own http-backend.
package track

import (
	"fmt"
	"io"
	"log"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

var now = time.Date(2026, 6, 1, 13, 0, 0, 0, time.UTC)

func serve(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// push makes a Tekton bundle of objects, each kind/name.
func push(t *testing.T, ref string, objects ...string) string {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	var err error
	for _, o := range objects {
		kind, _, _ := strings.Cut(o, "/")
		if img, err = mutate.Append(img, mutate.Addendum{
			Layer:       static.NewLayer([]byte(o), types.OCILayer),
			Annotations: map[string]string{kindKey: kind, "dev.tekton.image.name": o, "dev.tekton.image.apiVersion": "v1"},
		}); err != nil {
			t.Fatal(err)
		}
	}
	return write(t, ref, img)
}

func write(t *testing.T, ref string, img v1.Image) string {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(r, img); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

// options are those that the command has by default.
func options(t *testing.T, add ...string) Options {
	return Options{Add: add, Prune: true, InEffectDays: 60, Now: now, Warn: t.Logf}
}

func TestUpdate(t *testing.T) {
	host := serve(t)
	one := push(t, host+"/tasks:1.0", "task/a")
	two := push(t, host+"/tasks:1.1", "task/b", "pipeline/c")
	push(t, host+"/pipelines:1", "pipeline/c")
	const never, later, over = "", "2026-06-10T00:00:00Z", "2026-05-10T00:00:00Z"
	item := func(ref, until string) string {
		if until == never {
			return "    - ref: " + ref + "\n"
		}
		return fmt.Sprintf("    - expires_on: %q\n      ref: %s\n", until, ref)
	}
	head := "---\ntrusted_tasks:\n  oci://" + host + "/tasks:1.0:\n"
	for name, tt := range map[string]struct {
		input string
		o     Options
		want  string
	}{
		"a bundle":               {o: options(t, host+"/tasks:1.0"), want: head + item(one, never)},
		"by digest":              {o: options(t, host+"/tasks@"+one), want: "---\ntrusted_tasks:\n  oci://" + host + "/tasks:\n" + item(one, never)},
		"by tag and digest":      {o: options(t, host+"/tasks:1.0@"+two), want: head + item(two, never)},
		"with a pipeline":        {o: options(t, host+"/tasks:1.1"), want: "---\ntrusted_tasks:\n  oci://" + host + "/tasks:1.1:\n" + item(two, never)},
		"of pipelines":           {o: options(t, host+"/pipelines:1"), want: "---\n{}\n"},
		"nothing":                {o: options(t), want: "---\n{}\n"},
		"a newer one":            {input: head + item("sha256:old", never), o: options(t, host+"/tasks:1.0"), want: head + item(one, never) + item("sha256:old", "2026-08-01T00:00:00Z")},
		"what has an end":        {input: head + item("sha256:old", later), o: options(t, host+"/tasks:1.0"), want: head + item(one, never) + item("sha256:old", later)},
		"the same again":         {input: head + item(one, never), o: options(t, host+"/tasks:1.0"), want: head + item(one, never)},
		"the same, further back": {input: head + item("sha256:x", never) + item(one, later), o: options(t, host+"/tasks:1.0"), want: head + item(one, never) + item("sha256:x", "2026-08-01T00:00:00Z") + item(one, later)},
		"the oldest of neighbours": {
			input: head + item("sha256:x", never) + item("sha256:y", never) + item("sha256:y", later), o: options(t),
			want: head + item("sha256:x", never) + item("sha256:y", later),
		},
		"what is over":       {input: head + item("sha256:x", never) + item("sha256:y", over), o: options(t), want: head + item("sha256:x", never)},
		"all is over":        {input: head + item("sha256:y", over), o: options(t), want: "---\ntrusted_tasks:\n  oci://" + host + "/tasks:1.0: []\n"},
		"over, not pruned":   {input: head + item("sha256:x", never) + item("sha256:y", over), o: Options{InEffectDays: 60, Now: now, Warn: t.Logf}, want: head + item("sha256:x", never) + item("sha256:y", over)},
		"freshened":          {input: head + item("sha256:old", never), o: Options{Prune: true, Freshen: true, InEffectDays: 2, Now: now, Warn: t.Logf}, want: head + item(one, never) + item("sha256:old", "2026-06-04T00:00:00Z")},
		"a file in git":      {o: options(t, "git+https://forge.example/o/r.git//task/0.1/task.yaml@f0cacc1a"), want: "---\ntrusted_tasks:\n  git+https://forge.example/o/r.git//task/0.1/task.yaml:\n" + item("f0cacc1a", never)},
		"a commit of digits": {o: options(t, "git+https://forge.example/o/r.git//t.yaml@1234567"), want: "---\ntrusted_tasks:\n  git+https://forge.example/o/r.git//t.yaml:\n" + item(`"1234567"`, never)},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := (&Registry{}).Update(t.Context(), []byte(tt.input), tt.o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			// What came out goes in, and nothing more happens to it.
			again, err := (&Registry{}).Update(t.Context(), got, Options{InEffectDays: tt.o.InEffectDays, Now: tt.o.Now, Warn: t.Errorf})
			if err != nil || string(again) != string(got) {
				t.Errorf("again: %v\n%s", err, cmp.Diff(string(got), string(again)))
			}
		})
	}
}

func TestRefused(t *testing.T) {
	host := serve(t)
	for name, tt := range map[string]struct {
		input string
		add   string
		want  string
	}{
		"no registry":              {add: "tasks:1.0", want: "resolving bundle tasks:1.0"},
		"neither tag nor digest":   {add: host + "/tasks", want: "could not parse reference"},
		"no such bundle":           {add: host + "/tasks:2", want: "404 Not Found"},
		"no such digest":           {add: host + "/tasks@sha256:" + strings.Repeat("0", 64), want: "reading bundle"},
		"git without a path":       {add: "git+https://forge.example/o/r.git@f0cacc1a", want: "to separate the repository from the path"},
		"git without a revision":   {add: "git+https://forge.example/o/r.git//t.yaml", want: "provide the --freshen parameter"},
		"two documents":            {input: "trusted_tasks: {}\n---\ntrusted_tasks: {a: [{ref: b}]}\n", want: "more than one YAML document"},
		"a key twice":              {input: "trusted_tasks: {a: [{ref: b}], a: [{ref: c}]}\n", want: "already set"},
		"no list":                  {input: "[1]", want: "reading the list"},
		"records that are no list": {input: "trusted_tasks: {a: {ref: b}}", want: "trusted_tasks"},
		"no reference":             {input: "trusted_tasks: {a: [{expires_on: 2026-01-01T00:00:00Z}]}", want: "it has no ref"},
		"a bad date":               {input: "trusted_tasks: {a: [{ref: b, expires_on: soon}]}", want: "item 1, expires_on"},
	} {
		t.Run(name, func(t *testing.T) {
			var add []string
			if tt.add != "" {
				add = []string{tt.add}
			}
			out, err := (&Registry{}).Update(t.Context(), []byte(tt.input), options(t, add...))
			if err == nil || !strings.Contains(err.Error(), tt.want) || out != nil {
				t.Errorf("%q, %v; want %q", out, err, tt.want)
			}
		})
	}
}

// TestDropped: what a list has beside references is not kept, and that is said.
func TestDropped(t *testing.T) {
	var said []string
	o := options(t)
	o.Warn = func(f string, args ...any) { said = append(said, fmt.Sprintf(f, args...)) }
	in := "task-bundles: {}\ntrusted_tasks: {a: [{ref: b, effective_on: 2026-01-01T00:00:00Z}]}\n"
	if _, err := (&Registry{}).Update(t.Context(), []byte(in), o); err != nil {
		t.Fatal(err)
	}
	slices.Sort(said)
	if len(said) != 2 || !strings.Contains(said[0], "effective_on of a") || !strings.Contains(said[1], "task-bundles") {
		t.Errorf("%q", said)
	}
}

func TestRegistry(t *testing.T) {
	host, r := serve(t), &Registry{}
	list := []byte("---\ntrusted_tasks:\n  oci://x/y:1:\n    - ref: sha256:z\n")
	if err := r.Push(t.Context(), host+"/list:latest", list, "ec track bundle"); err != nil {
		t.Fatal(err)
	}
	got, err := r.Pull(t.Context(), host+"/list:latest")
	if err != nil || string(got) != string(list) {
		t.Errorf("%q %v", got, err)
	}
	ref, _ := name.ParseReference(host + "/list:latest")
	img, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	type form struct{ Manifest, Config, Layer, Title string }
	want := form{string(types.OCIManifestSchema1), string(types.OCIConfigJSON), dataLayer, dataTitle}
	if got := (form{string(m.MediaType), string(m.Config.MediaType), string(m.Layers[0].MediaType), m.Layers[0].Annotations[titleKey]}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	push(t, host+"/bundle:1", "task/a")
	if _, err := r.Pull(t.Context(), host+"/bundle:1"); err == nil || !strings.Contains(err.Error(), "no layer of") {
		t.Errorf("of what is no list: %v", err)
	}
	double, err := mutate.AppendLayers(img, static.NewLayer([]byte("x"), dataLayer))
	if err != nil {
		t.Fatal(err)
	}
	write(t, host+"/list:double", double)
	if _, err := r.Pull(t.Context(), host+"/list:double"); err == nil || !strings.Contains(err.Error(), "several layers") {
		t.Errorf("of two lists: %v", err)
	}
}

// TestGit: the revision of a file is the last commit that changed it, merges aside.
func TestGit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed; its package is called git")
	}
	root := t.TempDir()
	dir := filepath.Join(root, "tasks.git")
	at := 0
	run := func(args ...string) string {
		t.Helper()
		at++
		date := fmt.Sprintf("2026-01-01T00:%02d:00Z", at)
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@x",
			"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@x", "GIT_AUTHOR_DATE="+date, "GIT_COMMITTER_DATE="+date)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	change := func(file, content string) string {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(file)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		run("add", ".")
		run("commit", "-q", "-m", file)
		return run("rev-parse", "HEAD")
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run("init", "-q", "-b", "main")
	first := change("first/task.yaml", "1")
	change("task.yaml", "1")
	run("checkout", "-q", "-b", "side")
	side := change("task.yaml", "2")
	run("checkout", "-q", "main")
	change("other.yaml", "1")
	run("merge", "-q", "--no-ff", "side", "-m", "merge")
	change("gone.yaml", "1")
	if err := os.Remove(filepath.Join(dir, "gone.yaml")); err != nil {
		t.Fatal(err)
	}
	change("another.yaml", "1")

	core, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(core)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	})
	defer s.Close()
	url := "git+" + s.URL + "/tasks.git"
	input := "trusted_tasks:\n  " + url + "//first/task.yaml:\n  - ref: f0cacc1a\n"
	o := options(t, url+"//task.yaml")
	o.Freshen = true
	t.Setenv("TMPDIR", t.TempDir())
	got, err := (&Registry{}).Update(t.Context(), []byte(input), o)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("---\ntrusted_tasks:\n  %[1]s//first/task.yaml:\n    - ref: %[2]s\n    - expires_on: \"2026-08-01T00:00:00Z\"\n      ref: f0cacc1a\n  %[1]s//task.yaml:\n    - ref: %[3]s\n", url, first, side)
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	o.Add = []string{url + "//no.yaml"}
	if _, err := (&Registry{}).Update(t.Context(), nil, o); err == nil || !strings.Contains(err.Error(), "unable to find any commits for path") {
		t.Errorf("of no file: %v", err)
	}
	left, err := os.ReadDir(os.Getenv("TMPDIR"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("trusted_tasks: {a: [{ref: b, expires_on: 2026-01-01T00:00:00Z}]}"))
	f.Add([]byte("---\n{}\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 4096 {
			return
		}
		l, err := parse(in, func(string, ...any) {})
		if err != nil {
			return
		}
		out, err := l.yaml()
		if err != nil {
			t.Fatal(err)
		}
		again, err := parse(out, t.Errorf)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, out)
		}
		if len(again) != len(l) {
			t.Errorf("%v became %v", l, again)
		}
	})
}
