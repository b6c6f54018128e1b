package assayd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"assay.dev/assay/attest/signing"
	"assay.dev/assay/internal/kubeaccess"
	"assay.dev/assay/internal/watch"
	"assay.dev/assay/provenance"
	"assay.dev/assay/store/docdb"
	"assay.dev/assay/store/pubsub"
)

// observerOptions are the flags of `assayd observer`.
type observerOptions struct {
	kubeconfig, context, server string
	namespaces                  []string
	system                      string
	config                      string
	signer, secrets             string
	credentials                 string
	state                       string
	metrics                     string
	threads                     int
	qps                         float32
	burst                       int
	buckets                     int
	alone                       bool
	verbose                     bool
}

func observerCommand() *cobra.Command {
	var o observerOptions
	c := &cobra.Command{
		Use:   "observer",
		Short: "Watch a Tekton, state what its finished runs built, sign and store it",
		Long: `Does what Tekton Chains' controller does, with the same ConfigMap, Secret,
annotations and formats. Signing happens in another process, assay-observer
signer: either one that is there (--signer), or one that is started for the key
files in a folder (--secrets).

It stops on SIGTERM after the attempts under way have ended. Exit codes: 0 it was
asked to stop, 1 it could not start or go on, 2 wrong usage.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig file; "+kubeaccess.Default)
	f.StringVar(&o.context, "context", "", "context of the kubeconfig")
	f.StringVar(&o.server, "server", "", "address of the API server, instead of the kubeconfig's")
	f.StringSliceVar(&o.namespaces, "namespace", nil, "namespaces to watch; default: all")
	f.StringVar(&o.system, "system-namespace", env("SYSTEM_NAMESPACE", "tekton-chains"), "namespace of chains-config and of our leases")
	f.StringVar(&o.config, "config", "", "file with the settings, instead of ConfigMap chains-config")
	f.StringVar(&o.signer, "signer", "", "signer to use: unix:///PATH of its socket")
	f.StringVar(&o.secrets, "secrets", "", "folder with x509.pem, or cosign.key and cosign.password; starts a signer for it")
	f.StringVar(&o.credentials, "registry-credentials", "serviceaccounts", "whose registry credentials are used: those of the runs' serviceaccounts and then our own, or our own alone (own)")
	f.StringVar(&o.state, "state", "", "folder in which keys of logs, once seen, are remembered; default: in memory")
	f.StringVar(&o.metrics, "metrics-addr", ":9090", "where /metrics, /healthz and /readyz are served; empty: nowhere")
	f.IntVar(&o.threads, "threads-per-controller", 16, "runs that are worked on at once")
	f.Float32Var(&o.qps, "kube-api-qps", 0, "most requests a second to the API server; 0: no bound of ours")
	f.IntVar(&o.burst, "kube-api-burst", 0, "most requests to the API server at once")
	f.IntVar(&o.buckets, "buckets", 1, "shares that the work is dealt into among replicas")
	f.BoolVar(&o.alone, "no-leader-election", false, "do not share the work: this is the only replica")
	f.BoolVar(&o.verbose, "verbose", false, "log every attempt")
	return c
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// usageError is an error about flags.
type usageError struct{ error }

func (o *observerOptions) check() error {
	switch {
	case (o.signer == "") == (o.secrets == ""):
		return usageError{errors.New("give one of --signer unix:///PATH and --secrets DIR")}
	case o.signer != "" && !strings.HasPrefix(o.signer, "unix:///"):
		return usageError{fmt.Errorf("--signer %q: want unix:///PATH", o.signer)}
	case o.credentials != "serviceaccounts" && o.credentials != "own":
		return usageError{fmt.Errorf("--registry-credentials %q: want serviceaccounts or own", o.credentials)}
	case o.threads < 1 || o.threads > 1000:
		return usageError{fmt.Errorf("--threads-per-controller %d: want 1 to 1000", o.threads)}
	case o.buckets < 1 || o.buckets > 100:
		return usageError{fmt.Errorf("--buckets %d: want 1 to 100", o.buckets)}
	}
	return nil
}

func (o *observerOptions) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewJSONHandler(stderr, &slog.HandlerOptions{Level: level}))
	config, _, err := kubeaccess.Find(kubeaccess.Options{Kubeconfig: o.kubeconfig, Context: o.context, Server: o.server})
	if err != nil {
		return err
	}
	settings, err := o.settings()
	if err != nil {
		return err
	}
	signer, process, err := o.openSigner(ctx, stderr, log)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, signer.Close())
		if process != nil {
			err = errors.Join(err, process.stop())
		}
	}()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	own := authn.DefaultKeychain
	credentials := newAccounts(client, own)
	credentials.ownOnly = o.credentials == "own"
	back := &backends{accounts: credentials, memory: pubsub.NewMemory(1000), documents: docdb.Memory()}
	tracer, closeTracer, err := tracing(ctx)
	if err != nil {
		return err
	}
	defer func() {
		// What is left of traces gets a moment, whatever ended us.
		tctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if e := closeTracer(tctx); e != nil {
			log.Warn("sending the last traces", "error", e)
		}
	}()
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	cfg := watch.Config{
		Kube: config, Namespaces: o.namespaces, SystemNamespace: o.system, Settings: settings,
		Keepers: back.keepers, Logs: (&logs{state: o.state}).log, Signer: signer, Hints: problems,
		Identity: os.Getenv("POD_NAME"), Workers: o.threads, QPS: o.qps, Burst: o.burst,
		WatchPeer: true, Log: log, Registry: registry, Tracer: tracer,
	}
	if !o.alone {
		cfg.Election = &watch.Election{Buckets: o.buckets}
	}
	w, err := watch.New(cfg)
	if err != nil {
		return err
	}
	sctx, endWatch := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() { defer close(watched); watchSigner(sctx, signer, process, w.Report) }()
	defer func() { endWatch(); <-watched }()
	back.getter = w.Annotations
	back.images.Images = w.Images
	if o.metrics != "" {
		l, err := net.Listen("tcp", o.metrics)
		if err != nil {
			return fmt.Errorf("listening for /metrics and /readyz: %w; choose another place with --metrics-addr", err)
		}
		srv := &http.Server{Handler: w.Handler(), ReadHeaderTimeout: 10 * time.Second}
		go func() { _ = srv.Serve(l) }()
		defer srv.Close()
		log.Info("serving /metrics, /healthz and /readyz", "address", l.Addr().String())
	}
	return w.Run(ctx)
}

// settings reads --config, if it is given.
func (o *observerOptions) settings() (*provenance.Config, error) {
	if o.config == "" {
		return nil, nil
	}
	b, err := os.ReadFile(o.config)
	if err != nil {
		return nil, fmt.Errorf("reading the settings: %w", err)
	}
	data, err := provenance.ReadConfig(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.config, err)
	}
	cfg, err := provenance.ParseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.config, err)
	}
	return &cfg, nil
}

// openSigner connects to a signer, or starts one and connects to that.
func (o *observerOptions) openSigner(ctx context.Context, stderr io.Writer, log *slog.Logger) (_ *signing.Client, process *child, err error) {
	socket := strings.TrimPrefix(o.signer, "unix://")
	if o.secrets != "" {
		if process, err = startSigner(ctx, o.secrets, stderr, log); err != nil {
			return nil, nil, err
		}
		socket = process.socket
		log.Info("started a signer of the same user: who takes over this process can read its files; run it as another user and give --signer to keep them apart", "secrets", o.secrets)
	}
	c, err := signing.Dial(socket)
	if err != nil && process != nil {
		err = errors.Join(err, process.stop())
	}
	return c, process, err
}

// signerChecked is how often the signer is asked how it is.
const signerChecked = 2 * time.Second

// watchSigner says in /readyz what is wrong with the signer or its keys.
func watchSigner(ctx context.Context, c *signing.Client, process *child, report func(name, detail string, ready bool)) {
	for {
		detail := ""
		if process != nil {
			detail = process.away()
		}
		if detail == "" {
			hctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			h, err := c.Health(hctx)
			cancel()
			switch {
			case err != nil:
				detail = err.Error()
			case len(h.Faults) > 0:
				detail = strings.Join(h.Faults, "; ")
			}
		}
		if ctx.Err() != nil {
			return
		}
		report("signer", detail, false)
		select {
		case <-ctx.Done():
			return
		case <-time.After(signerChecked):
		}
	}
}
