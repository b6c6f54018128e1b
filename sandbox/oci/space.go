package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"assay.dev/assay/sandbox"
	"assay.dev/assay/sandbox/cgroup"
	"assay.dev/assay/sandbox/netns"
)

// The volumes that every space has, and where steps see them.
var standard = []sandbox.Mount{
	{Volume: "results", Path: "/tekton/results"},
	{Volume: "steps", Path: "/tekton/steps"},
	{Volume: "scripts", Path: "/tekton/scripts", ReadOnly: true},
	{Volume: "home", Path: "/tekton/home"},
	{Volume: "workspace", Path: "/workspace"},
}

var (
	validID     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]{0,99}$`)
	validVolume = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)
)

// space is one task attempt's. Its folder is a small tmpfs of ours; what the
// task writes is in a second one, mounted at fs in it:
//
//	etc/            hosts, hostname, resolv.conf
//	state/          the runtime's
//	step-N/         config.json, log, pid, root (overlay), m-I (mounts)
//	vol/NAME        volumes bound from the host
//	fs/vol/NAME     fresh volumes
//	fs/upper-N, fs/work-N
//	fs/shm
type space struct {
	d       *Driver
	spec    sandbox.SpaceSpec
	dir     string
	volumes map[string]volume
	net     *netns.Namespace
	group   *cgroup.Group

	sealed atomic.Pointer[sandbox.Sealed]

	run    sync.Mutex // held by Run, Seal and Close: one at a time; guards the two below
	steps  int
	closed bool
}

type volume struct {
	dir      string
	readOnly bool
}

// Open prepares a space.
func (d *Driver) Open(ctx context.Context, spec sandbox.SpaceSpec) (_ sandbox.Space, err error) {
	if !validID.MatchString(spec.ID) || spec.ID == "lock" || spec.ID == "runtime" {
		return nil, fmt.Errorf("opening space: %q is not an id; want letters, digits, - and .", spec.ID)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("opening space: %w", err)
	}
	d.mu.Lock()
	taken := d.open[spec.ID]
	d.open[spec.ID] = true
	d.mu.Unlock()
	if taken {
		return nil, fmt.Errorf("opening space: %s is open already", spec.ID)
	}
	if spec.Limits.Pids == 0 {
		spec.Limits.Pids = d.opts.Limits.Pids
	}
	if spec.Limits.MemoryBytes == 0 {
		spec.Limits.MemoryBytes = d.opts.Limits.MemoryBytes
	}
	if spec.WriteBytes == 0 {
		spec.WriteBytes = spec.Limits.WriteBytes
	}
	if spec.WriteBytes == 0 {
		spec.WriteBytes = d.opts.Limits.WriteBytes
	}
	s := &space{d: d, spec: spec, dir: filepath.Join(d.opts.StateDir, spec.ID), volumes: map[string]volume{}}
	if err := s.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening space %s: %w", spec.ID, err), s.Close())
	}
	return s, nil
}

func (s *space) setUp() error {
	if err := os.Mkdir(s.dir, 0o711); err != nil {
		return err
	}
	if err := mountTmpfs(s.dir, 16<<20, 4096, 0o711); err != nil {
		return err
	}
	for _, name := range []string{"etc", "state", "vol", "fs"} {
		if err := os.Mkdir(s.path(name), 0o711); err != nil {
			return err
		}
	}
	// A file takes a kilobyte of kernel memory that its size does not show: one
	// for each page of what may be written, and some.
	if err := mountTmpfs(s.path("fs"), s.spec.WriteBytes, s.spec.WriteBytes/4096+16384, 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(s.path("fs/vol"), 0o711); err != nil {
		return err
	}
	if err := s.folder(s.path("fs/shm"), 0o1777); err != nil {
		return err
	}
	if err := s.addVolumes(); err != nil {
		return err
	}
	if err := s.openNetwork(); err != nil {
		return err
	}
	if err := s.writeEtc(); err != nil {
		return err
	}
	var err error
	s.group, err = s.d.opts.Cgroup.Group("space-"+s.spec.ID, cgroup.Limits{Pids: s.spec.Limits.Pids, Memory: s.spec.Limits.MemoryBytes})
	return err
}

func (s *space) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

// folder makes a folder that belongs to root in steps.
func (s *space) folder(path string, mode uint32) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return err
	}
	if err := os.Chown(path, int(s.d.opts.IDBase), int(s.d.opts.IDBase)); err != nil {
		return err
	}
	return unix.Chmod(path, mode) // after the rest: neither chown nor umask take bits away
}

func (s *space) addVolumes() error {
	for _, v := range s.spec.Volumes {
		if !validVolume.MatchString(v.Name) {
			return fmt.Errorf("adding volume: %q is not a name; want letters, digits, -, _ and .", v.Name)
		}
		if _, ok := s.volumes[v.Name]; ok {
			return fmt.Errorf("adding volume %s: there are two of that name", v.Name)
		}
		if err := s.addVolume(v); err != nil {
			return fmt.Errorf("adding volume %s: %w", v.Name, err)
		}
	}
	for _, m := range standard {
		if _, ok := s.volumes[m.Volume]; ok {
			continue
		}
		if err := s.addVolume(sandbox.Volume{Name: m.Volume}); err != nil {
			return fmt.Errorf("adding volume %s: %w", m.Volume, err)
		}
	}
	return nil
}

func (s *space) addVolume(v sandbox.Volume) error {
	if v.Host == "" {
		dir := s.path("fs/vol", v.Name)
		s.volumes[v.Name] = volume{dir: dir, readOnly: v.ReadOnly}
		return s.folder(dir, 0o777) // steps may run as any of their ids
	}
	// Bound now, so that the folder stays the one that was meant.
	fd, err := unix.Open(v.Host, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", v.Host, err)
	}
	defer unix.Close(fd)
	dir := s.path("vol", v.Name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := bind(fd, dir, v.ReadOnly); err != nil {
		return fmt.Errorf("%w: %s", err, v.Host)
	}
	s.volumes[v.Name] = volume{dir: dir, readOnly: v.ReadOnly}
	return nil
}

func (s *space) openNetwork() error {
	cfg := netns.Config{
		Network: s.spec.Network, Forward: s.spec.Forward,
		Policy: s.d.opts.Policy, Nameservers: s.d.opts.Nameservers,
	}
	if s.spec.Network == "open" {
		cfg.Forward = slices.Concat(cfg.Forward, s.d.opts.OpenForward)
	}
	var err error
	s.net, err = netns.New(cfg)
	return err
}

// writeEtc makes the files that every image expects and none can know.
func (s *space) writeEtc() error {
	host := s.d.opts.Hostname
	resolv := "# this network has no names\n"
	if a := s.net.Nameserver(); a != "" {
		resolv = "nameserver " + a + "\n"
	}
	for name, content := range map[string]string{
		"hosts":       "127.0.0.1 localhost " + host + "\n::1 localhost ip6-localhost ip6-loopback\n",
		"hostname":    host + "\n",
		"resolv.conf": resolv,
	} {
		if err := os.WriteFile(s.path("etc", name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Dir is the path of a volume's folder, or "" if there is none of that name.
func (s *space) Dir(name string) string { return s.volumes[name].dir }

// Chown gives a path to root in steps. A link itself is given, not what it
// points at. Paths outside the space's volumes are refused.
func (s *space) Chown(path string) error {
	for _, v := range s.volumes {
		rel, err := filepath.Rel(v.dir, path)
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		root, err := os.OpenRoot(v.dir)
		if err != nil {
			return fmt.Errorf("giving %s to steps: %w", path, err)
		}
		defer root.Close()
		if err := root.Lchown(rel, int(s.d.opts.IDBase), int(s.d.opts.IDBase)); err != nil {
			return fmt.Errorf("giving %s to steps: %w", path, err)
		}
		return nil
	}
	return fmt.Errorf("giving %s to steps: it is in no volume of this space", path)
}

// Interfaces lists the interfaces of the space's network.
func (s *space) Interfaces() ([]string, error) {
	if sealed := s.sealed.Load(); sealed != nil {
		return sealed.Interfaces, nil
	}
	return s.net.Interfaces()
}

// Seal ends everything and measures.
func (s *space) Seal(ctx context.Context) (*sandbox.Sealed, error) {
	s.run.Lock()
	defer s.run.Unlock()
	return s.seal()
}

// seal needs s.run. It ignores the caller's context: a space half sealed is no use.
func (s *space) seal() (*sandbox.Sealed, error) {
	if sealed := s.sealed.Load(); sealed != nil {
		return sealed, nil
	}
	fail := func(err error) (*sandbox.Sealed, error) {
		return nil, fmt.Errorf("sealing space %s: %w", s.spec.ID, err)
	}
	if err := s.killAll(); err != nil {
		return fail(err)
	}
	// A descriptor of a volume can lie in a socket that nobody has taken from;
	// with the last process the kernel has closed those too. So from here on
	// only this process can write below Dir.
	interfaces, err := s.net.Interfaces()
	if err != nil {
		return fail(err)
	}
	if err := s.net.Close(); err != nil {
		return fail(err)
	}
	record, dropped := s.net.Record()
	sealed := &sandbox.Sealed{Interfaces: interfaces, Network: record, Dropped: dropped}
	s.sealed.Store(sealed)
	return sealed, nil
}

// killAll kills what lives in the space and waits until nothing does. Usually
// nothing does: a step's processes die with the step.
func (s *space) killAll() error {
	if s.group != nil {
		if err := s.group.Kill(); err != nil {
			return err
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		pids, err := s.net.Processes()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v do not die", pids)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(wait)
	}
}

// Close removes the space. What cannot be removed is reported, and left for the
// next New to clear.
func (s *space) Close() error {
	s.run.Lock()
	defer s.run.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	var errs []error
	if s.net != nil {
		if s.sealed.Load() == nil {
			errs = append(errs, s.killAll())
		}
		errs = append(errs, s.net.Close())
	}
	if s.group != nil {
		errs = append(errs, s.group.Remove())
	}
	errs = append(errs, unmountBelow(s.dir))
	if err := os.RemoveAll(s.dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	s.d.mu.Lock()
	delete(s.d.open, s.spec.ID)
	s.d.mu.Unlock()
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("closing space %s: %w", s.spec.ID, err)
	}
	return nil
}

// source resolves a mount's folder below its volume, making what is missing, and
// returns a descriptor of it. No link leads out of the volume.
func (s *space) source(m sandbox.Mount) (fd int, readOnly bool, err error) {
	v, ok := s.volumes[m.Volume]
	if !ok {
		return -1, false, fmt.Errorf("mounting %s: the space has no volume %q", m.Path, m.Volume)
	}
	readOnly = m.ReadOnly || v.readOnly
	sub := filepath.Clean("/" + m.SubPath)[1:]
	if m.SubPath != "" && !filepath.IsLocal(m.SubPath) {
		return -1, false, fmt.Errorf("mounting %s: sub-path %q leaves its volume", m.Path, m.SubPath)
	}
	if sub == "" {
		sub = "."
	}
	base, err := unix.Open(v.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false, fmt.Errorf("mounting %s: %w", m.Path, err)
	}
	defer unix.Close(base)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err = unix.Openat2(base, sub, &how)
	if errors.Is(err, unix.ENOENT) && !v.readOnly {
		if err = s.makeBelow(v.dir, sub); err == nil {
			fd, err = unix.Openat2(base, sub, &how)
		}
	}
	if err != nil {
		return -1, false, fmt.Errorf("mounting %s: opening %q in volume %s: %w", m.Path, m.SubPath, m.Volume, err)
	}
	return fd, readOnly, nil
}

// makeBelow makes the missing folders of a sub-path, owned by root in steps.
func (s *space) makeBelow(dir, sub string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	path := ""
	for elem := range strings.SplitSeq(sub, "/") {
		path = filepath.Join(path, elem)
		err := root.Mkdir(path, 0o777)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(root.Lchown(path, int(s.d.opts.IDBase), int(s.d.opts.IDBase)), root.Chmod(path, 0o777)); err != nil {
			return err
		}
	}
	return nil
}
