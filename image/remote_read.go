package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

var manifestTypes = strings.Join([]string{
	string(types.OCIManifestSchema1), string(types.OCIImageIndex),
	string(types.DockerManifestSchema2), string(types.DockerManifestList),
}, ", ")

// Manifest is a manifest or an index as the registry has it.
type Manifest struct {
	Descriptor v1.Descriptor // media type, digest and size; the digest is that of Raw
	Raw        []byte
}

// IsIndex tells an index from an image's manifest.
func (m *Manifest) IsIndex() bool { return m.Descriptor.MediaType.IsIndex() }

// Manifest fetches what a tag or digest names. By digest it is exactly that;
// an answer with other content is ErrBadImage.
func (r *Remote) Manifest(ctx context.Context, ref string) (*Manifest, error) {
	n, err := r.opts.parse(ref)
	if err != nil {
		return nil, err
	}
	var out *Manifest
	err = r.read(ctx, n, func(c name.Reference) (err error) {
		out, err = r.manifest(ctx, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (r *Remote) manifest(ctx context.Context, ref name.Reference) (*Manifest, error) {
	if d, ok := ref.(name.Digest); ok {
		if err := checkDigest(d.DigestStr()); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequest(http.MethodGet, endpoint(ref.Context(), "/manifests/"+ref.Identifier()), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", manifestTypes)
	resp, err := r.once(ctx, ref.Context(), false, req, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := readBounded(resp.Body, r.opts.Bounds.ManifestBytes)
	if err != nil {
		return nil, err
	}
	m, err := newManifest(raw)
	if err != nil {
		return nil, err
	}
	if d, ok := ref.(name.Digest); ok && m.Descriptor.Digest.String() != d.DigestStr() {
		return nil, bad("the registry answered with %s", m.Descriptor.Digest)
	}
	// The content says what it is, and the header must not contradict it: two
	// readers of one digest must not see two kinds of image (CVE-2021-41190).
	if ct, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); ct != "" && manifestType(ct) && types.MediaType(ct) != m.Descriptor.MediaType {
		return nil, bad("sent as %s, but its content is %s", ct, m.Descriptor.MediaType)
	}
	return m, nil
}

func manifestType(s string) bool {
	m := types.MediaType(s)
	return m.IsIndex() || m.IsImage()
}

// newManifest finds out what raw is and names it by its digest.
func newManifest(raw []byte) (*Manifest, error) {
	var probe struct {
		MediaType types.MediaType   `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
		Layers    []json.RawMessage `json:"layers"`
		Config    json.RawMessage   `json:"config"`
	}
	if err := json.Unmarshal(raw, &probe); err != nil {
		return nil, bad("parsing manifest: %w", err)
	}
	index, img := probe.Manifests != nil, probe.Layers != nil || probe.Config != nil
	mt := probe.MediaType
	switch {
	case index && img:
		return nil, bad("the manifest is both an index and an image")
	case mt == "" && index:
		mt = types.OCIImageIndex
	case mt == "" && img:
		mt = types.OCIManifestSchema1
	case mt.IsIndex() && !img, mt.IsImage() && !index:
	default:
		return nil, bad("%q is no image manifest or index that we can read; want one of %s", mt, manifestTypes)
	}
	h, err := v1.NewHash(digestOf(raw))
	if err != nil {
		return nil, err
	}
	return &Manifest{Descriptor: v1.Descriptor{MediaType: mt, Digest: h, Size: int64(len(raw))}, Raw: raw}, nil
}

// Head asks for a manifest's descriptor only. The digest is the registry's
// word; ErrNotFound if it has none. Mirrors are heeded.
func (r *Remote) Head(ctx context.Context, ref string) (v1.Descriptor, error) {
	n, err := r.opts.parse(ref)
	if err != nil {
		return v1.Descriptor{}, err
	}
	var out v1.Descriptor
	err = r.read(ctx, n, func(c name.Reference) error {
		req, err := http.NewRequest(http.MethodHead, endpoint(c.Context(), "/manifests/"+c.Identifier()), nil)
		if err != nil {
			return err
		}
		req.Header.Set("Accept", manifestTypes)
		resp, err := r.once(ctx, c.Context(), false, req, http.StatusOK)
		if err != nil {
			return err
		}
		resp.Body.Close()
		d := resp.Header.Get("Docker-Content-Digest")
		if d == "" || contentLength(resp.Header) < 0 {
			m, err := r.manifest(ctx, c) // old registries leave the header out
			if err != nil {
				return err
			}
			out = m.Descriptor
			return nil
		}
		if err := checkDigest(d); err != nil {
			return err
		}
		if want, ok := c.(name.Digest); ok && want.DigestStr() != d {
			return bad("the registry answered with %s", d)
		}
		ct, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
		h, err := v1.NewHash(d)
		out = v1.Descriptor{MediaType: types.MediaType(ct), Digest: h, Size: contentLength(resp.Header)}
		return err
	})
	if err != nil {
		return v1.Descriptor{}, err
	}
	return out, nil
}

// Blob opens a blob of at most max bytes (0: the bound for blobs). What is
// read may be believed only once the reader has said io.EOF: it fails with
// ErrBadImage where the content is not what the digest names. The caller
// closes it.
func (r *Remote) Blob(ctx context.Context, ref string, max int64) (io.ReadCloser, error) {
	d, err := r.opts.parseDigest(ref)
	if err != nil {
		return nil, err
	}
	var out io.ReadCloser
	err = r.read(ctx, d, func(c name.Reference) (err error) {
		out, err = r.blob(ctx, c.(name.Digest), -1, max)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (r *Remote) blob(ctx context.Context, d name.Digest, size, max int64) (io.ReadCloser, error) {
	if max <= 0 {
		max = r.opts.Bounds.BlobBytes
	}
	if size > max {
		return nil, bad("%s has %d bytes, more than the bound of %d", d.DigestStr(), size, max)
	}
	req, err := http.NewRequest(http.MethodGet, endpoint(d.Context(), "/blobs/"+d.DigestStr()), nil)
	if err != nil {
		return nil, err
	}
	resp, err := r.once(ctx, d.Context(), false, req, http.StatusOK)
	if err != nil {
		return nil, err
	}
	announced := resp.ContentLength
	if announced > max || size >= 0 && announced > size {
		resp.Body.Close()
		return nil, bad("%s would be %d bytes, more than the bound of %d", d.DigestStr(), announced, max)
	}
	if size < 0 {
		size = announced // -1 if there is none
	}
	return &blobReader{verified: newVerifiedReader(resp.Body, d.DigestStr(), size, max), body: resp.Body, ref: d.Name()}, nil
}

type blobReader struct {
	verified *verifiedReader
	body     io.Closer
	ref      string
}

func (b *blobReader) Read(p []byte) (int, error) {
	n, err := b.verified.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fail("reading", b.ref, err)
	}
	return n, err
}

func (b *blobReader) Close() error { return b.body.Close() }

// BlobBytes fetches a small blob, checked against its digest.
func (r *Remote) BlobBytes(ctx context.Context, ref string, max int64) ([]byte, error) {
	d, err := r.opts.parseDigest(ref)
	if err != nil {
		return nil, err
	}
	var out []byte
	err = r.read(ctx, d, func(c name.Reference) error {
		b, err := r.blob(ctx, c.(name.Digest), -1, max)
		if err != nil {
			return err
		}
		defer b.Close()
		out, err = io.ReadAll(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// BlobFile fetches a blob into a file, which it empties first. size is -1 if
// not known. It tries again, and at mirrors, when a download breaks off; after
// an error the file holds nothing that may be used.
func (r *Remote) BlobFile(ctx context.Context, ref string, size, max int64, f *os.File) error {
	d, err := r.opts.parseDigest(ref)
	if err != nil {
		return err
	}
	return r.read(ctx, d, func(c name.Reference) error {
		if err := f.Truncate(0); err != nil {
			return asLocal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return asLocal(err)
		}
		b, err := r.blob(ctx, c.(name.Digest), size, max)
		if err != nil {
			return err
		}
		defer b.Close()
		_, err = io.Copy(localWriter{f}, b)
		return err
	})
}

// localWriter marks its failures as this machine's.
type localWriter struct{ w io.Writer }

func (l localWriter) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	return n, asLocal(err)
}

// Referrers lists the manifests whose subject is ref, which has a digest, with
// the referrers API or the tag that stands for it in older registries. An
// artifactType narrows the list; empty means all. No referrers is no error.
func (r *Remote) Referrers(ctx context.Context, ref, artifactType string) ([]v1.Descriptor, error) {
	d, err := r.opts.parseDigest(ref)
	if err != nil {
		return nil, err
	}
	var out []v1.Descriptor
	err = r.retry(ctx, func() (err error) {
		out, err = r.referrers(ctx, d, artifactType)
		return err
	})
	if err != nil {
		return nil, fail("listing referrers of", d.Name(), err)
	}
	return out, nil
}

func (r *Remote) referrers(ctx context.Context, d name.Digest, artifactType string) ([]v1.Descriptor, error) {
	next := endpoint(d.Context(), "/referrers/"+d.DigestStr())
	if artifactType != "" {
		next += "?artifactType=" + url.QueryEscape(artifactType)
	}
	var all []v1.Descriptor
	for page := 0; next != ""; page++ {
		if page > 64 {
			return nil, bad("more than 64 pages of referrers")
		}
		req, err := http.NewRequest(http.MethodGet, next, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept", string(types.OCIImageIndex))
		resp, err := r.once(ctx, d.Context(), false, req, http.StatusOK)
		if te := (*transport.Error)(nil); errors.As(err, &te) && te.StatusCode == http.StatusNotFound && page == 0 {
			m, _, err := r.referrersTag(ctx, d)
			if err != nil {
				return nil, err
			}
			all = m.Manifests
			break
		}
		if err != nil {
			return nil, err
		}
		raw, err := readBounded(resp.Body, r.opts.Bounds.ManifestBytes)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		m, err := parseIndex(raw)
		if err != nil {
			return nil, err
		}
		all = append(all, m.Manifests...)
		if len(all) > r.opts.Bounds.Manifests {
			return nil, bad("more than %d referrers", r.opts.Bounds.Manifests)
		}
		if next, err = nextPage(resp); err != nil {
			return nil, err
		}
	}
	var out []v1.Descriptor
	for _, m := range all {
		if err := checkDigest(m.Digest.String()); err != nil {
			return nil, err
		}
		if artifactType == "" || m.ArtifactType == artifactType {
			out = append(out, m)
		}
	}
	return out, nil
}

// referrersTag reads the index that stands for the referrers API; without one
// it is empty.
func (r *Remote) referrersTag(ctx context.Context, d name.Digest) (*v1.IndexManifest, name.Tag, error) {
	tag := d.Context().Tag(strings.Replace(d.DigestStr(), ":", "-", 1))
	m, err := r.manifest(ctx, tag)
	if te := (*transport.Error)(nil); errors.As(err, &te) && te.StatusCode == http.StatusNotFound {
		return &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}, tag, nil
	}
	if err != nil {
		return nil, tag, err
	}
	if !m.IsIndex() {
		return nil, tag, bad("%s is no index of referrers", tag)
	}
	idx, err := parseIndex(m.Raw)
	return idx, tag, err
}

// nextPage is the address in the Link header, below the same registry only.
func nextPage(resp *http.Response) (string, error) {
	link := resp.Header.Get("Link")
	if link == "" {
		return "", nil
	}
	addr, params, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok || !strings.Contains(params, `rel="next"`) && !strings.Contains(params, "rel=next") {
		return "", nil
	}
	u, err := resp.Request.URL.Parse(addr)
	if err != nil || u.Host != resp.Request.URL.Host {
		return "", bad("the next page is at %q, which is not this registry", addr)
	}
	return u.String(), nil
}

// Tags lists a repository's tags; ErrNotFound for a repository that is not there.
func (r *Remote) Tags(ctx context.Context, repo string) ([]string, error) {
	n, err := r.opts.parseRepo(repo)
	if err != nil {
		return nil, err
	}
	var out []string
	err = r.retry(ctx, func() error {
		out = nil
		next := endpoint(n, "/tags/list")
		for page := 0; next != ""; page++ {
			if page > 1024 {
				return bad("more than 1024 pages of tags")
			}
			req, err := http.NewRequest(http.MethodGet, next, nil)
			if err != nil {
				return err
			}
			resp, err := r.once(ctx, n, false, req, http.StatusOK)
			if err != nil {
				return err
			}
			raw, err := readBounded(resp.Body, r.opts.Bounds.ManifestBytes)
			resp.Body.Close()
			if err != nil {
				return err
			}
			var list struct {
				Tags []string `json:"tags"`
			}
			if err := json.Unmarshal(raw, &list); err != nil {
				return bad("parsing tags: %w", err)
			}
			out = append(out, list.Tags...)
			if next, err = nextPage(resp); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fail("listing tags of", n.Name(), err)
	}
	return out, nil
}

// parseIndex reads an index without what ggcr's parser does not need.
func parseIndex(raw []byte) (*v1.IndexManifest, error) {
	m, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, bad("parsing index: %w", err)
	}
	return m, nil
}

// parseImage reads an image's manifest.
func parseImage(raw []byte) (*v1.Manifest, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, bad("parsing manifest: %w", err)
	}
	return m, nil
}

// pinned is repo@digest.
func pinned(repo name.Repository, digest string) string {
	return fmt.Sprintf("%s@%s", repo.Name(), digest)
}
