package image

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Everything here works on a name in the folder that u.current is open on, so
// no path is ever resolved by the kernel beyond one name.

// enter opens a folder below the root, and makes what is missing of it. It
// refuses one that leads through a link or a file.
func (u *unpacker) enter(dir string) error {
	if dir == u.parent && u.current >= 0 {
		return nil
	}
	u.leave()
	fd, err := unix.FcntlInt(uintptr(u.root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return asLocal(err)
	}
	if dir != "." {
		at := ""
		for name := range strings.SplitSeq(dir, "/") {
			at = path.Join(at, name)
			next, err := u.openDir(fd, name)
			if errors.Is(err, unix.ENOENT) {
				if err = mkdirat(fd, name); err == nil {
					err = u.addDir(at, u.impliedDir())
				}
				if err == nil {
					next, err = u.openDir(fd, name)
				}
			}
			if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				if isWhiteout(fd, name) {
					// Deleted below, and made anew here with a content of its own.
					next, err = u.replaceWhiteout(fd, name, at)
				} else {
					err = bad("it leads through %q, which is a link or a file", at)
				}
			}
			unix.Close(fd)
			if err != nil {
				return asUnpack(err)
			}
			fd = next
		}
	}
	u.parent, u.current = dir, fd
	return nil
}

// leave forgets the open folder.
func (u *unpacker) leave() {
	if u.current >= 0 {
		unix.Close(u.current)
	}
	u.parent, u.current = "", -1
}

func (u *unpacker) openDir(fd int, name string) (int, error) {
	return unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// mkdirat makes a folder that only we can enter until it gets its mode.
func mkdirat(fd int, name string) error { return unix.Mkdirat(fd, name, 0o700) }

func (u *unpacker) replaceWhiteout(fd int, name, at string) (int, error) {
	if err := unix.Unlinkat(fd, name, 0); err != nil {
		return -1, err
	}
	if err := mkdirat(fd, name); err != nil {
		return -1, err
	}
	if err := u.addDir(at, u.impliedDir()); err != nil {
		return -1, err
	}
	next, err := u.openDir(fd, name)
	if err != nil {
		return -1, err
	}
	return next, u.markOpaque(next, at)
}

// makeRoom removes what an earlier entry of the same name left, since the
// later one counts. A folder stays for a folder and is removed for anything
// else only if empty. It says whether what was there was a whiteout.
func (u *unpacker) makeRoom(base string, dir bool) (wasWhiteout bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(u.current, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, asUnpack(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return isWhiteoutStat(&st), asUnpack(unix.Unlinkat(u.current, base, 0))
	}
	if dir {
		return false, nil
	}
	err = unix.Unlinkat(u.current, base, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return false, bad("it would replace a folder that the same layer fills")
	}
	delete(u.dirs, path.Join(u.parent, base))
	return false, asUnpack(err)
}

func (u *unpacker) folder(name, base string, meta dirMeta, wasWhiteout bool) error {
	err := mkdirat(u.current, base)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return asUnpack(err)
	}
	if err := u.addDir(name, meta); err != nil || !wasWhiteout {
		return err
	}
	fd, err := u.openDir(u.current, base)
	if err != nil {
		return asUnpack(err)
	}
	defer unix.Close(fd)
	return u.markOpaque(fd, name)
}

func (u *unpacker) file(base string, size int64, content io.Reader, meta dirMeta) error {
	// A sparse file announces more than its archive holds, hence a bound of its own.
	if size < 0 || size > u.bounds.LayerBytes-u.bytes {
		return bad("the layer's files have more than %d bytes", u.bounds.LayerBytes)
	}
	u.bytes += size
	fd, err := unix.Openat(u.current, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return asUnpack(err)
	}
	defer unix.Close(fd)
	for {
		n, err := content.Read(u.buf)
		for b := u.buf[:n]; len(b) > 0; {
			w, err := unix.Write(fd, b)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return asLocal(fmt.Errorf("writing: %w", err))
			}
			b = b[max(w, 0):]
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return badUnlessKinded(fmt.Errorf("reading archive: %w", err))
		}
	}
	// In this order: a change of owner clears the special bits.
	if err := unix.Fchown(fd, meta.uid, meta.gid); err != nil {
		return asUnpack(err)
	}
	if err := unix.Fchmod(fd, meta.mode); err != nil {
		return asUnpack(err)
	}
	return u.times(base, meta.mtime)
}

func (u *unpacker) symlink(base, target string, meta dirMeta) error {
	if target == "" || len(target) > 4095 {
		return bad("a symbolic link to nothing, or too long")
	}
	if err := unix.Symlinkat(target, u.current, base); err != nil {
		return asUnpack(err)
	}
	if err := unix.Fchownat(u.current, base, meta.uid, meta.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return asUnpack(err)
	}
	return u.times(base, meta.mtime)
}

// hardlink links to what an earlier entry of this layer made, never through a
// link. The target's name is below the root like any other.
func (u *unpacker) hardlink(base, target string) error {
	name, err := cleanName(target)
	if err != nil {
		return fmt.Errorf("a hard link to %q: %w", target, err)
	}
	from, err := unix.FcntlInt(uintptr(u.root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return asLocal(err)
	}
	defer func() { unix.Close(from) }()
	parent, last := path.Split(name)
	for p := range strings.SplitSeq(strings.TrimSuffix(parent, "/"), "/") {
		if p == "" {
			continue
		}
		next, err := u.openDir(from, p)
		if err != nil {
			return bad("a hard link to %q, which this layer does not have", target)
		}
		unix.Close(from)
		from = next
	}
	var st unix.Stat_t
	if err := unix.Fstatat(from, last, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return bad("a hard link to %q, which this layer does not have", target)
	}
	if t := st.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFLNK {
		return bad("a hard link to %q, which is not a file", target)
	}
	return asUnpack(unix.Linkat(from, last, u.current, base, 0))
}

// whiteout hides a name of the layers below, or all names in a folder.
func (u *unpacker) whiteout(dir, hidden string) error {
	if hidden == ".wh..opq" {
		if dir == "." {
			return bad("it hides everything below the root, which overlayfs cannot")
		}
		return u.markOpaque(u.current, dir)
	}
	if strings.HasPrefix(hidden, ".wh.") {
		u.dropped["aufs file left out"]++
		return nil
	}
	if hidden == "" || hidden == "." || hidden == ".." {
		return bad("it hides no name")
	}
	var st unix.Stat_t
	err := unix.Fstatat(u.current, hidden, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil {
		// The layer has an entry of that name: it replaces what is below. Of a
		// folder that means nothing below shows through.
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil
		}
		fd, err := u.openDir(u.current, hidden)
		if err != nil {
			return asUnpack(err)
		}
		defer unix.Close(fd)
		return u.markOpaque(fd, path.Join(dir, hidden))
	}
	if !errors.Is(err, unix.ENOENT) {
		return asUnpack(err)
	}
	if err := unix.Mknodat(u.current, hidden, unix.S_IFCHR, 0); err != nil {
		return asLocal(fmt.Errorf("making a whiteout: %w", err))
	}
	uid, gid, _, err := u.owners.host(0, 0)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(u.current, hidden, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return asUnpack(err)
	}
	return u.times(hidden, time.Unix(0, 0))
}

func (u *unpacker) markOpaque(fd int, dir string) error {
	if err := unix.Fsetxattr(fd, opaqueAttr, []byte("y"), 0); err != nil {
		return asLocal(fmt.Errorf("marking %q opaque, for which the file system must have user attributes: %w", dir, err))
	}
	u.opaque = append(u.opaque, dir)
	return nil
}

func isWhiteout(fd int, name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && isWhiteoutStat(&st)
}

func isWhiteoutStat(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func (u *unpacker) times(base string, t time.Time) error {
	return asUnpack(setTime(u.current, base, t))
}

func setTime(fd int, base string, t time.Time) error {
	if t.IsZero() {
		t = time.Unix(0, 0)
	}
	ts := unix.NsecToTimespec(t.UnixNano())
	if t.Year() < 1902 || t.Year() > 2242 { // UnixNano is defined only near here
		ts = unix.Timespec{}
	}
	return unix.UtimesNanoAt(fd, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// addDir remembers what a folder is to get. One long name can imply thousands
// of folders, so they count as entries, and their names take bounded memory.
func (u *unpacker) addDir(name string, meta dirMeta) error {
	if _, ok := u.dirs[name]; !ok {
		u.entries++
		u.nameBytes += int64(len(name))
		if u.entries > u.bounds.Entries || u.nameBytes > 256<<20 {
			return bad("more than %d entries, or too long names", u.bounds.Entries)
		}
	}
	u.dirs[name] = meta
	return nil
}

// finishDirs gives folders their owners, modes and times. Deeper ones come
// first, since a mode can keep us from entering what is below.
func (u *unpacker) finishDirs() error {
	for _, dir := range byDepth(u.dirs) {
		meta := u.dirs[dir]
		fd := u.root
		if dir != "." {
			parent, base := path.Split(dir)
			if err := u.enter(path.Clean(parent)); err != nil {
				return err
			}
			var err error
			if fd, err = u.openDir(u.current, base); err != nil {
				return asUnpack(err)
			}
		}
		err := finishDir(fd, meta)
		if dir != "." {
			unix.Close(fd)
		}
		if err != nil {
			return asUnpack(fmt.Errorf("finishing folder %q: %w", dir, err))
		}
	}
	return nil
}

func finishDir(fd int, meta dirMeta) error {
	if err := unix.Fchown(fd, meta.uid, meta.gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, meta.mode); err != nil {
		return err
	}
	return setTime(fd, ".", meta.mtime)
}

// asUnpack sorts the kernel's refusals: a name that is too long is the image's
// fault, a full disk is not.
func asUnpack(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.ENAMETOOLONG) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EILSEQ) {
		return badUnlessKinded(err)
	}
	return asLocal(err)
}

// byDepth lists folders deepest first.
func byDepth(dirs map[string]dirMeta) []string {
	depth := func(d string) int {
		if d == "." {
			return -1
		}
		return strings.Count(d, "/")
	}
	return slices.SortedFunc(maps.Keys(dirs), func(a, b string) int {
		return cmp.Or(depth(b)-depth(a), strings.Compare(a, b))
	})
}
