package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/topdown"

	"assay.dev/assay/policy/builtin"
)

// prepared is one query for a set of packages, compiled once. It is a line for each
// rule,
//
//	r0 = [v | v = data.<package>.<rule>]
//
// so that what rules share is computed once for all of them, and a rule that is
// undefined gives an empty array. What it came to stays in OPA's own form: most
// rules have nothing to say.
type prepared struct {
	body     ast.Body
	compiler ast.QueryCompiler
	lines    []line
}

// line is one rule of a query.
type line struct {
	v    ast.Var
	pack *pack
	rule string
}

// query prepares the packages' query, once for each set of them.
func (g *group) query(selected []*pack) (*prepared, error) {
	var names []string
	for _, p := range selected {
		names = append(names, p.name())
	}
	once, _ := g.prepared.LoadOrStore(strings.Join(names, " "), sync.OnceValues(func() (*prepared, error) {
		return g.prepare(selected)
	}))
	return once.(func() (*prepared, error))()
}

func (g *group) prepare(selected []*pack) (*prepared, error) {
	q := &prepared{compiler: g.compiler.QueryCompiler()}
	var body ast.Body
	for _, k := range selected {
		names := sortedKeys(k.rules)
		if k.exceptions {
			names = append(names, exceptionRule)
		}
		for _, name := range names {
			l := line{v: ast.Var(fmt.Sprintf("r%d", len(q.lines))), pack: k, rule: name}
			ref := ast.Ref{ast.DefaultRootDocument}
			for _, s := range append(slices.Clone(k.path), name) {
				ref = append(ref, ast.StringTerm(s))
			}
			v := ast.VarTerm("v" + string(l.v[1:]))
			all := ast.ArrayComprehensionTerm(v, ast.NewBody(ast.Equality.Expr(v, ast.NewTerm(ref))))
			body.Append(ast.Equality.Expr(ast.NewTerm(l.v), all))
			q.lines = append(q.lines, l)
		}
	}
	var err error
	if q.body, err = q.compiler.Compile(body); err != nil {
		return nil, fmt.Errorf("preparing rules: %w", err)
	}
	return q, nil
}

const exceptionRule = "exception"

// session is one evaluation: of one image, whatever its runs, by all sources.
type session struct {
	when     time.Time
	recorder *builtin.Recorder
	cancel   topdown.Cancel
	tracer   topdown.QueryTracer // nil: none
	progress progress
	// functions take the place of the source's; nil: none do.
	functions map[string]*topdown.Builtin
}

// run evaluates a query. It returns what each line came to, and the errors of
// functions that the policy makes nothing of.
func (g *group) run(ctx context.Context, s *session, q *prepared, store storage.Store, doc *ast.Term) (map[ast.Var]*ast.Array, []said, error) {
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("running rules: %w", err)
	}
	defer store.Abort(ctx, txn)
	var failed []topdown.Error
	functions := g.functions
	if s.functions != nil {
		functions = s.functions
	}
	query := topdown.NewQuery(q.body).
		WithQueryCompiler(q.compiler).
		WithCompiler(g.compiler).
		WithStore(store).
		WithTransaction(txn).
		WithBuiltins(functions).
		WithInterQueryBuiltinValueCache(g.values).
		WithInput(doc).
		WithTime(s.when).
		WithCancel(s.cancel).
		WithVirtualCache(s.progress.cache()).
		WithBuiltinErrorList(&failed)
	if s.tracer != nil {
		query = query.WithQueryTracer(s.tracer)
	}
	var out map[ast.Var]*ast.Array
	err = query.Iter(ctx, func(r topdown.QueryResult) error {
		out = make(map[ast.Var]*ast.Array, len(q.lines))
		for _, l := range q.lines {
			t := r[l.v]
			if t == nil {
				return fmt.Errorf("no answer of %s.%s", l.pack.name(), l.rule)
			}
			a, ok := t.Value.(*ast.Array)
			if !ok {
				return fmt.Errorf("no answer of %s.%s", l.pack.name(), l.rule)
			}
			out[l.v] = a
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("running rules: %w", err)
	}
	if out == nil {
		return nil, nil, errors.New("running rules: the query has no answer")
	}
	notes, err := g.builtinErrors(failed)
	if err != nil {
		return nil, nil, fmt.Errorf("running rules: %w", err)
	}
	return out, notes, nil
}

// maxNotes is how many errors of functions a verdict tells.
const maxNotes = 20

// builtinErrors sorts the errors of OPA's functions: those that the policy lists are
// notes, and any other says that a rule did not run to its end.
func (g *group) builtinErrors(failed []topdown.Error) ([]said, error) {
	var out []said
	for i := range failed {
		name, _, _ := strings.Cut(failed[i].Message, ":")
		if !slices.Contains(g.tolerated, name) {
			return nil, fmt.Errorf("%w; a policy that counts on %s being undefined then, as in Conforma, lists it in assay.builtinErrors", &failed[i], name)
		}
		n := said{kind: note, Result: Result{Msg: "A rule went on without an answer: " + failed[i].Error()}}
		if len(out) < maxNotes && !slices.ContainsFunc(out, func(o said) bool { return o.Msg == n.Msg }) {
			out = append(out, n)
		}
	}
	return out, nil
}

// store is the data document at a time. The source's own data is shared.
func (g *group) store(p *Policy, when time.Time) (storage.Store, error) {
	id := p.spec.Identity
	opts := map[string]any{
		"certificate_identity":           "",
		"certificate_identity_regexp":    "",
		"certificate_oidc_issuer":        "",
		"certificate_oidc_issuer_regexp": "",
		"ignore_rekor":                   false,
		"public_key":                     p.publicKey,
		"rekor_url":                      p.spec.RekorURL,
	}
	if id != nil && p.publicKey == "" {
		opts["certificate_identity"], opts["certificate_identity_regexp"] = id.Subject, id.SubjectRegExp
		opts["certificate_oidc_issuer"], opts["certificate_oidc_issuer_regexp"] = id.Issuer, id.IssuerRegExp
	}
	config := map[string]any{
		"policy":                map[string]any{"when_ns": json.Number(fmt.Sprint(when.UnixNano()))},
		"default_sigstore_opts": opts,
	}
	for k, v := range g.config {
		config[k] = v
	}
	value, err := ast.InterfaceToValue(config)
	if err != nil {
		return nil, fmt.Errorf("reading data.config: %w", err)
	}
	obj := ast.NewObject([2]*ast.Term{ast.StringTerm("config"), ast.NewTerm(value)})
	for _, k := range sortedKeys(g.data) {
		obj.Insert(ast.StringTerm(k), ast.NewTerm(g.data[k]))
	}
	return inmem.NewFromASTObject(obj), nil
}

// said is one result as a rule gave it.
type said struct {
	Result
	kind kind
	pack *pack
}

// collect reads what the lines of a query came to.
func collect(q *prepared, answer map[ast.Var]*ast.Array) ([]said, error) {
	skipped := map[*pack][]string{}
	for _, l := range q.lines {
		if l.rule != exceptionRule {
			continue
		}
		names, err := exceptions(l.pack, answer[l.v])
		if err != nil {
			return nil, err
		}
		skipped[l.pack] = names
	}
	var out []said
	for _, l := range q.lines {
		if l.rule == exceptionRule {
			continue
		}
		results, err := decode(l.pack.name()+"."+l.rule, answer[l.v])
		if err != nil {
			return nil, err
		}
		if slices.Contains(skipped[l.pack], suffix(l.rule)) {
			out = append(out, said{kind: note, pack: l.pack, Result: Result{Msg: fmt.Sprintf("Rule %s of package %s was skipped by an exception in the policy", l.rule, l.pack.name())}})
			continue
		}
		for _, r := range results {
			out = append(out, said{kind: l.pack.rules[l.rule], pack: l.pack, Result: r})
		}
	}
	return out, nil
}

// suffix is what conftest's exceptions call a rule: deny_x is x.
func suffix(name string) string {
	_, s, _ := strings.Cut(name, "_")
	return s
}

// exceptions are the names in a package's exception sets.
func exceptions(p *pack, sets *ast.Array) ([]string, error) {
	var out []string
	for i := range sets.Len() {
		v, err := ast.JSON(sets.Elem(i).Value)
		if err != nil {
			return nil, fmt.Errorf("reading exceptions of package %s: %w", p.name(), err)
		}
		list, ok := v.([]any)
		if !ok {
			return nil, fmt.Errorf("reading exceptions of package %s: not a set", p.name())
		}
		for _, names := range list {
			inner, ok := names.([]any)
			if !ok {
				return nil, fmt.Errorf("reading exceptions of package %s: not a set of lists", p.name())
			}
			for _, n := range inner {
				s, ok := n.(string)
				if !ok {
					return nil, fmt.Errorf("reading exceptions of package %s: not a name", p.name())
				}
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// decode reads the value of one rule. A rule that is true, or an object, is a
// policy author's slip, and upstream reads it as a pass.
func decode(name string, values *ast.Array) ([]Result, error) {
	var out []Result
	for i := range values.Len() {
		v := values.Elem(i).Value
		if s, ok := v.(ast.Set); ok && s.Len() == 0 {
			continue
		}
		value, err := ast.JSON(v)
		if err != nil {
			return nil, fmt.Errorf("reading results of %s: %w", name, err)
		}
		list, ok := value.([]any)
		if !ok {
			return nil, fmt.Errorf("reading results of %s: not a set; write %q", name, "deny contains result if { … }")
		}
		for _, item := range list {
			switch item := item.(type) {
			case string:
				out = append(out, Result{Msg: item})
			case map[string]any:
				msg, ok := item["msg"].(string)
				if !ok {
					return nil, fmt.Errorf("reading results of %s: an object without a string msg", name)
				}
				r, err := newResult(msg, item)
				if err != nil {
					return nil, fmt.Errorf("reading results of %s: %w", name, err)
				}
				out = append(out, r)
			default:
				return nil, fmt.Errorf("reading results of %s: neither a string nor an object with msg", name)
			}
		}
	}
	return out, nil
}
