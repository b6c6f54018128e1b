package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// PushLayout pushes the image of an OCI layout, which a stranger wrote, and
// what refers to it into a repository, each manifest under its own digest. It
// returns the digests of the manifests, the image itself first (see
// Layout.Manifests), once all of them are in the registry. Nothing is sent of a
// layout that is not whole. On a later error some blobs and manifests may be
// there; the image is pushed after all that it consists of, so it is never
// there in part.
//
// layoutDir itself is not followed if it is a link, but folders on the way to
// it are; where a stranger made those too, open the folder safely and use
// PushLayoutDir.
func (r *Remote) PushLayout(ctx context.Context, layoutDir, repo string) ([]string, error) {
	dir, err := os.OpenFile(layoutDir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, os.ErrNotExist) {
			err = badUnlessKinded(err)
		}
		return nil, fail("reading layout", layoutDir, err)
	}
	defer dir.Close()
	return r.PushLayoutDir(ctx, dir, repo)
}

// PushLayoutDir is PushLayout of a folder that is open already.
func (r *Remote) PushLayoutDir(ctx context.Context, dir *os.File, repo string) ([]string, error) {
	n, err := r.opts.parseRepo(repo)
	if err != nil {
		return nil, err
	}
	l, err := OpenLayout(dir, r.opts.Bounds)
	if err != nil {
		return nil, err
	}
	if err := r.pushLayout(ctx, l, n); err != nil {
		return nil, fail("pushing layout to", n.Name(), err)
	}
	return l.Manifests(), nil
}

func (r *Remote) pushLayout(ctx context.Context, l *Layout, repo name.Repository) error {
	manifests := slices.Concat(l.children, []*layoutManifest{l.main}, l.referrers)
	// All content is checked before anything is sent, and whether or not the
	// registry has it already: a layout that only names what others pushed
	// would else pass as holding it.
	blobs := map[string]v1.Descriptor{}
	for _, m := range manifests {
		for _, b := range m.blobs {
			if known, ok := blobs[b.Digest.String()]; ok && known.Size == b.Size {
				continue
			}
			if err := l.check(ctx, b); err != nil {
				return err
			}
			blobs[b.Digest.String()] = b
		}
	}
	for _, m := range manifests {
		for _, b := range m.blobs {
			if _, ok := blobs[b.Digest.String()]; !ok {
				continue
			}
			delete(blobs, b.Digest.String())
			if err := r.pushBlob(ctx, repo, b.Digest.String(), b.Size, func() (io.ReadCloser, error) { return l.blob(b) }); err != nil {
				return fmt.Errorf("pushing blob %s: %w", b.Digest, err)
			}
		}
		if err := r.pushManifest(ctx, repo.Digest(m.Descriptor.Digest.String()), m.Descriptor.MediaType, m.Raw); err != nil {
			return fmt.Errorf("pushing manifest %s: %w", m.Descriptor.Digest, err)
		}
	}
	return nil
}

// check reads a blob and compares it with its digest.
func (l *Layout) check(ctx context.Context, d v1.Descriptor) error {
	f, err := l.blob(d)
	if err != nil {
		return err
	}
	defer f.Close()
	v := newVerifiedReader(&contextReader{ctx, f}, d.Digest.String(), d.Size, d.Size)
	if _, err := io.Copy(io.Discard, v); err != nil {
		return badUnlessKinded(err)
	}
	return nil
}
