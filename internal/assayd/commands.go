package assayd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/doctor"
	"assay.dev/assay/internal/kube"
)

// Main runs the command line and returns the exit code: 0, 1 for trouble, 2 for
// wrong usage; object has more.
func Main(ctx context.Context, args []string, out, errw io.Writer) int {
	root := Command()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errw)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(errw, "assayd:", err)
	if errors.As(err, new(usageError)) {
		return 2
	}
	var coded codedError
	if errors.As(err, &coded) {
		return coded.code
	}
	// What cobra and the commands of other packages say about usage.
	for _, p := range []string{"unknown command", "invalid argument", "accepts ", "required flag"} {
		if strings.HasPrefix(err.Error(), p) {
			return 2
		}
	}
	return 1
}

// Command is the whole command line of assayd.
func Command() *cobra.Command {
	root := &cobra.Command{
		Use:           "assayd",
		Short:         "Assay with Kubernetes: its own API on one machine, the observer beside a Tekton",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q; `assayd --help` lists them", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(kube.Commands()...)
	root.AddCommand(observerCommand(), doctor.Command(), objectCommand())
	return root
}
