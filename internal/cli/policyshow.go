package cli

import (
	"github.com/spf13/cobra"

	"assay.dev/assay/internal/policytool"
)

func (a *app) policyShowCommand() *cobra.Command {
	var (
		p                    policyFlags
		at, image, component string
	)
	c := &cobra.Command{
		Use:   "show POLICY",
		Short: "List rules, and what each would decide",
		Long: `Lists every rule of a policy with what becomes of what it says: it refuses the image,
warns, warns until the day from which it refuses, or does not count; and because of
which include and exclude items.

Items of volatileConfig for some images or components only are looked at with --image
and --component. --at asks as of another day: what will be refused next month?`,
		Example: "  assay policy show ./policy\n  assay policy show github.com/org/config//release --at 2027-01-01\n  assay policy show ./policy.yaml --component frontend --output json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			when, err := day("at", at)
			if err != nil {
				return err
			}
			loaded, err := p.load(cmd.Context(), a, args[0])
			if err != nil {
				return err
			}
			l := policytool.Show(loaded, when, image, component)
			if a.output == "json" {
				return a.json(l)
			}
			return l.WriteText(a.out)
		},
	}
	p.add(c)
	f := c.Flags()
	f.StringVar(&at, "at", "now", "as of this time: now, RFC 3339 or YYYY-MM-DD")
	f.StringVar(&image, "image", "", "image (repository, or with @digest) that items are compared with")
	f.StringVar(&component, "component", "", "component that items are compared with")
	return c
}
