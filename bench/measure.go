package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"assay.dev/assay/internal/testrig"
)

// bench is a home with the catalog in it, and the report in the making.
type bench struct {
	root    string // of the repository
	dir     string // everything of ours, removed at the end
	home    string
	assay   string
	rounds  int
	section string
	report  report
	catalog struct{ Images map[string]string }
	bundle  *bareRuntime // nil until bare made it
	run     *attestedRun // nil until attest made it
}

func newBench(ctx context.Context, rounds int) (_ *bench, err error) {
	root := testrig.Root()
	b := &bench{root: root, assay: filepath.Join(root, "bin", "assay"), rounds: rounds, report: newReport(rounds)}
	if _, err := os.Stat(b.assay); err != nil {
		return nil, fmt.Errorf("finding what to measure: %w; build it with `make build`", err)
	}
	if b.dir, err = os.MkdirTemp("", "assay-bench-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	// The processes' users must be able to pass through.
	if err := os.Chmod(b.dir, 0o755); err != nil {
		return nil, err
	}
	b.home = filepath.Join(b.dir, "home")
	out, _, err := b.command(ctx, b.assay, "catalog", "push", "--output", "json")
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(out, &b.catalog); err != nil {
		return nil, fmt.Errorf("reading the catalog: %w", err)
	}
	return b, nil
}

func (b *bench) close() {
	if err := os.RemoveAll(b.dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench: removing", b.dir+":", err)
	}
}

// write puts a file into the bench's folder.
func (b *bench) write(name, content string) (string, error) {
	p := filepath.Join(b.dir, name)
	return p, os.WriteFile(p, []byte(content), 0o644)
}

// compare adds a row with a number to hold ours to.
func (b *bench) compare(name string, u unit, ours float64, against string, theirs float64, target string) {
	b.report.Rows = append(b.report.Rows, row{Section: b.section, Name: name, Ours: ours, Unit: u, Against: against, Theirs: theirs, Ratio: ours / theirs, Target: target})
}

// record adds a row that stands alone.
func (b *bench) record(name string, u unit, ours float64, target string) {
	b.report.Rows = append(b.report.Rows, row{Section: b.section, Name: name, Ours: ours, Unit: u, Target: target})
}

func (b *bench) note(format string, args ...any) {
	b.report.Notes = append(b.report.Notes, fmt.Sprintf(format, args...))
}

// sample is one measurement. Of a process it counts all that it waited for.
type sample struct {
	wall, cpu float64 // seconds
	peak      float64 // bytes; the largest single process
}

// command runs a program in the bench's home. Exit codes in accept are no
// errors; 0 always is none.
func (b *bench) command(ctx context.Context, program string, args ...string) ([]byte, sample, error) {
	return b.commandIn(ctx, []string{"ASSAY_HOME=" + b.home}, nil, program, args...)
}

func (b *bench) commandIn(ctx context.Context, env []string, accept []int, program string, args ...string) ([]byte, sample, error) {
	c := exec.CommandContext(ctx, program, args...)
	c.Env = append(os.Environ(), env...)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 20 * time.Second
	var out, errout strings.Builder
	c.Stdout, c.Stderr = &out, &errout
	began := time.Now()
	err := c.Run()
	s := sample{wall: time.Since(began).Seconds()}
	var exit *exec.ExitError
	if errors.As(err, &exit) && slices.Contains(accept, exit.ExitCode()) {
		err = nil
	}
	if err != nil {
		return nil, s, fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), strings.Join(args, " "), err, errout.String())
	}
	if u, ok := c.ProcessState.SysUsage().(*syscall.Rusage); ok {
		s.cpu = time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
		s.peak = float64(u.Maxrss) * 1024
	}
	return []byte(out.String()), s, nil
}

// side is one side of a comparison.
type side func(ctx context.Context, round int) (sample, error)

// alternate measures the sides in turn and returns the medians of each. A round
// before the first, which is not counted, fills caches for all of them.
func (b *bench) alternate(ctx context.Context, sides ...side) ([]sample, error) {
	all, err := b.series(ctx, sides...)
	if err != nil {
		return nil, err
	}
	out := make([]sample, len(sides))
	for i, s := range all {
		out[i] = medians(s)
	}
	return out, nil
}

// series is alternate with every sample, for what is computed round by round.
func (b *bench) series(ctx context.Context, sides ...side) ([][]sample, error) {
	out := make([][]sample, len(sides))
	for round := range b.rounds + 1 {
		for i, s := range sides {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			m, err := s(ctx, round)
			if err != nil {
				return nil, err
			}
			if round > 0 {
				out[i] = append(out[i], m)
			}
		}
	}
	return out, nil
}

func medians(s []sample) sample {
	of := func(get func(sample) float64) float64 {
		v := make([]float64, len(s))
		for i, m := range s {
			v[i] = get(m)
		}
		return median(v)
	}
	return sample{
		wall: of(func(m sample) float64 { return m.wall }),
		cpu:  of(func(m sample) float64 { return m.cpu }),
		peak: of(func(m sample) float64 { return m.peak }),
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	if n%2 == 1 {
		return v[n/2]
	}
	return (v[n/2-1] + v[n/2]) / 2
}

// timed measures a function of this process.
func timed(f func() error) (sample, error) {
	before, began := ownCPU(), time.Now()
	err := f()
	return sample{wall: time.Since(began).Seconds(), cpu: ownCPU() - before}, err
}

func ownCPU() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// ownPeak is the largest that this program's memory has been: what a child's
// peak may begin with.
func ownPeak() float64 {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "VmHWM:"); ok {
			var kb float64
			if _, err := fmt.Sscan(v, &kb); err == nil {
				return kb * 1024
			}
		}
	}
	return 0
}
