package cli

import "github.com/spf13/cobra"

// doctorCommand hands over to assayd, the program that links Kubernetes.
func (a *app) doctorCommand() *cobra.Command {
	c := &cobra.Command{Use: "doctor", Short: "Say what a change-over would change, and what is in its way"}
	c.AddCommand(&cobra.Command{
		Use:                "chains",
		Short:              "Read a live installation of Tekton Chains",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.handOver(cmd.Context(), "assayd", append([]string{"doctor", "chains"}, args...)...)
		},
	})
	return c
}
