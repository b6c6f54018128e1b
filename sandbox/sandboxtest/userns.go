package sandboxtest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"assay.dev/assay/sandbox/cgroup"
)

// What a test finds in its environment when it runs in a namespace of its own.
const (
	envInside = "ASSAY_TEST_INSIDE" // a folder that belongs to it
	envCgroup = "ASSAY_TEST_CGROUP" // cgroup.Root as JSON
	envProbe  = "ASSAY_TEST_PROBE"
)

// hostBase is the first host id that namespaces made here map to. It is far
// from what subuid(5) usually hands out to people.
const hostBase = 1 << 24

// Inside reports whether this process is the one that Reexec started, and
// returns what it was given: a folder, and control groups.
func Inside(t testing.TB) (dir string, groups cgroup.Root, ok bool) {
	dir = os.Getenv(envInside)
	if dir == "" {
		return "", cgroup.Root{}, false
	}
	if err := json.Unmarshal([]byte(os.Getenv(envCgroup)), &groups); err != nil {
		t.Fatal(err)
	}
	return dir, groups, true
}

// Reexec runs one test of this binary again as the executor will be: root of a
// new user, mount and process namespace, nobody outside. Its ids are 0 and, if
// size is not 0, 65536 to 65536+size-1. It needs root.
func Reexec(t *testing.T, test string, size int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to map ids")
	}
	probe := Probe(t)
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.Chmod(dir, 0o711))
	must(t, os.Lchown(dir, hostBase, hostBase))
	copyFile(t, probe, filepath.Join(dir, "probe"))
	groups := cgroup.Delegate("assay-test-inside", hostBase, hostBase)
	defer func() {
		if err := groups.Remove(); err != nil {
			t.Error(err)
		}
	}()
	g, err := json.Marshal(groups)
	must(t, err)
	run := func() ([]byte, error) {
		cmd := exec.Command("/proc/self/exe", "-test.run=^"+test+"$", "-test.v", "-test.timeout=5m")
		cmd.Env = append(os.Environ(), envInside+"="+dir, envCgroup+"="+string(g), envProbe+"="+filepath.Join(dir, "probe"), "TMPDIR="+dir, "HOME="+dir)
		maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: hostBase, Size: 1}}
		if size > 0 {
			maps = append(maps, syscall.SysProcIDMap{ContainerID: 65536, HostID: hostBase + 65536, Size: size})
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
			UidMappings: maps, GidMappings: maps, GidMappingsEnableSetgroups: true,
			Credential: &syscall.Credential{Uid: 0, Gid: 0},
			Pdeathsig:  syscall.SIGKILL,
		}
		return cmd.CombinedOutput()
	}
	out, err := run()
	for try := 1; err != nil && try < 3 && strings.Contains(string(out), runscRace); try++ {
		t.Logf("try %d lost runsc's race:\n%s", try, out)
		out, err = run()
	}
	t.Logf("inside:\n%s", out)
	if err != nil {
		t.Errorf("inside a user namespace: %v", err)
	}
}

// runscRace is what runsc says where the process of a sandbox has made itself
// undumpable before runsc sets its score for the out-of-memory killer: in a user
// namespace the file is then nobody's. The container runs, and runsc gives up on
// it. Who is quicker depends on the machine's load.
const runscRace = "oom_score_adj: permission denied"

// SettleIn finishes what Reexec began: a view of the new process namespace.
func SettleIn(t testing.TB) {
	t.Helper()
	must(t, unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""))
	must(t, unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
}
