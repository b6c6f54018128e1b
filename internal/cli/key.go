package cli

import "github.com/spf13/cobra"

func (a *app) keyCommand() *cobra.Command {
	c := &cobra.Command{Use: "key", Short: "Keys to sign with"}
	c.AddCommand(&cobra.Command{
		Use:                "generate [--kind KIND] [--out FILE]",
		Short:              "Make a key pair in files, encrypted as cosign does when COSIGN_PASSWORD is set",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.handOver(cmd.Context(), "assay-observer", append([]string{"key", "generate"}, args...)...)
		},
	})
	return c
}
