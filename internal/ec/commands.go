package ec

import (
	"errors"
	"fmt"
	"slices"
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
	)
	c := &cobra.Command{
		Use:   "input [FILE…]",
		Short: "Judge JSON and YAML files",
		Args:  cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			var list []string
			for _, a := range append(files, args...) {
				if strings.TrimSpace(a) != "" && !slices.Contains(list, a) {
					list = append(list, a)
				}
			}
			if len(list) == 0 {
				return errors.New("at least one input file must be specified as a positional argument or via the --file flag")
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
			spec, err := loadSpec(policy)
			if err != nil {
				return err
			}
			if err := g.check(); err != nil {
				return err
			}
			r, err := newRunner(g, cmd.ErrOrStderr(), workers)
			if err != nil {
				return err
			}
			ctx, cancel := g.within(cmd.Context())
			defer cancel()
			o := conforma.Options{When: at, Builtins: r.builtins, Sigstore: builtin.SigstoreOptions{RekorURL: spec.RekorURL}}
			if spec.PublicKey != "" {
				if !strings.Contains(spec.PublicKey, "-----BEGIN") {
					return errors.New("public key is not in PEM format and signature verifier is not initialized")
				}
				o.Sigstore.PublicKey = spec.PublicKey
			}
			p, err := conforma.Load(ctx, spec, o)
			if err != nil {
				return fmt.Errorf("error validating file %s: evaluating policy: %w", list[0], err)
			}
			in := &inputs{runner: r, spec: spec, policy: p, when: at, info: info, show: sh}
			report, err := in.all(ctx, list, &additions{PastEffectiveTime: past && at.Before(time.Now().Add(-clockSkew))})
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
	refuse(c, false, map[string]string{"server": "", "server-address": "", "server-port": ""})
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
		key, rekor      string
		output, extra   []string
		outputFile      string
		filter          string
		ignoreRekor     bool
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
			snapshot, err := from.read()
			if err != nil {
				return err
			}
			spec, err := loadSpec(policy)
			if err != nil {
				return err
			}
			if rekor != "" {
				spec.RekorURL = rekor
			}
			if key != "" {
				spec.PublicKey = key
			}
			more, err := pairs(extra)
			if err != nil {
				return err
			}
			if err := spec.AddRuleData(more); err != nil {
				return err
			}
			if err := g.check(); err != nil {
				return err
			}
			r, err := newRunner(g, cmd.ErrOrStderr(), workers)
			if err != nil {
				return err
			}
			ctx, cancel := g.within(cmd.Context())
			defer cancel()
			j := &judge{runner: r, spec: spec.Pinned(), snapshot: snapshot, when: at, skipImageSig: skipSig, skipAttSig: skipAtt, info: info}
			if spec.PublicKey != "" {
				if j.key, j.pem, err = publicKey(spec.PublicKey); err != nil {
					return err
				}
			}
			if !(skipSig && skipAtt) {
				if spec.PublicKey == "" {
					return errors.New("no public key is named, and keyless identities are not verified by this command; use --public-key, or publicKey in the policy")
				}
				if !ignoreRekor {
					return errors.New("entries of Rekor are not verified by this command; use --ignore-rekor if the key's signature is enough")
				}
			}
			loadedAt := at
			if loadedAt.IsZero() {
				loadedAt = time.Now().UTC()
			}
			if j.policy, err = conforma.Load(ctx, spec, conforma.Options{
				When: loadedAt, Filter: conforma.FilterType(filter), Builtins: r.builtins, Sigstore: j.sigstoreOptions(ignoreRekor),
			}); err != nil {
				return err
			}
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
			list, err := j.all(ctx)
			if err != nil {
				return err
			}
			report := j.report(list, add, sh.successes || slices.ContainsFunc(to, func(t target) bool { return t.show.successes }))
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
	f.StringVarP(&from.image, "image", "i", "", "an image")
	f.StringVar(&from.images, "images", "", "a Snapshot: a file, or written out")
	f.StringVar(&from.snapshot, "snapshot", "", "a Snapshot's spec, written out as JSON")
	f.StringVarP(&from.file, "file-path", "f", "", "a Snapshot's file; use --images instead")
	f.StringVarP(&from.json, "json-input", "j", "", "a Snapshot written out; use --images instead")
	f.StringVarP(&policy, "policy", "p", "", "policy configuration: a file, or written out")
	f.StringVarP(&key, "public-key", "k", "", "key that images and attestations are signed with: a file, or PEM; counts before the policy's publicKey")
	f.StringVarP(&rekor, "rekor-url", "r", "", "what rules see as the address of Rekor; counts before the policy's rekorUrl")
	f.BoolVar(&ignoreRekor, "ignore-rekor", false, "ask for no entries in Rekor (needed: they are not verified here)")
	f.BoolVar(&skipSig, "skip-image-sig-check", false, "do not check image signatures")
	f.BoolVar(&skipAtt, "skip-att-sig-check", false, "do not check who signed attestations")
	f.StringSliceVar(&output, "output", nil, "report as FORMAT[=FILE][?show-successes=BOOL&…]: "+strings.Join(imageFormats, ", ")+" (repeatable)")
	f.StringVarP(&outputFile, "output-file", "o", "", "file for the JSON report; use --output json=FILE instead")
	f.StringSliceVar(&extra, "extra-rule-data", nil, "KEY=VALUE at the top of the rule data of every source (repeatable)")
	f.StringVar(&filter, "filter-type", string(conforma.IncludeExclude), "how rules are chosen: include-exclude or ec-policy")
	common(c, &strict, &past, &info, &noColor, &always, &workers, &when)
	const keyless = "only keys are verified: use --public-key"
	refuse(c, false, map[string]string{
		"certificate-identity": keyless, "certificate-identity-regexp": keyless,
		"certificate-oidc-issuer": keyless, "certificate-oidc-issuer-regexp": keyless,
		"vsa": "", "attestation-format": "", "vsa-signing-key": "", "vsa-public-key": "", "vsa-upload": "", "vsa-expiration": "", "attestation-output-dir": "",
	})
	return c
}
