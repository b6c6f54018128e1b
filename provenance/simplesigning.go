package provenance

import (
	"encoding/json"
	"fmt"

	"assay.dev/assay/hint"
)

// Image is what is signed about one image, and the keys under which it is kept.
type Image struct {
	// FullKey is repository@sha256:….
	FullKey string `json:"fullKey"`
	// ShortKey is the digest's first twelve characters.
	ShortKey string `json:"shortKey"`
	// Payload is the simple signing document, byte for byte as it is signed.
	Payload json.RawMessage `json:"payload"`
}

// SimpleSigning lists what there is to sign about the images that a TaskRun
// says it pushed, each image once. As upstream it looks at the TaskRun's own
// results only: PipelineRuns and StepActions yield none. Options.Keep narrows
// it; nothing left is no error. It fails for a zero Input.
func SimpleSigning(in Input, opts Options) ([]Image, error) {
	if err := in.check(); err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	images := []Image{}
	if in.TaskRun == nil {
		return images, nil
	}
	seen := map[string]bool{}
	for _, c := range hint.OfTaskRun(in.TaskRun).Images {
		if opts.Keep != nil && !opts.Keep(Subject{Name: c.URI, Digest: c.Digest, Claim: c}) {
			continue
		}
		img := NewImage(c.URI, c.Digest.Hex)
		if !seen[img.FullKey] {
			seen[img.FullKey] = true
			images = append(images, img)
		}
	}
	return images, nil
}

// NewImage is what is signed about the image of that repository and SHA-256
// digest, in hex. It checks neither; hint does.
func NewImage(repository, hex string) Image {
	digest := "sha256:" + hex
	var e encoder
	e.open('{')
	e.key("critical")
	e.open('{')
	e.key("identity")
	e.open('{')
	e.field("docker-reference", repository)
	e.close('}')
	e.key("image")
	e.open('{')
	e.field("docker-manifest-digest", digest)
	e.close('}')
	e.field("type", "cosign container image signature")
	e.close('}')
	e.key("optional")
	e.literal("null")
	e.close('}')
	return Image{FullKey: repository + "@" + digest, ShortKey: hex[:min(12, len(hex))], Payload: e.buf}
}
