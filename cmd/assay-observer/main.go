// Command assay-observer is the neutral witness: it records runs, states what
// was built from what, signs and stores. It is the only program that opens
// private keys.
//
//	assay-observer serve      the witness of a home; started by the launcher
//	assay-observer attest …   a statement about objects in files
//	assay-observer signer …   signs over a socket for assayd, which holds no key
//	assay-observer public-key URI   the public half of a key in a service or a token
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"assay.dev/assay/internal/observer"
	"assay.dev/assay/internal/signer"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "assay-observer is started by `assay run` and `assay attest`")
		return 2
	}
	switch os.Args[1] {
	case "serve":
		if err := observer.MainServe(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "assay-observer:", err)
			return 1
		}
		return 0
	case "attest":
		return observer.MainAttest(ctx, os.Args[2:], os.Stdout, os.Stderr)
	case "signer":
		return signer.Main(ctx, os.Args[2:], os.Stdout, os.Stderr)
	case "public-key":
		return signer.MainPublicKey(ctx, os.Args[2:], os.Stdout, os.Stderr)
	}
	if os.Args[1] == "key" {
		return observer.MainKey(os.Args[2:], os.Stdout, os.Stderr)
	}
	fmt.Fprintf(os.Stderr, "assay-observer: unknown subcommand %q\n", os.Args[1])
	return 2
}
