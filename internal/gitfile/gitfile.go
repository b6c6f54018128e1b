// Package gitfile reads single files of single commits, of a repository on this
// machine or at an address. A commit's id covers all that it holds, so where the files
// come from need not be trusted.
package gitfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/storage/memory"

	"assay.dev/assay/verify/workflow"
)

// Repository is a repository at hand. It is safe for concurrent use.
type Repository struct {
	name string
	url  string // empty for a folder

	mu   sync.Mutex
	repo *git.Repository // guarded by mu, as go-git asks
	have map[string]bool // guarded by mu: commits that were fetched
}

var _ workflow.Repository = (*Repository)(nil)

// Open takes a folder with a repository, bare or not, or an http or https address,
// from which commits are fetched as they are asked for, each without its history. It
// fails if the folder has no repository; addresses are not tried yet.
func Open(where string) (*Repository, error) {
	if strings.HasPrefix(where, "https://") || strings.HasPrefix(where, "http://") {
		repo, err := git.Init(memory.NewStorage(), nil)
		if err != nil {
			return nil, fmt.Errorf("opening repository %s: %w", where, err)
		}
		return &Repository{name: where, url: where, repo: repo, have: map[string]bool{}}, nil
	}
	if strings.Contains(where, "://") {
		return nil, fmt.Errorf("opening repository %s: want a folder, or an address with https://", where)
	}
	if _, err := os.Stat(where); err != nil {
		return nil, fmt.Errorf("opening repository: %w", err)
	}
	repo, err := git.PlainOpenWithOptions(where, &git.PlainOpenOptions{DetectDotGit: true})
	if err != nil {
		return nil, fmt.Errorf("opening repository %s: %w", where, err)
	}
	return &Repository{name: where, repo: repo}, nil
}

var commitForm = regexp.MustCompile(`^[0-9a-f]{40}$`)

// File implements workflow.Repository.
func (r *Repository) File(ctx context.Context, commit, path string, max int64) ([]byte, error) {
	b, err := r.file(ctx, commit, path, max)
	if err != nil {
		return nil, fmt.Errorf("reading %s of commit %s in %s: %w", path, commit, r.name, err)
	}
	return b, nil
}

func (r *Repository) file(ctx context.Context, commit, path string, max int64) ([]byte, error) {
	if !commitForm.MatchString(commit) {
		return nil, errors.New("it is no full commit id (SHA-1)")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.fetch(ctx, commit); err != nil {
		return nil, err
	}
	raw, err := r.object(plumbing.CommitObject, plumbing.NewHash(commit), maxObject)
	if err != nil {
		return nil, fmt.Errorf("the commit is %w", err)
	}
	line, _, ok := bytes.Cut(raw, []byte("\n"))
	id, isTree := strings.CutPrefix(string(line), "tree ")
	if !ok || !isTree || !commitForm.MatchString(id) {
		return nil, errors.New("the commit names no tree")
	}
	at := plumbing.NewHash(id)
	parts := strings.Split(path, "/")
	for i, part := range parts {
		tree, err := r.object(plumbing.TreeObject, at, maxObject)
		if err != nil {
			return nil, fmt.Errorf("folder %q is %w", strings.Join(parts[:i], "/"), err)
		}
		mode, hash, ok := entry(tree, part)
		if folder := mode == "40000"; !ok || folder != (i < len(parts)-1) || !folder && mode != "100644" && mode != "100755" {
			return nil, fmt.Errorf("the file is %w", workflow.ErrNotFound)
		}
		at = hash
	}
	b, err := r.object(plumbing.BlobObject, at, max)
	if err != nil {
		return nil, fmt.Errorf("the file is %w", err)
	}
	return b, nil
}

// maxObject bounds commits and trees.
const maxObject = 16 << 20

// object reads an object whose bytes have its id: object stores are not believed.
func (r *Repository) object(kind plumbing.ObjectType, id plumbing.Hash, max int64) ([]byte, error) {
	o, err := r.repo.Storer.EncodedObject(kind, id)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return nil, workflow.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("unreadable: %w", err)
	}
	if o.Size() > max {
		return nil, fmt.Errorf("too large: %d bytes, at most %d are read", o.Size(), max)
	}
	rd, err := o.Reader()
	if err != nil {
		return nil, fmt.Errorf("unreadable: %w", err)
	}
	b, err := io.ReadAll(io.LimitReader(rd, max+1))
	if err := errors.Join(err, rd.Close()); err != nil {
		return nil, fmt.Errorf("unreadable: %w", err)
	}
	if plumbing.ComputeHash(kind, b) != id {
		return nil, fmt.Errorf("not what its id %s says", id)
	}
	return b, nil
}

// entry finds a name in a tree object: mode, space, name, NUL, id.
func entry(tree []byte, name string) (mode string, id plumbing.Hash, ok bool) {
	for len(tree) > 0 {
		head, rest, found := bytes.Cut(tree, []byte{0})
		if !found || len(rest) < len(id) {
			return "", id, false
		}
		m, n, _ := strings.Cut(string(head), " ")
		if n == name {
			copy(id[:], rest)
			return m, id, true
		}
		tree = rest[len(id):]
	}
	return "", id, false
}

// fetch gets one commit from an address; folders have it or not.
func (r *Repository) fetch(ctx context.Context, commit string) error {
	if r.url == "" || r.have[commit] {
		return nil
	}
	remote := git.NewRemote(r.repo.Storer, &config.RemoteConfig{Name: "anonymous", URLs: []string{r.url}})
	err := remote.FetchContext(ctx, &git.FetchOptions{
		RefSpecs: []config.RefSpec{config.RefSpec(commit + ":refs/fetched/" + commit)}, Depth: 1, Tags: git.NoTags,
	})
	if err != nil && !errors.Is(err, git.NoErrAlreadyUpToDate) {
		return fmt.Errorf("fetching: %w", err)
	}
	r.have[commit] = true
	return nil
}
