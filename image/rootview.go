package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// rootView looks into stacked layers as an overlay of them would, without
// mounting one. Links are followed inside the image only.
type rootView struct {
	layers []*os.File // topmost first
}

// openView opens layer folders, given lowest first.
func openView(layers []string) (*rootView, error) {
	v := &rootView{}
	for i := len(layers) - 1; i >= 0; i-- {
		f, err := os.OpenFile(layers[i], os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if err != nil {
			v.Close()
			return nil, err
		}
		v.layers = append(v.layers, f)
	}
	return v, nil
}

// Close closes the layers.
func (v *rootView) Close() {
	for _, f := range v.layers {
		f.Close()
	}
}

// errNotThere is what lookups of missing names say.
var errNotThere = fmt.Errorf("no such file in the image: %w", os.ErrNotExist)

// maxLinks bounds a chain of symbolic links, as the kernel does.
const maxLinks = 40

// readFile reads a regular file of at most limit bytes.
func (v *rootView) readFile(name string, limit int64) ([]byte, error) {
	todo := components(name)
	var done []string // resolved so far
	for links := 0; ; {
		if len(todo) == 0 {
			return nil, fmt.Errorf("%s is a folder", name)
		}
		if todo[0] == ".." {
			done, todo = done[:max(len(done)-1, 0)], todo[1:]
			continue
		}
		f, target, err := v.step(done, todo[0])
		if err != nil {
			return nil, err
		}
		switch {
		case target != "":
			if links++; links > maxLinks {
				return nil, fmt.Errorf("%s: too many symbolic links", name)
			}
			if strings.HasPrefix(target, "/") {
				done = nil
			}
			todo = append(components(target), todo[1:]...)
			if len(todo) > 4096 {
				return nil, fmt.Errorf("%s: symbolic links make it too long", name)
			}
		case f == nil: // a folder
			done, todo = append(done, todo[0]), todo[1:]
		case len(todo) > 1:
			f.Close()
			return nil, errNotThere
		default:
			defer f.Close()
			b, err := io.ReadAll(io.LimitReader(f, limit+1))
			if err == nil && int64(len(b)) > limit {
				err = fmt.Errorf("%s has more than %d bytes", name, limit)
			}
			return b, err
		}
	}
}

func components(p string) []string {
	var out []string
	for c := range strings.SplitSeq(p, "/") {
		if c != "" && c != "." {
			out = append(out, c)
		}
	}
	return out
}

// step looks up one name in a folder: an open regular file, a link's target, or
// neither for a folder. The folders of all layers are merged down to the first
// that is opaque, hidden or no folder.
func (v *rootView) step(dir []string, name string) (f *os.File, target string, err error) {
	folder := false
layers:
	for _, l := range v.layers {
		fd, opaque, err := descend(l, dir)
		if errors.Is(err, errHidden) {
			break
		}
		if err != nil {
			continue // this layer has no such folder
		}
		var st unix.Stat_t
		err = unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case err != nil:
			unix.Close(fd)
			if opaque {
				break layers
			}
			continue
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			// Deeper steps look into each layer on their own.
			unix.Close(fd)
			folder = true
			break layers
		case isWhiteoutStat(&st):
			unix.Close(fd)
			break layers
		}
		f, target, err := openEntry(fd, name, &st)
		unix.Close(fd)
		return f, target, err
	}
	if folder {
		return nil, "", nil
	}
	return nil, "", errNotThere
}

// errHidden: this layer has something else in the place of the folder, or is
// opaque on the way, so that layers below do not count.
var errHidden = errors.New("hidden")

// descend opens a folder in one layer. opaque says that what is below this
// layer does not show through in it.
func descend(l *os.File, dir []string) (fd int, opaque bool, err error) {
	fd, err = unix.FcntlInt(l.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, false, err
	}
	for _, name := range dir {
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		if errors.Is(err, unix.ENOENT) && !opaque {
			return -1, false, err
		}
		if err != nil {
			return -1, false, errHidden
		}
		fd = next
		var buf [8]byte
		if n, err := unix.Fgetxattr(fd, opaqueAttr, buf[:]); err == nil && string(buf[:n]) == "y" {
			opaque = true
		}
	}
	return fd, opaque, nil
}

// openEntry reads a link or opens a regular file; devices and the like are
// refused unopened.
func openEntry(fd int, name string, st *unix.Stat_t) (*os.File, string, error) {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(fd, name, buf)
		if err != nil {
			return nil, "", fmt.Errorf("reading link %s: %w", name, err)
		}
		if n == 0 || n == len(buf) {
			return nil, "", fmt.Errorf("reading link %s: its target has %d bytes", name, n)
		}
		return nil, string(buf[:n]), nil
	case unix.S_IFREG:
		ffd, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, "", fmt.Errorf("opening %s: %w", name, err)
		}
		return os.NewFile(uintptr(ffd), name), "", nil
	}
	return nil, "", fmt.Errorf("%s is not a regular file", name)
}
