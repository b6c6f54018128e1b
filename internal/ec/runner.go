package ec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"assay.dev/assay/internal/pullcache"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/source"
)

// maxFile bounds the files that arguments name.
const maxFile = 256 << 20

func readFile(path string) ([]byte, error) { return source.ReadFile(path, maxFile) }

// globals are the flags of all commands.
type globals struct {
	timeout        time.Duration
	retry          pullcache.Retry
	quiet, verbose bool
	debug          bool
	logfile        string
	kubeconfig     string
	policySources  sourceFlags
	traces         traces

	log  logger
	errw io.Writer
	ends []func() error // of stop
}

// runner is one run of a command that judges.
type runner struct {
	*globals
	workers int

	cache    *pullcache.Cache
	puller   *remote.Puller
	verify   *verifier
	builtins *builtin.Set

	unexpanded sync.Map // containerImage → error

	// evaluating has a place for each evaluation that may run. Workers wait for
	// registries most of their time, and evaluations compute: more of them than there
	// are processors, and one that asks a registry meanwhile, only take memory.
	evaluating chan struct{}
}

// evaluate is called around an evaluation and returns what ends it. It fails where
// the context ends first.
func (r *runner) evaluate(ctx context.Context) (done func(), err error) {
	select {
	case r.evaluating <- struct{}{}:
		return func() { <-r.evaluating }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// newRunner makes what a run shares.
func newRunner(g *globals, errw io.Writer, workers int) (*runner, error) {
	if g.log.to == nil {
		g.log.to, g.log.level = errw, levelWarning
	}
	r := &runner{globals: g, workers: workers, evaluating: make(chan struct{}, runtime.GOMAXPROCS(0)+1)}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.MaxIdleConnsPerHost = 16
	base.ResponseHeaderTimeout = time.Minute
	r.cache = pullcache.New(base, pullcache.Options{MaxTotal: 8 << 20, Retry: g.retry})
	keychain := authn.DefaultKeychain
	var err error
	if r.puller, err = remote.NewPuller(
		remote.WithTransport(r.cache), remote.WithAuthFromKeychain(keychain),
		remote.WithRetryBackoff(remote.Backoff{Duration: time.Millisecond, Factor: 1, Steps: 1}),
		remote.WithRetryPredicate(func(error) bool { return false }), remote.WithRetryStatusCodes(),
	); err != nil {
		return nil, err
	}
	r.verify = g.newVerifier(r.cache, base, keychain)
	if r.builtins, err = builtin.New(builtin.Options{Transport: r.cache, Keychain: keychain, Verify: r.verify}); err != nil {
		return nil, err
	}
	return r, nil
}

// warn tells about something that does not end the run.
func (g *globals) warn(format string, args ...any) { g.log.printf(levelWarning, format, args...) }

// clockSkew is how far in the past an effective time may be without saying so.
const clockSkew = 2 * time.Second

// effectiveTime reads --effective-time. Zero is the attestation's.
func effectiveTime(value string, allowPast bool) (time.Time, error) {
	now := time.Now().UTC()
	switch strings.ToLower(value) {
	case "now":
		return now, nil
	case "attestation":
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, value)
	if err != nil {
		var asDate error
		if t, asDate = time.Parse(time.DateOnly, value); asDate != nil {
			return time.Time{}, fmt.Errorf("invalid policy time argument: %w", errors.Join(err, asDate))
		}
	}
	t = t.UTC()
	if !allowPast && t.Before(now.Add(-clockSkew)) {
		return time.Time{}, fmt.Errorf("effective time %s is in the past; use --allow-past-effective-time to override", t.Format(time.RFC3339))
	}
	return t, nil
}

// within bounds a context by the global timeout.
func (g *globals) within(ctx context.Context) (context.Context, context.CancelFunc) {
	if g.timeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, g.timeout, fmt.Errorf("the run did not end within %s (--timeout)", g.timeout))
}
