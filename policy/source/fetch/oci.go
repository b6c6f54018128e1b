package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"assay.dev/assay/policy/source"
)

// Annotations of layers that ORAS writes.
const (
	titleKey  = "org.opencontainers.image.title"
	unpackKey = "io.deis.oras.content.unpack"
)

// maxLayers bounds a manifest.
const maxLayers = 4096

// parseOCI reads oci::registry/repo:tag, oci://… and the bare form. Without a tag it
// is latest.
func parseOCI(address string) (name.Reference, error) {
	s := address
	if _, after, ok := strings.Cut(s, "::"); ok {
		s = after
	}
	if _, after, ok := strings.Cut(s, "://"); ok {
		s = after
	}
	host, _, ok := strings.Cut(s, "/")
	if !ok || !strings.ContainsAny(host, ".:") && host != "localhost" {
		return nil, errors.New("reading the address: want a registry and a repository, for example oci::quay.io/org/policy:tag")
	}
	ref, err := name.ParseReference(s)
	if err != nil {
		return nil, fmt.Errorf("reading the address: %w", err)
	}
	return ref, nil
}

// pinnedOCI is an address with a digest, as Conforma writes it: the tag stays.
func pinnedOCI(address, digest string) string {
	for _, p := range []string{"oci::", "oci://", "https://"} {
		address = strings.TrimPrefix(address, p)
	}
	address, _, _ = strings.Cut(address, "@")
	return "oci::" + address + "@" + digest
}

func (f *Fetcher) remote(ctx context.Context) []remote.Option {
	return []remote.Option{
		remote.WithContext(ctx), remote.WithTransport(f.opts.Transport), remote.WithAuthFromKeychain(f.opts.Keychain),
		// The transport tries again.
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}), remote.WithRetryPredicate(func(error) bool { return false }), remote.WithRetryStatusCodes(),
	}
}

// oci fetches the files of an artifact: its layers, by their titles.
func (f *Fetcher) oci(ctx context.Context, address string) (*source.Tree, error) {
	ref, err := parseOCI(address)
	if err != nil {
		return nil, err
	}
	if d, ok := ref.(name.Digest); ok {
		if t, err := f.cache.get(ociKey(ref, d.DigestStr()), pinnedOCI(address, d.DigestStr())); err == nil {
			return f.signed(ctx, d, t)
		}
	}
	desc, err := remote.Get(ref, f.remote(ctx)...)
	if err != nil {
		return nil, explainOCI(ref, err)
	}
	digest := desc.Digest.String()
	at := ref.Context().Digest(digest)
	if t, err := f.cache.get(ociKey(ref, digest), pinnedOCI(address, digest)); err == nil {
		return f.signed(ctx, at, t)
	}
	if desc.MediaType.IsIndex() {
		return nil, fmt.Errorf("reading %s: it is a list of images (%s) and no artifact with rules; name one of its manifests by digest", ref, desc.MediaType)
	}
	var m v1.Manifest
	if err := json.Unmarshal(desc.Manifest, &m); err != nil {
		return nil, fmt.Errorf("reading the manifest of %s: %w", ref, err)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("reading %s: it has more than %d layers", ref, maxLayers)
	}
	// Who signed is asked before anything of it is taken.
	if _, err := f.signed(ctx, at, nil); err != nil {
		return nil, err
	}
	t, err := f.cache.put(ctx, ociKey(ref, digest), pinnedOCI(address, digest), func(ctx context.Context, p *place) error {
		var total int64
		for _, l := range m.Layers {
			title := l.Annotations[titleKey]
			if title == "" {
				continue
			}
			if total += l.Size; l.Size < 0 || total > f.opts.Limits.Transfer {
				return fmt.Errorf("its layers have more than %d MiB", f.opts.Limits.Transfer>>20)
			}
			if err := f.layer(ctx, ref.Context(), l, title, p); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, errNoTree) {
		return nil, fmt.Errorf("reading %s: none of its layers has a file's name (annotation %s), so it is no artifact with rules or data", ref, titleKey)
	}
	return t, err
}

func ociKey(ref name.Reference, digest string) string {
	return "oci " + ref.Context().Name() + "@" + digest
}

// signed asks whether somebody who may has signed the artifact.
func (f *Fetcher) signed(ctx context.Context, at name.Digest, t *source.Tree) (*source.Tree, error) {
	if f.opts.Signed == nil {
		return t, nil
	}
	if err := f.opts.Signed(ctx, at); err != nil {
		return nil, fmt.Errorf("checking who signed %s: %w", at, err)
	}
	return t, nil
}

// layer writes one file, or unpacks one archive.
func (f *Fetcher) layer(ctx context.Context, repo name.Repository, l v1.Descriptor, title string, p *place) error {
	if err := checkName(title); err != nil {
		return fmt.Errorf("reading layer %s: %w", l.Digest, err)
	}
	layer, err := remote.Layer(repo.Digest(l.Digest.String()), f.remote(ctx)...)
	if err != nil {
		return fmt.Errorf("reading %s (layer %s): %w", title, l.Digest, err)
	}
	r, err := layer.Compressed()
	if err != nil {
		return fmt.Errorf("reading %s (layer %s): %w", title, l.Digest, explainOCI(repo.Digest(l.Digest.String()), err))
	}
	defer r.Close()
	// The reader checks the digest at the end, which has to be reached.
	all := &bound{r: r, left: l.Size, what: title}
	if l.Annotations[unpackKey] == "true" {
		err = p.tarGzip(title, all)
	} else {
		err = p.file(title, all)
	}
	if err != nil {
		return fmt.Errorf("reading layer %s: %w", l.Digest, err)
	}
	if _, err := io.Copy(io.Discard, all); err != nil {
		return fmt.Errorf("reading %s (layer %s): %w", title, l.Digest, err)
	}
	return nil
}

func explainOCI(ref name.Reference, err error) error {
	var te *transport.Error
	if errors.As(err, &te) {
		switch te.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("reading %s: the registry wants credentials or refuses these; log in (docker login %s): %w", ref, ref.Context().RegistryStr(), err)
		case http.StatusNotFound:
			return fmt.Errorf("reading %s: the registry does not have it: %w", ref, err)
		}
	}
	return fmt.Errorf("reading %s: %w", ref, err)
}
