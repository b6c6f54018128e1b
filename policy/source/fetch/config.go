package fetch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"assay.dev/assay/policy/source"
)

// maxConfig bounds a policy's configuration.
const maxConfig = 16 << 20

// configNames are where a configuration is looked for in a repository or an artifact,
// in this order, which is Conforma's.
var configNames = []string{".ec/policy.json", ".ec/policy.yaml", ".ec/policy.yml", "policy.json", "policy.yaml", "policy.yml"}

// Config is a policy's configuration as it was found. What it says is package spec's.
type Config struct {
	// Raw is the document.
	Raw []byte
	// File is where it lies on this machine.
	File string
	// Base is the folder that it lies in.
	Base string
	// Lock is the lock that lies beside it with what it locks, or nil; see Vendor.
	Lock *Lock
}

// ReadConfig reads a configuration: a file or a folder, or what f fetches from
// elsewhere: the first of .ec/policy.json, .yaml, .yml and policy.json, .yaml, .yml; a
// single file is taken whatever it is called. It fails if there is none.
func ReadConfig(ctx context.Context, f source.Fetcher, base, ref string) (*Config, error) {
	kind, err := source.Local{Base: base}.Kind(ref)
	if err != nil {
		return nil, err
	}
	file := ref
	if kind == source.File {
		if file, err = source.Path(base, ref); err != nil {
			return nil, err
		}
	} else {
		t, err := f.Fetch(ctx, ref)
		if err != nil {
			return nil, err
		}
		if file, err = only(t); err != nil {
			return nil, err
		}
	}
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the policy %s: no such file or folder (%w); name a policy configuration, or a folder with one or with rules", Redacted(ref), fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the policy %s: %w", Redacted(ref), err)
	}
	base = filepath.Dir(file)
	if info.IsDir() {
		base = file
		if file, err = choose(base); err != nil {
			return nil, fmt.Errorf("no suitable config file found at %s: %w", Redacted(ref), err)
		}
	}
	raw, err := source.ReadFile(file, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("reading the policy %s: %w", Redacted(ref), err)
	}
	c := &Config{Raw: raw, File: file, Base: base}
	l, err := ReadLock(filepath.Join(base, LockName))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case l.Policy == filepath.Base(file):
		c.Lock = l
	}
	return c, nil
}

// only is a tree's one file, or its folder if there are more.
func only(t *source.Tree) (string, error) {
	list, err := t.Files(source.IsData)
	if err != nil {
		return "", err
	}
	if len(list) == 1 {
		p := filepath.Join(t.Path, filepath.FromSlash(list[0].Path))
		if _, err := os.Stat(p); err == nil && filepath.Dir(p) == t.Path {
			return p, nil
		}
	}
	return t.Path, nil
}

// choose finds the configuration in a folder.
func choose(dir string) (string, error) {
	for _, name := range configNames {
		p := filepath.Join(dir, filepath.FromSlash(name))
		switch ok, err := exists(p); {
		case err != nil:
			return "", err
		case ok:
			return p, nil
		}
	}
	return "", fmt.Errorf("there is none of %v", configNames)
}
