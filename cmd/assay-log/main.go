// Command assay-log runs a transparency log of our own, checks one, or witnesses
// one. `assay log` hands over to it. Its keys sign checkpoints and nothing else.
//
//	assay-log init      the key of a log or of a witness
//	assay-log serve     a log
//	assay-log verify    check a whole log
//	assay-log witness   cosign checkpoints of logs that keep their word
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"assay.dev/assay/internal/logserver"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return logserver.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
}
