package logserver

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"assay.dev/assay/attest/tlog"
)

// publicHalf is what verifiers of a log with this private key are given.
func publicHalf(skey string) (tlog.LogKey, error) {
	c, err := tlog.NewCosigner(skey, nil)
	if err != nil {
		return tlog.LogKey{}, err
	}
	return c.LogKey()
}

// readKey reads a private key from a file that nobody else may read.
func readKey(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("reading private key: %w; make one with `assay log init --key %s --name NAME`", err, path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("reading private key %s: others may read it (mode %04o): chmod 600", path, info.Mode().Perm())
	}
	if info.Size() > 4096 {
		return "", fmt.Errorf("reading private key %s: too large to be one", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading private key: %w", err)
	}
	skey := strings.TrimSpace(string(data))
	if _, err := note.NewSigner(skey); err != nil {
		return "", fmt.Errorf("reading private key %s: %w; want PRIVATE+KEY+NAME+HASH+BASE64 as `assay log init` writes it", path, err)
	}
	return skey, nil
}

// makeKey makes a private key in a file that is not there yet.
func makeKey(path, name string) (log tlog.LogKey, witness tlog.WitnessKey, err error) {
	if name == "" {
		return log, witness, errors.New("a key needs a name that nobody else uses: --name example.com/log")
	}
	skey, log, witness, err := tlog.GenerateKey(name)
	if err != nil {
		return log, witness, err
	}
	if err := newFile(path, []byte(skey+"\n"), 0o600); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return log, witness, fmt.Errorf("making key: %s is there already; a log's key is not replaced, its old proofs need it", path)
		}
		return log, witness, fmt.Errorf("making key: %w", err)
	}
	return log, witness, nil
}

// makeToken makes a secret for who adds entries.
func makeToken(path string) error {
	if err := newFile(path, []byte(rand.Text()+rand.Text()+"\n"), 0o600); err != nil {
		return fmt.Errorf("making token: %w", err)
	}
	return nil
}
