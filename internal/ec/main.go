package ec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/pullcache"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/source/fetch"
)

// Main runs one command line and returns the exit code: 0, or 1 for whatever
// else.
func Main(args []string, out, errw io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if os.Getenv("GOGC") == "" {
		// An evaluation leaves many times of what it needs behind. Collecting twice as
		// often costs a fifth more time, and saves a third of the memory.
		debug.SetGCPercent(50)
	}
	root, g := newRoot()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errw)
	err := root.ExecuteContext(ctx)
	code := 0
	var exit exitError
	switch {
	case errors.As(err, &exit):
		code = int(exit)
	case err != nil:
		fmt.Fprintf(errw, "Error: %v\n", err)
		code = 1
	}
	if err := g.stop(); err != nil {
		fmt.Fprintf(errw, "Error: %v\n", err)
		code = max(code, 1)
	}
	return code
}

// exitError ends the process with a code and says nothing: what there is to say is
// in the output.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// errCriteria is what a run ends with that judged and found violations.
var errCriteria = errors.New("success criteria not met")

// Root is the command tree.
func Root() *cobra.Command {
	c, _ := newRoot()
	return c
}

func newRoot() (*cobra.Command, *globals) {
	g := &globals{}
	c := &cobra.Command{
		Use:   "ec",
		Short: "Judge images and files by Conforma policies",
		Long: `Takes the arguments of Conforma's ec, and writes its reports with its exit codes:
0 for success, 1 for anything else.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          onlyCommands,

		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return g.start(cmd) },
	}
	c.CompletionOptions.DisableDefaultCmd = true
	f := c.PersistentFlags()
	f.DurationVar(&g.timeout, "timeout", 5*time.Minute, "how long the run may take; 0 for any time")
	f.DurationVar(&g.retry.MaxWait, "retry-max-wait", 3*time.Second, "longest wait between two tries of a request")
	f.IntVar(&g.retry.Max, "retry-max-retry", 3, "how often a failed request is tried again")
	f.DurationVar(&g.retry.Wait, "retry-duration", time.Second, "wait before the second try")
	f.Float64Var(&g.retry.Factor, "retry-factor", 2, "how much longer each wait is than the one before")
	f.Float64Var(&g.retry.Jitter, "retry-jitter", 0.1, "random part of a wait, as a fraction of it")
	f.BoolVar(&g.quiet, "quiet", false, "log errors only")
	f.BoolVar(&g.verbose, "verbose", false, "log what is being done")
	f.BoolVar(&g.debug, "debug", false, "log what is being done, and where in the code")
	f.StringVar(&g.logfile, "logfile", "", "append the log to this file instead of writing it to standard error")
	f.StringVar(&g.kubeconfig, "kubeconfig", "", "file that says how to reach the cluster")
	g.policySources.add(f)
	f.Var(&g.traces, "trace", "trace: none, all, or some of "+traceKinds+"; perf, cpu and mem write files for Go's tools, opa logs the steps of rules")
	f.Lookup("trace").NoOptDefVal = "log"
	validate := &cobra.Command{Use: "validate", Short: "Judge images, files or a policy's configuration", Args: cobra.ArbitraryArgs, RunE: onlyCommands}
	v := validate.PersistentFlags()
	v.Bool("show-successes", false, "list the rules that passed")
	v.Bool("show-warnings", true, "list warnings")
	v.Bool("show-policy-docs-link", false, "end text reports with violations or warnings with a link to the policy documentation")
	validate.AddCommand(imageCommand(g), inputCommand(g), policyCommand(g), vsaValidateCommand(g))
	c.AddCommand(validate, versionCommand(), opaCommand(g),
		compareCommand(g), fetchCommand(g), initCommand(), inspectCommand(g), sigstoreCommand(g), testCommand(g), trackCommand(g))
	return c, g
}

func onlyCommands(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	}
	return cmd.Help()
}

func (g *globals) check() error {
	if g.retry.Max < 0 || g.retry.Wait < 0 || g.retry.MaxWait < 0 || g.retry.Factor < 0 || g.retry.Jitter < 0 {
		return errors.New("--retry-…: negative values mean nothing")
	}
	if g.retry == (pullcache.Retry{}) {
		g.retry.Factor = 1
	}
	return nil
}

func policyCommand(g *globals) *cobra.Command {
	var policy string
	c := &cobra.Command{
		Use: "policy", Short: "Check the form of a policy configuration", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := g.loadSpec(cmd.Context(), policy); err != nil {
				return fmt.Errorf("policy configuration does not conform to the EnterpriseContractPolicy spec: %w", err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Policy configuration conforms to the EnterpriseContractPolicy spec")
			return nil
		},
	}
	c.Flags().StringVarP(&policy, "policy", "p", "", "policy configuration: a file, or written out (required)")
	_ = c.MarkFlagRequired("policy")
	return c
}

// Version is this program's, as reports name it.
func Version() string {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "assay"
	}
	v := bi.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	return "assay-" + v
}

// shows reads the flags that all commands below validate have.
func shows(cmd *cobra.Command) show {
	get := func(name string) bool {
		v, err := cmd.Flags().GetBool(name)
		return err == nil && v
	}
	return show{get("show-successes"), get("show-warnings"), get("show-policy-docs-link")}
}

// extraRuleData reads KEY=VALUE. A value that names a file, or what can be fetched
// from git or over https, stands for what is in it.
func (r *runner) extraRuleData(ctx context.Context, list []string) (map[string]string, error) {
	out := map[string]string{}
	for i, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("incorrect syntax for --extra-rule-data %d", i)
		}
		var err error
		if out[k], err = r.ruleDataValue(ctx, v); err != nil {
			return nil, fmt.Errorf("unable to load data from extraRuleData: %s: %w", k, err)
		}
	}
	return out, nil
}

func (r *runner) ruleDataValue(ctx context.Context, v string) (string, error) {
	if strings.HasPrefix(v, "{") || strings.ContainsAny(v, " \n") {
		return v, nil
	}
	raw := []byte(nil)
	if kind, err := source.KindOf(v); err == nil && (kind == source.Git || kind == source.HTTPS) {
		f, err := r.sources()
		if err != nil {
			return "", err
		}
		c, err := fetch.ReadConfig(ctx, f, "", v)
		if err != nil {
			return "", err
		}
		raw = c.Raw
	} else if slices.ContainsFunc([]string{".json", ".yaml", ".yml"}, func(e string) bool { return strings.HasSuffix(v, e) }) {
		b, err := readFile(v)
		if errors.Is(err, os.ErrNotExist) && !strings.Contains(v, "/") {
			return v, nil // a word that looks like a file
		}
		if err != nil {
			return "", err
		}
		raw = b
	} else {
		return v, nil
	}
	if len(raw) == 0 {
		return "", fmt.Errorf("file %s is empty", v)
	}
	return string(raw), nil
}
