package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/opencontainers/runtime-spec/specs-go"

	"assay.dev/assay/internal/home"
)

// bareRuntime is the runtime alone: one bundle, made once, that asks of it what
// the sandbox does for a step. The same namespaces, ids, filter, capabilities,
// masked paths and number of mounts, and no control groups, which the sandbox
// keeps from the runtime as well. Its root is a plain folder where a step has an
// overlay, so making one is on our side of the comparison.
type bareRuntime struct {
	runtime, bundle string
}

func (b *bench) bare(ctx context.Context) (*bareRuntime, error) {
	if b.bundle != nil {
		return b.bundle, nil
	}
	r := &bareRuntime{runtime: filepath.Join(b.root, "bin", "runc"), bundle: filepath.Join(b.dir, "bundle")}
	root := filepath.Join(r.bundle, "root")
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tekton/results", "tekton/steps", "tekton/scripts", "tekton/home", "workspace"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return nil, err
		}
	}
	for _, d := range []string{"state", "m"} {
		if err := os.MkdirAll(filepath.Join(r.bundle, d), 0o755); err != nil {
			return nil, err
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("finding busybox: %w; install busybox-static", err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin", "busybox"), busybox, 0o755); err != nil {
		return nil, err
	}
	if err := os.Symlink("busybox", filepath.Join(root, "bin", "true")); err != nil {
		return nil, err
	}
	spec, err := b.bareSpec(r.bundle, root)
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(r.bundle, func(p string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, home.UIDSteps, home.UIDSteps)
	})
	if err != nil {
		return nil, err
	}
	cfg, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(r.bundle, "config.json"), cfg, 0o600); err != nil {
		return nil, err
	}
	if err := r.run(ctx, "first"); err != nil {
		return nil, err
	}
	b.bundle = r
	return r, nil
}

// run runs the bundle once, as a shell loop would.
func (r *bareRuntime) run(ctx context.Context, id string) error {
	c := exec.CommandContext(ctx, r.runtime, "--rootless=true", "--root", filepath.Join(r.bundle, "state"), "run", "--bundle", r.bundle, "bench-"+id)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("running the bare runtime: %w: %s", err, out)
	}
	return nil
}

func (b *bench) bareSpec(bundle, root string) (*specs.Spec, error) {
	arch, ok := map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64, "ppc64le": specs.ArchPPC64LE, "riscv64": specs.ArchRISCV64, "loong64": specs.ArchLOONGARCH64}[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("there is no seccomp profile for %s", runtime.GOARCH)
	}
	raw, err := os.ReadFile(filepath.Join(b.root, "sandbox", "oci", "seccomp.json"))
	if err != nil {
		return nil, err
	}
	seccomp := new(specs.LinuxSeccomp)
	if err := json.Unmarshal(raw, seccomp); err != nil {
		return nil, fmt.Errorf("reading the seccomp profile: %w", err)
	}
	seccomp.Architectures = []specs.Arch{arch}
	tmpfs := func(at, size, mode string) specs.Mount {
		return specs.Mount{Destination: at, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=" + size, "mode=" + mode}}
	}
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		tmpfs("/dev", "64k", "755"),
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		tmpfs("/dev/shm", "64m", "1777"),
		tmpfs("/sys", "4k", "555"),
	}
	bind := func(at string, folder bool) error {
		from := filepath.Join(bundle, "m", filepath.Base(at))
		if folder {
			err = os.Mkdir(from, 0o777)
		} else {
			err = os.WriteFile(from, []byte("bench\n"), 0o644)
		}
		mounts = append(mounts, specs.Mount{Destination: at, Type: "bind", Source: from, Options: []string{"bind", "rw", "nosuid", "nodev", "private"}})
		return err
	}
	for _, at := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
		if err := bind(at, false); err != nil {
			return nil, err
		}
	}
	for _, at := range []string{"/tekton/home", "/tekton/results", "/tekton/scripts", "/tekton/steps", "/workspace"} {
		if err := bind(at, true); err != nil {
			return nil, err
		}
	}
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: home.UIDSteps, Size: home.StepsSize}}
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"}
	return &specs.Spec{
		Version: "1.0.2", Hostname: "bench", Root: &specs.Root{Path: root}, Mounts: mounts,
		Process: &specs.Process{
			Args: []string{"/bin/true"}, Env: []string{"PATH=/bin"}, Cwd: "/", NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Linux: &specs.Linux{
			UIDMappings: ids, GIDMappings: ids,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
				{Type: specs.UserNamespace}, {Type: specs.CgroupNamespace}, {Type: specs.NetworkNamespace},
			},
			Seccomp:           seccomp,
			RootfsPropagation: "private",
			MaskedPaths:       []string{"/proc/acpi", "/proc/asound", "/proc/cmdline", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore", "/proc/keys", "/proc/kmsg", "/proc/modules", "/proc/scsi", "/proc/timer_list"},
			ReadonlyPaths:     []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}, nil
}
