package cli

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/gateserver"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/conforma"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/vsa"
	"assay.dev/assay/verify"
)

// serveFlags are those of gate serve.
type serveFlags struct {
	gateFlags
	listen                         string
	tokens                         string
	certificate, key, clientCA     string
	clientNames                    []string
	insecure, anonymous, allowTags bool
	reload, timeout, kept, drain   time.Duration
	concurrent, images, body       int
}

func (a *app) gateServeCommand() *cobra.Command {
	f := &serveFlags{}
	c := &cobra.Command{
		Use:   "serve --policy POLICY",
		Short: "Judge images for others: over HTTP, and as an admission webhook of Kubernetes",
		Long: `Serves what the gate decides:

  POST /v1/validate/image   {"images": […]} or a Snapshot: the JSON report, and
                            X-Assay-Result: pass, fail or unchecked
  POST /v1/validate/input   a JSON or YAML document: as ec validate input --server
  POST /v1/admit            AdmissionReview (admission.k8s.io/v1) of Pods and of what makes them
  GET  /v1/policy           the policy, its digest, sources and trust
  GET  /metrics, /live, /ready

Policy and trust are loaded again at every --reload; while a new one cannot be loaded
the old one serves. Callers have a token (--tokens) or a client certificate
(--client-ca); without either the server is for this machine only.`,
		Example: `  assay gate serve --policy $POLICY --key $KEY
  assay gate serve --policy $POLICY --key $KEY --listen :8443 --tls-cert tls.crt --tls-key tls.key --tokens tokens
  curl -d '{"images":["'$IMAGE'"]}' http://127.0.0.1:8080/v1/validate/image`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.gateServe(cmd.Context(), f) },
	}
	f.add(c)
	fl := c.Flags()
	fl.StringVar(&f.listen, "listen", "127.0.0.1:8080", "address to serve on")
	fl.StringVar(&f.tokens, "tokens", "", "file with a name and a token (20 characters at least) on each line, for Authorization: Bearer")
	fl.StringVar(&f.certificate, "tls-cert", "", "certificate of the server (PEM); read again when it changes")
	fl.StringVar(&f.key, "tls-key", "", "its key (PEM)")
	fl.StringVar(&f.clientCA, "client-ca", "", "certificates (PEM) that clients' certificates are checked by")
	fl.StringArrayVar(&f.clientNames, "client-name", nil, "name that a client certificate may have (repeatable; default: any by --client-ca)")
	fl.BoolVar(&f.insecure, "insecure-no-auth", false, "let everybody ask everything, from anywhere")
	fl.BoolVar(&f.anonymous, "admit-anonymous", false, "let everybody ask for admission: for API servers that do not say who they are; bound the network instead")
	fl.BoolVar(&f.allowTags, "allow-tags", false, "admit images named by tag if what the tag names passes; the node may pull another")
	fl.DurationVar(&f.reload, "reload", 5*time.Minute, "how often policy and trust are loaded again; 0: never")
	fl.DurationVar(&f.timeout, "timeout", 90*time.Second, "time that one judgement may take")
	fl.DurationVar(&f.kept, "keep-verdicts", gateserver.DefaultKept, "how long a pass of a digest is kept for admission, within its own expiry")
	fl.DurationVar(&f.drain, "drain", 0, "time to serve on, not ready, after being told to stop: for load balancers to look elsewhere")
	fl.IntVar(&f.concurrent, "max-concurrent", gateserver.DefaultConcurrent, "requests judged at a time; more are answered 429")
	fl.IntVar(&f.images, "max-images", gateserver.DefaultImages, "images that one request may name")
	fl.IntVar(&f.body, "max-body", 80, "MiB that one request may have")
	return c
}

func (f *serveFlags) check() error {
	switch {
	case f.policy == "":
		return usagef("no policy given: use --policy FOLDER, for example examples/policy/release")
	case (f.certificate == "") != (f.key == ""):
		return usagef("--tls-cert and --tls-key: give both or none")
	case f.clientCA != "" && f.certificate == "":
		return usagef("--client-ca is about TLS: give --tls-cert and --tls-key too")
	case len(f.clientNames) > 0 && f.clientCA == "":
		return usagef("--client-name is about certificates: say by --client-ca whose")
	case f.insecure && (f.tokens != "" || f.clientCA != ""):
		return usagef("--insecure-no-auth lets everybody in: leave out --tokens and --client-ca, or leave out that")
	case f.reload < 0 || f.drain < 0 || f.timeout <= 0 || f.kept <= 0 || f.concurrent <= 0 || f.images <= 0 || f.body <= 0:
		return usagef("--timeout, --keep-verdicts, --max-concurrent, --max-images and --max-body are more than nothing, --reload and --drain no less")
	}
	return nil
}

// gateServe serves until the context ends.
func (a *app) gateServe(ctx context.Context, f *serveFlags) (err error) {
	if err := f.check(); err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", f.listen)
	if err != nil {
		return fmt.Errorf("starting the server: %w", err)
	}
	defer func() { // Serve closes it
		if err != nil {
			l.Close()
		}
	}()
	known := f.tokens != "" || f.clientCA != ""
	local := gateserver.Loopback(l.Addr())
	if !local && !known && !f.insecure && !f.anonymous {
		return usagef("--listen %s can be reached from elsewhere, and nobody would have to say who he is: give --tokens or --client-ca (or say --insecure-no-auth)", f.listen)
	}
	log := slog.New(slog.NewJSONHandler(a.err, nil))
	k := &standings{app: a, flags: f}
	s, err := gateserver.New(gateserver.Options{
		Load: k.load, Reload: f.reload,
		Access: gateserver.Access{
			Tokens: f.tokens, ClientNames: f.clientNames, OpenAdmission: f.anonymous,
			Open: f.insecure || local && !known,
		},
		MaxBody: int64(f.body) << 20, MaxTime: f.timeout, MaxConcurrent: f.concurrent, MaxImages: f.images,
		Kept: f.kept, Drain: f.drain, AllowTags: f.allowTags, Version: Version(), Log: log,
	})
	if err != nil {
		return err
	}
	var t *tls.Config
	if f.certificate != "" {
		if t, err = s.TLS(gateserver.TLSFiles{Certificate: f.certificate, Key: f.key, ClientCA: f.clientCA}); err != nil {
			return err
		}
	} else if !local && f.tokens != "" {
		log.Warn("tokens go over the network as they are: use --tls-cert and --tls-key, unless something before this server speaks TLS")
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	kept := make(chan error, 1)
	go func() {
		err := s.Keep(ctx, func(err error) bool {
			var e *exit
			return errors.As(err, &e) && e.code == exitUsage
		})
		if err != nil {
			stop()
		}
		kept <- err
	}()
	log.Info("serving", "address", l.Addr().String(), "tls", t != nil, "version", Version())
	err = s.Serve(ctx, l, t)
	stop()
	log.Info("stopped")
	return errors.Join(<-kept, err)
}

// standings loads policy and trust as the flags say. What did not move is not compiled
// again.
type standings struct {
	app   *app
	flags *serveFlags

	policy  *policy.Policy
	sources source.Fetcher // what it was read by
	seen    string         // what it was read from
	// configured says that there was a configuration and not a folder of rules alone.
	configured bool
}

// load is called by one goroutine.
func (k *standings) load(ctx context.Context) (*gateserver.Standing, error) {
	gt, _, err := k.flags.prepare(ctx, k.app, "", k.current, nil)
	if err != nil {
		return nil, err
	}
	trust, err := vsa.TrustDigest(verify.Options{
		Keys: gt.Keys, Instances: gt.Instances, Identities: gt.Identities, Log: gt.Log,
		WithoutSignature: gt.WithoutSignature, WithoutProvenance: gt.WithoutProvenance,
	})
	if err != nil {
		return nil, err
	}
	p, sources := k.policy, k.sources
	again := func(now time.Time) (*gate.Gate, error) {
		at := now
		if k.flags.identity.at != "" {
			at = gt.At
		}
		return gt.Again(now, at)
	}
	return &gateserver.Standing{
		Policy: p, Trust: trust, New: again,
		Input: func(ctx context.Context, when time.Time) (*conforma.Policy, *conforma.Spec, error) {
			if !gt.Context.EffectiveTime.IsZero() {
				when = gt.Context.EffectiveTime
			}
			g, err := again(when)
			if err != nil {
				return nil, nil, err
			}
			return k.flags.inputs(ctx, g, p, sources, when)
		},
	}, nil
}

// current is a loader.
func (k *standings) current(ctx context.Context, ref string, o policy.Options) (*policy.Policy, error) {
	// Files are looked at before they are read: one that changes in between counts as
	// changed the next time.
	files, configured, err := k.flags.files(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	if k.configured && !configured {
		return nil, fmt.Errorf("the configuration in %s is gone: the folder would be another policy by itself", ref)
	}
	if k.policy != nil && files != "" {
		var trees []*source.Tree
		for _, was := range k.policy.Sources() {
			t, err := o.Sources.Fetch(ctx, was.Address)
			if err != nil {
				return nil, err
			}
			trees = append(trees, t)
		}
		if files+pinned(trees) == k.seen {
			return k.policy, nil
		}
	}
	p, err := policy.Load(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	k.policy, k.sources, k.seen, k.configured = p, o.Sources, files+pinned(p.Sources()), configured
	return p, nil
}

// pinned is what trees were.
func pinned(trees []*source.Tree) string {
	var b strings.Builder
	for _, t := range trees {
		fmt.Fprintf(&b, "%s %s %s\n", t.Address, t.Pinned, t.Digest)
	}
	return b.String()
}

// files are the digests of what a policy has on this machine beside its sources. It is
// empty where there is more to it: a cluster's, others' configurations, keys that lie
// somewhere. Configured says whether there is a configuration.
func (f *serveFlags) files(ctx context.Context, ref string, o policy.Options) (digests string, configured bool, err error) {
	if strings.HasPrefix(ref, "k8s://") {
		return "", true, nil
	}
	s, err := f.configuration(ctx, o.Sources)
	if err != nil {
		return "", false, err
	}
	if s != nil && (s.Assay != nil && (len(s.Assay.Extends) > 0 || s.Assay.Signers != nil) || s.PublicKey != "" && !strings.Contains(s.PublicKey, "-----BEGIN")) {
		return "", true, nil
	}
	b := strings.Builder{}
	b.WriteString("files\n")
	local := append([]string{}, o.Data...)
	if path, ok := f.localPolicy(ref); ok {
		local = append(local, path)
	}
	for _, path := range local {
		t, err := source.Open(path)
		if err != nil {
			return "", false, err
		}
		fmt.Fprintf(&b, "%s %s\n", path, t.Digest)
	}
	return b.String(), s != nil, nil
}

// localPolicy is the path of a policy that lies on this machine.
func (f *serveFlags) localPolicy(ref string) (string, bool) {
	if inline(ref) || strings.HasPrefix(ref, "k8s://") {
		return "", false
	}
	kind, err := source.Local{}.Kind(ref)
	if err != nil || kind != source.File {
		return "", false
	}
	path, err := source.Path("", ref)
	return path, err == nil
}

// inputs loads a policy as Conforma does, for documents that are no images.
func (f *serveFlags) inputs(ctx context.Context, g *gate.Gate, p *policy.Policy, sources source.Fetcher, when time.Time) (*conforma.Policy, *conforma.Spec, error) {
	s := *p.Spec()
	if s.Assay != nil && len(s.Assay.Extends) > 0 {
		return nil, nil, errors.New("a policy that extends others judges images only: Conforma does not know such policies")
	}
	s.Assay = nil
	ref, err := absolute(f.policy)
	if err != nil {
		return nil, nil, err
	}
	base, isLocal := f.localPolicy(ref)
	for _, t := range p.Sources() {
		if !isLocal && t.Address == ref {
			base = t.Path
		}
	}
	if base != "" {
		if info, err := os.Stat(base); err != nil {
			return nil, nil, err
		} else if !info.IsDir() {
			base = filepath.Dir(base)
		}
	}
	whole := func(list []string) ([]string, error) {
		out := make([]string, len(list))
		for i, address := range list {
			out[i] = address
			if kind, err := (source.Local{Base: base}).Kind(address); err != nil {
				return nil, err
			} else if kind != source.File {
				continue
			}
			if out[i], err = source.Path(base, address); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	s.Sources = append([]conforma.Source{}, s.Sources...)
	for i := range s.Sources {
		if s.Sources[i].Policy, err = whole(s.Sources[i].Policy); err != nil {
			return nil, nil, err
		}
		if s.Sources[i].Data, err = whole(append(append([]string{}, s.Sources[i].Data...), f.data...)); err != nil {
			return nil, nil, err
		}
	}
	set, err := g.Functions()
	if err != nil {
		return nil, nil, err
	}
	o := conforma.Options{When: when, Builtins: set, Sources: sources, Sigstore: builtin.SigstoreOptions{RekorURL: s.RekorURL}}
	if strings.Contains(s.PublicKey, "-----BEGIN") {
		o.Sigstore.PublicKey = s.PublicKey
	}
	out, err := conforma.Load(ctx, &s, o)
	return out, &s, err
}
