// Command verify measures package verify and the commands over it, beside the
// machine's own ECDSA verification and beside cosign where ASSAY_COSIGN names it:
//
//	go run ./bench/verify                    # prints ratios
//	go run ./bench/verify -images 1000 -rounds 5 -output json
//
// Images are made here, each with a signature and provenance as cosign's tags, in a
// registry on loopback that is part of this process. Nothing is asserted.
//
//	local      evidence in memory: verify.Items, all cores, against ecdsa.VerifyASN1
//	registry   verify.Image through one cache, and how many blobs were fetched how often
//	cold       one process for one bundle, by key and by certificate, against cosign
//	gate       one process for all images
//
// The programs measured are those in bin/ (make build), or -bin.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"syscall"
	"text/tabwriter"

	"assay.dev/assay/internal/testrig"
)

// row is one number, and what it is held to.
type row struct {
	Name    string  `json:"name"`
	Ours    float64 `json:"ours"`
	Unit    string  `json:"unit"`
	Against string  `json:"against,omitempty"`
	Theirs  float64 `json:"theirs,omitempty"`
	Ratio   float64 `json:"ratio,omitempty"`
}

// bench is the measurement under way.
type bench struct {
	ctx      context.Context
	dir, bin string
	images   int
	rounds   int
	profile  string
	rows     []row
	set      *imageSet
	host     string // of the registry
	handler  *counted
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench/verify:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	b := &bench{ctx: ctx}
	flag.IntVar(&b.images, "images", 1000, "how many images")
	flag.IntVar(&b.rounds, "rounds", 5, "rounds; each number is their median")
	flag.StringVar(&b.bin, "bin", filepath.Join(testrig.Root(), "bin"), "folder of the programs")
	flag.StringVar(&b.profile, "profile", "", "write a CPU profile of the local rounds to this file")
	output := flag.String("output", "text", "text or json")
	flag.Parse()
	if b.images < 1 || b.rounds < 1 || *output != "text" && *output != "json" {
		return fmt.Errorf("want -images and -rounds above zero and -output text or json")
	}
	if b.dir, err = os.MkdirTemp("", "assay-bench-verify-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	// Whole processes first: a child's peak begins with what its parent has.
	if err := b.cold(); err != nil {
		return err
	}
	close, err := b.make()
	if err != nil {
		return err
	}
	defer close()
	for _, part := range []func() error{b.gate, b.registry, b.local} {
		if err := part(); err != nil {
			return err
		}
	}
	if *output == "json" {
		return json.NewEncoder(os.Stdout).Encode(struct {
			Images, Rounds, CPUs int
			Rows                 []row
		}{b.images, b.rounds, runtime.NumCPU(), b.rows})
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, r := range b.rows {
		if r.Against == "" {
			fmt.Fprintf(w, "%s\t%.4g %s\t\t\n", r.Name, r.Ours, r.Unit)
			continue
		}
		fmt.Fprintf(w, "%s\t%.4g %s\t%s %.4g\tratio %.2f\n", r.Name, r.Ours, r.Unit, r.Against, r.Theirs, r.Ratio)
	}
	return w.Flush()
}

func (b *bench) record(name string, ours float64, unit string) {
	b.rows = append(b.rows, row{Name: name, Ours: ours, Unit: unit})
}

func (b *bench) compare(name string, ours float64, unit, against string, theirs float64) {
	b.rows = append(b.rows, row{name, ours, unit, against, theirs, ours / theirs})
}

// median of the rounds of f.
func (b *bench) median(f func() (float64, error)) (float64, error) {
	var all []float64
	for range b.rounds {
		v, err := f()
		if err != nil {
			return 0, err
		}
		all = append(all, v)
	}
	return middle(all), nil
}

func middle(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

// profiled runs f under the profiler where one is asked for.
func (b *bench) profiled(f func() error) error {
	if b.profile == "" {
		return f()
	}
	w, err := os.Create(b.profile)
	if err != nil {
		return err
	}
	defer w.Close()
	if err := pprof.StartCPUProfile(w); err != nil {
		return err
	}
	defer pprof.StopCPUProfile()
	return f()
}
