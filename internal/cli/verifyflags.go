package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/api"
	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/verify"
	"assay.dev/assay/verify/tufroot"
)

// identityFlags say who may sign with a certificate, in cosign's words and in gh's.
type identityFlags struct {
	san, sanRegexp, issuer, issuerRegexp string
	owner, repo, signerWorkflow          string
	signerRepo, sourceRef, sourceDigest  string
	observers                            []string
	hosted                               bool
	offline                              bool
	at                                   string
	least                                [4]int
	changed                              func(string) bool
}

// The thresholds' flags, in the order of identityFlags.least.
var thresholdFlags = [4]string{"min-scts", "min-log-entries", "min-signed-timestamps", "min-timestamps"}

func (i *identityFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&i.san, "certificate-identity", "", "identity that a certificate must name, exactly")
	f.StringVar(&i.sanRegexp, "certificate-identity-regexp", "", "regular expression that the whole identity must match")
	f.StringVar(&i.issuer, "certificate-oidc-issuer", "", "issuer that a certificate must name, exactly")
	f.StringVar(&i.issuerRegexp, "certificate-oidc-issuer-regexp", "", "regular expression that the whole issuer must match")
	f.StringArrayVar(&i.observers, "observer-identity", nil, "identity in certificates of an observer, a process that builds cannot reach: /…/ for a regular expression; with --certificate-oidc-issuer and --builder (repeatable)")
	f.StringVar(&i.owner, "owner", "", "GitHub owner that the source repository must belong to")
	f.StringVarP(&i.repo, "repo", "R", "", "GitHub repository (OWNER/NAME) that the source must be")
	f.StringVar(&i.signerWorkflow, "signer-workflow", "", "workflow that must have signed: [HOST/]OWNER/NAME/PATH[@REF]")
	f.StringVar(&i.signerRepo, "signer-repo", "", "repository (OWNER/NAME) of the workflow that must have signed")
	f.StringVar(&i.sourceRef, "source-ref", "", "ref that the run must have been started for")
	f.StringVar(&i.sourceDigest, "source-digest", "", "commit that the run must have been started for")
	f.BoolVar(&i.hosted, "deny-self-hosted-runners", false, "refuse runs on runners of the repository's owner")
	f.BoolVar(&i.offline, "offline", false, "open no connection but to the image's registry: use the trusted roots as shipped")
	f.StringVar(&i.at, "at", "", "instant of verification, RFC 3339: what was signed later does not count (default: now)")
	for n, name := range thresholdFlags {
		f.IntVar(&i.least[n], name, -1, [4]string{
			"certificate transparency logs that must hold the certificate", "transparency logs that must hold the signature",
			"timestamp authorities that must have signed a time", "times needed, of logs or authorities",
		}[n]+" (default: one, where the trusted root has any)")
	}
	i.changed = f.Changed
}

// given says whether an identity is named.
func (i *identityFlags) given() bool { return i.named() || len(i.observers) > 0 }

// named says whether one is that is no observer's.
func (i *identityFlags) named() bool {
	return i.san+i.sanRegexp+i.owner+i.repo+i.signerWorkflow+i.signerRepo != "" || i.issuer+i.issuerRegexp != "" && len(i.observers) == 0
}

var (
	ownerForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]*$`)
	repoForm  = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+$`)
)

// identities are those that the flags name: the observers', for the builders given, and
// the one of the other flags. Sourced says that provenance must name a source anyhow.
func (i *identityFlags) identities(sourced bool, builders []string) ([]verify.CertificateIdentity, error) {
	out, err := i.observing(builders)
	if err != nil {
		return nil, err
	}
	if !i.named() {
		if i.sourceRef != "" || i.sourceDigest != "" || i.hosted {
			return nil, usagef("--source-ref, --source-digest and --deny-self-hosted-runners say more of an identity: name one with --repo, --owner or --certificate-identity")
		}
		return out, nil
	}
	id, err := i.identity(sourced)
	if err != nil {
		return nil, err
	}
	return append(out, id), nil
}

// observing are the identities of observers.
func (i *identityFlags) observing(builders []string) ([]verify.CertificateIdentity, error) {
	var out []verify.CertificateIdentity
	for _, o := range i.observers {
		if len(builders) == 0 {
			return nil, usagef("--observer-identity needs --builder: the builder.id (or a prefix ending in /) that this observer speaks for")
		}
		if i.issuer+i.issuerRegexp == "" {
			return nil, usagef("--observer-identity needs --certificate-oidc-issuer or --certificate-oidc-issuer-regexp: whoever any issuer gives that name to is no observer")
		}
		id := verify.CertificateIdentity{SAN: o, Issuer: i.issuer, IssuerRegexp: i.issuerRegexp, Observer: true, Builders: builders}
		if n := len(o); n > 2 && o[0] == '/' && o[n-1] == '/' {
			id.SAN, id.SANRegexp = "", o[1:n-1]
		}
		if id.SAN+id.SANRegexp == "" {
			return nil, usagef("--observer-identity is empty")
		}
		out = append(out, id)
	}
	return out, nil
}

// identity is the one of the flags that are cosign's and gh's.
func (i *identityFlags) identity(sourced bool) (verify.CertificateIdentity, error) {
	id := verify.CertificateIdentity{
		SAN: i.san, SANRegexp: i.sanRegexp, Issuer: i.issuer, IssuerRegexp: i.issuerRegexp,
		SourceRef: i.sourceRef, SourceDigest: i.sourceDigest, HostedOnly: i.hosted,
	}
	github := i.owner+i.repo+i.signerWorkflow+i.signerRepo != ""
	if github && i.issuer+i.issuerRegexp == "" {
		id.Issuer = verify.GitHubIssuer
	}
	if i.owner != "" && i.repo != "" {
		return id, usagef("--owner and --repo: the repository says its owner; give one of them")
	}
	from := ""
	if i.owner != "" {
		if !ownerForm.MatchString(i.owner) {
			return id, usagef("--owner %q is no name of a GitHub owner", i.owner)
		}
		id.SourceOwner, from = "https://github.com/"+i.owner, i.owner+"/"
	}
	if i.repo != "" {
		if !repoForm.MatchString(i.repo) {
			return id, usagef("--repo %q: want OWNER/NAME", i.repo)
		}
		id.SourceRepository, from = "https://github.com/"+i.repo, i.repo+"/"
	}
	if (i.signerWorkflow != "" || i.signerRepo != "") && from == "" && !sourced {
		return id, usagef("a workflow signs for everybody who calls it: say whose source it must be with --repo, --owner or --source-uri")
	}
	named := 0
	for _, s := range []string{i.san, i.sanRegexp, i.signerWorkflow, i.signerRepo} {
		if s != "" {
			named++
		}
	}
	if named > 1 {
		return id, usagef("several of --certificate-identity, --certificate-identity-regexp, --signer-workflow and --signer-repo: give one")
	}
	switch {
	case i.signerWorkflow != "":
		w := i.signerWorkflow
		if strings.Count(w, "/") < 3 {
			return id, usagef("--signer-workflow %q: want [HOST/]OWNER/NAME/PATH, such as octo/builders/.github/workflows/build.yml", w)
		}
		if host, _, _ := strings.Cut(w, "/"); !strings.Contains(host, ".") {
			w = "github.com/" + w
		}
		id.SANRegexp = "https://" + regexp.QuoteMeta(w)
		if !strings.Contains(w, "@") {
			id.SANRegexp += "@.+"
		}
	case i.signerRepo != "":
		if !repoForm.MatchString(i.signerRepo) {
			return id, usagef("--signer-repo %q: want OWNER/NAME", i.signerRepo)
		}
		id.SANRegexp = "(?i:https://github\\.com/" + regexp.QuoteMeta(i.signerRepo) + "/).+"
	case named == 0 && from != "":
		id.SANRegexp = "(?i:https://github\\.com/" + regexp.QuoteMeta(from) + ").+"
	case named == 0:
		return id, usagef("an issuer alone is everybody with an account there: give --certificate-identity or --certificate-identity-regexp too")
	}
	if id.Issuer+id.IssuerRegexp == "" {
		return id, usagef("an identity without its issuer is whoever any issuer gives that name to: give --certificate-oidc-issuer or --certificate-oidc-issuer-regexp too")
	}
	return id, nil
}

// instant is when to verify for.
func (i *identityFlags) instant() (time.Time, error) {
	if i.at == "" {
		return time.Now(), nil
	}
	t, err := time.Parse(time.RFC3339, i.at)
	if err != nil {
		return t, usagef("--at %q: want RFC 3339, such as 2026-11-23T12:00:00Z", i.at)
	}
	return t, nil
}

// instances are the Sigstore instances to believe: that of a trusted root, or the
// two that are shipped.
func (a *app) instances(ctx context.Context, i *identityFlags, h *home.Home, trustedRoot string) ([]*verify.Instance, error) {
	if trustedRoot != "" {
		data, err := readSmall(trustedRoot)
		if err != nil {
			return nil, fmt.Errorf("reading trusted root: %w", err)
		}
		in, err := i.instance(filepath.Base(trustedRoot), data)
		if err != nil {
			return nil, err
		}
		return []*verify.Instance{in}, nil
	}
	good, err := verify.PublicGood()
	if err != nil {
		return nil, err
	}
	if good, err = a.fresh(ctx, i, h, good); err != nil {
		return nil, usagef("%v", err)
	}
	github, err := verify.GitHub()
	if err != nil {
		return nil, err
	}
	if github, err = a.fresh(ctx, i, h, github); err != nil {
		if !i.limited() {
			return nil, err
		}
		// What cannot be met by an instance without logs is not believed of it.
		return []*verify.Instance{good}, nil
	}
	return []*verify.Instance{good, github}, nil
}

// fresh is an instance with its root as TUF has it, and with the flags' thresholds.
func (a *app) fresh(ctx context.Context, i *identityFlags, h *home.Home, in *verify.Instance) (*verify.Instance, error) {
	data := a.current(ctx, i, h, in.Name())
	if data == nil {
		if !i.limited() {
			return in, nil
		}
		data = in.JSON()
	}
	return verify.NewInstance(in.Name(), data, i.apply(in.Thresholds()))
}

func (i *identityFlags) instance(name string, data []byte) (*verify.Instance, error) {
	need, err := verify.DefaultThresholds(data)
	if err != nil {
		return nil, err
	}
	in, err := verify.NewInstance(name, data, i.apply(need))
	if err != nil && i.limited() {
		return nil, usagef("%v", err)
	}
	return in, err
}

func (i *identityFlags) limited() bool {
	for _, name := range thresholdFlags {
		if i.changed != nil && i.changed(name) {
			return true
		}
	}
	return false
}

func (i *identityFlags) apply(t verify.Thresholds) verify.Thresholds {
	for n, field := range [4]*int{&t.SCTs, &t.LogEntries, &t.SignedTimestamps, &t.Timestamps} {
		if i.changed != nil && i.changed(thresholdFlags[n]) {
			*field = i.least[n]
		}
	}
	return t
}

// current is the root of one of the shipped instances as TUF has it today; nil for
// another instance and where it cannot be had, which is said once and is no error: the
// shipped one is good, only older.
func (a *app) current(ctx context.Context, i *identityFlags, h *home.Home, instance string) []byte {
	if i.offline {
		return nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		dir = h.Cache()
	}
	var o tufroot.Options
	switch instance {
	case verify.InstancePublicGood:
		o.Dir = filepath.Join(dir, "assay", "tuf")
	case verify.InstanceGitHub:
		o = tufroot.GitHub(filepath.Join(dir, "assay", "tuf-github"))
	default:
		return nil
	}
	data, err := tufroot.Get(ctx, o)
	if err != nil && !errors.Is(err, tufroot.ErrLater) {
		fmt.Fprintf(a.err, "assay: instance %s: %v\nassay: using the trusted root that is shipped; --offline says so without trying\n", instance, firstLine(err))
	}
	return data
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// expectFlags say what provenance must say, in slsa-verifier's words.
type expectFlags struct {
	verify.Expectation
	inputs []string
}

func (e *expectFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&e.SourceURI, "source-uri", "", "source repository that provenance must name, such as github.com/owner/name")
	f.StringVar(&e.SourceTag, "source-tag", "", "tag that must have been built")
	f.StringVar(&e.SourceVersionedTag, "source-versioned-tag", "", "version that the tag must be, or begin with: v1, v1.2, v1.2.3")
	f.StringVar(&e.SourceBranch, "source-branch", "", "branch that must have been built")
	f.StringVar(&e.BuilderID, "builder-id", "", "builder that must have built: a workflow's address, with @REF or without (default: slsa-github-generator's)")
	f.StringVar(&e.PackageName, "package-name", "", "name of the npm package that it must be")
	f.StringVar(&e.PackageVersion, "package-version", "", "version of the npm package that it must be")
	f.StringArrayVar(&e.inputs, "build-workflow-input", nil, "NAME=VALUE that the workflow must have been started with (repeatable)")
}

// expectation is nil where nothing is asked.
func (e *expectFlags) expectation() (*verify.Expectation, error) {
	x := e.Expectation
	if x.SourceURI+x.SourceTag+x.SourceVersionedTag+x.SourceBranch+x.BuilderID+x.PackageName+x.PackageVersion == "" && len(e.inputs) == 0 {
		return nil, nil
	}
	if x.SourceURI == "" {
		return nil, usagef("--source-uri is missing: what provenance says of tag, branch and builder is of use only for a source that you name")
	}
	for _, in := range e.inputs {
		name, value, ok := strings.Cut(in, "=")
		if !ok || name == "" {
			return nil, usagef("--build-workflow-input %q: want NAME=VALUE", in)
		}
		if x.Inputs == nil {
			x.Inputs = map[string]string{}
		}
		x.Inputs[name] = value
	}
	return &x, nil
}

// predicateTypes are cosign's short names.
var predicateTypes = map[string][]string{
	"slsaprovenance":   {api.PredicateSLSAv02, api.PredicateSLSAv1, predicate.SLSAv01},
	"slsaprovenance02": {api.PredicateSLSAv02},
	"slsaprovenance1":  {api.PredicateSLSAv1},
	"spdx":             {api.PredicateSPDX},
	"spdxjson":         {api.PredicateSPDX},
	"cyclonedx":        {predicate.CycloneDX},
	"vuln":             {predicate.VulnsCosign},
	"vulns":            {predicate.VulnsV01, predicate.VulnsV02},
	"link":             {"https://in-toto.io/Link/v1"},
	"custom":           {"https://cosign.sigstore.dev/attestation/v1"},
	"vsa":              {predicate.VSAv1, predicate.VSAv02},
	"test-result":      {predicate.TestResult},
	"observation":      {api.PredicateObservation},
}

// typesOf are the predicate types that the flags name, short or in full.
func typesOf(names ...string) ([]string, error) {
	var out []string
	for _, n := range names {
		switch {
		case n == "":
		case predicateTypes[n] != nil:
			out = append(out, predicateTypes[n]...)
		case strings.Contains(n, "://"):
			out = append(out, n)
		default:
			return nil, usagef("--type %q is neither a predicate type's address nor one of %s", n, strings.Join(sortedKeys(predicateTypes), ", "))
		}
	}
	return out, nil
}
