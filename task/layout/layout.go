// Package layout writes an OCI image layout: the folder form of images, which
// the executor exports to the registry once the task that made it is dead.
//
// The first entry of index.json is the image. What follows are manifests that
// speak of it (their subject is the image): the executor pushes them as
// referrers, and under the tag that the annotation
// org.opencontainers.image.ref.name asks for, where there is one.
package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Writer fills one layout. Close completes it; without Close the folder is not
// a layout, so a killed task leaves nothing that reads as an image.
type Writer struct {
	dir       string
	manifests []ocispec.Descriptor
}

// Create begins a layout in dir, which must not exist or be empty.
func Create(dir string) (*Writer, error) {
	blobs := filepath.Join(dir, ocispec.ImageBlobsDir, digest.SHA256.String())
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("creating image layout: %s is not empty", dir)
	}
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return nil, fmt.Errorf("creating image layout: %w", err)
	}
	return &Writer{dir: dir}, nil
}

func (w *Writer) path(d digest.Digest) string {
	return filepath.Join(w.dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// Stream stores what write produces and returns its descriptor.
func (w *Writer) Stream(mediaType string, write func(io.Writer) error) (_ ocispec.Descriptor, err error) {
	f, err := os.CreateTemp(w.dir, "blob-")
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("writing blob: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	h := digest.SHA256.Digester()
	count := &counter{}
	if err := write(io.MultiWriter(f, h.Hash(), count)); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("writing blob: %w", err)
	}
	if err := f.Chmod(0o644); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("writing blob: %w", err)
	}
	if err := f.Close(); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("writing blob: %w", err)
	}
	if err := os.Rename(f.Name(), w.path(h.Digest())); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("writing blob: %w", err)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: h.Digest(), Size: count.n}, nil
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// Blob stores data and returns its descriptor.
func (w *Writer) Blob(mediaType string, data []byte) (ocispec.Descriptor, error) {
	return w.Stream(mediaType, func(to io.Writer) error {
		_, err := io.Copy(to, bytes.NewReader(data))
		return err
	})
}

// JSON stores a value as JSON and returns its descriptor.
func (w *Writer) JSON(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("writing blob: %w", err)
	}
	return w.Blob(mediaType, data)
}

// Add lists a manifest in index.json, in the order of calls.
func (w *Writer) Add(d ocispec.Descriptor) { w.manifests = append(w.manifests, d) }

// Close writes index.json and the layout's marker. It fails when no manifest
// was added.
func (w *Writer) Close() error {
	if len(w.manifests) == 0 {
		return errors.New("closing image layout: it holds no image")
	}
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: w.manifests,
	})
	if err != nil {
		return fmt.Errorf("closing image layout: %w", err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, ocispec.ImageIndexFile), index, 0o644); err != nil {
		return fmt.Errorf("closing image layout: %w", err)
	}
	marker, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return fmt.Errorf("closing image layout: %w", err)
	}
	if err := os.WriteFile(filepath.Join(w.dir, ocispec.ImageLayoutFile), marker, 0o644); err != nil {
		return fmt.Errorf("closing image layout: %w", err)
	}
	return nil
}

// SBOMTag is the tag under which cosign's convention keeps the bill of
// materials of an image, beside the referrer.
func SBOMTag(image digest.Digest) string {
	return image.Algorithm().String() + "-" + image.Encoded() + ".sbom"
}

// Referrer is a manifest that says something about subject: one layer with the
// content, described by the artifact type, as OCI 1.1 has it.
func Referrer(artifactType string, content, subject ocispec.Descriptor, annotations map[string]string) ocispec.Manifest {
	return ocispec.Manifest{
		Versioned:    specs.Versioned{SchemaVersion: 2},
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: artifactType,
		Config:       ocispec.DescriptorEmptyJSON,
		Layers:       []ocispec.Descriptor{content},
		Subject: &ocispec.Descriptor{
			MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size,
		},
		Annotations: annotations,
	}
}
