package ec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"assay.dev/assay/internal/pullcache"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/conforma"
)

// maxFile bounds the files that arguments name.
const maxFile = 256 << 20

func readFile(path string) ([]byte, error) { return conforma.ReadFile(path, maxFile) }

// globals are the flags of all commands.
type globals struct {
	timeout time.Duration
	retry   pullcache.Retry
	quiet   bool
}

// runner is one run of a command that judges.
type runner struct {
	*globals
	err     io.Writer
	workers int

	cache    *pullcache.Cache
	puller   *remote.Puller
	verify   *verifier
	builtins *builtin.Set

	unexpanded sync.Map // containerImage → error
	warnings   sync.Mutex
}

// newRunner makes what a run shares.
func newRunner(g *globals, errw io.Writer, workers int) (*runner, error) {
	r := &runner{globals: g, err: errw, workers: workers}
	base := http.DefaultTransport.(*http.Transport).Clone()
	base.MaxIdleConnsPerHost = 16
	base.ResponseHeaderTimeout = time.Minute
	r.cache = pullcache.New(base, pullcache.Options{Retry: g.retry})
	keychain := authn.DefaultKeychain
	var err error
	if r.puller, err = remote.NewPuller(
		remote.WithTransport(r.cache), remote.WithAuthFromKeychain(keychain),
		remote.WithRetryBackoff(remote.Backoff{Duration: time.Millisecond, Factor: 1, Steps: 1}),
		remote.WithRetryPredicate(func(error) bool { return false }), remote.WithRetryStatusCodes(),
	); err != nil {
		return nil, err
	}
	r.verify = &verifier{transport: r.cache, keychain: keychain}
	if r.builtins, err = builtin.New(builtin.Options{Transport: r.cache, Keychain: keychain, Verify: r.verify}); err != nil {
		return nil, err
	}
	return r, nil
}

// warn tells about something that does not end the run.
func (r *runner) warn(format string, args ...any) {
	if r.quiet {
		return
	}
	r.warnings.Lock()
	defer r.warnings.Unlock()
	fmt.Fprintf(r.err, "level=warning msg=%q\n", fmt.Sprintf(format, args...))
}

// keyScheme is the scheme of an address, if value is one.
func keyScheme(value string) (string, bool) {
	scheme, _, ok := strings.Cut(value, "://")
	return scheme, ok
}

// loadSpec reads a policy configuration as the argument of --policy gives it.
func loadSpec(arg string) (*conforma.Spec, error) {
	raw := []byte(arg)
	switch {
	case arg == "":
		return &conforma.Spec{}, nil
	case strings.HasPrefix(arg, "{"):
	case conforma.Remote(arg) != "" && !strings.Contains(arg, "\n"):
		return nil, fmt.Errorf("--policy %s: policies are not fetched (%s) by this command; download it and name the file", arg, conforma.Remote(arg))
	case slices.ContainsFunc([]string{".json", ".yaml", ".yml"}, func(s string) bool { return strings.HasSuffix(arg, s) }) && !strings.Contains(arg, "\n"):
		var err error
		if raw, err = readFile(arg); err != nil {
			return nil, err
		}
		if len(raw) == 0 {
			return nil, fmt.Errorf("file %s is empty", arg)
		}
	case !strings.Contains(arg, ":"):
		return nil, fmt.Errorf("--policy %s: policies of a cluster are not read by this command; get it (kubectl get enterprisecontractpolicy -o yaml) and name the file", arg)
	}
	return conforma.ParseSpec(raw)
}

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
