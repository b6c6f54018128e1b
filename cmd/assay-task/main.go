// Command assay-task is the built-in tasks' program: what their steps run. See
// package task.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"assay.dev/assay/task"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := task.Main(ctx, task.Env{Getenv: os.Getenv, Stdout: os.Stdout, Stderr: os.Stderr}, os.Args[1:])
	stop()
	os.Exit(code)
}
