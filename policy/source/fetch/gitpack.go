package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	gitcache "github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/storage/filesystem"

	"assay.dev/assay/policy/source"
)

type objectStore = storer.EncodedObjectStorer

// maxObjects bounds a pack.
const maxObjects = 2_000_000

// unpack reads a pack that a stranger sent into a store in dir. What it would become
// is measured before it is unpacked.
func unpack(file *os.File, dir string, limits Limits) (objectStore, error) {
	if err := measure(file, limits); err != nil {
		return nil, fmt.Errorf("reading the commit: %w", err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("reading the commit: %w", err)
	}
	objects := filesystem.NewStorageWithOptions(osfs.New(dir), gitcache.NewObjectLRU(16*gitcache.MiByte), filesystem.Options{LargeObjectThreshold: 1 << 20})
	if err := packfile.UpdateObjectStorage(objects, file); err != nil {
		return nil, fmt.Errorf("reading the commit: %w", err)
	}
	return objects, nil
}

// measure adds up how large the objects of a pack are.
func measure(file *os.File, limits Limits) error {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	s := packfile.NewScanner(file)
	_, n, err := s.Header()
	if err != nil {
		return err
	}
	if n > maxObjects {
		return fmt.Errorf("it has more than %d objects", maxObjects)
	}
	var total int64
	for range n {
		h, err := s.NextObjectHeader()
		if err != nil {
			return err
		}
		size := h.Length
		if size > limits.File {
			return fmt.Errorf("one object is larger than %d MiB", limits.File>>20)
		}
		head := &headWriter{}
		if _, _, err := s.NextObject(head); err != nil {
			return err
		}
		if h.Type == plumbing.OFSDeltaObject || h.Type == plumbing.REFDeltaObject {
			// A delta says what it becomes at its start: twice a size, 7 bits a byte.
			target, err := deltaTarget(head.b)
			if err != nil {
				return err
			}
			if target > limits.File {
				return fmt.Errorf("one object is larger than %d MiB", limits.File>>20)
			}
			size += target
		}
		// Twice: trees and commits come on top of the files.
		if total += size; total > 2*limits.Bytes {
			return fmt.Errorf("its objects have more than %d MiB", 2*limits.Bytes>>20)
		}
	}
	return nil
}

// headWriter keeps the first bytes that are written.
type headWriter struct{ b []byte }

func (w *headWriter) Write(p []byte) (int, error) {
	if n := 20 - len(w.b); n > 0 {
		w.b = append(w.b, p[:min(n, len(p))]...)
	}
	return len(p), nil
}

// deltaTarget is the second of the two sizes that a delta begins with.
func deltaTarget(b []byte) (int64, error) {
	var size int64
	for range 2 {
		size = 0
		for shift := 0; ; shift += 7 {
			if len(b) == 0 || shift > 42 {
				return 0, errors.New("a delta has no size")
			}
			c := b[0]
			b = b[1:]
			size |= int64(c&0x7f) << shift
			if c&0x80 == 0 {
				break
			}
		}
	}
	return size, nil
}

// commitOf is the commit that an id names, or that a tag with the id names.
func commitOf(s objectStore, id plumbing.Hash) (*object.Commit, error) {
	for range 8 {
		o, err := s.EncodedObject(plumbing.AnyObject, id)
		if errors.Is(err, plumbing.ErrObjectNotFound) {
			return nil, fmt.Errorf("the repository has no commit %s in any branch or tag", id)
		}
		if err != nil {
			return nil, fmt.Errorf("reading commit %s: %w", id, err)
		}
		switch o.Type() {
		case plumbing.CommitObject:
			c, err := object.DecodeCommit(s, o)
			if err != nil {
				return nil, fmt.Errorf("reading commit %s: %w", id, err)
			}
			return c, nil
		case plumbing.TagObject:
			t, err := object.DecodeTag(s, o)
			if err != nil {
				return nil, fmt.Errorf("reading tag %s: %w", id, err)
			}
			id = t.Target
		default:
			return nil, fmt.Errorf("%s is a %s and no commit", id, o.Type())
		}
	}
	return nil, fmt.Errorf("%s is a tag of a tag of a tag without end", id)
}

// exporter writes the files below a folder of a commit.
type exporter struct {
	objects objectStore
	root    *object.Tree
	subdir  string
	to      *place
}

// export writes the files below subdir. A link to a file inside becomes the file; a
// link to a folder inside is left out, since what is there is written at its place; a
// link to rules, data or a folder outside is refused, and what else leads nowhere is
// left out, as repositories in repositories are.
func export(ctx context.Context, objects objectStore, c *object.Commit, subdir string, to *place) error {
	root, err := object.GetTree(objects, c.TreeHash)
	if err != nil {
		return fmt.Errorf("reading commit %s: %w", c.Hash, err)
	}
	e := &exporter{objects: objects, root: root, subdir: subdir, to: to}
	top := root
	if subdir != "" {
		entry, err := root.FindEntry(subdir)
		switch {
		case errors.Is(err, object.ErrEntryNotFound), errors.Is(err, object.ErrDirectoryNotFound):
			return fmt.Errorf("path %s does not exist in the repository (commit %s)", subdir, c.Hash)
		case err != nil:
			return fmt.Errorf("reading %s of commit %s: %w", subdir, c.Hash, err)
		case entry.Mode.IsRegular() || entry.Mode == filemode.Executable:
			return e.blob(path.Base(subdir), entry.Hash)
		case entry.Mode != filemode.Dir:
			return fmt.Errorf("path %s of the repository is a link or another repository (commit %s); name what it leads to", subdir, c.Hash)
		}
		if top, err = object.GetTree(objects, entry.Hash); err != nil {
			return fmt.Errorf("reading %s of commit %s: %w", subdir, c.Hash, err)
		}
	}
	return e.folder(ctx, top, "", 0)
}

func (e *exporter) folder(ctx context.Context, t *object.Tree, at string, depth int) error {
	if depth > 64 {
		return fmt.Errorf("%s: folders in folders without end", at)
	}
	for _, entry := range t.Entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := path.Join(at, entry.Name)
		if strings.Contains(entry.Name, "/") || entry.Name == "" || entry.Name == "." || entry.Name == ".." || strings.EqualFold(entry.Name, ".git") {
			return fmt.Errorf("the repository has a file by the name %q in %q", entry.Name, at)
		}
		var err error
		switch entry.Mode {
		case filemode.Dir:
			var sub *object.Tree
			if sub, err = object.GetTree(e.objects, entry.Hash); err == nil {
				err = e.folder(ctx, sub, name, depth+1)
			}
		case filemode.Symlink:
			err = e.link(name, entry.Hash)
		case filemode.Submodule:
		default:
			err = e.blob(name, entry.Hash)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *exporter) blob(name string, id plumbing.Hash) error {
	b, err := object.GetBlob(e.objects, id)
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	r, err := b.Reader()
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return errors.Join(e.to.file(name, r), r.Close())
}

// link writes the file that a link leads to, by way of no other link.
func (e *exporter) link(name string, id plumbing.Hash) error {
	target, err := e.target(id)
	if err != nil {
		return fmt.Errorf("reading the link %s: %w", name, err)
	}
	inside := path.Join(e.subdir, path.Dir(name), target)
	entry, err := e.root.FindEntry(inside)
	outside := path.IsAbs(target) || e.subdir != "" && inside != e.subdir && !strings.HasPrefix(inside, e.subdir+"/") || strings.HasPrefix(inside, "../")
	found := err == nil && !path.IsAbs(target)
	switch {
	case found && !outside && (entry.Mode == filemode.Regular || entry.Mode == filemode.Executable || entry.Mode == filemode.Deprecated):
		return e.blob(name, entry.Hash)
	case found && !outside && entry.Mode == filemode.Dir, inside == "." || inside == e.subdir:
		return nil
	case source.Counts(name) || found && entry.Mode == filemode.Dir:
		return fmt.Errorf("%s is a link to %q, which is not a file of this source; name what it leads to as a source of its own", name, target)
	}
	return nil
}

func (e *exporter) target(id plumbing.Hash) (string, error) {
	b, err := object.GetBlob(e.objects, id)
	if err != nil {
		return "", err
	}
	r, err := b.Reader()
	if err != nil {
		return "", err
	}
	var buf bytes.Buffer
	_, err = io.Copy(&buf, io.LimitReader(r, 4097))
	if err := errors.Join(err, r.Close()); err != nil {
		return "", err
	}
	if buf.Len() > 4096 {
		return "", errors.New("its target is longer than 4096 bytes")
	}
	return buf.String(), nil
}
