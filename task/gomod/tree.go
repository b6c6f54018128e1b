package gomod

import (
	"archive/zip"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/mod/module"
	"golang.org/x/mod/sumdb/dirhash"
	modzip "golang.org/x/mod/zip"
)

// ProxyDir is the folder of a tree that GOPROXY=file://… can name.
const ProxyDir = "deps/gomod/pkg/mod/cache/download"

// BOMFile is the bill of materials of a tree.
const BOMFile = "bom.json"

// maxGoMod bounds a go.mod file; the go command allows 16 MiB.
const maxGoMod = 16 << 20

// Module is one verified module of a tree.
type Module struct {
	Path, Version string
	// Sum is the h1 sum of the module's content; empty when only its go.mod is
	// there, as for modules that the build graph mentions and nothing uses.
	Sum string
	// GoModSum is the h1 sum of its go.mod.
	GoModSum string
}

// Verify hashes every go.mod and zip of the tree and compares it with sums. It
// returns the modules, sorted, and as extra the paths of files that no sum
// speaks of: files that are not a module's, and modules that sums does not
// pin, which a build with -mod=readonly cannot use. A module that is pinned to
// other bytes is a *MismatchError.
func Verify(tree string, sums Sums) (mods []Module, extra []string, err error) {
	c := collector{sums: sums, byVersion: map[module.Version]*Module{}}
	proxy := filepath.Join(tree, filepath.FromSlash(ProxyDir))
	err = filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(tree, path)
		if err != nil {
			return err
		}
		if rel == BOMFile {
			return nil
		}
		in, err := filepath.Rel(proxy, path)
		if err != nil || strings.HasPrefix(in, "..") || !d.Type().IsRegular() {
			extra = append(extra, filepath.ToSlash(rel))
			return nil
		}
		v, kind := splitName(filepath.ToSlash(in))
		if kind == "" {
			extra = append(extra, filepath.ToSlash(rel))
			return nil
		}
		err = c.add(v, kind, path)
		if unpinned := (*UnpinnedError)(nil); errors.As(err, &unpinned) {
			extra = append(extra, filepath.ToSlash(rel))
			return nil
		}
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("verifying prefetched modules: %w", err)
	}
	return c.modules(), extra, nil
}

// collector gathers verified files into modules.
type collector struct {
	sums      Sums
	byVersion map[module.Version]*Module
}

// add verifies the file of one kind (mod or zip) of a module.
func (c *collector) add(v module.Version, kind, path string) error {
	var sum string
	var err error
	pinned := v
	switch kind {
	case "mod":
		pinned.Version += "/go.mod"
		sum, err = hashGoMod(path)
	case "zip":
		// Its structure first, so that hashing is bounded by the limits of a
		// module zip.
		if _, err = modzip.CheckZip(v, path); err == nil {
			sum, err = dirhash.HashZip(path, dirhash.Hash1)
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", v.Path, v.Version, err)
	}
	if err := c.sums.check(pinned, sum); err != nil {
		return err
	}
	m := c.byVersion[v]
	if m == nil {
		m = &Module{Path: v.Path, Version: v.Version}
		c.byVersion[v] = m
	}
	if kind == "mod" {
		m.GoModSum = sum
	} else {
		m.Sum = sum
	}
	return nil
}

func (c *collector) modules() []Module {
	var out []Module
	for _, m := range c.byVersion {
		out = append(out, *m)
	}
	slices.SortFunc(out, func(a, b Module) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Version, b.Version))
	})
	return out
}

// splitName takes the path of a file in a module proxy apart; kind is mod, zip
// or, for anything that is not a module's content, empty.
func splitName(name string) (v module.Version, kind string) {
	dir, file, ok := strings.Cut(name, "/@v/")
	if !ok || strings.Contains(file, "/") {
		return v, ""
	}
	base, kind, ok := cutLast(file, ".")
	if !ok || kind != "mod" && kind != "zip" {
		return v, ""
	}
	path, err := module.UnescapePath(dir)
	if err != nil {
		return v, ""
	}
	version, err := module.UnescapeVersion(base)
	if err != nil {
		return v, ""
	}
	return module.Version{Path: path, Version: version}, kind
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// hashGoMod is the sum that go.sum has for a go.mod file.
func hashGoMod(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxGoMod+1))
	if err != nil {
		return "", err
	}
	if len(data) > maxGoMod {
		return "", fmt.Errorf("go.mod is larger than %d bytes", maxGoMod)
	}
	return dirhash.Hash1([]string{"go.mod"}, func(string) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	})
}

// repack writes the content of the module zip src as dst in the one form that
// depends on nothing but the content: entries sorted by name, stored, without
// times or modes.
func repack(src, dst string) (err error) {
	r, err := zip.OpenReader(src)
	if err != nil {
		return err
	}
	defer r.Close()
	files := slices.Clone(r.File)
	slices.SortFunc(files, func(a, b *zip.File) int { return cmp.Compare(a.Name, b.Name) })
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
	}()
	w := zip.NewWriter(out)
	for _, f := range files {
		if strings.HasSuffix(f.Name, "/") {
			continue // go.sum does not pin folders
		}
		in, err := f.Open()
		if err != nil {
			return err
		}
		e, err := w.CreateHeader(&zip.FileHeader{Name: f.Name, Method: zip.Store})
		if err == nil {
			_, err = io.Copy(e, in)
		}
		in.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return w.Close()
}

// copyFile copies a regular file's content.
func copyFile(src, dst string) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	return os.WriteFile(dst, data, 0o644)
}
