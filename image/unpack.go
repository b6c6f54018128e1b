package image

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// unpacker writes one layer into an empty folder of its own, into which nobody
// else writes. It is used once.
type unpacker struct {
	dir        string
	owners     owners
	bounds     Bounds
	keepSetuid bool
	log        *onceLog

	opaque []string // folders marked opaque, relative to dir

	root      int                // descriptor of dir
	parent    string             // folder that parentFD is open on
	current   int                // its descriptor, -1 if none
	dirs      map[string]dirMeta // what folders get at the end
	entries   int64
	bytes     int64
	nameBytes int64
	buf       []byte
	dropped   map[string]int
}

// dirMeta is applied last: a folder's own mode could keep us out, and each
// entry made in it would change its time.
type dirMeta struct {
	mode     uint32
	uid, gid int
	mtime    time.Time
}

// blob unpacks a compressed layer and checks both of its digests. A blob whose
// content is not what its digest names is a *damagedError; an archive that is
// not what diffID names, or that must not be unpacked, is ErrBadImage.
func (u *unpacker) blob(ctx context.Context, r io.Reader, digest string, size int64, diffID string) error {
	verified := newVerifiedReader(&contextReader{ctx, r}, digest, size, size)
	err := u.compressed(verified, diffID)
	if err != nil && verified.err == nil && ctx.Err() == nil && !errors.Is(err, ErrLocal) {
		// Whatever went wrong may come of a damaged blob: that is only known
		// once all of it has been read.
		_, _ = io.Copy(io.Discard, verified)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if v := verified.err; v != nil && !errors.Is(v, io.EOF) {
		return &damagedError{v}
	}
	return err
}

func (u *unpacker) compressed(r io.Reader, diffID string) error {
	plain, done, err := decompress(r)
	if err != nil {
		return err
	}
	defer done()
	h := sha256.New()
	archive := &boundedReader{r: io.TeeReader(plain, h), left: u.bounds.LayerBytes, bound: u.bounds.LayerBytes}
	if err := u.archive(archive); err != nil {
		return err
	}
	// The archive's digest covers what follows its end as well.
	if _, err := io.Copy(io.Discard, archive); err != nil {
		return badUnlessKinded(err)
	}
	if got := "sha256:" + hex.EncodeToString(h.Sum(nil)); got != diffID {
		return bad("the archive hashes to %s, the configuration says %s", got, diffID)
	}
	// What follows the compressed stream belongs to the blob's digest.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return badUnlessKinded(err)
	}
	return nil
}

// decompress looks at the first bytes: media types are often wrong, magic
// numbers never.
func decompress(r io.Reader) (plain io.Reader, done func(), err error) {
	b := bufio.NewReaderSize(r, 1<<20)
	magic, _ := b.Peek(4)
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, bad("reading gzip: %w", err)
		}
		return z, func() { z.Close() }, nil
	case string(magic) == "\x28\xb5\x2f\xfd":
		// A window is memory that a stranger asks us for; zstd's own tools
		// refuse more than 128 MiB too.
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, bad("reading zstd: %w", err)
		}
		return z, z.Close, nil
	}
	return b, func() {}, nil
}

// archive unpacks a tar stream.
func (u *unpacker) archive(r io.Reader) error {
	fd, err := unix.Open(u.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return asLocal(fmt.Errorf("opening %s: %w", u.dir, err))
	}
	defer unix.Close(fd)
	u.root, u.current = fd, -1
	defer u.leave()
	u.buf = make([]byte, 256<<10)
	u.dropped = map[string]int{}
	u.dirs = map[string]dirMeta{".": u.impliedDir()}
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return badUnlessKinded(fmt.Errorf("reading archive: %w", err))
		}
		if u.entries++; u.entries > u.bounds.Entries {
			return bad("more than %d entries", u.bounds.Entries)
		}
		if err := u.entry(h, t); err != nil {
			return fmt.Errorf("entry %q: %w", h.Name, err)
		}
	}
	if err := u.finishDirs(); err != nil {
		return err
	}
	for what, n := range u.dropped {
		u.log.printf("%d × %s", n, what)
	}
	return nil
}

// entry unpacks one entry.
func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeReg, '\x00', tar.TypeGNUSparse, tar.TypeCont, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		u.dropped["device or fifo left out"]++
		return nil
	default:
		return bad("of an unknown type %q", h.Typeflag)
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if len(h.PAXRecords) > 0 {
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				u.dropped["extended attribute left out"]++
			}
		}
	}
	uid, gid, squashed, err := u.owners.host(h.Uid, h.Gid)
	if err != nil {
		return err
	}
	if squashed {
		u.dropped["owner replaced by this process's own"]++
	}
	meta := dirMeta{mode: u.mode(h), uid: uid, gid: gid, mtime: h.ModTime}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return bad("the root is not a folder")
		}
		u.dirs["."] = meta
		return nil
	}
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	if err := u.enter(dir); err != nil {
		return err
	}
	if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
		return u.whiteout(dir, hidden)
	}
	wasWhiteout, err := u.makeRoom(base, h.Typeflag == tar.TypeDir)
	if err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.folder(name, base, meta, wasWhiteout)
	case tar.TypeSymlink:
		return u.symlink(base, h.Linkname, meta)
	case tar.TypeLink:
		return u.hardlink(base, h.Linkname)
	}
	return u.file(base, h.Size, content, meta)
}

// maxDepth of folders, as tree digests have it.
const maxDepth = 512

// cleanName is an entry's name below the root. Images are full of "./x" and
// some of "/x", which every runtime reads as below the image's root; ".."
// leads out of what an archive of a root can hold.
func cleanName(s string) (string, error) {
	if len(s) > 4096 {
		return "", bad("the name has %d bytes", len(s))
	}
	var parts []string
	for p := range strings.SplitSeq(s, "/") {
		switch p {
		case "", ".":
		case "..":
			return "", bad("the name leads out of the layer")
		default:
			parts = append(parts, p)
		}
	}
	if len(parts) == 0 {
		if s == "" {
			return "", bad("it has no name")
		}
		return ".", nil
	}
	if len(parts) > maxDepth {
		return "", bad("folders nest deeper than %d", maxDepth)
	}
	return strings.Join(parts, "/"), nil
}

func (u *unpacker) mode(h *tar.Header) uint32 {
	m := uint32(h.Mode & 0o7777)
	if h.Typeflag != tar.TypeDir && !u.keepSetuid && m&0o6000 != 0 {
		m &^= 0o6000
		u.dropped["set-user-id or set-group-id bit left out"]++
	}
	if u.owners.single {
		// The owner reads by these bits, without the power to override them.
		if m |= 0o400; h.Typeflag == tar.TypeDir {
			m |= 0o700
		}
	}
	return m
}

func (u *unpacker) impliedDir() dirMeta {
	uid, gid, _, err := u.owners.host(0, 0)
	if err != nil {
		uid, gid = -1, -1
	}
	return dirMeta{mode: 0o755, uid: uid, gid: gid, mtime: time.Unix(0, 0)}
}

// badUnlessKinded: an archive that cannot be read is a bad image, unless the
// cause is already something else.
func badUnlessKinded(err error) error {
	for _, k := range kinds {
		if errors.Is(err, k.kind) {
			return err
		}
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &kinded{ErrBadImage, err}
}

// boundedReader fails beyond a bound instead of ending there.
type boundedReader struct {
	r           io.Reader
	left, bound int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, bad("more than %d bytes uncompressed", b.bound)
	}
	return n, err
}

// contextReader ends reading when a context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
