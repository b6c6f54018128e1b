package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// maxResponseBytes bounds any one answer of a registry.
const maxResponseBytes = 8 << 20

// Client talks to registries. Its zero value uses the default transport and no
// credentials; a reference to localhost is spoken to by plain http. It is safe
// for concurrent use.
type Client struct {
	// Transport carries the requests; nil means http.DefaultTransport.
	Transport http.RoundTripper
	// Keychain has the credentials; nil means anonymous.
	Keychain authn.Keychain
}

func (c *Client) options(ctx context.Context) []remote.Option {
	t := c.Transport
	if t == nil {
		t = http.DefaultTransport
	}
	opts := []remote.Option{remote.WithContext(ctx), remote.WithTransport(bounded{t})}
	if c.Keychain != nil {
		opts = append(opts, remote.WithAuthFromKeychain(c.Keychain))
	}
	return opts
}

// bounded fails a response that goes beyond maxResponseBytes, where a plain
// limit would let a cut-off answer look like a whole one.
type bounded struct{ next http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxResponseBytes}
	return resp, nil
}

type boundedBody struct {
	io.ReadCloser
	left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("registry sent more than %d bytes", int64(maxResponseBytes))
	}
	return n, err
}

// Fetched is one object out of a bundle and where exactly it was found.
type Fetched struct {
	Object     []byte // as stored, JSON or YAML
	Repository string // without tag or digest: localhost:5055/catalog/tasks
	Digest     string // of the bundle's manifest: sha256:…
}

// Fetch reads the object of the given kind (compared without case) and name
// from the bundle at ref. Manifest and layer are checked against their digests,
// and against the digest in ref if it has one. When the bundle holds no such
// object the error is an ErrNotFound that lists what it does hold.
func (c *Client) Fetch(ctx context.Context, ref, kind, objectName string) (*Fetched, error) {
	source, err := name.ParseReference(ref)
	if err != nil {
		return nil, fmt.Errorf("reading bundle reference %q: %w", ref, err)
	}
	desc, err := remote.Get(source, c.options(ctx)...)
	if err != nil {
		return nil, fmt.Errorf("fetching bundle %s: %w", ref, err)
	}
	if !desc.MediaType.IsImage() {
		return nil, fmt.Errorf("bundle %s: a %s is no Tekton bundle, which is one image manifest", ref, desc.MediaType)
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(desc.Manifest))
	if err != nil {
		return nil, fmt.Errorf("reading manifest of bundle %s: %w", ref, err)
	}
	if err := checkManifest(manifest); err != nil {
		return nil, fmt.Errorf("bundle %s: %w", ref, err)
	}
	layer, err := find(manifest, kind, objectName)
	if err != nil {
		return nil, fmt.Errorf("bundle %s: %w", ref, err)
	}
	if layer.Size > MaxObjectBytes {
		return nil, fmt.Errorf("bundle %s: layer of %s %q has %d bytes, more than %d", ref, kind, objectName, layer.Size, MaxObjectBytes)
	}
	img, err := desc.Image()
	if err != nil {
		return nil, fmt.Errorf("opening bundle %s: %w", ref, err)
	}
	blob, err := img.LayerByDigest(layer.Digest)
	if err != nil {
		return nil, fmt.Errorf("opening %s %q of bundle %s: %w", kind, objectName, ref, err)
	}
	rc, err := blob.Uncompressed()
	if err != nil {
		return nil, fmt.Errorf("fetching %s %q of bundle %s: %w", kind, objectName, ref, err)
	}
	defer rc.Close()
	object, err := readLayer(rc)
	if err != nil {
		return nil, fmt.Errorf("reading %s %q of bundle %s: %w", kind, objectName, ref, err)
	}
	return &Fetched{Object: object, Repository: source.Context().Name(), Digest: desc.Digest.String()}, nil
}

// checkManifest holds the manifest to Tekton's layout.
func checkManifest(m *v1.Manifest) error {
	if len(m.Layers) > MaxObjects {
		return fmt.Errorf("it has %d layers, a Tekton bundle at most %d", len(m.Layers), MaxObjects)
	}
	for i, l := range m.Layers {
		for _, a := range []string{AnnotationAPIVersion, AnnotationName, AnnotationKind} {
			if _, ok := l.Annotations[a]; !ok {
				return fmt.Errorf("layer %d lacks the annotation %s, so this is no Tekton bundle", i, a)
			}
		}
		if k := l.Annotations[AnnotationKind]; strings.TrimSuffix(strings.ToLower(k), "s") != k {
			return fmt.Errorf("layer %d: annotation %s is %q, not lower case and singular", i, AnnotationKind, k)
		}
	}
	return nil
}

func find(m *v1.Manifest, kind, objectName string) (*v1.Descriptor, error) {
	var have []string
	for i, l := range m.Layers {
		if strings.EqualFold(l.Annotations[AnnotationKind], kind) && l.Annotations[AnnotationName] == objectName {
			return &m.Layers[i], nil
		}
		have = append(have, l.Annotations[AnnotationKind]+" "+l.Annotations[AnnotationName])
	}
	return nil, fmt.Errorf("%s %q is %w, which holds: %s", kind, objectName, ErrNotFound, strings.Join(have, ", "))
}

// readLayer returns the one file of a tar or, where the layer is none, the
// layer itself: Tekton accepts both. It reads to the end, since the blob's
// digest is only checked there.
func readLayer(r io.Reader) ([]byte, error) {
	// A tar rounds up to blocks and ends in two empty ones.
	const limit = MaxObjectBytes + 16<<10
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > limit {
		return nil, fmt.Errorf("unpacked it has more than %d bytes", MaxObjectBytes)
	}
	t := tar.NewReader(bytes.NewReader(raw))
	header, err := t.Next()
	if err != nil {
		if len(bytes.TrimSpace(raw)) == 0 {
			return nil, errors.New("the layer is empty")
		}
		return raw, nil
	}
	if header.Typeflag != tar.TypeReg {
		return nil, fmt.Errorf("%q in the layer is no regular file", header.Name)
	}
	object, err := io.ReadAll(t)
	if err != nil {
		return nil, fmt.Errorf("reading tar: %w", err)
	}
	if _, err := t.Next(); !errors.Is(err, io.EOF) {
		return nil, errors.New("the layer holds more than one file")
	}
	return object, nil
}
