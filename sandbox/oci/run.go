package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"assay.dev/assay/sandbox"
	"assay.dev/assay/sandbox/cgroup"
	"assay.dev/assay/sandbox/internal/osthread"
)

// Run runs one step.
func (s *space) Run(ctx context.Context, step sandbox.StepSpec, stdout, stderr io.Writer) (_ *sandbox.Result, err error) {
	s.run.Lock()
	defer s.run.Unlock()
	defer func() {
		var start *sandbox.StartError
		if err != nil && !errors.As(err, &start) {
			err = fmt.Errorf("running step %s: %w", step.Name, err)
		}
	}()
	switch {
	case s.sealed.Load() != nil || s.closed:
		return nil, errors.New("the space is sealed")
	case len(step.Argv) == 0:
		return nil, errors.New("it has no command")
	case step.UID >= s.d.opts.IDSize || step.GID >= s.d.opts.IDSize:
		return nil, fmt.Errorf("user %d:%d does not exist: steps have %d ids here; run as root of a machine with a range of ids, or give the step one it has",
			step.UID, step.GID, s.d.opts.IDSize)
	case step.WorkingDir != "" && !path.IsAbs(step.WorkingDir):
		return nil, fmt.Errorf("working folder %q is not absolute", step.WorkingDir)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.steps++
	b := &bundle{s: s, step: step, id: fmt.Sprintf("step-%d", s.steps)}
	defer func() { err = errors.Join(err, b.remove()) }()
	if err := b.prepare(); err != nil {
		return nil, err
	}
	return b.run(ctx, stdout, stderr)
}

// bundle is one step on disk.
type bundle struct {
	s        *space
	step     sandbox.StepSpec
	id       string
	attached []string // mount points to detach, in order
	group    *cgroup.Group
	env      []string
	mounts   []string // as Result has them
}

func (b *bundle) dir(elem ...string) string {
	return b.s.path(append([]string{b.id}, elem...)...)
}

// prepare makes root, mounts, group and configuration.
func (b *bundle) prepare() error {
	s := b.s
	plan, err := s.planMounts(b.step)
	if err != nil {
		return err
	}
	for _, d := range []string{b.dir(), b.dir("root")} {
		if err := os.Mkdir(d, 0o711); err != nil {
			return err
		}
	}
	upper, work, root := s.path("fs", "upper-"+b.id), s.path("fs", "work-"+b.id), b.dir("root")
	if err := errors.Join(s.folder(upper, 0o755), s.folder(work, 0o700)); err != nil {
		return err
	}
	if err := mountOverlay(b.step.Layers, upper, work, root); err != nil {
		return err
	}
	b.attached = append(b.attached, root)
	var binds []specs.Mount
	for i, m := range plan {
		at := b.dir(fmt.Sprintf("m-%d", i))
		ro, err := b.attach(m, at)
		if err != nil {
			return err
		}
		mode := "rw"
		if ro {
			mode = "ro"
		}
		binds = append(binds, specs.Mount{Destination: m.Path, Type: "bind", Source: at, Options: []string{"bind", mode, "nosuid", "nodev", "private"}})
		b.mounts = append(b.mounts, m.Path+" ("+mode+")")
	}
	if s.d.name == "runsc" {
		tmp, err := b.boundTmp(root, plan)
		if err != nil {
			return err
		}
		binds = append(tmp, binds...)
	}
	caAt := b.certificates(root)
	b.env = s.environment(b.step, len(caAt) > 0)
	cfg, err := json.Marshal(s.config(b.step, root, binds, b.env, caAt))
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.dir("config.json"), cfg, 0o600); err != nil {
		return err
	}
	b.group, err = s.group.Group(b.id, cgroup.Limits{Memory: b.step.MemoryBytes})
	return err
}

// attach binds a mount's source, resolved now, where the runtime will find it.
func (b *bundle) attach(m sandbox.Mount, at string) (readOnly bool, err error) {
	fd, ro, err := b.s.source(m)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = os.Mkdir(at, 0o711)
	case unix.S_IFREG:
		err = os.WriteFile(at, nil, 0o600)
	default:
		err = fmt.Errorf("mounting %s: neither a folder nor a file", m.Path)
	}
	if err != nil {
		return false, err
	}
	if err := bind(fd, at, ro); err != nil {
		return false, fmt.Errorf("mounting %s: %w", m.Path, err)
	}
	b.attached = append(b.attached, at)
	return ro, nil
}

// boundTmp keeps gVisor from giving a step an empty /tmp of its own memory, which
// nothing bounds: one in the space is there already.
func (b *bundle) boundTmp(root string, plan []sandbox.Mount) ([]specs.Mount, error) {
	for _, m := range plan {
		if m.Path == "/tmp" || strings.HasPrefix(m.Path, "/tmp/") {
			return nil, nil
		}
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if d, err := r.Open("tmp"); err == nil {
		defer d.Close()
		if names, err := d.Readdirnames(1); err == nil && len(names) > 0 {
			return nil, nil // an image's own files stay visible, and gVisor adds nothing
		}
	}
	tmp := b.s.path("fs", "tmp-"+b.id)
	if err := b.s.folder(tmp, 0o1777); err != nil {
		return nil, err
	}
	return []specs.Mount{{Destination: "/tmp", Type: "bind", Source: tmp, Options: []string{"bind", "rw", "nosuid", "nodev", "private"}}}, nil
}

// certificates decides where the host's certificates go in a step of an open
// network: always to a place of ours, to which SSL_CERT_FILE points unless the
// step sets it, and to the places where distributions look if the image has
// nothing there. So an intercepting proxy that the host trusts works for most
// programs, and nothing that the image's author put in place is covered.
func (b *bundle) certificates(root string) []string {
	if b.s.spec.Network != "open" || b.s.d.ca == "" {
		return nil
	}
	out := []string{caOurs}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return out
	}
	defer unix.Close(dir)
	for _, p := range []string{caDebian, caFedora} {
		// A dangling link counts as there: what it means is the image's business.
		fd, err := unix.Openat2(dir, strings.TrimPrefix(p, "/"), &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err == nil {
			_ = unix.Close(fd)
		} else if errors.Is(err, unix.ENOENT) {
			out = append(out, p)
		}
	}
	return out
}

// run starts the runtime and waits for the step's end.
func (b *bundle) run(ctx context.Context, stdout, stderr io.Writer) (*sandbox.Result, error) {
	s := b.s
	args := []string{"--log", b.dir("log"), "--log-format", "json", "run", "--bundle", b.dir(), "--pid-file", b.dir("pid"), b.id}
	cmd := s.d.command(context.Background(), s.path("state"), args...)
	// Never files, whatever the caller gives: a step must not get a descriptor
	// of ours that it could do more with than write.
	cmd.Stdout, cmd.Stderr = pipeOnly{stdout}, pipeOnly{stderr}
	stdin, err := emptyPipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close()
	cmd.Stdin = stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	into, err := b.group.CloneFD()
	if err != nil {
		return nil, err
	}
	if into != nil {
		defer into.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(into.Fd())
	}
	_, filter := s.seccomp()
	result := &sandbox.Result{Argv: b.step.Argv, Env: b.env, Seccomp: filter, Mounts: b.mounts}
	if b.step.UID == 0 {
		result.Capabilities = capabilities
	}
	var watch *watcher
	// One thread for the runtime's whole life: its end is what Pdeathsig reports.
	err = osthread.Run(func() error {
		if err := b.group.JoinThread(); err != nil {
			return err
		}
		if err := hideCgroups(); err != nil {
			return err
		}
		result.Started = time.Now()
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("starting runtime: %w", err)
		}
		watch = b.watch(ctx, cmd)
		err := cmd.Wait()
		result.Finished = time.Now()
		watch.end()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			return fmt.Errorf("waiting for runtime: %w", err)
		}
		return nil
	})
	if kerr := s.killAll(); err == nil {
		err = kerr
	}
	if err != nil {
		return nil, err
	}
	result.Killed = watch.killed
	result.OOMKilled = b.group.OOMKills() > 0
	result.ExitCode = exitCode(cmd.ProcessState)
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		result.CPU = time.Duration(u.Utime.Nano() + u.Stime.Nano())
		result.MaxRSS = u.Maxrss * 1024
	}
	if err := b.notStarted(result); err != nil {
		return nil, err
	}
	return result, nil
}

// exitCode is the shell's: 128 and the signal for a runtime that was killed.
func exitCode(p *os.ProcessState) int {
	if w, ok := p.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return p.ExitCode()
}

// ownFault are the words, for which runtimes have no codes, that only a step's
// own command or folder can cause.
var ownFault = []string{
	"exec: ", "executable file not found", "chdir to cwd", "container init: mkdir", // runc
	"failed to load ", "error finding executable", "process working directory", // runsc
}

// notStarted returns an error if the step's process never ran. runc writes its
// pid file when it does; gVisor's names the sandbox, and it tells of a command
// that cannot be started only in its log.
func (b *bundle) notStarted(r *sandbox.Result) error {
	if r.Killed || r.ExitCode == 0 {
		return nil
	}
	reason := b.logged()
	own := slices.ContainsFunc(ownFault, func(s string) bool { return strings.Contains(reason, s) })
	if b.hasPID() && (b.s.d.name != "runsc" || !own) {
		return nil
	}
	if own {
		return &sandbox.StartError{Step: b.step.Name, Reason: reason}
	}
	if reason == "" {
		reason = "the runtime ended without a word"
	}
	if r.OOMKilled {
		reason += " (out of memory: the limit leaves no room to start)"
	}
	return fmt.Errorf("starting: %s", reason)
}

// logged is the last error in the runtime's log.
func (b *bundle) logged() (msg string) {
	f, err := os.Open(b.dir("log"))
	if err != nil {
		return ""
	}
	defer f.Close()
	for dec := json.NewDecoder(io.LimitReader(f, 1<<20)); ; {
		var line struct{ Level, Msg string }
		if dec.Decode(&line) != nil {
			return msg
		}
		if line.Level == "error" || line.Level == "fatal" || line.Level == "warning" && strings.HasPrefix(line.Msg, "FATAL ERROR") {
			msg = line.Msg
		}
	}
}

// remove undoes prepare. The upper layer goes at once, so that a task's bound is
// on what it keeps, not on all that its steps ever wrote.
func (b *bundle) remove() error {
	var errs []error
	for i := len(b.attached) - 1; i >= 0; i-- {
		if err := unix.Unmount(b.attached[i], unix.MNT_DETACH); err != nil {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", b.attached[i], err))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...) // and never delete through a mount that is left
	}
	if b.group != nil {
		errs = append(errs, b.group.Remove())
	}
	for _, d := range []string{b.dir(), b.s.path("state", b.id)} {
		errs = append(errs, os.RemoveAll(d))
	}
	for _, d := range []string{"upper-", "work-", "tmp-"} {
		// A tree too deep to delete stays in the space's tmpfs, counted, until
		// the whole of it is unmounted.
		_ = os.RemoveAll(filepath.Join(b.s.path("fs"), d+b.id))
	}
	return errors.Join(errs...)
}

// hideCgroups gives this thread, and so the runtime, a view of the mounts in
// which control groups cannot be changed: they are this package's business, and
// a runtime that finds them writable makes groups of its own and moves the step
// there, out of ours.
func hideCgroups() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("making mount namespace: %w", err)
	}
	// Slave, not private: when a mount is removed outside it goes here too.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("making mount namespace: %w", err)
	}
	err := unix.MountSetattr(unix.AT_FDCWD, "/sys/fs/cgroup", unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) { // nothing mounted there
		return fmt.Errorf("making control groups read-only: %w", err)
	}
	return nil
}

// pipeOnly hides the writer's type, so that exec makes a pipe.
type pipeOnly struct{ w io.Writer }

func (p pipeOnly) Write(b []byte) (int, error) {
	if p.w == nil {
		return len(b), nil
	}
	return p.w.Write(b)
}

// emptyPipe is a standard input at its end.
func emptyPipe() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	return r, w.Close()
}
