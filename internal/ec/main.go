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
	"assay.dev/assay/policy/conforma"
)

// Main runs one command line and returns the exit code: 0, or 1 for whatever
// else.
func Main(args []string, out, errw io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := Root()
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errw)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(errw, "Error: %v\n", err)
		return 1
	}
	return 0
}

// errCriteria is what a run ends with that judged and found violations.
var errCriteria = errors.New("success criteria not met")

// Root is the command tree.
func Root() *cobra.Command {
	g := &globals{}
	c := &cobra.Command{
		Use:   "ec",
		Short: "Judge images and files by Conforma policies",
		Long: `Takes the arguments of Conforma's ec, and writes its reports with its exit codes:
0 for success, 1 for anything else. What ec takes and this does not is refused by
its name.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE:          onlyCommands,
	}
	c.CompletionOptions.DisableDefaultCmd = true
	f := c.PersistentFlags()
	f.DurationVar(&g.timeout, "timeout", 5*time.Minute, "how long the run may take; 0 for any time")
	f.DurationVar(&g.retry.MaxWait, "retry-max-wait", 3*time.Second, "longest wait between two tries of a request")
	f.IntVar(&g.retry.Max, "retry-max-retry", 3, "how often a failed request is tried again")
	f.DurationVar(&g.retry.Wait, "retry-duration", time.Second, "wait before the second try")
	f.Float64Var(&g.retry.Factor, "retry-factor", 2, "how much longer each wait is than the one before")
	f.Float64Var(&g.retry.Jitter, "retry-jitter", 0.1, "random part of a wait, as a fraction of it")
	f.BoolVar(&g.quiet, "quiet", false, "no warnings on standard error")
	f.Bool("verbose", false, "taken for ec's sake: there is no log to be longer")
	f.Bool("debug", false, "taken for ec's sake: there is no log to be longer")
	refuse(c, true, map[string]string{
		"logfile":    "send standard error to a file",
		"trace":      "",
		"kubeconfig": "get what is in the cluster with kubectl, and name the file",
	})
	validate := &cobra.Command{Use: "validate", Short: "Judge images, files or a policy's configuration", Args: cobra.ArbitraryArgs, RunE: onlyCommands}
	v := validate.PersistentFlags()
	v.Bool("show-successes", false, "list the rules that passed")
	v.Bool("show-warnings", true, "list warnings")
	v.Bool("show-policy-docs-link", false, "end text reports with violations or warnings with a link to the policy documentation")
	validate.AddCommand(imageCommand(g), inputCommand(g), policyCommand(), missing("vsa"))
	c.AddCommand(validate, versionCommand(), opaCommand(g),
		missing("compare"), missing("fetch"), missing("init"), missing("inspect"), missing("sigstore"), missing("test"), missing("track"))
	return c
}

func onlyCommands(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
	}
	return cmd.Help()
}

// missing is a command that ec has and this does not.
func missing(name string) *cobra.Command {
	return &cobra.Command{
		Use: name, Hidden: true, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return fmt.Errorf("%s: this command of Conforma's ec is not here; see docs/compatibility.md", cmd.CommandPath())
		},
	}
}

// refused is a flag that ec has and this does not: setting it is an error.
type refused struct{ name, remedy string }

func (r refused) String() string { return "" }
func (r refused) Type() string   { return "string" }
func (r refused) Set(string) error {
	msg := "Conforma's ec has this flag, and this command does not"
	if r.remedy != "" {
		msg += "; " + r.remedy
	}
	return errors.New(msg)
}

func refuse(c *cobra.Command, persistent bool, flags map[string]string) {
	set := c.Flags()
	if persistent {
		set = c.PersistentFlags()
	}
	for name, remedy := range flags {
		set.Var(refused{name, remedy}, name, "")
		f := set.Lookup(name)
		f.Hidden, f.NoOptDefVal = true, "true"
	}
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

func policyCommand() *cobra.Command {
	var policy string
	c := &cobra.Command{
		Use: "policy", Short: "Check the form of a policy configuration", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := loadSpec(policy); err != nil {
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

// pairs reads key=value.
func pairs(list []string) (map[string]string, error) {
	out := map[string]string{}
	for i, s := range list {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("incorrect syntax for --extra-rule-data %d", i)
		}
		if kind := conforma.Remote(v); (kind == "git" || kind == "http") && !strings.ContainsAny(v, " \n") {
			return nil, fmt.Errorf("--extra-rule-data %s: what an address (%s) names is not fetched by this command; give the file", k, kind)
		}
		// A value that names a file stands for what is in it.
		if !strings.HasPrefix(v, "{") && slices.ContainsFunc([]string{".json", ".yaml", ".yml"}, func(e string) bool { return strings.HasSuffix(v, e) }) {
			if b, err := readFile(v); err == nil {
				v = string(b)
			} else if strings.ContainsAny(v, "/") || !errors.Is(err, os.ErrNotExist) {
				return nil, fmt.Errorf("unable to load data from extraRuleData: %w", err)
			}
		}
		out[k] = v
	}
	return out, nil
}
