package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/policytool"
)

func (a *app) policyDiffCommand() *cobra.Command {
	var (
		p        policyFlags
		evidence []string
		at       string
		workers  int
	)
	c := &cobra.Command{
		Use:   "diff OLD NEW --evidence DIR…",
		Short: "Compare two policies over recorded evidence",
		Long: `Judges recordings of ` + "`assay gate --record`" + ` by two policies and says which images would
now fail, by which rules, which would now pass, and which have new warnings; and which
rules are new, gone or changed. Nothing is asked of a registry.

Both judge as of each recording's own time, or as of --at: rules that come into force
later than the evidence was recorded are warnings otherwise.

Exit codes: 0 no image would newly fail, 1 some could not be checked, 2 wrong usage,
3 some would now fail.`,
		Example: "  assay policy diff ./policy ./policy-next --evidence recordings/\n  assay policy diff old.yaml new.yaml --evidence verdict/ --at 2027-01-01 --output json",
		Args:    cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			if len(evidence) == 0 {
				return usagef("no evidence given: --evidence DIR, a recording or a folder of some")
			}
			o := policytool.DiffOptions{Workers: workers}
			if at != "" {
				var err error
				if o.At, err = day("at", at); err != nil {
					return err
				}
			} else {
				o.At = time.Time{}
			}
			var dirs []string
			for _, e := range evidence {
				list, err := policytool.Recordings(e)
				if err != nil {
					return err
				}
				dirs = append(dirs, list...)
			}
			before, err := p.load(cmd.Context(), a, args[0])
			if err != nil {
				return err
			}
			after, err := p.load(cmd.Context(), a, args[1])
			if err != nil {
				return err
			}
			d, err := policytool.Diff(cmd.Context(), before, after, dirs, o)
			if err != nil {
				return fmt.Errorf("comparing policies: %w", err)
			}
			if a.output == "json" {
				err = a.json(d)
			} else {
				err = d.WriteText(a.out)
			}
			switch {
			case err != nil:
				return err
			case len(d.Unchecked) > 0:
				return &exit{code: exitFailed}
			case len(d.Fails) > 0:
				return &exit{code: exitRefused}
			}
			return nil
		},
	}
	p.add(c)
	f := c.Flags()
	f.StringArrayVar(&evidence, "evidence", nil, "recording, or folder of recordings, to judge (repeatable)")
	f.StringArrayVar(&evidence, "replay", nil, "the same as --evidence")
	f.StringVar(&at, "at", "", "judge as of this time: now, RFC 3339 or YYYY-MM-DD (default: each recording's own)")
	f.IntVar(&workers, "workers", 0, "recordings judged at a time (default: one for each core, at most 8)")
	return c
}
