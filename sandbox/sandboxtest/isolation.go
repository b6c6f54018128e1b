package sandboxtest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"assay.dev/assay/sandbox"
)

// privileges: what a step may ask the kernel for.
func (c *suite) privileges(t *testing.T) {
	b := c.open(t, sandbox.SpaceSpec{})
	if !c.Emulated {
		status := b.sh("cat /proc/self/status")
		for _, want := range []string{"Seccomp:\t2", "NoNewPrivs:\t1", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000",
			"CapPrm:\t00000000000000fb", "CapEff:\t00000000000000fb", "CapBnd:\t00000000000000fb"} {
			if !strings.Contains(status, want+"\n") {
				t.Errorf("/proc/self/status lacks %q:\n%s", want, status)
			}
		}
		if c.IDSize > 1000 {
			o := b.run(sandbox.StepSpec{Argv: []string{"cat", "/proc/self/status"}, UID: 1000})
			for _, want := range []string{"Seccomp:\t2", "NoNewPrivs:\t1", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Groups:\t "} {
				if !strings.Contains(o.Stdout, want+"\n") {
					t.Errorf("/proc/self/status of another user lacks %q:\n%s", want, o.Stdout)
				}
			}
		}
	}
	// A set-id bit that a step puts on its own file gives nobody anything.
	o := b.run(sandbox.StepSpec{Argv: []string{"probe", "calls"}})
	n := 0
	for line := range strings.Lines(o.Stdout) {
		name, errno, _ := strings.Cut(strings.TrimSpace(line), " ")
		n++
		switch {
		case errno == "EPERM", errno == "ENOSYS":
		case c.Emulated && errno != "ok": // refused by a kernel that is not the machine's
		default:
			t.Errorf("%s: %s, want EPERM or ENOSYS", name, errno)
		}
	}
	if n < 50 || o.ExitCode != 0 {
		t.Errorf("%d calls tried: %+v %s", n, o.Result, o.Stderr)
	}
	for _, hermetic := range []bool{true, false} {
		// family, type, protocol
		want := []string{"1 1 0", "1 2 0", "1 3 0", "1 5 0", "2 1 0", "2 2 0", "10 1 0", "10 2 0", "16 2 0", "16 3 0"}
		for line := range strings.Lines(b.run(sandbox.StepSpec{Argv: []string{"probe", "sockets"}, Hermetic: hermetic}).Stdout) {
			if s := strings.TrimSpace(line); !slices.Contains(want, s) && !strings.HasPrefix(s, "1 ") {
				t.Errorf("a socket of family, type, protocol %s could be made (hermetic %v)", s, hermetic)
			}
		}
	}
	for name, script := range map[string]string{
		"device":         "mknod /workspace/d b 7 0",
		"device of disk": "mknod /workspace/d c 1 1",
		"sysctl":         "echo 1 > /proc/sys/kernel/printk",
		"core pattern":   "echo x > /proc/sys/kernel/core_pattern",
		"sysrq":          "echo b > /proc/sysrq-trigger",
		"host name":      "hostname x",
		"oom score":      "echo -1000 > /proc/self/oom_score_adj",
		"setgroups":      "echo allow > /proc/self/setgroups",
		"id map":         "echo 0 0 1 > /proc/self/uid_map",
		"loopback":       "busybox ip addr add 10.0.0.1/8 dev lo",
		"interface":      "busybox ip link add d0 type dummy",
		"net sysctl":     "echo 1 > /proc/sys/net/ipv4/ip_forward",
		"mount":          "busybox mount -t tmpfs x /workspace",
		"unshare":        "busybox unshare -U true",
		"chroot":         "busybox chroot / true",
		"hosts file":     "echo 1.2.3.4 x >> /etc/hosts",
		"raise limits":   "ulimit -n 10000000",
	} {
		if o := b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", script}}); o.ExitCode == 0 && !c.Emulated {
			t.Errorf("%s: %q worked", name, script)
		}
	}
}

// hidden: what of the machine a step does not see.
func (c *suite) hidden(t *testing.T) {
	b := c.open(t, sandbox.SpaceSpec{})
	// A descriptor that would be inherited, were it not for the driver.
	dir, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(dir)
	if got, want := b.run(sandbox.StepSpec{Argv: []string{"probe", "fds"}}).Stdout, "0 pipe\n1 pipe\n2 pipe\n"; got != want && !c.Emulated {
		t.Errorf("descriptors:\n%s", cmp.Diff(want, got))
	}
	want := "bin\ndev\netc\nhome\nopt\nproc\nroot\nsys\ntekton\ntmp\nworkspace\n"
	if got := b.sh("ls /"); got != want {
		t.Errorf("root folder (-want +got):\n%s", cmp.Diff(want, got))
	}
	if c.Emulated {
		return
	}
	want = "fd\nfull\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n"
	if got := strings.TrimPrefix(b.sh("ls /dev"), "core\n"); got != want {
		t.Errorf("devices (-want +got):\n%s", cmp.Diff(want, got))
	}
	if got := b.sh("ls /sys | wc -l; ls /dev/shm /dev/pts"); got != "0\n/dev/pts:\nptmx\n\n/dev/shm:\n" {
		t.Errorf("/sys, /dev/shm, /dev/pts: %q", got)
	}
	if got := b.sh("cat /proc/kallsyms /proc/kcore /proc/keys /proc/modules /proc/timer_list /proc/cmdline 2>/dev/null | wc -c"); got != "0\n" {
		t.Errorf("%s bytes of masked files", got)
	}
	// The shell itself, and ls once it is forked; none of the machine's.
	if got := b.sh("ls -d /proc/[0-9]*"); !strings.HasPrefix(got, "/proc/1\n") || strings.Count(got, "\n") > 2 {
		t.Errorf("processes seen: %q", got)
	}
	if got := strings.Fields(b.sh("cat /proc/1/uid_map")); len(got) != 3 || got[0] != "0" {
		t.Errorf("id map %q", got)
	}
	// Files of the machine can be reached neither by name nor through links in /proc.
	marker := filepath.Join(c.Dir, "marker-"+c.d.Name())
	write(t, marker, "x")
	defer os.Remove(marker)
	o := b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", `for p in / /proc/1/root /proc/self/cwd /proc/1/cwd; do test -e $p` + marker + ` && echo found $p; done; find / -name "$0" 2>/dev/null`, filepath.Base(marker)}})
	if o.Stdout != "" {
		t.Errorf("files of the machine: %q", o.Stdout)
	}
}

// bounds: what one task can use up.
func (c *suite) bounds(t *testing.T) {
	t.Run("disk", func(t *testing.T) {
		b := c.open(t, sandbox.SpaceSpec{WriteBytes: 8 << 20})
		other := c.open(t, sandbox.SpaceSpec{ID: "other"})
		for _, where := range []string{"/tmp", "/workspace", "/tekton/results", "/dev/shm"} {
			o := b.run(sandbox.StepSpec{Argv: []string{"dd", "if=/dev/zero", "of=" + where + "/x", "bs=1048576", "count=20"}})
			if o.ExitCode == 0 || !strings.Contains(o.Stderr, "No space left") {
				t.Errorf("20 MiB into %s of 8: exit code %d, %q", where, o.ExitCode, o.Stderr)
			}
			if got := other.sh("dd if=/dev/zero of=/tmp/x bs=1048576 count=20 2>/dev/null && echo ok"); got != "ok\n" {
				t.Error("another space is full too")
			}
			b.sh("rm -f " + where + "/x") // and a full space still runs steps
		}
		o := b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", "cd /tmp; i=0; while [ $i -lt 40 ]; do mkdir d$i && cd d$i && for j in $(seq 2000); do : > $j || exit 3; done; cd ..; i=$((i+1)); done"}})
		if o.ExitCode == 0 {
			t.Error("80,000 empty files fitted into 8 MiB")
		}
		b.sh("true")
	})
	t.Run("processes", func(t *testing.T) {
		const limit = 64
		b := c.open(t, sandbox.SpaceSpec{Limits: limits(limit, 0)})
		o := b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", "n=0; while [ $n -lt 300 ]; do sleep 1000 & n=$((n+1)); echo $n >/workspace/n; done"}})
		n := strings.TrimSpace(b.sh("cat /workspace/n"))
		if o.ExitCode == 0 || len(n) > 2 {
			t.Errorf("%s processes with a limit of %d: exit code %d, %q", n, limit, o.ExitCode, o.Stderr)
		}
		o = b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", "f() { f | f & f & }; f; sleep 0.5; exit 5"}})
		if o.ExitCode != 5 && o.ExitCode == 0 {
			t.Errorf("fork bomb: exit code %d, %q", o.ExitCode, o.Stderr)
		}
		b.sh("true")
	})
	t.Run("memory", func(t *testing.T) {
		if c.d.Host().Cgroups == "none" {
			t.Skip("no control groups here")
		}
		b := c.open(t, sandbox.SpaceSpec{Limits: limits(0, 256<<20)})
		o := b.run(sandbox.StepSpec{Argv: []string{"probe", "memory", "1024"}})
		if o.ExitCode != 137 || !o.OOMKilled {
			t.Errorf("1 GiB with a limit of 256 MiB: %+v", o.Result)
		}
		o = b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", "probe memory 1024; echo still here"}})
		if !o.OOMKilled || o.Stdout != "still here\n" && !c.Emulated { // an emulated kernel dies as a whole
			t.Errorf("a child over the limit: %+v %q", o.Result, o.Stdout)
		}
		o = b.run(sandbox.StepSpec{Argv: []string{"probe", "memory", "150"}, MemoryBytes: 100 << 20})
		if !o.OOMKilled {
			t.Errorf("150 MiB with the step's own limit of 100: %+v", o.Result)
		}
		o = b.run(sandbox.StepSpec{Argv: []string{"probe", "memory", "64"}})
		if o.OOMKilled || o.ExitCode != 0 {
			t.Errorf("64 MiB with a limit of 256 MiB: %+v", o.Result)
		}
	})
	t.Run("core", func(t *testing.T) {
		if got := c.open(t, sandbox.SpaceSpec{}).sh("ulimit -c"); got != "0\n" {
			t.Errorf("core files: %q", got)
		}
	})
}
