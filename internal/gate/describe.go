package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/verify"
)

// container says whether a media type is that of what a container is started with.
func container(mediaType string) bool {
	return mediaType == "application/vnd.oci.image.config.v1+json" || mediaType == "application/vnd.docker.container.image.v1+json"
}

// maxConfig bounds an image's configuration.
const maxConfig = 4 << 20

// config reads what an image says a container of it is started with; nil for what
// is no container image. Rules look at it, so that not to know it is an error.
func (g *Gate) config(ctx context.Context, m *manifest) (json.RawMessage, error) {
	var parts struct {
		Config struct {
			MediaType string `json:"mediaType"`
			Digest    string `json:"digest"`
		} `json:"config"`
	}
	if json.Unmarshal(m.bytes, &parts) != nil || !container(parts.Config.MediaType) {
		return nil, nil
	}
	raw, err := g.blob(ctx, m, parts.Config.Digest)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of %s: %w", m.ref(), err)
	}
	if err := strictjson.Check(raw, maxConfig); err != nil {
		return nil, fmt.Errorf("reading the configuration of %s: %w", m.ref(), err)
	}
	members, err := strictjson.Object(raw)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of %s: %w", m.ref(), err)
	}
	return members["config"], nil
}

// blob reads a small blob, again where the answer ended midway.
func (g *Gate) blob(ctx context.Context, m *manifest, digest string) ([]byte, error) {
	b, err := g.readBlob(ctx, m, digest)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return g.readBlob(ctx, m, digest)
	}
	return b, err
}

func (g *Gate) readBlob(ctx context.Context, m *manifest, digest string) ([]byte, error) {
	if !sha256Digest.MatchString(digest) {
		return nil, fmt.Errorf("%q is no sha256 digest", digest)
	}
	rt, err := g.authorized(ctx, m.repo)
	if err != nil {
		return nil, err
	}
	u := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", m.repo.Scheme(), m.repo.RegistryStr(), m.repo.RepositoryStr(), digest)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, err
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the registry answers %s", resp.Status)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxConfig+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxConfig {
		return nil, fmt.Errorf("larger than %d MiB", maxConfig>>20)
	}
	if got := digestOf(raw); got != digest {
		return nil, fmt.Errorf("the registry sent %s instead of %s", got, digest)
	}
	return raw, nil
}

// bundleManifests is the label that says where an operator bundle has its manifests.
const bundleManifests = "operators.operatorframework.io.bundle.manifests.v1"

// bundled are the manifests in an operator bundle, by path; nil for other images.
func (g *Gate) bundled(ctx context.Context, m *manifest, config json.RawMessage) (json.RawMessage, error) {
	var c struct{ Labels map[string]string }
	if len(config) == 0 || json.Unmarshal(config, &c) != nil || c.Labels[bundleManifests] == "" {
		return nil, nil
	}
	set, err := g.Functions()
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(m.repo.Digest(m.digest), remote.WithContext(ctx), remote.WithTransport(g.base), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err == nil {
		var files json.RawMessage
		if files, err = set.Files(ctx, img, []string{c.Labels[bundleManifests]}); err == nil {
			return files, nil
		}
	}
	return nil, fmt.Errorf("reading the manifests in the operator bundle %s: %w", m.ref(), err)
}

// Functions are the built-in functions of rules. They read through the gate's cache
// and believe, beside what a call of ec.sigstore names, the gate's Sigstore instances.
// Which registries a rule may ask is the policy's to say.
func (g *Gate) Functions() (*builtin.Set, error) {
	g.open()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.functions == nil {
		set, err := builtin.New(builtin.Options{Transport: g.base, Keychain: authn.DefaultKeychain, Verify: signatures{g}})
		if err != nil {
			return nil, err
		}
		g.functions = set
	}
	return g.functions, nil
}

// signatures verifies for rules.
type signatures struct{ *Gate }

var _ builtin.Verifier = signatures{}

func (s signatures) evidence(ctx context.Context, ref name.Digest, o builtin.SigstoreOptions, image bool) (*verify.Evidence, error) {
	m, err := s.resolve(ctx, ref.Name())
	if err != nil {
		return nil, err
	}
	opts := verify.Options{At: s.At, Log: s.Log, WithoutSignature: !image, WithoutProvenance: true}
	if o.PublicKey != "" {
		k, err := verify.ParsePublicKey([]byte(o.PublicKey))
		if err != nil {
			return nil, err
		}
		opts.Keys = []verify.Key{k}
	} else {
		opts.Instances = s.Instances
		opts.Identities = []verify.CertificateIdentity{{
			SAN: o.CertificateIdentity, SANRegexp: anywhere(o.CertificateIdentityRegexp),
			Issuer: o.CertificateOIDCIssuer, IssuerRegexp: anywhere(o.CertificateOIDCIssuerRegexp),
		}}
	}
	st, err := s.store(ctx, m.repo)
	if err != nil {
		return nil, err
	}
	items, err := st.List(ctx, m.digest)
	if err != nil {
		return nil, err
	}
	return verify.Items(m.ref(), m.bytes, items, opts)
}

// anywhere is an expression as cosign means it, for one that has to match everything.
func anywhere(expression string) string {
	if expression == "" {
		return ""
	}
	return "(?s:.*)(?:" + expression + ")(?s:.*)"
}

func forRules(id verify.Identity, sig string) builtin.Signature {
	out := builtin.Signature{KeyID: id.KeyID, Sig: sig}
	if c := id.Certificate; c != nil {
		out.Metadata = map[string]string{"Issuer": c.Issuer, "Subject Alternative Name": c.SAN}
	}
	return out
}

// VerifyImage implements builtin.Verifier.
func (s signatures) VerifyImage(ctx context.Context, ref name.Digest, o builtin.SigstoreOptions) ([]builtin.Signature, error) {
	e, err := s.evidence(ctx, ref, o, true)
	if err != nil {
		return nil, err
	}
	var out []builtin.Signature
	for _, x := range e.Signatures() {
		out = append(out, forRules(x.Identity, x.Sig))
	}
	return out, nil
}

// VerifyAttestation implements builtin.Verifier.
func (s signatures) VerifyAttestation(ctx context.Context, ref name.Digest, o builtin.SigstoreOptions) ([]builtin.Attestation, error) {
	e, err := s.evidence(ctx, ref, o, false)
	if err != nil {
		return nil, err
	}
	var out []builtin.Attestation
	for _, x := range e.Statements() {
		out = append(out, builtin.Attestation{Statement: x.Payload, Signatures: []builtin.Signature{forRules(x.Identity, x.Sig)}})
	}
	return out, nil
}
