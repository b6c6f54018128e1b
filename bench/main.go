// Command bench measures Assay beside what a user would otherwise pick, on the
// same machine and in the same run, and prints ratios: seconds say more about
// the machine, and about who else is using it, than about us. `make bench` runs
// it; README.md says how to read it and keeps a measurement.
//
// The two sides of a comparison take turns, and each number is the median of
// its rounds, so that a machine which slows down for a while slows both. Nothing
// is asserted: a bench that fails on a busy machine would soon be switched off.
//
// Everything happens in a home of its own that is removed afterwards. It needs
// root, because the runs that it measures are isolated by users of their own;
// it says so otherwise. Whole processes are measured before anything large is
// held in memory here: a child's peak begins with what its parent has.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := 0
	if err := run(ctx, os.Args[1:]); errors.Is(err, flag.ErrHelp) {
		code = 2
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = 1
	}
	stop()
	os.Exit(code)
}

// section is one comparison.
type section struct {
	name string
	run  func(context.Context, *bench) error
}

// sections in the order in which they run: whole processes first.
var sections = []section{
	{"step", steps},
	{"pipeline", pipeline},
	{"attest", attested},
	{"verify", verifying},
	{"history", history},
	{"statement", statements},
	{"image", images},
	{"tree", trees},
}

func run(ctx context.Context, args []string) error {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	output := f.String("output", "text", "text or json")
	rounds := f.Int("rounds", 7, "how often each side is measured")
	only := f.String("only", strings.Join(names, ","), "which comparisons, separated by commas")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *output != "text" && *output != "json" {
		return fmt.Errorf("unknown output %q; accepted: text, json", *output)
	}
	if *rounds < 1 {
		return fmt.Errorf("%d rounds: at least one is needed", *rounds)
	}
	chosen := strings.Split(*only, ",")
	for _, n := range chosen {
		if !slices.Contains(names, n) {
			return fmt.Errorf("unknown comparison %q; there are %s", n, strings.Join(names, ", "))
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("runs are isolated by users of their own, which only root can be; call it as root (sudo make bench)")
	}
	b, err := newBench(ctx, *rounds)
	if err != nil {
		return err
	}
	defer b.close()
	for _, s := range sections {
		if !slices.Contains(chosen, s.name) {
			continue
		}
		fmt.Fprintln(os.Stderr, "bench: measuring", s.name)
		b.section = s.name
		if err := s.run(ctx, b); err != nil {
			return fmt.Errorf("measuring %s: %w", s.name, err)
		}
	}
	b.report.finish()
	if *output == "json" {
		return b.report.json(os.Stdout)
	}
	return b.report.text(os.Stdout)
}
