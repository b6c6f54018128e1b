package cli

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/keyref"
	"assay.dev/assay/verify"
)

// trustFlags are the flags that say whom to trust.
type trustFlags struct {
	keys, observers []string
	builders        []string
	trust           string
	log             logFlags
	// kubeconfig is where k8s:// is read; empty: as kubectl. Commands that have a flag
	// for it set it.
	kubeconfig string
}

func (t *trustFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVarP(&t.keys, "key", "k", nil, "public key to verify with: a file, k8s://NAMESPACE/SECRET, a key service's (awskms://, gcpkms://, azurekms://, hashivault://) or a token's (pkcs11:) (repeatable)")
	f.StringArrayVar(&t.observers, "observer-key", nil, "public key of an observer: a process that builds cannot reach; named as --key (repeatable)")
	f.StringArrayVar(&t.builders, "builder", nil, "builder.id, or a prefix ending in /, that --observer-key and --observer-identity hold for")
	f.StringVar(&t.trust, "trust", "", "trust file with keys, identities and their roles, Sigstore instances, logs and witnesses (default: trust.json in the home)")
	t.log.add(c)
}

// plain says whether keys are named on the command line.
func (t *trustFlags) plain() bool { return len(t.keys)+len(t.observers) > 0 }

// standing is the trust file; nil where there is none and none is named.
func (t *trustFlags) standing(h *home.Home) (*verify.Trust, error) {
	file := t.trust
	if file == "" {
		file = h.Path("trust.json")
	}
	trust, err := verify.LoadTrust(file)
	if errors.Is(err, fs.ErrNotExist) && t.trust == "" {
		return nil, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; docs/verify.md says what is in a trust file", err)
	}
	return trust, err
}

func (t *trustFlags) publicKey(ctx context.Context, ref string) (verify.Key, error) {
	return publicKey(ctx, ref, t.kubeconfig)
}

// publicKey reads a key that the user names.
func publicKey(ctx context.Context, ref, kubeconfig string) (verify.Key, error) {
	pem, err := keyref.Public(ctx, ref, keyref.Options{Kubeconfig: kubeconfig, OwnWords: true})
	if err != nil {
		return verify.Key{}, err
	}
	k, err := verify.ParsePublicKey(pem)
	if err != nil {
		return k, fmt.Errorf("%s: %w", ref, err)
	}
	switch {
	case len(ref) > 200: // the key itself
	case keyref.IsFile(ref):
		k.Name = filepath.Base(ref)
	default:
		k.Name = ref
	}
	return k, nil
}

// flagKeys are the keys that flags name. A bare --key trusts the key and no more;
// that its owner is an observer is said by --observer-key or by the trust file, which
// is this machine's own configuration and not the artifact's word.
func (t *trustFlags) flagKeys(ctx context.Context, standing *verify.Trust) ([]verify.Key, error) {
	var out []verify.Key
	for _, ref := range t.keys {
		k, err := t.publicKey(ctx, ref)
		if err != nil {
			return nil, err
		}
		for _, s := range standing.Keys {
			if same, ok := k.Public.(interface{ Equal(crypto.PublicKey) bool }); ok && same.Equal(s.Public) {
				k.Observer, k.Builders = s.Observer, s.Builders
			}
		}
		out = append(out, k)
	}
	for _, ref := range t.observers {
		if len(t.builders) == 0 {
			return nil, usagef("--observer-key needs --builder: the builder.id (or a prefix ending in /) that this observer speaks for")
		}
		k, err := t.publicKey(ctx, ref)
		if err != nil {
			return nil, err
		}
		k.Observer, k.Builders = true, t.builders
		out = append(out, k)
	}
	return out, nil
}

// load collects keys, for commands that know no identities; identities of the trust
// file are left out. Logs and witnesses of the flags are trusted beside those of the
// file.
func (t *trustFlags) load(ctx context.Context, h *home.Home) (*verify.Trust, error) {
	trust, err := t.standing(h)
	if err != nil {
		return nil, err
	}
	if trust == nil {
		trust = &verify.Trust{}
	}
	trust.Identities, trust.Instances = nil, nil
	if t.plain() {
		if trust.Keys, err = t.flagKeys(ctx, trust); err != nil {
			return nil, err
		}
	}
	if len(trust.Keys) == 0 {
		return nil, usagef("no key given: use --key FILE, --observer-key FILE or --trust FILE")
	}
	return trust, t.log.load(&trust.Log)
}

// trusted is all that flags and trust file say about whom to believe, and for when:
// what verify and gate hand to their checks.
//
// Keys and identities on the command line stand in the place of those of the trust
// file; one that the file has too keeps the role that the file gives it. Identities
// are believed of --trusted-root, else of the file's instances, else of the two that
// are shipped. Sourced says that provenance has to name a source anyhow: then GitHub's
// workflows are trusted where nobody is named.
func (a *app) trusted(ctx context.Context, h *home.Home, t *trustFlags, i *identityFlags, sourced bool) (*verify.Trust, time.Time, error) {
	at, err := i.instant()
	if err != nil {
		return nil, at, err
	}
	flagged, err := i.identities(sourced, t.builders)
	if err != nil {
		return nil, at, err
	}
	if sourced && len(flagged) == 0 && !t.plain() && t.trust == "" {
		flagged = []verify.CertificateIdentity{verify.GitHubWorkflows()}
	}
	if len(t.builders) > 0 && len(t.observers)+len(i.observers) == 0 {
		return nil, at, usagef("--builder says what an observer speaks for: name one with --observer-key or --observer-identity")
	}
	standing, err := t.standing(h)
	if err != nil {
		return nil, at, err
	}
	if standing == nil {
		standing = &verify.Trust{}
	}
	out := &verify.Trust{Identities: flagged}
	if t.plain() || len(flagged) == 0 {
		// For identities alone logs are those of their instances.
		out.Log = standing.Log
	}
	switch {
	case t.plain():
		if out.Keys, err = t.flagKeys(ctx, standing); err != nil {
			return nil, at, err
		}
	case len(flagged) == 0:
		out.Keys, out.Identities = standing.Keys, standing.Identities
	}
	if len(out.Keys)+len(out.Identities) == 0 {
		return nil, at, usagef("no key given: use --key FILE, --observer-key FILE or --trust FILE; or name an identity with --certificate-identity or --repo")
	}
	inherit(out.Identities, standing.Identities)
	root := t.log
	if len(out.Identities) > 0 {
		if out.Instances, err = a.believed(ctx, h, i, root.root, standing.Instances); err != nil {
			return nil, at, err
		}
		// The instances have it, and its logs are looked in for each signature.
		root.root = ""
		if root.require && len(out.Keys) == 0 {
			for _, in := range out.Instances {
				keys, err := in.RekorKeys()
				if err != nil {
					return nil, at, err
				}
				out.Log.Rekor = append(out.Log.Rekor, keys...)
			}
		}
	}
	return out, at, root.load(&out.Log)
}

// inherit gives identities the roles that the trust file gives to the same ones.
func inherit(ids, standing []verify.CertificateIdentity) {
	demands := func(id verify.CertificateIdentity) verify.CertificateIdentity {
		id.Name, id.Observer, id.Builders = "", false, nil
		return id
	}
	for n := range ids {
		for _, s := range standing {
			if !ids[n].Observer && s.Observer && reflect.DeepEqual(demands(ids[n]), demands(s)) {
				ids[n].Name, ids[n].Observer, ids[n].Builders = s.Name, true, s.Builders
			}
		}
	}
}

// believed are the instances to believe: that of a trusted root, those of the trust
// file with the public one refreshed, or those that are shipped.
func (a *app) believed(ctx context.Context, h *home.Home, i *identityFlags, root string, standing []*verify.Instance) ([]*verify.Instance, error) {
	if root != "" || len(standing) == 0 {
		return a.instances(ctx, i, h, root)
	}
	out := slices.Clone(standing)
	for n, in := range out {
		var err error
		if out[n], err = a.fresh(ctx, i, h, in); err != nil {
			return nil, usagef("%v", err)
		}
	}
	return out, nil
}

// verifier is what the verifying commands share.
type verifier struct {
	home      *home.Home
	config    home.Config
	keys      []verify.Key
	log       verify.LogTrust
	transport http.RoundTripper
}

func (t *trustFlags) verifier(ctx context.Context) (*verifier, error) {
	h, cfg, err := findHome()
	if err != nil {
		return nil, err
	}
	trust, err := t.load(ctx, h)
	if err != nil {
		return nil, err
	}
	rt, err := embedded(h, cfg)
	if err != nil {
		return nil, err
	}
	return &verifier{home: h, config: cfg, keys: trust.Keys, log: trust.Log, transport: rt}, nil
}

func (v *verifier) image(ctx context.Context, ref string) (*verify.Evidence, error) {
	g := gate.Gate{Keys: v.keys, Log: v.log, Transport: v.transport, Embedded: v.config.Registry}
	return g.Verify(ctx, ref)
}
