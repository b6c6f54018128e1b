package cli

import (
	"slices"

	"github.com/spf13/cobra"
)

// attestCommand hands over to the observer's binary, the only one that opens
// keys and the one that links the formats.
func (a *app) attestCommand() *cobra.Command {
	return &cobra.Command{
		Use:                "attest -f RUN",
		Short:              "State what Tekton Chains would state about runs in files",
		Long:               "Prints the in-toto statement about a TaskRun or PipelineRun in a file; see\n`assay attest --help` for its flags. It can only state: what executed or watched\nruns are signed with is out of its reach.",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			attest := func() error {
				return a.handOver(cmd.Context(), "assay-observer", append([]string{"attest"}, args...)...)
			}
			if slices.Contains(args, "--store") {
				return a.withLog(cmd, attest)
			}
			return attest()
		},
	}
}
