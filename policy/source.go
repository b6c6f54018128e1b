package policy

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Bounds of a policy on disk. Policies are the operator's own, so these only
// keep a wrong path (/, a build folder) from being read to its end.
const (
	maxFileBytes  = 32 << 20
	maxTotalBytes = 256 << 20
	maxFiles      = 20000
)

// file is one file of a policy, read once.
type file struct {
	path  string // as digested: relative to the policy folder, with slashes
	bytes []byte
}

// reader reads the files that sources name, and counts them.
type reader struct {
	base  string // folder that relative sources are relative to
	skip  string // the configuration file itself, which is no data
	files int
	bytes int64
}

func isRego(name string) bool {
	// Tests stand beside rules by OPA's convention and are no part of a policy.
	return strings.HasSuffix(name, ".rego") && !strings.HasSuffix(name, "_test.rego")
}

func isData(name string) bool {
	switch filepath.Ext(name) {
	case ".json", ".yaml", ".yml":
		return true
	}
	return false
}

// remote says what kind of source needs a network, or "".
func remote(source string) string {
	switch {
	case strings.HasPrefix(source, "git::"), strings.HasPrefix(source, "git://"), strings.HasPrefix(source, "git@"):
		return "git"
	case strings.HasPrefix(source, "oci::"), strings.HasPrefix(source, "oci://"):
		return "oci"
	case strings.HasPrefix(source, "https://"), strings.HasPrefix(source, "http://"), strings.HasPrefix(source, "https::"), strings.HasPrefix(source, "http::"):
		return "http"
	}
	for _, host := range []string{"github.com/", "gitlab.com/", "bitbucket.org/"} {
		if strings.HasPrefix(source, host) {
			return "git"
		}
	}
	for _, host := range []string{"quay.io/", "gcr.io/", "ghcr.io/", "docker.io/", "registry.gitlab.com/"} {
		if strings.HasPrefix(source, host) {
			return "oci"
		}
	}
	return ""
}

// locate turns a source of the configuration into a path on this machine.
func (r *reader) locate(source string) (string, error) {
	if kind := remote(source); kind != "" {
		return "", fmt.Errorf("source %q: %s sources are not fetched; download it and name the folder (for example ./rules)", source, kind)
	}
	p := strings.TrimPrefix(strings.TrimPrefix(source, "file::"), "file://")
	if i := strings.Index(p, "::"); i >= 0 {
		return "", fmt.Errorf("source %q: kind %q is unknown; files and folders are accepted", source, p[:i])
	}
	if p == "" {
		return "", errors.New("source is empty")
	}
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("locating source %q: %w", source, err)
		}
		p = filepath.Join(home, rest)
	}
	if !filepath.IsAbs(p) {
		p = filepath.Join(r.base, p)
	}
	return p, nil
}

// read returns the files below the source that want accepts, in lexical order.
func (r *reader) read(source string, want func(name string) bool) ([]file, error) {
	root, err := r.locate(source)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(root)
	if err != nil {
		return nil, fmt.Errorf("reading source %q: %w", source, err)
	}
	if !info.IsDir() {
		if !want(root) {
			return nil, nil
		}
		f, err := r.file(root)
		if err != nil {
			return nil, err
		}
		return []file{f}, nil
	}
	var out []file
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case p != root && strings.HasPrefix(d.Name(), "."):
			// .git, and the ..data of mounted ConfigMaps, whose files are
			// linked to from beside it.
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir() || !want(d.Name()):
			return nil
		}
		f, err := r.file(p)
		if err != nil {
			return err
		}
		out = append(out, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading source %q: %w", source, err)
	}
	return slices.DeleteFunc(out, func(f file) bool { return f.bytes == nil }), nil
}

// file reads one file. The configuration file yields no bytes.
func (r *reader) file(p string) (file, error) {
	if r.skip != "" && sameFile(p, r.skip) {
		return file{}, nil
	}
	if r.files++; r.files > maxFiles {
		return file{}, fmt.Errorf("reading policy: more than %d files; is the path right?", maxFiles)
	}
	raw, err := readBounded(p)
	if err != nil {
		return file{}, err
	}
	if r.bytes += int64(len(raw)); r.bytes > maxTotalBytes {
		return file{}, fmt.Errorf("reading policy: more than %d MiB; is the path right?", maxTotalBytes>>20)
	}
	name := p
	if rel, err := filepath.Rel(r.base, p); err == nil {
		name = filepath.ToSlash(rel)
	}
	return file{path: name, bytes: raw}, nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

// readBounded reads a regular file of at most maxFileBytes. It never returns
// nil bytes without an error.
func readBounded(p string) ([]byte, error) {
	info, err := os.Stat(p)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading %s: not a regular file", p)
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", p, err)
	}
	if len(raw) > maxFileBytes {
		return nil, fmt.Errorf("reading %s: larger than %d MiB", p, maxFileBytes>>20)
	}
	if raw == nil {
		raw = []byte{}
	}
	return raw, nil
}
