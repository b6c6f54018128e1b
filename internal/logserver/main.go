package logserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"assay.dev/assay/attest/tlog"
)

// usageError is a mistake on the command line.
type usageError struct{ error }

func usagef(format string, a ...any) error { return usageError{fmt.Errorf(format, a...)} }

// Main runs one command line of assay-log and returns its exit code: 0 done, 1 could
// not be done or does not verify, 2 wrong usage.
func Main(ctx context.Context, args []string, out, errw io.Writer) int {
	root := &cobra.Command{
		Use:           "assay log",
		Short:         "A transparency log on this machine, and its witnesses",
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q", args[0])
			}
			return c.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(initCommand(), serveCommand(), verifyCommand(), witnessCommand())
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errw)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(errw, "assay log:", err)
	if errors.As(err, new(usageError)) {
		return 2
	}
	return 1
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no argument %q", c.CommandPath(), args[0])
	}
	return nil
}

func initCommand() *cobra.Command {
	var key, name, token string
	var witness bool
	c := &cobra.Command{
		Use:   "init --key FILE --name NAME [--token-file FILE] [--witness]",
		Short: "Make the key of a log, or of a witness",
		Long: `Makes a private key in a new file, which only its owner can read, and prints the
verifier key: what the log's users, or the witness', put into their settings.

NAME is part of the key and of everything that it signs: a name that nobody else
uses, such as example.com/factory-log.`,
		Example: "  assay log init --key log.key --name example.com/log --token-file log.token\n  assay log init --witness --key witness.key --name example.org/witness",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if key == "" || name == "" {
				return usagef("--key FILE and --name NAME are needed")
			}
			log, wit, err := makeKey(key, name)
			if err != nil {
				return err
			}
			if token != "" {
				if err := makeToken(token); err != nil {
					return err
				}
			}
			if witness {
				fmt.Fprintln(c.OutOrStdout(), wit)
			} else {
				fmt.Fprintln(c.OutOrStdout(), log)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&key, "key", "", "file for the private key; must not exist")
	f.StringVar(&name, "name", "", "name of the log or witness, such as example.com/log")
	f.StringVar(&token, "token-file", "", "also make a token for who adds entries over TCP")
	f.BoolVar(&witness, "witness", false, "print the verifier key of a witness")
	return c
}

func serveCommand() *cobra.Command {
	var (
		l         listenFlags
		o         Options
		key       string
		name      string
		witnesses []string
		a         Admission
		uids      []uint
	)
	c := &cobra.Command{
		Use:   "serve --dir DIR --key FILE [--listen ADDR]",
		Short: "Run a transparency log",
		Long: `Serves a tile log (C2SP tlog-tiles) from a folder. Everybody may read it; entries
are added by who has the token, or, on a Unix socket, by the users named with
--allow-uid and the one who runs it.

The key signs checkpoints. Keep it from the process that signs statements, and run
the log as another user or on another machine. If there is no key file and --name
is given, a key is made and its verifier key printed.

With --witness each checkpoint is sent to witnesses before it is published; an
addition is answered when enough of them have cosigned.`,
		Example: "  assay log serve --dir /var/lib/assay-log --key log.key --listen unix:///run/assay-log.sock\n" +
			"  assay log serve --dir DIR --key log.key --listen 127.0.0.1:7040 --token-file log.token --witness https://witness.example.org=example.org/witness+0a1b2c3d+BASE64",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if o.Dir == "" || key == "" {
				return usagef("--dir DIR and --key FILE are needed")
			}
			unixSocket := strings.HasPrefix(l.listen, "unix://")
			if !unixSocket && a.TokenFile == "" {
				return usagef("who may add entries? Give --token-file FILE (made by `assay log init --token-file`), or listen on unix:///SOCKET")
			}
			for _, w := range witnesses {
				at, vkey, ok := strings.Cut(w, "=")
				if !ok {
					return usagef("--witness %q: want URL=VERIFIER-KEY", w)
				}
				k, err := tlog.ParseWitnessKey(vkey)
				if err != nil {
					return usageError{err}
				}
				o.Witnesses = append(o.Witnesses, WitnessAt{URL: at, Key: k})
			}
			if _, err := os.Stat(key); errors.Is(err, os.ErrNotExist) && name != "" {
				if _, _, err := makeKey(key, name); err != nil {
					return err
				}
			}
			var err error
			if o.Key, err = readKey(key); err != nil {
				return err
			}
			for _, u := range append(uids, uint(os.Getuid())) {
				a.UIDs = append(a.UIDs, uint32(u))
			}
			o.Log = slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil))
			ln, at, err := l.open(true)
			if err != nil {
				return err
			}
			defer ln.Close()
			if unixSocket {
				// Who may connect is decided by who they are.
				if err := os.Chmod(strings.TrimPrefix(l.listen, "unix://"), 0o666); err != nil {
					return fmt.Errorf("opening the socket: %w", err)
				}
			}
			s, err := Open(c.Context(), o)
			if err != nil {
				return err
			}
			if len(o.Witnesses) == 0 {
				fmt.Fprintln(c.ErrOrStderr(), "assay log: no witness: nothing keeps this log's operator from showing different trees to different people (--witness)")
			}
			fmt.Fprintf(c.OutOrStdout(), "log %s at %s\n", s.Key(), at)
			err = l.serve(c.Context(), ln, s.Handler(a))
			stop, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), addTimeout)
			defer cancel()
			return errors.Join(err, s.Close(stop))
		},
	}
	l.add(c, "127.0.0.1:7040")
	f := c.Flags()
	f.StringVar(&o.Dir, "dir", "", "folder of the log; made if missing")
	f.StringVar(&key, "key", "", "file with the log's private key")
	f.StringVar(&name, "name", "", "make the key under this name if the file is missing")
	f.StringVar(&a.TokenFile, "token-file", "", "file with the token that lets callers add entries")
	f.UintSliceVar(&uids, "allow-uid", nil, "user whose processes may add entries over the Unix socket (repeatable)")
	f.StringArrayVar(&witnesses, "witness", nil, "URL=VERIFIER-KEY of a witness (repeatable)")
	f.IntVar(&o.Quorum, "quorum", 0, "how many witnesses must cosign (default: all)")
	f.DurationVar(&o.Interval, "interval", 0, "time between checkpoints, 100ms at least (default 100ms)")
	return c
}

func verifyCommand() *cobra.Command {
	var (
		dir, at, key, older string
		witnesses           []string
		quorum              int
		asJSON              bool
	)
	c := &cobra.Command{
		Use:   "verify (--dir DIR | --log URL) --log-key VKEY [--checkpoint OLD]",
		Short: "Check a whole log",
		Long: `Reads every entry, computes the tree anew and compares it with the tiles and the
signed checkpoint. With --checkpoint the log must continue that older checkpoint:
its first entries must be the same. Prints the checkpoint, to keep for the next
time, on standard output.`,
		Example: "  assay log verify --log https://log.example.com --log-key VKEY --checkpoint old.txt > new.txt",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if (dir == "") == (at == "") || key == "" {
				return usagef("one of --dir DIR and --log URL is needed, and --log-key VKEY")
			}
			trust, err := trustOf(key, witnesses, quorum)
			if err != nil {
				return err
			}
			fetch, done, err := fetchOf(dir, at)
			if err != nil {
				return err
			}
			defer done()
			var old []byte
			if older != "" {
				if old, err = os.ReadFile(older); err != nil {
					return fmt.Errorf("reading older checkpoint: %w", err)
				}
			}
			r, err := Verify(c.Context(), tlog.Tiles{Fetch: fetch}, trust, old)
			if err != nil {
				return fmt.Errorf("verifying: %w", err)
			}
			if asJSON {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(r)
			}
			fmt.Fprintf(c.ErrOrStderr(), "log %s: %d entries, all in the tree\n", r.Origin, r.Size)
			if r.Continues >= 0 {
				fmt.Fprintf(c.ErrOrStderr(), "  continues the older checkpoint of %d\n", r.Continues)
			}
			if len(r.Witnesses) == 0 {
				fmt.Fprintln(c.ErrOrStderr(), "  cosigned by no witness known here")
			} else {
				fmt.Fprintf(c.ErrOrStderr(), "  cosigned by %s\n", strings.Join(r.Witnesses, ", "))
			}
			fmt.Fprint(c.OutOrStdout(), r.Checkpoint)
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "dir", "", "folder of the log")
	f.StringVar(&at, "log", "", "address of the log")
	f.StringVar(&key, "log-key", "", "verifier key of the log, or a file with it")
	f.StringArrayVar(&witnesses, "witness-key", nil, "verifier key of a witness, or a file with it (repeatable)")
	f.IntVar(&quorum, "quorum", 0, "how many witnesses must have cosigned (default: one, if any is given)")
	f.StringVar(&older, "checkpoint", "", "file with an older checkpoint that the log must continue")
	f.BoolVar(&asJSON, "json", false, "print what was found as JSON")
	return c
}

func witnessCommand() *cobra.Command {
	var (
		l                    listenFlags
		key, name, state, at string
		logs                 []string
		once                 bool
	)
	c := &cobra.Command{
		Use:   "witness --key FILE --state DIR --log-key VKEY (--listen ADDR | --once --log URL)",
		Short: "Cosign the checkpoints of logs that keep their word",
		Long: `A witness remembers the last checkpoint that it saw of each log and cosigns another
only if a proof shows that it continues that one. Logs ask it over HTTP (C2SP
tlog-witness). Run it on a machine, and with a key, that the log's operator does
not have.

With --once it reads the log's checkpoint itself, checks it, remembers it and prints
it cosigned: for a timer on a machine that no log can reach. It fails if the log
was forked or rolled back. Whoever can replace the folder of --state by an older
copy can make a witness forget.`,
		Example: "  assay log witness --key witness.key --state /var/lib/assay-witness --log-key VKEY --listen 127.0.0.1:7041\n" +
			"  assay log witness --key witness.key --state DIR --log-key VKEY --once --log https://log.example.com",
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if key == "" || state == "" || len(logs) == 0 {
				return usagef("--key FILE, --state DIR and --log-key VKEY are needed")
			}
			if once == (l.listen != "") || once != (at != "") {
				return usagef("want --listen ADDR, or --once with --log URL")
			}
			if _, err := os.Stat(key); errors.Is(err, os.ErrNotExist) && name != "" {
				if _, _, err := makeKey(key, name); err != nil {
					return err
				}
			}
			skey, err := readKey(key)
			if err != nil {
				return err
			}
			o := WitnessOptions{State: state, Log: slog.New(slog.NewTextHandler(c.ErrOrStderr(), nil))}
			if o.Key, err = tlog.NewCosigner(skey, nil); err != nil {
				return err
			}
			for _, text := range logs {
				trust, err := trustOf(text, nil, 0)
				if err != nil {
					return err
				}
				o.Logs = append(o.Logs, trust.Logs...)
			}
			w, err := NewWitness(o)
			if err != nil {
				return err
			}
			defer w.Close()
			if once {
				fetch, done, err := fetchOf("", at)
				if err != nil {
					return err
				}
				defer done()
				signed, err := w.Once(c.Context(), fetch)
				if err != nil {
					return fmt.Errorf("witnessing: %w", err)
				}
				_, err = c.OutOrStdout().Write(signed)
				return err
			}
			ln, where, err := l.open(false)
			if err != nil {
				return err
			}
			defer ln.Close()
			fmt.Fprintf(c.OutOrStdout(), "witness %s at %s\n", w.Key(), where)
			return l.serve(c.Context(), ln, w.Handler())
		},
	}
	l.add(c, "")
	f := c.Flags()
	f.StringVar(&key, "key", "", "file with the witness' private key")
	f.StringVar(&name, "name", "", "make the key under this name if the file is missing")
	f.StringVar(&state, "state", "", "folder in which the witness remembers; made if missing")
	f.StringArrayVar(&logs, "log-key", nil, "verifier key of a log to watch, or a file with it (repeatable)")
	f.StringVar(&at, "log", "", "address of the log, for --once")
	f.BoolVar(&once, "once", false, "read the log once, cosign and print")
	return c
}

// trustOf reads verifier keys, given as text or in files.
func trustOf(key string, witnesses []string, quorum int) (tlog.Trust, error) {
	t := tlog.Trust{Quorum: quorum}
	text, err := textOrFile(key)
	if err != nil {
		return t, err
	}
	k, err := tlog.ParseLogKey(text)
	if err != nil {
		return t, usageError{err}
	}
	t.Logs = []tlog.LogKey{k}
	for _, w := range witnesses {
		if text, err = textOrFile(w); err != nil {
			return t, err
		}
		k, err := tlog.ParseWitnessKey(text)
		if err != nil {
			return t, usageError{err}
		}
		t.Witnesses = append(t.Witnesses, k)
	}
	if err := t.Check(); err != nil {
		return t, usageError{err}
	}
	return t, nil
}

func textOrFile(s string) (string, error) {
	if strings.Count(s, "+") >= 2 {
		return s, nil
	}
	info, err := os.Stat(s)
	if err == nil && info.Size() > 4096 {
		err = errors.New("too large to be a key")
	}
	var data []byte
	if err == nil {
		data, err = os.ReadFile(s)
	}
	if err != nil {
		return "", fmt.Errorf("reading verifier key %q: %w; want NAME+HASH+BASE64 or a file with it", s, err)
	}
	return strings.TrimSpace(string(data)), nil
}

// fetchOf reads a log in a folder or at an address.
func fetchOf(dir, at string) (tlog.Fetch, func(), error) {
	if at != "" {
		f, err := tlog.NewFetch(at, nil)
		if err != nil {
			return nil, nil, usageError{err}
		}
		return f, func() {}, nil
	}
	root, err := os.OpenRoot(filepath.Clean(dir))
	if err != nil {
		return nil, nil, fmt.Errorf("opening log %s: %w", strconv.Quote(dir), err)
	}
	return DirFetch(root), func() { root.Close() }, nil
}
