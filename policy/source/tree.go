package source

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Bounds of a source on disk, which keep a wrong path (/, a build folder) from being
// read to its end. Only rules and data count.
const (
	MaxFileBytes = 64 << 20
	MaxBytes     = 512 << 20
	MaxFiles     = 20000
	// maxEntries bounds what is looked at to find them.
	maxEntries = 2_000_000
)

// Tree is a source as it lies on this machine. Make one with Open or a Fetcher.
type Tree struct {
	// Address is the source as the policy names it.
	Address string
	// Pinned is the address of exactly this content: git::…?ref=<commit>,
	// oci::…@sha256:…, file::…; an https address is followed by #sha256:….
	Pinned string
	// Digest is sha256:… over the relative paths and the contents of the rules and
	// data in it (see Counts), sorted; the same files have the same digest wherever
	// they came from.
	Digest string
	// Path is a file or a folder, with whatever else came along. What is evaluated is
	// Files.
	Path string

	once  sync.Once
	files []Content
	err   error
}

// Content is one file of a tree, read once.
type Content struct {
	// Path is relative to the tree, with slashes; for a tree that is one file, the
	// file's name.
	Path  string
	Bytes []byte
}

// IsRego says whether a file's name is that of rules. Tests stand beside rules by
// OPA's convention and are none.
func IsRego(name string) bool {
	name = strings.ToLower(name)
	return strings.HasSuffix(name, ".rego") && !strings.HasSuffix(name, "_test.rego")
}

// IsData says whether a file's name is that of data: .json, .yaml or .yml.
func IsData(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".json", ".yaml", ".yml":
		return true
	}
	return false
}

// Counts says whether a file's name is that of rules or data: what is digested and
// can be evaluated.
func Counts(name string) bool { return IsRego(name) || IsData(name) }

// Skip says whether a folder or file is passed over with all that is in it: .git, and
// the ..data of mounted ConfigMaps, whose files are linked to from beside it.
func Skip(name string) bool {
	return name == ".git" || strings.HasPrefix(name, "..") && name != ".."
}

// Open reads the rules and data at a path, a file or a folder, and digests them. It
// fails if there is nothing at the path, beyond MaxFileBytes, MaxBytes and MaxFiles, on
// what is no regular file, and on a link to a folder outside: the rules in it would
// silently be none. Links to files are followed, links to folders inside are not, since
// what is there is read at its place.
func Open(path string) (*Tree, error) {
	t := &Tree{Path: path}
	if err := t.load(); err != nil {
		return nil, err
	}
	t.Digest = DigestOf(t.files)
	return t, nil
}

// Files returns the rules and data whose names (without folder) want accepts, folder
// by folder in lexical order; nil accepts all. They are read when the first is asked
// for, and not again. It fails as Open does. The bytes are shared: do not change them.
func (t *Tree) Files(want func(name string) bool) ([]Content, error) {
	if err := t.load(); err != nil {
		return nil, fmt.Errorf("source %q: %w", t.Address, err)
	}
	var out []Content
	for _, f := range t.files {
		if want == nil || want(f.Path[strings.LastIndexByte(f.Path, '/')+1:]) {
			out = append(out, f)
		}
	}
	return out, nil
}

func (t *Tree) load() error {
	t.once.Do(func() { t.files, t.err = walk(t.Path) })
	return t.err
}

// DigestOf is the digest of files, whatever their order.
func DigestOf(files []Content) string {
	lines := make([]string, 0, len(files))
	for _, f := range files {
		h := sha256.Sum256(f.Bytes)
		// No path has a NUL, so no two lists of files make one text.
		lines = append(lines, f.Path+"\x00"+hex.EncodeToString(h[:])+"\n")
	}
	slices.Sort(lines)
	h := sha256.Sum256([]byte(strings.Join(lines, "")))
	return "sha256:" + hex.EncodeToString(h[:])
}

// walk reads what counts at or below root.
func walk(root string) ([]Content, error) {
	info, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		if !Counts(filepath.Base(root)) {
			return nil, nil
		}
		b, err := ReadFile(root, MaxFileBytes)
		if err != nil {
			return nil, err
		}
		return []Content{{filepath.Base(root), b}}, nil
	}
	// A folder that is a link is read where it leads.
	real, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, err
	}
	w := &walker{root: real}
	if err := filepath.WalkDir(real, w.visit); err != nil {
		return nil, err
	}
	return w.out, nil
}

type walker struct {
	root    string
	out     []Content
	entries int
	bytes   int64
}

func (w *walker) visit(p string, d fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if w.entries++; w.entries > maxEntries {
		return fmt.Errorf("more than %d files and folders; is the path right?", maxEntries)
	}
	if p != w.root && Skip(d.Name()) {
		if d.IsDir() {
			return fs.SkipDir
		}
		return nil
	}
	if d.IsDir() {
		return nil
	}
	if d.Type()&fs.ModeSymlink != 0 {
		folder, err := w.link(p)
		if err != nil || folder {
			return err
		}
	}
	if !Counts(d.Name()) {
		return nil
	}
	if len(w.out) == MaxFiles {
		return fmt.Errorf("more than %d files of rules and data; is the path right?", MaxFiles)
	}
	b, err := ReadFile(p, MaxFileBytes)
	if err != nil {
		return err
	}
	if w.bytes += int64(len(b)); w.bytes > MaxBytes {
		return fmt.Errorf("more than %d MiB of rules and data; is the path right?", MaxBytes>>20)
	}
	rel, err := filepath.Rel(w.root, p)
	if err != nil {
		return err
	}
	w.out = append(w.out, Content{filepath.ToSlash(rel), b})
	return nil
}

// link says whether a link leads to a folder, which has to be inside.
func (w *walker) link(p string) (folder bool, err error) {
	info, err := os.Stat(p)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) && !Counts(filepath.Base(p)) {
			return true, nil // it leads nowhere, and nobody would have read it
		}
		return false, err
	}
	if !info.IsDir() {
		return false, nil
	}
	to, err := filepath.EvalSymlinks(p)
	if err != nil {
		return false, err
	}
	if to != w.root && !strings.HasPrefix(to, strings.TrimSuffix(w.root, "/")+"/") {
		return false, fmt.Errorf("%s is a link to a folder outside (%s), which would not be read; name that folder as a source of its own", p, to)
	}
	return true, nil
}

// ReadFile reads a regular file of at most limit bytes, and fails on any other.
func ReadFile(p string, limit int64) ([]byte, error) {
	// Opening a pipe would wait for a writer.
	if info, err := os.Stat(p); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", p)
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d MiB", p, limit>>20)
	}
	return b, nil
}

// Share makes a tree hold the bytes that another has read, which has to be of the same
// files. It fails if reading those did.
func (t *Tree) Share(other *Tree) error {
	if err := other.load(); err != nil {
		return err
	}
	t.once.Do(func() { t.files = other.files })
	return nil
}
