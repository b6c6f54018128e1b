package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/gate/recording"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/keyref"
	"assay.dev/assay/internal/kubeobject"
	"assay.dev/assay/internal/pullcache"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/source/fetch"
	"assay.dev/assay/policy/spec"
	"assay.dev/assay/verify"
)

// gateFlags are those of gate and release.
type gateFlags struct {
	trust     trustFlags
	identity  identityFlags
	policy    string
	data      []string
	lock      string
	effective string
	past      bool
	successes bool
	retries   int

	withoutSignature, withoutProvenance bool
}

func (g *gateFlags) add(c *cobra.Command) {
	g.trust.add(c)
	g.identity.add(c)
	f := c.Flags()
	f.StringVarP(&g.policy, "policy", "p", "", "policy: a file, a folder with policy.yaml or *.rego, its text, a git, OCI or https address, or k8s://[NAMESPACE/]NAME (required)")
	f.StringArrayVar(&g.data, "data", nil, "data file for the policy, such as trusted tasks (repeatable)")
	f.StringVar(&g.lock, "lock", "", "policy.lock.json that says what the policy's sources must be")
	f.StringVar(&g.effective, "effective-time", "now", "judge as of this time: now, attestation (the end of each image's build), RFC 3339 or YYYY-MM-DD")
	f.BoolVar(&g.past, "allow-past-effective-time", false, "accept an --effective-time in the past, where later rules are not in force")
	f.BoolVar(&g.successes, "show-successes", false, "list the rules that passed")
	f.BoolVar(&g.withoutSignature, "without-signature", false, "judge images that nobody who is trusted has signed, too; the report says so")
	f.BoolVar(&g.withoutProvenance, "without-provenance", false, "judge images without verified provenance, too; the report says so")
	f.IntVar(&g.retries, "retries", 3, "how often a registry that fails is asked again")
	f.StringVar(&g.trust.kubeconfig, "kubeconfig", "", "kubeconfig file for keys and policies in a cluster (default: as kubectl)")
	f.Lookup("trusted-root").Usage = "Sigstore trusted root (JSON file): whose certificates, logs and timestamps to believe (default: those of Sigstore's public instance and of GitHub)"
}

// loader loads a policy: policy.Load, or a recorder's that keeps what it read.
type loader func(ctx context.Context, ref string, opts policy.Options) (*policy.Policy, error)

// open loads policy and trust.
func (g *gateFlags) open(ctx context.Context, destination string) (*gate.Gate, *verifier, error) {
	return g.prepare(ctx, &app{err: os.Stderr}, destination, policy.Load, nil)
}

// prepare is open with a loader and the gate's tap, if any.
func (g *gateFlags) prepare(ctx context.Context, a *app, destination string, load loader, tap gate.Tap) (*gate.Gate, *verifier, error) {
	if g.policy == "" {
		return nil, nil, usagef("no policy given: use --policy FOLDER, for example examples/policy/release")
	}
	h, cfg, err := findHome()
	if err != nil {
		return nil, nil, err
	}
	rt, err := embedded(h, cfg)
	if err != nil {
		return nil, nil, err
	}
	gt := &gate.Gate{
		Transport: rt, Embedded: cfg.Registry, Tap: tap,
		WithoutSignature: g.withoutSignature, WithoutProvenance: g.withoutProvenance,
		Retry:   pullcache.Retry{Max: max(g.retries, 0), Wait: 300 * time.Millisecond, MaxWait: 10 * time.Second, Factor: 2, Jitter: 0.1},
		Context: policy.Context{Now: time.Now().UTC().Round(time.Second), Destination: destination, AllowPast: g.past},
	}
	if err := g.instant(gt); err != nil {
		return nil, nil, err
	}
	opts, err := g.options(ctx, a, h, gt)
	if err != nil {
		return nil, nil, err
	}
	ref, err := absolute(g.policy)
	if err != nil {
		return nil, nil, err
	}
	if gt.Policy, err = load(ctx, ref, opts); err != nil {
		return nil, nil, err
	}
	if err := g.believe(ctx, a, h, gt); err != nil {
		return nil, nil, err
	}
	return gt, &verifier{home: h, config: cfg, keys: gt.Keys, log: gt.Log, transport: rt}, nil
}

// instant reads --effective-time.
func (g *gateFlags) instant(gt *gate.Gate) error {
	switch g.effective {
	case "", "now":
		return nil
	case "attestation":
		if !g.past {
			return usagef("--effective-time attestation is the time of the build, which is in the past: later rules are not in force then; say --allow-past-effective-time if that is meant")
		}
		gt.AttestationTime = true
		return nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, g.effective); err == nil {
			gt.Context.EffectiveTime = t
			if t.Before(gt.Context.Now) && !g.past {
				return usagef("--effective-time %s is in the past: later rules are not in force then; say --allow-past-effective-time if that is meant", g.effective)
			}
			return nil
		}
	}
	return usagef("--effective-time %q: want RFC 3339 or YYYY-MM-DD, or now, or attestation", g.effective)
}

// options are how the policy is loaded.
func (g *gateFlags) options(ctx context.Context, a *app, h *home.Home, gt *gate.Gate) (policy.Options, error) {
	o := policy.Options{
		Data: g.data,
		Resource: func(ctx context.Context, name string) (json.RawMessage, error) {
			return kubeobject.Get(ctx, g.trust.kubeconfig, "enterprisecontractpolicies.appstudio.redhat.com", name)
		},
		PublicKey: g.publicKey,
	}
	var err error
	if o.Builtins, err = gt.Functions(); err != nil {
		return o, err
	}
	o.Sources, err = g.sources(ctx, a, h)
	return o, err
}

// publicKey reads a key that a policy names. The policy's words load no library.
func (g *gateFlags) publicKey(ctx context.Context, address string) ([]byte, error) {
	return keyref.Public(ctx, address, keyref.Options{Kubeconfig: g.trust.kubeconfig})
}

// sources is what fetches the policy's sources, held to its lock, checksums and
// signers.
func (g *gateFlags) sources(ctx context.Context, a *app, h *home.Home) (source.Fetcher, error) {
	o := fetch.Options{}
	if _, err := os.UserCacheDir(); err != nil {
		o.Cache = filepath.Join(h.Cache(), "policy")
	}
	if g.identity.offline {
		o.Transport = offline{}
	}
	if g.lock != "" {
		l, err := fetch.ReadLock(g.lock)
		if err != nil {
			return nil, err
		}
		o.Lock = l
	}
	f, err := fetch.New(o)
	if err != nil {
		return nil, err
	}
	s, err := g.configuration(ctx, f)
	if err != nil || s == nil || s.Assay == nil {
		return f, err
	}
	if len(s.Assay.Checksums)+len(s.Assay.SourceSigners) == 0 {
		return f, nil
	}
	o.Checksums = s.Assay.Checksums
	if len(s.Assay.SourceSigners) > 0 {
		signed := fetch.SignedOptions{PublicKey: g.publicKey, Transport: o.Transport}
		if signed.Instances, err = a.instances(ctx, &g.identity, h, g.trust.log.root); err != nil {
			return nil, err
		}
		if o.Signed, err = fetch.SignedBy(ctx, s.Assay.SourceSigners, signed); err != nil {
			return nil, err
		}
	}
	return fetch.New(o)
}

// configuration is the policy's, nil where it has none (a folder of rules) or lies in
// a cluster. What was vendored is held to its lock first.
func (g *gateFlags) configuration(ctx context.Context, f source.Fetcher) (*spec.Spec, error) {
	if inline(g.policy) {
		return spec.Parse([]byte(g.policy))
	}
	if strings.HasPrefix(g.policy, "k8s://") {
		raw, err := kubeobject.Get(ctx, g.trust.kubeconfig, "enterprisecontractpolicies.appstudio.redhat.com", strings.TrimPrefix(g.policy, "k8s://"))
		if err != nil {
			return nil, err
		}
		return spec.Parse(raw)
	}
	if kind, err := (source.Local{}).Kind(g.policy); err == nil && kind == source.File {
		if path, err := source.Path("", g.policy); err == nil {
			if info, err := os.Stat(path); err == nil && info.IsDir() && !hasConfiguration(path) {
				return nil, nil
			}
		}
	}
	c, err := fetch.ReadConfig(ctx, f, "", g.policy)
	if err != nil {
		return nil, err
	}
	if c.Lock != nil {
		if err := c.Lock.Check(ctx); err != nil {
			return nil, err
		}
	}
	return spec.Parse(c.Raw)
}

func hasConfiguration(dir string) bool {
	for _, name := range []string{"policy.yaml", "policy.yml", "policy.json"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// inline says whether a policy is given as its text.
func inline(ref string) bool {
	return strings.HasPrefix(strings.TrimSpace(ref), "{") || strings.Contains(ref, "\n")
}

// absolute makes a policy on this machine a path from the root, so that what it names
// is the same whoever reads it.
func absolute(ref string) (string, error) {
	if inline(ref) || strings.HasPrefix(ref, "k8s://") {
		return ref, nil
	}
	kind, err := source.Local{}.Kind(ref)
	if err != nil {
		return "", usagef("--policy: %v", err)
	}
	if kind != source.File {
		return ref, nil
	}
	path, err := source.Path("", ref)
	if err != nil {
		return "", usagef("--policy: %v", err)
	}
	return filepath.Abs(path)
}

// offline refuses to fetch.
type offline struct{}

func (offline) RoundTrip(req *http.Request) (*http.Response, error) {
	return nil, fmt.Errorf("--offline: %s is not asked; `assay policy vendor` puts all that a policy needs into a folder", req.URL.Host)
}

// believe puts together whom flags, trust file and policy say to believe.
func (g *gateFlags) believe(ctx context.Context, a *app, h *home.Home, gt *gate.Gate) error {
	standing, err := g.trust.standing(h)
	if err != nil {
		return err
	}
	if standing == nil {
		standing = &verify.Trust{}
	}
	asked := gt.Policy.Signers()
	trust := &verify.Trust{Log: standing.Log}
	if len(asked) > 0 && !g.trust.plain() && !g.identity.given() && len(standing.Keys)+len(standing.Identities) == 0 {
		// The policy says it all.
		if gt.At, err = g.identity.instant(); err == nil {
			err = g.trust.log.load(&trust.Log)
		}
	} else {
		trust, gt.At, err = a.trusted(ctx, h, &g.trust, &g.identity, false)
	}
	if err != nil {
		return err
	}
	gt.At = gt.At.UTC()
	gt.Keys, gt.Identities, gt.Instances, gt.Log = trust.Keys, trust.Identities, trust.Instances, trust.Log
	if err := gt.Believe(); err != nil {
		return err
	}
	if len(gt.Identities) > 0 && len(gt.Instances) == 0 {
		gt.Instances, err = a.believed(ctx, h, &g.identity, g.trust.log.root, standing.Instances)
	}
	return err
}

// named reads which images to judge.
func (f *gateCommandFlags) named(args []string) (*policy.Snapshot, error) {
	given := 0
	for _, is := range []bool{len(args) > 0, f.snapshot != "", f.images != ""} {
		if is {
			given++
		}
	}
	switch {
	case given == 0:
		return nil, usagef("no image given: name some, or a file with --snapshot or --images")
	case given > 1:
		return nil, usagef("IMAGE, --snapshot and --images: give one of them")
	case len(args) > 0:
		s, err := gate.References(args)
		if err != nil {
			return nil, usagef("%v", err)
		}
		return s, nil
	}
	arg := f.snapshot + f.images
	if name, ok := strings.CutPrefix(arg, "k8s://"); ok {
		raw, err := kubeobject.Get(context.Background(), f.trust.kubeconfig, "snapshots.appstudio.redhat.com", name)
		if err != nil {
			return nil, err
		}
		return gate.ParseSnapshot(raw)
	}
	raw := []byte(arg)
	if text := strings.TrimSpace(arg); !strings.HasPrefix(text, "{") && !strings.HasPrefix(text, "[") && !strings.Contains(arg, "\n") {
		var err error
		if raw, err = source.ReadFile(arg, gate.MaxSnapshot); errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w; want a file with a Snapshot or with one reference a line, or a Snapshot's text", err)
		} else if err != nil {
			return nil, err
		}
	}
	s, err := gate.ParseSnapshot(raw)
	if err != nil && string(raw) != arg {
		return nil, fmt.Errorf("%s: %w", arg, err)
	}
	return s, err
}

// replayed sets a gate up by a recording. The folder holds the policy while it is used.
func replayed(ctx context.Context, r *recording.Recording, dir string) (*gate.Gate, error) {
	gt := new(gate.Gate)
	if err := r.Apply(gt); err != nil {
		return nil, fmt.Errorf("reading the recording: %w", err)
	}
	set, err := gt.Functions()
	if err != nil {
		return nil, err
	}
	gt.Policy, err = r.Policy(ctx, dir, policy.Options{Builtins: set})
	return gt, err
}
