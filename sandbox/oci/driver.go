// Package oci is the sandbox driver for OCI runtimes. It prepares everything a
// step may touch – root, volumes, network, control groups – and has an ordinary
// runtime, by default runc built beside our binaries, do the last part: enter the
// namespaces, drop the privileges, load the filter, execute.
//
// Why a whole runtime, when bare namespaces start in 3 ms and runc takes 20: the
// order in which privileges are given up, and the many small races in it, are
// what runc has been attacked on and mended in for ten years.
//
// # What a step gets
//
// A root made of its image's layers and a private upper layer; its own user,
// mount, process, ipc, uts and cgroup namespaces; the space's network. Root in
// the step is an ordinary user outside (Options.IDBase). No new privileges, the
// seccomp profile of seccomp.json, and seven capabilities (see capabilities).
// /proc without what tells about or steers the machine, an empty /sys, a minimal
// /dev. Standard input is empty, output goes through pipes, no other descriptor
// is inherited.
//
// # What bounds it
//
// Everything a task writes – upper layers, volumes of the space, /dev/shm – is in
// one tmpfs of SpaceSpec.WriteBytes, so that a full disk is that task's and no
// one else's. Processes and memory are bounded by control groups where there are
// any (package cgroup); pages of that tmpfs count as memory of the step that
// wrote them. Without groups RLIMIT_NPROC bounds processes per user id, and
// memory is not bounded; Host says so.
//
// # What stays behind
//
// Nothing. A step's processes die with its process namespace, whatever ends it,
// and Run returns only when no process is left in the space's network namespace.
// If this process dies, its mount and process namespaces take everything along;
// where it has none of its own, the next New on the same StateDir cleans up.
package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"assay.dev/assay/observe"
	"assay.dev/assay/sandbox"
	"assay.dev/assay/sandbox/cgroup"
	"assay.dev/assay/sandbox/netns"
)

// Options configure a driver. Runtime, StateDir and IDSize must be set.
type Options struct {
	// Runtime is the path of the runtime's binary. It is read once: what runs is
	// what Host().RuntimeDigest says, even if the file is replaced.
	Runtime string
	// Name is what the runtime is called (runc, crun, runsc), where the file's
	// name up to its first '-' does not say.
	Name string
	// Flags are passed to the runtime before the command, such as --debug,
	// after those that this package needs.
	Flags []string
	// StateDir is a folder for this driver alone, on any file system. Steps' ids
	// must be able to pass through it and its parents (mode 0711).
	StateDir string
	// IDBase is the id, as this process sees ids, of root in a step, and IDSize
	// the number of ids that a step has. Layers must be owned accordingly. With
	// size 1 only root runs: the rootless form.
	IDBase, IDSize uint32
	// Cgroup is where this driver, and no other, makes its groups; zero: none.
	Cgroup cgroup.Root
	// Limits are for spaces that set none. WriteBytes 0 means 4 GiB.
	Limits observe.Limits
	// Policy says what an open network may reach.
	Policy netns.Policy
	// Nameservers answer an open network's questions; empty: this machine's.
	Nameservers []netip.AddrPort
	// OpenEnv is added to the environment of steps in an open network, and
	// OpenForward to what is forwarded there: see netns.ProxyEnv.
	OpenEnv     []string
	OpenForward []sandbox.Forward
	// CABundle is the file of certificates given to steps in an open network;
	// empty: the host's, at the usual places; "none": none.
	CABundle string
	// Hostname of every step; empty: assay. It is fixed so that builds that
	// record it stay reproducible.
	Hostname string
}

const (
	defaultWriteBytes = 4 << 30
	defaultHostname   = "assay"
)

// Driver runs steps with one runtime. It implements sandbox.Driver.
type Driver struct {
	opts         Options
	host         observe.Host
	name         string
	exe          *os.File // the runtime's sealed copy, nil if it is a file
	exePath      string
	lock         *os.File
	seccomp      *specs.LinuxSeccomp
	digest       string // of seccomp
	strict       *specs.LinuxSeccomp
	strictDigest string // of strict
	runtime      *cgroup.Group
	ca           string // path on this machine or ""
	rlimits      []specs.POSIXRlimit

	mu   sync.Mutex      // guards open
	open map[string]bool // ids of spaces
}

var _ sandbox.Driver = (*Driver)(nil)

// New prepares a driver and removes what an earlier one left in StateDir. It
// fails if another process uses StateDir, and where this machine cannot isolate
// steps, saying what is missing. Close it when its spaces are closed.
func New(opts Options) (_ *Driver, err error) {
	d := &Driver{opts: opts, open: map[string]bool{}}
	defer func() {
		if err != nil {
			_ = d.Close()
			err = fmt.Errorf("preparing sandbox: %w", err)
		}
	}()
	if err := check(opts); err != nil {
		return nil, err
	}
	if d.opts.Hostname == "" {
		d.opts.Hostname = defaultHostname
	}
	if d.opts.Limits.WriteBytes == 0 {
		d.opts.Limits.WriteBytes = defaultWriteBytes
	}
	if d.opts.StateDir, err = filepath.Abs(opts.StateDir); err != nil {
		return nil, err
	}
	if d.opts.StateDir, err = filepath.EvalSymlinks(d.opts.StateDir); err != nil {
		return nil, err
	}
	if err := passable(d.opts.StateDir, opts.IDBase); err != nil {
		return nil, err
	}
	if d.seccomp, d.digest, err = profile(); err != nil {
		return nil, err
	}
	if d.strict, d.strictDigest, err = withoutSetID(d.seccomp); err != nil {
		return nil, err
	}
	if d.ca, err = caBundle(opts.CABundle); err != nil {
		return nil, err
	}
	for _, f := range []func() error{d.take, d.seal, d.sweep} {
		if err := f(); err != nil {
			return nil, err
		}
	}
	if len(opts.Cgroup.Mode) > 0 && opts.Cgroup.Mode != cgroup.ModeNone {
		if d.runtime, err = opts.Cgroup.Group("runtime", cgroup.Limits{}); err != nil {
			return nil, err
		}
	}
	d.describe()
	return d, nil
}

// check refuses options that cannot work, with the remedy.
func check(o Options) error {
	switch {
	case o.Runtime == "":
		return errors.New("no runtime given; build runc beside our binaries with `make build`, or name one")
	case o.StateDir == "":
		return errors.New("no folder for state given")
	case o.IDSize == 0:
		return errors.New("no ids for steps given")
	case os.Geteuid() != 0:
		return errors.New("this process is not root in its user namespace; start it as root, or in a user namespace of its own")
	}
	for _, m := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		ok, err := maps(m, o.IDBase, o.IDSize)
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("ids %d to %d are not in %s; give this process that range, or use the ids it has", o.IDBase, uint64(o.IDBase)+uint64(o.IDSize)-1, m)
		}
	}
	// The runtime looks up its children by the numbers this process sees.
	if self, err := os.Readlink("/proc/self"); err != nil || self != fmt.Sprint(os.Getpid()) {
		return errors.New("/proc belongs to another process namespace; mount a new one after making the namespace")
	}
	return nil
}

// maps says whether ids base … base+size-1 exist according to an id map.
func maps(file string, base, size uint32) (bool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return false, fmt.Errorf("reading id map: %w", err)
	}
	next, end := uint64(base), uint64(base)+uint64(size)
	type span struct{ from, to uint64 }
	var spans []span
	for line := range strings.Lines(string(b)) {
		var inside, outside, n uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &n); err != nil {
			return false, fmt.Errorf("reading id map: %w", err)
		}
		spans = append(spans, span{inside, inside + n})
	}
	slices.SortFunc(spans, func(a, b span) int { return int(int64(a.from) - int64(b.from)) })
	for _, s := range spans {
		if s.from <= next && next < s.to {
			next = s.to
		}
	}
	return next >= end, nil
}

// passable says whether a step's root can reach dir, where its own root will be
// mounted. The runtime's error for it would be a bare "permission denied".
func passable(dir string, id uint32) error {
	for p := dir; p != "/"; p = filepath.Dir(p) {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			return fmt.Errorf("checking state folder: %w", err)
		}
		if st.Mode&0o001 == 0 && st.Uid != id {
			return fmt.Errorf("steps cannot pass through %s (mode %o); allow it with chmod o+x, or choose another state folder", p, st.Mode&0o7777)
		}
	}
	return nil
}

// seal copies the runtime to where nobody else can write, and measures the copy:
// what was measured is what runs. For runc that is sealed memory; finding itself
// sealed, it skips protecting its binary from containers at each start. gVisor
// looks up its own path, and so gets a file in the state folder.
func (d *Driver) seal() error {
	path, err := exec.LookPath(d.opts.Runtime)
	if err != nil {
		return fmt.Errorf("finding runtime: %w", err)
	}
	d.name = d.opts.Name
	if d.name == "" {
		d.name, _, _ = strings.Cut(filepath.Base(path), "-")
	}
	src, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reading runtime: %w", err)
	}
	defer src.Close()
	var dst *os.File
	if d.name == "runc" || d.name == "crun" {
		dst = sealable(d.name) // nil where vm.memfd_noexec forbids it
	}
	inMemory := dst != nil
	if !inMemory {
		d.exePath = filepath.Join(d.opts.StateDir, "runtime-"+d.name)
		if err := os.Remove(d.exePath); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("copying runtime: %w", err)
		}
		if dst, err = os.OpenFile(d.exePath, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o555); err != nil {
			return fmt.Errorf("copying runtime: %w", err)
		}
	}
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(dst, sum), src); err != nil {
		_ = dst.Close()
		return fmt.Errorf("copying runtime: %w", err)
	}
	d.host.RuntimeDigest = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	if !inMemory {
		return dst.Close()
	}
	d.exe = dst
	d.exePath = fmt.Sprintf("/proc/self/fd/%d", dst.Fd())
	if err := unix.Fchmod(int(dst.Fd()), 0o511); err != nil {
		return fmt.Errorf("sealing runtime: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(dst.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("sealing runtime: %w", err)
	}
	return nil
}

// sealable makes a file in memory that can be executed, or returns nil.
func sealable(name string) *os.File {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 there is no MFD_EXEC to say
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), name)
}

// take makes StateDir this driver's, until it is closed or this process ends.
func (d *Driver) take() error {
	lock, err := os.OpenFile(filepath.Join(d.opts.StateDir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("taking state folder: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return fmt.Errorf("taking state folder %s: another process uses it: %w", d.opts.StateDir, err)
	}
	d.lock = lock
	return nil
}

// sweep clears StateDir. What lives there belonged to a driver that no longer
// does, or we would not have the lock.
func (d *Driver) sweep() error {
	if err := d.opts.Cgroup.Sweep(); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.opts.StateDir)
	if err != nil {
		return fmt.Errorf("clearing state folder: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		dir := filepath.Join(d.opts.StateDir, e.Name())
		state := filepath.Join(dir, "state")
		containers, _ := os.ReadDir(state)
		for _, c := range containers {
			// It checks that the process is the one it started before killing.
			if out, err := d.command(context.Background(), state, "delete", "--force", c.Name()).CombinedOutput(); err != nil {
				return fmt.Errorf("clearing state folder: removing container %s: %w: %s", c.Name(), err, out)
			}
		}
		if err := errors.Join(unmountBelow(dir), os.RemoveAll(dir)); err != nil {
			return fmt.Errorf("clearing state folder: %w", err)
		}
	}
	return nil
}

// needed are the flags without which a runtime would not do what this package
// promises.
func needed(runtime string) []string {
	switch runtime {
	case "runc":
		// Control groups are ours; runc would make its own beside them.
		return []string{"--rootless=true"}
	case "runsc":
		return []string{
			"--platform=systrap", // works without /dev/kvm and in a user namespace
			"--network=host",     // that is, the space's namespace: forwards are there
			"--ignore-cgroups",   // as above
			"--oci-seccomp",      // gVisor leaves the profile out by default
			"--overlay2=none",    // writes go to the upper layer, where they are bounded
			"--host-uds=none",    // no socket in a volume leads out
		}
	}
	return nil
}

// command prepares one call of the runtime.
func (d *Driver) command(ctx context.Context, state string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.exePath)
	cmd.Args = slices.Concat([]string{d.name, "--root", state}, needed(d.name), d.opts.Flags, args)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	return cmd
}

// describe fills what Host says, and the limits that need no group.
func (d *Driver) describe() {
	var u unix.Utsname
	_ = unix.Uname(&u)
	d.host.Runtime = d.name
	d.host.Kernel = unix.ByteSliceToString(u.Release[:])
	d.host.Arch = runtime.GOARCH
	d.host.Cgroups = d.opts.Cgroup.Mode
	if d.host.Cgroups == "" {
		d.host.Cgroups = cgroup.ModeNone
	}
	d.host.Limits = d.inForce(d.opts.Limits)

	limit := func(name string, resource int, want uint64) {
		var have unix.Rlimit
		if err := unix.Getrlimit(resource, &have); err == nil {
			want = min(want, have.Max) // nobody but the machine's root can raise it
		}
		d.rlimits = append(d.rlimits, specs.POSIXRlimit{Type: name, Hard: want, Soft: want})
	}
	limit("RLIMIT_CORE", unix.RLIMIT_CORE, 0)
	limit("RLIMIT_NOFILE", unix.RLIMIT_NOFILE, 65536)
	limit("RLIMIT_MEMLOCK", unix.RLIMIT_MEMLOCK, 8<<20)
}

// inForce is what remains of limits on this machine.
func (d *Driver) inForce(l observe.Limits) observe.Limits {
	if !d.opts.Cgroup.HasMemory() {
		l.MemoryBytes = 0
	}
	return l // Pids: RLIMIT_NPROC stands in where there is no group
}

// Name is the runtime's.
func (d *Driver) Name() string { return d.name }

// Host says what this driver enforces on this machine. Version and
// KeySeparation are the caller's to fill.
func (d *Driver) Host() observe.Host { return d.host }

// Close gives up the state folder. Spaces must have been closed before.
func (d *Driver) Close() error {
	var errs []error
	d.mu.Lock()
	if n := len(d.open); n > 0 {
		errs = append(errs, fmt.Errorf("closing sandbox: %d spaces are open", n))
	}
	d.mu.Unlock()
	if d.runtime != nil {
		errs = append(errs, d.runtime.Remove())
		d.runtime = nil
	}
	if d.exe == nil && d.exePath != "" {
		errs = append(errs, os.Remove(d.exePath))
		d.exePath = ""
	}
	for _, f := range []*os.File{d.exe, d.lock} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	d.exe, d.lock = nil, nil
	return errors.Join(errs...)
}

// caBundle finds the host's certificates.
func caBundle(setting string) (string, error) {
	switch setting {
	case "none":
		return "", nil
	case "":
	default:
		if _, err := os.Stat(setting); err != nil {
			return "", fmt.Errorf("finding certificates: %w", err)
		}
		return filepath.Abs(setting)
	}
	for _, p := range []string{os.Getenv("SSL_CERT_FILE"), caDebian, caFedora, "/etc/ssl/ca-bundle.pem", "/etc/ssl/cert.pem"} {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return filepath.EvalSymlinks(p)
		}
	}
	return "", nil
}
