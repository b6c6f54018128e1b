package tree

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenDir opens the folder to measure. The last element of dir may not be a
// symbolic link; the ones before it are the caller's own and are followed.
func OpenDir(dir string) (*os.File, error) {
	fd, err := openat(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return nil, fmt.Errorf("opening folder %q: %w", dir, explain(err))
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// OpenBeneath opens a folder (O_DIRECTORY in flags) or file at the relative
// path rel below root. No element of rel may be a symbolic link or lead out of
// root, so rel may come from a stranger. rel may be "." for root itself.
func OpenBeneath(root *os.File, rel string, flags int) (*os.File, error) {
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW
	if flags&unix.O_PATH == 0 { // openat2 refuses what would have no effect
		flags |= unix.O_NOCTTY | unix.O_NONBLOCK
	}
	how := &unix.OpenHow{
		Flags:   uint64(flags),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if strings.HasPrefix(rel, "/") {
		return nil, fmt.Errorf("opening %q below %q: the path is not relative", rel, root.Name())
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), rel, how)
		switch {
		// EAGAIN: a rename raced with the resolution of "..".
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			return nil, fmt.Errorf("opening %q below %q: %w", rel, root.Name(), explain(err))
		}
		return os.NewFile(uintptr(fd), root.Name()+"/"+rel), nil
	}
}

func openat(dirfd int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// explain puts into words what the kernel says about links.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("it is or leads through a symbolic link, which is never followed: %w", err)
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("it leads out of its folder: %w", err)
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return fmt.Errorf("too many open files, raise the limit (ulimit -n): %w", err)
	}
	return err
}
