// Package verify turns an artifact and a trust into evidence, or an error.
//
//	image reference + trust ──▶ Image ────┐
//	file, evidence  + trust ──▶ Files ────┼─▶ *Evidence ──▶ policy
//	                                      │
//	                                      └─▶ *NoEvidenceError: what was found, why none of it counts, what to do
//
// Trust is what the caller names: public keys, and what he believes of each (that its
// owner is an observer, and for which builders); and identities in certificates,
// together with the Sigstore instances whose authorities, logs and timestamp
// authorities he believes. Nothing that an artifact, an envelope or a statement says
// of itself adds to it. Evidence is returned only when it is true: every signature in
// it was made by one of these keys or identities, and every statement names the
// artifact's digest. What does not verify is listed beside it with the reason, and
// never mixed in.
//
// Read are cosign's .sig and .att tags and Sigstore bundles hung on the artifact as
// referrers; and, as files, bundles 0.1 to 0.3, bare DSSE envelopes, JSON-lines files
// of either, npm's attestation documents and what Google Cloud Build says of an image.
//
// # Certificates
//
// A certificate names its signer for some minutes, so it matters when it was used,
// and only somebody else can say that: a log that signed a time, or a timestamp
// authority. Each Instance says how many of them it takes (Thresholds), and none is an
// error. So is a time after Options.At, the instant for which the caller asks. The
// cryptography is sigstore-go's. What it gets, it gets after the strict readers of
// this repository have read the same bytes, and both must have seen the same; who may
// sign is decided here (CertificateIdentity).
//
// # Logs
//
// A signature by a trusted key says nothing of who else has that key. Where the
// caller trusts transparency logs (Options.Log), each signature and statement says
// which of them proves to hold it, under whose cosignatures; and where he requires
// one, evidence that no log holds does not count. See package attest/tlog.
//
// # Runs that did not end well
//
// Provenance says how an artifact came to be, and some is made by runs that failed.
// Where a statement, or an observation of the same run by the same signer, says that
// the run failed or had not ended, it is no provenance of the artifact, unless the
// caller asks for those (Options.AnyOutcome). It is evidence nonetheless, and says so
// (Statement.Outcome).
//
// The package reaches neither Kubernetes nor Tekton nor code that can sign, and opens
// no connection but Image's to the artifact's registry. Predicates that it does not
// know are carried as they are, see package predicate.
package verify

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
)

// Options say whom to trust and what must be there. The zero value refuses:
// without keys or identities there is nothing to verify with.
type Options struct {
	// Keys are the keys to trust. One at least, or an identity.
	Keys []Key
	// Instances are the Sigstore instances whose certificates are believed, and
	// Identities who may sign with them. Neither is of use without the other.
	Instances  []*Instance
	Identities []CertificateIdentity
	// At is the instant of verification: what was signed later does not count. It
	// must be said where certificates are believed; usually it is now.
	At time.Time
	// KeysLogged counts what a key signed only if a log of one of the Instances holds it,
	// under the same rules as for certificates, and a bundle, or cosign's annotation of a
	// layer, proves that.
	KeysLogged bool
	// Expect is what provenance must say of source and builder; provenance that
	// does not is rejected. Default: whatever it says.
	Expect *Expectation
	// Predicates are the types of statements of which one must verify. Default: see
	// WithoutProvenance.
	Predicates []string
	// All demands that every piece verifies: one that does not is a refusal of all, as
	// in npm's documents, whose pieces vouch for each other. Default: what does not
	// verify is listed and does not count.
	All bool
	// AnyOutcome counts provenance of runs that failed or had not ended, too.
	AnyOutcome bool
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
	// From and Until bound when the key may have signed; zero: no bound. A bounded key
	// signs only in bundles whose time an instance vouches for.
	From, Until time.Time
	// Predicates are the types of statements that the key is trusted for, and then for
	// nothing else; none: all, and signatures.
	Predicates []string
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
	if len(o.Keys)+len(o.Identities) == 0 {
		return nil, errors.New("no keys to trust are given; name one with --key FILE or a trust file, or an identity with --certificate-identity")
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

// checker makes one of the options, which it checks.
func (o Options) checker() (*checker, error) {
	ring, err := o.keyring()
	if err != nil {
		return nil, err
	}
	if err := o.Log.check(); err != nil {
		return nil, err
	}
	if len(o.Identities) > 0 != (len(o.Instances) > 0) && !(len(o.Identities) == 0 && len(o.Keys) > 0) {
		return nil, errors.New("identities of certificates and the Sigstore instances that vouch for them are of no use without each other")
	}
	if len(o.Instances) > 0 && o.At.IsZero() {
		return nil, errors.New("no instant of verification is given (Options.At), so nobody can say what was signed before it")
	}
	bounded := slices.ContainsFunc(o.Keys, func(k Key) bool { return !k.From.IsZero() || !k.Until.IsZero() })
	if len(o.Instances) == 0 && (o.KeysLogged || bounded) {
		return nil, errors.New("keys must be in a log, or are bounded in time, and no Sigstore instance is given that could tell; name one with --trusted-root")
	}
	c := &checker{ring: ring, instances: o.Instances, keysLogged: o.KeysLogged, at: o.At, log: o.Log, expect: o.Expect}
	names := map[string]bool{}
	for i, in := range o.Instances {
		if in == nil || in.root == nil {
			return nil, fmt.Errorf("instance %d is empty; make it with NewInstance, PublicGood or GitHub", i)
		}
		if names[in.name] {
			return nil, fmt.Errorf("two instances named %q", in.name)
		}
		names[in.name] = true
	}
	for i, id := range o.Identities {
		s, err := id.compile()
		if err != nil {
			return nil, fmt.Errorf("identity %d: %w", i, err)
		}
		c.identities = append(c.identities, s)
	}
	if err := o.Expect.valid(); err != nil {
		return nil, err
	}
	return c, nil
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
	if _, err := opts.checker(); err != nil {
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

// Items verifies evidence about an image that was found already, wherever that was.
// Ref is repo@sha256:… and manifest the artifact's bytes, which must have that
// digest. Errors are those of Image.
func Items(ref string, manifest []byte, items []store.Item, opts Options) (*Evidence, error) {
	_, digest, ok := strings.Cut(ref, "@")
	if !ok || digest != digestOf(manifest) {
		return nil, fmt.Errorf("reference %q does not name the digest of the artifact's bytes, %s", ref, digestOf(manifest))
	}
	return verifyItems(ref, manifestArtifact(ref, manifest), manifest, items, opts)
}

// Files verifies evidence from files about an artifact that need not be an image:
// see ReadFile. Errors are those of Image.
func Files(a *Artifact, items []store.Item, opts Options) (*Evidence, error) {
	if a == nil || a.primary == "" {
		return nil, errors.New("no artifact is given; make one with FileArtifact or DigestArtifact")
	}
	return verifyItems(a.name, a, nil, items, opts)
}

func verifyItems(ref string, a *Artifact, manifest []byte, items []store.Item, opts Options) (*Evidence, error) {
	c, err := opts.checker()
	if err != nil {
		return nil, err
	}
	c.artifact = a
	for _, it := range items {
		if err := c.item(it); err != nil {
			var told *toldError
			c.rejected = append(c.rejected, Rejected{
				Format: string(it.Format), Digest: it.Digest, Reason: err.Error(), Kind: kindOf(err), Signed: errors.As(err, &told),
			})
		}
	}
	c.group()
	c.grade()
	c.outcomes(opts.AnyOutcome)
	e := &Evidence{
		ref: ref, digest: a.Digest(), manifest: manifest,
		signatures: c.signatures, statements: c.statements, runs: c.runs, rejected: c.rejected,
	}
	if missing := c.missing(opts); len(missing) > 0 {
		none := &NoEvidenceError{Ref: ref, Missing: missing, Found: len(items), Rejected: c.rejected}
		for _, k := range c.ring {
			none.Keys = append(none.Keys, k.Name)
		}
		for _, id := range c.identities {
			none.Identities = append(none.Identities, id.Name)
		}
		return nil, none
	}
	return e, nil
}

// missing is what the options demand and nothing that verified is.
func (c *checker) missing(opts Options) []string {
	var missing []string
	if opts.All && len(c.rejected) > 0 {
		missing = append(missing, "complete set of evidence")
	}
	if !opts.WithoutSignature && len(c.signatures) == 0 {
		missing = append(missing, "image signature")
	}
	if !opts.WithoutProvenance && !slices.ContainsFunc(c.statements, func(s Statement) bool {
		return isProvenance(s.PredicateType) && (opts.AnyOutcome || ended(s.Outcome))
	}) {
		missing = append(missing, "provenance")
	}
	if len(opts.Predicates) > 0 && !slices.ContainsFunc(c.statements, func(s Statement) bool {
		return slices.Contains(opts.Predicates, s.PredicateType) && (!isProvenance(s.PredicateType) || opts.AnyOutcome || ended(s.Outcome))
	}) {
		missing = append(missing, "statement of type "+strings.Join(opts.Predicates, " or "))
	}
	if len(missing) == 0 && len(c.signatures) == 0 && !slices.ContainsFunc(c.statements, func(s Statement) bool {
		return !isProvenance(s.PredicateType) || opts.AnyOutcome || ended(s.Outcome)
	}) {
		missing = append(missing, "signature or statement")
	}
	return missing
}

// ended says whether provenance of a run with this outcome counts as a build's.
func ended(o predicate.Outcome) bool {
	return o != predicate.Failed && o != predicate.Unfinished
}

// outcomes lists provenance that does not count among the rejected too, so that
// nobody wonders why it is missing.
func (c *checker) outcomes(any bool) {
	for _, s := range c.statements {
		if any || !isProvenance(s.PredicateType) || ended(s.Outcome) {
			continue
		}
		c.rejected = append(c.rejected, Rejected{
			Format: s.Format, Digest: s.PayloadDigest, Kind: KindOutcome,
			Reason: fmt.Sprintf("the provenance is signed by %s and says that the run is %s: it is not taken for a build's", s.KeyName, s.Outcome),
		})
	}
}
