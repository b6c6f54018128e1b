package signer

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/kms"
	"assay.dev/assay/attest/pkcs11"
	"assay.dev/assay/attest/signing"
)

const publicKeyUsage = `assay-observer public-key [flags] URI   prints the public half of a key as PEM

URI is that of a key service (awskms://, gcpkms://, azurekms://, hashivault://) or of
a token (pkcs11:). Services take their credentials from the environment, as their own
tools do (Vault: VAULT_ADDR, and VAULT_TOKEN or ~/.vault-token). Nothing is signed.

`

// publicKeyTimeout bounds how long a key service is waited for.
const publicKeyTimeout = 30 * time.Second

// MainPublicKey is the subcommand public-key. It returns the exit code: 0, 1 for
// trouble, 2 for wrong use.
func MainPublicKey(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f := flag.NewFlagSet("public-key", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() { fmt.Fprint(stderr, publicKeyUsage); f.PrintDefaults() }
	var modules list
	f.Var(&modules, "pkcs11-module", "PKCS#11 `library` that may be loaded; repeatable")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case f.NArg() != 1:
		fmt.Fprint(stderr, "assay-observer: public-key takes one URI\n")
		return 2
	}
	if err := harden(); err != nil {
		fmt.Fprintln(stderr, "assay-observer:", err)
		return 1
	}
	ctx, cancel := context.WithTimeout(ctx, publicKeyTimeout)
	defer cancel()
	key, err := publicKey(ctx, f.Arg(0), modules)
	if err == nil {
		_, err = stdout.Write(key.PEM())
	}
	if err != nil {
		fmt.Fprintln(stderr, "assay-observer:", err)
		return 1
	}
	return 0
}

func publicKey(ctx context.Context, uri string, modules []string) (dsse.PublicKey, error) {
	read := tokens{}.read
	if strings.HasPrefix(uri, "pkcs11:") {
		return pkcs11.PublicKey(signing.PKCS11Settings{URI: uri}, modules, read)
	}
	set := signing.KMSSettings{Ref: uri}
	if strings.HasPrefix(uri, "hashivault://") {
		if os.Getenv("VAULT_ADDR") == "" {
			return dsse.PublicKey{}, fmt.Errorf("opening key %s: no address of Vault; set VAULT_ADDR", uri)
		}
		if os.Getenv("VAULT_TOKEN") == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return dsse.PublicKey{}, fmt.Errorf("opening key %s: no token for Vault; set VAULT_TOKEN", uri)
			}
			set.TokenPath = filepath.Join(home, ".vault-token")
			if _, err := os.Stat(set.TokenPath); err != nil {
				return dsse.PublicKey{}, fmt.Errorf("opening key %s: no token for Vault; set VAULT_TOKEN or log in with `vault login`", uri)
			}
		}
	}
	d, err := kms.Open(ctx, set, read)
	if err != nil {
		return dsse.PublicKey{}, err
	}
	key, err := d.Public(ctx)
	return key, errors.Join(err, d.Close())
}
