package cli

import "github.com/spf13/cobra"

// policyCommand holds what is done with policies beside judging by them.
func (a *app) policyCommand() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "Work with policies"}
	c.AddCommand(
		a.policyCheckCommand(),
		a.policyDiffCommand(),
		a.policyDocCommand(),
		a.policyShowCommand(),
		a.policyTestCommand(),
		a.policyVendorCommand(),
	)
	return c
}
