package policy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"assay.dev/assay/policy/source"
)

// file is one file of a policy, read once.
type file struct {
	// path is as digested: relative to the policy's folder, with slashes, or behind
	// the address that it was fetched from.
	path  string
	abs   string
	bytes []byte
}

// reader reads the files that sources name, and keeps their trees.
type reader struct {
	fetcher source.Fetcher // nil: files only
	trees   []*source.Tree
	// sums are the digests that sources must have, by the address that the policy
	// names them by; nil: any. signed says whether somebody who may has signed.
	sums   map[string]string
	signed func(ctx context.Context, t *source.Tree) error
}

// read returns the files of a source that want accepts, in lexical order, but not
// the configuration that names the source.
func (r *reader) read(ctx context.Context, in *config, address string, want func(name string) bool) ([]file, error) {
	local, named := source.Local{Base: in.base}, address
	kind, err := local.Kind(address)
	if err != nil {
		return nil, err
	}
	fetcher := source.Fetcher(local)
	if r.fetcher != nil {
		fetcher = r.fetcher
		if kind == source.File {
			// The fetcher does not know whose folder a path is relative to.
			if address, err = localPath(in.base, address); err != nil {
				return nil, err
			}
			if address, err = filepath.Abs(address); err != nil {
				return nil, err
			}
		}
	}
	tree, err := fetcher.Fetch(ctx, address)
	if err != nil {
		return nil, err
	}
	if err := r.check(ctx, named, kind, tree); err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(r.trees, func(t *source.Tree) bool { return t.Address == tree.Address && t.Pinned == tree.Pinned }) {
		r.trees = append(r.trees, tree)
	}
	files, err := tree.Files(want)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(tree.Path)
	if err != nil {
		return nil, err
	}
	var out []file
	for _, f := range files {
		abs := tree.Path
		if info.IsDir() {
			abs = filepath.Join(tree.Path, filepath.FromSlash(f.Path))
		}
		if in.file != "" && sameFile(abs, in.file) {
			continue
		}
		name := address + "//" + f.Path
		if kind == source.File {
			name = abs
			if rel, err := filepath.Rel(in.base, abs); err == nil {
				name = filepath.ToSlash(rel)
			}
		}
		out = append(out, file{path: name, abs: abs, bytes: f.Bytes})
	}
	return out, nil
}

// check holds a source to what the policy demands of its sources.
func (r *reader) check(ctx context.Context, named string, kind source.Kind, t *source.Tree) error {
	if r.sums != nil {
		switch want, ok := r.sums[named]; {
		case !ok:
			return fmt.Errorf("source %q: assay.checksums does not list it; its digest is %s", named, t.Digest)
		case !strings.EqualFold(want, t.Digest):
			return fmt.Errorf("source %q: its digest is %s, and assay.checksums says %s", named, t.Digest, want)
		}
	}
	if r.signed != nil && kind == source.OCI {
		if err := r.signed(ctx, t); err != nil {
			return fmt.Errorf("source %q: %w", named, err)
		}
	}
	return nil
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}
