// Package sandboxtest is the suite that every sandbox driver passes: what a step
// gets, what it does not get, what bounds it, and that nothing of it stays.
//
// The same suite runs with the driver started by the machine's root, and, by
// Reexec, as the executor runs it: as root of a user namespace that is nobody
// outside. A root file system is made of the machine's static busybox and a small
// program, probe, for what no shell can try.
package sandboxtest

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/observe"
	"assay.dev/assay/sandbox"
)

// Suite says what to test.
type Suite struct {
	// New prepares a driver with nothing special: the test closes it.
	New func(t testing.TB, o Options) Driver
	// Dir is a folder for layers, on any file system, passable by steps' ids.
	Dir            string
	IDBase, IDSize int
	// Emulated runtimes have a kernel of their own: what they say of themselves
	// in /proc and which error they answer differs.
	Emulated bool
}

// Options are what some tests need of a driver.
type Options struct {
	Allow       []netip.Prefix   // reachable from an open network although it is this machine's
	Nameservers []netip.AddrPort // for an open network
}

// Driver is a driver that can be closed.
type Driver interface {
	sandbox.Driver
	Close() error
}

// Run runs the suite.
func Run(t *testing.T, s Suite) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, or root in a user namespace")
	}
	layers := Layers(t, s.Dir, Probe(t), s.IDBase)
	before := world(t)
	d := s.New(t, Options{})
	c := &suite{Suite: s, d: d, layers: layers}
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"step", c.step}, {"errors", c.errors}, {"volumes", c.volumes}, {"life", c.life},
		{"privileges", c.privileges}, {"hidden", c.hidden}, {"bounds", c.bounds}, {"network", c.network},
	} {
		t.Run(part.name, part.run)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	compare(t, before)
}

type suite struct {
	Suite
	d      Driver
	layers []string
}

func (c *suite) open(t *testing.T, spec sandbox.SpaceSpec) *box {
	t.Helper()
	return c.openWith(t, c.d, spec)
}

func (c *suite) openWith(t *testing.T, d sandbox.Driver, spec sandbox.SpaceSpec) *box {
	t.Helper()
	if spec.ID == "" {
		spec.ID = "s-" + strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))
		if len(spec.ID) > 90 {
			spec.ID = spec.ID[:90]
		}
	}
	if spec.Network == "" {
		spec.Network = "none"
	}
	space, err := d.Open(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := space.Close(); err != nil {
			t.Error(err)
		}
	})
	return &box{Space: space, t: t, layers: c.layers}
}

// box is a space with short ways to use it.
type box struct {
	sandbox.Space
	t      *testing.T
	layers []string
}

// out is what a step printed and became.
type out struct {
	*sandbox.Result
	Stdout, Stderr string
}

func (b *box) try(ctx context.Context, step sandbox.StepSpec) (out, error) {
	if step.Name == "" {
		step.Name = "test"
	}
	if step.Layers == nil {
		step.Layers = b.layers
	}
	var stdout, stderr bytes.Buffer
	r, err := b.Run(ctx, step, &stdout, &stderr)
	return out{r, stdout.String(), stderr.String()}, err
}

// run runs a step that must be startable.
func (b *box) run(step sandbox.StepSpec) out {
	b.t.Helper()
	o, err := b.try(b.t.Context(), step)
	if err != nil {
		b.t.Fatalf("%v\nstderr: %s", err, o.Stderr)
	}
	return o
}

// sh runs a shell script that must succeed and returns its output.
func (b *box) sh(script string) string {
	b.t.Helper()
	o := b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-euc", script}})
	if o.ExitCode != 0 {
		b.t.Fatalf("exit code %d\nscript: %s\nstdout: %s\nstderr: %s", o.ExitCode, script, o.Stdout, o.Stderr)
	}
	return o.Stdout
}

// traces is the part of the machine's state that a driver could leave things in.
type traces struct {
	mounts, networks, processes []string
	fds                         []string
}

func world(t testing.TB) traces {
	t.Helper()
	var w traces
	b, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 {
			w.mounts = append(w.mounts, f[4])
		}
	}
	slices.Sort(w.mounts)
	procs, err := os.ReadDir("/proc")
	must(t, err)
	for _, p := range procs {
		if ns, err := os.Readlink("/proc/" + p.Name() + "/ns/net"); err == nil && !slices.Contains(w.networks, ns) {
			w.networks = append(w.networks, ns)
		}
		// Only our own children: other things go on on this machine.
		stat, err := os.ReadFile("/proc/" + p.Name() + "/stat")
		if err != nil {
			continue
		}
		if f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(f) > 1 && f[1] == fmt.Sprint(os.Getpid()) && f[0] != "Z" {
			w.processes = append(w.processes, string(stat[:bytes.LastIndexByte(stat, ')')+1]))
		}
	}
	slices.Sort(w.networks)
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, f := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil {
			w.fds = append(w.fds, f.Name()+" "+to)
		}
	}
	return w
}

// compare reports what is there now and was not before. Steps' own namespaces
// and files on the machine's other processes' account come and go; a name is
// reported only if it is new and in no other process.
func compare(t *testing.T, before traces) {
	t.Helper()
	// Go keeps pipes for copying between sockets until the collector has seen
	// them idle twice.
	for range 3 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	after := world(t)
	if !slices.Equal(before.mounts, after.mounts) {
		t.Errorf("mounts before %d, after %d:\n%s", len(before.mounts), len(after.mounts), strings.Join(newIn(before.mounts, after.mounts), "\n"))
	}
	if n := newIn(before.processes, after.processes); len(n) > 0 {
		t.Errorf("processes left: %v", n)
	}
	if n := newIn(before.fds, after.fds); len(n) > 2 { // the test framework's and Go's own, opened at first use
		t.Errorf("descriptors left: %q", n)
	}
	if _, _, inside := Inside(t); inside { // only there are all processes ours
		if n := newIn(before.networks, after.networks); len(n) > 0 {
			t.Errorf("network namespaces left: %v", n)
		}
	}
}

func newIn(before, after []string) []string {
	var out []string
	for _, a := range after {
		if !slices.Contains(before, a) {
			out = append(out, a)
		}
	}
	return out
}

func limits(pids, memory int64) observe.Limits {
	return observe.Limits{Pids: pids, MemoryBytes: memory}
}
