package measure

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"assay.dev/assay/observe/tree"
)

// PackOptions for Pack. The zero value computes no git tree, uses the tree's
// default limits and refuses links that lead out of the folder.
type PackOptions struct {
	// GitTree asks for the git tree id as well.
	GitTree bool
	// Limits bound the walk; see tree.Limits.
	Limits tree.Limits
	// OutsideLinks accepts symbolic links that are absolute or may lead out of
	// the folder. They are stored as they are.
	OutsideLinks bool
}

// Packed is what became of a folder.
type Packed struct {
	tree.Sum
	// BlobDigest is sha256:… of the bytes written, Size how many they are.
	BlobDigest string
	Size       int64
}

// Pack writes the folder dir as a tar archive compressed with zstd
// (api.MediaTypeArtifact), measuring it on the way. The same tree gives the
// same bytes: names in order, time 0, owner 0, no extended attributes; hard
// links are written as files of their own.
//
// It fails, and what it wrote to w is worthless, if an entry cannot be read, is
// a device, fifo or socket (tree.ErrSpecial), leads out of the folder, changes
// meanwhile (tree.ErrChanged) or exceeds a limit (tree.ErrLimit).
func Pack(ctx context.Context, dir string, w io.Writer, o PackOptions) (Packed, error) {
	f, err := tree.OpenDir(dir)
	if err != nil {
		return Packed{}, err
	}
	defer f.Close()
	return PackDir(ctx, f, w, o)
}

// PackDir is Pack for a folder that is open already, such as one that
// tree.OpenBeneath found below a task's volume.
func PackDir(ctx context.Context, dir *os.File, w io.Writer, o PackOptions) (Packed, error) {
	limits, err := o.Limits.WithDefaults()
	if err != nil {
		return Packed{}, err
	}
	b, err := tree.NewBuilder(tree.Options{GitTree: o.GitTree, Limits: limits})
	if err != nil {
		return Packed{}, err
	}
	blob := sha256.New()
	count := &counter{w: io.MultiWriter(w, blob)}
	z, err := zstd.NewWriter(count, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(runtime.GOMAXPROCS(0)))
	if err != nil {
		return Packed{}, fmt.Errorf("starting compression: %w", err)
	}
	p := &packer{
		ctx: ctx, opts: o, limits: limits, sum: b, tar: tar.NewWriter(z),
		content: tree.NewContentWriter(0, o.GitTree), buf: make([]byte, 128<<10),
	}
	root, err := reopen(dir)
	if err == nil {
		err = p.dir(root, "")
	}
	if err == nil {
		err = p.tar.Close()
	}
	// The encoder's goroutines end with Close, also after a failure.
	if cerr := z.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return Packed{}, fmt.Errorf("packing folder %q: %w", dir.Name(), err)
	}
	return Packed{Sum: b.Sum(), BlobDigest: "sha256:" + hex.EncodeToString(blob.Sum(nil)), Size: count.n}, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

type packer struct {
	ctx     context.Context
	opts    PackOptions
	limits  tree.Limits
	sum     *tree.Builder
	tar     *tar.Writer
	content *tree.ContentWriter
	buf     []byte
	entries int64
}

// dir packs what f holds and closes f. Recursion is bounded by the depth limit,
// which the builder checks before it is entered.
func (p *packer) dir(f *os.File, at string) error {
	defer f.Close()
	names, err := p.list(f, at)
	if err != nil {
		return err
	}
	for _, name := range names {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		path := name
		if at != "" {
			path = at + "/" + name
		}
		if err := p.entry(f, name, path); err != nil {
			return err
		}
	}
	return nil
}

// list reads a folder's names in order. Their number counts as they come, so
// that a folder with too many does not have to fit into memory.
func (p *packer) list(f *os.File, at string) ([]string, error) {
	var names []string
	for {
		more, err := f.Readdirnames(1024)
		names = append(names, more...)
		if p.entries += int64(len(more)); p.entries > p.limits.Entries {
			return nil, fmt.Errorf("listing %q: more than %d entries: %w", at, p.limits.Entries, tree.ErrLimit)
		}
		if errors.Is(err, io.EOF) {
			slices.Sort(names)
			return names, nil
		}
		if err != nil {
			return nil, fmt.Errorf("listing %q: %w", at, err)
		}
	}
}

func (p *packer) entry(dir *os.File, name, path string) error {
	var st unix.Stat_t
	fd := int(dir.Fd())
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("reading the kind of %q: %w", path, err)
	}
	h := &tar.Header{Name: path, Mode: int64(st.Mode & 0o7777), ModTime: time.Unix(0, 0)}
	e := tree.Entry{Path: path, Mode: st.Mode & 0o7777}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return p.file(fd, h, e, &st)
	case unix.S_IFDIR:
		e.Kind, h.Typeflag, h.Name = tree.Dir, tar.TypeDir, path+"/"
	case unix.S_IFLNK:
		got, err := unix.Readlinkat(fd, name, p.buf[:unix.PathMax+1])
		if err != nil {
			return fmt.Errorf("reading symbolic link %q: %w", path, err)
		}
		e.Kind, e.Target = tree.Symlink, string(p.buf[:got])
		if !p.opts.OutsideLinks {
			if err := insideLink(path, e.Target); err != nil {
				return err
			}
		}
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.Target, 0o777
	case unix.S_IFCHR:
		e.Kind = tree.CharDevice
	case unix.S_IFBLK:
		e.Kind = tree.BlockDevice
	case unix.S_IFIFO:
		e.Kind = tree.FIFO
	case unix.S_IFSOCK:
		e.Kind = tree.Socket
	}
	// The builder refuses what has no content.
	if err := p.sum.Add(e); err != nil {
		return err
	}
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("packing %q: %w", path, err)
	}
	if e.Kind != tree.Dir {
		return nil
	}
	sub, err := openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("opening folder %q: %w", path, err)
	}
	return p.dir(sub, path)
}

func (p *packer) file(dir int, h *tar.Header, e tree.Entry, before *unix.Stat_t) error {
	f, err := openat(dir, h.Name[lastSlash(h.Name):], unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return fmt.Errorf("opening file %q: %w", e.Path, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("reading the mode of %q: %w", e.Path, err)
	}
	if st.Ino != before.Ino || st.Dev != before.Dev || st.Mode != before.Mode {
		return fmt.Errorf("packing %q: %w", e.Path, tree.ErrChanged)
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := p.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("packing %q: %w", e.Path, err)
	}
	p.content.Reset(st.Size)
	for left := st.Size; ; {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		n, err := f.Read(p.buf)
		if left -= int64(n); left < 0 {
			return fmt.Errorf("packing %q: %w", e.Path, tree.ErrChanged)
		}
		// One read feeds both the archive and the digest.
		_, _ = p.content.Write(p.buf[:n])
		if _, err := p.tar.Write(p.buf[:n]); err != nil {
			return fmt.Errorf("packing %q: %w", e.Path, err)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading %q: %w", e.Path, err)
		}
	}
	var after unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &after); err != nil {
		return fmt.Errorf("reading the mode of %q: %w", e.Path, err)
	}
	if after.Size != st.Size || after.Ctim != st.Ctim {
		return fmt.Errorf("packing %q: %w", e.Path, tree.ErrChanged)
	}
	if e.Content, err = p.content.Content(); err != nil {
		return fmt.Errorf("packing %q: %w", e.Path, err)
	}
	e.Kind = tree.File
	return p.sum.Add(e)
}

func lastSlash(p string) int {
	for i := len(p) - 1; i >= 0; i-- {
		if p[i] == '/' {
			return i + 1
		}
	}
	return 0
}

// reopen gives a descriptor of the same folder with a position of its own.
func reopen(dir *os.File) (*os.File, error) {
	return openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
}

// openat opens a single name below a descriptor, never through a link.
func openat(dir int, name string, flags int) (*os.File, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOCTTY, 0o600)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}
