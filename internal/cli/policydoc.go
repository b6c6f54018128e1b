package cli

import (
	"github.com/spf13/cobra"

	"assay.dev/assay/internal/policytool"
	"assay.dev/assay/policy"
)

func (a *app) policyDocCommand() *cobra.Command {
	var p policyFlags
	c := &cobra.Command{
		Use:   "doc POLICY",
		Short: "Write a policy's documentation",
		Long: `Writes what the annotations of a policy's rules say as Markdown: packages, rules with
code, date, collections and solution, collections, and the keys of rule data that rules
read. --output json has the same for programs.`,
		Example: "  assay policy doc ./policy > POLICY.md",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("output") {
				a.output = "markdown"
			}
			if err := a.outputIs("markdown", "json"); err != nil {
				return err
			}
			ref, opts, err := p.open(cmd.Context(), a, args[0])
			if err != nil {
				return err
			}
			loaded, err := policy.Load(cmd.Context(), ref, opts)
			if err != nil {
				return err
			}
			d, err := policytool.Describe(cmd.Context(), loaded, ref, opts)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(d)
			}
			return d.WriteMarkdown(a.out)
		},
	}
	p.add(c)
	return c
}
