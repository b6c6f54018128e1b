// Assay-planner runs Tekton objects against an executor. It is started by
// `assay run`, not by people, and needs no privilege: it reads tenants' YAML and
// is not believed.
//
// The job, a JSON object (pipeline.Job), is read from descriptor 3 or from the
// file after --job. On standard output it prints one JSON object a line
// (pipeline.Line), the last of which tells how it ended. An interrupt cancels
// the run. It exits with 0 if the run succeeded, with 1 if it failed or could
// not be run, and with 2 if what it was given is wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"assay.dev/assay/pipeline"
)

func main() { os.Exit(run()) }

func run() int {
	flags := flag.NewFlagSet("assay-planner", flag.ContinueOnError)
	jobFile := flags.String("job", "", "read the job from this `FILE` instead of descriptor 3")
	version := flags.Bool("version", false, "print the version")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return 2
	}
	if *version {
		fmt.Println("assay-planner", buildVersion())
		return 0
	}
	job, err := readJob(*jobFile)
	if err != nil {
		fmt.Fprintln(os.Stderr, "assay-planner:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	succeeded, err := job.Do(ctx, os.Stdout, dial)
	var input *pipeline.InputError
	switch {
	case errors.As(err, &input):
		return 2
	case err != nil || !succeeded:
		return 1
	}
	return 0
}

func readJob(file string) (*pipeline.Job, error) {
	var r io.ReadCloser = os.NewFile(3, "job")
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("opening the job: %w", err)
		}
		r = f
	}
	defer r.Close()
	return pipeline.ReadJob(r)
}

func dial(in, out int) (pipeline.Executor, error) {
	return pipeline.NewStream(os.NewFile(uintptr(out), "executor"), os.NewFile(uintptr(in), "executor")), nil
}

func buildVersion() string {
	if b, ok := debug.ReadBuildInfo(); ok && b.Main.Version != "" {
		return b.Main.Version
	}
	return "unknown"
}
