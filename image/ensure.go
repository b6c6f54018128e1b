package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// Image is an image that is ready on this machine.
type Image struct {
	// Ref is the reference as asked for.
	Ref string `json:"ref"`
	// Repository is where it came from, without tag and digest.
	Repository string `json:"repository"`
	// Digest is that of the platform's manifest, which is what runs.
	Digest string `json:"digest"`
	// Index is the digest of the index that Ref named, if it named one.
	Index string `json:"index,omitempty"`
	// Config says how its maker wants it run.
	Config Config `json:"config"`
	// Layers are lowest first.
	Layers []Layer `json:"layers"`
}

// Pinned is repository@digest of what runs.
func (i *Image) Pinned() string { return i.Repository + "@" + i.Digest }

// Dirs are the layers' folders, lowest first.
func (i *Image) Dirs() []string {
	out := make([]string, len(i.Layers))
	for n, l := range i.Layers {
		out[n] = l.Dir
	}
	return out
}

// Config is the part of an image's configuration that running it needs.
type Config struct {
	Platform   Platform          `json:"platform"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Cmd        []string          `json:"cmd,omitempty"`
	Env        []string          `json:"env,omitempty"` // NAME=value
	User       string            `json:"user,omitempty"`
	WorkingDir string            `json:"workingDir,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
}

// Ensure makes an image ready: it finds out what ref names, picks the
// platform's image (zero: this machine's), fetches what is not in the cache
// and unpacks layers that are not there yet. A reference by digest whose parts
// are all cached needs no network; one by tag always asks.
//
// Errors are *Error. Nothing half made is left.
func (s *Store) Ensure(ctx context.Context, ref string, p Platform) (*Image, error) {
	return s.ensure(ctx, ref, p, false)
}

// Recheck is Ensure that trusts no unpacked layer: each is measured, and one
// that was altered is dropped and unpacked again. It is the remedy when
// VerifyLayer fails.
func (s *Store) Recheck(ctx context.Context, ref string, p Platform) (*Image, error) {
	return s.ensure(ctx, ref, p, true)
}

func (s *Store) ensure(ctx context.Context, ref string, p Platform, recheck bool) (*Image, error) {
	n, err := s.opts.Remote.parse(ref)
	if err != nil {
		return nil, err
	}
	img, err := s.resolve(ctx, n, p.orHost())
	if err != nil {
		return nil, fail("pulling", ref, err)
	}
	out := &Image{Ref: ref, Repository: n.Context().Name(), Digest: img.digest, Index: img.index, Config: img.config, Layers: make([]Layer, len(img.layers))}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(3) // unpacking is disk and one core each; more only fight
	for i, d := range img.layers {
		g.Go(func() (err error) {
			out.Layers[i], err = s.layer(ctx, n.Context(), d, img.diffIDs[i], recheck)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, fail("pulling", ref, err)
	}
	return out, nil
}

// resolved is an image's manifest and configuration, checked.
type resolved struct {
	digest, index string
	config        Config
	layers        []v1.Descriptor
	diffIDs       []string
}

func (s *Store) resolve(ctx context.Context, ref name.Reference, p Platform) (*resolved, error) {
	m, err := s.manifest(ctx, ref)
	if err != nil {
		return nil, err
	}
	out := &resolved{digest: m.Descriptor.Digest.String()}
	if m.IsIndex() {
		idx, err := parseIndex(m.Raw)
		if err != nil {
			return nil, err
		}
		if len(idx.Manifests) > s.opts.Bounds.Manifests {
			return nil, bad("the index lists %d manifests, more than the bound of %d", len(idx.Manifests), s.opts.Bounds.Manifests)
		}
		d, err := p.choose(idx.Manifests)
		if err != nil {
			return nil, err
		}
		out.index, out.digest = out.digest, d.Digest.String()
		if m, err = s.manifest(ctx, ref.Context().Digest(out.digest)); err != nil {
			return nil, fmt.Errorf("reading the image for %s: %w", p, err)
		}
		if m.IsIndex() {
			return nil, bad("the index lists another index for %s, which is not supported; name the image by its own digest", p)
		}
	}
	man, err := parseImage(m.Raw)
	if err != nil {
		return nil, err
	}
	if len(man.Layers) > s.opts.Bounds.Layers {
		return nil, bad("%d layers, more than the bound of %d", len(man.Layers), s.opts.Bounds.Layers)
	}
	for _, l := range man.Layers {
		if err := checkDigest(l.Digest.String()); err != nil {
			return nil, err
		}
		if !layerTypes[l.MediaType] {
			return nil, bad("layer %s is a %s, which is no file system layer that we can unpack; is this an image?", l.Digest, l.MediaType)
		}
		if l.Size < 0 || l.Size > s.opts.Bounds.BlobBytes {
			return nil, bad("layer %s has %d bytes; the bound is %d", l.Digest, l.Size, s.opts.Bounds.BlobBytes)
		}
	}
	if mt := man.Config.MediaType; mt != types.OCIConfigJSON && mt != types.DockerConfigJSON {
		return nil, bad("its configuration is a %s: this is an artifact, not an image that can run", mt)
	}
	raw, err := s.blobBytes(ctx, ref.Context(), man.Config.Digest.String(), man.Config.Size, s.opts.Bounds.ConfigBytes)
	if err != nil {
		return nil, fmt.Errorf("reading configuration: %w", err)
	}
	out.layers = man.Layers
	return out, out.readConfig(raw, p)
}

// layerTypes are what we unpack; how it is compressed its first bytes say.
// Layers to be fetched from elsewhere (foreign, nondistributable) are not here.
var layerTypes = map[types.MediaType]bool{
	types.OCILayer:                true,
	types.OCILayerZStd:            true,
	types.OCIUncompressedLayer:    true,
	types.DockerLayer:             true,
	types.DockerUncompressedLayer: true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd": true,
}

func (r *resolved) readConfig(raw []byte, p Platform) error {
	c, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return bad("parsing configuration: %w", err)
	}
	have := Platform{c.OS, c.Architecture, c.Variant}
	if (c.OS != "" || c.Architecture != "") && p.rank(have) == 0 {
		return &kinded{ErrNotFound, fmt.Errorf("the image is for %s, asked for was %s", have, p)}
	}
	if c.RootFS.Type != "" && c.RootFS.Type != "layers" {
		return bad("its root file system is of type %q, want layers", c.RootFS.Type)
	}
	if len(c.RootFS.DiffIDs) != len(r.layers) {
		return bad("the configuration has %d diffIDs for %d layers", len(c.RootFS.DiffIDs), len(r.layers))
	}
	for _, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d.String()); err != nil {
			return err
		}
		r.diffIDs = append(r.diffIDs, d.String())
	}
	r.config = Config{Platform: have, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env,
		User: c.Config.User, WorkingDir: c.Config.WorkingDir, Labels: c.Config.Labels}
	return nil
}

// manifest gives a manifest from the cache, by digest, or from the registry.
func (s *Store) manifest(ctx context.Context, ref name.Reference) (*Manifest, error) {
	if d, ok := ref.(name.Digest); ok {
		if err := checkDigest(d.DigestStr()); err != nil {
			return nil, err
		}
		if raw, ok := s.cached(d.DigestStr(), s.opts.Bounds.ManifestBytes); ok {
			return newManifest(raw)
		}
	}
	m, err := s.remote.Manifest(ctx, ref.Name())
	if err != nil {
		return nil, err
	}
	return m, s.keep(m.Descriptor.Digest.String(), m.Raw)
}

// damaged is the error of a cached blob that is not what its name says.
type damagedError struct{ err error }

func (d *damagedError) Error() string { return d.err.Error() }
func (d *damagedError) Unwrap() error { return d.err }

// layer gives an unpacked layer, which it makes if need be. A blob that turns
// out damaged is fetched again, once.
func (s *Store) layer(ctx context.Context, repo name.Repository, d v1.Descriptor, diffID string, recheck bool) (Layer, error) {
	if !recheck {
		if l, err := s.readLayer(diffID); err == nil {
			return l, nil
		}
	}
	unlock, err := s.lock(ctx, "layer", diffID)
	if err != nil {
		return Layer{}, err
	}
	defer unlock()
	l, err := s.readLayer(diffID)
	if err == nil && recheck {
		err = VerifyLayer(ctx, l)
	}
	if err == nil {
		return l, nil
	}
	if ctx.Err() != nil {
		return Layer{}, ctx.Err()
	}
	if !errors.Is(err, errNoLayer) {
		s.opts.Log(fmt.Sprintf("cache: layer %s is damaged (%v); unpacking it again", diffID, err))
	}
	l, err = s.makeLayer(ctx, repo, d, diffID)
	if de := (*damagedError)(nil); errors.As(err, &de) {
		s.dropBlob(d.Digest.String())
		l, err = s.makeLayer(ctx, repo, d, diffID)
	}
	if err != nil {
		return Layer{}, fmt.Errorf("unpacking layer %s: %w", d.Digest, err)
	}
	return l, nil
}
