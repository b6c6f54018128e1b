// Command assay-releaser copies one judged image to its destination. It is
// started by `assay release`, which hands it the verdict.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"assay.dev/assay/internal/releaser"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := releaser.Main(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "assay-releaser:", err)
		os.Exit(1)
	}
}
