package cli

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/verify"
)

// logCommand hands over to assay-log, whose keys sign checkpoints and which links
// the log. Without the flags that say where, init, serve and verify are about the
// home's own log.
func (a *app) logCommand() *cobra.Command {
	c := &cobra.Command{Use: "log", Short: "A transparency log of your own, and its witnesses"}
	for _, s := range []struct {
		use, short, long string
		home             func(*cobra.Command, []string) (done bool, err error)
	}{
		{"init [--key FILE --name NAME]", "Make this home's log, or the key of a log or of a witness", initHomeLong, a.initHomeLog},
		{"serve [--dir DIR --key FILE]", "Run this home's log, or another", serveHomeLong, a.serveHomeLog},
		{"verify [(--dir DIR | --log URL) --log-key VKEY]", "Check a whole log: entries, tiles, root, and that it continues an older checkpoint", verifyHomeLong, a.verifyHomeLog},
		{"witness --key FILE --state DIR --log-key VKEY", "Cosign the checkpoints of logs that keep their word", "", nil},
	} {
		name, _, _ := strings.Cut(s.use, " ")
		c.AddCommand(&cobra.Command{
			Use: s.use, Short: s.short, Long: s.long, DisableFlagParsing: true,
			RunE: func(cmd *cobra.Command, args []string) error {
				if s.home != nil {
					if done, err := s.home(cmd, args); done || err != nil {
						return err
					}
				}
				if s.long != "" && (slices.Contains(args, "--help") || slices.Contains(args, "-h")) {
					fmt.Fprintf(a.out, "%s\n\nElsewhere:\n\n", s.long)
				}
				return a.handOver(cmd.Context(), "assay-log", append([]string{name}, args...)...)
			},
		})
	}
	return c
}

// logFlags are the flags that say which transparency logs to believe.
type logFlags struct {
	require   bool
	keys      []string
	rekor     []string
	root      string
	witnesses []string
	quorum    int
	changed   func(string) bool
}

func (l *logFlags) add(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&l.require, "require-log", false, "count evidence only if a trusted transparency log proves that it holds its signature")
	f.StringArrayVar(&l.keys, "log-key", nil, "verifier key of a log of `assay log serve`, or a file with it (repeatable)")
	f.StringArrayVar(&l.rekor, "rekor-key", nil, "public key (PEM file) of a Rekor log (repeatable)")
	f.StringVar(&l.root, "trusted-root", "", "Sigstore trusted root (JSON file), for the keys of its Rekor logs")
	f.StringArrayVar(&l.witnesses, "witness-key", nil, "verifier key of a witness that must have cosigned, or a file with it (repeatable)")
	f.IntVar(&l.quorum, "witness-quorum", 0, "how many witnesses must have cosigned (default: one, if any is given)")
	l.changed = f.Changed
}

// load adds what the flags say to what the trust file says.
func (l *logFlags) load(t *verify.LogTrust) error {
	for _, text := range l.keys {
		text, err := verifierKey(text)
		if err != nil {
			return err
		}
		k, err := tlog.ParseLogKey(text)
		if err != nil {
			return usagef("--log-key: %v", err)
		}
		if !hasLog(t.Trust, k) {
			t.Logs = append(t.Logs, k)
		}
	}
	for _, path := range l.rekor {
		data, err := readSmall(path)
		if err != nil {
			return fmt.Errorf("reading Rekor key: %w", err)
		}
		k, err := tlog.ParseRekorKey(path, data)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		t.Rekor = append(t.Rekor, k)
	}
	if l.root != "" {
		data, err := readSmall(l.root)
		if err != nil {
			return fmt.Errorf("reading trusted root: %w", err)
		}
		keys, err := tlog.ParseTrustedRoot(data)
		if err != nil {
			return fmt.Errorf("%s: %w", l.root, err)
		}
		t.Rekor = append(t.Rekor, keys...)
	}
	for _, text := range l.witnesses {
		text, err := verifierKey(text)
		if err != nil {
			return err
		}
		k, err := tlog.ParseWitnessKey(text)
		if err != nil {
			return usagef("--witness-key: %v", err)
		}
		if !hasWitness(t.Trust, k) {
			t.Witnesses = append(t.Witnesses, k)
		}
	}
	if l.changed("witness-quorum") {
		if l.quorum < 1 {
			return usagef("--witness-quorum %d: want 1 or more", l.quorum)
		}
		t.Quorum = l.quorum
	}
	if l.changed("require-log") {
		t.Require = l.require
	}
	if t.Require && len(t.Logs)+len(t.Rekor) == 0 {
		return usagef("--require-log needs a log to look in: --log-key, --rekor-key, --trusted-root, or logs in the trust file")
	}
	if err := t.Trust.Check(); err != nil {
		return usagef("%v", err)
	}
	return nil
}

func hasLog(t tlog.Trust, k tlog.LogKey) bool {
	for _, o := range t.Logs {
		if o.String() == k.String() {
			return true
		}
	}
	return false
}

func hasWitness(t tlog.Trust, k tlog.WitnessKey) bool {
	for _, o := range t.Witnesses {
		if o.String() == k.String() {
			return true
		}
	}
	return false
}

// verifierKey is a verifier key given as text or in a file.
func verifierKey(s string) (string, error) {
	if strings.Count(s, "+") >= 2 {
		return s, nil
	}
	data, err := readSmall(s)
	if err != nil {
		return "", fmt.Errorf("reading verifier key %q: %w; want NAME+HASH+BASE64 or a file with it", s, err)
	}
	return strings.TrimSpace(string(data)), nil
}

// readSmall reads a file of keys.
func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > tlog.MaxTrustedRoot {
		return nil, fmt.Errorf("%s is too large to hold keys", path)
	}
	return os.ReadFile(path)
}

// printLogged says which logs hold a signature.
func (a *app) printLogged(l verify.Logged) {
	for _, in := range l.Log {
		how := "entry"
		if in.Promise {
			how = "promised as entry"
		}
		witnesses := "WITHOUT a witness: only the log's operator says that everybody sees this"
		if len(in.Witnesses) > 0 {
			witnesses = "witnessed by " + strings.Join(in.Witnesses, ", ")
		}
		fmt.Fprintf(a.out, "    logged     %s %d of %s, %s\n", how, in.Index, in.Log, witnesses)
	}
	if l.NotLogged != "" {
		fmt.Fprintf(a.out, "    not logged %s\n", strings.ReplaceAll(l.NotLogged, "\n", "; "))
	}
}
