package remote

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"assay.dev/assay/api"
	"assay.dev/assay/sbom"
	"assay.dev/assay/task/layout"
)

// IndexOptions say which index to make. Image and Images are required.
type IndexOptions struct {
	// Image is where the index goes: a repository, with a tag or without.
	Image string
	// Images are the images of it, by digest and in the same repository.
	Images []string
	// Annotations of the index.
	Annotations map[string]string
	// Epoch is the time stated in the index's bill of materials.
	Epoch time.Time
	// Title names the image in the bill of materials; empty: the title label
	// of the first image, else the repository's last element.
	Title string
}

// IndexResult is the index as pushed.
type IndexResult struct {
	Name     string // host/path[:tag] as asked
	Index    ocispec.Descriptor
	Images   []string // by digest, in the index's order
	SBOMBlob ocispec.Descriptor
}

// BuildIndex pushes an index of images, with the platforms that their own
// configurations state, and its bill of materials; the bills that its images
// have already get the tag of cosign's convention, too. The same images make the
// same index in whatever order they are given. It fails when an image is not
// in the repository, is no image, or two are for one platform.
func BuildIndex(ctx context.Context, o IndexOptions, creds Credentials) (*IndexResult, error) {
	target, err := ParseRef(o.Image)
	if err != nil {
		return nil, fmt.Errorf("building image index: %w", err)
	}
	repo, err := Open(o.Image, creds)
	if err != nil {
		return nil, fmt.Errorf("building image index: %w", err)
	}
	if len(o.Images) == 0 {
		return nil, errors.New("building image index: no images; hint: parameter IMAGES lists them")
	}
	var images []ocispec.Descriptor
	title := o.Title
	for _, ref := range o.Images {
		desc, config, err := repo.image(ctx, ref)
		if err != nil {
			return nil, fmt.Errorf("building image index: %w", err)
		}
		if title == "" {
			title = config.Config.Labels[ocispec.AnnotationTitle]
		}
		images = append(images, desc)
	}
	if title == "" {
		title = lastElement(target.Name)
	}
	slices.SortFunc(images, func(a, b ocispec.Descriptor) int {
		return cmp.Or(cmp.Compare(platform(a), platform(b)), cmp.Compare(a.Digest, b.Digest))
	})
	for i := range images[1:] {
		if platform(images[i]) == platform(images[i+1]) {
			return nil, fmt.Errorf("building image index: %s and %s are both for %s", images[i].Digest, images[i+1].Digest, platform(images[i]))
		}
	}
	var tags []string
	if target.Tag != "" {
		tags = append(tags, target.Tag)
	}
	res := &IndexResult{Name: Ref{Name: target.Name, Tag: target.Tag}.String()}
	res.Index, err = repo.pushManifest(ctx, ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned:   specs.Versioned{SchemaVersion: 2},
		MediaType:   ocispec.MediaTypeImageIndex,
		Manifests:   images,
		Annotations: o.Annotations,
	}, tags...)
	if err != nil {
		return nil, fmt.Errorf("building image index: %w", err)
	}
	for _, d := range images {
		res.Images = append(res.Images, target.Name+"@"+d.Digest.String())
		if err := repo.tagBill(ctx, d); err != nil {
			return nil, fmt.Errorf("building image index: %w", err)
		}
	}
	bill, err := indexBill(title, res.Index, images, o.Epoch)
	if err != nil {
		return nil, fmt.Errorf("building image index: %w", err)
	}
	if res.SBOMBlob, _, err = repo.Attach(ctx, res.Index, api.MediaTypeSPDX, api.MediaTypeSPDX, bill,
		map[string]string{ocispec.AnnotationCreated: o.Epoch.UTC().Format(time.RFC3339)},
		layout.SBOMTag(res.Index.Digest)); err != nil {
		return nil, fmt.Errorf("attaching bill of materials: %w", err)
	}
	return res, nil
}

// image resolves one image of the index to a descriptor with its platform.
func (r *Repository) image(ctx context.Context, ref string) (ocispec.Descriptor, *ocispec.Image, error) {
	p, err := ParseRef(ref)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	if p.Digest == "" {
		return ocispec.Descriptor{}, nil, fmt.Errorf("image %s is not given by digest", ref)
	}
	if p.Name != r.name {
		return ocispec.Descriptor{}, nil, fmt.Errorf("image %s is not in %s, where its index goes; hint: copy it there first", ref, r.name)
	}
	var m ocispec.Manifest
	desc, err := r.manifest(ctx, p.Digest.String(), &m)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	if desc.MediaType != ocispec.MediaTypeImageManifest && desc.MediaType != "application/vnd.docker.distribution.manifest.v2+json" {
		return ocispec.Descriptor{}, nil, fmt.Errorf("%s is a %s, not an image of one platform", ref, desc.MediaType)
	}
	data, err := r.blob(ctx, m.Config, maxManifest)
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return ocispec.Descriptor{}, nil, fmt.Errorf("reading configuration of %s: %w", ref, err)
	}
	if config.OS == "" || config.Architecture == "" {
		return ocispec.Descriptor{}, nil, fmt.Errorf("the configuration of %s states no platform", ref)
	}
	return ocispec.Descriptor{
		MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size,
		Platform: &ocispec.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant},
	}, &config, nil
}

func platform(d ocispec.Descriptor) string {
	s := d.Platform.OS + "/" + d.Platform.Architecture
	if d.Platform.Variant != "" {
		s += "/" + d.Platform.Variant
	}
	return s
}

// indexBill says of which images the index consists; each has a bill of its own.
func indexBill(title string, index ocispec.Descriptor, images []ocispec.Descriptor, epoch time.Time) ([]byte, error) {
	image := func(id string, d ocispec.Descriptor, arch string) sbom.Package {
		return sbom.Package{
			ID: id, Name: title, Version: d.Digest.String(), Purpose: "CONTAINER",
			PURL:      sbom.OCIPURL(title, d.Digest.String(), arch),
			Checksums: []sbom.Checksum{{Algorithm: "SHA256", Value: d.Digest.Encoded()}},
		}
	}
	doc := &sbom.Document{Name: title, Created: epoch, Tool: "assay-task", Packages: []sbom.Package{image("image-index", index, "")}}
	doc.Relations = append(doc.Relations, sbom.Relation{From: sbom.DocumentID, Type: sbom.Describes, To: "image-index"})
	for _, d := range images {
		p := image("image-"+d.Digest.Encoded()[:16], d, d.Platform.Architecture)
		doc.Packages = append(doc.Packages, p)
		doc.Relations = append(doc.Relations, sbom.Relation{From: p.ID, Type: sbom.VariantOf, To: "image-index"})
	}
	return sbom.WriteSPDX(doc)
}

func lastElement(name string) string {
	for i := len(name) - 1; i >= 0; i-- {
		if name[i] == '/' {
			return name[i+1:]
		}
	}
	return name
}
