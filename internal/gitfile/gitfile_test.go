// The repositories are made by git itself; the one at an address is served by git's
// own http-backend.
package gitfile

import (
	"context"
	"errors"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/verify/workflow"
)

// repository makes one with a workflow that was changed later, and returns its folder
// and both commits.
func repository(t *testing.T) (dir, first, second string) {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed; its package is called git")
	}
	dir = t.TempDir()
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@x", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@x")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	write := func(name, content string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	git("init", "-q", "-b", "main")
	git("config", "uploadpack.allowAnySHA1InWant", "true")
	write(".github/workflows/build.yml", "jobs:\n  build:\n    steps:\n    - uses: actions/checkout@v4\n")
	git("add", ".")
	git("commit", "-q", "-m", "one")
	first = git("rev-parse", "HEAD")
	write(".github/workflows/build.yml", "jobs:\n  build:\n    steps:\n    - uses: actions/checkout@"+first+"\n")
	git("commit", "-q", "-a", "-m", "two")
	git("gc", "-q")
	return dir, first, git("rev-parse", "HEAD")
}

func TestFile(t *testing.T) {
	dir, first, second := repository(t)
	backend, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(backend)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	})
	defer srv.Close()
	for name, where := range map[string]string{"folder": dir, "below it": filepath.Join(dir, ".github"), "bare": filepath.Join(dir, ".git"), "address": srv.URL + "/.git"} {
		t.Run(name, func(t *testing.T) {
			r, err := Open(where)
			if err != nil {
				t.Fatal(err)
			}
			for commit, pinned := range map[string]bool{first: false, second: true} {
				got, err := workflow.Read(t.Context(), r, commit, ".github/workflows/build.yml")
				if err != nil {
					t.Fatal(err)
				}
				ref := "v4"
				if pinned {
					ref = first
				}
				want := []workflow.Use{{Kind: workflow.KindAction, Name: "actions/checkout", Ref: ref, Pinned: pinned, Where: "build.yml, job build, step 1"}}
				if diff := cmp.Diff(want, got.Uses); diff != "" {
					t.Error(diff)
				}
			}
			if _, err := r.File(t.Context(), first, ".github/workflows/none.yml", 100); !errors.Is(err, workflow.ErrNotFound) {
				t.Errorf("a file that is not there: %v", err)
			}
			if _, err := r.File(t.Context(), first, ".github/workflows", 100); !errors.Is(err, workflow.ErrNotFound) {
				t.Errorf("a folder: %v", err)
			}
			if _, err := r.File(t.Context(), first, ".github/workflows/build.yml", 10); err == nil {
				t.Error("a file larger than the bound was read")
			}
			if _, err := r.File(t.Context(), "main", ".github/workflows/build.yml", 100); err == nil {
				t.Error("a branch was read")
			}
			if _, err := r.File(t.Context(), strings.Repeat("0", 40), "x", 100); err == nil {
				t.Error("a commit that is not there was read")
			}
		})
	}
}

func TestOpen(t *testing.T) {
	for _, where := range []string{"ssh://git@example.com/x", "file:///tmp", t.TempDir(), "/nowhere/at/all"} {
		if _, err := Open(where); err == nil {
			t.Errorf("%s was opened", where)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, err := Open("http://127.0.0.1:1/x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.File(ctx, strings.Repeat("0", 40), "x", 100); err == nil {
		t.Error("an address where nobody is was read")
	}
}
