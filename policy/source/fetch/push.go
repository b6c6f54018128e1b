package fetch

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	ggcr "github.com/google/go-containerregistry/pkg/name"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/content/memory"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"assay.dev/assay/policy/source"
)

// ArtifactType is that of a vendored policy in a registry.
const ArtifactType = "application/vnd.assay.policy.v1"

// fileType is the media type of its layers, as ORAS and conftest have it.
const fileType = "application/vnd.oci.image.layer.v1.tar"

// Push puts a vendored folder into a registry as one artifact, each file a layer by its
// title, which is how Conforma and conftest keep policies, and returns its address by
// digest. The same folder has the same digest. It fails on a folder that is not as its
// lock says, and where the registry does.
func Push(ctx context.Context, dir, address string, o Options) (pinned string, err error) {
	ref, err := parseOCI(address)
	if err != nil {
		return "", fmt.Errorf("pushing the policy to %s: %w", Redacted(address), err)
	}
	tag, ok := ref.(ggcr.Tag)
	if !ok {
		return "", fmt.Errorf("pushing the policy to %s: name a tag, not a digest", address)
	}
	digest, err := push(ctx, dir, tag, o)
	if err != nil {
		return "", fmt.Errorf("pushing the policy to %s: %w", tag, err)
	}
	return pinnedOCI(address, digest), nil
}

func push(ctx context.Context, dir string, tag ggcr.Tag, o Options) (string, error) {
	lock, err := ReadLock(filepath.Join(dir, LockName))
	if err != nil {
		return "", err
	}
	if err := lock.Check(ctx); err != nil {
		return "", err
	}
	names := []string{lock.Policy, LockName}
	err = filepath.WalkDir(filepath.Join(dir, "sources"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	if err != nil {
		return "", err
	}
	if len(names) > maxLayers {
		return "", fmt.Errorf("it has %d files, and an artifact holds %d; keep it as a folder", len(names), maxLayers)
	}
	held := memory.New()
	var layers []ocispec.Descriptor
	for _, n := range names {
		b, err := source.ReadFile(filepath.Join(dir, filepath.FromSlash(n)), source.MaxFileBytes)
		if err != nil {
			return "", err
		}
		l := content.NewDescriptorFromBytes(fileType, b)
		// Two files with the same bytes are one blob.
		if ok, err := held.Exists(ctx, l); err != nil {
			return "", err
		} else if !ok {
			if err := held.Push(ctx, l, bytes.NewReader(b)); err != nil {
				return "", err
			}
		}
		l.Annotations = map[string]string{titleKey: n}
		layers = append(layers, l)
	}
	m, err := oras.PackManifest(ctx, held, oras.PackManifestVersion1_1, ArtifactType, oras.PackManifestOptions{
		Layers: layers,
		// A time of its own would make each push another artifact.
		ManifestAnnotations: map[string]string{ocispec.AnnotationCreated: "1970-01-01T00:00:00Z"},
	})
	if err != nil {
		return "", err
	}
	if err := held.Tag(ctx, m, tag.TagStr()); err != nil {
		return "", err
	}
	repo, err := repository(tag, o)
	if err != nil {
		return "", err
	}
	if _, err := oras.Copy(ctx, held, tag.TagStr(), repo, tag.TagStr(), oras.DefaultCopyOptions); err != nil {
		return "", err
	}
	return m.Digest.String(), nil
}

// repository is a registry's, with what the keychain has for it.
func repository(tag ggcr.Tag, o Options) (*remote.Repository, error) {
	repo, err := remote.NewRepository(tag.Context().Name())
	if err != nil {
		return nil, err
	}
	keychain, rt := o.Keychain, o.Transport
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	if rt == nil {
		rt = http.DefaultTransport
	}
	host := tag.RegistryStr()
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(host)
	repo.PlainHTTP = host == "localhost" || ip != nil && ip.IsLoopback()
	repo.Client = &auth.Client{
		Client: &http.Client{Transport: rt},
		Cache:  auth.NewCache(),
		Credential: func(ctx context.Context, _ string) (auth.Credential, error) {
			a, err := authn.Resolve(ctx, keychain, tag.Context())
			if err != nil {
				return auth.EmptyCredential, err
			}
			c, err := authn.Authorization(ctx, a)
			if err != nil {
				return auth.EmptyCredential, err
			}
			return auth.Credential{Username: c.Username, Password: c.Password, RefreshToken: c.IdentityToken, AccessToken: c.RegistryToken}, nil
		},
	}
	return repo, nil
}
