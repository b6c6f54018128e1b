package oci

import (
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"assay.dev/assay/sandbox"
)

// capabilities are what root in a step has over files and processes that belong
// to the step's own ids, and nothing beyond: package managers and installers
// change owners (CHOWN, FOWNER), write into folders of other ids
// (DAC_OVERRIDE), keep set-id bits on what they install (FSETID), drop to a user
// of their own (SETUID, SETGID) and stop their helpers (KILL).
//
// Left out of what engines usually give: SETPCAP (nothing to hand on), SETFCAP
// and MKNOD (no file that gains privileges, no device), NET_RAW and
// NET_BIND_SERVICE (the network is not the step's to have rights over, so they
// would do nothing), SYS_CHROOT, AUDIT_WRITE.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
}

// maskedPaths tell about the machine or reach its kernel; steps see them empty.
var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/cmdline", "/proc/config.gz", "/proc/interrupts", "/proc/iomem", "/proc/ioports",
	"/proc/kallsyms", "/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount",
	"/proc/kpageflags", "/proc/latency_stats", "/proc/modules", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
	"/proc/timer_stats", "/proc/vmallocinfo",
}

// readOnlyPaths steer the machine.
var readOnlyPaths = []string{"/proc/bus", "/proc/dynamic_debug", "/proc/fs", "/proc/irq", "/proc/pressure", "/proc/sys", "/proc/sysrq-trigger", "/proc/tty"}

// Where images keep certificates, and where ours are put.
const (
	caDebian = "/etc/ssl/certs/ca-certificates.crt"
	caFedora = "/etc/pki/tls/certs/ca-bundle.crt"
	caOurs   = "/etc/ssl/assay-ca.crt"
)

const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// reserved are the folders that no volume may cover.
var reserved = []string{"/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", caOurs}

// planMounts merges the standard mounts and the step's, parents first.
func (s *space) planMounts(step sandbox.StepSpec) ([]sandbox.Mount, error) {
	var out []sandbox.Mount
	taken := map[string]bool{}
	for _, m := range step.Mounts {
		if !path.IsAbs(m.Path) || path.Clean(m.Path) != m.Path || m.Path == "/" {
			return nil, fmt.Errorf("mounting volume %s: %q is not a clean absolute path below /", m.Volume, m.Path)
		}
		for _, r := range reserved {
			if m.Path == r || strings.HasPrefix(m.Path, r+"/") {
				return nil, fmt.Errorf("mounting volume %s: %s is not for volumes", m.Volume, m.Path)
			}
		}
		if taken[m.Path] {
			return nil, fmt.Errorf("mounting volume %s: something is mounted at %s already", m.Volume, m.Path)
		}
		taken[m.Path] = true
		out = append(out, m)
	}
	for _, m := range standard {
		if !taken[m.Path] {
			m.ReadOnly = m.ReadOnly || s.volumes[m.Volume].readOnly
			out = append(out, m)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out, nil
}

// environment is the step's, with what the driver adds. A variable that the step
// sets, even to nothing, is the step's.
func (s *space) environment(step sandbox.StepSpec, ca bool) []string {
	env := slices.Clone(step.Env)
	has := func(name string) bool {
		return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	}
	add := func(kv string) {
		if name, _, _ := strings.Cut(kv, "="); !has(name) {
			env = append(env, kv)
		}
	}
	add(defaultPath)
	if s.spec.Network == "open" {
		for _, kv := range s.d.opts.OpenEnv {
			add(kv)
		}
		if ca {
			add("SSL_CERT_FILE=" + caOurs)
		}
	}
	return env
}

// config writes down one step for the runtime. Mounts are already made; caAt
// lists where the certificates go.
func (s *space) config(step sandbox.StepSpec, root string, binds []specs.Mount, env, caAt []string) *specs.Spec {
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: s.d.opts.IDBase, Size: s.d.opts.IDSize}}
	caps := capabilities
	if step.UID != 0 {
		caps = nil
	}
	cwd := step.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	rlimits := s.d.rlimits
	if n := s.spec.Limits.Pids; n > 0 {
		rlimits = append(slices.Clone(rlimits), specs.POSIXRlimit{Type: "RLIMIT_NPROC", Hard: uint64(n), Soft: uint64(n)})
	}
	tmpfs := func(at, size, mode string, more ...string) specs.Mount {
		return specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs", Options: append([]string{"nosuid", "size=" + size, "mode=" + mode}, more...)}
	}
	file := func(from, at string) specs.Mount {
		return specs.Mount{Destination: at, Type: "bind", Source: from, Options: []string{"bind", "ro", "nosuid", "nodev", "noexec", "private"}}
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		tmpfs("/dev", "64k", "755", "strictatime"),
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		{Destination: "/dev/shm", Type: "bind", Source: s.path("fs/shm"), Options: []string{"bind", "rw", "nosuid", "nodev", "noexec", "private"}},
		// The network namespace is not the step's, so the kernel refuses it a
		// sysfs; and it is better off without.
		tmpfs("/sys", "4k", "555", "noexec", "nodev", "ro"),
		file(s.path("etc/hosts"), "/etc/hosts"),
		file(s.path("etc/hostname"), "/etc/hostname"),
		file(s.path("etc/resolv.conf"), "/etc/resolv.conf"),
	}
	for _, at := range caAt {
		mounts = append(mounts, file(s.d.ca, at))
	}
	filter, _ := s.seccomp()
	oom := 500 // when the whole machine is short of memory, steps go first
	return &specs.Spec{
		Version:  "1.0.2", // the oldest that has all this: every runtime takes it
		Hostname: s.d.opts.Hostname,
		Root:     &specs.Root{Path: root, Readonly: step.ReadOnlyRoot},
		Mounts:   append(mounts, binds...),
		Process: &specs.Process{
			User: specs.User{UID: step.UID, GID: step.GID},
			Args: step.Argv, Env: env, Cwd: cwd,
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:         rlimits,
			NoNewPrivileges: true,
			OOMScoreAdj:     &oom,
		},
		Linux: &specs.Linux{
			UIDMappings: ids,
			GIDMappings: ids,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
				{Type: specs.UserNamespace}, {Type: specs.CgroupNamespace}, {Type: specs.NetworkNamespace, Path: s.net.Path()},
			},
			Seccomp:           filter,
			RootfsPropagation: "private",
			MaskedPaths:       maskedPaths,
			ReadonlyPaths:     readOnlyPaths,
		},
	}
}
