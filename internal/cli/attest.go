package cli

import (
	"context"
	"errors"
	"os/exec"
	"slices"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/launch"
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
			attest := func() error { return a.observer(cmd.Context(), append([]string{"attest"}, args...)...) }
			if slices.Contains(args, "--store") {
				return a.withLog(cmd, attest)
			}
			return attest()
		},
	}
}

// observer runs assay-observer in our place.
func (a *app) observer(ctx context.Context, args ...string) error {
	path, err := launch.Binary("assay-observer")
	if err != nil {
		return err
	}
	c := exec.CommandContext(ctx, path, args...)
	c.Stdin, c.Stdout, c.Stderr = a.in, a.out, a.err
	err = c.Run()
	var e *exec.ExitError
	if errors.As(err, &e) {
		return &exit{code: e.ExitCode()}
	}
	return err
}
