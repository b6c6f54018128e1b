package tree

import (
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"path"
	"strings"
)

// Entry is one entry of a tree whose bytes somebody else has at hand, such as
// an archive's reader.
type Entry struct {
	// Path is relative to the root: names joined by slashes, no ".", "..",
	// empty name or leading slash.
	Path string
	Kind Kind
	// Mode holds the permission bits, 0o7777. It is not looked at for links.
	Mode uint32
	// Content of a File.
	Content Content
	// Target of a Symlink.
	Target string
	// Major and Minor of a device.
	Major, Minor uint32
}

// Content is a file's content reduced to hashes; NewContent and
// ContentWriter make it.
type Content struct {
	size int64
	sum  [sha256.Size]byte
	blob [sha1.Size]byte
	git  bool
}

// Size is the content's length.
func (c Content) Size() int64 { return c.size }

// NewContent hashes a file's content.
func NewContent(b []byte) Content {
	c := Content{size: int64(len(b)), sum: sha256.Sum256(b), git: true}
	h := sha1.New()
	h.Write(gitHeader("blob", c.size))
	h.Write(b)
	h.Sum(c.blob[:0])
	return c
}

// ContentWriter hashes a file's content as it passes by.
type ContentWriter struct {
	want, got int64
	sum, blob hash.Hash // blob is nil without git
}

var _ io.Writer = (*ContentWriter)(nil)

// NewContentWriter starts hashing a file of the given size, which git's ids
// need to know beforehand. git asks for what a git tree needs.
func NewContentWriter(size int64, git bool) *ContentWriter {
	w := &ContentWriter{want: size, sum: sha256.New()}
	if git {
		w.blob = sha1.New()
		w.blob.Write(gitHeader("blob", size))
	}
	return w
}

// Reset starts over with another file.
func (w *ContentWriter) Reset(size int64) {
	w.want, w.got = size, 0
	w.sum.Reset()
	if w.blob != nil {
		w.blob.Reset()
		w.blob.Write(gitHeader("blob", size))
	}
}

// Write never fails.
func (w *ContentWriter) Write(b []byte) (int, error) {
	w.got += int64(len(b))
	w.sum.Write(b)
	if w.blob != nil {
		w.blob.Write(b)
	}
	return len(b), nil
}

// Content is what was written. It fails if that is not as much as announced.
func (w *ContentWriter) Content() (Content, error) {
	if w.got != w.want {
		return Content{}, fmt.Errorf("hashing content: %d bytes instead of %d: %w", w.got, w.want, ErrChanged)
	}
	c := Content{size: w.got, git: w.blob != nil}
	w.sum.Sum(c.sum[:0])
	if w.blob != nil {
		w.blob.Sum(c.blob[:0])
	}
	return c, nil
}

// Builder computes a tree's Sum from its entries, in any order as long as a
// folder comes before what it holds. It is for one goroutine.
type Builder struct {
	opts    Options
	dirs    map[string]*folder
	entries int64
	bytes   int64
	files   int64
}

type folder struct {
	records []record
	names   map[string]struct{}
	dirs    []string // full paths of subfolders, by position in records
	depth   int
}

// NewBuilder starts an empty tree. It fails for limits that make no sense.
func NewBuilder(o Options) (*Builder, error) {
	var err error
	if o.Limits, err = o.Limits.WithDefaults(); err != nil {
		return nil, err
	}
	return &Builder{opts: o, dirs: map[string]*folder{"": newFolder(0)}}, nil
}

func newFolder(depth int) *folder {
	return &folder{names: map[string]struct{}{}, depth: depth}
}

// Add adds one entry. It refuses a path that is not clean, that is there
// already or whose folder is not; an unknown kind; what Options refuse; and
// what exceeds the limits (ErrLimit).
func (b *Builder) Add(e Entry) error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	if len(e.Path) > b.opts.Limits.PathBytes {
		return limit(e.Path, "bytes in a path", int64(b.opts.Limits.PathBytes))
	}
	parent, name := path.Split(e.Path)
	parent = strings.TrimSuffix(parent, "/")
	f, ok := b.dirs[parent]
	if !ok {
		return fmt.Errorf("adding %q: its folder is not in the tree", e.Path)
	}
	if _, ok := f.names[name]; ok {
		return fmt.Errorf("adding %q: it is there already", e.Path)
	}
	if b.entries++; b.entries > b.opts.Limits.Entries {
		return limit(e.Path, "entries", b.opts.Limits.Entries)
	}
	r := record{name: name, kind: e.Kind, mode: e.Mode & 0o7777}
	subdir := ""
	switch {
	case e.Kind == File:
		if b.opts.GitTree && !e.Content.git {
			return fmt.Errorf("adding %q: its content was hashed without git's id", e.Path)
		}
		if b.bytes += e.Content.size; b.bytes > b.opts.Limits.Bytes {
			return limit(e.Path, "bytes", b.opts.Limits.Bytes)
		}
		b.files++
		r.size, r.sum, r.blob = e.Content.size, e.Content.sum, e.Content.blob
	case e.Kind == Dir:
		if f.depth+1 > b.opts.Limits.Depth {
			return limit(e.Path, "nested folders", int64(b.opts.Limits.Depth))
		}
		subdir = e.Path
		b.dirs[e.Path] = newFolder(f.depth + 1)
	case e.Kind == Symlink:
		if e.Target == "" || strings.IndexByte(e.Target, 0) >= 0 {
			return fmt.Errorf("adding %q: a symbolic link's target is empty or has a NUL byte", e.Path)
		}
		r.mode, r.target = linkMode, e.Target
	case e.Kind.Special():
		if !b.opts.Special {
			return special(e.Path, e.Kind)
		}
		if e.Kind == CharDevice || e.Kind == BlockDevice {
			r.major, r.minor = e.Major, e.Minor
		}
	default:
		return fmt.Errorf("adding %q: %s", e.Path, e.Kind)
	}
	f.names[name] = struct{}{}
	f.records = append(f.records, r)
	f.dirs = append(f.dirs, subdir)
	return nil
}

// Sum is the sum of what was added. The builder can be added to afterwards.
func (b *Builder) Sum() Sum {
	var e encoder
	s := Sum{Files: b.files, Bytes: b.bytes}
	root := b.sum(&e, "", &s.GitTreeReason)
	s.Digest = digestString(root.sum)
	if b.opts.GitTree && s.GitTreeReason == "" {
		s.GitTree = hex.EncodeToString(root.blob[:])
	}
	return s
}

// sum hashes a folder below which everything was added. Recursion is bounded
// by Limits.Depth.
func (b *Builder) sum(e *encoder, dir string, reason *string) (r record) {
	f := b.dirs[dir]
	records := make([]record, len(f.records))
	copy(records, f.records)
	for i, sub := range f.dirs {
		if sub == "" {
			continue
		}
		d := b.sum(e, sub, reason)
		records[i].sum, records[i].blob, records[i].noGit = d.sum, d.blob, d.noGit
	}
	r.sum = e.dir(records)
	if b.opts.GitTree && !insideGit(dir) {
		var why string
		if r.blob, r.noGit, why = e.gitDir(records, dir == ""); why != "" {
			*reason = firstReason(*reason, dir, why)
		}
	}
	return r
}

// insideGit tells the folder that git's id leaves out, with all below it.
func insideGit(dir string) bool {
	return dir == ".git" || strings.HasPrefix(dir, ".git/")
}

// firstReason keeps the first of several reasons in the order of their text, so
// that it does not depend on the order of the walk.
func firstReason(reason, dir, why string) string {
	if dir == "" {
		dir = "."
	}
	if r := fmt.Sprintf("git cannot hold this tree: %q %s", dir, why); reason == "" || r < reason {
		return r
	}
	return reason
}

// checkPath refuses paths that are not plain names joined by slashes.
func checkPath(p string) error {
	if p == "" {
		return fmt.Errorf("adding %q: a path cannot be empty; the root itself is no entry", p)
	}
	for name := range strings.SplitSeq(p, "/") {
		if name == "" || name == "." || name == ".." {
			return fmt.Errorf("adding %q: a path is names joined by single slashes, without . and ..", p)
		}
		if len(name) > 255 {
			return fmt.Errorf("adding %q: a name has more than 255 bytes: %w", p, ErrLimit)
		}
	}
	if strings.IndexByte(p, 0) >= 0 {
		return fmt.Errorf("adding %q: a path cannot hold a NUL byte", p)
	}
	return nil
}
