package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	gogit "github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/transport"
	githttp "github.com/go-git/go-git/v5/plumbing/transport/http"
	gitssh "github.com/go-git/go-git/v5/plumbing/transport/ssh"

	"assay.dev/assay/policy/source"
)

// git fetches a folder of one commit.
func (f *Fetcher) git(ctx context.Context, address string) (*source.Tree, error) {
	a, err := parseGit(f.opts.Base, address)
	if err != nil {
		return nil, err
	}
	if a.url == nil {
		return f.gitFolder(ctx, a)
	}
	if a.commit() {
		if t, err := f.cache.get(a.key(a.ref), a.at(a.ref)); err == nil {
			return t, nil
		}
	}
	r := &gitRemote{f: f, a: a}
	var t *source.Tree
	for wait, n := f.opts.Retry.Wait, 0; ; n++ {
		t, err = r.tree(ctx)
		if err == nil || n >= f.opts.Retry.Max || !transient(err) || ctx.Err() != nil {
			return t, err
		}
		pause := wait + time.Duration(f.opts.Retry.Jitter*rand.Float64()*float64(wait))
		if most := f.opts.Retry.MaxWait; most > 0 {
			pause = min(pause, most)
		}
		if fac := f.opts.Retry.Factor; fac > 1 {
			wait = time.Duration(float64(wait) * fac)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// transientError is a failure that may be gone at the next try.
type transientError struct{ error }

func (e transientError) Unwrap() error { return e.error }

// permanent takes the mark away.
func permanent(err error) error {
	var t transientError
	if errors.As(err, &t) {
		return t.error
	}
	return err
}

func transient(err error) bool {
	var t transientError
	return errors.As(err, &t)
}

// gitFolder reads a repository of this machine: it is there, so nothing is copied but
// the files of the commit.
func (f *Fetcher) gitFolder(ctx context.Context, a *gitAddress) (*source.Tree, error) {
	repo, err := gogit.PlainOpenWithOptions(a.folder, &gogit.PlainOpenOptions{EnableDotGitCommonDir: true})
	if err != nil {
		return nil, fmt.Errorf("opening the repository %s: %w", a.folder, err)
	}
	var commit plumbing.Hash
	if a.commit() {
		commit = plumbing.NewHash(a.ref)
	} else {
		commit, err = resolve(a.ref, func(name string) (plumbing.Hash, bool) {
			r, err := repo.Reference(plumbing.ReferenceName(name), true)
			if err != nil {
				return plumbing.ZeroHash, false
			}
			return r.Hash(), true
		})
		if err != nil {
			return nil, err
		}
	}
	c, err := commitOf(repo.Storer, commit)
	if err != nil {
		return nil, err
	}
	key := a.key(c.Hash.String())
	if t, err := f.cache.get(key, a.at(c.Hash.String())); err == nil {
		return t, nil
	}
	return f.cache.put(ctx, key, a.at(c.Hash.String()), func(ctx context.Context, p *place) error {
		return export(ctx, repo.Storer, c, a.subdir, p)
	})
}

// resolve finds a ref as git does: as it is, then among tags, then among branches.
func resolve(ref string, find func(string) (plumbing.Hash, bool)) (plumbing.Hash, error) {
	if ref == "" {
		if h, ok := find("HEAD"); ok {
			return h, nil
		}
		return plumbing.ZeroHash, errors.New("the repository has no HEAD; name a branch (?ref=main)")
	}
	for _, rule := range []string{"%s", "refs/%s", "refs/tags/%s", "refs/heads/%s"} {
		if h, ok := find(fmt.Sprintf(rule, ref)); ok {
			return h, nil
		}
	}
	return plumbing.ZeroHash, fmt.Errorf("the repository has no branch and no tag %q; a commit has to be named by its whole id", ref)
}

// gitRemote is a repository elsewhere.
type gitRemote struct {
	f *Fetcher
	a *gitAddress
}

// tree asks what the ref is, and gets that commit if it is not in the cache.
func (r *gitRemote) tree(ctx context.Context) (*source.Tree, error) {
	session, err := r.session()
	if err != nil {
		return nil, err
	}
	defer session.Close()
	refs, err := session.AdvertisedReferencesContext(ctx)
	if err != nil {
		// The transport has tried this again already, since it has no body.
		return nil, permanent(r.explain("asking the repository for its branches", err))
	}
	want, peeled := plumbing.NewHash(r.a.ref), plumbing.ZeroHash
	if !r.a.commit() {
		want, err = resolve(r.a.ref, func(name string) (plumbing.Hash, bool) {
			if name == "HEAD" && refs.Head != nil {
				return *refs.Head, true
			}
			h, ok := refs.References[name]
			peeled = refs.Peeled[name]
			return h, ok
		})
		if err != nil {
			return nil, err
		}
		commit := want
		if peeled != plumbing.ZeroHash {
			commit = peeled // of an annotated tag
		}
		if t, err := r.f.cache.get(r.a.key(commit.String()), r.a.at(commit.String())); err == nil {
			return t, nil
		}
	}
	dir, err := os.MkdirTemp("", "assay-git-")
	if err != nil {
		return nil, fmt.Errorf("making a folder for the repository: %w", err)
	}
	defer os.RemoveAll(dir)
	objects, err := r.objects(ctx, session, refs, want, dir)
	if err != nil {
		return nil, err
	}
	c, err := commitOf(objects, want)
	if err != nil {
		return nil, err
	}
	id := c.Hash.String()
	return r.f.cache.put(ctx, r.a.key(id), r.a.at(id), func(ctx context.Context, p *place) error {
		return export(ctx, objects, c, r.a.subdir, p)
	})
}

// session connects. Every request of a session goes through the Fetcher's transport,
// but ssh's.
func (r *gitRemote) session() (transport.UploadPackSession, error) {
	u := *r.a.url
	ep := &transport.Endpoint{Protocol: u.Scheme, Host: u.Hostname(), Path: u.Path}
	if p := u.Port(); p != "" {
		if _, err := fmt.Sscanf(p, "%d", &ep.Port); err != nil {
			return nil, fmt.Errorf("reading the address: port %q is no number", p)
		}
	}
	if u.Scheme == "ssh" {
		user := u.User.Username()
		if user == "" {
			user = "git"
		}
		ep.User = user
		auth, err := gitssh.NewSSHAgentAuth(user)
		if err != nil {
			return nil, fmt.Errorf("finding credentials for %s: %w; start an ssh agent (SSH_AUTH_SOCK), or use https", u.Host, err)
		}
		s, err := gitssh.NewClient(nil).NewUploadPackSession(ep, auth)
		if err != nil {
			return nil, r.explain("connecting", err)
		}
		return s, nil
	}
	var auth transport.AuthMethod
	if u.User != nil {
		password, _ := u.User.Password()
		auth = &githttp.BasicAuth{Username: u.User.Username(), Password: password}
	} else if login, password, ok, err := netrc(u.Hostname()); err != nil {
		return nil, err
	} else if ok {
		auth = &githttp.BasicAuth{Username: login, Password: password}
	}
	client := &http.Client{Transport: &guarded{base: r.f.opts.Transport, limit: r.f.opts.Limits.Transfer}}
	s, err := githttp.NewClientWithOptions(client, &githttp.ClientOptions{RedirectPolicy: githttp.FollowInitialRedirects}).NewUploadPackSession(ep, auth)
	if err != nil {
		return nil, r.explain("connecting", err)
	}
	return s, nil
}

// explain says what went wrong with a server, and marks what may pass.
func (r *gitRemote) explain(doing string, err error) error {
	host := r.a.url.Host
	var status *githttp.Err
	switch {
	case errors.Is(err, transport.ErrAuthenticationRequired), errors.Is(err, transport.ErrAuthorizationFailed):
		return fmt.Errorf("%s: %s wants credentials or refuses these: %w; put them into ~/.netrc (machine %s login … password …)", doing, host, err, r.a.url.Hostname())
	case errors.Is(err, transport.ErrRepositoryNotFound), errors.Is(err, transport.ErrEmptyRemoteRepository):
		return fmt.Errorf("%s: %s: %w", doing, host, err)
	case errors.As(err, &status) && status.StatusCode() < 500 && status.StatusCode() != http.StatusTooManyRequests:
		return fmt.Errorf("%s: %s: %w", doing, host, err)
	case errors.Is(err, errInsecure), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %s: %w", doing, host, err)
	}
	return transientError{fmt.Errorf("%s: %s: %w", doing, host, err)}
}

// objects gets one commit with its files; where the server does not give single
// commits away, all branches and tags.
func (r *gitRemote) objects(ctx context.Context, s transport.UploadPackSession, refs *packp.AdvRefs, want plumbing.Hash, dir string) (objectStore, error) {
	req := packp.NewUploadPackRequestFromCapabilities(refs.Capabilities)
	for _, c := range []capability.Capability{capability.Sideband64k, capability.OFSDelta, capability.NoProgress} {
		if refs.Capabilities.Supports(c) {
			if err := req.Capabilities.Set(c); err != nil {
				return nil, fmt.Errorf("asking for the commit: %w", err)
			}
		}
	}
	single := !r.a.commit()
	for _, h := range refs.References {
		single = single || h == want
	}
	for _, c := range []capability.Capability{capability.AllowReachableSHA1InWant, capability.AllowTipSHA1InWant, "allow-any-sha1-in-want"} {
		single = single || refs.Capabilities.Supports(c)
	}
	if single {
		req.Wants = []plumbing.Hash{want}
		if refs.Capabilities.Supports(capability.Shallow) {
			if err := req.Capabilities.Set(capability.Shallow); err != nil {
				return nil, fmt.Errorf("asking for the commit: %w", err)
			}
			req.Depth = packp.DepthCommits(1)
		}
	} else {
		seen := map[plumbing.Hash]bool{}
		for name, h := range refs.References {
			if !seen[h] && (strings.HasPrefix(name, "refs/heads/") || strings.HasPrefix(name, "refs/tags/")) {
				seen[h] = true
				req.Wants = append(req.Wants, h)
			}
		}
	}
	resp, err := s.UploadPack(ctx, req)
	if err != nil {
		return nil, r.explain("getting the commit", err)
	}
	defer resp.Close()
	var pack io.Reader = resp
	switch {
	case req.Capabilities.Supports(capability.Sideband64k):
		pack = sideband.NewDemuxer(sideband.Sideband64k, resp)
	case req.Capabilities.Supports(capability.Sideband):
		pack = sideband.NewDemuxer(sideband.Sideband, resp)
	}
	file, err := os.Create(filepath.Join(dir, "pack"))
	if err != nil {
		return nil, fmt.Errorf("writing the repository: %w", err)
	}
	defer file.Close()
	if _, err := io.Copy(file, &bound{r: pack, left: r.f.opts.Limits.Transfer, what: "the commit"}); err != nil {
		return nil, r.explain("getting the commit", err)
	}
	return unpack(file, filepath.Join(dir, "objects"), r.f.opts.Limits)
}
