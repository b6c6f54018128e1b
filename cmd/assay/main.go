// Command assay is a software factory with a neutral witness, on the command
// line.
package main

import (
	"os"
	"path/filepath"

	"assay.dev/assay/internal/cli"
)

func main() {
	args := os.Args[1:]
	// By the name of Conforma's program it takes that one's command line.
	if filepath.Base(os.Args[0]) == "ec" {
		args = append([]string{"ec"}, args...)
	}
	os.Exit(cli.Main(args, os.Stdin, os.Stdout, os.Stderr))
}
