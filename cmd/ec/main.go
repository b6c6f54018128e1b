// Command ec is Conforma's command line over Assay: `assay ec` hands over to it.
package main

import (
	"os"

	"assay.dev/assay/internal/ec"
)

func main() {
	os.Exit(ec.Main(os.Args[1:], os.Stdout, os.Stderr))
}
