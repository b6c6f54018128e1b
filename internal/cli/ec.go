package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/launch"
)

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

// handOver runs a program that lies beside ours in our place. It fails where it is
// not there, and otherwise as the program does.
func (a *app) handOver(ctx context.Context, program string, args ...string) error {
	path, err := launch.Binary(program)
	if err != nil {
		return err
	}
	c := exec.CommandContext(ctx, path, args...)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.Stdin, c.Stdout, c.Stderr = a.in, a.out, a.err
	err = c.Run()
	var e *exec.ExitError
	if errors.As(err, &e) && e.ExitCode() >= 0 {
		return &exit{code: e.ExitCode()}
	}
	return err
}
