package source

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Local reads files and folders of this machine, anew at each call. Its zero value
// takes relative addresses from the working folder.
type Local struct {
	// Base is the folder that relative addresses are relative to.
	Base string
}

var _ Fetcher = Local{}

// Kind is KindOf, except that a bare name (github.com/org/repo, quay.io/org/repo) is a
// file or a folder if there is one by that name, as Conforma has it.
func (l Local) Kind(address string) (Kind, error) {
	kind, bare, err := kindOf(address)
	if err != nil {
		return "", err
	}
	if bare && kind != File {
		if _, err := os.Stat(filepath.Join(l.Base, address)); err == nil {
			return File, nil
		}
	}
	return kind, nil
}

// Fetch implements Fetcher. It fails on what is no file and no folder, on addresses
// that take a network, and beyond the bounds of Open.
func (l Local) Fetch(ctx context.Context, address string) (*Tree, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	kind, err := l.Kind(address)
	if err != nil {
		return nil, err
	}
	if kind != File {
		return nil, fmt.Errorf("source %q: %s sources are not fetched here; download it (`assay policy vendor` does) and name the folder, for example ./policy", address, kind)
	}
	p, err := Path(l.Base, address)
	if err != nil {
		return nil, err
	}
	t, err := Open(p)
	if err != nil {
		return nil, fmt.Errorf("source %q: %w", address, err)
	}
	t.Address, t.Pinned = address, "file::"+strings.TrimPrefix(strings.TrimPrefix(address, "file::"), "file://")
	return t, nil
}
