package cli

import (
	"context"
	"errors"
	"os"
	"os/exec"

	"assay.dev/assay/internal/launch"
)

// handOver runs a program that lies beside ours in our place. It fails where it is not
// there, and otherwise as the program does. It is asked to end, not killed, so that
// assay-log puts what it took in under a checkpoint.
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
	switch {
	case errors.As(err, &e) && e.ExitCode() >= 0:
		return &exit{code: e.ExitCode()}
	case err != nil && ctx.Err() != nil && c.ProcessState != nil && c.ProcessState.Success():
		return nil // ended as it was asked to
	}
	return err
}
