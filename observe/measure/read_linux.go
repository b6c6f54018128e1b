package measure

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"assay.dev/assay/observe/tree"
)

// ReadBounded reads the regular file at the relative path name below dir, as a
// task left it. No element of name may be a symbolic link or lead out of dir,
// and anything but a regular file is refused without being opened
// (tree.ErrSpecial for devices, fifos and sockets). A file of more than max
// bytes is an error (tree.ErrLimit), not a shorter result; one that is not
// there is os.ErrNotExist.
func ReadBounded(dir, name string, max int64) ([]byte, error) {
	root, err := tree.OpenDir(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return ReadBoundedAt(root, name, max)
}

// ReadBoundedAt is ReadBounded below a folder that is open already.
func ReadBoundedAt(root *os.File, name string, max int64) ([]byte, error) {
	if max < 0 {
		return nil, fmt.Errorf("reading %q: a bound of %d bytes", name, max)
	}
	parent, err := tree.OpenBeneath(root, path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	defer parent.Close()
	base := path.Base(name)
	if base == "." || base == ".." || base == "/" {
		return nil, fmt.Errorf("reading %q: the path names no file", name)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(parent.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFLNK:
		return nil, fmt.Errorf("reading %q: it is a symbolic link, which is never followed", name)
	case unix.S_IFDIR:
		return nil, fmt.Errorf("reading %q: it is a folder", name)
	default:
		return nil, fmt.Errorf("reading %q: %w", name, tree.ErrSpecial)
	}
	f, err := openat(int(parent.Fd()), base, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	defer f.Close()
	var now unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &now); err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	if now.Ino != st.Ino || now.Dev != st.Dev || now.Mode != st.Mode {
		return nil, fmt.Errorf("reading %q: %w", name, tree.ErrChanged)
	}
	b, err := io.ReadAll(io.LimitReader(f, max))
	if err != nil {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	if n, err := f.Read(make([]byte, 1)); n > 0 {
		return nil, fmt.Errorf("reading %q: more than %d bytes: %w", name, max, tree.ErrLimit)
	} else if !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading %q: %w", name, err)
	}
	return b, nil
}
