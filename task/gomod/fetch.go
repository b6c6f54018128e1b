package gomod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/mod/module"

	"assay.dev/assay/sbom"
)

// Fetcher downloads modules with the go command of a toolchain.
type Fetcher struct {
	// GoRoot is the toolchain's folder, as in GOROOT; required.
	GoRoot string
	// Proxy is GOPROXY; empty: the go command's own default.
	Proxy string
	// Work is a folder for the download cache, which is removed afterwards;
	// required.
	Work string
	// Env holds variables from outside that a download may need, such as
	// HTTPS_PROXY or SSL_CERT_FILE, as NAME=value. Everything else that the go
	// command reads from its environment is set here.
	Env []string
	// Log receives what the go command writes; required.
	Log io.Writer
}

// Fetch downloads what the packages of source pin, verifies it, and writes the
// tree to out, which must not exist or be empty. created is the time stated in
// the bill of materials. On an error out holds nothing that may be used.
func (f *Fetcher) Fetch(ctx context.Context, source string, pkgs []Package, out string, created time.Time) ([]Module, error) {
	if f.GoRoot == "" || f.Work == "" || f.Log == nil {
		return nil, errors.New("fetching modules: GoRoot, Work and Log must be set")
	}
	cache := filepath.Join(f.Work, "modcache")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("fetching modules: %w", err)
	}
	defer os.RemoveAll(cache)

	sums := Sums{}
	root, err := os.OpenRoot(source)
	if err != nil {
		return nil, fmt.Errorf("fetching modules: %w", err)
	}
	defer root.Close()
	for _, p := range pkgs {
		// Opened through the root: a link in the source must not lead the
		// download to another folder's go.mod.
		mod, err := root.Stat(filepath.Join(p.Path, "go.mod"))
		if err != nil || !mod.Mode().IsRegular() {
			return nil, fmt.Errorf("fetching modules: no go.mod in %q of the source", p.Path)
		}
		dir := filepath.Join(source, p.Path)
		s, err := ReadSums(filepath.Join(dir, "go.sum"))
		if err != nil {
			return nil, fmt.Errorf("fetching modules of %q: %w", p.Path, err)
		}
		if err := sums.Add(s); err != nil {
			return nil, fmt.Errorf("fetching modules of %q: %w", p.Path, err)
		}
		if err := f.download(ctx, dir, cache); err != nil {
			return nil, fmt.Errorf("fetching modules of %q: %w", p.Path, err)
		}
	}
	mods, err := export(filepath.Join(cache, "cache", "download"), out, sums)
	if err != nil {
		return nil, fmt.Errorf("fetching modules: %w", err)
	}
	bom, err := BOM(mods, created)
	if err != nil {
		return nil, fmt.Errorf("fetching modules: %w", err)
	}
	if err := os.WriteFile(filepath.Join(out, BOMFile), bom, 0o644); err != nil {
		return nil, fmt.Errorf("fetching modules: %w", err)
	}
	return mods, nil
}

// download fills the module cache for the module in dir.
func (f *Fetcher) download(ctx context.Context, dir, cache string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(f.GoRoot, "bin", "go"), "mod", "download")
	cmd.Dir = dir
	cmd.Stderr = f.Log
	cmd.Stdout = f.Log
	cmd.Env = append(Env(f.GoRoot, f.Work, cache), f.Env...)
	if f.Proxy != "" {
		cmd.Env = append(cmd.Env, "GOPROXY="+f.Proxy)
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("go mod download: %w", err)
	}
	return nil
}

// Env is the complete environment of a go command: nothing is inherited, so
// nothing outside the task's definition can change what it does. Sums are ours
// to check, and never looked up; the toolchain is the one in goroot, whatever
// go.mod asks for. There is no HOME on purpose: with one, the go command leaves
// a child behind that writes telemetry there.
func Env(goroot, work, modcache string) []string {
	return []string{
		"PATH=" + filepath.Join(goroot, "bin"),
		"GOENV=off",
		"GOCACHE=" + filepath.Join(work, "gocache"),
		"GOMODCACHE=" + modcache,
		"GOPATH=" + filepath.Join(work, "gopath"),
		"GOTMPDIR=" + work,
		"TMPDIR=" + work,
		"GOTOOLCHAIN=local",
		"GOWORK=off",
		"GOSUMDB=off",
		"GOVCS=*:off",
		"CGO_ENABLED=0",
		"GOFLAGS=-mod=readonly -modcacherw -trimpath -buildvcs=false",
	}
}

// export copies what sums pin from a download cache into the tree out. A file
// that is not pinned is an *UnpinnedError.
func export(download, out string, sums Sums) ([]Module, error) {
	proxy := filepath.Join(out, filepath.FromSlash(ProxyDir))
	if err := os.MkdirAll(proxy, 0o755); err != nil {
		return nil, err
	}
	c := collector{sums: sums, byVersion: map[module.Version]*Module{}}
	err := filepath.WalkDir(download, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path == download {
			return fs.SkipAll // nothing was needed
		}
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(download, path)
		if err != nil {
			return err
		}
		v, kind := splitName(filepath.ToSlash(rel))
		if kind == "" {
			return nil // locks, lists and such of the go command
		}
		if err := c.add(v, kind, path); err != nil {
			return err
		}
		dst := filepath.Join(proxy, rel)
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return err
		}
		if kind == "mod" {
			return copyFile(path, dst)
		}
		if err := repack(path, dst); err != nil {
			return fmt.Errorf("rewriting %s %s: %w", v.Path, v.Version, err)
		}
		// The sum of what leaves here, not of what it was made from.
		return c.add(v, kind, dst)
	})
	if err != nil {
		return nil, err
	}
	return c.modules(), nil
}

// BOM is the SPDX bill of materials of modules. Those of which only the go.mod
// is there contribute no code and are left out.
func BOM(mods []Module, created time.Time) ([]byte, error) {
	doc := &sbom.Document{Name: "prefetched Go modules", Created: created, Tool: "assay-task"}
	for _, m := range mods {
		if m.Sum == "" {
			continue
		}
		p, err := sbom.GoModule(m.Path, m.Version, m.Sum)
		if err != nil {
			return nil, err
		}
		doc.Packages = append(doc.Packages, p)
		doc.Relations = append(doc.Relations, sbom.Relation{From: sbom.DocumentID, Type: sbom.Describes, To: p.Key()})
	}
	return sbom.WriteSPDX(doc)
}
