package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// smallBlob is what is sent without asking first: asking costs a request too.
const smallBlob = 64 << 10

// PushBlob puts a blob into a repository unless it is there already. open
// gives its content from the start, each time it is called; content that is
// not what digest and size say is ErrBadImage and never becomes a blob.
//
// A small blob is a POST and a PUT; a big one is a HEAD and, if needed, these.
func (r *Remote) PushBlob(ctx context.Context, repo, digest string, size int64, open func() (io.ReadCloser, error)) error {
	n, err := r.opts.parseRepo(repo)
	if err != nil {
		return err
	}
	if err := checkDigest(digest); err != nil {
		return fail("pushing blob to", n.Name(), err)
	}
	return fail("pushing blob", pinned(n, digest), r.pushBlob(ctx, n, digest, size, open))
}

func (r *Remote) pushBlob(ctx context.Context, repo name.Repository, digest string, size int64, open func() (io.ReadCloser, error)) error {
	if size > smallBlob {
		there := false
		err := r.retry(ctx, func() (err error) {
			there, err = r.hasBlob(ctx, repo, digest)
			return err
		})
		if there || err != nil {
			return err
		}
	}
	return r.retry(ctx, func() error {
		err := r.upload(ctx, repo, digest, size, open)
		if te := (*transport.Error)(nil); err != nil && !(errors.As(err, &te) && te.StatusCode >= 500) {
			// Perhaps the token expired in the middle.
			r.forget(repo, true)
		}
		return err
	})
}

func (r *Remote) hasBlob(ctx context.Context, repo name.Repository, digest string) (bool, error) {
	req, err := http.NewRequest(http.MethodHead, endpoint(repo, "/blobs/"+digest), nil)
	if err != nil {
		return false, err
	}
	resp, err := r.once(ctx, repo, true, req, http.StatusOK, http.StatusNotFound)
	if err != nil {
		return false, err
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK, nil
}

// upload is one attempt: a POST for an address, a PUT of the content to it. A
// POST that carries the content would save a request, but some registries take
// it without keeping it apart from an upload that is to follow.
func (r *Remote) upload(ctx context.Context, repo name.Repository, digest string, size int64, open func() (io.ReadCloser, error)) error {
	req, err := http.NewRequest(http.MethodPost, endpoint(repo, "/blobs/uploads/"), nil)
	if err != nil {
		return err
	}
	resp, err := r.once(ctx, repo, true, req, http.StatusAccepted)
	if err != nil {
		return err
	}
	resp.Body.Close()
	loc, err := resp.Location()
	if err != nil {
		return fmt.Errorf("reading upload address: %w", err)
	}
	q := loc.Query()
	q.Set("digest", digest)
	loc.RawQuery = q.Encode()
	if req, err = putRequest(loc.String(), digest, size, open); err != nil {
		return err
	}
	if resp, err = r.once(ctx, repo, true, req, http.StatusCreated, http.StatusNoContent); err != nil {
		return err
	}
	return resp.Body.Close()
}

func putRequest(url, digest string, size int64, open func() (io.ReadCloser, error)) (*http.Request, error) {
	body := func() (io.ReadCloser, error) {
		f, err := open()
		if err != nil {
			return nil, asLocal(err)
		}
		return &uploadBody{verified: newVerifiedReader(f, digest, size, size), Closer: f}, nil
	}
	b, err := body()
	if err != nil {
		return nil, err
	}
	if size == 0 {
		// net/http takes a body of length 0 for one of unknown length.
		_, err := io.ReadAll(b)
		b.Close()
		if err != nil {
			return nil, err
		}
		b = http.NoBody
	}
	req, err := http.NewRequest(http.MethodPut, url, b)
	if err != nil {
		b.Close()
		return nil, err
	}
	req.ContentLength = size
	req.Header.Set("Content-Type", "application/octet-stream")
	if size > 0 {
		req.GetBody = body
	}
	return req, nil
}

// uploadBody's failures are the local side's: a truncated file is a bad image.
type uploadBody struct {
	verified *verifiedReader
	io.Closer
}

func (u *uploadBody) Read(p []byte) (int, error) {
	n, err := u.verified.Read(p)
	if t := (*truncatedError)(nil); errors.As(err, &t) {
		err = &kinded{ErrBadImage, err}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = asLocal(err)
	}
	return n, err
}

// PushManifest puts a manifest or index under a tag or under its own digest,
// and returns its digest. A manifest with a subject becomes its referrer also
// in registries that know no referrers.
func (r *Remote) PushManifest(ctx context.Context, ref string, mediaType types.MediaType, raw []byte) (string, error) {
	n, err := r.opts.parse(ref)
	if err != nil {
		return "", err
	}
	digest := digestOf(raw)
	if d, ok := n.(name.Digest); ok && d.DigestStr() != digest {
		return "", fail("pushing", n.Name(), bad("the manifest hashes to %s", digest))
	}
	if err := r.pushManifest(ctx, n, mediaType, raw); err != nil {
		return "", fail("pushing", n.Name(), err)
	}
	return digest, nil
}

func (r *Remote) pushManifest(ctx context.Context, ref name.Reference, mediaType types.MediaType, raw []byte) error {
	var known bool
	err := r.retry(ctx, func() error {
		req, err := http.NewRequest(http.MethodPut, endpoint(ref.Context(), "/manifests/"+ref.Identifier()), bytes.NewReader(raw))
		if err != nil {
			return err
		}
		req.Header.Set("Content-Type", string(mediaType))
		resp, err := r.once(ctx, ref.Context(), true, req, http.StatusCreated, http.StatusOK, http.StatusAccepted)
		if err != nil {
			return err
		}
		known = resp.Header.Get("OCI-Subject") != ""
		if d := resp.Header.Get("Docker-Content-Digest"); d != "" && d != digestOf(raw) {
			resp.Body.Close()
			return bad("the registry stored it as %s instead of %s", d, digestOf(raw))
		}
		return resp.Body.Close()
	})
	if err != nil || known {
		return err
	}
	var subject struct {
		Subject      *v1.Descriptor    `json:"subject"`
		ArtifactType string            `json:"artifactType"`
		Annotations  map[string]string `json:"annotations"`
		Config       *v1.Descriptor    `json:"config"`
	}
	if json.Unmarshal(raw, &subject) != nil || subject.Subject == nil {
		return nil
	}
	m, err := newManifest(raw)
	if err != nil {
		return err
	}
	d := m.Descriptor
	d.ArtifactType, d.Annotations = subject.ArtifactType, subject.Annotations
	if d.ArtifactType == "" && subject.Config != nil {
		d.ArtifactType = string(subject.Config.MediaType)
	}
	return r.addReferrerTag(ctx, ref.Context().Digest(subject.Subject.Digest.String()), d)
}

// addReferrerTag keeps the index that stands for the referrers API. Two who do
// this at once can lose an entry; the specification has no remedy.
func (r *Remote) addReferrerTag(ctx context.Context, subject name.Digest, d v1.Descriptor) error {
	idx, tag, err := r.referrersTag(ctx, subject)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(idx.Manifests, func(m v1.Descriptor) bool { return m.Digest == d.Digest }) {
		return nil
	}
	idx.Manifests = append(idx.Manifests, d)
	raw, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	return r.pushManifest(ctx, tag, types.OCIImageIndex, raw)
}

// Tag gives a manifest that is in the registry a further name. ref has a
// digest. It fails with ErrNotFound where the manifest is not there.
func (r *Remote) Tag(ctx context.Context, ref, tag string) error {
	d, err := r.opts.parseDigest(ref)
	if err != nil {
		return err
	}
	t, err := r.opts.parse(d.Context().Name() + ":" + tag)
	if err != nil {
		return err
	}
	var m *Manifest
	err = r.retry(ctx, func() (err error) {
		m, err = r.manifest(ctx, d)
		return err
	})
	if err != nil {
		return fail("tagging", d.Name(), err)
	}
	_, err = r.PushManifest(ctx, t.Name(), m.Descriptor.MediaType, m.Raw)
	return err
}

// PushImage puts an image with its blobs under ref and returns its digest.
func (r *Remote) PushImage(ctx context.Context, ref string, img v1.Image) (string, error) {
	n, err := r.opts.parse(ref)
	if err != nil {
		return "", err
	}
	if err := r.pushImageBlobs(ctx, n.Context(), img); err != nil {
		return "", fail("pushing", n.Name(), err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		return "", fail("pushing", n.Name(), asLocal(err))
	}
	mt, err := img.MediaType()
	if err != nil {
		return "", fail("pushing", n.Name(), asLocal(err))
	}
	return r.PushManifest(ctx, n.Name(), mt, raw)
}

func (r *Remote) pushImageBlobs(ctx context.Context, repo name.Repository, img v1.Image) error {
	layers, err := img.Layers()
	if err != nil {
		return asLocal(err)
	}
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			return asLocal(err)
		}
		size, err := l.Size()
		if err != nil {
			return asLocal(err)
		}
		if err := r.pushBlob(ctx, repo, d.String(), size, l.Compressed); err != nil {
			return fmt.Errorf("pushing layer %s: %w", d, err)
		}
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		return asLocal(err)
	}
	if err := r.pushBlob(ctx, repo, digestOf(raw), int64(len(raw)), bytesOpener(raw)); err != nil {
		return fmt.Errorf("pushing configuration: %w", err)
	}
	return nil
}

// PushIndex puts an index with the images and indexes below it under ref and
// returns its digest. Children are pushed first, so that a reader never meets
// an index whose images are not there.
func (r *Remote) PushIndex(ctx context.Context, ref string, idx v1.ImageIndex) (string, error) {
	return r.pushIndex(ctx, ref, idx, 0)
}

func (r *Remote) pushIndex(ctx context.Context, ref string, idx v1.ImageIndex, depth int) (string, error) {
	n, err := r.opts.parse(ref)
	if err != nil {
		return "", err
	}
	if depth > maxIndexDepth {
		return "", fail("pushing", n.Name(), bad("indexes nest deeper than %d", maxIndexDepth))
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return "", fail("pushing", n.Name(), asLocal(err))
	}
	for _, d := range m.Manifests {
		child := pinned(n.Context(), d.Digest.String())
		switch {
		case d.MediaType.IsIndex():
			sub, err := idx.ImageIndex(d.Digest)
			if err != nil {
				return "", fail("pushing", child, asLocal(err))
			}
			if _, err := r.pushIndex(ctx, child, sub, depth+1); err != nil {
				return "", err
			}
		case d.MediaType.IsImage():
			img, err := idx.Image(d.Digest)
			if err != nil {
				return "", fail("pushing", child, asLocal(err))
			}
			if _, err := r.PushImage(ctx, child, img); err != nil {
				return "", err
			}
		default:
			return "", fail("pushing", child, bad("the index lists a %s", d.MediaType))
		}
	}
	raw, err := idx.RawManifest()
	if err != nil {
		return "", fail("pushing", n.Name(), asLocal(err))
	}
	mt, err := idx.MediaType()
	if err != nil {
		return "", fail("pushing", n.Name(), asLocal(err))
	}
	return r.PushManifest(ctx, n.Name(), mt, raw)
}

// maxIndexDepth: an index of indexes is legal and rare; deeper ones are neither.
const maxIndexDepth = 2

func bytesOpener(b []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
}
