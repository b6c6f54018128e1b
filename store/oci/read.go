package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
)

// List implements store.Reader. Order: layers of .sig, layers of .att, then
// bundles as the registry lists them.
func (s *Store) List(ctx context.Context, digest string) ([]store.Item, error) {
	items, err := s.list(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("listing evidence for %s@%s: %w", s.repo, digest, err)
	}
	return items, nil
}

func (s *Store) list(ctx context.Context, digest string) ([]store.Item, error) {
	if !digestForm.MatchString(digest) {
		return nil, fmt.Errorf("%q is not a sha256 digest", digest)
	}
	var (
		sig, att []store.Item
		refs     []descriptor
	)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) { sig, err = s.layers(gctx, tagFor(digest, suffixSig)); return err })
	g.Go(func() (err error) { att, err = s.layers(gctx, tagFor(digest, suffixAtt)); return err })
	g.Go(func() (err error) { refs, _, err = s.referrers(gctx, digest); return err })
	if err := g.Wait(); err != nil {
		return nil, err
	}

	items := append(sig, att...)
	for _, d := range refs {
		if isBundle(d) {
			items = append(items, store.Item{Format: store.FormatBundle, Digest: d.Digest, MediaType: d.ArtifactType, Annotations: d.Annotations})
		}
	}
	if len(items) > s.opts.MaxItems {
		return nil, fmt.Errorf("%w: %d pieces, at most %d are read", store.ErrTooMuch, len(items), s.opts.MaxItems)
	}

	budget := budget{left: s.opts.MaxTotalBytes, max: s.opts.MaxItemBytes}
	g, gctx = errgroup.WithContext(ctx)
	g.SetLimit(s.opts.Parallel)
	for i := range items {
		it := &items[i]
		if it.Err != nil {
			continue
		}
		g.Go(func() error {
			var err error
			if it.Format == store.FormatBundle {
				err = s.readBundle(gctx, it, digest, &budget)
			} else if it.Content = s.predicted(it, digest); it.Content != nil {
				err = budget.take(int64(len(it.Content)))
			} else {
				it.Content, err = s.readBlob(gctx, it.Digest, &budget)
			}
			var bad *badItem
			switch {
			case err == nil:
			case errors.As(err, &bad):
				it.Err = bad.err
			case permanent(err), refused(err), errors.Is(err, store.ErrAltered): // by a transport that looks
				it.Err = err
			default:
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return items, nil
}

// predicted is the payload of a signature that says no more than which image it is
// of, as cosign makes it without annotations. Such a payload is known beforehand, and
// that its digest is the layer's proves it: the registry need not be asked. Nil for
// any other layer.
func (s *Store) predicted(it *store.Item, subject string) []byte {
	if it.MediaType != simplesigning.MediaType {
		return nil
	}
	b, err := simplesigning.New(s.repo.Name(), subject)
	if err != nil || digestOf(b) != it.Digest {
		return nil
	}
	return b
}

// badItem says that one piece is malformed, which is no reason to distrust the
// others.
type badItem struct{ err error }

func (e *badItem) Error() string { return e.err.Error() }
func (e *badItem) Unwrap() error { return e.err }

// budget shares the total bound among parallel reads.
type budget struct {
	mu   sync.Mutex
	left int64 // guarded by mu
	max  int64
}

// take books what was read; it fails once all pieces together are too large.
func (b *budget) take(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left -= n
	if b.left < 0 {
		return fmt.Errorf("%w: too many bytes in all pieces together", store.ErrTooMuch)
	}
	return nil
}

func (b *budget) limit() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	// One more than what is left: the read that crosses the total must end
	// as store.ErrTooMuch, not as one item that is too large.
	return min(b.max, b.left+1)
}

func (s *Store) readBlob(ctx context.Context, digest string, budget *budget) ([]byte, error) {
	res, err := s.client.do(ctx, request{
		method: http.MethodGet, url: s.client.url("blobs", digest), limit: budget.limit(), accept: []int{http.StatusOK},
	})
	if err != nil {
		if errors.Is(err, errTooLarge) && budget.limit() < budget.max {
			return nil, fmt.Errorf("%w: too many bytes in all pieces together", store.ErrTooMuch)
		}
		return nil, err
	}
	if got := digestOf(res.body); got != digest {
		return nil, &badItem{fmt.Errorf("registry gave bytes with digest %s: %w", got, store.ErrAltered)}
	}
	return res.body, budget.take(int64(len(res.body)))
}

func (s *Store) readBundle(ctx context.Context, it *store.Item, subject string, budget *budget) error {
	res, err := s.client.do(ctx, request{
		method: http.MethodGet, url: s.client.url("manifests", it.Digest), limit: maxManifest, accept: []int{http.StatusOK},
		header: http.Header{"Accept": {acceptManifests}},
	})
	if err != nil {
		return err
	}
	if got := digestOf(res.body); got != it.Digest {
		return &badItem{fmt.Errorf("registry gave a manifest with digest %s: %w", got, store.ErrAltered)}
	}
	if err := budget.take(int64(len(res.body))); err != nil {
		return err
	}
	layer, annotations, err := parseReferrer(res.body, subject)
	if err != nil {
		return &badItem{fmt.Errorf("reading referrer manifest: %w", err)}
	}
	it.Annotations = annotations
	it.MediaType = layer.MediaType
	it.Content, err = s.readBlob(ctx, layer.Digest, budget)
	return err
}

// layers are the layers of a tag's manifest, without content yet.
func (s *Store) layers(ctx context.Context, tag string) ([]store.Item, error) {
	b, _, err := s.client.getManifest(ctx, tag, maxManifest)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading tag %s: %w", tag, err)
	}
	t, err := parseTagManifest(b)
	if err != nil {
		return []store.Item{{Format: store.FormatTag, Digest: digestOf(b), Err: fmt.Errorf("reading manifest of tag %s: %w", tag, err)}}, nil
	}
	items := make([]store.Item, 0, len(t.layers))
	for _, l := range t.layers {
		items = append(items, store.Item{Format: store.FormatTag, Digest: l.Digest, MediaType: l.MediaType, Annotations: l.Annotations})
	}
	return items, nil
}

// isBundle says whether a referrer is a Sigstore bundle. Writers that fill the
// referrers tag themselves may name the config's type instead of the
// artifact's; the annotation then tells.
func isBundle(d descriptor) bool {
	return bundle.IsMediaType(d.ArtifactType) || d.Annotations[annotationContent] != ""
}

// maxPages bounds how often a registry can say that there is more.
const maxPages = 64

var nextLink = regexp.MustCompile(`<([^>]*)>\s*;\s*rel="?next"?`)

// referrers lists what refers to a digest, by the API or, where the registry
// has none (api is false), by the referrers tag.
func (s *Store) referrers(ctx context.Context, digest string) (refs []descriptor, api bool, err error) {
	u := s.client.url("referrers", digest)
	if s.client.access != nil && s.client.access.host.listsNone() {
		refs, err := s.referrersTag(ctx, digest)
		return refs, false, err
	}
	for page := 0; ; page++ {
		if page == maxPages {
			return nil, true, fmt.Errorf("listing referrers: %w: more than %d pages", store.ErrTooMuch, maxPages)
		}
		res, err := s.client.do(ctx, request{
			method: http.MethodGet, url: u, limit: maxManifest, header: http.Header{"Accept": {mediaTypeIndex}},
			accept: []int{http.StatusOK, http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented},
		})
		if err != nil {
			return nil, true, fmt.Errorf("listing referrers: %w", err)
		}
		contentType, _, _ := strings.Cut(res.header.Get("Content-Type"), ";")
		if res.status != http.StatusOK || contentType != mediaTypeIndex {
			if page > 0 {
				return nil, true, fmt.Errorf("listing referrers: page %d: registry answered %d %s", page+1, res.status, contentType)
			}
			if s.client.access != nil {
				s.client.access.host.noReferrers.Store(s.client.access.host.now().Add(referrersMemory).UnixNano())
			}
			refs, err := s.referrersTag(ctx, digest)
			return refs, false, err
		}
		x, err := parseIndex(res.body)
		if err != nil {
			return nil, true, fmt.Errorf("listing referrers: %w", err)
		}
		refs = append(refs, x.manifests...)
		if len(refs) > 4*s.opts.MaxItems {
			return nil, true, fmt.Errorf("listing referrers: %w: more than %d", store.ErrTooMuch, 4*s.opts.MaxItems)
		}
		m := nextLink.FindStringSubmatch(res.header.Get("Link"))
		if m == nil {
			return refs, true, nil
		}
		next, err := u.Parse(m[1])
		if err != nil || next.Host != u.Host || next.Scheme != u.Scheme {
			return nil, true, fmt.Errorf("listing referrers: registry points to another host for the next page")
		}
		u = next
	}
}

func (s *Store) referrersTag(ctx context.Context, digest string) ([]descriptor, error) {
	b, _, err := s.client.getManifest(ctx, tagFor(digest, suffixReferrers), maxManifest)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading referrers tag: %w", err)
	}
	x, err := parseIndex(b)
	if err != nil {
		return nil, fmt.Errorf("reading referrers tag: %w", err)
	}
	return x.manifests, nil
}

func marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("writing JSON: %w", err)
	}
	return b, nil
}
