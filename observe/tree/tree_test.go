package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"assay.dev/assay/observe/tree"
)

// TestGitWriteTree compares with git itself on a real disk.
func TestGitWriteTree(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed; this test runs where it is")
	}
	for _, v := range readVectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			var entries []plain
			for _, e := range v.Entries {
				p := e.plain(t)
				if p.Kind.Special() || p.Path == ".git" || strings.HasPrefix(p.Path, ".git/") || strings.HasSuffix(p.Path, "/.git") {
					t.Skip("not a tree for git's index")
				}
				entries = append(entries, p)
			}
			dir := t.TempDir()
			write(t, dir, entries)
			sum, err := tree.Digest(context.Background(), dir, tree.Options{GitTree: true})
			if err != nil {
				t.Fatal(err)
			}
			if got, want := sum.GitTree, gitWriteTree(t, dir); got != want {
				t.Errorf("git tree %s, git says %s", got, want)
			}
		})
	}
}

// gitWriteTree asks git for the tree id of everything in dir, which gets a .git.
func gitWriteTree(t *testing.T, dir string) string {
	t.Helper()
	git := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", dir, "-c", "core.autocrlf=false", "-c", "safe.directory=*"}, args...)...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("git %v: %v", args, err)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q")
	git("add", "--all", "--force", ".")
	return git("write-tree")
}

// TestGitProperty draws trees and lets git check their ids; the digest must be
// the same for any number of workers and with or without git.
func TestGitProperty(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed; this test runs where it is")
	}
	rapid.Check(t, func(rt *rapid.T) {
		entries := drawTree(rt)
		dir, err := os.MkdirTemp("", "assay-tree-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		write(t, dir, entries)
		o := tree.Options{GitTree: true}
		want := build(t, entries, o)
		for _, workers := range []int{1, 2, 7} {
			o.Workers = workers
			got, err := tree.Digest(context.Background(), dir, o)
			if err != nil {
				rt.Fatal(err)
			}
			if got != want {
				rt.Fatalf("%d workers: %+v, builder: %+v", workers, got, want)
			}
		}
		if rapid.IntRange(0, 9).Draw(rt, "ask git") == 0 {
			if got := gitWriteTree(t, dir); got != want.GitTree {
				rt.Fatalf("git tree %s, git says %s", want.GitTree, got)
			}
		}
	})
}

// drawTree draws a tree of files, folders and links with names that sort badly.
func drawTree(t *rapid.T) []plain {
	name := rapid.StringMatching(`[a-c][-./0a]{0,2}[a-c0]`)
	dirs := []string{""}
	seen := map[string]bool{}
	var out []plain
	for i := range rapid.IntRange(0, 20).Draw(t, "entries") {
		parent := rapid.SampledFrom(dirs).Draw(t, "parent")
		p := strings.ReplaceAll(name.Draw(t, "name"), "/", "_")
		if parent != "" {
			p = parent + "/" + p
		}
		if seen[p] {
			continue
		}
		seen[p] = true
		e := plain{Entry: tree.Entry{Path: p}}
		switch rapid.IntRange(0, 3).Draw(t, "kind") {
		case 0:
			e.Kind, e.Mode = tree.Dir, 0o755
			dirs = append(dirs, p)
		case 1:
			e.Kind, e.Target = tree.Symlink, fmt.Sprintf("t%d", i)
		default:
			e.Kind = tree.File
			e.Mode = uint32(rapid.SampledFrom([]int{0o644, 0o755, 0o600, 0o700, 0o654}).Draw(t, "mode"))
			e.content = rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(t, "content")
			e.Content = tree.NewContent(e.content)
		}
		out = append(out, e)
	}
	return out
}

func TestRefusals(t *testing.T) {
	mk := func(t *testing.T, f func(dir string) error) string {
		dir := t.TempDir()
		if err := f(dir); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	fill := func(dir string) error {
		return errors.Join(os.MkdirAll(dir+"/a/b/c", 0o755), os.WriteFile(dir+"/a/b/c/file", make([]byte, 1000), 0o644),
			os.WriteFile(dir+"/x", make([]byte, 500_000), 0o644))
	}
	fifo := func(dir string) error { return unix.Mkfifo(dir+"/pipe", 0o600) }
	for _, c := range []struct {
		name string
		dir  string
		opts tree.Options
		want error
		says string
	}{
		{"a fifo, which would block if opened", mk(t, fifo), tree.Options{}, tree.ErrSpecial, `"pipe": it is a fifo`},
		{"too many entries", mk(t, fill), tree.Options{Limits: tree.Limits{Entries: 4}}, tree.ErrLimit, "4 entries"},
		{"too many bytes", mk(t, fill), tree.Options{Limits: tree.Limits{Bytes: 500_999}}, tree.ErrLimit, "500999 bytes"},
		{"too deep", mk(t, fill), tree.Options{Limits: tree.Limits{Depth: 2}}, tree.ErrLimit, `"a/b/c"`},
		{"path too long", mk(t, fill), tree.Options{Limits: tree.Limits{PathBytes: 9}}, tree.ErrLimit, `"a/b/c/file"`},
		{"negative limit", mk(t, fill), tree.Options{Limits: tree.Limits{Depth: -1}}, nil, "negative"},
		{"not there", filepath.Join(t.TempDir(), "no"), tree.Options{}, os.ErrNotExist, "no"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sum, err := tree.Digest(context.Background(), c.dir, c.opts)
			if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v saying %q", err, c.want, c.says)
			}
			if sum != (tree.Sum{}) {
				t.Errorf("a sum beside an error: %+v", sum)
			}
		})
	}
	t.Run("exact limits pass", func(t *testing.T) {
		o := tree.Options{Limits: tree.Limits{Entries: 5, Bytes: 501_000, Depth: 3, PathBytes: 10}}
		if _, err := tree.Digest(context.Background(), mk(t, fill), o); err != nil {
			t.Error(err)
		}
	})
	t.Run("root is a link", func(t *testing.T) {
		link := filepath.Join(t.TempDir(), "link")
		if err := os.Symlink(mk(t, fill), link); err != nil {
			t.Fatal(err)
		}
		if _, err := tree.Digest(context.Background(), link, tree.Options{}); err == nil {
			t.Error("followed")
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := tree.Digest(ctx, mk(t, fill), tree.Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
}

func TestHardLinksCountAsTheirContent(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, f := range []string{a + "/1", a + "/2", b + "/1"} {
		if err := os.WriteFile(f, []byte("same"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(b+"/1", b+"/2"); err != nil {
		t.Fatal(err)
	}
	sa, erra := tree.Digest(context.Background(), a, tree.Options{})
	sb, errb := tree.Digest(context.Background(), b, tree.Options{})
	if erra != nil || errb != nil || sa != sb {
		t.Errorf("%+v %v, %+v %v", sa, erra, sb, errb)
	}
}

// TestDescriptors checks that no descriptor is left behind, failed or not.
func TestDescriptors(t *testing.T) {
	dir := t.TempDir()
	for i := range 50 {
		d := fmt.Sprintf("%s/%d/x/y", dir, i)
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d+"/f", bytes.Repeat([]byte{byte(i)}, 300_000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		es, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("no /proc to count descriptors in")
		}
		return len(es)
	}
	before := count()
	for _, o := range []tree.Options{{}, {Limits: tree.Limits{Bytes: 5_000_000}}, {Limits: tree.Limits{Depth: 2}}} {
		_, _ = tree.Digest(context.Background(), dir, o)
	}
	if after := count(); after != before {
		t.Errorf("%d descriptors open, %d before", after, before)
	}
}

func TestOpenBeneath(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(dir+"/in", 0o755), os.WriteFile(dir+"/in/f", nil, 0o644),
		os.Symlink("/etc", dir+"/out"), os.Symlink("in", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	root, err := tree.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for rel, ok := range map[string]bool{
		".": true, "in": true, "in/f": true, "in/../in/f": true,
		"..": false, "../x": false, "/etc": false, "out": false, "out/passwd": false, "link": false, "link/f": false, "in/../..": false,
	} {
		f, err := tree.OpenBeneath(root, rel, unix.O_RDONLY)
		if (err == nil) != ok {
			t.Errorf("%q: %v", rel, err)
		}
		if err == nil {
			f.Close()
		}
	}
}

func TestBuilderRefuses(t *testing.T) {
	b, err := tree.NewBuilder(tree.Options{Limits: tree.Limits{Depth: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Add(tree.Entry{Path: "d", Kind: tree.Dir}); err != nil {
		t.Fatal(err)
	}
	for _, e := range []tree.Entry{
		{Path: "", Kind: tree.Dir}, {Path: "/a", Kind: tree.File}, {Path: "a/", Kind: tree.Dir}, {Path: "..", Kind: tree.Dir},
		{Path: "d/../x", Kind: tree.File}, {Path: "d/./x", Kind: tree.File}, {Path: "d//x", Kind: tree.File},
		{Path: "no/x", Kind: tree.File}, {Path: "d", Kind: tree.File}, {Path: "a\x00b", Kind: tree.File},
		{Path: "k"}, {Path: "p", Kind: tree.FIFO}, {Path: "l", Kind: tree.Symlink}, {Path: "d/d", Kind: tree.Dir},
		{Path: strings.Repeat("n", 256), Kind: tree.File},
	} {
		if err := b.Add(e); err == nil {
			t.Errorf("%+v was accepted", e)
		}
	}
}
