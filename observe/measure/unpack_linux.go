package measure

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"assay.dev/assay/observe/tree"
)

// ErrDigest is wrapped when a blob is not the one that was asked for.
var ErrDigest = errors.New("the blob's digest differs")

// UnpackOptions for Unpack. The zero value keeps the caller as owner, uses the
// default limits and refuses links that lead out of the folder.
type UnpackOptions struct {
	// Limits bound what is extracted; see tree.Limits.
	Limits tree.Limits
	// BlobBytes bounds the compressed blob. Default: 64 GiB.
	BlobBytes int64
	// TempDir is where the blob waits while its digest is checked. Default:
	// os.TempDir.
	TempDir string
	// Owner, if set, is given every entry and the folder itself, as the steps'
	// user needs it.
	Owner *Owner
	// ModTime is given to every entry. Default: the archive's own, which for
	// Pack's is 1970.
	ModTime time.Time
	// GitTree asks for the git tree id as well.
	GitTree bool
	// OutsideLinks accepts symbolic links that are absolute or may lead out of
	// the folder.
	OutsideLinks bool
}

// Owner is a user and a group.
type Owner struct{ UID, GID int }

var digestRE = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Unpack extracts the archive that r holds, a tar compressed with zstd or gzip,
// into the empty folder dir and returns the sum of what it wrote.
//
// The whole blob is read and its digest compared with want (sha256:…) before
// the first byte is extracted; ErrDigest says it is another one. Entries with
// absolute paths or "..", devices, fifos, duplicates, links to the outside and
// anything beyond the limits (tree.ErrLimit) are refused. Set-id bits are kept;
// extended attributes and owners in the archive are not looked at. After any
// failure the folder is empty again.
func Unpack(ctx context.Context, r io.Reader, want, dir string, o UnpackOptions) (tree.Sum, error) {
	f, err := tree.OpenDir(dir)
	if err != nil {
		return tree.Sum{}, err
	}
	defer f.Close()
	return UnpackDir(ctx, r, want, f, o)
}

// UnpackDir is Unpack for a folder that is open already.
func UnpackDir(ctx context.Context, r io.Reader, want string, dir *os.File, o UnpackOptions) (sum tree.Sum, err error) {
	limits, err := o.Limits.WithDefaults()
	if err != nil {
		return tree.Sum{}, err
	}
	if o.BlobBytes < 0 {
		return tree.Sum{}, fmt.Errorf("checking limits: %d blob bytes; 0 means the default", o.BlobBytes)
	}
	if o.BlobBytes == 0 {
		o.BlobBytes = 64 << 30
	}
	if !digestRE.MatchString(want) {
		return tree.Sum{}, fmt.Errorf("unpacking blob: its digest %q is not sha256: and 64 hexadecimal digits", want)
	}
	root, err := reopen(dir)
	if err != nil {
		return tree.Sum{}, fmt.Errorf("opening folder %q: %w", dir.Name(), err)
	}
	defer root.Close()
	if names, err := root.Readdirnames(1); err == nil {
		return tree.Sum{}, fmt.Errorf("unpacking into %q: the folder is not empty, it holds %q", dir.Name(), names[0])
	} else if !errors.Is(err, io.EOF) {
		return tree.Sum{}, fmt.Errorf("listing folder %q: %w", dir.Name(), err)
	}
	blob, err := spool(ctx, r, want, o)
	if err != nil {
		return tree.Sum{}, fmt.Errorf("unpacking blob %s: %w", want, err)
	}
	defer blob.Close()

	x := &extractor{
		ctx: ctx, opts: o, limits: limits, root: root,
		known: map[string]int{}, content: tree.NewContentWriter(0, o.GitTree), buf: make([]byte, 128<<10),
	}
	defer x.release()
	if sum, err = x.extract(blob); err != nil {
		err = fmt.Errorf("unpacking blob %s: %w", want, err)
		if cerr := x.clear(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("emptying folder %q again: %w", dir.Name(), cerr))
		}
		return tree.Sum{}, err
	}
	return sum, nil
}

// entry is one thing that was written.
type entry struct {
	tree.Entry
	implied bool // a folder the archive used but did not list
	mtime   time.Time
}

type extractor struct {
	ctx     context.Context
	opts    UnpackOptions
	limits  tree.Limits
	root    *os.File
	entries []entry
	known   map[string]int // path → position in entries
	bytes   int64
	content *tree.ContentWriter
	buf     []byte

	// parent is the folder of the last entry, kept open for the next.
	parent     *os.File
	parentPath string
}

func (x *extractor) release() {
	if x.parent != nil {
		x.parent.Close()
		x.parent = nil
	}
}

func (x *extractor) extract(blob io.Reader) (tree.Sum, error) {
	z, done, err := decompress(blob)
	if err != nil {
		return tree.Sum{}, err
	}
	defer done()
	// Headers cost at most what a tar writer would need for the entries; what
	// is beyond content and headers is a bomb.
	stream := &limitedReader{r: ctxReader{x.ctx, z}, left: x.limits.Bytes}
	if overhead := x.limits.Entries*2048 + 1<<20; stream.left < math.MaxInt64-overhead {
		stream.left += overhead
	}
	t := tar.NewReader(stream)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return tree.Sum{}, fmt.Errorf("reading archive: %w", err)
		}
		if err := x.next(h, t); err != nil {
			return tree.Sum{}, err
		}
	}
	return x.finish()
}

// next writes one entry of the archive.
func (x *extractor) next(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // a comment, as git archive leaves it
	}
	name, err := entryPath(h.Name)
	if err != nil {
		return err
	}
	e := entry{Entry: tree.Entry{Path: name, Mode: uint32(h.Mode) & 0o7777}, mtime: h.ModTime}
	if !x.opts.ModTime.IsZero() {
		e.mtime = x.opts.ModTime
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("refusing entry %q: the root is a folder", h.Name)
		}
		return nil // the root's own mode is no part of the tree
	}
	if i, ok := x.known[name]; ok {
		if old := &x.entries[i]; h.Typeflag == tar.TypeDir && old.implied {
			old.implied, old.Mode, old.mtime = false, e.Mode, e.mtime
			return nil
		}
		return fmt.Errorf("refusing entry %q: the archive has it twice", name)
	}
	parent, err := x.open(path.Dir(name))
	if err != nil {
		return err
	}
	base := path.Base(name)
	switch h.Typeflag {
	case tar.TypeDir:
		e.Kind = tree.Dir
		if err := x.add(e); err != nil {
			return err
		}
		return wrap(unix.Mkdirat(int(parent.Fd()), base, 0o700), "making folder %q", name)
	case tar.TypeReg, tar.TypeGNUSparse:
		return x.file(parent, base, e, h.Size, content)
	case tar.TypeSymlink:
		e.Kind, e.Target = tree.Symlink, h.Linkname
		if !x.opts.OutsideLinks {
			if err := insideLink(name, e.Target); err != nil {
				return err
			}
		}
		if err := x.add(e); err != nil {
			return err
		}
		if err := unix.Symlinkat(e.Target, int(parent.Fd()), base); err != nil {
			return fmt.Errorf("making symbolic link %q: %w", name, err)
		}
		return x.own(parent, e)
	case tar.TypeLink:
		return x.link(parent, base, e, h.Linkname)
	}
	return fmt.Errorf("refusing entry %q: its type %q is not a file, folder or link", name, h.Typeflag)
}

// entryPath cleans "./a/b/" to "a/b" and refuses what does not stay below.
func entryPath(name string) (string, error) {
	p := strings.TrimSuffix(name, "/")
	for strings.HasPrefix(p, "./") {
		p = strings.TrimLeft(p[2:], "/")
	}
	if p == "" && strings.HasPrefix(name, "./") || p == "." {
		return ".", nil
	}
	if p == "" || p[0] == '/' {
		return "", fmt.Errorf("refusing entry %q: its path is empty or absolute", name)
	}
	for elem := range strings.SplitSeq(p, "/") {
		if elem == "" || elem == "." || elem == ".." {
			return "", fmt.Errorf("refusing entry %q: its path is not clean, it may lead out of the folder", name)
		}
	}
	return p, nil
}

// add counts an entry against the limits, all but its bytes.
func (x *extractor) add(e entry) error {
	if int64(len(x.entries)) >= x.limits.Entries {
		return fmt.Errorf("extracting %q: more than %d entries: %w", e.Path, x.limits.Entries, tree.ErrLimit)
	}
	if len(e.Path) > x.limits.PathBytes {
		return fmt.Errorf("extracting %q: more than %d bytes in a path: %w", e.Path, x.limits.PathBytes, tree.ErrLimit)
	}
	if e.Kind == tree.Dir && strings.Count(e.Path, "/")+1 > x.limits.Depth {
		return fmt.Errorf("extracting %q: more than %d nested folders: %w", e.Path, x.limits.Depth, tree.ErrLimit)
	}
	x.known[e.Path] = len(x.entries)
	x.entries = append(x.entries, e)
	return nil
}

// open opens a folder below the root, which this extraction made, and makes it
// if the archive does not list it.
func (x *extractor) open(dir string) (*os.File, error) {
	if x.parent != nil && x.parentPath == dir {
		return x.parent, nil
	}
	if err := x.imply(dir); err != nil {
		return nil, err
	}
	f, err := tree.OpenBeneath(x.root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	x.release()
	x.parent, x.parentPath = f, dir
	return f, nil
}

func (x *extractor) imply(dir string) error {
	if dir == "." {
		return nil
	}
	if i, ok := x.known[dir]; ok {
		if x.entries[i].Kind != tree.Dir {
			return fmt.Errorf("refusing entries below %q: it is a %s", dir, x.entries[i].Kind)
		}
		return nil
	}
	if strings.Count(dir, "/") >= x.limits.Depth {
		return fmt.Errorf("extracting %q: more than %d nested folders: %w", dir, x.limits.Depth, tree.ErrLimit)
	}
	parent, err := x.open(path.Dir(dir))
	if err != nil {
		return err
	}
	e := entry{Entry: tree.Entry{Path: dir, Kind: tree.Dir, Mode: 0o755}, implied: true, mtime: x.opts.ModTime}
	if err := x.add(e); err != nil {
		return err
	}
	return wrap(unix.Mkdirat(int(parent.Fd()), path.Base(dir), 0o700), "making folder %q", dir)
}

func (x *extractor) file(parent *os.File, base string, e entry, size int64, content io.Reader) error {
	if size > x.limits.Bytes-x.bytes {
		return fmt.Errorf("extracting %q: more than %d bytes: %w", e.Path, x.limits.Bytes, tree.ErrLimit)
	}
	x.bytes += size
	e.Kind = tree.File
	if err := x.add(e); err != nil {
		return err
	}
	f, err := openat(int(parent.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return fmt.Errorf("making file %q: %w", e.Path, err)
	}
	defer f.Close()
	x.content.Reset(size)
	// Without ReadFrom and WriteTo, so that the buffer is used.
	if _, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(f, x.content)}, struct{ io.Reader }{content}, x.buf); err != nil {
		return fmt.Errorf("writing file %q: %w", e.Path, err)
	}
	c, err := x.content.Content()
	if err != nil {
		return fmt.Errorf("writing file %q: %w", e.Path, err)
	}
	x.entries[len(x.entries)-1].Content = c
	// The owner first: changing it clears set-id bits.
	if o := x.opts.Owner; o != nil {
		if err := f.Chown(o.UID, o.GID); err != nil {
			return fmt.Errorf("giving file %q to %d:%d: %w", e.Path, o.UID, o.GID, err)
		}
	}
	if err := unix.Fchmod(int(f.Fd()), e.Mode); err != nil {
		return fmt.Errorf("setting the mode of file %q: %w", e.Path, err)
	}
	return setTime(parent, base, e)
}

// link makes a hard link to a file that this archive brought.
func (x *extractor) link(parent *os.File, base string, e entry, target string) error {
	to, err := entryPath(target)
	if err != nil {
		return fmt.Errorf("refusing hard link %q: %w", e.Path, err)
	}
	i, ok := x.known[to]
	if !ok || x.entries[i].Kind != tree.File {
		return fmt.Errorf("refusing hard link %q: its target %q is not a file earlier in the archive", e.Path, target)
	}
	// The digest counts the content once more, and so does the bound on what
	// a copy of this tree may need.
	size := x.entries[i].Content.Size()
	if size > x.limits.Bytes-x.bytes {
		return fmt.Errorf("extracting %q: more than %d bytes: %w", e.Path, x.limits.Bytes, tree.ErrLimit)
	}
	x.bytes += size
	e.Kind, e.Mode, e.Content = tree.File, x.entries[i].Mode, x.entries[i].Content
	if err := x.add(e); err != nil {
		return err
	}
	dir, err := tree.OpenBeneath(x.root, path.Dir(to), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	return wrap(unix.Linkat(int(dir.Fd()), path.Base(to), int(parent.Fd()), base, 0), "making hard link %q", e.Path)
}

// own gives a symbolic link its owner and time.
func (x *extractor) own(parent *os.File, e entry) error {
	base := path.Base(e.Path)
	if o := x.opts.Owner; o != nil {
		if err := unix.Fchownat(int(parent.Fd()), base, o.UID, o.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("giving %q to %d:%d: %w", e.Path, o.UID, o.GID, err)
		}
	}
	return setTime(parent, base, e)
}

func setTime(parent *os.File, base string, e entry) error {
	if e.mtime.IsZero() {
		return nil
	}
	ts, err := unix.TimeToTimespec(e.mtime)
	if err != nil {
		return fmt.Errorf("setting the time of %q: %w", e.Path, err)
	}
	err = unix.UtimesNanoAt(int(parent.Fd()), base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	return wrap(err, "setting the time of %q", e.Path)
}

// finish gives folders their owner, mode and time – last, because a folder's
// mode may forbid to write into it – and adds everything up.
func (x *extractor) finish() (tree.Sum, error) {
	b, err := tree.NewBuilder(tree.Options{GitTree: x.opts.GitTree, Limits: x.limits})
	if err != nil {
		return tree.Sum{}, err
	}
	for _, e := range x.entries {
		if err := b.Add(e.Entry); err != nil {
			return tree.Sum{}, err
		}
	}
	for i := len(x.entries) - 1; i >= 0; i-- {
		e := x.entries[i]
		if e.Kind != tree.Dir {
			continue
		}
		parent, err := x.open(path.Dir(e.Path))
		if err != nil {
			return tree.Sum{}, err
		}
		base := path.Base(e.Path)
		if o := x.opts.Owner; o != nil {
			if err := unix.Fchownat(int(parent.Fd()), base, o.UID, o.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return tree.Sum{}, fmt.Errorf("giving folder %q to %d:%d: %w", e.Path, o.UID, o.GID, err)
			}
		}
		// Nobody else is here, and the name is a folder that we made.
		if err := unix.Fchmodat(int(parent.Fd()), base, e.Mode, 0); err != nil {
			return tree.Sum{}, fmt.Errorf("setting the mode of folder %q: %w", e.Path, err)
		}
		if err := setTime(parent, base, e); err != nil {
			return tree.Sum{}, err
		}
	}
	if o := x.opts.Owner; o != nil {
		if err := x.root.Chown(o.UID, o.GID); err != nil {
			return tree.Sum{}, fmt.Errorf("giving the folder to %d:%d: %w", o.UID, o.GID, err)
		}
	}
	return b.Sum(), nil
}

// clear removes everything below the root again.
func (x *extractor) clear() error {
	// Last in, first out, so that folders are empty when their turn comes. An
	// entry counts from before it is made, so it may not be there.
	for _, e := range x.entries {
		if e.Kind == tree.Dir {
			if dir, err := x.open(path.Dir(e.Path)); err == nil {
				_ = unix.Fchmodat(int(dir.Fd()), path.Base(e.Path), 0o700, 0)
			}
		}
	}
	var errs []error
	for i := len(x.entries) - 1; i >= 0; i-- {
		e := x.entries[i]
		flags := 0
		if e.Kind == tree.Dir {
			flags = unix.AT_REMOVEDIR
		}
		dir, err := x.open(path.Dir(e.Path))
		if err == nil {
			err = unix.Unlinkat(int(dir.Fd()), path.Base(e.Path), flags)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("removing %q: %w", e.Path, err))
		}
	}
	return errors.Join(errs...)
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
