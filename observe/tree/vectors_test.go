package tree_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"assay.dev/assay/observe/tree"
)

var update = flag.Bool("update", false, "rewrite the digests in testdata/vectors.json; review the difference")

// vector is one case of testdata/vectors.json; SPEC.md describes the fields.
type vector struct {
	Name    string        `json:"name"`
	Entries []vectorEntry `json:"entries"`
	Digest  string        `json:"digest"`
	GitTree string        `json:"gitTree,omitempty"`
}

type vectorEntry struct {
	Path          string `json:"path,omitempty"`
	PathBase64    string `json:"pathBase64,omitempty"`
	Kind          string `json:"kind"`
	Mode          string `json:"mode,omitempty"`
	Content       string `json:"content,omitempty"`
	ContentBase64 string `json:"contentBase64,omitempty"`
	Repeat        int    `json:"repeat,omitempty"`
	Target        string `json:"target,omitempty"`
	Major         uint32 `json:"major,omitempty"`
	Minor         uint32 `json:"minor,omitempty"`
}

// plain is an entry with its content as bytes.
type plain struct {
	tree.Entry
	content []byte
}

func (v vectorEntry) plain(t *testing.T) plain {
	t.Helper()
	kinds := map[string]tree.Kind{
		"file": tree.File, "dir": tree.Dir, "symlink": tree.Symlink, "char": tree.CharDevice,
		"block": tree.BlockDevice, "fifo": tree.FIFO, "socket": tree.Socket,
	}
	kind, ok := kinds[v.Kind]
	if !ok {
		t.Fatalf("unknown kind %q", v.Kind)
	}
	p := plain{Entry: tree.Entry{Path: v.Path, Kind: kind, Target: v.Target, Major: v.Major, Minor: v.Minor}}
	if v.PathBase64 != "" {
		p.Path = string(unbase64(t, v.PathBase64))
	}
	if v.Mode != "" {
		mode, err := strconv.ParseUint(v.Mode, 8, 32)
		if err != nil {
			t.Fatal(err)
		}
		p.Mode = uint32(mode)
	}
	p.content = []byte(v.Content)
	if v.ContentBase64 != "" {
		p.content = unbase64(t, v.ContentBase64)
	}
	if v.Repeat > 0 {
		p.content = bytes.Repeat(p.content, v.Repeat)
	}
	p.Content = tree.NewContent(p.content)
	return p
}

func unbase64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readVectors(t *testing.T) []vector {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&vs); err != nil {
		t.Fatal(err)
	}
	return vs
}

// build computes the sum of entries without a disk.
func build(t *testing.T, entries []plain, o tree.Options) tree.Sum {
	t.Helper()
	b, err := tree.NewBuilder(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := b.Add(e.Entry); err != nil {
			t.Fatal(err)
		}
	}
	return b.Sum()
}

// write puts entries on disk. It says false where this user or machine cannot.
func write(t *testing.T, dir string, entries []plain) bool {
	t.Helper()
	for _, e := range entries {
		p := filepath.Join(dir, e.Path)
		var err error
		switch e.Kind {
		case tree.File:
			err = os.WriteFile(p, e.content, 0o600)
		case tree.Dir:
			err = os.Mkdir(p, 0o700)
		case tree.Symlink:
			err = os.Symlink(e.Target, p)
		case tree.FIFO:
			err = unix.Mknod(p, unix.S_IFIFO|0o600, 0)
		case tree.Socket:
			err = unix.Mknod(p, unix.S_IFSOCK|0o600, 0)
		case tree.CharDevice:
			err = unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(e.Major, e.Minor)))
		case tree.BlockDevice:
			err = unix.Mknod(p, unix.S_IFBLK|0o600, int(unix.Mkdev(e.Major, e.Minor)))
		}
		if err == unix.EPERM && e.Kind.Special() {
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := len(entries) - 1; i >= 0; i-- {
		if e := entries[i]; e.Kind != tree.Symlink {
			if err := unix.Chmod(filepath.Join(dir, e.Path), e.Mode); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Folders without permissions would keep the test's own clean-up out.
	t.Cleanup(func() {
		for _, e := range entries {
			if e.Kind == tree.Dir {
				_ = os.Chmod(filepath.Join(dir, e.Path), 0o700)
			}
		}
	})
	return true
}

func TestVectors(t *testing.T) {
	vectors := readVectors(t)
	o := tree.Options{GitTree: true, Special: true}
	for i := range vectors {
		v := &vectors[i]
		t.Run(v.Name, func(t *testing.T) {
			var entries []plain
			for _, e := range v.Entries {
				entries = append(entries, e.plain(t))
			}
			got := build(t, entries, o)
			if *update {
				v.Digest, v.GitTree = got.Digest, got.GitTree
			}
			if got.Digest != v.Digest || got.GitTree != v.GitTree {
				t.Errorf("Builder: digest %s, git tree %q, want %s, %q", got.Digest, got.GitTree, v.Digest, v.GitTree)
			}
			if got.GitTree == "" && got.GitTreeReason == "" {
				t.Error("Builder: no git tree and no reason")
			}
			dir := t.TempDir()
			if !write(t, dir, entries) {
				t.Skip("devices need root; run as root to check this vector on disk")
			}
			onDisk, err := tree.Digest(context.Background(), dir, o)
			if err != nil {
				t.Fatal(err)
			}
			if onDisk != got {
				t.Errorf("Digest: %+v, Builder: %+v", onDisk, got)
			}
		})
	}
	if *update {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(vectors); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("testdata/vectors.json", b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
