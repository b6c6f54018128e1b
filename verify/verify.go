// Package verify turns an artifact and a trust into evidence, or an error.
//
//	reference + trust ──▶ Image ──▶ *Evidence ──▶ policy
//	                        │
//	                        └─▶ *NoEvidenceError: what was found, why none of it counts, what to do
//
// Trust is a list of public keys that the caller names, and what he believes of
// each: that its owner is an observer, and for which builders. Nothing that an
// artifact, an envelope or a statement says of itself adds to it. Evidence is
// returned only when it is true: every signature in it was made by one of these
// keys, and every statement names the artifact's digest. What does not verify is
// listed beside it with the reason, and never mixed in.
//
// Read are cosign's .sig and .att tags and Sigstore bundles hung on the artifact
// as referrers. Certificates (Fulcio) and timestamps are not checked here yet:
// bundles signed so are listed as rejected.
//
// A signature by a trusted key says nothing of who else has that key. Where the
// caller trusts transparency logs (Options.Log), each signature and statement says
// which of them proves to hold it, under whose cosignatures; and where he requires
// one, evidence that no log holds does not count. See package attest/tlog.
//
// The package reaches neither Kubernetes nor Tekton nor code that can sign.
// Predicates that it does not know are carried as they are; only of provenance
// and observations does it read a field or two, to say which builder and run
// they speak of.
package verify

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
)

// Options say whom to trust and what must be there. The zero value refuses:
// without keys there is nothing to verify with.
type Options struct {
	// Keys are the keys to trust; one at least.
	Keys []Key
	// WithoutSignature accepts an artifact that has no verified image
	// signature. Default: one is required.
	WithoutSignature bool
	// WithoutProvenance accepts an artifact that has no verified SLSA
	// provenance. Default: one is required.
	WithoutProvenance bool
	// Log says which transparency logs are believed, and whether evidence must be in
	// one. Default: none is looked for.
	Log LogTrust
	// Transport carries requests to the registry, authorised for it. Default:
	// http.DefaultTransport, with anonymous tokens where the registry wants
	// some; see oci.Authorize for credentials.
	Transport http.RoundTripper
	// Insecure allows plain http to registries that are not on this machine.
	Insecure bool
	// Bounds on what is read from the registry.
	Bounds Bounds
}

// Bounds limit what strangers can make us read; the zero value has the defaults
// of oci.Options. Exceeding one is an error, not a shorter list.
type Bounds struct {
	MaxItems      int   // pieces of evidence for one artifact
	MaxItemBytes  int64 // one piece
	MaxTotalBytes int64 // all pieces
}

// Key is a key that the caller trusts, and what for.
type Key struct {
	// Name is how reports call it, such as the file's name.
	Name string
	// Public is an *ecdsa.PublicKey (P-256, P-384), ed25519.PublicKey or
	// *rsa.PublicKey.
	Public crypto.PublicKey
	// Observer says that the key's owner is an observer: a process that the
	// build cannot reach. It holds for the builders in Builders only.
	Observer bool
	// Builders are the builder.id values for which Observer holds: exact ones,
	// or prefixes that end in "/".
	Builders []string
}

// trusted is a Key that was checked.
type trusted struct {
	Key
	public dsse.PublicKey
}

func (k trusted) fits(builder string) bool {
	return builder != "" && slices.ContainsFunc(k.Builders, func(b string) bool {
		return b == builder || strings.HasSuffix(b, "/") && strings.HasPrefix(builder, b)
	})
}

// keyring checks the keys: each usable, none twice, observers with builders.
func (o Options) keyring() ([]trusted, error) {
	if len(o.Keys) == 0 {
		return nil, errors.New("no keys to trust are given; name one with --key FILE or a trust file")
	}
	var ring []trusted
	for i, k := range o.Keys {
		public, err := dsse.NewPublicKey(k.Public)
		if err != nil {
			return nil, fmt.Errorf("key %d (%q): %w", i, k.Name, err)
		}
		if k.Observer && len(k.Builders) == 0 {
			return nil, fmt.Errorf("key %d (%q) is bound as an observer without builders; list the builder.id values it speaks for", i, k.Name)
		}
		if !k.Observer && len(k.Builders) > 0 {
			return nil, fmt.Errorf("key %d (%q) has builders but is not bound as an observer; set its role or leave them out", i, k.Name)
		}
		if slices.Contains(k.Builders, "") || slices.Contains(k.Builders, "/") {
			return nil, fmt.Errorf("key %d (%q): a builder that is empty or only \"/\" fits nothing or everything", i, k.Name)
		}
		if k.Name == "" {
			k.Name = "sha256:" + public.Fingerprint()[:12]
		}
		for _, other := range ring {
			if other.public.Fingerprint() == public.Fingerprint() {
				return nil, fmt.Errorf("keys %q and %q are the same key; what holds for it must be said once", other.Name, k.Name)
			}
		}
		ring = append(ring, trusted{k, public})
	}
	return ring, nil
}

// Image verifies an artifact in a registry, named by tag or digest: it finds its
// evidence and checks it. It returns evidence if, and only if, what Options
// require is among what verified. A *NoEvidenceError says that it is not; any
// other error says that it could not be found out (bad options, unreachable
// registry, no such artifact, more evidence than the bounds allow).
func Image(ctx context.Context, ref string, opts Options) (*Evidence, error) {
	e, err := image(ctx, ref, opts)
	if err != nil {
		var none *NoEvidenceError
		if errors.As(err, &none) {
			return nil, none
		}
		return nil, fmt.Errorf("verifying %s: %w", ref, err)
	}
	return e, nil
}

func image(ctx context.Context, ref string, opts Options) (*Evidence, error) {
	// Before any request: a caller's mistake should not look like the registry's.
	if _, err := opts.keyring(); err != nil {
		return nil, err
	}
	if err := opts.Log.check(); err != nil {
		return nil, err
	}
	var nameOpts []name.Option
	if opts.Insecure {
		nameOpts = append(nameOpts, name.Insecure)
	}
	r, err := name.ParseReference(ref, nameOpts...)
	if err != nil {
		return nil, err
	}
	rt := opts.Transport
	if rt == nil {
		if rt, err = oci.Authorize(ctx, r.Context(), nil, authn.NewMultiKeychain(), false); err != nil {
			return nil, err
		}
	}
	s := oci.New(r.Context(), rt, oci.Options{
		MaxItems: opts.Bounds.MaxItems, MaxItemBytes: opts.Bounds.MaxItemBytes, MaxTotalBytes: opts.Bounds.MaxTotalBytes,
	})
	subject, manifest, err := s.Resolve(ctx, r.Identifier())
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("no such artifact; check repository, tag and digest: %w", err)
	}
	if err != nil {
		return nil, err
	}
	items, err := s.List(ctx, subject.Digest)
	if err != nil {
		return nil, err
	}
	return Items(r.Context().Name()+"@"+subject.Digest, manifest, items, opts)
}

// Items verifies evidence that was found already, wherever that was. Ref is
// repo@sha256:… and manifest the artifact's bytes, which must have that digest.
// Errors are those of Image.
func Items(ref string, manifest []byte, items []store.Item, opts Options) (*Evidence, error) {
	ring, err := opts.keyring()
	if err != nil {
		return nil, err
	}
	if err := opts.Log.check(); err != nil {
		return nil, err
	}
	_, digest, ok := strings.Cut(ref, "@")
	if !ok || digest != digestOf(manifest) {
		return nil, fmt.Errorf("reference %q does not name the digest of the artifact's bytes, %s", ref, digestOf(manifest))
	}
	c := checker{ring: ring, log: opts.Log, digest: digest, manifest: manifest}
	for _, it := range items {
		if err := c.item(it); err != nil {
			c.rejected = append(c.rejected, Rejected{Format: string(it.Format), Digest: it.Digest, Reason: err.Error()})
		}
	}
	c.group()
	c.grade()
	e := &Evidence{
		ref: ref, digest: digest, manifest: manifest,
		signatures: c.signatures, statements: c.statements, runs: c.runs, rejected: c.rejected,
	}
	var missing []string
	if !opts.WithoutSignature && len(e.signatures) == 0 {
		missing = append(missing, "image signature")
	}
	if !opts.WithoutProvenance && !slices.ContainsFunc(c.statements, func(s Statement) bool { return isProvenance(s.PredicateType) }) {
		missing = append(missing, "provenance")
	}
	if len(missing) == 0 && len(e.signatures)+len(e.statements) == 0 {
		missing = append(missing, "signature or statement")
	}
	if len(missing) > 0 {
		none := &NoEvidenceError{Ref: ref, Missing: missing, Found: len(items), Rejected: c.rejected}
		for _, k := range ring {
			none.Keys = append(none.Keys, k.Name)
		}
		return nil, none
	}
	return e, nil
}
