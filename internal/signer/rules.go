package signer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// check refuses settings that name an address which is not allowed. Libraries are
// checked where they are loaded, tokens where they are read.
func (r Rules) check(set signing.Settings) error {
	if len(r.Addresses) == 0 {
		return nil
	}
	var named []string
	if slices.Contains(set.Kinds, signing.KMS) {
		named = append(named, set.KMS.Address)
		// The other schemes may carry a host: awskms://HOST/…, azurekms://HOST/….
		if scheme, rest, ok := strings.Cut(set.KMS.Ref, "://"); ok && (scheme == "awskms" || scheme == "azurekms") {
			host, _, _ := strings.Cut(rest, "/")
			named = append(named, host)
		}
	}
	if slices.Contains(set.Kinds, signing.X509) && set.Fulcio.Enabled {
		named = append(named, set.Fulcio.Address, set.Fulcio.TUFMirror)
	}
	for _, a := range named {
		if a != "" && !slices.Contains(r.Addresses, a) {
			return store.As(store.Configuration, fmt.Errorf("settings name the address %s, which this signer was not told to ask; start it with --allow-address %s", a, a))
		}
	}
	return nil
}

// tokens reads files that settings name.
type tokens struct{ secrets string }

// maxToken is the size in bytes of the largest token that is read.
const maxToken = 64 << 10

// read reads a token or PIN: one line of text. Whoever writes settings also says
// where tokens are sent, so the secrets must not pass for one: what is compared is
// the file that was opened, whatever links led there.
func (t tokens) read(path string) (string, error) {
	token, err := t.open(path)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return "", store.As(store.Configuration, fmt.Errorf("reading token file %s: %w", path, err))
	}
	return token, nil
}

func (t tokens) open(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", errors.New("not an absolute path")
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("not a regular file (%s)", info.Mode().Type())
	}
	if secret, err := t.isSecret(info); err != nil {
		return "", err
	} else if secret {
		return "", errors.New("it is one of the signing secrets; put tokens elsewhere")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	switch {
	case len(data) > maxToken:
		return "", fmt.Errorf("larger than %d bytes; this is no token", maxToken)
	case token == "":
		return "", errors.New("it is empty")
	case strings.ContainsFunc(token, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", errors.New("it holds several lines or control characters; this is no token")
	}
	return token, nil
}

// isSecret says whether a file is one of those that this process signs with.
func (t tokens) isSecret(info os.FileInfo) (bool, error) {
	if t.secrets == "" {
		return false, nil
	}
	found := false
	// Any name in it, links followed: the keys and what an operator left beside.
	entries, err := os.ReadDir(t.secrets)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	for _, e := range entries {
		if s, err := os.Stat(filepath.Join(t.secrets, e.Name())); err == nil && os.SameFile(s, info) {
			found = true
		}
	}
	return found, nil
}
