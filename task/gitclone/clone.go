// Package gitclone fetches one commit of a git repository and writes its tree
// to a folder, byte for byte as the commit has it.
//
// It is no checkout: files are written from the objects themselves, so neither
// line ending conversion nor content filters nor attributes can make the folder
// differ from the commit, and no .git folder is left whose content would depend
// on the day. After writing, the git tree id is computed again from the folder
// alone and compared with the commit's; whoever gets the raw commit object with
// the folder can do the same.
//
// What a folder cannot carry back to the same tree id is refused by name:
// submodules, and modes that git has stopped writing. Only http and https are
// spoken.
package gitclone

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// maxCommit bounds a commit object; signatures and messages are far below.
const maxCommit = 1 << 20

// Options say what to clone where. URL, Tree, Commit and Work are required.
type Options struct {
	URL string
	// Revision is a branch, a tag, a full ref name or a full commit id; empty
	// is the repository's default branch.
	Revision string
	// Depth is how many commits to fetch; 0 is the whole history. The tree is
	// the same either way.
	Depth int
	// Tree is the folder to write, which must not exist or be empty.
	Tree string
	// Commit is the file to write the raw commit object to, without git's
	// header: what `git cat-file commit` prints.
	Commit string
	// Work is a folder for the object store, which is removed afterwards.
	Work string
	// Username and Password are for repositories that ask; both may be empty.
	Username, Password string
	// Log receives progress; required.
	Log io.Writer
}

// Result is what was cloned.
type Result struct {
	URL       string
	Ref       string // ref it was found under; empty for a commit id alone
	Commit    string // full id
	Tree      string // git tree id, checked against the folder written
	Committed time.Time
	Files     int
	LFS       bool // an attribute file mentions git-lfs: those files are pointers
}

var fullID = regexp.MustCompile(`^[0-9a-f]{40}$`)

// Clone fetches the revision and writes its tree and commit object. It fails
// when the revision is not there or names two things, when the tree holds what
// cannot be written faithfully, and when what was written does not hash to the
// commit's tree. On an error nothing written may be used.
func Clone(ctx context.Context, o Options) (*Result, error) {
	if o.Tree == "" || o.Commit == "" || o.Work == "" || o.Log == nil {
		return nil, errors.New("cloning: Tree, Commit, Work and Log must be set")
	}
	if err := checkURL(o.URL); err != nil {
		return nil, fmt.Errorf("cloning: %w", err)
	}
	if err := os.MkdirAll(o.Work, 0o755); err != nil {
		return nil, fmt.Errorf("cloning: %w", err)
	}
	objects, err := os.MkdirTemp(o.Work, "git-")
	if err != nil {
		return nil, fmt.Errorf("cloning: %w", err)
	}
	defer os.RemoveAll(objects)
	store := filesystem.NewStorage(osfs.New(objects), cache.NewObjectLRUDefault())

	res, err := clone(ctx, o, store)
	if err != nil {
		return nil, fmt.Errorf("cloning %s: %w", o.URL, err)
	}
	return res, nil
}

func clone(ctx context.Context, o Options, store *filesystem.Storage) (*Result, error) {
	f := fetcher{
		remote: git.NewRemote(store, &config.RemoteConfig{Name: "origin", URLs: []string{o.URL}}),
		store:  store,
		depth:  o.Depth,
		log:    o.Log,
	}
	if o.Username != "" || o.Password != "" {
		f.auth = &githttp.BasicAuth{Username: o.Username, Password: o.Password}
	}
	ref, id, err := f.fetch(ctx, o.Revision)
	if err != nil {
		return nil, err
	}
	commit, err := object.GetCommit(store, id)
	if err != nil {
		return nil, fmt.Errorf("reading commit %s: %w", id, err)
	}
	raw, err := rawCommit(store, id)
	if err != nil {
		return nil, err
	}
	res := &Result{URL: o.URL, Ref: ref, Commit: id.String(), Tree: commit.TreeHash.String(), Committed: commit.Committer.When}
	w, err := newWriter(store, o.Tree)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	if err := w.tree(ctx, commit.TreeHash, "", 0); err != nil {
		return nil, err
	}
	res.Files, res.LFS = w.files, w.lfs
	written, err := TreeID(o.Tree)
	if err != nil {
		return nil, err
	}
	if written != res.Tree {
		return nil, fmt.Errorf("the folder written has git tree %s, but commit %s has %s: it holds what a folder cannot carry; hint: git fsck names it", written, id, res.Tree)
	}
	if err := os.WriteFile(o.Commit, raw, 0o644); err != nil {
		return nil, err
	}
	return res, nil
}

// checkURL admits what this package can fetch. Credentials in a URL would end
// in parameters, logs and provenance.
func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		return errors.New("the repository's url does not parse")
	}
	if u.User != nil {
		return errors.New("the repository's url holds credentials; hint: bind workspace basic-auth instead")
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return fmt.Errorf("url %q is not supported: only https:// and http:// are", s)
	case u.Host == "":
		return fmt.Errorf("url %q names no host", s)
	}
	return nil
}

// rawCommit reads the commit object's bytes and makes sure that they have its id.
func rawCommit(store *filesystem.Storage, id plumbing.Hash) ([]byte, error) {
	obj, err := store.EncodedObject(plumbing.CommitObject, id)
	if err != nil {
		return nil, fmt.Errorf("reading commit %s: %w", id, err)
	}
	r, err := obj.Reader()
	if err != nil {
		return nil, fmt.Errorf("reading commit %s: %w", id, err)
	}
	defer r.Close()
	raw, err := io.ReadAll(io.LimitReader(r, maxCommit+1))
	if err != nil {
		return nil, fmt.Errorf("reading commit %s: %w", id, err)
	}
	if len(raw) > maxCommit {
		return nil, fmt.Errorf("commit %s is larger than %d bytes", id, maxCommit)
	}
	if got := plumbing.ComputeHash(plumbing.CommitObject, raw); got != id {
		return nil, fmt.Errorf("commit %s hashes to %s", id, got)
	}
	return raw, nil
}

// fetcher brings one revision into a store.
type fetcher struct {
	remote *git.Remote
	store  *filesystem.Storage
	auth   transport.AuthMethod
	depth  int
	log    io.Writer
}

// local is the ref that a fetched commit gets in our store.
const local = "refs/assay/source"

// fetch returns the commit that revision names, now in the store, and the ref
// it was found under.
func (f *fetcher) fetch(ctx context.Context, revision string) (ref string, id plumbing.Hash, err error) {
	refs, err := f.remote.ListContext(ctx, &git.ListOptions{Auth: f.auth, PeelingOption: git.AppendPeeled})
	if err != nil {
		return "", id, fmt.Errorf("listing refs: %w", err)
	}
	ads := advertised(refs)
	if fullID.MatchString(revision) {
		return f.fetchID(ctx, ads, plumbing.NewHash(revision))
	}
	name, err := resolve(ads, revision)
	if err != nil {
		return "", id, err
	}
	fmt.Fprintf(f.log, "fetching %s\n", name)
	if err := f.get(ctx, name+":"+local, f.depth); err != nil {
		return "", id, fmt.Errorf("fetching %s: %w", name, err)
	}
	id, err = f.peel(local)
	return name, id, err
}

// fetchID brings a commit by its id: by a ref that points at it, else by asking
// for the id, which not every server allows, else with everything there is.
func (f *fetcher) fetchID(ctx context.Context, ads map[string]plumbing.Hash, want plumbing.Hash) (string, plumbing.Hash, error) {
	if name := pointing(ads, want); name != "" {
		fmt.Fprintf(f.log, "fetching %s, which is at %s\n", name, want)
		if err := f.get(ctx, name+":"+local, f.depth); err == nil {
			if id, err := f.peel(local); err == nil && id == want {
				return name, id, nil
			}
		}
		// The ref moved between listing and fetching.
	}
	fmt.Fprintf(f.log, "fetching %s by its id\n", want)
	if err := f.get(ctx, want.String()+":"+local, f.depth); err == nil {
		id, err := f.peel(local)
		return "", id, err
	}
	fmt.Fprintln(f.log, "the server does not give commits by id: fetching all branches and tags")
	for _, spec := range []string{"+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"} {
		if err := f.get(ctx, spec, 0); err != nil && !errors.Is(err, transport.ErrEmptyUploadPackRequest) {
			return "", want, fmt.Errorf("fetching all refs: %w", err)
		}
	}
	if _, err := object.GetCommit(f.store, want); err != nil {
		return "", want, fmt.Errorf("commit %s is on no branch or tag of the repository", want)
	}
	return "", want, nil
}

func (f *fetcher) get(ctx context.Context, spec string, depth int) error {
	err := f.remote.FetchContext(ctx, &git.FetchOptions{
		RefSpecs: []config.RefSpec{config.RefSpec(spec)},
		Depth:    depth,
		Auth:     f.auth,
		Tags:     git.NoTags,
		Force:    true,
	})
	var none git.NoMatchingRefSpecError
	switch {
	case errors.Is(err, git.NoErrAlreadyUpToDate):
		return nil
	case errors.As(err, &none) && spec[0] == '+':
		return nil // a repository without tags
	}
	return err
}

// peel follows annotated tags from a ref of the store to a commit.
func (f *fetcher) peel(name string) (plumbing.Hash, error) {
	ref, err := f.store.Reference(plumbing.ReferenceName(name))
	if err != nil {
		return plumbing.ZeroHash, err
	}
	id := ref.Hash()
	for range 16 {
		obj, err := f.store.EncodedObject(plumbing.AnyObject, id)
		if err != nil {
			return plumbing.ZeroHash, fmt.Errorf("reading %s: %w", id, err)
		}
		switch obj.Type() {
		case plumbing.CommitObject:
			return id, nil
		case plumbing.TagObject:
			tag, err := object.GetTag(f.store, id)
			if err != nil {
				return plumbing.ZeroHash, fmt.Errorf("reading tag %s: %w", id, err)
			}
			id = tag.Target
		default:
			return plumbing.ZeroHash, fmt.Errorf("%s is a %s, not a commit", id, obj.Type())
		}
	}
	return plumbing.ZeroHash, errors.New("tags point at tags, more than 16 deep")
}

// emptyDir makes the folder, and fails when it is there and holds anything.
func emptyDir(path string) error {
	entries, err := os.ReadDir(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return os.MkdirAll(path, 0o755)
	case err != nil:
		return err
	case len(entries) > 0:
		return fmt.Errorf("folder %s is not empty: it holds %s", path, filepath.Base(entries[0].Name()))
	}
	return nil
}
