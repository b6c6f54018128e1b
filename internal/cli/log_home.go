package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/launch"
)

const initHomeLong = `Without --key: gives this home a transparency log of its own and a witness, each
with a key that its own process makes and nobody else can read (as root: of a user
of its own). From then on every run here is logged before its evidence is stored,
and verifiers on this machine know log and witness (trust.json). A run starts both
for as long as it takes; "assay log serve" keeps them up.

  --name NAME            of the log (default: a name of this home)
  --witness URL=VKEY     a witness in other hands, in place of the one on this
                         machine (repeatable)
  --no-witness           none at all; reports then say so
  --quorum N             how many witnesses must cosign (default: all)`

const serveHomeLong = `Without flags: serves this home's own log, made by "assay log init", with its witness,
until it is interrupted.`

const verifyHomeLong = `Without --dir and --log: checks this home's own log; the other flags are as below.`

// initHomeLog makes the home's own log. Done is false if the arguments are about
// something else.
func (a *app) initHomeLog(cmd *cobra.Command, args []string) (done bool, err error) {
	f := pflag.NewFlagSet("init", pflag.ContinueOnError)
	f.SetOutput(io.Discard)
	name := f.String("name", "", "")
	witnesses := f.StringArray("witness", nil, "")
	none := f.Bool("no-witness", false, "")
	quorum := f.Int("quorum", 0, "")
	if isAbout(args, "key") {
		return false, nil
	}
	switch err := f.Parse(args); {
	case errors.Is(err, pflag.ErrHelp):
		return false, nil
	case err != nil:
		return false, usagef("%v", err)
	case f.NArg() > 0:
		return false, usagef("log init takes no argument %q", f.Arg(0))
	case *none && len(*witnesses) > 0:
		return false, usagef("--no-witness and --witness contradict each other")
	}
	h, cfg, err := findHome()
	if err != nil {
		return false, err
	}
	unique := cfg.Instance + "-" + strings.ToLower(rand.Text()[:8])
	n := launch.NewLog{Name: *name, Witnesses: *witnesses, Quorum: *quorum}
	if n.Name == "" {
		n.Name = unique + "/log"
	}
	if !*none && len(*witnesses) == 0 {
		n.Witness = unique + "/witness"
	}
	if err := checkWitnesses(n); err != nil {
		return false, err
	}
	l, trusted, err := launch.InitLog(cmd.Context(), h, n)
	if err != nil {
		return false, err
	}
	fmt.Fprintf(a.out, "log      %s\n", l.Key)
	for _, w := range l.Witnesses {
		fmt.Fprintf(a.out, "witness  %s\n", w)
	}
	if len(l.Witnesses) == 0 {
		fmt.Fprintln(a.err, "assay: no witness: nothing keeps this log's operator from showing different trees to different people")
	}
	if n.Witness != "" && !h.Root {
		fmt.Fprintln(a.err, "assay: one user is all there is here, so whoever has the observer's key has the log's and the witness' too; use a log on another machine")
	}
	if !trusted {
		fmt.Fprintf(a.err, "assay: %s names other logs and stays as it is; add these keys to it\n", h.Path("trust.json"))
	}
	return true, nil
}

// checkWitnesses refuses keys that are none before anything is made.
func checkWitnesses(n launch.NewLog) error {
	var t tlog.Trust
	for _, w := range n.Witnesses {
		at, vkey, ok := strings.Cut(w, "=")
		if !ok || !strings.HasPrefix(at, "http://") && !strings.HasPrefix(at, "https://") {
			return usagef("--witness %q: want URL=VERIFIER-KEY, with http:// or https://", w)
		}
		k, err := tlog.ParseWitnessKey(vkey)
		if err != nil {
			return usagef("--witness: %v", err)
		}
		t.Witnesses = append(t.Witnesses, k)
	}
	if err := t.Check(); err != nil {
		return usagef("%v", err)
	}
	all := len(n.Witnesses)
	if n.Witness != "" {
		all++
	}
	if n.Quorum < 0 || n.Quorum > all {
		return usagef("--quorum %d: there are %d witnesses", n.Quorum, all)
	}
	return nil
}

// serveHomeLog serves the home's own log.
func (a *app) serveHomeLog(cmd *cobra.Command, args []string) (done bool, err error) {
	if len(args) > 0 {
		return false, nil
	}
	h, cfg, err := findHome()
	if err != nil {
		return false, err
	}
	l, err := launch.StartLog(cmd.Context(), h, cfg, a.err)
	if err != nil {
		return false, err
	}
	for _, line := range l.Said {
		fmt.Fprintln(a.out, line)
	}
	err = l.Wait(cmd.Context())
	return true, errors.Join(err, l.Close())
}

// verifyHomeLog checks the home's own log, where no other is named.
func (a *app) verifyHomeLog(cmd *cobra.Command, args []string) (done bool, err error) {
	if isAbout(args, "dir", "log", "log-key", "help") || slices.Contains(args, "-h") {
		return false, nil
	}
	h, cfg, err := findHome()
	if err != nil {
		return false, err
	}
	if cfg.Log == nil {
		return false, usagef("which log? This home (%s) has none: give --dir DIR or --log URL, and --log-key VKEY", h.Dir)
	}
	return true, a.handOver(cmd.Context(), "assay-log", append(verifyArgs(h, cfg.Log), args...)...)
}

// verifyArgs name a home's log. Its own is read from its folder, so that it need not
// be served.
func verifyArgs(h *home.Home, l *home.Log) []string {
	out := []string{"verify", "--log-key", l.Key}
	if l.URL == "" {
		out = append(out, "--dir", h.LogTiles())
	} else {
		out = append(out, "--log", l.URL)
	}
	for _, w := range l.Witnesses {
		out = append(out, "--witness-key", w)
	}
	if l.Quorum > 0 {
		out = append(out, "--quorum", fmt.Sprint(l.Quorum))
	}
	return out
}

// isAbout says whether one of these flags is among the arguments.
func isAbout(args []string, flags ...string) bool {
	return slices.ContainsFunc(args, func(arg string) bool {
		name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		return strings.HasPrefix(arg, "--") && slices.Contains(flags, name)
	})
}

// withLog has the home's own log answer while f runs, for commands that are no
// session.
func (a *app) withLog(cmd *cobra.Command, f func() error) error {
	h, cfg, err := findHome()
	if err != nil {
		return err
	}
	if cfg.Log == nil || cfg.Log.URL != "" || launch.ServesLog(h) {
		return f()
	}
	l, err := launch.StartLog(cmd.Context(), h, cfg, io.Discard)
	if err != nil {
		return err
	}
	return errors.Join(f(), l.Close())
}
