package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/policytool"
)

func (a *app) policyTestCommand() *cobra.Command {
	var (
		o         policytool.TestOptions
		threshold float64
		verbose   bool
	)
	c := &cobra.Command{
		Use:   "test PATH…",
		Short: "Run the tests of rules",
		Long: `Runs the rules whose names begin with test_ in the *.rego files at the paths, with the
data (JSON, YAML) beside them. todo_test_ skips one. Folders are read with all below
them but what begins with a dot; a policy.yaml that is a configuration is no data. As
in OPA's own tests, data in a folder below a path stands under the folder's name; name
a file to have its data at the top.

All ec.* functions are there, reach nothing, and can be replaced:

  test_base if count(deny) == 0 with ec.oci.image_manifest as {"schemaVersion": 2}

Exit codes: 0 all passed, 1 could not be run (rules that do not compile, no tests),
2 wrong usage, 3 a test failed or the coverage is less than --threshold.`,
		Example: "  assay policy test ./policy\n  assay policy test ./policy ./data --coverage --threshold 90\n  assay policy test ./policy --run 'release\\.scan' --verbose\n  assay policy test ./policy --output junit > tests.xml",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usagef("no path given: name files or folders with rules and their tests")
			case threshold < 0 || threshold > 100:
				return usagef("--threshold %g: want a percentage, 0 to 100", threshold)
			}
			o.Coverage = o.Coverage || cmd.Flags().Changed("threshold")
			return a.policyTest(cmd.Context(), args, o, threshold, verbose)
		},
	}
	f := c.Flags()
	f.StringVarP(&o.Run, "run", "r", "", "run the tests whose whole names (data.package.test_x) match this regular expression")
	f.StringArrayVar(&o.Ignore, "ignore", nil, "pass over files and folders whose name or path matches this pattern, such as *_old.rego (repeatable)")
	f.BoolVar(&o.Coverage, "coverage", false, "say which lines of rules no test reaches")
	f.Float64Var(&threshold, "threshold", 0, "percentage of lines of rules that tests must reach; implies --coverage")
	f.DurationVar(&o.Timeout, "timeout", 30*time.Second, "how long one test may take")
	f.IntVar(&o.Parallel, "parallel", 0, "how many tests run at a time (default: one for each core)")
	f.BoolVarP(&verbose, "verbose", "v", false, "list tests that passed, too")
	return c
}

func (a *app) policyTest(ctx context.Context, paths []string, o policytool.TestOptions, threshold float64, verbose bool) error {
	if err := a.outputIs("text", "json", "junit"); err != nil {
		return err
	}
	o.Program = Version()
	run, err := policytool.Test(ctx, paths, o)
	if err != nil {
		return a.invalid(err)
	}
	switch a.output {
	case "json":
		err = a.json(run)
	case "junit":
		err = run.WriteJUnit(a.out)
	default:
		err = run.WriteText(a.out, verbose)
	}
	switch {
	case err != nil:
		return err
	case run.Failed+run.Errors > 0:
		return &exit{code: exitRefused}
	case run.Coverage != nil && run.Coverage.Percent < threshold:
		return &exit{exitRefused, fmt.Errorf("tests reach %.1f%% of the lines of rules, less than %g%%", run.Coverage.Percent, threshold)}
	}
	return nil
}

// invalid tells what the compiler says of rules, line by line.
func (a *app) invalid(err error) error {
	var invalid *policytool.InvalidError
	if !errors.As(err, &invalid) {
		return err
	}
	var b strings.Builder
	for i := range invalid.Findings {
		if err := invalid.Findings[i].Write(&b); err != nil {
			return err
		}
	}
	fmt.Fprint(a.err, b.String())
	return err
}
