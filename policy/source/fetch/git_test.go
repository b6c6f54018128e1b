package fetch

import (
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/internal/pullcache"
)

func TestGit(t *testing.T) {
	root := t.TempDir()
	r := newRepository(t, filepath.Join(root, "org", "policy.git"))
	s := gitServer(t, root, nil)
	host := strings.TrimPrefix(s.URL, "https://")
	net := &counter{base: s.Client().Transport}
	cache := t.TempDir()
	all := []string{"data/d.yaml", "rules/a.rego", "rules/b.rego", "rules/x/same.rego"}
	for _, tt := range []struct {
		address, pinned string
		want            []string
	}{
		{"git::https://HOST/org/policy.git", "git::HOST/org/policy.git?ref=" + r.second, all},
		{"git::https://HOST/org/policy", "git::HOST/org/policy?ref=" + r.second, all},
		{"git::HOST/org/policy//rules?ref=main", "git::HOST/org/policy//rules?ref=" + r.second, []string{"a.rego", "b.rego", "x/same.rego"}},
		{"git::https://HOST/org/policy.git//rules?ref=v1", "git::HOST/org/policy.git//rules?ref=" + r.first, []string{"a.rego"}},
		{"git::https://HOST/org/policy.git?ref=v1//rules", "git::HOST/org/policy.git//rules?ref=" + r.first, []string{"a.rego"}},
		{"git::https://HOST/org/policy.git//rules?ref=refs/heads/old&depth=5", "git::HOST/org/policy.git//rules?ref=" + r.first, []string{"a.rego"}},
		{"git::https://HOST/org/policy.git?ref=" + r.second, "git::HOST/org/policy.git?ref=" + r.second, all},
		{"git://HOST/org/policy.git//data", "git::HOST/org/policy.git//data?ref=" + r.second, []string{"d.yaml"}},
		{"git::https://HOST/org/policy.git//rules/b.rego", "git::HOST/org/policy.git//rules/b.rego?ref=" + r.second, []string{"b.rego"}},
		{"git::file://" + r.dir + "//rules?ref=v1", "git::file://" + r.dir + "//rules?ref=" + r.first, []string{"a.rego"}},
		{"git::" + r.dir, "git::file://" + r.dir + "?ref=" + r.second, all},
	} {
		address, pinned := strings.ReplaceAll(tt.address, "HOST", host), strings.ReplaceAll(tt.pinned, "HOST", host)
		t.Run(tt.address, func(t *testing.T) {
			f := fetcher(t, net, Options{Cache: cache})
			tree, err := f.Fetch(t.Context(), address)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, paths(t, tree)); diff != "" {
				t.Error(diff)
			}
			if tree.Pinned != pinned || tree.Address != address {
				t.Errorf("pinned %s, want %s", tree.Pinned, pinned)
			}
			// What it is pinned to is the same content, and needs nobody to say so.
			net.cut.Store(true)
			defer net.cut.Store(false)
			again, err := fetcher(t, net, Options{Cache: cache}).Fetch(t.Context(), tree.Pinned)
			if err != nil {
				t.Fatal(err)
			}
			if again.Digest != tree.Digest || again.Pinned != tree.Pinned {
				t.Errorf("%+v, want %+v", again, tree)
			}
		})
	}
	f := fetcher(t, net, Options{Cache: cache})
	for address, want := range map[string]string{
		"git::https://HOST/org/policy.git?ref=none":                       `no branch and no tag "none"`,
		"git::https://HOST/org/policy.git?ref=" + r.first[:10]:            "by its whole id",
		"git::https://HOST/org/policy.git?ref=" + strings.Repeat("a", 40): "no commit aaaaa",
		"git::https://HOST/org/none.git":                                  "repository not found",
		"git::https://HOST/org/policy.git//nowhere":                       "path nowhere does not exist in the repository",
		"git::https://HOST/org/policy.git//../x":                          "not in the repository",
		"git::https://HOST/org/policy.git?ref=a..b":                       "no branch and no tag",
		"git::https://HOST/org/policy.git?x=y":                            `"x" is not known`,
		"git::https://HOST/org/policy.git?depth=x":                        "depth",
		"git::https://HOST":                                               "want a host and a repository",
		"git::file://" + root + "/none.git":                               "opening the repository",
		"git::file://" + r.dir + "?ref=" + strings.Repeat("b", 40):        "no commit",
	} {
		address = strings.ReplaceAll(address, "HOST", host)
		_, err := f.Fetch(t.Context(), address)
		refused(t, err, want, strings.Split(address, "?")[0])
	}
}

// TestGitCache: a branch that has moved is fetched, one that has not is looked at.
func TestGitCache(t *testing.T) {
	root := t.TempDir()
	r := newRepository(t, filepath.Join(root, "p.git"))
	var packs atomic.Int64
	s := gitServer(t, root, func(_ http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodPost {
			packs.Add(1)
		}
		return true
	})
	address := "git::" + s.URL + "/p.git//rules"
	cache := t.TempDir()
	get := func() string {
		tree, err := fetcher(t, s.Client().Transport, Options{Cache: cache}).Fetch(t.Context(), address)
		if err != nil {
			t.Fatal(err)
		}
		return tree.Pinned
	}
	first := get()
	if second := get(); second != first || packs.Load() != 1 {
		t.Errorf("%s, %s, %d fetches", first, second, packs.Load())
	}
	git(t, r.dir, "update-ref", "refs/heads/main", r.first)
	if moved := get(); !strings.HasSuffix(moved, r.first) || packs.Load() != 2 {
		t.Errorf("%s, %d fetches", moved, packs.Load())
	}
}

func TestGitCredentials(t *testing.T) {
	root := t.TempDir()
	newRepository(t, filepath.Join(root, "p.git"))
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:secret"))
	s := gitServer(t, root, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == want {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return false
	})
	netrc := filepath.Join(t.TempDir(), "netrc")
	t.Setenv("NETRC", netrc)
	plain, with := "git::"+s.URL+"/p.git", "git::"+strings.Replace(s.URL, "//", "//me:secret@", 1)+"/p.git"
	cache := t.TempDir()
	_, err := fetcher(t, s.Client().Transport, Options{Cache: cache}).Fetch(t.Context(), plain)
	refused(t, err, "wants credentials", "~/.netrc")
	f := fetcher(t, s.Client().Transport, Options{Cache: cache})
	tree, err := f.Fetch(t.Context(), with)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(tree.Pinned, "secret") {
		t.Errorf("pinned to %s", tree.Pinned)
	}
	lock := f.Pinned()
	if _, ok := lock.Sources[plain]; !ok {
		t.Errorf("the lock has %v", lock.Sources)
	}
	// A lock has no password; the address has, and an empty cache needs it.
	if _, err := fetcher(t, s.Client().Transport, Options{Lock: lock}).Fetch(t.Context(), with); err != nil {
		t.Error(err)
	}
	_, err = fetcher(t, s.Client().Transport, Options{}).Fetch(t.Context(), strings.Replace(with, "secret", "wrong", 1))
	refused(t, err, "wants credentials")
	if err != nil && strings.Contains(err.Error(), "wrong") {
		t.Errorf("the error tells the password: %v", err)
	}
	if err := os.WriteFile(netrc, []byte("machine other login a password b\nmachine 127.0.0.1\n login me\n password secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fetcher(t, s.Client().Transport, Options{}).Fetch(t.Context(), plain); err != nil {
		t.Error(err)
	}
}

// TestGitServers: what servers can do.
func TestGitServers(t *testing.T) {
	root := t.TempDir()
	r := newRepository(t, filepath.Join(root, "p.git"))
	var fail atomic.Int64
	s := gitServer(t, root, func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodPost && fail.Add(-1) >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return false
		}
		return true
	})
	address := "git::" + s.URL + "/p.git"
	retry := &pullcache.Retry{Max: 2, Wait: 1, Factor: 2, MaxWait: 10}
	fail.Store(2)
	if _, err := fetcher(t, s.Client().Transport, Options{Retry: retry}).Fetch(t.Context(), address); err != nil {
		t.Error(err)
	}
	fail.Store(3)
	_, err := fetcher(t, s.Client().Transport, Options{Retry: retry}).Fetch(t.Context(), address)
	refused(t, err, "503")
	fail.Store(0)
	_, err = fetcher(t, s.Client().Transport, Options{Limits: Limits{Transfer: 400}}).Fetch(t.Context(), address)
	refused(t, err, "larger than is read")
	_, err = fetcher(t, s.Client().Transport, Options{Limits: Limits{Files: 2}}).Fetch(t.Context(), address)
	refused(t, err, "more than 2 files")
	_, err = fetcher(t, s.Client().Transport, Options{Limits: Limits{File: 4}}).Fetch(t.Context(), address)
	refused(t, err, "one object is larger")
	// A commit that no branch ends at: the server has to offer it, or everything is
	// fetched.
	git(t, r.dir, "update-ref", "-d", "refs/heads/old")
	git(t, r.dir, "update-ref", "-d", "refs/tags/v1")
	for _, offer := range []string{"true", "false"} {
		git(t, r.dir, "config", "uploadpack.allowReachableSHA1InWant", offer)
		tree, err := fetcher(t, s.Client().Transport, Options{}).Fetch(t.Context(), address+"?ref="+r.first)
		if err != nil {
			t.Fatalf("offered %s: %v", offer, err)
		}
		if diff := cmp.Diff([]string{"rules/a.rego"}, paths(t, tree)); diff != "" {
			t.Error(diff)
		}
	}
	_, err = fetcher(t, s.Client().Transport, Options{}).Fetch(t.Context(), address+"?ref="+strings.Repeat("c", 40))
	refused(t, err, "no commit "+strings.Repeat("c", 40))

	// To plain http nobody is led.
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	away := httptest.NewTLSServer(http.RedirectHandler(plain.URL+"/p.git/info/refs?service=git-upload-pack", http.StatusFound))
	defer away.Close()
	_, err = fetcher(t, away.Client().Transport, Options{}).Fetch(t.Context(), "git::"+away.URL+"/p.git")
	refused(t, err, "http")
	_, err = fetcher(t, s.Client().Transport, Options{}).Fetch(t.Context(), "git::"+plain.URL+"/p.git")
	refused(t, err, "insecure")
	// Nobody's certificate is taken.
	_, err = fetcher(t, http.DefaultTransport, Options{}).Fetch(t.Context(), address)
	refused(t, err, "certificate")
}

func TestGitLinks(t *testing.T) {
	work := t.TempDir()
	git(t, work, "init", "--quiet", "--initial-branch=main")
	write(t, work, map[string]string{"rules/a.rego": "package a\n", "rules/sub/b.rego": "package b\n", "lib/l.rego": "package l\n"})
	commit := func(links map[string]string) string {
		git(t, work, "rm", "-r", "-q", "--ignore-unmatch", "rules/links")
		for from, to := range links {
			p := filepath.Join(work, "rules", "links", from)
			if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(to, p); err != nil {
				t.Fatal(err)
			}
		}
		git(t, work, "add", "--all")
		git(t, work, "commit", "--quiet", "--allow-empty", "-m", "x")
		return git(t, work, "rev-parse", "HEAD")
	}
	for name, tt := range map[string]struct {
		links map[string]string
		want  []string
		err   string
	}{
		"file inside":         {map[string]string{"c.rego": "../a.rego"}, []string{"a.rego", "links/c.rego", "sub/b.rego"}, ""},
		"folder inside":       {map[string]string{"c": "../sub"}, []string{"a.rego", "sub/b.rego"}, ""},
		"readme to nowhere":   {map[string]string{"README": "/etc/passwd", "x": "nowhere"}, []string{"a.rego", "sub/b.rego"}, ""},
		"rules outside":       {map[string]string{"c.rego": "../../lib/l.rego"}, nil, "c.rego is a link"},
		"folder outside":      {map[string]string{"c": "../../lib"}, nil, "links/c is a link"},
		"machine's own":       {map[string]string{"c.json": "/etc/passwd"}, nil, "c.json is a link"},
		"out of everything":   {map[string]string{"c.json": "../../../../../etc/passwd"}, nil, "c.json is a link"},
		"a link to a link":    {map[string]string{"c.rego": "d.rego", "d.rego": "../a.rego"}, nil, "c.rego is a link"},
		"to itself":           {map[string]string{"c.rego": "c.rego"}, nil, "c.rego is a link"},
		"to the whole folder": {map[string]string{"c": ".."}, []string{"a.rego", "sub/b.rego"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			id := commit(tt.links)
			tree, err := fetcher(t, http.DefaultTransport, Options{}).Fetch(t.Context(), "git::file://"+work+"//rules?ref="+id)
			if tt.err != "" {
				refused(t, err, tt.err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, paths(t, tree)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
