package conforma

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"

	"assay.dev/assay/policy/builtin"
)

// Document is an input file as parsed: one value, or, for a JSON array and for
// several YAML documents, each of them.
type Document struct {
	Name   string
	Values []ast.Value
}

// Target is what the input is about, for items that hold for some images only.
// Both are empty for inputs that are no images.
type Target struct {
	Image     string // repo@sha256:…
	Component string
	// When is the time that results are in force by. Default: Options.When.
	When time.Time
}

// Result is one line of a report.
type Result struct {
	Message  string         `json:"msg"`
	Metadata map[string]any `json:"metadata,omitempty"`

	failure bool // given by deny or violation
}

// Outcome is what one package came to for one document.
type Outcome struct {
	Document  string
	Namespace string
	Failures  []Result
	Warnings  []Result
	Successes []Result
}

// Evaluation is what all groups came to.
type Evaluation struct {
	Outcomes []Outcome
	// Nested are outcomes of packages of several segments that are included, and that
	// Conforma leaves out. See the package documentation.
	Nested []Outcome
	// Failures are calls of built-in functions that had no answer; Hosts the
	// registries that rules named.
	Failures []builtin.Failure
	Hosts    []string
}

// ErrNothing is the error where no rule of a group had anything to say.
var ErrNothing = errors.New("no successes, warnings, or failures, check input")

// errNoDocuments is Conforma's error too, for what it lets pass.
var errNoDocuments = fmt.Errorf("%w: the input has no documents", ErrNothing)

// Evaluate runs the policy over documents. It fails where a group has nothing to
// say, where a rule gives what is no result, and where rules contradict
// themselves; then there is no evaluation at all.
func (p *Policy) Evaluate(ctx context.Context, docs []Document, t Target) (*Evaluation, error) {
	if len(p.groups) == 0 {
		return nil, errors.New("evaluating policy: it was not loaded")
	}
	n := 0
	for _, d := range docs {
		n += len(d.Values)
		if len(d.Values) == 0 {
			return nil, errNoDocuments
		}
	}
	if n == 0 {
		return nil, errNoDocuments
	}
	if t.When.IsZero() {
		t.When = p.opts.When
	}
	rec := new(builtin.Recorder)
	ctx = builtin.Record(ctx, rec)
	all := new(Evaluation)
	for _, g := range p.groups {
		if err := p.evaluateGroup(ctx, g, docs, t, all); err != nil {
			return nil, err
		}
	}
	all.Failures, all.Hosts = rec.Failures(), rec.Hosts()
	return all, nil
}

func (p *Policy) evaluateGroup(ctx context.Context, g *group, docs []Document, t Target, all *Evaluation) error {
	if p.opts.MaxTime > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, p.opts.MaxTime, fmt.Errorf("the rules did not end within %s", p.opts.MaxTime))
		defer cancel()
	}
	c := g.choose(g.filter, g.all, t.Image)
	var chosen, nested []string
	for _, name := range sortedKeys(g.packs) {
		switch {
		case len(c.packages) == 0 || c.packages[name]:
			chosen = append(chosen, name)
		case c.nested[name]:
			nested = append(nested, name)
		}
	}
	outcomes, err := g.run(ctx, chosen, docs)
	if err != nil {
		return err
	}
	f := &finder{group: g, target: t, choice: c, missing: g.includeItems()}
	total := 0
	for i := range outcomes {
		f.finish(&outcomes[i])
		total += len(outcomes[i].Failures) + len(outcomes[i].Warnings) + len(outcomes[i].Successes)
	}
	if total == 0 {
		return ErrNothing
	}
	for _, item := range sortedKeys(f.missing) {
		outcomes = append(outcomes, Outcome{Warnings: []Result{{Message: fmt.Sprintf("Include criterion '%s' doesn't match any policy rule", item)}}})
	}
	trim(outcomes)
	all.Outcomes = append(all.Outcomes, outcomes...)
	if len(nested) == 0 {
		return nil
	}
	outcomes, err = g.run(ctx, nested, docs)
	if err != nil {
		return err
	}
	for i := range outcomes {
		(&finder{group: g, target: t, choice: c, missing: map[string]bool{}}).finish(&outcomes[i])
	}
	trim(outcomes)
	all.Nested = append(all.Nested, outcomes...)
	return nil
}

// includeItems are the items that a report says of when they match nothing.
func (g *group) includeItems() map[string]bool {
	out := map[string]bool{}
	for _, item := range g.filter.include.all {
		out[item] = true
	}
	for _, items := range g.filter.include.image {
		for _, item := range items {
			out[item] = true
		}
	}
	return out
}

// run evaluates packages over documents and returns what rules gave, by document
// and package.
func (g *group) run(ctx context.Context, names []string, docs []Document) ([]Outcome, error) {
	q, err := g.query(ctx, names)
	if err != nil {
		return nil, err
	}
	var out []Outcome
	for _, d := range docs {
		byPackage := make([]Outcome, len(names))
		for i, name := range names {
			byPackage[i] = Outcome{Document: d.Name, Namespace: name}
		}
		for _, v := range d.Values {
			answer, err := eval(ctx, q, v, g.trace)
			if err != nil {
				return nil, err
			}
			for i, name := range names {
				values, _ := answer[name].(map[string]any)
				if err := g.packs[name].collect(&byPackage[i], values); err != nil {
					return nil, err
				}
			}
		}
		out = append(out, byPackage...)
	}
	return out, nil
}

func eval(ctx context.Context, q *rego.PreparedEvalQuery, input ast.Value, trace func(TraceLine)) (map[string]any, error) {
	rs, err := q.Eval(ctx, append(tracing(trace), rego.EvalParsedInput(input))...)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("running rules: %w", context.Cause(ctx))
		}
		return nil, fmt.Errorf("running rules: %w", err)
	}
	if len(rs) != 1 {
		return nil, errors.New("running rules: the query has no answer")
	}
	answer, ok := rs[0].Bindings["result"].(map[string]any)
	if !ok {
		return nil, errors.New("running rules: the query has no answer")
	}
	return answer, nil
}

// collect takes the results of a package's rules, but for those that an
// exception names.
func (p *pack) collect(o *Outcome, values map[string]any) error {
	excepted, _ := values["exception"].([]any)
	for _, name := range p.rules {
		if slices.Contains(excepted, any(suffix(name))) {
			continue
		}
		list, _ := values[name].([]any)
		for _, v := range list {
			// What is no list, such as true, says nothing.
			items, _ := v.([]any)
			for _, item := range items {
				r, err := result(item)
				if err != nil {
					return fmt.Errorf("reading results of %s.%s: %w", p.name, name, err)
				}
				if r.Message == "" {
					continue
				}
				if r.failure = denyName.MatchString(name); r.failure {
					o.Failures = append(o.Failures, r)
				} else {
					o.Warnings = append(o.Warnings, r)
				}
			}
		}
	}
	return nil
}

// suffix is what exceptions call a rule: deny_x is x, and deny is "".
func suffix(name string) string {
	_, s, _ := strings.Cut(name, "_")
	return s
}

func result(item any) (Result, error) {
	switch v := item.(type) {
	case string:
		return Result{Message: v, Metadata: map[string]any{}}, nil
	case map[string]any:
		msg, ok := v["msg"].(string)
		if !ok {
			return Result{}, errors.New(`new result: "msg" field must be present and a string`)
		}
		m := make(map[string]any, len(v))
		for k, x := range v {
			if k != "msg" {
				m[k] = x
			}
		}
		return Result{Message: msg, Metadata: m}, nil
	}
	return Result{}, fmt.Errorf("new result: %T is neither a string nor an object with a msg", item)
}
