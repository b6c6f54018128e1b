package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/internal/gate"
	"assay.dev/assay/store"
	"assay.dev/assay/store/attached"
	"assay.dev/assay/store/oci"
)

// hanger is an image in a registry, and the store of what hangs on it.
type hanger struct {
	*oci.Store
	subject store.Subject
}

// hangsOn finds an image, to read what hangs on it.
func (a *app) hangsOn(ctx context.Context, ref, platform string) (*hanger, error) {
	h, cfg, err := findHome()
	if err != nil {
		return nil, err
	}
	rt, err := embedded(h, cfg)
	if err != nil {
		return nil, err
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, usagef("%v", err)
	}
	if rt, err = gate.Authorized(ctx, ref, rt, cfg.Registry); err != nil {
		return nil, err
	}
	return resolve(ctx, r, rt, platform)
}

// hangOn finds an image, to hang something on it.
func (a *app) hangOn(ctx context.Context, ref, platform string) (*hanger, error) {
	_, cfg, err := findHome()
	if err != nil {
		return nil, err
	}
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, usagef("%v", err)
	}
	if r.Context().RegistryStr() == cfg.Registry {
		return nil, usagef("%s is in the embedded registry, where the observer and the releaser alone put evidence; copy the image to another registry (assay release, cosign copy) and attach there", ref)
	}
	rt, err := oci.Authorize(ctx, r.Context(), http.DefaultTransport, authn.DefaultKeychain, true)
	if err != nil {
		return nil, err
	}
	return resolve(ctx, r, rt, platform)
}

func resolve(ctx context.Context, r name.Reference, rt http.RoundTripper, platform string) (*hanger, error) {
	s := oci.New(r.Context(), rt, oci.Options{})
	subject, _, err := s.Resolve(ctx, r.Identifier())
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("no such image; check repository, tag and digest: %w", err)
	}
	if err != nil {
		return nil, err
	}
	if platform == "" {
		return &hanger{s, subject}, nil
	}
	m, err := s.Manifest(ctx, subject.Digest)
	if err != nil {
		return nil, err
	}
	var have []string
	for _, d := range m.Members {
		if d.Platform == platform {
			if subject, _, err = s.Resolve(ctx, d.Digest); err != nil {
				return nil, err
			}
			return &hanger{s, subject}, nil
		}
		have = append(have, d.Platform)
	}
	if len(m.Members) == 0 {
		return nil, usagef("--platform %s: %s is no index", platform, subject.Ref())
	}
	return nil, usagef("--platform %s: the index has %q", platform, have)
}

// loadPublicKeys reads public keys to try, by whatever names assay verify --key knows.
func loadPublicKeys(ctx context.Context, refs ...string) ([]attached.Key, error) {
	var out []attached.Key
	for _, ref := range refs {
		k, err := publicKey(ctx, ref, "")
		if err != nil {
			return nil, err
		}
		p, err := dsse.NewPublicKey(k.Public)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		out = append(out, attached.Key{Name: k.Name, Public: p})
	}
	return out, nil
}

// readFile reads a file, or standard input for -, of at most max bytes.
func (a *app) readFile(path string, max int64) ([]byte, error) {
	if path == "-" {
		return readAll(a.in, "standard input", max)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, path, max)
}
