package ec

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/conforma"
)

func inputCommand(g *globals) *cobra.Command {
	var (
		files, output   []string
		policy, when    string
		past, info      bool
		strict          bool
		noColor, always bool
		workers         int
		serve           serverFlags
	)
	c := &cobra.Command{
		Use:   "input [FILE…]",
		Short: "Judge JSON and YAML files",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := serve.inputFiles(append(files, args...))
			if err != nil {
				return err
			}
			sh := shows(cmd)
			to, err := targets(output, "text", sh, inputFormats...)
			if err != nil {
				return err
			}
			at, err := effectiveTime(when, past)
			if err != nil {
				return err
			}
			if at.IsZero() { // there is no attestation
				at = time.Now().UTC()
			}
			spec, err := g.loadSpec(cmd.Context(), policy)
			if err != nil {
				return err
			}
			r, err := newRunner(g, cmd.ErrOrStderr(), workers)
			if err != nil {
				return err
			}
			ctx, cancel := g.within(cmd.Context())
			defer cancel()
			o := conforma.Options{When: at, Sources: g.policies(), Builtins: r.builtins, Trace: g.rules(), Sigstore: builtin.SigstoreOptions{RekorURL: spec.RekorURL}}
			if spec.PublicKey != "" {
				if !strings.Contains(spec.PublicKey, "-----BEGIN") {
					return errors.New("public key is not in PEM format and signature verifier is not initialized")
				}
				o.Sigstore.PublicKey = spec.PublicKey
			}
			p, err := conforma.Load(ctx, spec, o)
			if err != nil {
				if serve.on {
					return fmt.Errorf("loading policy sources: %w", err)
				}
				return fmt.Errorf("error validating file %s: evaluating policy: %w", list[0], err)
			}
			in := &inputs{runner: r, spec: spec, policy: p, when: at, info: info, show: sh}
			early := past && at.Before(time.Now().Add(-clockSkew))
			if serve.on {
				s := &inputServer{inputs: *in, past: early, fixed: !strings.EqualFold(when, "now"), load: func(ctx context.Context, at time.Time) (*conforma.Policy, error) {
					o := o
					o.When = at
					return conforma.Load(ctx, spec, o)
				}}
				return s.serve(cmd, serve)
			}
			report, err := in.all(ctx, list, &additions{PastEffectiveTime: early})
			if err != nil {
				return err
			}
			report.colour = colour(noColor, always, cmd.OutOrStdout())
			if err := writeAll(to, cmd.OutOrStdout(), report.render); err != nil {
				return err
			}
			if strict && !report.Success {
				return errCriteria
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringSliceVarP(&files, "file", "f", nil, "a file; name it as an argument instead")
	f.Lookup("file").Hidden = true
	f.StringVarP(&policy, "policy", "p", "", "policy configuration: a file, or written out (required)")
	f.StringSliceVarP(&output, "output", "o", nil, "report as FORMAT[=FILE][?show-successes=BOOL&…]: "+strings.Join(inputFormats, ", ")+" (repeatable)")
	common(c, &strict, &past, &info, &noColor, &always, &workers, &when)
	serve.add(c)
	_ = c.MarkFlagRequired("policy")
	return c
}

// common adds flags that images and inputs share.
func common(c *cobra.Command, strict, past, info, noColor, always *bool, workers *int, when *string) {
	f := c.Flags()
	f.BoolVarP(strict, "strict", "s", true, "end with 1 where there are violations")
	f.StringVar(when, "effective-time", "now", "judge as of this time: now, attestation (images), RFC 3339 or YYYY-MM-DD")
	f.BoolVar(past, "allow-past-effective-time", false, "accept an --effective-time in the past, where later rules are not in force")
	f.BoolVar(info, "info", false, "report titles, descriptions and solutions")
	f.BoolVar(noColor, "no-color", false, "no colours in text")
	f.BoolVar(always, "color", false, "colours in text, also where it is no terminal")
	f.IntVar(workers, "workers", 5, "how many are judged at a time")
}

func imageCommand(g *globals) *cobra.Command {
	var (
		from            snapshotFlags
		policy, when    string
		signing         signingFlags
		summaries       vsaFlags
		output, extra   []string
		outputFile      string
		filter          string
		skipSig         bool
		skipAtt         bool
		past, info      bool
		strict          bool
		noColor, always bool
		workers         int
	)
	c := &cobra.Command{
		Use:   "image",
		Short: "Judge images by their evidence",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := summaries.check(); err != nil {
				return err
			}
			sh := shows(cmd)
			if outputFile != "" {
				output = append(output, "json="+outputFile)
			}
			to, err := targets(output, "json", sh, imageFormats...)
			if err != nil {
				return err
			}
			at, err := effectiveTime(when, past)
			if err != nil {
				return err
			}
			ctx, cancel := g.within(cmd.Context())
			defer cancel()
			snapshot, err := from.read(ctx, g.kubeconfig)
			if err != nil {
				return err
			}
			spec, err := g.loadSpec(cmd.Context(), policy)
			if err != nil {
				return err
			}
			demanded := signing.apply(spec)
			r, err := newRunner(g, cmd.ErrOrStderr(), workers)
			if err != nil {
				return err
			}
			more, err := r.extraRuleData(ctx, extra)
			if err != nil {
				return err
			}
			if err := spec.AddRuleData(more); err != nil {
				return err
			}
			j := &judge{runner: r, spec: spec, snapshot: snapshot, when: at, skipImageSig: skipSig, skipAttSig: skipAtt, info: info}
			if skipSig && skipAtt {
				// Nobody's trust is needed, and rules see what was demanded.
				demanded.IgnoreRekor = true
			}
			if j.demand, err = r.verify.demanded(ctx, demanded); err != nil {
				return err
			}
			j.demand.IgnoreRekor = signing.ignoreRekor
			if j.summaries, err = summaries.lookup(ctx, r, spec); err != nil {
				return err
			}
			summaries.asked = policy
			loadedAt := at
			if loadedAt.IsZero() {
				loadedAt = time.Now().UTC()
			}
			if j.policy, err = conforma.Load(ctx, spec, conforma.Options{
				When: loadedAt, Sources: g.policies(), Filter: conforma.FilterType(filter), Builtins: r.builtins, Trace: g.rules(), Sigstore: j.demand.SigstoreOptions,
			}); err != nil {
				return err
			}
			j.spec = j.policy.Pinned()
			if err := r.expand(ctx, snapshot); err != nil {
				return err
			}
			add := &additions{PastEffectiveTime: past && !at.IsZero() && at.Before(time.Now().Add(-clockSkew))}
			if skipSig {
				r.warn("Image signature check skipped")
				add.SkippedChecks = append(add.SkippedChecks, imageSignature.code)
			}
			if skipAtt {
				r.warn("Attestation signature check skipped, fetching attestations without verification")
				add.SkippedChecks = append(add.SkippedChecks, attestationCheck.code)
			}
			report, err := j.report(ctx, add, wantedBy(sh, to))
			if err != nil {
				return err
			}
			g.atEnd(report.close)
			report.colour = colour(noColor, always, cmd.OutOrStdout())
			if err := writeAll(to, cmd.OutOrStdout(), report.render); err != nil {
				return err
			}
			if err := summaries.write(ctx, r, report, skipSig || skipAtt); err != nil {
				return err
			}
			if strict && !report.Success {
				return errCriteria
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&from.image, "image", "i", "", "an image")
	f.StringVar(&from.images, "images", "", "a Snapshot: a file, or written out")
	f.StringVar(&from.snapshot, "snapshot", "", "a Snapshot: its spec as JSON, or [NAMESPACE/]NAME in a cluster")
	f.StringVarP(&from.file, "file-path", "f", "", "a Snapshot's file; use --images instead")
	f.StringVarP(&from.json, "json-input", "j", "", "a Snapshot written out; use --images instead")
	f.StringVarP(&policy, "policy", "p", "", "policy configuration: a file, or written out")
	signing.add(c)
	summaries.add(c)
	f.BoolVar(&skipSig, "skip-image-sig-check", false, "do not check image signatures")
	f.BoolVar(&skipAtt, "skip-att-sig-check", false, "do not check who signed attestations")
	f.StringSliceVar(&output, "output", nil, "report as FORMAT[=FILE][?show-successes=BOOL&…]: "+strings.Join(imageFormats, ", ")+" (repeatable)")
	f.StringVarP(&outputFile, "output-file", "o", "", "file for the JSON report; use --output json=FILE instead")
	f.StringSliceVar(&extra, "extra-rule-data", nil, "KEY=VALUE at the top of the rule data of every source (repeatable)")
	f.StringVar(&filter, "filter-type", string(conforma.IncludeExclude), "how rules are chosen: include-exclude or ec-policy")
	common(c, &strict, &past, &info, &noColor, &always, &workers, &when)
	return c
}
