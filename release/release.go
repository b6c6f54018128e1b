// Package release copies what a verdict let through, and nothing else: exactly
// the judged manifests by digest, what they consist of, and the evidence about
// them; tags last. It is used by the releaser's process, the only holder of
// destination credentials.
//
//	verdict ─▶ still valid? ─▶ blobs ─▶ manifests ─▶ evidence ─▶ read back ─▶ tags
//
// Until the tags are set nobody is pointed at anything; if something fails
// before, what was copied lies there unnamed.
package release

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/api"
	"assay.dev/assay/image"
	"assay.dev/assay/policy"
)

// Order is what to release.
type Order struct {
	// Verdicts are those of the reference and, for an index, of its images; the
	// first is the reference's.
	Verdicts []*policy.Verdict
	// Destination is a repository; every verdict must name it.
	Destination string
	Tags        []string
}

// Released is what is at the destination now.
type Released struct {
	Image    string   `json:"image"` // repo@sha256:…
	Tags     []string `json:"tags"`
	Digests  []string `json:"digests"`  // the judged manifests
	Evidence []string `json:"evidence"` // manifests of signatures, attestations, bills of materials
}

// maxManifest bounds what is read of one manifest, maxBlob of one blob.
const maxBlob = 64 << 30

// Check refuses an order that its verdicts do not cover.
func (o Order) Check(now time.Time) error {
	if len(o.Verdicts) == 0 {
		return errors.New("releasing: no verdict")
	}
	var judged []string
	for _, v := range o.Verdicts {
		switch {
		case v.Result != policy.Pass:
			return fmt.Errorf("releasing %s: the policy says %s", v.Image, v.Result)
		case v.Destination != o.Destination:
			return fmt.Errorf("releasing %s: it was judged for %q, not for %q", v.Image, v.Destination, o.Destination)
		case !now.Before(v.Expiry):
			return fmt.Errorf("releasing %s: the verdict expired at %s; judge it again", v.Image, v.Expiry.Format(time.RFC3339))
		}
		_, d, _ := strings.Cut(v.Image, "@")
		judged = append(judged, d)
	}
	// What is copied are the first verdict's digests, its own first.
	if ds := o.Verdicts[0].Digests; len(ds) == 0 {
		return fmt.Errorf("releasing %s: its verdict names no digests", o.Verdicts[0].Image)
	} else if ds[0] != judged[0] {
		return fmt.Errorf("releasing %s: %s was not judged first", o.Verdicts[0].Image, ds[0])
	}
	for _, d := range o.Verdicts[0].Digests {
		if !slices.Contains(judged, d) {
			return fmt.Errorf("releasing %s: %s belongs to it and was not judged", o.Verdicts[0].Image, d)
		}
	}
	return nil
}

// Copy releases: it checks the order, copies from one registry to the other and
// sets the tags when all of it was read back.
func Copy(ctx context.Context, src, dst *image.Remote, o Order, now time.Time) (*Released, error) {
	if err := o.Check(now); err != nil {
		return nil, err
	}
	repo, top, ok := strings.Cut(o.Verdicts[0].Image, "@")
	if !ok {
		return nil, fmt.Errorf("releasing %s: want a reference by digest", o.Verdicts[0].Image)
	}
	c := &copier{src: src, dst: dst, from: repo, to: o.Destination}
	out := &Released{Image: o.Destination + "@" + top, Tags: o.Tags, Digests: o.Verdicts[0].Digests, Evidence: []string{}}
	// Images before the index that lists them: a registry refuses the other order.
	for i := len(out.Digests) - 1; i >= 0; i-- {
		if err := c.manifest(ctx, out.Digests[i], out.Digests[i]); err != nil {
			return nil, err
		}
	}
	for _, d := range out.Digests {
		evidence, err := c.evidence(ctx, d)
		if err != nil {
			return nil, err
		}
		out.Evidence = append(out.Evidence, evidence...)
	}
	for _, d := range append(slices.Clone(out.Digests), out.Evidence...) {
		if _, err := dst.Head(ctx, o.Destination+"@"+d); err != nil {
			return nil, fmt.Errorf("reading back: %w", err)
		}
	}
	for _, t := range o.Tags {
		if err := dst.Tag(ctx, out.Image, t); err != nil {
			return nil, fmt.Errorf("setting tag %s: %w", t, err)
		}
	}
	return out, nil
}

type copier struct {
	src, dst *image.Remote
	from, to string
}

// manifest copies one manifest and its blobs; as is a digest or a tag.
func (c *copier) manifest(ctx context.Context, digest, as string) error {
	m, err := c.src.Manifest(ctx, c.from+"@"+digest)
	if err != nil {
		return err
	}
	var parts struct {
		Config struct {
			Digest string `json:"digest"`
			Size   int64  `json:"size"`
		} `json:"config"`
		Layers []struct {
			Digest string `json:"digest"`
			Size   int64  `json:"size"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(m.Raw, &parts); err != nil {
		return fmt.Errorf("reading manifest %s: %w", digest, err)
	}
	blobs := parts.Layers
	if parts.Config.Digest != "" {
		blobs = append(blobs, parts.Config)
	}
	for _, b := range blobs {
		if b.Size > maxBlob {
			return fmt.Errorf("blob %s of %d bytes: at most %d", b.Digest, b.Size, int64(maxBlob))
		}
		open := func() (io.ReadCloser, error) { return c.src.Blob(ctx, c.from+"@"+b.Digest, b.Size) }
		if err := c.dst.PushBlob(ctx, c.to, b.Digest, b.Size, open); err != nil {
			return err
		}
	}
	target := c.to + "@" + as
	if !strings.HasPrefix(as, "sha256:") {
		target = c.to + ":" + as
	}
	if _, err := c.dst.PushManifest(ctx, target, types.MediaType(m.Descriptor.MediaType), m.Raw); err != nil {
		return err
	}
	return nil
}

// evidence copies what is kept about a manifest: cosign's tags, bundles and
// bills of materials.
func (c *copier) evidence(ctx context.Context, digest string) ([]string, error) {
	var out []string
	for _, suffix := range []string{".sig", ".att", ".sbom"} {
		tag := strings.Replace(digest, ":", "-", 1) + suffix
		desc, err := c.src.Head(ctx, c.from+":"+tag)
		if errors.Is(err, image.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := c.manifest(ctx, desc.Digest.String(), tag); err != nil {
			return nil, err
		}
		out = append(out, desc.Digest.String())
	}
	refs, err := c.src.Referrers(ctx, c.from+"@"+digest, "")
	if err != nil {
		return nil, err
	}
	for _, r := range refs {
		switch r.ArtifactType {
		case api.MediaTypeBundle, api.MediaTypeSPDX:
		default:
			continue // hung on it by a task, judged by nobody
		}
		if err := c.manifest(ctx, r.Digest.String(), r.Digest.String()); err != nil {
			return nil, err
		}
		out = append(out, r.Digest.String())
	}
	return out, nil
}
