// Command observer measures the controller beside a Tekton: the same finished
// runs through ours and, where ASSAY_CHAINS names Tekton Chains' controller,
// through that, one after the other on the same machine, with a real
// kube-apiserver and etcd and a registry on loopback. `make bench` runs it.
//
//	backlog   all runs are there when the controller starts
//	arriving  runs end at a steady rate while it is idle
//	passing   many more runs than are ever present at once (-passing N)
//
// Each run is a PipelineRun of 20 TaskRuns with 6 images, as large as Konflux's.
// Settings are Konflux's: statements about PipelineRuns in SLSA v0.2 with deep
// inspection, none about TaskRuns, images signed, all kept in the registry, an
// x509 key. CPU time and memory are the kernel's account of each process, API
// requests the API server's, registry requests the registry's.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == registryArg {
		if err := serveRegistry(); err != nil {
			fmt.Fprintln(os.Stderr, "bench/observer: registry:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench/observer:", err)
		os.Exit(1)
	}
}

type options struct {
	runs, script  int
	rate          float64
	passing       int
	output        string
	assayd        string
	chains        string
	taskRuns      bool
	chainsDefault bool
	limit         time.Duration
}

func run(ctx context.Context, args []string) error {
	var o options
	f := flag.NewFlagSet("observer", flag.ContinueOnError)
	f.IntVar(&o.runs, "runs", 200, "PipelineRuns in the backlog (the issue's size is 1000)")
	f.IntVar(&o.script, "script", 400, "bytes of each step's script: 400 makes TaskRuns of 6 kB, 6000 of 24 kB")
	f.Float64Var(&o.rate, "rate", 10, "PipelineRuns that end per second in the second part; 0 leaves it out")
	f.IntVar(&o.passing, "passing", 0, "PipelineRuns that pass through, never more than 1000 present; 0 leaves it out")
	f.BoolVar(&o.taskRuns, "taskruns", false, "state TaskRuns too, kept in annotations")
	f.BoolVar(&o.chainsDefault, "chains-defaults", false, "leave Chains' threads and client limits as they are")
	f.DurationVar(&o.limit, "limit", 20*time.Minute, "how long one part may take")
	f.StringVar(&o.output, "output", "text", "text or json")
	f.StringVar(&o.assayd, "assayd", "bin/assayd", "our program")
	f.StringVar(&o.chains, "chains", os.Getenv("ASSAY_CHAINS"), "Chains' controller; default $ASSAY_CHAINS")
	if err := f.Parse(args); err != nil {
		return err
	}
	if o.output != "text" && o.output != "json" {
		return fmt.Errorf("unknown output %q; accepted: text, json", o.output)
	}
	sides := []side{assay(o)}
	if o.chains != "" {
		sides = append(sides, chains(o))
	}
	var results []result
	for _, s := range sides {
		// Each side has a control plane and a registry of its own, fresh.
		r, err := measure(ctx, o, s)
		if err != nil {
			return fmt.Errorf("measuring %s: %w", s.name, err)
		}
		results = append(results, r...)
	}
	if o.output == "json" {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(results)
	}
	print(results)
	if o.chains == "" {
		fmt.Println("\nASSAY_CHAINS names no Chains controller: ours stands alone.")
	}
	return nil
}

// result is one part of one side. Times are seconds, CPU milliseconds a run.
type result struct {
	Side, Part       string
	Runs             int
	Seconds          float64
	PerSecond        float64
	CPU              map[string]float64 // process → ms per run
	PeakMB           map[string]float64
	APIRequests      float64 // per run, by the API server's count
	RegistryRequests float64 // per run
	Latency          struct{ P50, P90, Max float64 }
	Failed           int
}

func print(results []result) {
	w := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "part\tside\truns\truns/s\tCPU ms/run\tof API server\tof etcd\tof registry\tAPI req/run\tregistry req/run\tpeak MB\tp50 s\tp90 s\tmax s\tfailed\t")
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f\t%.2f\t%.2f\t%.2f\t%d\t\n", r.Part, r.Side, r.Runs, r.PerSecond,
			r.CPU["controller"], r.CPU["kube-apiserver"], r.CPU["etcd"], r.CPU["registry"],
			r.APIRequests, r.RegistryRequests, r.PeakMB["controller"], r.Latency.P50, r.Latency.P90, r.Latency.Max, r.Failed)
	}
	w.Flush()
	by := map[string]map[string]result{}
	for _, r := range results {
		if by[r.Part] == nil {
			by[r.Part] = map[string]result{}
		}
		by[r.Part][r.Side] = r
	}
	for part, sides := range by {
		ours, ok := sides["assay"]
		theirs, ok2 := sides["chains"]
		if ok && ok2 {
			fmt.Printf("%s: %.1f × the pace, %.3f × the CPU, %.3f × the API requests, %.3f × the registry requests, %.2f × the memory of Chains\n", part,
				ours.PerSecond/theirs.PerSecond, ours.CPU["controller"]/theirs.CPU["controller"], ours.APIRequests/theirs.APIRequests,
				ours.RegistryRequests/theirs.RegistryRequests, ours.PeakMB["controller"]/theirs.PeakMB["controller"])
		}
	}
}
