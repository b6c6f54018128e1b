package fetch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/policy/source"
)

// LockName is what a lock is called in a folder.
const LockName = "policy.lock.json"

const lockVersion = 1

// Lock says what addresses stood for when they were looked at.
type Lock struct {
	Version int `json:"version"`
	// Policy is the file with the policy's configuration, if the lock lies with what
	// it locks (see Vendor).
	Policy string `json:"policy,omitempty"`
	// Sources are by address, without credentials.
	Sources map[string]Locked `json:"sources"`

	dir string // where it lies
}

// Locked is what one address stood for.
type Locked struct {
	Pinned string `json:"pinned"`
	Digest string `json:"digest"` // source.Tree.Digest
	// Path is where the files lie, relative to the lock, if they lie with it.
	Path string `json:"path,omitempty"`
}

// ReadLock reads a lock. It fails on what is none: unknown members, another version,
// digests that are none, paths that lead elsewhere.
func ReadLock(file string) (*Lock, error) {
	raw, err := source.ReadFile(file, 16<<20)
	if err != nil {
		return nil, fmt.Errorf("reading the lock: %w", err)
	}
	l, err := ParseLock(raw)
	if err != nil {
		return nil, fmt.Errorf("reading the lock %s: %w", file, err)
	}
	l.dir = filepath.Dir(file)
	return l, nil
}

// ParseLock is ReadLock of bytes.
func ParseLock(raw []byte) (*Lock, error) {
	if err := strictjson.Check(raw, 16<<20); err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	l := new(Lock)
	if err := dec.Decode(l); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows it")
	}
	if l.Version != lockVersion {
		return nil, fmt.Errorf("its version is %d, and %d is read here", l.Version, lockVersion)
	}
	if l.Policy != "" && checkName(l.Policy) != nil {
		return nil, fmt.Errorf("policy %q is no file beside it", l.Policy)
	}
	for address, e := range l.Sources {
		switch {
		case e.Pinned == "":
			return nil, fmt.Errorf("the source %q is not pinned", address)
		case !sha256Form.MatchString(e.Digest):
			return nil, fmt.Errorf("the digest %q of source %q is none (sha256:…)", e.Digest, address)
		case e.Path != "" && checkName(e.Path) != nil:
			return nil, fmt.Errorf("the path %q of source %q leads elsewhere", e.Path, address)
		}
	}
	return l, nil
}

// beside is the entry for an absolute path of what lies with the lock, which names it
// from its own folder. Package policy asks so, for configurations have folders of their
// own.
func (l *Lock) beside(address string) (Locked, bool) {
	dir, err := filepath.Abs(l.dir)
	if err != nil || l.dir == "" || !filepath.IsAbs(address) {
		return Locked{}, false
	}
	rel, err := filepath.Rel(dir, address)
	if err != nil {
		return Locked{}, false
	}
	e, ok := l.Sources["./"+filepath.ToSlash(rel)]
	return e, ok
}

// find looks an address up: as it is written, or as the path of what lies with the lock.
func (l *Lock) find(base, address string) (Locked, bool) {
	if e, ok := l.Sources[Redacted(address)]; ok {
		return e, true
	}
	if kind, err := (source.Local{Base: base}).Kind(address); err != nil || kind != source.File || l.dir == "" {
		return Locked{}, false
	}
	p, err := source.Path(base, address)
	if err != nil {
		return Locked{}, false
	}
	if p, err = filepath.Abs(p); err != nil {
		return Locked{}, false
	}
	dir, err := filepath.Abs(l.dir)
	if err != nil {
		return Locked{}, false
	}
	for _, e := range l.Sources {
		if e.Path != "" && filepath.Join(dir, filepath.FromSlash(e.Path)) == p {
			return e, true
		}
	}
	return Locked{}, false
}

// Write writes a lock, whole or not at all.
func (l *Lock) Write(file string) error {
	raw, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the lock: %w", err)
	}
	return writeFile(file, append(raw, '\n'))
}

// writeFile replaces a file in one step.
func writeFile(file string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".tmp-")
	if err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	if err := errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	if err := os.Rename(f.Name(), file); err != nil {
		return fmt.Errorf("writing %s: %w", file, err)
	}
	return nil
}

func exists(p string) (bool, error) {
	_, err := os.Stat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
