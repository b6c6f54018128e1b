// Command gate measures `assay gate` and `assay ec` over sets of images, and beside
// them the ec that a variable names: time, CPU time, memory and registry requests of
// whole processes, with one policy.
//
// Each image has SLSA provenance of 22 tasks (320 kB), an SPDX SBOM (300 kB), a scan
// report and two signatures; the policy has the size of Conforma's collection
// @redhat. They are made for the run, in a registry in this process on loopback.
//
//	go run ./bench/gate                               sizes 1, 10, 100, 500
//	ASSAY_EC=$(which ec) go run ./bench/gate          beside Conforma's own
//	ASSAY_CONFORMA_POLICY=DIR go run ./bench/gate     with the public release policies
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"assay.dev/assay/attest/dsse"
)

type options struct {
	sizes, theirs []int
	assay, ec     string
	upstream      string
	policy        string
	output        string
	keep, only    string
	latency       time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench/gate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	o := options{}
	f := flag.NewFlagSet("gate", flag.ContinueOnError)
	sizes := f.String("images", "1,10,100,500", "sizes of the sets")
	theirs := f.String("upstream-images", "1,10", "sizes that the other ec has to do as well; 100 takes it ten CPU minutes")
	f.StringVar(&o.assay, "assay", "bin/assay", "our program")
	f.StringVar(&o.ec, "ec", "bin/ec", "our ec")
	f.StringVar(&o.upstream, "upstream", os.Getenv("ASSAY_EC"), "Conforma's ec; default $ASSAY_EC, and without it ours stand alone")
	f.StringVar(&o.policy, "policy", os.Getenv("ASSAY_CONFORMA_POLICY"), "checkout of the public policies; default $ASSAY_CONFORMA_POLICY, and without it a generated policy of that size")
	f.StringVar(&o.output, "output", "text", "text or json")
	f.StringVar(&o.only, "only", "", "measure this program alone: \"assay gate\", \"assay ec\" or \"ec\"")
	f.StringVar(&o.keep, "keep", "", "leave the reports in this folder")
	f.DurationVar(&o.latency, "latency", 0, "how long the registry waits before it answers, as one that is far away")
	if err := f.Parse(args); err != nil {
		return err
	}
	var err error
	if o.sizes, err = numbers(*sizes); err != nil {
		return err
	}
	if o.theirs, err = numbers(*theirs); err != nil {
		return err
	}
	rows, err := measure(ctx, &o)
	if err != nil {
		return err
	}
	if o.output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(rows)
	}
	return table(out, rows)
}

func numbers(list string) ([]int, error) {
	var out []int
	for _, s := range strings.Split(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 1 || n > 10_000 {
			return nil, fmt.Errorf("%q is no number of images", s)
		}
		out = append(out, n)
	}
	return out, nil
}

// row is one program over one set.
type row struct {
	Program    string  `json:"program"`
	Images     int     `json:"images"`
	Wall       float64 `json:"wallSeconds"`
	CPU        float64 `json:"cpuSeconds"`
	CPUEach    float64 `json:"cpuSecondsPerImage"`
	Memory     float64 `json:"peakMiB"`
	Requests   float64 `json:"requestsPerImage"`
	Exit       int     `json:"exit"`
	ReportSize int     `json:"reportBytes"`
	// Of the other ec's numbers at the same size; 0 where it did not run.
	WallRatio float64 `json:"wallRatio,omitempty"`
	CPURatio  float64 `json:"cpuRatio,omitempty"`
}

func measure(ctx context.Context, o *options) ([]row, error) {
	dir, err := os.MkdirTemp("", "assay-bench-gate-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var requests atomic.Int64
	var far atomic.Bool
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	srv := &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if far.Load() {
			time.Sleep(o.latency)
		}
		handler.ServeHTTP(w, r)
	})}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()

	set, err := newImageSet(ctx, l.Addr().String())
	if err != nil {
		return nil, err
	}
	policy, err := writePolicy(dir, o.policy, set.bundles)
	if err != nil {
		return nil, err
	}
	pub, err := dsse.NewPublicKey(set.key.Public())
	if err != nil {
		return nil, err
	}
	key := filepath.Join(dir, "key.pub")
	if err := os.WriteFile(key, pub.PEM(), 0o644); err != nil {
		return nil, err
	}
	var rows []row
	for _, n := range o.sizes {
		fmt.Fprintf(os.Stderr, "bench/gate: making %d images\n", n)
		if err := set.grow(ctx, n); err != nil {
			return nil, err
		}
		snapshot := filepath.Join(dir, fmt.Sprintf("snapshot-%d.json", n))
		if err := writeSnapshot(snapshot, set.refs[:n]); err != nil {
			return nil, err
		}
		like := []string{"validate", "image", "--images", snapshot, "--policy", policy, "--public-key", key, "--ignore-rekor", "--timeout", "0"}
		sides := []side{
			{"assay gate", []string{o.assay, "gate", "--images", snapshot, "--policy", policy, "--key", key, "--output", "json"}},
			{"assay ec", append([]string{o.ec}, append(like, "--output", "json")...)},
		}
		if o.upstream != "" && contains(o.theirs, n) {
			sides = append(sides, side{"ec", append([]string{o.upstream}, append(like, "--output", "json")...)})
		}
		first := len(rows)
		for _, s := range sides {
			if o.only != "" && s.name != o.only {
				continue
			}
			fmt.Fprintf(os.Stderr, "bench/gate: %s over %d images\n", s.name, n)
			before := requests.Load()
			far.Store(true)
			r, err := s.run(ctx, dir, o.keep)
			far.Store(false)
			if err != nil {
				return nil, err
			}
			r.Images, r.CPUEach = n, r.CPU/float64(n)
			r.Requests = float64(requests.Load()-before) / float64(n)
			rows = append(rows, *r)
		}
		if len(rows) == first {
			continue
		}
		if last := rows[len(rows)-1]; last.Program == "ec" {
			for i := first; i < len(rows)-1; i++ {
				rows[i].WallRatio, rows[i].CPURatio = last.Wall/rows[i].Wall, last.CPU/rows[i].CPU
			}
		}
	}
	return rows, nil
}

func contains(list []int, n int) bool {
	for _, x := range list {
		if x == n {
			return true
		}
	}
	return false
}

// side is a program with its arguments.
type side struct {
	name string
	argv []string
}

// run runs the program. A verdict of no is as good as yes here: the work is the same.
func (s side) run(ctx context.Context, dir, keep string) (*row, error) {
	report, err := os.Create(filepath.Join(dir, "report.json"))
	if err != nil {
		return nil, err
	}
	defer report.Close()
	var errs strings.Builder
	cmd := exec.CommandContext(ctx, s.argv[0], s.argv[1:]...)
	cmd.Stdout, cmd.Stderr = report, &errs
	cmd.Env = append(os.Environ(), "ASSAY_HOME="+filepath.Join(dir, "home"), "HOME="+dir)
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w; build it with `make build`", s.argv[0], err)
	}
	peak := watch(cmd.Process.Pid)
	_ = cmd.Wait() // how it ended is in the state
	r := &row{Program: s.name, Wall: time.Since(start).Seconds(), Memory: float64(peak()) / 1024}
	u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return nil, fmt.Errorf("%s: its use of resources is not known", s.name)
	}
	r.CPU = time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
	r.Exit = cmd.ProcessState.ExitCode()
	info, err := report.Stat()
	if err != nil {
		return nil, err
	}
	if r.ReportSize = int(info.Size()); r.ReportSize == 0 {
		return nil, fmt.Errorf("%s ended with %d and no report: %s", s.name, r.Exit, strings.TrimSpace(errs.String()))
	}
	if keep != "" {
		raw, err := os.ReadFile(report.Name())
		if err != nil {
			return nil, err
		}
		name := fmt.Sprintf("%s-%s.json", strings.ReplaceAll(s.name, " ", "-"), time.Now().Format("150405"))
		return r, os.WriteFile(filepath.Join(keep, name), raw, 0o644)
	}
	return r, nil
}

// watch looks at the peak memory of a process, in KiB, until it is asked for it. The
// kernel's own account of a child that has ended is of no use: it begins with what
// its parent had, and this one has a registry in it.
func watch(pid int) (peak func() int) {
	done, result := make(chan struct{}), make(chan int)
	go func() {
		highest := 0
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				result <- highest
				return
			case <-tick.C:
			}
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				continue
			}
			if _, after, ok := strings.Cut(string(status), "VmHWM:"); ok {
				if f := strings.Fields(after); len(f) > 0 {
					if n, err := strconv.Atoi(f[0]); err == nil {
						highest = max(highest, n)
					}
				}
			}
		}
	}()
	return func() int { close(done); return <-result }
}

func table(out io.Writer, rows []row) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "images\tprogram\twall s\tCPU s\tCPU s/image\tpeak MiB\trequests/image\texit\tless wall\tless CPU\t")
	ratio := func(x float64) string {
		if x == 0 {
			return "–"
		}
		return fmt.Sprintf("%.1f×", x)
	}
	for _, r := range rows {
		fmt.Fprintf(w, "%d\t%s\t%.2f\t%.2f\t%.3f\t%.0f\t%.1f\t%d\t%s\t%s\t\n", r.Images, r.Program, r.Wall, r.CPU, r.CPUEach, r.Memory, r.Requests, r.Exit, ratio(r.WallRatio), ratio(r.CPURatio))
	}
	return w.Flush()
}
