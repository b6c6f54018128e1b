// Package oci keeps evidence in an OCI registry, beside the image it is about,
// in both forms that tools look for:
//
//	sha256-<hex>.sig   tag   simple signing payloads, as cosign 1 and 2 write them
//	sha256-<hex>.att   tag   DSSE envelopes, as cosign 1 and 2 and Tekton Chains write them
//	referrers                Sigstore bundles v0.3, as cosign 3 writes them (OCI 1.1),
//	                         through the tag sha256-<hex> where the registry has no such API
//
// An image signature goes to .sig and, as the statement that cosign 3 makes of
// it, to a referrer; attestations go to .att and a referrer; observations to a
// referrer only.
//
// # Losing nothing
//
// A tag is one manifest that lists all its layers, and the distribution
// specification has no way to replace it only if nobody else did. Writers that
// read, append and write lose each other's layers. Here:
//
//   - A referrer, which is a manifest of its own and cannot be overwritten, is
//     written first and carries in an annotation the layer that belongs into the
//     tag. It is the journal of the tag.
//   - Whoever has changed a tag then reads referrers and tag again and adds what
//     is missing, his own or another's, until nothing is. The last one to write
//     is the last one to check, so all get in.
//   - Writes are conditional (If-Match, If-None-Match); where the registry
//     honours that, writers of other makes lose nothing to us either. Where it
//     does not, a layer that cosign adds between our read and our write, a few
//     milliseconds apart, can be lost: cosign leaves no journal.
//
// # Two writers
//
// A Store keeps, in both forms, what Assay itself has executed. A Keeper keeps what
// was watched, in the one form that chains-config asks for, as Tekton Chains does;
// see there for what it costs and holds.
//
// # What it costs
//
// Requests for a first Put of n pieces of evidence with t tags: 1 for referrers,
// 1 for the empty config, 2 per piece (bundle, manifest), 5 per tag (layer,
// config, read, write, read back), and 1 to look again at referrers per tag.
// Blobs go up in one request where the registry allows it.
package oci

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/store"
)

// Options are the bounds and habits of a Store; the zero value works.
type Options struct {
	// MaxItems is how many pieces of evidence List reads for one artifact
	// before it gives up. Default 1000.
	MaxItems int
	// MaxItemBytes bounds one piece. Default bundle.Max (65 MiB).
	MaxItemBytes int64
	// MaxTotalBytes bounds all pieces together. Default 256 MiB.
	MaxTotalBytes int64
	// Parallel is how many requests run at once. Default 8.
	Parallel int
	// Attempts is how often a request is sent while the registry is
	// overloaded or unreachable. Default 3.
	Attempts int
	// Rounds is how often a tag is written while others change it. Default 12.
	Rounds int
	// Now gives the creation time in annotations. Default time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&o.MaxItems, 1000)
	def(&o.Parallel, 8)
	def(&o.Attempts, 3)
	def(&o.Rounds, 12)
	if o.MaxItemBytes <= 0 {
		o.MaxItemBytes = bundle.Max
	}
	if o.MaxTotalBytes <= 0 {
		o.MaxTotalBytes = 256 << 20
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// maxManifest bounds manifests and indexes; registries themselves allow 4 MiB.
const maxManifest = 8 << 20

// Store keeps the evidence of one repository's artifacts in that repository.
// It is safe for concurrent use.
type Store struct {
	repo   name.Repository
	client *client
	opts   Options
}

var _ store.Store = (*Store)(nil)

// New returns a store for a repository. Requests go through transport, which
// also authorises them: see Authorize for registries that want credentials; the
// embedded registry's socket or folder needs none. A nil transport is
// http.DefaultTransport.
func New(repo name.Repository, transport http.RoundTripper, opts Options) *Store {
	opts = opts.withDefaults()
	if transport == nil {
		transport = http.DefaultTransport
	}
	return &Store{
		repo:   repo,
		opts:   opts,
		client: &client{repo: repo, http: &http.Client{Transport: transport}, attempts: opts.Attempts, noMonolithic: new(atomic.Bool)},
	}
}

// Authorize wraps a transport so that requests to the repository carry what the
// registry asks for (basic or bearer), with credentials from the keychain
// (authn.Anonymous's tokens where it has none). It asks the registry once how to
// authorise, and fails if it cannot be reached or refuses.
func Authorize(ctx context.Context, repo name.Repository, base http.RoundTripper, keychain authn.Keychain, push bool) (http.RoundTripper, error) {
	if base == nil {
		base = http.DefaultTransport
	}
	auth := authn.Anonymous
	if keychain != nil {
		var err error
		if auth, err = authn.Resolve(ctx, keychain, repo); err != nil {
			return nil, fmt.Errorf("finding credentials for %s: %w", repo, err)
		}
	}
	scope := repo.Scope(transport.PullScope)
	if push {
		scope = repo.Scope(transport.PushScope)
	}
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, base, []string{scope})
	if err != nil {
		return nil, fmt.Errorf("authorising at %s: %w (see that the registry runs, that its name is right and that it knows you)", repo.Registry, err)
	}
	return rt, nil
}

// Resolve finds an artifact of the repository by tag or digest and returns it
// with its manifest, whose bytes match the digest. A missing one is
// store.ErrNotFound.
func (s *Store) Resolve(ctx context.Context, tagOrDigest string) (store.Subject, []byte, error) {
	b, mediaType, err := s.client.getManifest(ctx, tagOrDigest, maxManifest)
	if err != nil {
		return store.Subject{}, nil, fmt.Errorf("resolving %s in %s: %w", tagOrDigest, s.repo, err)
	}
	mediaType, _, _ = strings.Cut(mediaType, ";")
	if m := mediaTypeIn(b); m != "" {
		mediaType = m // the document's own word, which its digest covers
	}
	return store.Subject{
		Repo:      s.repo.Name(),
		Digest:    digestOf(b),
		MediaType: mediaType,
		Size:      int64(len(b)),
	}, b, nil
}

func (s *Store) checkSubject(subject store.Subject) error {
	if err := subject.Check(); err != nil {
		return err
	}
	repo, err := name.NewRepository(subject.Repo)
	if err != nil {
		return fmt.Errorf("subject's repository: %w", err)
	}
	if repo.Name() != s.repo.Name() {
		return fmt.Errorf("subject is in %s, this store is for %s; referrers live in their subject's repository", repo, s.repo)
	}
	return nil
}

// tags are cosign's tags for an artifact's evidence, and OCI's for its
// referrers.
func tagFor(digest, suffix string) string {
	return strings.Replace(digest, ":", "-", 1) + suffix
}

const (
	suffixSig       = ".sig"
	suffixAtt       = ".att"
	suffixReferrers = ""
)

// permanent says that an error speaks of one piece of evidence and will stay;
// all others mean that the registry could not be read.
func permanent(err error) bool {
	return errors.Is(err, store.ErrNotFound) || errors.Is(err, errTooLarge)
}

// refused says that a registry, or where it keeps blobs, answered and does not give one
// piece of evidence, whoever asks how often: for a reader as good as gone. A writer
// does not take it for that, and gives up.
func refused(err error) bool {
	switch status := statusOf(err); status {
	case http.StatusUnauthorized, http.StatusProxyAuthRequired:
		return false
	default:
		return status >= 400 && status < 500 && !temporary(err)
	}
}
