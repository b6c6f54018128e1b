package ec

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	internal "assay.dev/assay/internal/vsa"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/conforma"
	"assay.dev/assay/policy/vsa"
)

// vsaCommand is validate vsa.
type vsaCommand struct {
	identifier, images string
	policy             string
	retrieval          []string
	when               string
	expiration         vsaAge
	ignoreSignature    bool
	publicKey          string
	noFallback         bool
	fallbackKey        string
	output             []string
	strict             bool
	workers            int
	never, always      bool
}

func vsaValidateCommand(g *globals) *cobra.Command {
	v := &vsaCommand{expiration: defaultVSAAge}
	c := &cobra.Command{
		Use:   "vsa [IDENTIFIER]",
		Short: "Judge images by their verification summaries",
		Long: `Looks for the verification summary (VSA) of each image and checks it: its signature,
that it is about the image, its age, that it says passed, and that the policy which
it names is equivalent to this one. An image without a summary that counts is judged
as validate image does, unless --no-fallback is given.

IDENTIFIER is an image by digest, a digest, or the file of a summary.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return errors.New("too many arguments provided")
			}
			if len(args) == 1 && !isIdentifier(args[0]) {
				return fmt.Errorf("invalid VSA identifier format: %s", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				v.identifier = args[0]
			}
			if err := v.check(); err != nil {
				return err
			}
			return v.run(cmd, g)
		},
	}
	f := c.Flags()
	f.StringVarP(&v.identifier, "vsa", "v", "", "what IDENTIFIER is")
	f.StringVar(&v.images, "images", "", "a Snapshot: a file, or written out")
	f.StringVarP(&v.policy, "policy", "p", "", "policy configuration: a file, or written out (required)")
	f.StringSliceVar(&v.retrieval, "vsa-retrieval", nil, "where summaries are looked for: rekor@URL, file@FOLDER (repeatable; default: Rekor for images, the file for files)")
	f.StringVar(&v.when, "effective-time", "now", "compare policies as of this time: now, RFC 3339 or YYYY-MM-DD")
	f.Var(&v.expiration, "vsa-expiration", "how old a summary may be: 24h, 7d, 2w, 1mo; 0: any age")
	f.BoolVar(&v.ignoreSignature, "ignore-signature-verification", false, "do not check who signed summaries: anybody can write one")
	f.StringVar(&v.publicKey, "vsa-public-key", "", "key that summaries are verified with (needed)")
	f.BoolVar(&v.noFallback, "no-fallback", false, "do not judge images without a summary that counts")
	f.StringVar(&v.fallbackKey, "fallback-public-key", "", "key that images and attestations are verified with when they are judged (needed unless --no-fallback)")
	f.StringSliceVar(&v.output, "output", nil, "report as FORMAT[=FILE]: "+strings.Join(vsaFormats, ", ")+" (repeatable)")
	f.BoolVar(&v.strict, "strict", true, "end with 1 where an image does not pass")
	f.IntVar(&v.workers, "workers", 5, "how many are checked at a time")
	f.BoolVar(&v.never, "no-color", false, "no colours in text")
	f.BoolVar(&v.always, "color", false, "colours in text, also where it is no terminal")
	_ = c.MarkFlagRequired("policy")
	c.MarkFlagsMutuallyExclusive("vsa", "images")
	return c
}

var (
	digestForm = regexp.MustCompile(`^sha(256|512):[a-f0-9]+$`)
	inDigest   = regexp.MustCompile(`@sha(256|512):[a-f0-9]+$`)
)

// isFile says whether an identifier is a file and no image: it has neither tag nor
// digest, and looks like a path.
func isFile(s string) bool {
	if strings.ContainsAny(s, "@:") {
		return false
	}
	return filepath.IsAbs(s) || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../") || filepath.Ext(s) != "" || strings.ContainsAny(s, `/\`)
}

func isImage(s string) bool {
	if digestForm.MatchString(s) || inDigest.MatchString(s) {
		return true
	}
	if s == "" || isFile(s) {
		return false
	}
	_, err := name.ParseReference(s)
	return err == nil
}

func isIdentifier(s string) bool { return isFile(s) || isImage(s) }

func (v *vsaCommand) check() error {
	switch {
	case v.identifier == "" && v.images == "":
		return errors.New("either --vsa, --images, or VSA identifier must be provided")
	case v.identifier != "" && v.images != "":
		return errors.New("--images and a VSA identifier exclude each other")
	case !v.ignoreSignature && v.publicKey == "":
		return errors.New("--vsa-public-key is required for signature verification (use --ignore-signature-verification to disable signature verification)")
	case !v.noFallback && v.fallbackKey == "":
		return errors.New("--fallback-public-key is required when --fallback-to-image-validation is enabled")
	case !v.noFallback && v.identifier != "" && isFile(v.identifier):
		return fmt.Errorf("fallback not supported for file paths (identifier: %s)", v.identifier)
	}
	return nil
}

// place is where summaries are looked for.
func (v *vsaCommand) place() (internal.Place, error) {
	list := v.retrieval
	if len(list) == 0 {
		list = []string{"rekor"}
		if v.images == "" && isFile(v.identifier) {
			list = []string{"file@."}
		}
	}
	var errs []error
	for _, s := range list {
		p, err := internal.ParsePlace(s, internal.Rekor, internal.File)
		if err == nil {
			return p, nil
		}
		errs = append(errs, err)
	}
	return internal.Place{}, fmt.Errorf("no valid retriever found from flags: %v: %w", v.retrieval, errors.Join(errs...))
}

// vsaComponent is what came of one component.
type vsaComponent struct {
	component
	result *vsaResult
	judged bool // for want of a summary that counts
	good   bool // as judged
	err    error
}

func (c *vsaComponent) passed() bool {
	switch {
	case c.err != nil:
		return false
	case c.judged:
		return c.good
	}
	return c.result != nil && c.result.Passed
}

func (v *vsaCommand) run(cmd *cobra.Command, g *globals) error {
	to, err := vsaTargets(v.output)
	if err != nil {
		return err
	}
	at, err := effectiveTime(v.when, true)
	if err != nil {
		return err
	}
	if at.IsZero() {
		at = time.Now().UTC() // there is no attestation
	}
	where, err := v.place()
	if err != nil {
		return err
	}
	spec, err := g.loadSpec(cmd.Context(), v.policy)
	if err != nil {
		return err
	}
	r, err := newRunner(g, cmd.ErrOrStderr(), v.workers)
	if err != nil {
		return err
	}
	ctx, cancel := g.within(cmd.Context())
	defer cancel()
	find := &summaries{place: where, maxAge: time.Duration(v.expiration), spec: spec}
	if v.ignoreSignature {
		r.warn("Signatures of verification summaries are not checked: anybody can have written them")
	} else if find.key, _, err = r.verify.publicKey(ctx, v.publicKey); err != nil {
		return fmt.Errorf("reading --vsa-public-key: %w", err)
	}
	snapshot, err := v.snapshot(ctx, g)
	if err != nil {
		return fmt.Errorf("failed to parse input: %w", err)
	}
	if len(snapshot.Components) == 0 {
		return errors.New("no components found in input")
	}
	var fall *judge
	if !v.noFallback {
		if err := r.expand(ctx, snapshot); err != nil {
			return err
		}
		if fall, err = v.judge(ctx, r, *spec, snapshot, at); err != nil {
			return fmt.Errorf("failed to create fallback validation context: %w", err)
		}
	}
	list := make([]*vsaComponent, len(snapshot.Components))
	r.each(len(list), func(i int) { list[i] = v.component(ctx, find, snapshot.Components[i], at) })
	slices.SortStableFunc(list, func(a, b *vsaComponent) int { return strings.Compare(a.Name, b.Name) })
	judged, err := v.fallBack(ctx, fall, list)
	if err != nil {
		return err
	}
	out := newVSAReport(list, time.Now())
	if judged != nil {
		g.atEnd(judged.close)
		judged.colour = colour(v.never, v.always, cmd.OutOrStdout())
		out.fallback = judged
	}
	if err := out.write(to, cmd.OutOrStdout(), v.about(len(list))); err != nil {
		return err
	}
	return v.outcome(list)
}

// fallBack judges the images without a summary that counts, where that is wanted. It
// returns validate image's report of them; nil where there is none.
func (v *vsaCommand) fallBack(ctx context.Context, fall *judge, list []*vsaComponent) (*imageReport, error) {
	var open []*vsaComponent
	for _, c := range list {
		if !c.result.Passed {
			open = append(open, c)
		}
	}
	if fall == nil || len(open) == 0 {
		return nil, nil
	}
	fall.only = []component{}
	for _, c := range open {
		fall.only = append(fall.only, c.component)
	}
	report, err := fall.report(ctx, &additions{}, wanted{})
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		for _, c := range open {
			c.err = fmt.Errorf("fallback image validation failed: %w", err)
		}
		return nil, nil
	}
	for _, k := range report.kept {
		open[k.order].judged, open[k.order].good = true, k.success
		open[k.order].err = nil
	}
	return report, nil
}

// about are the lines that Conforma begins with.
func (v *vsaCommand) about(n int) string {
	what := "Validating VSA: " + v.identifier
	if v.images != "" {
		what = "Validating VSAs from snapshot: " + v.images
	}
	return fmt.Sprintf("[INFO] %s\n[INFO] Policy: %s\n[INFO] Found %d components in snapshot\n[INFO] === Processing Components in Parallel (%d workers) ===\n", what, v.policy, n, v.workers)
}

func (v *vsaCommand) snapshot(ctx context.Context, g *globals) (*snapshotSpec, error) {
	if v.images == "" {
		// Also a file, and a digest alone, of which no reference is made.
		return &snapshotSpec{Components: []component{{Name: unnamed, ContainerImage: v.identifier}}}, nil
	}
	return snapshotFlags{images: v.images}.read(ctx, g.kubeconfig)
}

// judge judges images that have no summary that counts.
func (v *vsaCommand) judge(ctx context.Context, r *runner, spec conforma.Spec, snapshot *snapshotSpec, at time.Time) (*judge, error) {
	spec.PublicKey = v.fallbackKey
	j := &judge{runner: r, spec: &spec, snapshot: snapshot, when: at}
	var err error
	if j.demand, err = r.verify.demanded(ctx, builtin.SigstoreOptions{PublicKey: v.fallbackKey, IgnoreRekor: true, RekorURL: spec.RekorURL}); err != nil {
		return nil, err
	}
	if j.policy, err = conforma.Load(ctx, &spec, conforma.Options{
		When: at, Sources: r.policies(), Filter: conforma.IncludeExclude, Builtins: r.builtins, Trace: r.rules(), Sigstore: j.demand.SigstoreOptions,
	}); err != nil {
		return nil, err
	}
	j.spec = j.policy.Pinned()
	return j, nil
}

// component checks the summary of one component.
func (v *vsaCommand) component(ctx context.Context, find *summaries, c component, at time.Time) *vsaComponent {
	out := &vsaComponent{component: c}
	res, err := find.find(ctx, c.ContainerImage, digestIn(c.ContainerImage), at, time.Now())
	if err != nil {
		res = &vsaResult{Message: err.Error(), Code: vsa.ReasonNotFound}
		if errors.Is(err, internal.ErrNotThere) {
			res.Code = vsa.ReasonNone
		}
		out.err = fmt.Errorf("VSA validation failed: %w", err)
	}
	out.result = res
	return out
}

// outcome is the command's: an error where an image does not pass.
func (v *vsaCommand) outcome(list []*vsaComponent) error {
	if !v.strict {
		return nil
	}
	failed := 0
	var errs []error
	for _, c := range list {
		if !c.passed() {
			failed++
			errs = append(errs, c.err)
		}
	}
	switch err := errors.Join(errs...); {
	case failed == 0:
		return nil
	case err != nil:
		return fmt.Errorf("snapshot validation failed for %d components: %w", failed, err)
	}
	return fmt.Errorf("snapshot validation failed for %d components", failed)
}
