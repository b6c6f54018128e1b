package signer

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// mainUnpack is assay-observer signer unpack: it reads a Secret as the API server gives
// it and writes its keys into a folder for --secrets. Whoever wants a key of a cluster
// used connects a program that reads Secrets to this one, and sees no key.
func mainUnpack(args []string, stdin io.Reader, stderr io.Writer) int {
	f := flag.NewFlagSet("signer unpack", flag.ContinueOnError)
	f.SetOutput(stderr)
	into := f.String("into", "", "`folder` that nobody else can read (required)")
	field := f.String("field", "", "the Secret's `field` with the key (default: x509.pem, or cosign.key with cosign.password)")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil || *into == "" || f.NArg() > 0:
		fmt.Fprintln(stderr, "usage: assay-observer signer unpack --into FOLDER [--field NAME] < SECRET")
		return 2
	}
	if err := unpackSecret(stdin, *into, *field); err != nil {
		fmt.Fprintln(stderr, "assay-observer signer unpack:", err)
		return 1
	}
	return 0
}

func unpackSecret(r io.Reader, into, field string) error {
	info, err := os.Stat(into)
	if err != nil {
		return err
	}
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is no folder that is closed to others", into)
	}
	const most = 3 << 20 // what an API server keeps
	raw, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return fmt.Errorf("reading the Secret: %w", err)
	}
	if len(raw) > most {
		return fmt.Errorf("reading the Secret: larger than %d bytes", most)
	}
	var secret struct {
		Kind string            `json:"kind"`
		Data map[string][]byte `json:"data"`
	}
	// The decoder's error would quote what it read.
	if json.Unmarshal(raw, &secret) != nil || secret.Kind != "Secret" {
		return errors.New("reading the Secret: this is none as an API server gives it")
	}
	files := map[string][]byte{}
	switch {
	case field != "":
		v, ok := secret.Data[field]
		if !ok {
			return fmt.Errorf("the Secret has no field %s", field)
		}
		files[fileCosign] = v
	case secret.Data[fileX509] != nil:
		files[fileX509] = secret.Data[fileX509]
	case secret.Data[fileCosign] != nil:
		files[fileCosign] = secret.Data[fileCosign]
	default:
		return fmt.Errorf("the Secret has neither %s nor %s; name the field that has the key", fileX509, fileCosign)
	}
	if p, ok := secret.Data[filePassword]; ok && files[fileCosign] != nil {
		files[filePassword] = p
	}
	for name, content := range files {
		if len(content) > maxSecret {
			return fmt.Errorf("%s is larger than %d bytes", name, maxSecret)
		}
		w, err := os.OpenFile(filepath.Join(into, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = w.Write(content)
		if err = errors.Join(err, w.Close()); err != nil {
			return err
		}
	}
	return nil
}
