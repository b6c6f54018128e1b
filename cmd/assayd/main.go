// Command assayd is what of Assay needs a Kubernetes API, or is one.
//
//	assayd up          etcd and kube-apiserver of its own, on this machine
//	assayd observer    the controller beside a Tekton
//	assayd doctor      what a change-over from Tekton Chains would change
//	assayd object      one object of a cluster, for the other programs
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"assay.dev/assay/internal/assayd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := assayd.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
