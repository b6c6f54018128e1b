package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"assay.dev/assay/api"
	"assay.dev/assay/sbom"
	"assay.dev/assay/task/layout"
)

// Attach pushes data as an artifact that refers to subject, and sets tags on
// it for readers that know no referrers. It returns the descriptors of the data
// and of the artifact's manifest.
func (r *Repository) Attach(ctx context.Context, subject ocispec.Descriptor, artifactType, mediaType string, data []byte, annotations map[string]string, tags ...string) (blob, manifest ocispec.Descriptor, err error) {
	if blob, err = r.push(ctx, mediaType, data); err != nil {
		return blob, manifest, err
	}
	if _, err = r.push(ctx, ocispec.MediaTypeEmptyJSON, ocispec.DescriptorEmptyJSON.Data); err != nil {
		return blob, manifest, err
	}
	manifest, err = r.pushManifest(ctx, ocispec.MediaTypeImageManifest, layout.Referrer(artifactType, withTitle(blob, annotations), subject, artifactAnnotations(annotations)), tags...)
	return blob, manifest, err
}

// withTitle moves the file's name to the layer, where readers look for it.
func withTitle(blob ocispec.Descriptor, annotations map[string]string) ocispec.Descriptor {
	if t := annotations[ocispec.AnnotationTitle]; t != "" {
		blob.Annotations = map[string]string{ocispec.AnnotationTitle: t}
	}
	return blob
}

func artifactAnnotations(in map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range in {
		if k != ocispec.AnnotationTitle {
			out[k] = v
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// Resolve reads the manifest of a digest and returns its descriptor; it fails
// with ErrNotFound when the repository does not have it.
func (r *Repository) Resolve(ctx context.Context, d digest.Digest) (ocispec.Descriptor, error) {
	var raw json.RawMessage
	return r.manifest(ctx, d.String(), &raw)
}

var tagPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// evidenceTag is the form of the tags under which signatures, attestations and
// their like are kept by convention.
var evidenceTag = regexp.MustCompile(`^sha(256|512)-[0-9a-f]{64,}`)

// CheckTag fails on what is not a tag.
func CheckTag(tag string) error {
	if !tagPattern.MatchString(tag) {
		return fmt.Errorf("tag %q: want at most 128 letters, digits, dots, dashes and underscores", tag)
	}
	return nil
}

// Tag sets tags on an image that the repository has. It refuses tags of the
// form that evidence is kept under, before setting any.
func (r *Repository) Tag(ctx context.Context, image digest.Digest, tags []string) error {
	for _, tag := range tags {
		if err := CheckTag(tag); err != nil {
			return fmt.Errorf("tagging %s: %w", image, err)
		}
		if evidenceTag.MatchString(tag) {
			return fmt.Errorf("tagging %s: tag %q has the form that signatures and attestations are kept under", image, tag)
		}
	}
	desc, err := r.Resolve(ctx, image)
	if err != nil {
		return fmt.Errorf("tagging %s: %w", image, err)
	}
	for _, tag := range tags {
		if err := r.repo.Tag(ctx, desc, tag); err != nil {
			return fmt.Errorf("tagging %s as %s: %w", image, tag, err)
		}
	}
	return nil
}

// Bill is the bill of materials of one image.
type Bill struct {
	Image    string // host/path@digest
	Platform string // of an index's image; empty otherwise
	Document *sbom.Document
}

// errEnough ends a listing of referrers.
var errEnough = errors.New("enough")

// maxReferrers bounds how many referrers of one image are looked at.
const maxReferrers = 1000

// Bills reads the bill of materials of an image, and for an index also those of
// its images. It fails with ErrNotFound where one has none.
func (r *Repository) Bills(ctx context.Context, image digest.Digest) ([]Bill, error) {
	var index ocispec.Index
	desc, err := r.manifest(ctx, image.String(), &index)
	if err != nil {
		return nil, err
	}
	out, err := r.bill(ctx, desc, "")
	if err != nil || desc.MediaType != ocispec.MediaTypeImageIndex {
		return out, err
	}
	for _, d := range index.Manifests {
		name := ""
		if d.Platform != nil {
			name = platform(d)
		}
		bills, err := r.bill(ctx, d, name)
		if err != nil {
			return nil, err
		}
		out = append(out, bills...)
	}
	return out, nil
}

// findBill returns the manifest of an image's bill of materials among its
// referrers; its digest is empty when there is none.
func (r *Repository) findBill(ctx context.Context, image ocispec.Descriptor) (ocispec.Descriptor, error) {
	var found ocispec.Descriptor
	seen := 0
	err := r.repo.Referrers(ctx, image, api.MediaTypeSPDX, func(list []ocispec.Descriptor) error {
		for _, d := range list {
			if seen++; seen > maxReferrers {
				return fmt.Errorf("image %s has more than %d referrers", image.Digest, maxReferrers)
			}
			// Not every registry filters.
			if d.ArtifactType == api.MediaTypeSPDX {
				found = d
				return errEnough
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return found, fmt.Errorf("listing referrers of %s: %w", r.at(image.Digest.String()), err)
	}
	return found, nil
}

// tagBill sets cosign's tag on an image's bill of materials, for readers that
// know no referrers. An image without one is left alone.
func (r *Repository) tagBill(ctx context.Context, image ocispec.Descriptor) error {
	found, err := r.findBill(ctx, image)
	if err != nil || found.Digest == "" {
		return err
	}
	tag := layout.SBOMTag(image.Digest)
	if err := r.repo.Tag(ctx, found, tag); err != nil {
		return fmt.Errorf("tagging %s as %s: %w", found.Digest, tag, err)
	}
	return nil
}

func (r *Repository) bill(ctx context.Context, image ocispec.Descriptor, platform string) ([]Bill, error) {
	found, err := r.findBill(ctx, image)
	if err != nil {
		return nil, err
	}
	ref := found.Digest.String()
	if found.Digest == "" {
		ref = layout.SBOMTag(image.Digest)
	}
	var m ocispec.Manifest
	if _, err := r.manifest(ctx, ref, &m); err != nil {
		return nil, fmt.Errorf("reading bill of materials of %s: %w", image.Digest, err)
	}
	if m.Subject != nil && m.Subject.Digest != image.Digest {
		return nil, fmt.Errorf("reading bill of materials of %s: it speaks of %s", image.Digest, m.Subject.Digest)
	}
	if len(m.Layers) != 1 {
		return nil, fmt.Errorf("reading bill of materials of %s: %d layers, want one", image.Digest, len(m.Layers))
	}
	data, err := r.blob(ctx, m.Layers[0], sbom.MaxBytes)
	if err != nil {
		return nil, err
	}
	doc, err := sbom.ReadSPDX(data)
	if err != nil {
		return nil, fmt.Errorf("reading bill of materials of %s: %w", image.Digest, err)
	}
	return []Bill{{Image: r.at(image.Digest.String()), Platform: platform, Document: doc}}, nil
}
