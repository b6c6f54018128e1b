package cli

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/policytool"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/spec"
)

func (a *app) policyCheckCommand() *cobra.Command {
	var (
		p                   policyFlags
		here, notes, strict bool
		at                  string
		expiring            time.Duration
	)
	c := &cobra.Command{
		Use:   "check POLICY…",
		Short: "Say what is wrong with policies",
		Long: `Checks a policy's configuration, fetches every source, compiles the rules and looks at
their annotations, at include and exclude items that name nothing, at data that rules
read and nobody gives, and at exceptions that have ended or soon will. Each finding
says where, what is wrong and what to do.

A policy with errors is refused by the gate, or does not do what it says. Warnings are
likely slips: unused imports and variables among them. Notes are shown with --notes.

Exit codes: 0 no errors (with --strict: no warnings either), 1 something could not be
read, 2 wrong usage, 3 errors.`,
		Example: "  assay policy check ./policy\n  assay policy check --relative-to-here policy.yaml\n  assay policy check github.com/org/config//release --output json\n  assay policy check ./policy --at 2027-01-01 --notes",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			if len(args) == 0 {
				return usagef("no policy given: name a file, a folder, an address or k8s://[NAMESPACE/]NAME")
			}
			when, err := day("at", at)
			if err != nil {
				return err
			}
			o := policytool.CheckOptions{At: when, Expiring: expiring, Program: Version()}
			var reports []*policytool.CheckReport
			bad := false
			for _, ref := range args {
				r, err := a.checkPolicy(cmd.Context(), &p, ref, here, o)
				if err != nil {
					return fmt.Errorf("checking %s: %w", ref, err)
				}
				bad = bad || r.Count(policytool.Error) > 0 || strict && r.Count(policytool.Warning) > 0
				if reports = append(reports, r); a.output == "text" {
					if err := r.WriteText(a.out, notes); err != nil {
						return err
					}
				}
			}
			if a.output == "json" {
				if err := a.json(map[string]any{"policies": reports}); err != nil {
					return err
				}
			}
			if bad {
				return &exit{code: exitRefused}
			}
			return nil
		},
	}
	p.add(c)
	f := c.Flags()
	f.BoolVar(&here, "relative-to-here", false, "take relative addresses in the configuration from the working folder, as Conforma does, and not from its own")
	f.BoolVar(&notes, "notes", false, "show notes, too")
	f.BoolVar(&strict, "strict", false, "end with 3 for warnings, too")
	f.StringVar(&at, "at", "now", "as of this time: now, RFC 3339 or YYYY-MM-DD")
	f.DurationVar(&expiring, "expiring", 30*24*time.Hour, "warn of exceptions that end within this time")
	return c
}

func (a *app) checkPolicy(ctx context.Context, p *policyFlags, ref string, here bool, o policytool.CheckOptions) (*policytool.CheckReport, error) {
	o.Name = ref
	if inline(ref) {
		o.Name = "policy"
	}
	if here && !inline(ref) {
		if info, err := os.Stat(ref); err != nil || info.IsDir() {
			return nil, usagef("--relative-to-here: %s is no file", ref)
		}
		raw, err := source.ReadFile(ref, spec.MaxBytes)
		if err != nil {
			return nil, err
		}
		// A configuration that is given as its text has the working folder's addresses.
		ref = strings.TrimRight(string(raw), "\n") + "\n"
	}
	name, opts, err := p.open(ctx, a, ref)
	if name == "" {
		name = ref
	}
	if err != nil {
		// A configuration that cannot be read is what Check is to say.
		r, cerr := policytool.Check(ctx, name, opts, o)
		if cerr == nil && r.Count(policytool.Error) > 0 {
			return r, nil
		}
		return nil, err
	}
	return policytool.Check(ctx, name, opts, o)
}
