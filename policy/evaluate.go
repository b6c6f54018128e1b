package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage/inmem"

	"assay.dev/assay/verify"
)

// DefaultValidity is how long a verdict holds where the caller says nothing.
const DefaultValidity = 24 * time.Hour

// Context is what a judgement is made in. The zero value judges as of now.
type Context struct {
	// Now is the time of the judgement; zero: the clock's.
	Now time.Time
	// EffectiveTime is the time rules and trusted tasks are taken as of; zero:
	// Now. One in the past switches off rules that came since, so it is refused
	// unless AllowPast is set.
	EffectiveTime time.Time
	AllowPast     bool
	// Component is the image's name in the snapshot; empty: the last element of
	// its repository. Parent is the name of the index it was expanded from.
	Component string
	Parent    string
	// Snapshot is shown to rules; nil: one of this component alone.
	Snapshot *Snapshot
	// ImageConfig is the config object (Labels, Env, …) of the image's
	// configuration blob, as JSON; empty: unknown to rules.
	ImageConfig json.RawMessage
	// Logs and Witnesses are the names of the transparency logs and witnesses that
	// the verifier trusts; with none, rules that ask for log entries do not.
	Logs      []string
	Witnesses []string
	// Digests is the closure that the verdict is about; empty: the image alone.
	Digests []string
	// Destination is where the image is to be released to, if anywhere.
	Destination string
	// Validity bounds the verdict's expiry; zero: DefaultValidity.
	Validity time.Duration
}

// Evaluate judges verified evidence. It returns a verdict, pass or fail, only if
// every selected rule of every source ran; an error means that the image could
// not be checked, and no part of the policy's opinion is to be inferred.
func (p *Policy) Evaluate(ctx context.Context, e *verify.Evidence, c Context) (*Verdict, error) {
	if e == nil {
		return nil, errors.New("evaluating policy: no evidence; verify the image first")
	}
	return p.evaluate(ctx, e, c)
}

func (p *Policy) evaluate(ctx context.Context, e evidence, c Context) (*Verdict, error) {
	if len(p.groups) == 0 {
		return nil, errors.New("evaluating policy: it was not loaded")
	}
	when, err := c.times()
	if err != nil {
		return nil, fmt.Errorf("evaluating policy: %w", err)
	}
	facts, err := newInput(e, &c, p.document, p.key)
	if err != nil {
		return nil, fmt.Errorf("evaluating policy: %w", err)
	}
	facts.target.when = when
	v := &Verdict{
		Image:         e.Ref(),
		Component:     facts.doc.ComponentName,
		Policy:        Identified{Name: p.Name(), Digest: p.digest},
		EffectiveTime: when.UTC(),
		Destination:   c.Destination,
		Digests:       slices.Clone(c.Digests),
	}
	if len(v.Digests) == 0 {
		v.Digests = []string{e.Digest()}
	} else if !slices.Contains(v.Digests, e.Digest()) {
		return nil, fmt.Errorf("evaluating policy: the closure of %s does not contain it", e.Ref())
	}
	best, err := p.judgeRuns(ctx, facts, v)
	if err != nil {
		return nil, fmt.Errorf("evaluating policy for %s: %w", e.Ref(), err)
	}
	v.take(best)
	v.Expiry = p.expiry(&c, when, v)
	// Last, and from nothing but the violations that are reported.
	v.Result = Pass
	if len(v.Violations) > 0 {
		v.Result = Fail
	}
	return v, nil
}

// times settles Now, and returns the effective time.
func (c *Context) times() (time.Time, error) {
	if c.Now.IsZero() {
		c.Now = time.Now()
	}
	when := c.EffectiveTime
	if when.IsZero() {
		return c.Now, nil
	}
	if when.Before(c.Now) && !c.AllowPast {
		return when, fmt.Errorf("effective time %s is in the past, which switches off newer rules; allow a past effective time if that is meant", when.Format(time.RFC3339))
	}
	return when, nil
}

// judgeRuns evaluates once for each run and returns the outcome that counts:
// the first that passes, or the one with the fewest violations.
func (p *Policy) judgeRuns(ctx context.Context, f *facts, v *Verdict) (*outcome, error) {
	runs := f.doc.Assay.Runs
	if len(runs) == 0 {
		doc, err := f.document(-1)
		if err != nil {
			return nil, err
		}
		return p.judge(ctx, []ast.Value{doc}, f.target)
	}
	var best *outcome
	for i := range runs {
		doc, err := f.document(i)
		if err != nil {
			return nil, err
		}
		o, err := p.judge(ctx, []ast.Value{doc}, f.target)
		if err != nil {
			return nil, err
		}
		one := RunVerdict{ID: runs[i].ID, Result: Pass}
		for _, r := range o.violations {
			one.Result = Fail
			if !slices.Contains(one.Codes, r.Code) {
				one.Codes = append(one.Codes, r.Code)
			}
		}
		v.Runs = append(v.Runs, one)
		if best == nil || len(o.violations) < len(best.violations) {
			best, v.Run = o, runs[i].ID
		}
	}
	return best, nil
}

// judge evaluates every source over the documents (one, but for the tests that
// replay Conforma's input cases) and adds up.
func (p *Policy) judge(ctx context.Context, docs []ast.Value, t target) (*outcome, error) {
	all := &outcome{}
	evaluated := 0
	for i, g := range p.groups {
		o, err := p.judgeGroup(ctx, g, docs, t)
		if err != nil {
			return nil, fmt.Errorf("source %d: %w", i+1, err)
		}
		if o.empty() {
			all.violations = append(all.violations, Result{
				Code:        "builtin.policy.source_evaluated",
				Msg:         fmt.Sprintf("No rule of source %d (%s) was evaluated for this image", i+1, strings.Join(g.source.Policy, ", ")),
				Title:       "Every source of the policy was evaluated",
				Description: "A source whose configuration leaves no rule checks nothing.",
				Solution:    "Include at least one rule of the source, or remove the source from the policy.",
			})
		} else {
			evaluated++
		}
		all.add(o)
	}
	if evaluated == 0 {
		return nil, errors.New("no rule was evaluated; check the include and exclude items of the policy configuration")
	}
	all.sort()
	return all, nil
}

func (p *Policy) judgeGroup(ctx context.Context, g *group, docs []ast.Value, t target) (*outcome, error) {
	c := criteriaFor(&p.spec, g.source, t)
	var selected []*pack
	for _, name := range sortedKeys(g.packs) {
		if g.packs[name].hasDecision() && c.runs(g.packs[name], g.rules) {
			selected = append(selected, g.packs[name])
		}
	}
	if len(selected) == 0 {
		return categorize(g, nil, c, nil, t.when)
	}
	prepared, err := p.prepare(ctx, g, selected, t.when)
	if err != nil {
		return nil, err
	}
	var raw []said
	for _, doc := range docs {
		more, err := runRules(ctx, prepared, selected, doc, t.when)
		if err != nil {
			return nil, err
		}
		raw = append(raw, more...)
	}
	return categorize(g, selected, c, raw, t.when)
}

func (p *pack) hasDecision() bool { return len(p.rules) > 0 }

// prepare compiles one query for all selected packages, so that what rules
// share is computed once. It yields
//
//	{"<package>": {"<rule>": [value]}}
//
// where a rule that is undefined gives an empty array.
func (p *Policy) prepare(ctx context.Context, g *group, selected []*pack, when time.Time) (*rego.PreparedEvalQuery, error) {
	var q strings.Builder
	q.WriteString("result = {")
	for i, k := range selected {
		if i > 0 {
			q.WriteString(", ")
		}
		fmt.Fprintf(&q, "%q: {", k.name())
		ref := "data"
		for _, s := range k.path {
			ref += fmt.Sprintf("[%q]", s)
		}
		names := sortedKeys(k.rules)
		if k.exceptions {
			names = append(names, "exception")
		}
		for j, name := range names {
			if j > 0 {
				q.WriteString(", ")
			}
			fmt.Fprintf(&q, "%q: [v | v := %s[%q]]", name, ref, name)
		}
		q.WriteString("}")
	}
	q.WriteString("}")
	data, err := g.dataAt(when, p.spec.PublicKey)
	if err != nil {
		return nil, err
	}
	prepared, err := rego.New(
		rego.Query(q.String()),
		rego.Compiler(g.compiler),
		rego.Store(inmem.NewFromASTObject(data)),
		rego.SetRegoVersion(ast.RegoV1),
		rego.StrictBuiltinErrors(true),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, fmt.Errorf("preparing rules: %w", err)
	}
	return &prepared, nil
}

// dataAt is the data document at a time. The source's own data is shared.
func (g *group) dataAt(when time.Time, publicKey string) (ast.Object, error) {
	config := map[string]any{
		"policy": map[string]any{"when_ns": json.Number(fmt.Sprint(when.UnixNano()))},
		"default_sigstore_opts": map[string]any{
			"certificate_identity":           "",
			"certificate_identity_regexp":    "",
			"certificate_oidc_issuer":        "",
			"certificate_oidc_issuer_regexp": "",
			"ignore_rekor":                   false,
			"public_key":                     publicKey,
			"rekor_url":                      "",
		},
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
	return obj, nil
}

// said is one result as a rule gave it.
type said struct {
	Result
	kind kind
	pack *pack
}

func runRules(ctx context.Context, q *rego.PreparedEvalQuery, selected []*pack, doc ast.Value, when time.Time) ([]said, error) {
	rs, err := q.Eval(ctx, rego.EvalParsedInput(doc), rego.EvalTime(when))
	if err != nil {
		return nil, fmt.Errorf("running rules: %w", err)
	}
	if len(rs) != 1 {
		return nil, errors.New("running rules: the query has no answer")
	}
	answer, ok := rs[0].Bindings["result"].(map[string]any)
	if !ok {
		return nil, errors.New("running rules: the query has no answer")
	}
	var out []said
	for _, p := range selected {
		values, ok := answer[p.name()].(map[string]any)
		if !ok {
			return nil, fmt.Errorf("running rules: no answer of package %s", p.name())
		}
		skipped, err := exceptions(p, values["exception"])
		if err != nil {
			return nil, err
		}
		for _, name := range sortedKeys(p.rules) {
			results, err := decode(p.name()+"."+name, values[name])
			if err != nil {
				return nil, err
			}
			if slices.Contains(skipped, suffix(name)) {
				out = append(out, said{kind: note, pack: p, Result: Result{Msg: fmt.Sprintf("Rule %s of package %s was skipped by an exception in the policy", name, p.name())}})
				continue
			}
			for _, r := range results {
				out = append(out, said{kind: p.rules[name], pack: p, Result: r})
			}
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
func exceptions(p *pack, v any) ([]string, error) {
	if !p.exceptions {
		return nil, nil
	}
	var out []string
	outer, _ := v.([]any)
	for _, sets := range outer {
		list, ok := sets.([]any)
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
func decode(name string, v any) ([]Result, error) {
	values, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("running rules: no answer of %s", name)
	}
	var out []Result
	for _, value := range values {
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
