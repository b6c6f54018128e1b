package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"assay.dev/assay/policy/builtin"
)

// Bounds of an explanation: what a person reads.
const (
	maxSteps = 400
	maxReads = 200
	maxDepth = 6
	maxText  = 300
	maxValue = 2000
)

// find is the rule with a code, and its group.
func (p *Policy) find(code string) (*group, *rule, error) {
	code, _, _ = strings.Cut(code, ":") // a term, as filters have it
	_, short, _ := strings.Cut(code, ".")
	var near []string
	for _, g := range p.groups {
		if r := g.rules[code]; r != nil {
			return g, r, nil
		}
		for _, c := range sortedKeys(g.rules) {
			if short == "" && strings.HasSuffix(c, "."+code) || short != "" && strings.HasSuffix(c, "."+short) || strings.HasPrefix(c, code+".") {
				near = append(near, c)
			}
		}
	}
	if len(near) > 0 {
		return nil, nil, fmt.Errorf("no rule has the code %s; there are %s", code, strings.Join(near[:min(len(near), 10)], ", "))
	}
	return nil, nil, fmt.Errorf("no rule of the policy has the code %s", code)
}

func (p *Policy) explain(ctx context.Context, e evidence, c Context, code string) (*Explanation, error) {
	if len(p.groups) == 0 {
		return nil, errors.New("explaining a rule: the policy was not loaded")
	}
	g, r, err := p.find(code)
	if err != nil {
		return nil, fmt.Errorf("explaining a rule: %w", err)
	}
	if _, err := c.times(); err != nil {
		return nil, fmt.Errorf("explaining %s: %w", code, err)
	}
	// Which run counts is for all rules together to say.
	v, err := p.evaluate(ctx, e, c)
	if err != nil {
		return nil, fmt.Errorf("explaining %s: %w", code, err)
	}
	x, err := p.trace(ctx, e, c, g, r, v.Run)
	if err != nil {
		return nil, fmt.Errorf("explaining %s: %w", code, err)
	}
	return x, nil
}

// trace evaluates the package of a rule, with a tracer that looks at the rule.
func (p *Policy) trace(ctx context.Context, e evidence, c Context, g *group, r *rule, id string) (*Explanation, error) {
	when, err := c.times()
	if err != nil {
		return nil, err
	}
	facts, err := newInput(e, &c, p.document, p.signers)
	if err != nil {
		return nil, err
	}
	facts.target.when = when
	docs, err := facts.documents()
	if err != nil {
		return nil, err
	}
	i := max(slices.IndexFunc(facts.doc.Assay.Runs, func(one run) bool { return one.ID == id }), 0)
	doc := docs[i]
	store, err := g.store(p, when)
	if err != nil {
		return nil, err
	}
	k := g.packs[r.pkg]
	q, err := g.query([]*pack{k})
	if err != nil {
		return nil, err
	}
	where := func(err error) error { return err }
	return bounded(ctx, p.meter, p.limits, where, func(ctx context.Context, cancel topdown.Cancel) (*Explanation, error) {
		s := p.session(facts, cancel)
		if c.Builtins != nil {
			s.functions = c.Builtins.Topdown()
		}
		t := &tracer{file: r.file, line: r.line, input: doc.Value, data: g.data, inside: map[uint64]int{}, seen: map[string]bool{}}
		s.tracer = t
		answer, _, err := g.run(builtin.Record(ctx, s.recorder), s, q, store, doc)
		if err != nil {
			return nil, s.progress.blame(ctx, err)
		}
		raw, err := collect(q, answer)
		if err != nil {
			return nil, err
		}
		criteria := criteriaFor(&p.spec, g, facts.target)
		x := &Explanation{Rule: r.info(g, criteria, when), Text: r.source(), Run: id, Data: t.reads, Trace: t.steps, Truncated: t.truncated, Failures: s.recorder.Failures()}
		x.Results, err = fates(g, k, criteria, raw, r.code, facts.target)
		return x, err
	})
}

// fates are the results with a code, and what became of each.
func fates(g *group, k *pack, c criteria, raw []said, code string, t target) ([]Said, error) {
	o, err := categorize(g, []*pack{k}, c, raw, t.when)
	if err != nil {
		return nil, err
	}
	out := []Said{}
	add := func(rs []Result, outcome string) {
		for _, r := range rs {
			if r.Code == code && r.Msg != passed {
				out = append(out, Said{r, outcome})
			}
		}
	}
	add(o.violations, "violation")
	add(o.warnings, "warning")
	add(o.notes, "note")
	add(o.dropped, "hidden")
	for _, s := range raw {
		if s.Code != code {
			continue
		}
		r := s.Result
		annotate(&r, g.rules[code], t.when)
		if !c.includes(matchers(r.Code, r.Terms, r.Collections)) {
			out = append(out, Said{r, "excluded"})
		}
	}
	return out, nil
}

// source is the rule with its annotations, as written.
func (r *rule) source() string {
	var b bytes.Buffer
	for _, a := range r.text.Annotations {
		if a.Scope == "rule" || a.Scope == "document" {
			b.Write(bytes.TrimRight(a.Location.Text, "\n"))
			b.WriteByte('\n')
		}
	}
	b.Write(r.text.Location.Text)
	return b.String()
}

// tracer follows one rule and what it calls.
type tracer struct {
	file  string
	line  int
	input ast.Value
	data  map[string]ast.Value

	inside    map[uint64]int // queries, and how deep they are in the rule
	steps     []Step
	reads     []Read
	seen      map[string]bool
	truncated bool
}

var _ topdown.QueryTracer = (*tracer)(nil)

// Enabled implements topdown.QueryTracer.
func (t *tracer) Enabled() bool { return true }

// Config implements topdown.QueryTracer.
func (t *tracer) Config() topdown.TraceConfig { return topdown.TraceConfig{PlugLocalVars: true} }

// TraceEvent implements topdown.QueryTracer.
func (t *tracer) TraceEvent(e topdown.Event) {
	depth, ok := t.inside[e.QueryID]
	if !ok {
		parent, in := t.inside[e.ParentID]
		switch r, isRule := e.Node.(*ast.Rule); {
		case in:
			depth = parent + 1
		case isRule && e.Op == topdown.EnterOp && r.Location != nil && r.Location.File == t.file && r.Location.Row == t.line:
			depth = 0
		default:
			return
		}
		t.inside[e.QueryID] = depth
	}
	op := ""
	switch e.Op {
	case topdown.EnterOp:
		op = "enter"
	case topdown.ExitOp:
		op = "exit"
	case topdown.EvalOp:
		op = "eval"
	case topdown.FailOp:
		op = "fail"
	default:
		return
	}
	if x, ok := e.Node.(*ast.Expr); ok && (op == "eval" || op == "fail") {
		t.read(x, &e)
	}
	if _, ok := e.Node.(ast.Body); ok {
		return // comprehensions and their like: what they evaluate is there
	}
	if depth > maxDepth || len(t.steps) >= maxSteps {
		t.truncated = true
		return
	}
	s := Step{Depth: depth, Op: op, Text: textOf(e.Node, e.Location)}
	if s.Text == "" {
		return
	}
	if l := e.Location; l != nil {
		s.File, s.Line = l.File, l.Row
	}
	if n := len(t.steps); n > 0 && s.Op != "enter" {
		// The inside of "not" and its like is written as the outside.
		if p := t.steps[n-1]; p.Op == s.Op && p.Text == s.Text && p.Line == s.Line && p.Depth != s.Depth {
			return
		}
	}
	if op != "enter" {
		s.Values = values(e.Node, &e)
	}
	t.steps = append(t.steps, s)
}

// textOf is a rule's head or an expression as written; "" for what the compiler
// made.
func textOf(n ast.Node, l *ast.Location) string {
	var text string
	switch n := n.(type) {
	case *ast.Rule:
		text = n.Head.String()
		if n.Head.Location != nil && len(n.Head.Location.Text) > 0 {
			text = string(n.Head.Location.Text)
		}
	case *ast.Expr:
		if n.Generated || l == nil {
			return ""
		}
		text = string(l.Text)
	}
	return short(strings.Join(strings.Fields(text), " "), maxText)
}

// values are the variables of an expression that have one, by the names that they
// have in the text.
func values(n ast.Node, e *topdown.Event) map[string]string {
	x, ok := n.(*ast.Expr)
	if !ok || e.Locals == nil {
		return nil
	}
	var out map[string]string
	ast.WalkVars(x, func(v ast.Var) bool {
		m, known := e.LocalMetadata[v]
		value := e.Locals.Get(v)
		if known && value != nil && !strings.HasPrefix(string(m.Name), "__local") {
			if out == nil {
				out = map[string]string{}
			}
			out[string(m.Name)] = short(value.String(), maxText)
		}
		return false
	})
	return out
}

// read notes the values of input and data that an expression names.
func (t *tracer) read(x *ast.Expr, e *topdown.Event) {
	ast.WalkRefs(x, func(ref ast.Ref) bool {
		head, ok := ref[0].Value.(ast.Var)
		if !ok || head != "input" && head != "data" || len(ref) < 2 {
			return false
		}
		path := ast.Ref{ref[0]}
		for _, term := range ref[1:] {
			v := term.Value
			if name, ok := v.(ast.Var); ok {
				if e.Locals == nil {
					break
				}
				if v = e.Locals.Get(name); v == nil {
					break
				}
			}
			switch v.(type) {
			case ast.String, ast.Number, ast.Boolean:
				path = append(path, ast.NewTerm(v))
				continue
			}
			break
		}
		if len(path) > 1 {
			t.note(path)
		}
		return false
	})
}

func (t *tracer) note(path ast.Ref) {
	name := path.String()
	if t.seen[name] {
		return
	}
	t.seen[name] = true
	root := t.input
	rest := path[1:]
	if path[0].Value.Compare(ast.Var("data")) == 0 {
		key, ok := rest[0].Value.(ast.String)
		if !ok || t.data[string(key)] == nil {
			return // a rule, or the time
		}
		root, rest = t.data[string(key)], rest[1:]
	}
	if len(t.reads) >= maxReads {
		t.truncated = true
		return
	}
	r := Read{Path: name, Value: json.RawMessage("null")}
	if v, err := root.Find(rest); err == nil {
		r.Value = shortJSON(v)
	}
	t.reads = append(t.reads, r)
}

func shortJSON(v ast.Value) json.RawMessage {
	x, err := ast.JSON(v)
	if err != nil {
		return json.RawMessage("null")
	}
	raw, err := json.Marshal(x)
	if err == nil && len(raw) > maxValue {
		raw, err = json.Marshal(short(string(raw), maxValue))
	}
	if err != nil {
		return json.RawMessage("null")
	}
	return raw
}

// short cuts a text to n bytes, at a character.
func short(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}
