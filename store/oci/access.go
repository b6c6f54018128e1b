package oci

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/singleflight"
)

// Bounds on what is remembered: names of registries and repositories come from
// strangers' results.
const (
	maxHosts  = 256
	maxTokens = 4096
	maxKnown  = 16384
)

// hosts remembers what registries are like, so that each is asked once.
type hosts struct {
	base http.RoundTripper
	now  func() time.Time

	mu     sync.Mutex
	byName map[string]*host // guarded by mu
}

// get returns what is known of a registry; nothing at first.
func (hs *hosts) get(reg name.Registry) *host {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.byName[reg.Name()]
	if h == nil {
		if len(hs.byName) >= maxHosts {
			clear(hs.byName)
		}
		h = &host{reg: reg, base: hs.base, now: hs.now, tokens: map[string]token{}, known: map[string]bool{}}
		hs.byName[reg.Name()] = h
	}
	return h
}

// host is one registry.
type host struct {
	reg  name.Registry
	base http.RoundTripper
	now  func() time.Time

	noMonolithic atomic.Bool
	noReferrers  atomic.Int64 // until when, Unix nanoseconds, it counts as having no API for referrers
	conditions   atomic.Int32 // of type knowledge: does it honour conditional writes
	kept         atomic.Bool  // something was, by an earlier Keep
	window       atomic.Int64 // how long it recently took from reading a tag to having written it

	asking    singleflight.Group
	challenge atomic.Pointer[transport.Challenge]

	mu     sync.Mutex
	tokens map[string]token // guarded by mu; by credentials and repository
	known  map[string]bool  // guarded by mu; repository@digest of small blobs that are there
}

// referrersMemory is how long a registry that has no API for referrers is not asked
// again: it may be given a newer version.
const referrersMemory = 5 * time.Minute

// listsNone says whether the registry was lately found to have no API for referrers.
func (h *host) listsNone() bool {
	left := time.Unix(0, h.noReferrers.Load()).Sub(h.now())
	return left > 0 && left <= referrersMemory // a clock that was set back must not make it last
}

// knowledge is what is known of a registry's habit.
type knowledge = int32

const (
	unknown knowledge = iota
	asked             // a request that will tell is under way
	yes
	no
)

type token struct {
	value string
	until time.Time
}

// scheme is https unless the registry was found to speak http only, where that is
// allowed.
func (h *host) scheme() string {
	if c := h.challenge.Load(); c != nil && c.Insecure {
		return "http"
	} else if c != nil {
		return "https"
	}
	return h.reg.Scheme()
}

// ping asks the registry, once, how it wants to be spoken to.
func (h *host) ping(ctx context.Context) (*transport.Challenge, error) {
	for {
		if c := h.challenge.Load(); c != nil {
			return c, nil
		}
		_, err, shared := h.asking.Do("ping", func() (any, error) {
			if h.challenge.Load() != nil {
				return nil, nil // another was faster
			}
			c, err := transport.Ping(ctx, h.reg, h.base)
			if err != nil {
				return nil, asTemporary(fmt.Errorf("asking registry %s how to authorise: %w", h.reg, err))
			}
			h.challenge.Store(c)
			return nil, nil
		})
		if err != nil && !(shared && othersContext(ctx, err)) {
			return nil, err
		}
	}
}

// othersContext says that a shared request failed with the context of whoever
// made it, which is not ours.
func othersContext(ctx context.Context, err error) bool {
	return ctx.Err() == nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded))
}

// asTemporary marks what is worth another try.
func asTemporary(err error) error {
	var te *transport.Error
	if errors.As(err, &te) && te.StatusCode < 500 && te.StatusCode != http.StatusTooManyRequests {
		return err
	}
	return retryError{error: err}
}

// has says whether a blob is known to be in a repository; keep notes that it is.
func (h *host) has(repo, digest string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known[repo+"@"+digest]
}

func (h *host) note(repo, digest string, there bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !there {
		delete(h.known, repo+"@"+digest)
		return
	}
	if len(h.known) >= maxKnown {
		clear(h.known)
	}
	h.known[repo+"@"+digest] = true
}

// access is one set of credentials for one repository.
type access struct {
	host *host
	repo name.Repository
	auth authn.Authenticator
	id   string // of the credentials, without revealing them
}

// newAccess looks credentials up. A nil keychain has none.
func (hs *hosts) newAccess(ctx context.Context, repo name.Repository, keychain authn.Keychain) (*access, error) {
	a := &access{host: hs.get(repo.Registry), repo: repo, auth: authn.Anonymous}
	if keychain == nil {
		return a, nil
	}
	auth, err := authn.Resolve(ctx, keychain, repo)
	if err != nil {
		return nil, fmt.Errorf("finding credentials for %s: %w", repo, err)
	}
	cfg, err := authn.Authorization(ctx, auth)
	if err != nil {
		return nil, fmt.Errorf("reading credentials for %s: %w", repo, err)
	}
	if *cfg != (authn.AuthConfig{}) {
		h := sha256.New()
		for _, s := range []string{cfg.Username, cfg.Password, cfg.Auth, cfg.IdentityToken, cfg.RegistryToken} {
			fmt.Fprintf(h, "%d:%s,", len(s), s)
		}
		a.auth, a.id = authn.FromConfig(*cfg), string(h.Sum(nil))
	}
	return a, nil
}

// credential is what a request was sent with.
type credential struct {
	challenge *transport.Challenge
	token     string // empty: no token of ours
	fixed     bool   // a password or token that we cannot renew
}

// authorize adds what the registry wants to a request to it.
func (a *access) authorize(ctx context.Context, req *http.Request) (credential, error) {
	c, err := a.host.ping(ctx)
	if err != nil {
		return credential{}, err
	}
	if req.URL.Host == a.repo.RegistryStr() {
		req.URL.Scheme = a.host.scheme()
	}
	cfg, err := authn.Authorization(ctx, a.auth)
	if err != nil {
		return credential{}, fmt.Errorf("reading credentials for %s: %w", a.repo, err)
	}
	used := credential{challenge: c}
	header := ""
	switch scheme := strings.ToLower(c.Scheme); {
	case cfg.RegistryToken != "":
		header = "Bearer " + cfg.RegistryToken
	case scheme == "bearer":
		if used.token, err = a.token(ctx, c); err != nil {
			return credential{}, err
		}
		header = "Bearer " + used.token
	case scheme == "basic" && cfg.Auth != "":
		header = "Basic " + cfg.Auth
	case scheme == "basic" && cfg.Username != "":
		header = "Basic " + base64.StdEncoding.EncodeToString([]byte(cfg.Username+":"+cfg.Password))
	}
	if header != "" {
		req.Header.Set("Authorization", header)
		used.fixed = used.token == ""
	}
	return used, nil
}

// refused drops what a registry has refused, unless it was renewed since, and
// says whether another try can go better.
func (a *access) refused(used credential) bool {
	switch {
	case used.fixed:
		return false
	case used.token == "":
		// It has begun to want something.
		a.host.challenge.CompareAndSwap(used.challenge, nil)
	default:
		a.host.mu.Lock()
		defer a.host.mu.Unlock()
		if a.host.tokens[a.tokenName()].value == used.token {
			delete(a.host.tokens, a.tokenName())
		}
	}
	return true
}

func (a *access) tokenName() string { return a.id + a.repo.RepositoryStr() }

func (h *host) cached(tokenName string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if t, ok := h.tokens[tokenName]; ok && h.now().Before(t.until) {
		return t.value
	}
	return ""
}

// token returns a token to push to the repository, an old one while it lasts.
func (a *access) token(ctx context.Context, c *transport.Challenge) (string, error) {
	for {
		if t := a.host.cached(a.tokenName()); t != "" {
			return t, nil
		}
		_, err, shared := a.host.asking.Do("token "+a.tokenName(), func() (any, error) {
			if a.host.cached(a.tokenName()) != "" {
				return nil, nil // another was faster
			}
			return nil, a.exchange(ctx, c)
		})
		if err != nil && !(shared && othersContext(ctx, err)) {
			return "", err
		}
	}
}

func (a *access) exchange(ctx context.Context, c *transport.Challenge) error {
	t, err := transport.Exchange(ctx, a.repo.Registry, a.auth, a.host.base, []string{a.repo.Scope(transport.PushScope)}, c)
	if err != nil {
		return asTemporary(fmt.Errorf("getting a token for %s: %w", a.repo, err))
	}
	value := t.Token
	if value == "" {
		value = t.AccessToken
	}
	if value == "" {
		return fmt.Errorf("getting a token for %s: the registry's token service gave none", a.repo)
	}
	// A minute is the specification's default. A little is left for the way.
	life := time.Duration(min(max(t.ExpiresIn, 60), 24*3600)) * time.Second * 9 / 10
	a.host.mu.Lock()
	defer a.host.mu.Unlock()
	if len(a.host.tokens) >= maxTokens {
		clear(a.host.tokens)
	}
	a.host.tokens[a.tokenName()] = token{value, a.host.now().Add(life)}
	return nil
}

// tagLocks keep this process's writers of one tag apart.
type tagLocks struct {
	mu   sync.Mutex
	held map[string]*tagLock // guarded by mu
}

type tagLock struct {
	turn  chan struct{} // one element: whoever takes it has the lock
	users int           // guarded by tagLocks.mu
}

// lock waits until the tag is free, or fails with the context.
func (l *tagLocks) lock(ctx context.Context, tag string) (unlock func(), err error) {
	l.mu.Lock()
	t := l.held[tag]
	if t == nil {
		t = &tagLock{turn: make(chan struct{}, 1)}
		t.turn <- struct{}{}
		l.held[tag] = t
	}
	t.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(l.held, tag)
		}
	}
	select {
	case <-t.turn:
		return func() { t.turn <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// uploads sees to it that each blob goes into each repository once per Keep.
type uploads struct {
	mu   sync.Mutex
	done map[string]func() error // guarded by mu
}

func (u *uploads) once(repo, digest string, upload func() error) error {
	u.mu.Lock()
	f := u.done[repo+"@"+digest]
	if f == nil {
		f = sync.OnceValue(upload)
		u.done[repo+"@"+digest] = f
	}
	u.mu.Unlock()
	return f()
}

func (u *uploads) forget(repo string, digests ...string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for k := range u.done {
		if slices.ContainsFunc(digests, func(d string) bool { return k == repo+"@"+d }) {
			delete(u.done, k)
		}
	}
}
