package conforma

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// Bounds of a policy on disk, which keep a wrong path from being read to its end.
const (
	maxFileBytes  = 64 << 20
	maxTotalBytes = 512 << 20
	maxFiles      = 20000
)

// file is one file of a source.
type file struct {
	path  string // relative to its source
	bytes []byte
}

// reader reads sources, and counts.
type reader struct {
	files int
	bytes int64
}

// Remote says what kind of network a source's address needs (git, oci, http),
// or "" for files.
func Remote(source string) string {
	for prefix, kind := range map[string]string{
		"git::": "git", "git://": "git", "git@": "git", "oci::": "oci", "oci://": "oci",
		"https://": "http", "http://": "http", "https::": "http", "http::": "http",
	} {
		if strings.HasPrefix(source, prefix) {
			// An address of a git host is git even over https.
			if kind == "http" && gitHost(source) {
				return "git"
			}
			return kind
		}
	}
	if strings.HasPrefix(source, ".") || strings.HasPrefix(source, "/") || strings.HasPrefix(source, "~") || strings.HasPrefix(source, "file:") {
		return ""
	}
	if gitHost(source) || strings.HasSuffix(strings.SplitN(source, "?", 2)[0], ".git") {
		return "git"
	}
	host, _, _ := strings.Cut(source, "/")
	for _, h := range []string{"azurecr.io", "gcr.io", "registry.gitlab.com", "pkg.dev", "amazonaws.com", "quay.io"} {
		if host == h || strings.HasSuffix(host, "."+h) {
			return "oci"
		}
	}
	if strings.HasPrefix(host, "localhost:") || strings.HasPrefix(host, "127.0.0.1:") {
		return "oci"
	}
	return ""
}

func gitHost(source string) bool {
	for _, h := range []string{"github.com/", "gitlab.com/", "bitbucket.org/"} {
		if strings.Contains(source, h) {
			return true
		}
	}
	return false
}

// locate turns a source's address into a path.
func locate(source string) (string, error) {
	if kind := Remote(source); kind != "" {
		return "", fmt.Errorf("source %q: %s sources are not fetched; download it and name the folder, for example ./policy", source, kind)
	}
	p := strings.TrimPrefix(strings.TrimPrefix(source, "file::"), "file://")
	if i := strings.Index(p, "::"); i >= 0 {
		return "", fmt.Errorf("source %q: the kind %q is not known; files and folders are read", source, p[:i])
	}
	if p == "" {
		return "", errors.New("a source is empty")
	}
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("source %q: %w", source, err)
		}
		p = filepath.Join(home, rest)
	}
	return p, nil
}

// read returns the files at or below a source that want accepts, in lexical
// order.
func (r *reader) read(source string, want func(name string) bool) ([]file, error) {
	root, err := locate(source)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(root)
	if err != nil {
		return nil, fmt.Errorf("source %q: %w", source, err)
	}
	if !info.IsDir() {
		if !want(filepath.Base(root)) {
			return nil, nil
		}
		b, err := r.file(root)
		if err != nil {
			return nil, fmt.Errorf("source %q: %w", source, err)
		}
		return []file{{filepath.Base(root), b}}, nil
	}
	var out []file
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != root && (d.Name() == ".git" || strings.HasPrefix(d.Name(), "..")):
			return fs.SkipDir
		case d.IsDir() || strings.HasPrefix(d.Name(), "..") || !want(d.Name()):
			return nil
		}
		b, err := r.file(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		out = append(out, file{filepath.ToSlash(rel), b})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("source %q: %w", source, err)
	}
	return out, nil
}

func (r *reader) file(p string) ([]byte, error) {
	if r.files++; r.files > maxFiles {
		return nil, fmt.Errorf("more than %d files; is the path right?", maxFiles)
	}
	b, err := ReadFile(p, maxFileBytes)
	if err != nil {
		return nil, err
	}
	if r.bytes += int64(len(b)); r.bytes > maxTotalBytes {
		return nil, fmt.Errorf("more than %d MiB; is the path right?", maxTotalBytes>>20)
	}
	return b, nil
}

// ReadFile reads a regular file of at most limit bytes.
func ReadFile(p string, limit int64) ([]byte, error) {
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", p)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d MiB", p, limit>>20)
	}
	return b, nil
}

func isRego(name string) bool {
	name = strings.ToLower(name)
	return strings.HasSuffix(name, ".rego") && !strings.HasSuffix(name, "_test.rego")
}

func isData(name string) bool {
	switch filepath.Ext(name) {
	case ".json", ".yaml", ".yml":
		return true
	}
	return false
}

// parseData reads a data file, which has to be an object at its top.
func parseData(f file) (map[string]any, error) {
	raw := f.bytes
	if filepath.Ext(f.path) != ".json" {
		var err error
		if raw, err = yaml.YAMLToJSON(raw); err != nil {
			return nil, fmt.Errorf("parsing data file %s: %w", f.path, err)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("parsing data file %s: %w", f.path, err)
	}
	m, ok := v.(map[string]any)
	if !ok && v != nil {
		return nil, fmt.Errorf("parsing data file %s: it is not an object at its top", f.path)
	}
	return m, nil
}

// merge adds src to dst, map by map. One key with two values is an error.
func merge(dst, src map[string]any, at string) error {
	for k, v := range src {
		old, ok := dst[k]
		if !ok {
			dst[k] = v
			continue
		}
		a, aok := old.(map[string]any)
		b, bok := v.(map[string]any)
		if !aok || !bok {
			return fmt.Errorf("merge error: %s%s is given twice", at, k)
		}
		if err := merge(a, b, at+k+"."); err != nil {
			return err
		}
	}
	return nil
}
