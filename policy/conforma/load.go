package conforma

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown/cache"

	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/source"
)

// Options are what a policy is loaded with.
type Options struct {
	// When is the effective time: what rules see as data.config.policy.when_ns,
	// and what volatile items are in force by. Required.
	When time.Time
	// Sigstore is data.config.default_sigstore_opts.
	Sigstore builtin.SigstoreOptions
	// Filter chooses rules. Default: IncludeExclude.
	Filter FilterType
	// Builtins answer the ec.* functions. Required.
	Builtins *builtin.Set
	// Sources are where policy and data come from. Default: files and folders.
	Sources source.Fetcher
	// MaxTime bounds the evaluation of one input by one source group. Default: none
	// but the context's.
	MaxTime time.Duration
	// Trace is told the steps of evaluations and what rules print, from as many
	// goroutines as evaluate. It makes evaluations much slower. Default: nobody is.
	Trace func(TraceLine)
}

// Policy is a policy ready to evaluate. It is immutable, and safe for concurrent
// use. Its zero value refuses.
type Policy struct {
	spec   *Spec
	opts   Options
	groups []*group
	pinned map[string]string // sources, by the address in the configuration
}

// filter is what a group's results are kept by.
type filter struct {
	include, exclude *criteria
	kind             FilterType
}

// group is one source group, compiled.
type group struct {
	inspected
	packs      map[string]*pack
	intentions []string
	filter     *filter
	compiler   *ast.Compiler
	store      storage.Store
	builtins   *builtin.Set
	values     cache.InterQueryValueCache
	trace      func(TraceLine)

	prepared sync.Map // names of packages → func() (*rego.PreparedEvalQuery, error)
}

// Load reads and compiles a policy. It fails with ErrNoSources where there is
// nothing to check, on sources that cannot be read, without rules or with two of
// one code, on Rego that does not compile (v1, none of builtin.Denied), and on
// data that gives one key two values.
func Load(ctx context.Context, spec *Spec, o Options) (*Policy, error) {
	if len(spec.Sources) == 0 {
		return nil, ErrNoSources
	}
	if o.When.IsZero() || o.Builtins == nil {
		return nil, errors.New("loading the policy: effective time and built-in functions are required")
	}
	switch o.Filter {
	case "":
		o.Filter = IncludeExclude
	case IncludeExclude, ECPolicy:
	default:
		return nil, fmt.Errorf("loading the policy: filter type %q is not known; accepted are %s and %s", o.Filter, IncludeExclude, ECPolicy)
	}
	if o.Sources == nil {
		o.Sources = source.Local{}
	}
	r := &sources{from: source.Once(o.Sources), pinned: map[string]string{}}
	p := &Policy{spec: spec, opts: o, pinned: r.pinned}
	for i := range spec.Sources {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		g, err := loadGroup(ctx, r, spec, &spec.Sources[i], o)
		if err != nil {
			return nil, err
		}
		p.groups = append(p.groups, g)
	}
	return p, nil
}

// Pinned is the configuration with each source's address as it was read.
func (p *Policy) Pinned() *Spec {
	out := *p.spec
	out.Sources = nil
	at := func(address string) string { return p.pinned[address] }
	for _, src := range p.spec.Sources {
		src.Policy, src.Data = mapped(src.Policy, at), mapped(src.Data, at)
		out.Sources = append(out.Sources, src)
	}
	return &out
}

func loadGroup(ctx context.Context, r *sources, spec *Spec, src *Source, o Options) (*group, error) {
	var modules []*ast.Module
	named := map[string]*ast.Module{}
	caps := builtin.Capabilities()
	if len(src.Policy) == 0 {
		return nil, fmt.Errorf("source group %q names no policy, so nothing would be checked", src.Name)
	}
	for i, s := range src.Policy {
		files, err := r.read(ctx, s, source.IsRego)
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, errNoRego
		}
		for _, f := range files {
			m, err := ast.ParseModuleWithOpts(f.Path, string(f.Bytes), ast.ParserOptions{ProcessAnnotation: true, RegoVersion: ast.RegoV1, Capabilities: caps})
			if err != nil {
				return nil, err
			}
			if m == nil {
				continue // nothing but comments
			}
			modules = append(modules, m)
			named[strconv.Itoa(i)+"/"+f.Path] = m
		}
	}
	in, err := inspect(modules)
	if err != nil {
		return nil, err
	}
	g := &group{inspected: *in, intentions: intentionsOf(src), builtins: o.Builtins, values: builtin.Values(), trace: o.Trace}
	if g.packs, err = packs(modules); err != nil {
		return nil, err
	}
	g.filter = &filter{kind: o.Filter}
	g.filter.include, g.filter.exclude = criteriaOf(spec, src, o.When)
	g.compiler = ast.NewCompiler().WithCapabilities(caps).WithEnablePrintStatements(o.Trace != nil)
	if g.compiler.Compile(named); g.compiler.Failed() {
		return nil, fmt.Errorf("policy compilation error: %w", g.compiler.Errors)
	}
	data, err := readData(ctx, r, src, o)
	if err != nil {
		return nil, err
	}
	v, err := ast.InterfaceToValue(data)
	if err != nil {
		return nil, fmt.Errorf("reading data: %w", err)
	}
	obj, ok := v.(ast.Object)
	if !ok {
		return nil, errors.New("reading data: it is not an object")
	}
	g.store = inmem.NewFromASTObject(obj)
	return g, nil
}

// readData is the data document of a group.
func readData(ctx context.Context, r *sources, src *Source, o Options) (map[string]any, error) {
	s := o.Sigstore
	tree := map[string]any{"config": map[string]any{
		"policy": map[string]any{"when_ns": json.Number(strconv.FormatInt(o.When.UnixNano(), 10))},
		"default_sigstore_opts": map[string]any{
			"certificate_identity":           s.CertificateIdentity,
			"certificate_identity_regexp":    s.CertificateIdentityRegexp,
			"certificate_oidc_issuer":        s.CertificateOIDCIssuer,
			"certificate_oidc_issuer_regexp": s.CertificateOIDCIssuerRegexp,
			"ignore_rekor":                   s.IgnoreRekor,
			"public_key":                     s.PublicKey,
			"rekor_url":                      s.RekorURL,
		},
	}}
	for _, d := range src.Data {
		files, err := r.read(ctx, d, source.IsData)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			m, err := parseData(f)
			if err != nil {
				return nil, err
			}
			if err := merge(tree, m, ""); err != nil {
				return nil, fmt.Errorf("load: filesystem error during loading data documents: %s: %w", f.Path, err)
			}
		}
	}
	if len(src.RuleData) > 0 {
		m, err := parseData(source.Content{Path: "rule_data.json", Bytes: slices.Concat([]byte(`{"rule_data__configuration__":`), src.RuleData, []byte("}"))})
		if err != nil {
			return nil, err
		}
		if err := merge(tree, m, ""); err != nil {
			return nil, fmt.Errorf("load: rule data: %w", err)
		}
	}
	return tree, nil
}

// query is the prepared query over packages, which yields
//
//	{"<package>": {"<rule>": [value], "exception": [name, …]}}
//
// where a rule that is undefined gives an empty array. It is compiled once for
// each set of packages.
func (g *group) query(ctx context.Context, names []string) (*rego.PreparedEvalQuery, error) {
	once, _ := g.prepared.LoadOrStore(strings.Join(names, " "), sync.OnceValues(func() (*rego.PreparedEvalQuery, error) {
		return g.prepare(context.WithoutCancel(ctx), names)
	}))
	return once.(func() (*rego.PreparedEvalQuery, error))()
}

func (g *group) prepare(ctx context.Context, names []string) (*rego.PreparedEvalQuery, error) {
	var q strings.Builder
	q.WriteString("result = {")
	for i, name := range names {
		p := g.packs[name]
		if i > 0 {
			q.WriteString(", ")
		}
		fmt.Fprintf(&q, "%q: {", name)
		if p.exceptions {
			fmt.Fprintf(&q, "%q: [v | v := %s.exception[_][_]], ", "exception", p.ref)
		}
		for _, r := range p.rules {
			fmt.Fprintf(&q, "%q: [v | v := %s.%s], ", r, p.ref, r)
		}
		q.WriteString(`"": []}`)
	}
	q.WriteString("}")
	opts := append(g.builtins.Rego(),
		rego.Query(q.String()),
		rego.Compiler(g.compiler),
		rego.Store(g.store),
		rego.SetRegoVersion(ast.RegoV1),
		rego.InterQueryBuiltinValueCache(g.values),
	)
	prepared, err := rego.New(opts...).PrepareForEval(ctx)
	if err != nil {
		return nil, fmt.Errorf("preparing rules: %w", err)
	}
	return &prepared, nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
