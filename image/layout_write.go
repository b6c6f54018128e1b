package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// WriteLayout writes an image as an OCI layout into dir, which must be empty or
// not exist yet. ref, if not empty, becomes its name in index.json. index.json
// comes last: a layout that broke off is none.
func WriteLayout(ctx context.Context, dir, ref string, img v1.Image) error {
	if err := writeLayout(ctx, dir, ref, img); err != nil {
		return fmt.Errorf("writing layout: %w", err)
	}
	return nil
}

func writeLayout(ctx context.Context, dir, ref string, img v1.Image) error {
	blobs := filepath.Join(dir, "blobs", "sha256")
	if old, err := os.ReadDir(dir); err == nil && len(old) > 0 {
		return fmt.Errorf("%s is not empty", dir)
	}
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := writeLayer(blobs, l); err != nil {
			return err
		}
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	m, err := newManifest(manifest)
	if err != nil {
		return err
	}
	if ref != "" {
		m.Descriptor.Annotations = map[string]string{"org.opencontainers.image.ref.name": ref}
	}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{m.Descriptor}})
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		b    []byte
	}{
		{filepath.Join(blobs, hexOf(digestOf(config))), config},
		{filepath.Join(blobs, hexOf(digestOf(manifest))), manifest},
		{filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{filepath.Join(dir, "index.json"), index},
	} {
		if err := os.WriteFile(f.name, f.b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func writeLayer(blobs string, l v1.Layer) (err error) {
	d, err := l.Digest()
	if err != nil {
		return err
	}
	r, err := l.Compressed()
	if err != nil {
		return err
	}
	defer r.Close()
	f, err := os.Create(filepath.Join(blobs, d.Hex))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
