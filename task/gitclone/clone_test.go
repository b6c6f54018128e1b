package gitclone_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/task/gitclone"
)

// repo is a git repository served over http by git itself.
type repo struct {
	t   *testing.T
	dir string // work tree
	url string
}

func newRepo(t *testing.T) *repo {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git on this machine, which serves the repositories of this test")
	}
	core, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	r := &repo{t: t, dir: filepath.Join(root, "repo")}
	if err := os.Mkdir(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.git("init", "-q", "-b", "main")
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(core)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root},
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if user, password, _ := q.BasicAuth(); strings.HasPrefix(q.URL.Path, "/private/") {
			if user != "u" || password != "p" {
				w.Header().Set("WWW-Authenticate", "Basic")
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			q.URL.Path = strings.TrimPrefix(q.URL.Path, "/private")
		}
		backend.ServeHTTP(w, q)
	}))
	t.Cleanup(srv.Close)
	r.url = srv.URL + "/repo/.git"
	return r
}

func (r *repo) git(args ...string) string {
	r.t.Helper()
	return r.stdin("", args...)
}

func (r *repo) stdin(in string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = r.dir
	cmd.Stdin = strings.NewReader(in)
	cmd.Env = append(os.Environ(), "HOME="+r.dir, "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_AUTHOR_DATE=2024-01-02T03:04:05Z",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com", "GIT_COMMITTER_DATE=2024-01-02T03:04:05Z")
	out, err := cmd.Output()
	if err != nil {
		stderr := ""
		if e, ok := err.(*exec.ExitError); ok {
			stderr = string(e.Stderr)
		}
		r.t.Fatalf("git %v: %v\n%s", args, err, stderr)
	}
	return strings.TrimSpace(string(out))
}

func (r *repo) write(name, s string) {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *repo) commit(message string) string {
	r.t.Helper()
	r.git("add", "-A")
	r.git("commit", "-q", "--allow-empty", "-m", message)
	return r.git("rev-parse", "HEAD")
}

type cloned struct {
	*gitclone.Result
	dir, commit string
}

func (r *repo) clone(revision string, change ...func(*gitclone.Options)) (*cloned, error) {
	r.t.Helper()
	dir := r.t.TempDir()
	var log bytes.Buffer
	o := gitclone.Options{
		URL: r.url, Revision: revision, Depth: 1,
		Tree: filepath.Join(dir, "tree"), Commit: filepath.Join(dir, "commit"), Work: filepath.Join(dir, "work"), Log: &log,
	}
	for _, c := range change {
		c(&o)
	}
	res, err := gitclone.Clone(context.Background(), o)
	if left, _ := os.ReadDir(o.Work); len(left) > 0 {
		r.t.Errorf("clone left %s in its work folder", left[0].Name())
	}
	return &cloned{res, o.Tree, o.Commit}, err
}

// sample commits a tree with everything that a folder can carry, and what
// filters would touch on a checkout.
func sample(r *repo) string {
	r.write("go.mod", "module x\n")
	r.write("crlf.txt", "one\r\ntwo\r\n")
	r.write("big.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
	r.write(".gitattributes", "crlf.txt text eol=lf\nident.txt ident\nhidden export-ignore\nbig.bin filter=lfs\n")
	r.write("ident.txt", "$Id$\n")
	r.write("hidden", "kept\n")
	r.write("a/b/c.txt", "deep\n")
	r.write("a.b", "sorts between a and a/\n")
	r.write("run.sh", "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(r.dir, "run.sh"), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Symlink("../outside", filepath.Join(r.dir, "a/link")); err != nil {
		r.t.Fatal(err)
	}
	r.write("caf\xe9", "not UTF-8\n")
	// CRLF as bytes of the commit, whatever the attributes say.
	id := r.commit("sample")
	blob := r.stdin("one\r\ntwo\r\n", "hash-object", "-w", "--no-filters", "--stdin")
	r.git("update-index", "--cacheinfo", "100644,"+blob+",crlf.txt")
	r.git("commit", "-q", "--amend", "-m", "sample")
	if now := r.git("rev-parse", "HEAD"); now != id {
		id = now
	}
	return id
}

func TestCloneWritesTheCommitsTree(t *testing.T) {
	r := newRepo(t)
	id := sample(r)
	c, err := r.clone("main")
	if err != nil {
		t.Fatal(err)
	}
	if c.Commit != id || c.Tree != r.git("rev-parse", "HEAD^{tree}") || c.Ref != "refs/heads/main" || !c.LFS {
		t.Errorf("cloned %+v, want commit %s", c.Result, id)
	}
	if got := c.Committed.Unix(); got != 1704164645 {
		t.Errorf("commit time %d", got)
	}
	raw, err := os.ReadFile(c.commit)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.stdin(string(raw), "hash-object", "-t", "commit", "--stdin"); got != id {
		t.Errorf("the commit object written hashes to %s, want %s", got, id)
	}
	if data, err := os.ReadFile(filepath.Join(c.dir, "crlf.txt")); err != nil || string(data) != "one\r\ntwo\r\n" {
		t.Errorf("crlf.txt is %q, %v", data, err)
	}
	if data, err := os.ReadFile(filepath.Join(c.dir, "ident.txt")); err != nil || string(data) != "$Id$\n" {
		t.Errorf("ident.txt is %q, %v", data, err)
	}
	if link, err := os.Readlink(filepath.Join(c.dir, "a/link")); err != nil || link != "../outside" {
		t.Errorf("a/link leads to %q, %v", link, err)
	}
	if _, err := os.Lstat(filepath.Join(c.dir, ".git")); err == nil {
		t.Error("there is a .git in the folder")
	}
	if got, err := gitclone.TreeID(c.dir); err != nil || got != c.Tree {
		t.Errorf("tree id of the folder %s, %v", got, err)
	}
}

func TestCloneFindsRevisions(t *testing.T) {
	r := newRepo(t)
	r.write("f", "1")
	first := r.commit("first")
	r.git("tag", "light")
	r.git("tag", "-a", "-m", "x", "annotated")
	r.git("tag", "-a", "-m", "x", "twice", "annotated")
	r.write("f", "2")
	second := r.commit("second")
	r.write("f", "3")
	third := r.commit("third")
	r.git("branch", "feature/x", second)
	for revision, want := range map[string]string{
		"":                           third,
		"HEAD":                       third,
		"main":                       third,
		"refs/heads/main":            third,
		"feature/x":                  second,
		"light":                      first,
		"annotated":                  first,
		"twice":                      first,
		"refs/tags/annotated":        first,
		third:                        third, // at a branch
		first:                        first, // at a tag
		r.git("rev-parse", "HEAD~1"): second,
	} {
		c, err := r.clone(revision)
		if err != nil {
			t.Errorf("%q: %v", revision, err)
			continue
		}
		if c.Commit != want {
			t.Errorf("%q is %s, want %s", revision, c.Commit, want)
		}
	}
	// A commit that no ref points at, on a server that gives none by id.
	r.git("branch", "-D", "feature/x")
	for _, allow := range []string{"false", "true"} {
		r.git("config", "uploadpack.allowReachableSHA1InWant", allow)
		if c, err := r.clone(second); err != nil || c.Commit != second {
			t.Errorf("commit inside the history, server gives commits by id %s: %v", allow, err)
		}
	}
}

func TestCloneRefuses(t *testing.T) {
	r := newRepo(t)
	r.write("f", "1")
	id := r.commit("first")
	r.git("tag", "both")
	r.git("branch", "both")
	lost := r.git("commit-tree", "-m", "lost", "HEAD^{tree}")
	for name, revision := range map[string]string{
		"a branch that is not there": "nope",
		"a ref that is not there":    "refs/heads/nope",
		"a name of two things":       "both",
		"a short id":                 id[:8],
		"an unreachable commit":      lost,
		"a tree":                     r.git("rev-parse", "HEAD^{tree}"),
		"a refspec":                  "main:refs/heads/x",
		"an expression":              "main~1",
		"all branches":               "refs/heads/*",
	} {
		if c, err := r.clone(revision); err == nil {
			t.Errorf("%s, %q: cloned %s", name, revision, c.Commit)
		}
	}
	for _, url := range []string{"", "file://" + r.dir, "ssh://git@localhost/x", r.dir, "http://", "git@localhost:x.git", "http://u:secret@localhost/x"} {
		_, err := r.clone("main", func(o *gitclone.Options) { o.URL = url })
		if err == nil {
			t.Errorf("cloned from %q", url)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.clone("main", func(o *gitclone.Options) { o.Tree = full }); err == nil {
		t.Error("cloned into a folder that is not empty")
	}
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := gitclone.Clone(gone, gitclone.Options{URL: r.url, Tree: t.TempDir(), Commit: filepath.Join(t.TempDir(), "c"), Work: t.TempDir(), Log: new(bytes.Buffer)}); err == nil {
		t.Error("cloned although cancelled")
	}
}

func TestClonePrivate(t *testing.T) {
	r := newRepo(t)
	r.write("f", "1")
	r.commit("first")
	private := func(user, password string) func(*gitclone.Options) {
		return func(o *gitclone.Options) {
			o.URL = strings.Replace(o.URL, "/repo/", "/private/repo/", 1)
			o.Username, o.Password = user, password
		}
	}
	if _, err := r.clone("main", private("u", "p")); err != nil {
		t.Error(err)
	}
	if _, err := r.clone("main", private("u", "wrong")); err == nil {
		t.Error("cloned with a wrong password")
	}
	if _, err := r.clone("main", private("", "")); err == nil {
		t.Error("cloned without a password")
	}
}

// Trees that git's own commands would not make, made object by object.
func TestCloneRefusesTreesThatNoFolderCarries(t *testing.T) {
	r := newRepo(t)
	r.write("f", "1")
	r.commit("first")
	blob := r.stdin("x", "hash-object", "-w", "--stdin")
	empty := r.stdin("", "mktree")
	sub := r.stdin("100644 blob "+blob+"\tf\n", "mktree")
	// entry builds a raw tree entry.
	entry := func(mode, name, id string) string {
		raw := make([]byte, 20)
		for i := range raw {
			var b byte
			for _, c := range id[2*i : 2*i+2] {
				b <<= 4
				switch {
				case c <= '9':
					b |= byte(c - '0')
				default:
					b |= byte(c-'a') + 10
				}
			}
			raw[i] = b
		}
		return mode + " " + name + "\x00" + string(raw)
	}
	for name, tree := range map[string]string{
		"submodule":            entry("160000", "m", r.git("rev-parse", "HEAD")),
		"group-writable mode":  entry("100664", "f", blob),
		"parent folder":        entry("40000", "..", sub),
		"this folder":          entry("40000", ".", sub),
		"git folder":           entry("40000", ".git", sub),
		"git folder, any case": entry("40000", ".GiT", sub),
		"slash in a name":      entry("100644", "../f", blob),
		"empty name":           entry("100644", "", blob),
		"one name twice":       entry("100644", "f", blob) + entry("100644", "f", blob),
		"link, then below it":  entry("120000", "f", blob) + entry("40000", "f", sub),
		"empty folder":         entry("40000", "d", empty),
		"empty link":           entry("120000", "l", r.stdin("", "hash-object", "-w", "--stdin")),
		"link with NUL":        entry("120000", "l", r.stdin("a\x00b", "hash-object", "-w", "--stdin")),
		"unsorted":             entry("100644", "z", blob) + entry("100644", "a", blob),
	} {
		t.Run(name, func(t *testing.T) {
			id := r.stdin(tree, "hash-object", "-t", "tree", "-w", "--literally", "--stdin")
			commit := r.stdin("tree "+id+"\nauthor a <a@example.com> 1 +0000\ncommitter a <a@example.com> 1 +0000\n\nx\n",
				"hash-object", "-t", "commit", "-w", "--literally", "--stdin")
			r.git("update-ref", "refs/heads/bad", commit)
			c, err := r.clone("bad")
			if err == nil {
				t.Fatalf("cloned as %s", c.Tree)
			}
			t.Log(err)
			if _, err := os.Lstat(c.commit); err == nil {
				t.Error("the commit object was written although the clone failed")
			}
		})
	}
}

func TestTreeIDAgreesWithGit(t *testing.T) {
	r := newRepo(t)
	sample(r)
	if err := os.MkdirAll(filepath.Join(r.dir, "empty/deeper"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "-a", r.dir, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
		t.Fatal(err)
	}
	got, err := gitclone.TreeID(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r.git("rev-parse", "HEAD^{tree}"), got); diff != "" {
		t.Error(diff)
	}
}
