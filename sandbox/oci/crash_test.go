package oci_test

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/sandbox"
	"assay.dev/assay/sandbox/cgroup"
	"assay.dev/assay/sandbox/oci"
	"assay.dev/assay/sandbox/sandboxtest"
)

// crashing is what the process that dies is told.
type crashing struct {
	Runtime, State string
	Layers         []string
	Cgroup         cgroup.Root
}

const envCrash = "ASSAY_TEST_CRASH"

// A driver that is killed in the middle of a step, by the machine's root and so
// without namespaces that would take everything along, leaves a running step,
// mounts and groups. The next driver removes them before it does anything else.
func TestKilledDriver(t *testing.T) {
	if arg := os.Getenv(envCrash); arg != "" {
		crash(t, arg)
		return
	}
	runc := sandboxtest.Runtime(t, "runc", "ASSAY_RUNC")
	r := setUp(t)
	c := crashing{Runtime: runc, State: filepath.Join(r.dir, "state"), Cgroup: r.groups,
		Layers: sandboxtest.Layers(t, r.dir, sandboxtest.Probe(t), int(r.base))}
	if err := os.Mkdir(c.State, 0o711); err != nil {
		t.Fatal(err)
	}
	arg, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilledDriver$")
	cmd.Env = append(os.Environ(), envCrash+"="+string(arg))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "running\n" {
		t.Fatalf("%q, %v", line, err)
	}
	if !alive(t, "assay-marker-1000") {
		t.Error("the step does not run")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	d, err := oci.New(oci.Options{Runtime: runc, StateDir: c.State, IDBase: r.base, IDSize: r.size, Cgroup: r.groups})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for i := 0; alive(t, "assay-marker-1000"); i++ {
		if i == 100 {
			t.Fatal("the step lives on")
		}
		time.Sleep(20 * time.Millisecond)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), c.State) {
		t.Errorf("mounts are left (%v):\n%s", err, mounts)
	}
	left, err := filepath.Glob(filepath.Join(c.State, "*"))
	if err != nil || len(left) != 1 { // the lock
		t.Errorf("left in the state folder: %v, %v", left, err)
	}
	s, err := d.Open(t.Context(), sandbox.SpaceSpec{ID: "x", Network: "none"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// crash runs a step until it is killed.
func crash(t *testing.T, arg string) {
	var c crashing
	if err := json.Unmarshal([]byte(arg), &c); err != nil {
		t.Fatal(err)
	}
	d, err := oci.New(oci.Options{Runtime: c.Runtime, StateDir: c.State, IDBase: 65536, IDSize: 65536, Cgroup: c.Cgroup})
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Open(t.Context(), sandbox.SpaceSpec{ID: "x", Network: "none"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Run(t.Context(), sandbox.StepSpec{Name: "s", Layers: c.Layers,
		Argv: []string{"/bin/sh", "-c", "echo running; while true; do sleep 1; done", "assay-marker-1000"}}, os.Stdout, io.Discard)
	t.Fatal(err)
}

// alive says whether a process has the word on its command line.
func alive(t *testing.T, word string) bool {
	t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if b, err := os.ReadFile(f); err == nil && strings.HasSuffix(string(b), "\x00"+word+"\x00") {
			return true
		}
	}
	return false
}
