package oci

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountTmpfs mounts a memory file system of bounded size. The number of files is
// bounded too, since each takes kernel memory that its size does not count.
func mountTmpfs(dir string, size, files int64, mode uint32) error {
	data := fmt.Sprintf("size=%d,nr_inodes=%d,mode=%o", size, files, mode)
	if err := unix.Mount("assay", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return fmt.Errorf("mounting tmpfs: %w", err)
	}
	return nil
}

// mountOverlay mounts layers, lowest first, under upper. Names of layers reach
// the kernel as descriptors: neither their length nor a comma or colon in them
// matters, and the folders are those that were opened, whatever happens to their
// names.
//
// userxattr is used with and without a user namespace, so that unpacked layers
// have one form (white-outs as character devices 0:0, opaque folders by
// user.overlay.opaque), and so that no layer can say trusted.overlay.redirect.
func mountOverlay(layers []string, upper, work, target string) error {
	if len(layers) == 0 {
		return errors.New("mounting root: the image has no layers")
	}
	if len(layers) > 500 {
		return fmt.Errorf("mounting root: the image has %d layers; the kernel takes 500", len(layers))
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("mounting root: opening overlayfs: %w", err)
	}
	fds = append(fds, fs)
	set := func(key, path string) error {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("mounting root: opening %s: %w", path, err)
		}
		fds = append(fds, fd)
		if err := unix.FsconfigSetString(fs, key, fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
			return fmt.Errorf("mounting root: setting %s to %s: %w%s", key, path, err, kernelSays(fs))
		}
		return nil
	}
	for _, layer := range slices.Backward(layers) { // the kernel wants the topmost first
		if err := set("lowerdir+", layer); err != nil {
			if errors.Is(err, unix.EINVAL) {
				return fmt.Errorf("%w (lowerdir+ needs Linux 6.8 or later)", err)
			}
			return err
		}
	}
	if err := errors.Join(set("upperdir", upper), set("workdir", work)); err != nil {
		return err
	}
	if err := unix.FsconfigSetFlag(fs, "userxattr"); err != nil {
		return fmt.Errorf("mounting root: setting userxattr: %w%s", err, kernelSays(fs))
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("mounting root: %w%s", err, kernelSays(fs))
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return fmt.Errorf("mounting root: %w%s", err, kernelSays(fs))
	}
	fds = append(fds, m)
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mounting root: attaching: %w", err)
	}
	return nil
}

// kernelSays returns what the kernel wrote about a failed mount.
func kernelSays(fs int) string {
	var out []string
	buf := make([]byte, 1024)
	for len(out) < 8 {
		n, err := unix.Read(fs, buf)
		if n <= 0 || err != nil {
			break
		}
		out = append(out, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
	}
	if len(out) == 0 {
		return ""
	}
	return " (" + strings.Join(out, "; ") + ")"
}

// bind attaches what fd stands for at target, which must exist and be a folder
// or not as fd is. What is mounted below fd's folder does not come along.
func bind(fd int, target string, readOnly bool) error {
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("binding: %w", err)
	}
	defer unix.Close(tree)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("binding: %w", err)
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("binding: %w", err)
	}
	return nil
}

// unmountBelow detaches everything mounted at or below dir.
func unmountBelow(dir string) error {
	points, err := mountPoints(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range slices.Backward(points) { // the last mounted is the topmost
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", p, err))
		}
	}
	return errors.Join(errs...)
}

func mountPoints(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	defer f.Close()
	var out []string
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 5 {
			continue
		}
		p := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
		if p == dir || strings.HasPrefix(p, dir+string(filepath.Separator)) {
			out = append(out, p)
		}
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	return out, nil
}
