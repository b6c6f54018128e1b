package track

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// The form of a list in a registry.
const (
	dataLayer = "application/vnd.cncf.openpolicyagent.data.layer.v1+json"
	titleKey  = "org.opencontainers.image.title"
	dataTitle = "data/data/trusted_tekton_tasks.yml"
)

// kindKey is what layers of a Tekton bundle say what they are by.
const kindKey = "dev.tekton.image.kind"

// maxList bounds a list.
const maxList = 64 << 20

// Registry reads bundles, and reads and writes lists. Its zero value asks without
// credentials.
type Registry struct {
	// Transport is for reading. Default: remote.DefaultTransport.
	Transport http.RoundTripper
	Keychain  authn.Keychain
}

func (r *Registry) options(ctx context.Context, reading bool) []remote.Option {
	out := []remote.Option{remote.WithContext(ctx)}
	if r.Keychain != nil {
		out = append(out, remote.WithAuthFromKeychain(r.Keychain))
	}
	if r.Transport != nil && reading {
		out = append(out, remote.WithTransport(r.Transport))
	}
	return out
}

// bundle is a reference that says all.
type bundle struct{ repository, tag, digest string }

func (r *Registry) addBundles(ctx context.Context, l list, refs []string) error {
	var found []bundle
	var errs []error
	for _, s := range refs {
		b, err := r.resolve(ctx, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("resolving bundle %s: %w", s, err))
			continue
		}
		found = append(found, b)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, b := range found {
		ok, err := r.hasTask(ctx, b)
		if err != nil {
			return fmt.Errorf("reading bundle %s@%s: %w", b.repository, b.digest, err)
		}
		if !ok {
			continue
		}
		task := ociPrefix + b.repository
		if b.tag != "" {
			task += ":" + b.tag
		}
		l.add(task, b.digest)
	}
	return nil
}

// resolve asks for the digest where there is none. The registry must be named, and
// a tag or a digest.
func (r *Registry) resolve(ctx context.Context, s string) (bundle, error) {
	ref, err := name.ParseReference(s, name.StrictValidation)
	if err != nil {
		return bundle{}, err
	}
	b := bundle{repository: ref.Context().Name()}
	head, _, _ := strings.Cut(s, "@")
	if tag, err := name.NewTag(head, name.StrictValidation); err == nil {
		b.tag = tag.TagStr()
	}
	if d, ok := ref.(name.Digest); ok {
		b.digest = d.DigestStr()
		return b, nil
	}
	desc, err := remote.Head(ref, r.options(ctx, true)...)
	if err != nil {
		return bundle{}, err
	}
	b.digest = desc.Digest.String()
	return b, nil
}

func (r *Registry) hasTask(ctx context.Context, b bundle) (bool, error) {
	ref, err := name.NewDigest(b.repository + "@" + b.digest)
	if err != nil {
		return false, err
	}
	img, err := remote.Image(ref, r.options(ctx, true)...)
	if err != nil {
		return false, err
	}
	m, err := img.Manifest()
	if err != nil {
		return false, err
	}
	for _, layer := range m.Layers {
		if layer.Annotations[kindKey] == "task" {
			return true, nil
		}
	}
	return false, nil
}

// Pull reads a list from a registry. It fails where there is none, and where there
// are several, of which an update would keep one.
func (r *Registry) Pull(ctx context.Context, image string) ([]byte, error) {
	b, err := r.pull(ctx, image)
	if err != nil {
		return nil, fmt.Errorf("reading the list in %s: %w", image, err)
	}
	return b, nil
}

func (r *Registry) pull(ctx context.Context, image string) ([]byte, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return nil, err
	}
	// Not through Transport, which may remember what a tag was.
	img, err := remote.Image(ref, r.options(ctx, false)...)
	if err != nil {
		return nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	var found *v1.Descriptor
	for i := range m.Layers {
		if m.Layers[i].MediaType != dataLayer {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("it has several layers of %s, and a list is one", dataLayer)
		}
		found = &m.Layers[i]
	}
	if found == nil {
		return nil, fmt.Errorf("it has no layer of %s", dataLayer)
	}
	if found.Size > maxList {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", found.Size, maxList)
	}
	layer, err := img.LayerByDigest(found.Digest)
	if err != nil {
		return nil, err
	}
	body, err := layer.Uncompressed()
	if err != nil {
		return nil, err
	}
	defer body.Close()
	b, err := io.ReadAll(io.LimitReader(body, maxList+1))
	if err == nil && len(b) > maxList {
		err = fmt.Errorf("it has more than %d bytes", maxList)
	}
	return b, err
}

// Push writes a list to a registry. invocation is the command line that made it; it
// stays in the artifact's history.
func (r *Registry) Push(ctx context.Context, image string, data []byte, invocation string) error {
	ref, err := name.ParseReference(image)
	if err != nil {
		return fmt.Errorf("writing the list to %s: %w", image, err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.Append(img, mutate.Addendum{
		History: v1.History{CreatedBy: invocation}, MediaType: dataLayer,
		Layer: static.NewLayer(data, dataLayer), Annotations: map[string]string{titleKey: dataTitle},
	}); err == nil {
		err = remote.Write(ref, img, r.options(ctx, false)...)
	}
	if err != nil {
		return fmt.Errorf("writing the list to %s: %w", image, err)
	}
	return nil
}
