package gitclone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

const (
	// maxDepth bounds how deep folders nest; paths end at 4096 bytes anyway.
	maxDepth = 512
	// maxLink is the longest link target Linux takes.
	maxLink = 4095
)

// writer writes tree objects below a folder it cannot leave.
type writer struct {
	store *filesystem.Storage
	root  *os.Root
	files int
	lfs   bool
}

// newWriter fails when dir holds anything.
func newWriter(store *filesystem.Storage, dir string) (*writer, error) {
	if err := emptyDir(dir); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &writer{store: store, root: root}, nil
}

func (w *writer) Close() error { return w.root.Close() }

// tree writes one tree object into the folder dir.
func (w *writer) tree(ctx context.Context, id plumbing.Hash, dir string, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if depth > maxDepth {
		return fmt.Errorf("folders nest deeper than %d", maxDepth)
	}
	t, err := object.GetTree(w.store, id)
	if err != nil {
		return fmt.Errorf("reading tree %s of %q: %w", id, dir, err)
	}
	if len(t.Entries) == 0 && dir != "" {
		return fmt.Errorf("%s: an empty tree cannot be told from no folder at all", dir)
	}
	seen := map[string]bool{}
	for _, e := range t.Entries {
		name := path.Join(dir, e.Name)
		if err := checkName(e.Name); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
		if seen[e.Name] {
			return fmt.Errorf("%q is in its tree twice", name)
		}
		seen[e.Name] = true
		if err := w.entry(ctx, e, name, depth); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) entry(ctx context.Context, e object.TreeEntry, name string, depth int) error {
	switch e.Mode {
	case filemode.Dir:
		if err := w.root.Mkdir(name, 0o755); err != nil {
			return err
		}
		return w.tree(ctx, e.Hash, name, depth+1)
	case filemode.Regular:
		return w.file(e.Hash, name, 0o644)
	case filemode.Executable:
		return w.file(e.Hash, name, 0o755)
	case filemode.Symlink:
		return w.link(e.Hash, name)
	case filemode.Submodule:
		return fmt.Errorf("%q is a submodule, which is not supported; hint: vendor it, or clone it with a task of its own", name)
	}
	return fmt.Errorf("%q has mode %s, which git no longer writes and a folder cannot carry", name, e.Mode)
}

// checkName refuses what git itself would refuse to check out.
func checkName(s string) error {
	switch {
	case s == "", s == ".", s == "..":
		return errors.New("not a file name")
	case strings.EqualFold(s, ".git"):
		return errors.New("a tree must not hold .git")
	case strings.ContainsAny(s, "/\x00"):
		return errors.New("a file name must not hold slashes or NUL")
	}
	return nil
}

func (w *writer) blob(id plumbing.Hash, name string) (io.ReadCloser, int64, error) {
	b, err := object.GetBlob(w.store, id)
	if err != nil {
		return nil, 0, fmt.Errorf("reading %q: %w", name, err)
	}
	r, err := b.Reader()
	if err != nil {
		return nil, 0, fmt.Errorf("reading %q: %w", name, err)
	}
	return r, b.Size, nil
}

func (w *writer) file(id plumbing.Hash, name string, mode os.FileMode) (err error) {
	r, _, err := w.blob(id, name)
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := w.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	var to io.Writer = f
	var attributes bytes.Buffer
	if path.Base(name) == ".gitattributes" {
		to = io.MultiWriter(f, &attributes)
	}
	if _, err := io.Copy(to, r); err != nil {
		return fmt.Errorf("writing %q: %w", name, err)
	}
	w.lfs = w.lfs || bytes.Contains(attributes.Bytes(), []byte("filter=lfs"))
	w.files++
	return f.Chmod(mode) // whatever the umask
}

func (w *writer) link(id plumbing.Hash, name string) error {
	r, size, err := w.blob(id, name)
	if err != nil {
		return err
	}
	defer r.Close()
	if size == 0 || size > maxLink {
		return fmt.Errorf("link %q has a target of %d bytes", name, size)
	}
	target, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("reading %q: %w", name, err)
	}
	if bytes.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("link %q has NUL in its target", name)
	}
	w.files++
	return w.root.Symlink(string(target), name)
}
