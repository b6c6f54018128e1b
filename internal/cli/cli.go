// Package cli is the command line of assay: parsing, wiring and printing, and
// nothing that decides. Standard output carries the answer, standard error
// everything else.
//
// Exit codes: 0 done or passed, 1 could not be done or checked, 2 wrong usage,
// 3 the policy says no.
package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/launch"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 3
)

// exit carries an exit code; a nil err says that everything was said already.
type exit struct {
	code int
	err  error
}

func (e *exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exit) Unwrap() error { return e.err }

func usagef(format string, a ...any) error { return &exit{exitUsage, fmt.Errorf(format, a...)} }

// app is what every command is given.
type app struct {
	in  io.Reader
	out io.Writer
	err io.Writer
	// output is the --output flag: text or json (run: yaml too).
	output string
}

// Main runs one command line and returns the exit code.
func Main(args []string, in io.Reader, out, errw io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{in: in, out: out, err: errw}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errw)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var e *exit
	if !errors.As(err, &e) {
		e = &exit{exitFailed, err}
		// cobra's own complaints are about usage.
		for _, p := range []string{"unknown command", "unknown flag", "unknown shorthand", "flag needs", "required flag", "accepts ", "requires at least", "invalid argument"} {
			if strings.HasPrefix(err.Error(), p) {
				e.code = exitUsage
			}
		}
	}
	if e.err != nil {
		fmt.Fprintf(errw, "assay: %v\n", e.err)
		// A file that is wrong is no question of flags.
		var in *launch.InputError
		if e.code == exitUsage && !errors.As(err, &in) {
			if cmd != nil && cmd.HasParent() {
				fmt.Fprintf(errw, "assay: usage: %s\n", cmd.UseLine())
			}
			fmt.Fprintln(errw, "assay: `assay help` lists the commands, `assay COMMAND --help` explains one")
		}
	}
	return e.code
}

// Root is the command tree, for the generated documentation.
func Root() *cobra.Command {
	a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard}
	return a.root()
}

func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:   "assay",
		Short: "A software factory with a neutral witness",
		Long: `assay builds software in sandboxes that cannot reach a signing key, records
what really happened, signs that as SLSA provenance, and lets nothing out that
your policy does not accept.

Files are kept below $ASSAY_HOME: /var/lib/assay for root, otherwise
~/.local/share/assay.

Exit codes: 0 done or passed, 1 could not be done or checked, 2 wrong usage,
3 the policy says no.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       Version(),
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q", args[0])
			}
			return cmd.Help()
		},
	}
	c.CompletionOptions.DisableDefaultCmd = true
	c.PersistentFlags().StringVarP(&a.output, "output", "o", "text", "how to print: text or json (run: yaml, trace: svg too)")
	c.AddCommand(
		a.runCommand(),
		a.runsCommand(),
		a.verifyCommand(),
		a.verifyDSSECommand(),
		a.inspectCommand(),
		a.conformanceCommand(),
		a.gateCommand(),
		a.ecCommand(),
		a.releaseCommand(),
		a.traceCommand(),
		a.withDownloads(a.downloadCommand()),
		a.attachCommand(),
		a.treeCommand(),
		a.convertCommand(),
		a.attestCommand(),
		a.bundleCommand(),
		a.imageCommand(),
		a.registryCommand(),
		a.keyCommand(),
		a.logCommand(),
		a.catalogCommand(),
		a.policyCommand(),
		a.doctorCommand(),
	)
	for _, g := range c.Commands() {
		if g.HasSubCommands() && !g.Runnable() {
			group(g)
		}
	}
	return c
}

// group makes a command that only holds others refuse what is none of them;
// cobra would print its help and succeed.
func group(c *cobra.Command) {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("unknown command %q for %q", args[0], cmd.CommandPath())
		}
		return cmd.Help()
	}
}

// outputIs checks --output against what a command can print.
func (a *app) outputIs(accepted ...string) error {
	for _, o := range accepted {
		if a.output == o {
			return nil
		}
	}
	return usagef("--output %q: this command prints %s", a.output, strings.Join(accepted, " or "))
}

// json prints v as indented JSON.
func (a *app) json(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

func findHome() (*home.Home, home.Config, error) {
	h, err := home.Find()
	if err != nil {
		return nil, home.Config{}, err
	}
	cfg, err := h.Config()
	return h, cfg, err
}

// Version is the module's, with the revision it was built from.
func Version() string {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := bi.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	for _, s := range bi.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			v += "+" + s.Value[:12]
		}
	}
	return v
}
