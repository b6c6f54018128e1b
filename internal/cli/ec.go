package cli

import "github.com/spf13/cobra"

// ecCommand hands over to ec, the program that takes Conforma's command line. It
// brings OPA's own commands along, which would double this one's size.
func (a *app) ecCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "ec",
		Short:              "Take Conforma's command line, with its reports and exit codes",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.handOver(cmd.Context(), "ec", args...)
		},
	}
}
