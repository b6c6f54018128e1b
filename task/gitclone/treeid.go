package gitclone

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/go-git/go-git/v5/plumbing"
)

// TreeID computes the id of the git tree object that a folder would be
// committed as, from the folder alone. Empty folders below it count for
// nothing, as in git. It fails on what git cannot commit: devices, sockets,
// pipes.
func TreeID(dir string) (string, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", fmt.Errorf("hashing tree: %w", err)
	}
	defer root.Close()
	id, _, err := treeID(root, ".")
	if err != nil {
		return "", fmt.Errorf("hashing tree: %w", err)
	}
	return id.String(), nil
}

type treeEntry struct {
	name string
	mode string
	id   plumbing.Hash
}

// key is what git sorts by: folders as if their name ended in a slash.
func (e treeEntry) key() string {
	if e.mode == "40000" {
		return e.name + "/"
	}
	return e.name
}

// treeID returns how many entries the tree has, too.
func treeID(root *os.Root, dir string) (plumbing.Hash, int, error) {
	f, err := root.Open(dir) // not root.FS: names in git need not be UTF-8
	if err != nil {
		return plumbing.ZeroHash, 0, err
	}
	list, err := f.ReadDir(-1)
	f.Close()
	if err != nil {
		return plumbing.ZeroHash, 0, err
	}
	var entries []treeEntry
	for _, d := range list {
		name := filepath.Join(dir, d.Name())
		e := treeEntry{name: d.Name()}
		switch {
		case d.IsDir():
			var n int
			e.mode = "40000"
			if e.id, n, err = treeID(root, name); err == nil && n == 0 {
				continue
			}
		case d.Type()&fs.ModeSymlink != 0:
			e.mode = "120000"
			var target string
			if target, err = root.Readlink(name); err == nil {
				e.id = plumbing.ComputeHash(plumbing.BlobObject, []byte(target))
			}
		case d.Type().IsRegular():
			e.mode, e.id, err = fileID(root, name)
		default:
			err = fmt.Errorf("%s is a %s, which git cannot hold", name, d.Type())
		}
		if err != nil {
			return plumbing.ZeroHash, 0, err
		}
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b treeEntry) int { return cmp.Compare(a.key(), b.key()) })
	var body []byte
	for _, e := range entries {
		body = append(body, e.mode+" "+e.name+"\x00"...)
		raw, err := hex.DecodeString(e.id.String())
		if err != nil {
			return plumbing.ZeroHash, 0, err
		}
		body = append(body, raw...)
	}
	return plumbing.ComputeHash(plumbing.TreeObject, body), len(entries), nil
}

func fileID(root *os.Root, name string) (mode string, id plumbing.Hash, err error) {
	f, err := root.Open(name)
	if err != nil {
		return "", id, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", id, err
	}
	mode = "100644"
	if info.Mode()&0o100 != 0 {
		mode = "100755"
	}
	h := plumbing.NewHasher(plumbing.BlobObject, info.Size())
	n, err := io.Copy(h, f)
	if err != nil {
		return "", id, err
	}
	if n != info.Size() {
		return "", id, fmt.Errorf("%s has %d bytes where %d were announced", name, n, info.Size())
	}
	return mode, h.Sum(), nil
}
