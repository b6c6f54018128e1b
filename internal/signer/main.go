package signer

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"assay.dev/assay/attest/signing"
	"assay.dev/assay/internal/service"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(v string) error {
	if v == "" {
		return errors.New("is empty")
	}
	*l = append(*l, v)
	return nil
}

const usage = `assay-observer signer --socket PATH [flags]   signs for a controller
assay-observer signer health --socket PATH    exit 0 if it answers and every key in use signs
assay-observer signer unpack --into FOLDER    keys of a Secret, as JSON on standard input, into files

The signer holds keys and signs in-toto statements and image signatures, nothing
else, for processes of the users it is told. Settings (which keys, where key services
are) come with the requests, as in chains-config.

`

// Main is the subcommand: it serves until ctx ends and returns the exit code, 0, 1
// for trouble, 2 for wrong use.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 && args[0] == "health" {
		return mainHealth(ctx, args[1:], stdout, stderr)
	}
	if len(args) > 0 && args[0] == "unpack" {
		return mainUnpack(args[1:], os.Stdin, stderr)
	}
	f := flag.NewFlagSet("signer", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() { fmt.Fprint(stderr, usage); f.PrintDefaults() }
	var o Options
	var uids, modules, addresses list
	socket := f.String("socket", "", "`path` of the socket to serve (required)")
	lifeline := f.Bool("lifeline", false, "stop when standard input ends, and say \"ready\" on standard output")
	f.StringVar(&o.Secrets, "secrets", "", "`folder` with x509.pem, or cosign.key and cosign.password (Secret signing-secrets)")
	f.StringVar(&o.Journal, "journal", "", "`file` to append a line to for every message signed; FILE.keys remembers keys")
	f.Var(&uids, "allow-uid", "`user` that may ask, by number; repeatable (default: this process's)")
	f.Var(&modules, "pkcs11-module", "PKCS#11 `library` that settings may name; repeatable")
	f.Var(&addresses, "allow-address", "`address` of a key service, Fulcio or TUF mirror that settings may name, as they write it; repeatable (default: any)")
	f.StringVar(&o.Trust.Roots, "fulcio-root", "", "`file` to check certificates of keyless signing by: trusted_root.json or PEM")
	f.StringVar(&o.Trust.TUFRoot, "tuf-root", "", "`file` root.json to begin trusting the TUF mirror from")
	f.StringVar(&o.Trust.State, "tuf-state", "", "`folder` for TUF metadata; needed for a mirror of one's own")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case f.NArg() > 0:
		fmt.Fprintf(stderr, "assay-observer signer: unexpected argument %q\n", f.Arg(0))
		return 2
	case *socket == "":
		fmt.Fprintln(stderr, "assay-observer signer: --socket is required")
		return 2
	}
	o.Rules = Rules{Modules: modules, Addresses: addresses}
	allowed := []uint32{uint32(os.Geteuid())}
	if len(uids) > 0 {
		allowed = nil
	}
	for _, u := range uids {
		n, err := strconv.ParseUint(u, 10, 32)
		if err != nil {
			fmt.Fprintf(stderr, "assay-observer signer: --allow-uid %s is no user number\n", u)
			return 2
		}
		allowed = append(allowed, uint32(n))
	}
	ctx, cancel := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	if *lifeline {
		var end context.CancelFunc
		ctx, end = service.Lifeline(ctx)
		defer end()
	}
	log := slog.New(slog.NewJSONHandler(stderr, nil))
	o.Log = log
	ready := func() {
		log.Info("serving", "socket", *socket, "uids", allowed)
		if *lifeline {
			fmt.Fprintln(stdout, "ready")
		}
	}
	if err := run(ctx, *socket, allowed, o, ready); err != nil {
		fmt.Fprintln(stderr, "assay-observer signer:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, socket string, uids []uint32, o Options, ready func()) (err error) {
	if err := harden(); err != nil {
		return err
	}
	if err := o.Trust.Check(); err != nil {
		return err
	}
	s, err := New(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	srv, err := NewServer(s, uids, o.Log)
	if err != nil {
		return err
	}
	l, err := Listen(socket)
	if err != nil {
		return err
	}
	ready()
	return srv.Serve(ctx, l)
}

// harden closes the ways by which another process of this user, or a crash, gets
// at this one's memory.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding traces: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core dumps: %w", err)
	}
	unix.Umask(0o077)
	return nil
}

func mainHealth(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	f := flag.NewFlagSet("signer health", flag.ContinueOnError)
	f.SetOutput(stderr)
	socket := f.String("socket", "", "`path` of the signer's socket (required)")
	switch err := f.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil || *socket == "" || f.NArg() > 0:
		fmt.Fprintln(stderr, "usage: assay-observer signer health --socket PATH")
		return 2
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := signing.Dial(*socket)
	if err == nil {
		defer c.Close()
		var h signing.Health
		if h, err = c.Health(ctx); err == nil && len(h.Faults) > 0 {
			err = errors.New(strings.Join(h.Faults, "; "))
		} else if err == nil {
			fmt.Fprintf(stdout, "signing since %s: %d signatures, %d refused\n", h.Started.Format(time.RFC3339), h.Signed, h.Refused)
		}
	}
	if err != nil {
		fmt.Fprintln(stderr, "assay-observer signer health:", err)
		return 1
	}
	return 0
}
