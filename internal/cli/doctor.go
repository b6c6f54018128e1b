package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/launch"
)

// doctorCommand hands over to assayd, the program that links Kubernetes.
func (a *app) doctorCommand() *cobra.Command {
	c := &cobra.Command{Use: "doctor", Short: "Say what a change-over would change, and what is in its way"}
	c.AddCommand(&cobra.Command{
		Use:                "chains",
		Short:              "Read a live installation of Tekton Chains",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.assayd(cmd.Context(), append([]string{"doctor", "chains"}, args...)...)
		},
	})
	return c
}

// assayd runs the program of that name in our place. It fails where the program
// is not beside ours, and otherwise as that does.
func (a *app) assayd(ctx context.Context, args ...string) error {
	path, err := launch.Binary("assayd")
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
