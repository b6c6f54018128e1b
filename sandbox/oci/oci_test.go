package oci_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/sandbox/cgroup"
	"assay.dev/assay/sandbox/oci"
	"assay.dev/assay/sandbox/sandboxtest"
)

// rig is what a driver needs, outside and inside a user namespace.
type rig struct {
	dir    string // passable by steps' ids
	groups cgroup.Root
	base   uint32
	size   uint32
}

func setUp(t testing.TB) rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, or root in a user namespace")
	}
	if dir, groups, ok := sandboxtest.Inside(t); ok {
		sandboxtest.SettleIn(t)
		if m, _ := os.ReadFile("/proc/self/uid_map"); strings.Count(string(m), "\n") < 2 {
			return rig{dir: dir, groups: groups, base: 0, size: 1}
		}
		return rig{dir: dir, groups: groups, base: 65536, size: 65536}
	}
	dir, err := os.MkdirTemp("", "assay-oci-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	groups := cgroup.Find("assay-oci-test")
	t.Cleanup(func() {
		if err := groups.Remove(); err != nil {
			t.Error(err)
		}
	})
	return rig{dir: dir, groups: groups, base: 65536, size: 65536}
}

func (r rig) new(t testing.TB, runtime string, o sandboxtest.Options) sandboxtest.Driver {
	t.Helper()
	state, err := os.MkdirTemp(r.dir, "state-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(state, 0o711); err != nil {
		t.Fatal(err)
	}
	groups := r.groups
	if o.Allow != nil {
		groups = cgroup.Root{} // the groups are one driver's at a time
	}
	opts := oci.Options{Runtime: runtime, StateDir: state, IDBase: r.base, IDSize: r.size, Cgroup: groups}
	opts.Policy.Allow = o.Allow
	opts.Nameservers = o.Nameservers
	d, err := oci.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestRunc(t *testing.T) {
	runc := sandboxtest.Runtime(t, "runc", "ASSAY_RUNC")
	r := setUp(t)
	sandboxtest.Run(t, sandboxtest.Suite{
		New: func(t testing.TB, o sandboxtest.Options) sandboxtest.Driver { return r.new(t, runc, o) },
		Dir: r.dir, IDBase: int(r.base), IDSize: int(r.size),
	})
}

// As the executor runs it.
func TestRuncInUserNamespace(t *testing.T) {
	sandboxtest.Runtime(t, "runc", "ASSAY_RUNC")
	sandboxtest.Reexec(t, "TestRunc", 65536)
}

// As somebody without a range of ids runs it.
func TestRuncWithOneID(t *testing.T) {
	sandboxtest.Runtime(t, "runc", "ASSAY_RUNC")
	sandboxtest.Reexec(t, "TestRunc", 0)
}

func TestRunsc(t *testing.T) {
	runsc := os.Getenv("ASSAY_RUNSC")
	if runsc == "" {
		t.Skip("set ASSAY_RUNSC to the path of gVisor's runsc to run the suite with it")
	}
	r := setUp(t)
	sandboxtest.Run(t, sandboxtest.Suite{
		New: func(t testing.TB, o sandboxtest.Options) sandboxtest.Driver {
			return r.new(t, runsc, o)
		},
		Dir: r.dir, IDBase: int(r.base), IDSize: int(r.size), Emulated: true,
	})
}

// stateDir is a folder that steps can pass through, as t.TempDir alone is not.
func stateDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestNewRefuses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	closed := filepath.Join(stateDir(t), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	ok := oci.Options{Runtime: "/bin/true", StateDir: stateDir(t), IDBase: 65536, IDSize: 65536}
	for name, change := range map[string]func(*oci.Options){
		"no runtime":       func(o *oci.Options) { o.Runtime = "" },
		"runtime missing":  func(o *oci.Options) { o.Runtime = "/nonesuch/runc" },
		"no state":         func(o *oci.Options) { o.StateDir = "" },
		"state missing":    func(o *oci.Options) { o.StateDir = "/nonesuch" },
		"not passable":     func(o *oci.Options) { o.StateDir = closed },
		"no ids":           func(o *oci.Options) { o.IDSize = 0 },
		"ids that are not": func(o *oci.Options) { o.IDBase, o.IDSize = 1<<32-2, 1<<31 },
		"no certificates":  func(o *oci.Options) { o.CABundle = "/nonesuch" },
	} {
		o := ok
		change(&o)
		if d, err := oci.New(o); err == nil {
			t.Errorf("%s: accepted", name)
			d.Close()
		}
	}
	d, err := oci.New(ok)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := oci.New(ok); err == nil || !strings.Contains(err.Error(), "another process uses it") {
		t.Errorf("two drivers on one folder: %v", err)
	}
	if h := d.Host(); h.Cgroups != "none" || !strings.HasPrefix(h.RuntimeDigest, "sha256:") || h.Kernel == "" || h.Limits.MemoryBytes != 0 {
		t.Errorf("host %+v", h)
	}
}

// What a driver that died leaves is cleared by the next one.
func TestLeftovers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	state := stateDir(t)
	if err := os.MkdirAll(filepath.Join(state, "old", "fs", "upper-step-1"), 0o711); err != nil {
		t.Fatal(err)
	}
	d, err := oci.New(oci.Options{Runtime: "/bin/true", StateDir: state, IDBase: 65536, IDSize: 65536})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := os.Stat(filepath.Join(state, "old")); !os.IsNotExist(err) {
		t.Errorf("leftovers are there: %v", err)
	}
}

func TestRunscInUserNamespace(t *testing.T) {
	if os.Getenv("ASSAY_RUNSC") == "" {
		t.Skip("set ASSAY_RUNSC to the path of gVisor's runsc to run the suite with it")
	}
	sandboxtest.Reexec(t, "TestRunsc", 65536)
}
