package observer

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"assay.dev/assay/attest"
)

const keyUsage = `Usage: assay key generate [--kind KIND] [--out FILE]

Makes a key pair: FILE (default assay.key) holds the private key, FILE with .pub
in place of .key the public one. When COSIGN_PASSWORD is set the private key is
encrypted with it, in cosign's format. Existing files are never overwritten.

The observer makes its own key the first time it runs; this is for keys that you
bring to other tools.

  --kind KIND   %s
`

// MainKey is `assay key`.
func MainKey(args []string, out, errw io.Writer) int {
	var kinds []string
	for _, k := range attest.Kinds() {
		kinds = append(kinds, string(k))
	}
	usage := fmt.Sprintf(keyUsage, strings.Join(kinds, ", "))
	if len(args) == 0 || args[0] != "generate" {
		fmt.Fprint(errw, usage)
		return 2
	}
	fs := flag.NewFlagSet("key", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	kind := fs.String("kind", kinds[0], "")
	file := fs.String("out", "assay.key", "")
	switch err := fs.Parse(args[1:]); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(out, usage)
		return 0
	case err != nil || fs.NArg() > 0:
		fmt.Fprintf(errw, "assay: %v\n%s", err, usage)
		return 2
	}
	k, err := attest.GenerateKey(attest.Kind(*kind))
	if err != nil {
		fmt.Fprintf(errw, "assay: %v\n", err)
		return 2
	}
	var password []byte
	if p, ok := os.LookupEnv("COSIGN_PASSWORD"); ok {
		password = []byte(p)
	}
	public := strings.TrimSuffix(*file, ".key") + ".pub"
	if err := k.WriteFiles(*file, public, password); err != nil {
		fmt.Fprintf(errw, "assay: %v\n", err)
		return 1
	}
	fmt.Fprintf(out, "%s\n%s\n", *file, public)
	return 0
}
