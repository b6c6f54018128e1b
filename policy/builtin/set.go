package builtin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/cache"
	"github.com/open-policy-agent/opa/v1/types"
	"golang.org/x/sync/singleflight"
)

// Options say what the functions may reach, and how much of it. Zero bounds
// mean the defaults.
type Options struct {
	// Transport carries requests to registries. Default: none, and then every
	// ec.oci function fails as if it had no network.
	Transport http.RoundTripper
	// Keychain has the credentials. Default: none are used.
	Keychain authn.Keychain
	// Verify answers ec.sigstore functions. Default: none, and they fail.
	Verify Verifier
	// Allow says whether a registry (host with port) may be asked. Default: any.
	Allow func(registry string) bool

	// MaxBlob is the largest blob, and the largest sum of files read out of one
	// image or archive, in bytes as unpacked. Default: 128 MiB.
	MaxBlob int64
	// MaxRefs is how many references one call of image_manifests may name.
	// Default: 10,000.
	MaxRefs int
	// MaxCalls is how many calls that reach a registry one evaluation may make.
	// Default: 100,000.
	MaxCalls int64
	// Timeout bounds one call. Default: two minutes.
	Timeout time.Duration
	// Parallel is how many manifests image_manifests fetches at a time. Default: 8.
	Parallel int
}

// Set is the functions, ready to be given to OPA. Make one with New for each run
// of the gate; it is safe for concurrent use.
type Set struct {
	opts   Options
	puller *remote.Puller
	remote []remote.Option
	shared *Recorder // for evaluations that brought none

	memo   sync.Map // key → *ast.Term or error
	noted  atomic.Int64
	flight singleflight.Group
}

// maxMemo is how many answers are remembered: a few kilobytes each, enough for all
// bundles of tasks that a snapshot's images were built with.
const maxMemo = 2048

// New makes a Set. It fails only on options that contradict themselves.
func New(o Options) (*Set, error) {
	if o.Transport == nil {
		o.Transport = refused{}
	}
	if o.Keychain == nil {
		o.Keychain = authn.NewMultiKeychain()
	}
	if o.MaxBlob <= 0 {
		o.MaxBlob = 128 << 20
	}
	if o.MaxRefs <= 0 {
		o.MaxRefs = 10_000
	}
	if o.MaxCalls <= 0 {
		o.MaxCalls = 100_000
	}
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.Parallel <= 0 {
		o.Parallel = 8
	}
	opts := []remote.Option{
		remote.WithTransport(o.Transport),
		remote.WithAuthFromKeychain(o.Keychain),
		// Trying again is the transport's business, which knows how often the user
		// wants that.
		remote.WithRetryBackoff(remote.Backoff{Duration: time.Millisecond, Factor: 1, Steps: 1}),
		remote.WithRetryPredicate(func(error) bool { return false }),
		remote.WithRetryStatusCodes(),
	}
	p, err := remote.NewPuller(opts...)
	if err != nil {
		return nil, fmt.Errorf("making built-in functions: %w", err)
	}
	return &Set{opts: o, puller: p, remote: append(opts, remote.Reuse(p)), shared: new(Recorder)}, nil
}

// refused is the transport of a Set without one.
type refused struct{}

func (refused) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("no registry is reached from here")
}

// call is one call of a function.
type call struct {
	*Set
	name string
	rec  *Recorder
	ctx  context.Context
}

// fn answers a call. An error means undefined; the recorder is told.
type fn func(c *call, args []*ast.Term) (*ast.Term, error)

func (s *Set) implementation(name string) fn {
	switch name {
	case Blob:
		return blob
	case ParsedBlob:
		return parsedBlob
	case BlobFiles:
		return blobFiles
	case Descriptor:
		return remembered(descriptor)
	case ImageManifest:
		return remembered(imageManifest)
	case ImageManifests:
		return imageManifests
	case ImageIndex:
		return remembered(imageIndex)
	case ImageFiles:
		return imageFiles
	case ImageTagRefs:
		return imageTagRefs
	case ImageReferrers:
		return imageReferrers
	case PURLIsValid:
		return purlIsValid
	case PURLParse:
		return purlParse
	case VerifyImage:
		return verifyImage // what verifies remembers; here each evaluation is told of failures
	case VerifyAttestation:
		return verifyAttestation
	}
	panic("builtin: no implementation of " + name)
}

// run is what OPA calls.
func (s *Set) run(name string, pure bool, f fn) rego.BuiltinDyn {
	return func(b rego.BuiltinContext, args []*ast.Term) (*ast.Term, error) {
		c := &call{Set: s, name: name, rec: recorder(b.Context), ctx: b.Context}
		if c.rec == nil {
			c.rec = s.shared
		}
		if c.ctx == nil {
			c.ctx = context.Background()
		}
		if !pure {
			if c.rec.calls.Add(1) > s.opts.MaxCalls {
				return nil, rego.NewHaltError(fmt.Errorf("%s: the evaluation calls registries more than %d times", name, s.opts.MaxCalls))
			}
			ctx, cancel := context.WithTimeout(c.ctx, s.opts.Timeout)
			defer cancel()
			c.ctx = ctx
		}
		t, err := f(c, args)
		if err != nil {
			if b.Context != nil && b.Context.Err() != nil {
				return nil, rego.NewHaltError(fmt.Errorf("%s: %w", name, b.Context.Err()))
			}
			c.rec.fail(name, subject(args), err)
			return nil, nil
		}
		return t, nil
	}
}

// subject is what a call is about.
func subject(args []*ast.Term) string {
	if len(args) > 0 {
		if s, ok := args[0].Value.(ast.String); ok {
			return string(s)
		}
	}
	return ""
}

// remembered answers the same question once, failures too: a registry that is not
// there is not asked again for each rule. After maxMemo answers it begins anew.
func remembered(f fn) fn {
	return func(c *call, args []*ast.Term) (*ast.Term, error) {
		// Another evaluation may have been allowed what this one is not; and this one
		// names the registry, though it may not have to be asked again.
		if r, err := name.ParseReference(subject(args)); err == nil {
			if err := c.host(r); err != nil {
				return nil, err
			}
		}
		key := c.name
		for _, a := range args {
			key += "\x00" + a.String()
		}
		if v, ok := c.memo.Load(key); ok {
			return unpack(v)
		}
		v, _, _ := c.flight.Do(key, func() (any, error) {
			if v, ok := c.memo.Load(key); ok {
				return v, nil
			}
			var v any
			t, err := f(c, args)
			if v = t; err != nil {
				v = err
			}
			// That this evaluation ran out of time says nothing about the next.
			if c.ctx.Err() == nil {
				if c.noted.Add(1) > maxMemo {
					c.memo.Clear()
					c.noted.Store(1)
				}
				c.memo.Store(key, v)
			}
			return v, nil
		})
		return unpack(v)
	}
}

func unpack(v any) (*ast.Term, error) {
	if err, ok := v.(error); ok {
		return nil, err
	}
	return v.(*ast.Term), nil
}

// host checks that a reference's registry may be asked, and notes it.
func (c *call) host(r name.Reference) error {
	h := r.Context().RegistryStr()
	if c.opts.Allow != nil && !c.opts.Allow(h) {
		return fmt.Errorf("registry %s: %w", h, ErrNotAllowed)
	}
	// A registry that this evaluation may not ask is told all the same: that a
	// policy wants to is worth knowing.
	c.rec.reach(h)
	if c.rec.Allow != nil && !c.rec.Allow(h) {
		return fmt.Errorf("registry %s: %w", h, ErrNotAllowed)
	}
	return nil
}

// ErrNotAllowed is the cause of failures of calls that name a registry which
// Options.Allow refuses.
var ErrNotAllowed = errors.New("this policy may not ask it; list it to allow that")

// errNoVerifier is the cause where Options has no Verify.
var errNoVerifier = errors.New("nothing here verifies signatures")

// function is the declaration in the form that package rego wants.
func function(name string, args []types.Type, result types.Type, pure bool) *rego.Function {
	return &rego.Function{Name: name, Decl: types.NewFunction(types.Args(args...), result), Memoize: true, Nondeterministic: !pure}
}

// Declarations are the functions as the compiler has to know them.
func Declarations() []*ast.Builtin {
	var out []*ast.Builtin
	for _, f := range functions {
		out = append(out, &ast.Builtin{
			Name: f.name, Description: f.description,
			Decl: types.NewFunction(types.Args(f.args...), f.result), Nondeterministic: !f.pure,
		})
	}
	return out
}

// Capabilities are what a policy may call: OPA's own functions and these, but
// nothing that reaches the network or tells about the machine.
func Capabilities() *ast.Capabilities {
	caps := ast.CapabilitiesForThisVersion()
	ours := Declarations()
	caps.Builtins = slices.DeleteFunc(slices.Clone(caps.Builtins), func(b *ast.Builtin) bool {
		return slices.Contains(Denied(), b.Name) || slices.ContainsFunc(ours, func(o *ast.Builtin) bool { return o.Name == b.Name })
	})
	caps.Builtins = append(caps.Builtins, ours...)
	// Empty, not nil, which would mean any.
	caps.AllowNet = []string{}
	return caps
}

// Denied are OPA's functions that no policy may call.
func Denied() []string { return []string{"http.send", "net.lookup_ip_addr", "opa.runtime"} }

// Rego gives the functions to one rego.Rego, and to no other.
func (s *Set) Rego() []func(*rego.Rego) {
	var out []func(*rego.Rego)
	for _, f := range functions {
		out = append(out, rego.FunctionDyn(function(f.name, f.args, f.result, f.pure), s.run(f.name, f.pure, s.implementation(f.name))))
	}
	return out
}

// Topdown gives the functions to one topdown.Query. What they answer is kept for
// the query, as Rego does.
func (s *Set) Topdown() map[string]*topdown.Builtin {
	out := map[string]*topdown.Builtin{}
	for i, d := range Declarations() {
		out[d.Name] = &topdown.Builtin{Decl: d, Func: oncePerQuery(d, s.run(d.Name, functions[i].pure, s.implementation(d.Name)))}
	}
	return out
}

// answer is what a call came to, as one query keeps it.
type answer struct {
	term *ast.Term
	err  error
}

type answerKey string

func oncePerQuery(d *ast.Builtin, f rego.BuiltinDyn) topdown.BuiltinFunc {
	return func(b topdown.BuiltinContext, args []*ast.Term, iter func(*ast.Term) error) error {
		key := d.Name
		for _, a := range args[:d.Decl.Arity()] {
			key += "\x00" + a.String()
		}
		kept, ok := b.Cache.Get(answerKey(key))
		a, _ := kept.(answer)
		if !ok {
			a.term, a.err = f(b, args)
			b.Cache.Put(answerKey(key), a)
		}
		switch {
		case a.err != nil:
			// Only a HaltError gets here: everything else is told to the recorder.
			return topdown.Halt{Err: (&topdown.Error{Code: topdown.BuiltinErr, Message: a.err.Error(), Location: b.Location}).Wrap(a.err)}
		case a.term == nil:
			return nil
		}
		return iter(a.term)
	}
}

// Values is a cache for what OPA's own functions compile (schemas, patterns), for all
// evaluations that share it.
func Values() cache.InterQueryValueCache {
	limit := maxValues
	return cache.NewInterQueryValueCache(context.Background(), &cache.Config{InterQueryBuiltinValueCache: cache.InterQueryBuiltinValueCacheConfig{MaxNumEntries: &limit}})
}

// maxValues is how many a cache keeps. Patterns may be made of what is judged.
const maxValues = 2000

// Register gives the functions to all of OPA in this process, for its own
// commands. It is for a program's main: OPA keeps them in a list of the package,
// and the last one to register wins.
func (s *Set) Register() {
	for _, f := range functions {
		decl := function(f.name, f.args, f.result, f.pure)
		rego.RegisterBuiltinDyn(decl, s.run(f.name, f.pure, s.implementation(f.name)))
	}
	for _, b := range Declarations() {
		// Once more, with the description, which the first way drops.
		ast.RegisterBuiltin(b)
	}
}

// Failures are those of evaluations that brought no Recorder.
func (s *Set) Failures() []Failure { return s.shared.Failures() }

// Recorder notes what the functions did in one evaluation. The zero value is
// ready; it is safe for concurrent use.
type Recorder struct {
	// Allow says whether a registry (host with port) may be asked in this evaluation,
	// beside what Options.Allow says. Default: any. Set it before the evaluation.
	Allow func(registry string) bool

	calls atomic.Int64

	mu       sync.Mutex // guards what follows
	failures []Failure
	hosts    []string
}

// Failure is a call that had no answer, and why.
type Failure struct {
	Function string `json:"function"`
	Ref      string `json:"ref,omitempty"`
	Cause    string `json:"cause"`
	// NotFound says that the registry answered: there is no such thing. Otherwise
	// the answer is not known.
	NotFound bool `json:"notFound,omitempty"`
	// Unverified says that what was to be verified was there, and does not verify:
	// the rule was told so, and the answer is known.
	Unverified bool `json:"unverified,omitempty"`
}

// maxFailures is how many failures are kept for one evaluation.
const maxFailures = 1000

func (r *Recorder) fail(function, ref string, err error) {
	f := Failure{Function: function, Ref: ref, Cause: err.Error(), NotFound: notFound(err)}
	if function == VerifyImage || function == VerifyAttestation {
		f.Unverified = !f.NotFound && !unanswered(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.failures) < maxFailures && !slices.Contains(r.failures, f) {
		r.failures = append(r.failures, f)
	}
}

// unanswered says that an error is about asking, not about what was answered.
func unanswered(err error) bool {
	var (
		registry *transport.Error
		network  net.Error
		address  *url.Error
	)
	return errors.As(err, &registry) || errors.As(err, &network) || errors.As(err, &address) ||
		errors.Is(err, ErrNotAllowed) || errors.Is(err, errNoVerifier) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}

func (r *Recorder) reach(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.hosts, host) {
		r.hosts = append(r.hosts, host)
	}
}

// Failures are the calls without an answer, each once, in the order they were
// made.
func (r *Recorder) Failures() []Failure {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.failures)
}

// Hosts are the registries that rules named in references, sorted.
func (r *Recorder) Hosts() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(slices.Values(r.hosts))
}

type recorderKey struct{}

// Record returns a context in which calls tell r. OPA hands a function nothing
// of its evaluation but the context.
func Record(ctx context.Context, r *Recorder) context.Context {
	return context.WithValue(ctx, recorderKey{}, r)
}

func recorder(ctx context.Context) *Recorder {
	if ctx == nil {
		return nil
	}
	r, _ := ctx.Value(recorderKey{}).(*Recorder)
	return r
}
