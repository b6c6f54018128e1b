package tree

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// list reads the names and kinds of a folder's entries.
func (k *worker) list(n *node) error {
	for {
		if err := k.ctx.Err(); err != nil {
			return context.Cause(k.ctx)
		}
		got, err := unix.Getdents(n.fd, k.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("listing folder %q: %w", n.name(""), err)
		}
		if got <= 0 {
			break
		}
		if err := k.parse(n, k.buf[:got]); err != nil {
			return err
		}
	}
	// Jobs refer to records by position, so they are sorted before the first.
	slices.SortFunc(n.records, func(a, b record) int { return strings.Compare(a.name, b.name) })
	return nil
}

// parse reads linux_dirent64 structures: inode, offset, length, type, name.
func (k *worker) parse(n *node, b []byte) error {
	const header = 8 + 8 + 2 + 1
	for len(b) > header {
		size := int(binary.NativeEndian.Uint16(b[16:]))
		if size <= header || size > len(b) {
			return fmt.Errorf("listing folder %q: the kernel's answer is malformed", n.name(""))
		}
		kind, raw := b[18], b[header:size]
		b = b[size:]
		end := slices.Index(raw, 0)
		if end < 0 {
			return fmt.Errorf("listing folder %q: the kernel's answer is malformed", n.name(""))
		}
		name := string(raw[:end])
		if name == "." || name == ".." {
			continue
		}
		if err := k.enter(n, name, kind); err != nil {
			return err
		}
	}
	return nil
}

func (k *worker) enter(n *node, name string, dtype byte) error {
	if k.entries.Add(1) > k.limits.Entries {
		return limit(n.name(name), "entries", k.limits.Entries)
	}
	if n.path+len(name) > k.limits.PathBytes {
		return limit(n.name(name), "bytes in a path", int64(k.limits.PathBytes))
	}
	r := record{name: name}
	switch dtype {
	case unix.DT_REG:
		r.kind = File
	case unix.DT_DIR:
		r.kind = Dir
	case unix.DT_LNK:
		r.kind, r.mode = Symlink, linkMode
	default: // a device or such, or a file system that does not say
		var st unix.Stat_t
		if err := unix.Fstatat(n.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("reading the kind of %q: %w", n.name(name), err)
		}
		kind, err := kindOf(st.Mode)
		if err != nil {
			return fmt.Errorf("measuring %q: %w", n.name(name), err)
		}
		r.kind, r.mode = kind, st.Mode&0o7777
		switch {
		case kind == Symlink:
			r.mode = linkMode
		case kind.Special() && !k.opts.Special:
			return special(n.name(name), kind)
		case kind == CharDevice || kind == BlockDevice:
			r.major, r.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		}
	}
	if r.kind == Dir && n.depth+1 > k.limits.Depth {
		return limit(n.name(name), "nested folders", int64(k.limits.Depth))
	}
	n.records = append(n.records, r)
	return nil
}

func kindOf(mode uint32) (Kind, error) {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return File, nil
	case unix.S_IFDIR:
		return Dir, nil
	case unix.S_IFLNK:
		return Symlink, nil
	case unix.S_IFCHR:
		return CharDevice, nil
	case unix.S_IFBLK:
		return BlockDevice, nil
	case unix.S_IFIFO:
		return FIFO, nil
	case unix.S_IFSOCK:
		return Socket, nil
	}
	return 0, fmt.Errorf("its type %#o is none of Linux's", mode&unix.S_IFMT)
}

// leaf completes an entry that needs no job.
func (k *worker) leaf(n *node, r *record) error {
	if r.kind != Symlink {
		return nil
	}
	got, err := unix.Readlinkat(n.fd, r.name, k.buf[:unix.PathMax+1])
	if err != nil {
		return fmt.Errorf("reading symbolic link %q: %w", n.name(r.name), changedIf(err, unix.EINVAL))
	}
	if got > unix.PathMax {
		return limit(n.name(r.name), "bytes in a link's target", unix.PathMax)
	}
	r.target = string(k.buf[:got])
	return nil
}

// file hashes one regular file.
func (k *worker) file(n *node, r *record) error {
	// O_NONBLOCK: should the name have become a fifo meanwhile, the open
	// returns and the mode tells.
	fd, err := openat(n.fd, r.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return fmt.Errorf("opening file %q: %w", n.name(r.name), changedIf(err, unix.ELOOP, unix.ENXIO))
	}
	defer unix.Close(fd)
	k.opened(n)
	// Reading comes first and the size after it: the usual file is shorter
	// than the buffer, so that one read sees it whole at one moment, and a
	// size that agrees needs no second look.
	got, err := read(fd, k.buf)
	if err != nil {
		return fmt.Errorf("reading %q: %w", n.name(r.name), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("reading the mode of %q: %w", n.name(r.name), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("measuring %q: %w", n.name(r.name), ErrChanged)
	}
	r.mode, r.size = st.Mode&0o7777, st.Size
	k.files.Add(1)
	if k.bytes.Add(r.size) > k.limits.Bytes {
		return limit(n.name(r.name), "bytes", k.limits.Bytes)
	}
	git := k.opts.GitTree && !n.inGit
	if int64(got) != r.size || got == len(k.buf) {
		if err := k.large(fd, got, r, git, &st); err != nil {
			return fmt.Errorf("reading %q: %w", n.name(r.name), err)
		}
		return nil
	}
	r.sum = sha256.Sum256(k.buf[:got])
	if git {
		k.blob.Reset()
		k.blob.Write(gitHeader("blob", r.size))
		k.blob.Write(k.buf[:got])
		k.blob.Sum(r.blob[:0])
	}
	return nil
}

// large hashes a file of which the buffer has the first bytes: r.size bytes,
// and no more may follow.
func (k *worker) large(fd, got int, r *record, git bool, before *unix.Stat_t) error {
	k.sum.Reset()
	if git {
		k.blob.Reset()
		k.blob.Write(gitHeader("blob", r.size))
	}
	total := int64(0)
	for got > 0 {
		if total += int64(got); total > r.size {
			return ErrChanged
		}
		k.sum.Write(k.buf[:got])
		if git {
			k.blob.Write(k.buf[:got])
		}
		if k.ctx.Err() != nil {
			return context.Cause(k.ctx)
		}
		var err error
		if got, err = read(fd, k.buf); err != nil {
			return err
		}
	}
	var after unix.Stat_t
	if err := unix.Fstat(fd, &after); err != nil {
		return err
	}
	if total != r.size || before.Size != after.Size || before.Ctim != after.Ctim {
		return ErrChanged
	}
	k.sum.Sum(r.sum[:0])
	if git {
		k.blob.Sum(r.blob[:0])
	}
	return nil
}

func read(fd int, b []byte) (int, error) {
	for {
		n, err := unix.Read(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// changedIf says that an entry is no longer what the folder listed, where the
// error means that.
func changedIf(err error, codes ...error) error {
	for _, c := range codes {
		if errors.Is(err, c) {
			return fmt.Errorf("%w: %w", ErrChanged, err)
		}
	}
	return explain(err)
}
