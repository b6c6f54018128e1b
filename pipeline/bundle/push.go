package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Image makes the bundle of the given objects, in their order. It fails on no
// object, too many, or two of the same kind and name.
func Image(objects ...*Object) (v1.Image, error) {
	if len(objects) == 0 {
		return nil, errors.New("no object to bundle: give at least one Task, Pipeline or StepAction")
	}
	if len(objects) > MaxObjects {
		return nil, fmt.Errorf("%d objects, but Tekton reads at most %d from one bundle: push several bundles", len(objects), MaxObjects)
	}
	seen := map[[2]string]bool{}
	var img v1.Image = empty.Image
	for _, o := range objects {
		key := [2]string{o.Kind, o.Name}
		if seen[key] {
			return nil, fmt.Errorf("%s %q is there twice", o.Kind, o.Name)
		}
		seen[key] = true
		layer, err := layerOf(o)
		if err != nil {
			return nil, fmt.Errorf("packing %s %q: %w", o.Kind, o.Name, err)
		}
		img, err = mutate.Append(img, mutate.Addendum{
			Layer: layer,
			Annotations: map[string]string{
				AnnotationName:       o.Name,
				AnnotationKind:       o.Kind,
				AnnotationAPIVersion: o.APIVersion,
			},
		})
		if err != nil {
			return nil, fmt.Errorf("adding %s %q: %w", o.Kind, o.Name, err)
		}
	}
	return img, nil
}

// layerOf packs the object as a tar with one file and nothing that changes from
// run to run.
func layerOf(o *Object) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{
		Name:     o.Name,
		Mode:     0o600,
		Size:     int64(len(o.JSON)),
		Typeflag: tar.TypeReg,
		Format:   tar.FormatUSTAR,
	}); err != nil {
		return nil, err
	}
	if _, err := w.Write(o.JSON); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	})
}

// Push writes the objects as one bundle to ref and returns its digest,
// sha256:…. When it fails the reference is as it was before; layers that were
// already uploaded may stay behind in the registry, unreferenced.
func (c *Client) Push(ctx context.Context, ref string, objects ...*Object) (digest string, err error) {
	target, err := name.ParseReference(ref)
	if err != nil {
		return "", fmt.Errorf("reading bundle reference %q: %w", ref, err)
	}
	img, err := Image(objects...)
	if err != nil {
		return "", err
	}
	if err := remote.Write(target, img, c.options(ctx)...); err != nil {
		return "", fmt.Errorf("pushing bundle %s: %w", ref, err)
	}
	hash, err := img.Digest()
	if err != nil {
		return "", fmt.Errorf("computing the digest of bundle %s: %w", ref, err)
	}
	return hash.String(), nil
}
