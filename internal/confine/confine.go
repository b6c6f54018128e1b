// Package confine starts a process as root of a user namespace of its own: all
// capabilities inside, none outside, so that it can mount, make namespaces and
// give files to the steps' users, and yet can open nothing on this machine that
// belongs to somebody else.
//
// It is done by a small parent that stays: it is created in a mount namespace,
// binds what must stay read-only (mounts inherited from a more privileged
// namespace are locked: the child cannot make them writable again), delegates a
// cgroup, starts the child, and removes cgroup and scratch when the child and
// with it everything in its pid namespace is gone.
//
//	launcher (root) ─▶ assay-executor confine ─▶ assay-executor run | images
//	                   new mount ns               + user, pid, ipc ns
package confine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"assay.dev/assay/sandbox/cgroup"
)

// Spec says how to confine; it travels as JSON on file descriptor 3.
type Spec struct {
	// Args are the child's: subcommand and flags of the same binary.
	Args []string `json:"args"`
	// UID is the host user (and group) that the child's root is.
	UID uint32 `json:"uid"`
	// Steps is the first host user of the 65536 that the child sees from 65536
	// on; 0: none, the child has one user only, as without root.
	Steps uint32 `json:"steps"`
	// ReadOnly folders cannot be written by the child or anything below it.
	ReadOnly []string `json:"readOnly,omitempty"`
	// Shared folders belong, for the child, to the steps' root instead of their
	// owner; see share.
	Shared []string `json:"shared,omitempty"`
	// Scratch is made for the child, and removed with all its content after it.
	Scratch string `json:"scratch,omitempty"`
	// Cgroup is the name of a cgroup to delegate; empty: none.
	Cgroup string `json:"cgroup,omitempty"`
	// Open is a file that the child may read wherever it lies: see Opened.
	Open string `json:"open,omitempty"`
	// Input is handed to the child on its file descriptor 3.
	Input json.RawMessage `json:"input"`
}

// cgroupEnv tells the child its delegated cgroups.
const cgroupEnv = "ASSAY_CGROUP"

// Cgroup is what the confined child was delegated; the zero Root says none.
func Cgroup() (cgroup.Root, error) {
	var r cgroup.Root
	v := os.Getenv(cgroupEnv)
	if v == "" {
		return cgroup.Root{Mode: cgroup.ModeNone, Reason: "none was delegated"}, nil
	}
	if err := json.Unmarshal([]byte(v), &r); err != nil {
		return r, fmt.Errorf("reading %s: %w", cgroupEnv, err)
	}
	return r, nil
}

// Command prepares the launcher's side: the confining parent as a command whose
// standard input and output become the child's. Call it with root.
func Command(ctx context.Context, binary string, s Spec) (*exec.Cmd, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding a confinement: %w", err)
	}
	f, err := File(b)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, binary, "confine")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.Steps != 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS
	}
	return cmd, nil
}

// File returns an unlinked file to read b from: unlike a pipe it never blocks
// the writer.
func File(b []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("assay-spec", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making a file in memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), "spec")
	if _, err := f.Write(b); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Through makes cmd execute the file at path through a descriptor that is opened
// here and now. The command's user need not be able to reach the path: a
// checkout below /root can start processes of other users. Call it when
// cmd.ExtraFiles is complete; the caller closes the file after Start.
func Through(cmd *exec.Cmd, path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, err)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	cmd.Path = inherited(len(cmd.ExtraFiles) - 1)
	cmd.Args[0] = path
	cmd.Err = nil
	return f, nil
}

// inherited is the path of the i-th of a command's extra files, for itself.
func inherited(i int) string { return fmt.Sprintf("/proc/self/fd/%d", 3+i) }

// Opened is the path at which a confined child finds Spec.Open.
func Opened() string { return inherited(1) }

// Input reads what the child was handed.
func Input(v any) error {
	f := os.NewFile(3, "input")
	defer f.Close()
	dec := json.NewDecoder(io.LimitReader(f, 16<<20))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("reading the configuration on file descriptor 3: %w", err)
	}
	return nil
}

// Main is the confining parent. It returns the child's exit code.
func Main() (int, error) {
	// The child dies when the thread that started it does; keep it.
	runtime.LockOSThread()
	var s Spec
	if err := Input(&s); err != nil {
		return 1, err
	}
	root := s.Steps != 0
	if root {
		if err := lockReadOnly(s.ReadOnly); err != nil {
			return 1, err
		}
		for _, dir := range s.Shared {
			if err := share(dir, s.Steps); err != nil {
				return 1, err
			}
		}
	}
	if s.Scratch != "" {
		if err := os.MkdirAll(s.Scratch, 0o711); err != nil {
			return 1, fmt.Errorf("making scratch: %w", err)
		}
		defer os.RemoveAll(s.Scratch)
		if root {
			if err := os.Chown(s.Scratch, int(s.UID), int(s.UID)); err != nil {
				return 1, fmt.Errorf("making scratch: %w", err)
			}
		}
	}
	env := os.Environ()
	if s.Cgroup != "" && root {
		cg := cgroup.Delegate(s.Cgroup, int(s.UID), int(s.UID))
		defer cg.Remove() //nolint:errcheck // the groups are empty: their pid namespace is gone
		b, err := json.Marshal(cg)
		if err != nil {
			return 1, err
		}
		env = append(env, cgroupEnv+"="+string(b))
	}
	in, err := File(s.Input)
	if err != nil {
		return 1, err
	}
	cmd := exec.Command("/proc/self/exe", s.Args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = env
	cmd.ExtraFiles = []*os.File{in}
	if s.Open != "" {
		f, err := os.Open(s.Open)
		if err != nil {
			return 1, fmt.Errorf("opening %s: %w", s.Open, err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	self, err := Through(cmd, "/proc/self/exe")
	if err != nil {
		return 1, err
	}
	defer self.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(s.UID), Size: 1}}
	if s.Steps != 0 && root {
		ids = append(ids, syscall.SysProcIDMap{ContainerID: 65536, HostID: int(s.Steps), Size: 65536})
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: root,
		Pdeathsig: syscall.SIGKILL,
	}
	if root {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 0, Gid: 0}
	}
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("starting %s in a user namespace: %w; does this kernel allow them (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone)?", s.Args[0], err)
	}
	in.Close()
	sig := make(chan os.Signal, 4)
	signal.Notify(sig, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		for range sig {
			cmd.Process.Signal(syscall.SIGTERM) //nolint:errcheck // it may be gone
		}
	}()
	// Only the child may hold the standard streams, or their ends are not seen.
	os.Stdin.Close()
	os.Stdout.Close()
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	}
	return 1, fmt.Errorf("%s: %w", s.Args[0], err)
}

// lockReadOnly binds folders read-only over themselves in this mount namespace.
func lockReadOnly(dirs []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	for _, d := range dirs {
		if err := unix.Mount(d, d, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("binding %s: %w", d, err)
		}
		if err := unix.Mount("", d, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
			return fmt.Errorf("making %s read-only: %w", d, err)
		}
	}
	return nil
}

// Inside prepares a confined child: a /proc of its own pid namespace, and no
// way for another process of its user to trace it.
func Inside() error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc in the pid namespace: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding traces: %w", err)
	}
	return nil
}
