// Package repotest keeps the repository's rules: a rule that nothing checks is
// forgotten, and a failing test explains itself better than a page does. Each
// message says what to do instead.
//
//	imports_test.go    which program and package may reach which: the design's
//	                   trust boundaries, drawn in the import graph
//	source_test.go     package docs, doc comments, no init, length, format
//	files_test.go      licence, example YAML, what no file may name
//	markdown_test.go   links resolve; the commands that documents show exist
//	commands_test.go   docs/commands.md is what the command tree says
//
// Where a rule stands in the way of something good, change the rule and say why
// in the commit; do not add an exception without a reason beside it.
package repotest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Module is the path of this repository's module.
const Module = "assay.dev/assay"

// Root finds the repository: the nearest folder above the working folder that
// has a go.mod. It fails outside of one.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the repository: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("finding the repository: no go.mod above the working folder")
		}
		dir = parent
	}
}

// Files lists the repository's files, relative to root: those that git tracks
// and those that it would add. Without git (a source archive) it is every file
// but those in folders whose name begins with a dot, and bin.
func Files(root string) ([]string, error) {
	if _, err := os.Stat(filepath.Join(root, ".git")); err != nil {
		return walk(root)
	}
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing the repository's files with git: %w", err)
	}
	var files []string
	for _, f := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		// What was deleted and not yet committed is listed too.
		if fi, err := os.Lstat(filepath.Join(root, f)); err == nil && fi.Mode().IsRegular() {
			files = append(files, f)
		}
	}
	return files, nil
}

func walk(root string) (files []string, err error) {
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch rel, _ := filepath.Rel(root, p); {
		case err != nil:
			return err
		case d.IsDir() && rel != "." && (strings.HasPrefix(d.Name(), ".") || rel == "bin"):
			return filepath.SkipDir
		case d.Type().IsRegular():
			files = append(files, filepath.ToSlash(rel))
		}
		return nil
	})
	return files, err
}

// Package is what `go list` says of one package.
type Package struct {
	ImportPath string
	Name       string
	Dir        string
	Imports    []string // direct
	Deps       []string // all, direct and not
	Standard   bool
}

// Graph is the module's packages and all that they import, by import path.
type Graph map[string]*Package

// Load asks `go list` for the graph of the repository at root, tests left out.
// It fails when a package does not resolve.
func Load(root string) (Graph, error) {
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Name,Dir,Imports,Deps,Standard", "./...")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("listing packages: %w: %s", err, stderr.String())
	}
	g := Graph{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(Package)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			return g, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading go list: %w", err)
		}
		g[p.ImportPath] = p
	}
}

// Own lists the module's packages below a folder of it, "" for all.
func (g Graph) Own(below string) []*Package {
	prefix := Module
	if below != "" {
		prefix += "/" + below
	}
	var out []*Package
	for path, p := range g {
		if path == prefix || strings.HasPrefix(path, prefix+"/") {
			out = append(out, p)
		}
	}
	return out
}

// Chain is one shortest way from a package to another, for messages: what to
// look at when a rule is broken. It is empty if there is none.
func (g Graph) Chain(from, to string) []string {
	before := map[string]string{from: ""}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		if at == to {
			var chain []string
			for ; at != ""; at = before[at] {
				chain = append([]string{at}, chain...)
			}
			return chain
		}
		p := g[at]
		if p == nil {
			continue
		}
		for _, next := range p.Imports {
			if _, seen := before[next]; !seen {
				before[next] = at
				queue = append(queue, next)
			}
		}
	}
	return nil
}
