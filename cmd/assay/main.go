// Command assay is a software factory with a neutral witness, on the command
// line.
package main

import (
	"os"

	"assay.dev/assay/internal/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
