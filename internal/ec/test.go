package ec

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/ec/conftest"
)

// testAppstudio is the form of TEST_OUTPUT, which conftest does not know.
const testAppstudio = "appstudio"

// testFlags are conftest's.
type testFlags struct {
	conftest.Options
	form               conftest.Form
	output             string
	failOnWarn, noFail bool
	quiet, tls         bool
}

// testCommand is conftest's test. Conforma has it only with EC_EXPERIMENTAL=1.
func testCommand(g *globals) *cobra.Command {
	on := os.Getenv("EC_EXPERIMENTAL") == "1"
	t := &testFlags{}
	c := &cobra.Command{
		Use: "test PATH…", Short: "Test configuration files by rules, as conftest does", Hidden: !on,
		Long: `Tests configuration files by rules in Rego, with the flags and results of conftest's
test and with the ec.* functions. It is there with EC_EXPERIMENTAL=1. Exit codes: 0,
1 for failures, and with --fail-on-warn 1 for warnings and 2 for failures.`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !on {
				return errors.New("test is experimental in Conforma's ec, and so here: set EC_EXPERIMENTAL=1")
			}
			if len(args) == 0 {
				return errors.New("missing required arguments: name files or folders to test")
			}
			return t.run(g, cmd, args)
		},
	}
	f := c.Flags()
	f.BoolVar(&t.failOnWarn, "fail-on-warn", false, "end with 1 where there are warnings, and with 2 where there are failures")
	f.BoolVar(&t.noFail, "no-fail", false, "end with 0 whatever the results are")
	f.BoolVar(&t.form.NoColor, "no-color", false, "no colours")
	f.BoolVar(&t.form.SuppressExceptions, "suppress-exceptions", false, "leave exceptions out of the output")
	f.BoolVar(&t.AllNamespaces, "all-namespaces", false, "test by the rules of all packages")
	f.BoolVar(&t.quiet, "quiet", false, "no output where nothing failed")
	f.BoolVar(&t.Trace, "trace", false, "write the steps of rules to standard error")
	f.BoolVar(&t.Strict, "strict", false, "compile rules in OPA's strict mode")
	f.BoolVar(&t.ShowBuiltinErrors, "show-builtin-errors", false, "fail with the errors of builtin functions")
	f.BoolVar(&t.Combine, "combine", false, "give the rules all files in one list")
	f.StringVar(&t.Ignore, "ignore", "", "regular expression of paths in folders to leave out")
	f.StringVar(&t.Parser, "parser", "", "read all files as this: "+strings.Join(conftest.Parsers(), ", "))
	f.StringVar(&t.Capabilities, "capabilities", "", "JSON file with OPA's capabilities that rules may use; all by default")
	f.StringVar(&t.RegoVersion, "rego-version", "v1", "v0 or v1")
	f.StringVarP(&t.output, "output", "o", conftest.DefaultForm, "FORMAT, or appstudio=FILE: "+strings.Join(append(conftest.Forms(), testAppstudio), ", "))
	f.BoolVar(&t.form.HideInJUnit, "junit-hide-message", false, "no messages in the names of JUnit's tests")
	f.StringSliceVarP(&t.Policy, "policy", "p", []string{"policy"}, "files and folders with rules (repeatable)")
	f.StringSliceVarP(&t.Update, "update", "u", nil, "address of rules to fetch into the first --policy folder before (repeatable)")
	f.StringSliceVarP(&t.Namespace, "namespace", "n", []string{"main"}, "test by the rules of this package (repeatable)")
	f.StringSliceVarP(&t.Data, "data", "d", nil, "files and folders with data (repeatable)")
	f.StringSliceVar(&t.ProtoFileDirs, "proto-file-dirs", nil, "folders with definitions of Protocol Buffers (repeatable)")
	f.BoolVar(&t.tls, "tls", true, "taken for conftest's sake: registries but those of this machine are asked over TLS")
	return c
}

func (t *testFlags) run(g *globals, cmd *cobra.Command, args []string) error {
	ctx, cancel := g.within(cmd.Context())
	defer cancel()
	r, err := newRunner(g, cmd.ErrOrStderr(), 1)
	if err != nil {
		return err
	}
	r.builtins.Register()
	if len(t.Update) > 0 {
		if !t.tls {
			return errors.New("--tls=false: policies are fetched over TLS; serve them on this machine, or fetch them before")
		}
		if t.Sources, err = r.sources(); err != nil {
			return err
		}
	}
	t.form.Trace = t.Trace
	form, file, _ := strings.Cut(t.output, "=")
	t.form.Name = t.output
	results, err := conftest.Run(ctx, args, t.Options)
	if err != nil {
		return t.failed(cmd, form, fmt.Errorf("running test: %w", err))
	}
	code := results.ExitCode()
	if t.failOnWarn {
		code = results.ExitCodeFailOnWarn()
	}
	if !t.quiet || code != 0 {
		if form == testAppstudio {
			err = t.appstudio(cmd, file, results)
		} else {
			err = conftest.Write(cmd.OutOrStdout(), results, t.form)
		}
		if err != nil {
			return t.failed(cmd, form, fmt.Errorf("output results: %w", err))
		}
		if t.noFail {
			return nil
		}
	}
	// TEST_OUTPUT says SKIPPED. All others would look as if something had passed.
	if form != testAppstudio && !conftest.Evaluated(results) {
		return fmt.Errorf("nothing was tested: no package of %s has a rule; see --namespace and --all-namespaces", strings.Join(t.Namespace, ", "))
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

// failed tells about a test that could not be made. TEST_OUTPUT has it as well, and
// with --no-fail it is no failure of the process then.
func (t *testFlags) failed(cmd *cobra.Command, form string, err error) error {
	if form != testAppstudio {
		return err
	}
	b, jerr := json.Marshal(testOutput{Timestamp: fmt.Sprint(time.Now().Unix()), Result: "ERROR", Note: "Error: " + err.Error()})
	if jerr != nil {
		return errors.Join(err, jerr)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s\n", b)
	if t.noFail {
		fmt.Fprintf(cmd.ErrOrStderr(), "Error: %v\n", err)
		return nil
	}
	return err
}

func (t *testFlags) appstudio(cmd *cobra.Command, file string, results conftest.Results) error {
	o := testOutput{Timestamp: fmt.Sprint(time.Now().Unix())}
	if len(t.Namespace) > 0 {
		o.Namespace = t.Namespace[0]
	}
	for _, r := range results {
		o.Successes += r.Successes
		o.Failures += len(r.Failures)
		o.Warnings += len(r.Warnings)
	}
	o.conclude(false)
	o.Note = map[string]string{
		"FAILURE": "Failures detected", "WARNING": "Warnings detected", "SKIPPED": "All checks were skipped", "SUCCESS": "All checks passed successfully",
	}[o.Result]
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if file != "" {
		return os.WriteFile(file, b, 0o600)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", b)
	return err
}
