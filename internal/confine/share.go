package confine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// share gives a folder of this machine to the steps: in this mount namespace the
// folder's owner is the steps' root, so that steps read and write it as its
// owner would, and what they make belongs to its owner. Files of others in it
// belong to nobody. It mounts the folder over itself with the ids mapped; on
// this machine nothing changes.
func share(path string, steps uint32) error {
	st, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("sharing a folder: %w", err)
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("sharing %s: no owner to be seen", path)
	}
	ns, err := mapping(int(owner.Uid), int(owner.Gid), int(steps))
	if err != nil {
		return fmt.Errorf("sharing %s: %w", path, err)
	}
	defer ns.Close()
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("sharing %s: %w", path, err)
	}
	defer unix.Close(fd)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:  unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV,
		Userns_fd: uint64(ns.Fd()),
	})
	if err != nil {
		return fmt.Errorf("sharing %s: mapping its owner to the steps': %w; its file system may not be able to: use a folder on another (ext4, xfs, btrfs, tmpfs)", path, err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("sharing %s: %w", path, err)
	}
	return nil
}

// mapping opens a user namespace that maps one user and one group of the file
// system to the steps' root. It lives as long as the file is open.
func mapping(uid, gid, steps int) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd := exec.Command("/proc/self/exe", "hold")
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: steps, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: steps, Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	err = cmd.Start()
	r.Close()
	if err != nil {
		return nil, fmt.Errorf("making a user namespace: %w", err)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	w.Close()
	if werr := cmd.Wait(); err == nil && werr != nil {
		err = errors.Join(werr, ns.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("opening a user namespace: %w", err)
	}
	return ns, nil
}

// Hold keeps a user namespace alive until its parent has opened it.
func Hold() {
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is all we want
}
