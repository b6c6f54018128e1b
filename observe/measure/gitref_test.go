package measure_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/observe/measure"
)

// gitServer serves a repository by git's own http-backend.
func gitServer(t *testing.T) (url string, git func(args ...string) string) {
	t.Helper()
	path, err := exec.LookPath("git")
	if err != nil {
		t.Skip("git is not installed; this test runs where it is")
	}
	root := t.TempDir()
	git = func(args ...string) string {
		cmd := exec.Command(path, append([]string{"-C", filepath.Join(root, "repo.git")}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
		var errOut strings.Builder
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, errOut.String())
		}
		return strings.TrimSpace(string(out))
	}
	if err := os.Mkdir(filepath.Join(root, "repo.git"), 0o755); err != nil {
		t.Fatal(err)
	}
	git("init", "-q", "--bare", "-b", "main")
	s := httptest.NewServer(&cgi.Handler{Path: path, Args: []string{"http-backend"}, Env: []string{
		"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1",
		"GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
	}})
	t.Cleanup(s.Close)
	return s.URL + "/repo.git", git
}

func TestFindCommit(t *testing.T) {
	url, git := gitServer(t)
	ctx := context.Background()
	if ref, found, err := measure.FindCommit(ctx, http.DefaultClient, url, strings.Repeat("a", 40)); err != nil || found || ref != "" {
		t.Errorf("empty repository: %q %v %v", ref, found, err)
	}
	empty := git("hash-object", "-t", "tree", "-w", "/dev/null")
	commit := func(message string) string { return git("commit-tree", "-m", message, empty) }
	branch, tagged, light, pull, loose := commit("branch"), commit("tagged"), commit("light"), commit("pull"), commit("loose")
	git("update-ref", "refs/heads/main", branch)
	git("tag", "-a", "-m", "v1", "v1", tagged)
	git("tag", "light", light)
	git("update-ref", "refs/pull/1/head", pull)
	for _, c := range []struct {
		name, commit, ref string
	}{
		{"branch", branch, "refs/heads/main"},
		{"annotated tag, by its commit", tagged, "refs/tags/v1"},
		{"lightweight tag", light, "refs/tags/light"},
		{"a pull request's, which strangers write", pull, ""},
		{"in the repository but under no ref", loose, ""},
		{"nowhere", strings.Repeat("b", 40), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref, found, err := measure.FindCommit(ctx, http.DefaultClient, url, c.commit)
			if err != nil || ref != c.ref || found != (c.ref != "") {
				t.Errorf("got %q %v %v, want %q", ref, found, err, c.ref)
			}
		})
	}
	git("update-ref", "--no-deref", "HEAD", loose)
	if ref, _, err := measure.FindCommit(ctx, http.DefaultClient, url, loose); err != nil || ref != "HEAD" {
		t.Errorf("detached HEAD: %q %v", ref, err)
	}
}

func TestFindCommitFails(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/html/", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("<html>")) })
	mux.HandleFunc("/broken/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		w.Write([]byte("001e# service=git-upload-pack\n0000003f"))
	})
	s := httptest.NewServer(mux)
	defer s.Close()
	ok := strings.Repeat("a", 40)
	for name, c := range map[string]struct{ url, commit string }{
		"not a commit":       {s.URL + "/html", "main"},
		"upper case":         {s.URL + "/html", strings.Repeat("A", 40)},
		"not found":          {s.URL + "/no", ok},
		"not git":            {s.URL + "/html", ok},
		"truncated":          {s.URL + "/broken", ok},
		"ssh":                {"ssh://git@example.com/r", ok},
		"file":               {"file:///etc", ok},
		"query":              {s.URL + "/html?x=", ok},
		"server not reached": {"http://127.0.0.1:1/r", ok},
	} {
		t.Run(name, func(t *testing.T) {
			ref, found, err := measure.FindCommit(context.Background(), http.DefaultClient, c.url, c.commit)
			if err == nil || found || ref != "" {
				t.Errorf("got %q %v %v", ref, found, err)
			}
		})
	}
	t.Run("password stays out of the message", func(t *testing.T) {
		u := strings.Replace(s.URL, "://", "://user:hunter2@", 1) + "/no"
		_, _, err := measure.FindCommit(context.Background(), http.DefaultClient, u, ok)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, _, err := measure.FindCommit(ctx, http.DefaultClient, s.URL, ok); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzFindRef(f *testing.F) {
	id := strings.Repeat("a", 40)
	f.Add([]byte("001e# service=git-upload-pack\n0000" + "003f" + id + " refs/heads/main\x00caps\n" + "0000"))
	f.Add([]byte("001e# service=git-upload-pack\n0000000eversion 1\n003d" + id + " refs/tags/v1^{}\n0000"))
	f.Add([]byte("001e# service=git-upload-pack\n0000fff0"))
	f.Add([]byte("0000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 1<<16 {
			return
		}
		ref, err := measure.FindRef(strings.NewReader(string(b)), id)
		if err != nil && ref != "" {
			t.Fatalf("%q beside %v", ref, err)
		}
		if ref != "" && (!strings.Contains(string(b), id+" "+ref) || ref != "HEAD" && !strings.HasPrefix(ref, "refs/heads/") && !strings.HasPrefix(ref, "refs/tags/")) {
			t.Fatalf("%q is made up", ref)
		}
	})
}
