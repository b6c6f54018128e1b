package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/keyref"
	internal "assay.dev/assay/internal/vsa"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/vsa"
	"assay.dev/assay/report"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/verify"
)

// vsaFlags are those of gate about verification summaries: making them of images that
// pass, and taking them instead of an evaluation.
type vsaFlags struct {
	key, pin, verifier string
	form, output       string
	levels             []string
	accept             []string
	maxAge             string
	anySnapshot        bool
}

func (v *vsaFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&v.key, "vsa-key", "", "make a verification summary (VSA) of each image that passes, signed with this key: a file, k8s://NAMESPACE/SECRET[/FIELD], awskms://, gcpkms://, azurekms://, hashivault://, or pkcs11:")
	f.StringVar(&v.pin, "vsa-pin-file", "", "file with the PIN of the token of --vsa-key pkcs11:")
	f.StringVar(&v.form, "vsa-store", string(internal.Both), "how the image's registry keeps summaries: referrer, tag (.att), both, or none")
	f.StringVar(&v.output, "vsa-output", "", "folder that takes each summary as a file")
	f.StringVar(&v.verifier, "vsa-verifier", vsa.DefaultVerifier, "verifier.id of summaries, a URI: of those made, and the only one of those accepted")
	f.StringArrayVar(&v.levels, "vsa-level", nil, "SIGNER=LEVEL: level that summaries give to what this signer of the trust, an observer or isolated workflow, built (repeatable; default: none is claimed)")
	f.StringArrayVar(&v.accept, "accept-vsa", nil, "take summaries signed with this public key, or by identity=NAME,issuer=ISSUER, instead of judging; only of exactly this image, policy, data and trust (repeatable)")
	f.StringVar(&v.maxAge, "vsa-max-age", "", "how old a summary may be to be taken, for example 24h or 7d (needed with --accept-vsa)")
	f.BoolVar(&v.anySnapshot, "accept-vsa-any-snapshot", false, "take summaries of a judgement in another snapshot, too: rules that look at other components looked at others")
}

// used says whether any of it is wanted.
func (v *vsaFlags) used() bool { return v.key != "" || len(v.accept) > 0 }

// check refuses what contradicts itself, before anything is asked of anybody.
func (v *vsaFlags) check() error {
	if _, err := internal.ParseForm(v.form); err != nil {
		return usagef("--vsa-store: %v", err)
	}
	switch {
	case v.key == "" && (v.output != "" || len(v.levels) > 0 || v.pin != ""):
		return usagef("no key for verification summaries is named: use --vsa-key")
	case v.key != "" && v.form == string(internal.Nowhere) && v.output == "":
		return usagef("verification summaries would be kept nowhere: use --vsa-output FOLDER, or another --vsa-store")
	case len(v.accept) > 0 && v.maxAge == "":
		return usagef("--accept-vsa needs --vsa-max-age: how old a verification summary may be")
	case len(v.accept) == 0 && v.maxAge != "":
		return usagef("--vsa-max-age says how old a verification summary may be, and none is accepted: use --accept-vsa")
	}
	if v.maxAge != "" {
		if d, err := vsa.ParseExpiration(v.maxAge); err != nil || d == 0 {
			return usagef("--vsa-max-age %q: want a time such as 24h or 7d", v.maxAge)
		}
	}
	for _, l := range v.levels {
		if _, err := vsa.ParseBinding(l); err != nil {
			return usagef("--vsa-level %v", err)
		}
	}
	return nil
}

// summaries makes and takes verification summaries for one gate. Close it.
type summaries struct {
	gate     *gate.Gate
	flags    *vsaFlags
	trust    string
	maxAge   time.Duration
	signer   *internal.Signer
	issuer   *internal.Issuer   // nil: none are made
	acceptor *internal.Acceptor // nil: none are taken
}

// open prepares for a gate that is ready to judge: keys are read and the signer is
// started. It fails where flags and gate do not fit, or a key cannot be reached.
func (v *vsaFlags) open(ctx context.Context, a *app, gt *gate.Gate, kubeconfig string) (_ *summaries, err error) {
	if err := v.check(); err != nil {
		return nil, err
	}
	s := &summaries{gate: gt, flags: v}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if s.trust, err = vsa.TrustDigest(verify.Options{
		Keys: gt.Keys, Instances: gt.Instances, Identities: gt.Identities, Log: gt.Log,
		WithoutSignature: gt.WithoutSignature, WithoutProvenance: gt.WithoutProvenance,
	}); err != nil {
		return nil, err
	}
	if len(v.accept) > 0 {
		if gt.AttestationTime {
			return nil, usagef("--accept-vsa and --effective-time attestation exclude each other: what the rules are taken as of is known only once an image's evidence is read")
		}
		if s.maxAge, err = vsa.ParseExpiration(v.maxAge); err != nil {
			return nil, usagef("--vsa-max-age: %v", err)
		}
		if s.acceptor, err = v.acceptor(ctx, gt, kubeconfig); err != nil {
			return nil, err
		}
	}
	if v.key == "" {
		return s, nil
	}
	form, err := internal.ParseForm(v.form)
	if err != nil {
		return nil, usagef("--vsa-store: %v", err)
	}
	if s.signer, err = internal.StartSigner(ctx, v.key, internal.SignerOptions{Kubeconfig: kubeconfig, PINFile: v.pin, Warn: a.err}); err != nil {
		return nil, err
	}
	s.issuer = &internal.Issuer{
		Signer: s.signer, Form: form, Folder: v.output,
		Now:  func() time.Time { return s.now() },
		Made: vsa.Made{Verifier: v.verifier, Version: map[string]string{"assay": Version()}, Trust: s.trust},
		Transport: func(ctx context.Context, repo name.Repository) (http.RoundTripper, error) {
			if repo.RegistryStr() == gt.Embedded {
				return nil, fmt.Errorf("%s is in the embedded registry, where the observer and the releaser alone put evidence; use --vsa-store none --vsa-output FOLDER", repo.Name())
			}
			return oci.Authorize(ctx, repo, http.DefaultTransport, authn.DefaultKeychain, true)
		},
	}
	for _, l := range v.levels {
		b, err := vsa.ParseBinding(l)
		if err != nil {
			return nil, usagef("--vsa-level %v", err)
		}
		s.issuer.Bindings = append(s.issuer.Bindings, b)
	}
	return s, nil
}

// acceptor believes those whom --accept-vsa names.
func (v *vsaFlags) acceptor(ctx context.Context, gt *gate.Gate, kubeconfig string) (*internal.Acceptor, error) {
	out := &internal.Acceptor{
		Log: verify.LogTrust{Trust: gt.Log.Trust},
		// The gate's own way: its cache, its recorder.
		Transport: func(ctx context.Context, ref string) (http.RoundTripper, error) {
			return gate.Authorized(ctx, ref, gt.Registry(), gt.Embedded)
		},
	}
	for _, s := range v.accept {
		if rest, ok := strings.CutPrefix(s, "identity="); ok {
			san, issuer, ok := strings.Cut(rest, ",issuer=")
			if !ok || san == "" || issuer == "" {
				return nil, usagef("--accept-vsa %s: want identity=NAME,issuer=ISSUER", s)
			}
			out.Identities = append(out.Identities, verify.CertificateIdentity{SAN: san, Issuer: issuer})
			continue
		}
		pem, err := keyref.Public(ctx, s, keyref.Options{Kubeconfig: kubeconfig, OwnWords: true})
		if err != nil {
			return nil, fmt.Errorf("--accept-vsa: %w", err)
		}
		k, err := verify.ParsePublicKey(pem)
		if err != nil {
			return nil, fmt.Errorf("--accept-vsa %s: %w", s, err)
		}
		if k.Name = s; strings.Contains(s, "-----BEGIN") {
			k.Name = "--accept-vsa"
		}
		out.Keys = append(out.Keys, k)
	}
	if len(out.Identities) > 0 {
		if out.Instances = gt.Instances; len(out.Instances) == 0 {
			return nil, usagef("--accept-vsa identity=… needs somebody whose certificates are believed: use --trusted-root")
		}
	}
	return out, nil
}

// accept looks for a summary that stands in for judging the image in this context, of
// which names, snapshot and source count. Without one, or where none are accepted, it
// returns nil and why the newest was not taken: the image is to be judged.
func (s *summaries) accept(ctx context.Context, ref string, c policy.Context) (*vsa.Accepted, string, error) {
	if s == nil || s.acceptor == nil {
		return nil, "", nil
	}
	in, err := vsa.CircumstancesOf(c)
	if err != nil {
		return nil, "", err
	}
	got, err := s.acceptor.Accept(ctx, ref, vsa.Want{
		Verifier: s.flags.verifier, Policy: s.gate.Policy.Digest(), Trust: s.trust,
		Circumstances: in, AnySnapshot: s.flags.anySnapshot,
		EffectiveTime: c.EffectiveTime, Now: s.now(), MaxAge: s.maxAge,
	})
	var not *vsa.NotTaken
	if errors.As(err, &not) {
		return nil, not.Error(), nil
	}
	return got, "", err
}

// entry is what the report says of an image that was not judged: the verdict is that of
// the verifier who signed the summary, and holds no results, since none were seen.
func entry(a *vsa.Accepted) (*policy.Verdict, *report.Accepted) {
	v := &policy.Verdict{
		Result: policy.Pass, Image: a.Image, Component: a.Judgement.Component, Policy: policy.Identified{Digest: a.Policy},
		EffectiveTime: a.Judgement.EffectiveTime, Destination: a.Judgement.Destination, Digests: a.Judgement.Digests, Expiry: a.Expires,
	}
	return v, &report.Accepted{By: a.Verifier + " (" + a.Signer + ")", Digest: a.Payload, When: a.Time}
}

// issue makes the summary of a verdict that passed in this context; nil where none are
// made, the verdict is no pass, or it was itself taken from a summary.
func (s *summaries) issue(ctx context.Context, e *verify.Evidence, v *policy.Verdict, c policy.Context) (*internal.Issued, error) {
	if s == nil || s.issuer == nil || e == nil || v == nil || v.Result != policy.Pass {
		return nil, nil
	}
	in, err := vsa.CircumstancesOf(c)
	if err != nil {
		return nil, err
	}
	return s.issuer.Issue(ctx, e, v, in)
}

// now is the gate's: what it verifies and judges as of.
func (s *summaries) now() time.Time {
	if t := s.gate.Context.Now; !t.IsZero() {
		return t
	}
	return time.Now()
}

// Close ends the signer.
func (s *summaries) Close() error {
	if s == nil || s.signer == nil {
		return nil
	}
	return s.signer.Close()
}
