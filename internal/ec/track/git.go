package track

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/storer"
)

// addFiles adds files in git, each at its revision or, where latest is allowed, at
// the last commit that changed it.
func addFiles(ctx context.Context, l list, refs []string, latest bool) error {
	have := clones{}
	defer have.remove()
	for _, s := range refs {
		at := strings.LastIndex(s, "//")
		if at <= strings.Index(s, "//") {
			return fmt.Errorf("expected %q to contain the `//` to separate the repository from the path, e.g. git+https://github.com/org/repository//task/0.1/task.yaml@f0cacc1a", s)
		}
		repository, rest := s[:at], s[at+2:]
		path, revision, found := strings.Cut(rest, "@")
		if !found {
			if !latest {
				return fmt.Errorf("expected %q to contain the revision information following the `@`, e.g. git+https://github.com/org/repository//task/0.1/task.yaml@f0cacc1a, to fetch the latest revision from a remote URL provide the --freshen parameter", s)
			}
			var err error
			if revision, err = have.last(ctx, strings.TrimPrefix(repository, "git+"), path); err != nil {
				return fmt.Errorf("finding the last change of %s: %w", s, err)
			}
		}
		l.add(repository+"//"+path, revision)
	}
	return nil
}

// clones are repositories in temporary folders, by their address.
type clones map[string]*clone

type clone struct {
	repo   *git.Repository
	folder string
}

func (c clones) remove() {
	for _, x := range c {
		_ = os.RemoveAll(x.folder) // nobody needs it
	}
}

func (c clones) get(ctx context.Context, url string) (*git.Repository, error) {
	if x := c[url]; x != nil {
		return x.repo, nil
	}
	folder, err := os.MkdirTemp("", "ec-git")
	if err != nil {
		return nil, err
	}
	c[url] = &clone{folder: folder}
	c[url].repo, err = git.PlainCloneContext(ctx, folder, true, &git.CloneOptions{
		URL: url, Tags: git.NoTags, SingleBranch: true, InsecureSkipTLS: os.Getenv("GIT_SSL_NO_VERIFY") == "true",
	})
	if err != nil {
		delete(c, url)
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return c[url].repo, nil
}

// last is the newest commit of the default branch, merges aside, that changed what
// is at path and left something there.
func (c clones) last(ctx context.Context, url, path string) (string, error) {
	repo, err := c.get(ctx, url)
	if err != nil {
		return "", err
	}
	commits, err := repo.Log(&git.LogOptions{Order: git.LogOrderCommitterTime})
	if err != nil {
		return "", err
	}
	defer commits.Close()
	found := ""
	err = commits.ForEach(func(commit *object.Commit) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if commit.NumParents() > 1 {
			return nil
		}
		now, err := entry(commit, path)
		if err != nil || now.IsZero() {
			return err
		}
		var before plumbing.Hash
		if commit.NumParents() == 1 {
			parent, err := commit.Parent(0)
			if err != nil {
				return err
			}
			if before, err = entry(parent, path); err != nil {
				return err
			}
		}
		if now == before {
			return nil
		}
		found = commit.ID().String()
		return storer.ErrStop
	})
	if err == nil && found == "" {
		err = fmt.Errorf("unable to find any commits for path: %q", path)
	}
	return found, err
}

// entry is the hash of what is at path, zero if nothing is.
func entry(c *object.Commit, path string) (plumbing.Hash, error) {
	tree, err := c.Tree()
	if err != nil {
		return plumbing.ZeroHash, err
	}
	e, err := tree.FindEntry(path)
	if errors.Is(err, object.ErrEntryNotFound) || errors.Is(err, object.ErrDirectoryNotFound) {
		return plumbing.ZeroHash, nil
	}
	if err != nil {
		return plumbing.ZeroHash, err
	}
	return e.Hash, nil
}
