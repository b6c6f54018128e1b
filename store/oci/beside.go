package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"assay.dev/assay/attest/strictjson"
)

// Descriptor names content of the repository, as a manifest or index does.
type Descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	// Platform is that of an index's member, such as linux/amd64; empty elsewhere.
	Platform string `json:"platform,omitempty"`
}

// Manifest is a manifest or index of the repository. What it lists is what it says,
// and not fetched.
type Manifest struct {
	Descriptor
	// Tag it was found by; empty where a digest named it.
	Tag     string
	Config  *Descriptor  // nil in an index
	Layers  []Descriptor // of a manifest
	Members []Descriptor // of an index
	// Subject is the digest that it says it refers to; empty: none.
	Subject string
}

// Suffixes of the tags sha256-<hex>.* under which tools of the field keep what
// belongs to an image: cosign's signatures, attestations and bills of materials,
// and Konflux's sources.
func Suffixes() []string { return []string{suffixSig, suffixAtt, suffixSBOM, ".src"} }

const suffixSBOM = ".sbom"

// Tagged reads the manifest behind an artifact's tag with a suffix, such as .att.
// It is store.ErrNotFound where there is none.
func (s *Store) Tagged(ctx context.Context, digest, suffix string) (*Manifest, error) {
	if !digestForm.MatchString(digest) {
		return nil, fmt.Errorf("%q is not a sha256 digest", digest)
	}
	m, err := s.manifest(ctx, tagFor(digest, suffix))
	if err != nil {
		return nil, err
	}
	m.Tag = tagFor(digest, suffix)
	return m, nil
}

// Manifest reads a manifest or index by its digest.
func (s *Store) Manifest(ctx context.Context, digest string) (*Manifest, error) {
	if !digestForm.MatchString(digest) {
		return nil, fmt.Errorf("%q is not a sha256 digest", digest)
	}
	return s.manifest(ctx, digest)
}

func (s *Store) manifest(ctx context.Context, ref string) (*Manifest, error) {
	b, mediaType, err := s.client.getManifest(ctx, ref, maxManifest)
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", ref, err)
	}
	m, err := parseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("reading manifest %s: %w", ref, err)
	}
	if m.MediaType == "" {
		m.MediaType = mediaType
	}
	return m, nil
}

func parseManifest(b []byte) (*Manifest, error) {
	if err := strictjson.Check(b, maxManifest); err != nil {
		return nil, err
	}
	type descriptorJSON struct {
		descriptor
		Platform *struct {
			OS           string `json:"os"`
			Architecture string `json:"architecture"`
			Variant      string `json:"variant"`
		} `json:"platform"`
	}
	var doc struct {
		MediaType    string            `json:"mediaType"`
		ArtifactType string            `json:"artifactType"`
		Config       *descriptorJSON   `json:"config"`
		Layers       []descriptorJSON  `json:"layers"`
		Manifests    []descriptorJSON  `json:"manifests"`
		Subject      *descriptorJSON   `json:"subject"`
		Annotations  map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, err
	}
	var bad error
	take := func(d descriptorJSON) Descriptor {
		if err := d.check(); err != nil && bad == nil {
			bad = err
		}
		out := Descriptor{d.MediaType, d.Digest, d.Size, d.ArtifactType, d.Annotations, ""}
		if p := d.Platform; p != nil {
			out.Platform = p.OS + "/" + p.Architecture
			if p.Variant != "" {
				out.Platform += "/" + p.Variant
			}
		}
		return out
	}
	m := &Manifest{Descriptor: Descriptor{
		MediaType: doc.MediaType, Digest: digestOf(b), Size: int64(len(b)), ArtifactType: doc.ArtifactType, Annotations: doc.Annotations,
	}}
	if doc.Config != nil {
		c := take(*doc.Config)
		m.Config = &c
		if m.ArtifactType == "" && c.MediaType != mediaTypeConfig && c.MediaType != mediaTypeEmpty {
			m.ArtifactType = c.MediaType // as the specification has it where none is said
		}
	}
	for _, d := range doc.Layers {
		m.Layers = append(m.Layers, take(d))
	}
	for _, d := range doc.Manifests {
		m.Members = append(m.Members, take(d))
	}
	if doc.Subject != nil {
		m.Subject = take(*doc.Subject).Digest
	}
	return m, bad
}

// Referrers lists what says that it refers to a digest, of whatever type, in the
// registry's order. Their manifests are not read.
func (s *Store) Referrers(ctx context.Context, digest string) ([]Descriptor, error) {
	if !digestForm.MatchString(digest) {
		return nil, fmt.Errorf("%q is not a sha256 digest", digest)
	}
	refs, _, err := s.referrers(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("listing what refers to %s@%s: %w", s.repo, digest, err)
	}
	out := make([]Descriptor, len(refs))
	for i, d := range refs {
		out[i] = Descriptor{d.MediaType, d.Digest, d.Size, d.ArtifactType, d.Annotations, ""}
	}
	return out, nil
}

// ErrTooLarge says that a blob has more bytes than the caller wants.
var ErrTooLarge = errors.New("larger than allowed")

// Blob reads a blob of at most max bytes, which match its digest. A missing one is
// store.ErrNotFound, a larger one ErrTooLarge.
func (s *Store) Blob(ctx context.Context, digest string, max int64) ([]byte, error) {
	if !digestForm.MatchString(digest) {
		return nil, fmt.Errorf("%q is not a sha256 digest", digest)
	}
	b, err := s.client.getBlob(ctx, digest, max)
	if errors.Is(err, errTooLarge) {
		return nil, fmt.Errorf("reading blob %s: %w (%d bytes)", digest, ErrTooLarge, max)
	}
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", digest, err)
	}
	return b, nil
}
