// Command assay-executor runs one run's steps in sandboxes and measures them.
// It is started by the launcher, not by people:
//
//	assay-executor confine   the parent that makes the user namespace
//	assay-executor hold      keeps a user namespace until confine has opened it
//	assay-executor run       one run, between planner and observer
//	assay-executor images    the image store
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"assay.dev/assay/internal/confine"
	"assay.dev/assay/internal/executor"
)

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "assay-executor is started by `assay run`")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A planner that went away is an error to return, not a death.
	signal.Ignore(syscall.SIGPIPE)
	code, err := 0, error(nil)
	switch os.Args[1] {
	case "hold":
		confine.Hold()
	case "confine":
		stop()
		code, err = confine.Main()
	case "run":
		err = executor.MainRun(ctx)
	case "images":
		err = executor.MainImages(ctx)
	default:
		err = fmt.Errorf("unknown subcommand %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "assay-executor:", err)
		if code == 0 {
			code = 1
		}
	}
	return code
}
