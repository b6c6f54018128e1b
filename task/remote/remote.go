// Package remote is what the tasks that hold a registry token do with it: make
// an image index of images that are there already, hang files on an image, set
// tags, and read a bill of materials.
//
// Nothing here pulls or runs an image. Every manifest read is bounded and
// compared with the digest it was asked for by.
package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	oras "oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/retry"
)

// maxManifest bounds manifests and configurations; registries take 4 MiB.
const maxManifest = 4 << 20

// Repository is one repository of a registry.
type Repository struct {
	name string // host/path
	repo *oras.Repository
}

// Open names a repository by any reference in it; tag and digest are left
// aside. Registries on loopback are spoken to without TLS, as is the custom.
// It contacts nobody.
func Open(ref string, creds Credentials) (*Repository, error) {
	r, err := ParseRef(ref)
	if err != nil {
		return nil, err
	}
	repo, err := oras.NewRepository(r.Name)
	if err != nil {
		return nil, fmt.Errorf("reference %q: %w", ref, err)
	}
	repo.PlainHTTP = loopback(repo.Reference.Registry)
	login := creds.For(r.Name)
	repo.Client = &auth.Client{
		Client: retry.DefaultClient,
		Cache:  auth.NewCache(),
		Credential: func(_ context.Context, host string) (auth.Credential, error) {
			// The login is the repository's; a redirect elsewhere must not get it.
			if host != repo.Reference.Host() {
				return auth.EmptyCredential, nil
			}
			return auth.Credential{Username: login.Username, Password: login.Password}, nil
		},
		Header: http.Header{"User-Agent": {"assay-task"}},
	}
	return &Repository{name: r.Name, repo: repo}, nil
}

// Name is host/path.
func (r *Repository) Name() string { return r.name }

func loopback(host string) bool {
	h, _, err := net.SplitHostPort(host)
	if err != nil {
		h = host
	}
	ip := net.ParseIP(strings.Trim(h, "[]"))
	return h == "localhost" || ip != nil && ip.IsLoopback()
}

// Ref is a reference taken apart; Tag and Digest may both be empty, or both set.
type Ref struct {
	Name   string // host/path
	Tag    string
	Digest digest.Digest
}

// ParseRef reads host/path[:tag][@digest]. It fails when there is no host, as
// a name without one would be somebody's default registry.
func ParseRef(s string) (Ref, error) {
	var out Ref
	rest := s
	if i := strings.IndexByte(rest, '@'); i >= 0 {
		d, err := digest.Parse(rest[i+1:])
		if err != nil {
			return Ref{}, fmt.Errorf("reference %q: %w", s, err)
		}
		if d.Algorithm() != digest.SHA256 {
			return Ref{}, fmt.Errorf("reference %q: digest algorithm %s is not supported: want sha256", s, d.Algorithm())
		}
		out.Digest, rest = d, rest[:i]
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		out.Tag, rest = rest[i+1:], rest[:i]
		if err := CheckTag(out.Tag); err != nil {
			return Ref{}, fmt.Errorf("reference %q: %w", s, err)
		}
	}
	parsed := registry.Reference{}
	host, path, ok := strings.Cut(rest, "/")
	if ok {
		parsed.Registry, parsed.Repository = host, path
	}
	if !ok || !(strings.ContainsAny(host, ".:") || host == "localhost") {
		return Ref{}, fmt.Errorf("reference %q: want registry/repository, such as registry.example/team/app", s)
	}
	if err := parsed.Validate(); err != nil {
		return Ref{}, fmt.Errorf("reference %q: %w", s, err)
	}
	out.Name = rest
	return out, nil
}

// String is the reference again.
func (r Ref) String() string {
	s := r.Name
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest.String()
	}
	return s
}

// manifest reads a manifest by digest or tag into a value and returns its
// descriptor, with the media type the registry served it as.
func (r *Repository) manifest(ctx context.Context, ref string, into any) (ocispec.Descriptor, error) {
	desc, rc, err := r.repo.Manifests().FetchReference(ctx, ref)
	if errors.Is(err, errdef.ErrNotFound) {
		return ocispec.Descriptor{}, fmt.Errorf("%s: %w", r.at(ref), ErrNotFound)
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("reading manifest %s: %w", r.at(ref), err)
	}
	defer rc.Close()
	data, err := readAll(rc, desc)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("reading manifest %s: %w", r.at(ref), err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("reading manifest %s: %w", r.at(ref), err)
	}
	return desc, nil
}

func (r *Repository) at(ref string) string {
	if strings.Contains(ref, ":") {
		return r.name + "@" + ref
	}
	return r.name + ":" + ref
}

// blob reads a small blob.
func (r *Repository) blob(ctx context.Context, desc ocispec.Descriptor, limit int64) ([]byte, error) {
	if desc.Size > limit {
		return nil, fmt.Errorf("blob %s has %d bytes, more than the %d allowed", desc.Digest, desc.Size, limit)
	}
	rc, err := r.repo.Blobs().Fetch(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", r.at(desc.Digest.String()), err)
	}
	defer rc.Close()
	data, err := content.ReadAll(rc, desc)
	if err != nil {
		return nil, fmt.Errorf("reading blob %s: %w", r.at(desc.Digest.String()), err)
	}
	return data, nil
}

func readAll(rc io.Reader, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > maxManifest {
		return nil, fmt.Errorf("%d bytes, more than the %d allowed", desc.Size, maxManifest)
	}
	return content.ReadAll(rc, desc)
}

// ErrNotFound says that the registry has nothing by that name.
var ErrNotFound = errors.New("not found in the registry")

// push uploads a blob unless it is there.
func (r *Repository) push(ctx context.Context, mediaType string, data []byte) (ocispec.Descriptor, error) {
	desc := content.NewDescriptorFromBytes(mediaType, data)
	there, err := r.repo.Blobs().Exists(ctx, desc)
	if err != nil {
		return desc, fmt.Errorf("pushing to %s: %w", r.name, err)
	}
	if there {
		return desc, nil
	}
	if err := r.repo.Blobs().Push(ctx, desc, bytes.NewReader(data)); err != nil {
		return desc, fmt.Errorf("pushing to %s: %w", r.name, err)
	}
	return desc, nil
}

// pushManifest uploads a manifest and sets tags on it, if any.
func (r *Repository) pushManifest(ctx context.Context, mediaType string, v any, tags ...string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("pushing to %s: %w", r.name, err)
	}
	desc := content.NewDescriptorFromBytes(mediaType, data)
	if len(tags) == 0 {
		if err := r.repo.Manifests().Push(ctx, desc, bytes.NewReader(data)); err != nil {
			return desc, fmt.Errorf("pushing to %s: %w", r.name, err)
		}
	}
	for _, tag := range tags {
		if err := r.repo.Manifests().PushReference(ctx, desc, bytes.NewReader(data), tag); err != nil {
			return desc, fmt.Errorf("pushing to %s:%s: %w", r.name, tag, err)
		}
	}
	return desc, nil
}
