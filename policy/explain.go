package policy

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/verify"
)

// RuleInfo is one rule of a policy: what its annotations say, and what becomes of
// it at a time.
type RuleInfo struct {
	// Code is what results and filters call it; empty for a rule without a
	// short_name, whose results have the codes that they give themselves.
	Code        string   `json:"code,omitempty"`
	Title       string   `json:"title,omitempty"`
	Description string   `json:"description,omitempty"`
	Solution    string   `json:"solution,omitempty"`
	Collections []string `json:"collections,omitempty"`
	DependsOn   []string `json:"dependsOn,omitempty"`
	Question    Question `json:"question,omitempty"`
	// Kind is deny, warn or note.
	Kind string `json:"kind"`
	// Source is the number of the source in the policy, from 1; Package the Rego
	// package and Rule the rule's name in it.
	Source  int    `json:"source"`
	Package string `json:"package"`
	Rule    string `json:"rule"`
	// File and Line are where it stands, File as the digest has it.
	File string `json:"file"`
	Line int    `json:"line"`
	// EffectiveOn is the day it comes into force, as written. InForce says whether
	// its violations count at the time asked for.
	EffectiveOn string `json:"effectiveOn,omitempty"`
	InForce     bool   `json:"inForce"`
	// Included says whether its results count, for images that no scoped item names;
	// By are the include items that match and Against the exclude items.
	Included bool     `json:"included"`
	By       []string `json:"by,omitempty"`
	Against  []string `json:"against,omitempty"`
}

// Explanation is how one rule came to what it said of one image.
type Explanation struct {
	Rule RuleInfo `json:"rule"`
	// Text is the rule as it is written, with its annotations.
	Text string `json:"text"`
	// Run is the run under judgement, empty without one.
	Run string `json:"run,omitempty"`
	// Results are what the rule said, with the outcome that each had: violation,
	// warning, note, excluded, or hidden (behind a failed dependency). A rule that is
	// met says nothing.
	Results []Said `json:"results"`
	// Failures are the calls of ec.* functions that had no answer.
	Failures []builtin.Failure `json:"failures,omitempty"`
	// Data are the values that the rule and what it calls read from input and data.
	Data []Read `json:"data"`
	// Trace is what happened, in order.
	Trace []Step `json:"trace"`
	// Truncated says that Data or Trace is not whole: the rule does more than a
	// person reads.
	Truncated bool `json:"truncated,omitempty"`
}

// Said is a result and what became of it.
type Said struct {
	Result  Result `json:"result"`
	Outcome string `json:"outcome"`
}

// Read is a value that a rule looked at.
type Read struct {
	// Path is as Rego spells it: input.attestations[0].statement.predicateType.
	Path string `json:"path"`
	// Value is null where there is none; a long one is cut and no JSON then, but a
	// string.
	Value json.RawMessage `json:"value"`
}

// Step is one step of a trace.
type Step struct {
	Depth int    `json:"depth"`
	Op    string `json:"op"` // enter, eval, fail, exit
	Text  string `json:"text"`
	File  string `json:"file,omitempty"`
	Line  int    `json:"line,omitempty"`
	// Values are the variables of the expression, as they are bound.
	Values map[string]string `json:"values,omitempty"`
}

// Rules lists every deny, warn and note rule of the policy, with what each would
// decide at a time; zero: now. They are in the order of sources, packages, codes.
func (p *Policy) Rules(at time.Time) []RuleInfo {
	if at.IsZero() {
		at = time.Now()
	}
	return p.list(target{when: at})
}

// list is Rules for what scoped items are compared with.
func (p *Policy) list(t target) []RuleInfo {
	var out []RuleInfo
	for _, g := range p.groups {
		c := criteriaFor(&p.spec, g, t)
		rules := slices.Clone(g.all)
		slices.SortStableFunc(rules, func(a, b *rule) int {
			return cmp.Or(cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.code, b.code), cmp.Compare(a.file, b.file), cmp.Compare(a.line, b.line))
		})
		for _, r := range rules {
			out = append(out, r.info(g, c, t.when))
		}
	}
	return out
}

// Explain evaluates one rule over the evidence and says how it came to its results.
// It fails where Evaluate does, and on a code that no rule has.
func (p *Policy) Explain(ctx context.Context, e *verify.Evidence, c Context, code string) (*Explanation, error) {
	if e == nil {
		return nil, errors.New("explaining a rule: no evidence; verify the image first")
	}
	return p.explain(ctx, e, c, code)
}

func (r *rule) info(g *group, c criteria, at time.Time) RuleInfo {
	code := r.code
	if code == "" {
		// What such a rule says may have any code of its package.
		code = r.pkg + ".*"
	}
	m := matchers(code, nil, r.collections)
	return RuleInfo{
		Code: r.code, Title: r.title, Description: r.description, Solution: r.solution,
		Collections: r.collections, DependsOn: r.dependsOn, Question: r.question,
		Kind: r.kind.String(), Source: g.number, Package: r.pkg, Rule: r.name, File: r.file, Line: r.line,
		EffectiveOn: r.effectiveOn, InForce: r.effective.IsZero() || r.effective.Before(at),
		Included: c.includes(m), By: matching(c.include, m), Against: matching(c.exclude, m),
	}
}

// matching are the items that name what answers to m.
func matching(items []string, m map[string]bool) []string {
	var out []string
	for _, item := range items {
		if m[item] && !slices.Contains(out, item) {
			out = append(out, item)
		}
	}
	return out
}

// String is the explanation as a person reads it.
func (x *Explanation) String() string {
	var b strings.Builder
	r := x.Rule
	fmt.Fprintf(&b, "%s (%s) at %s:%d\n", r.Code, r.Kind, r.File, r.Line)
	state := "in force"
	if !r.InForce {
		state = "not in force yet"
	}
	if r.EffectiveOn != "" {
		state += ", since " + r.EffectiveOn
		if !r.InForce {
			state = "not in force before " + r.EffectiveOn
		}
	}
	if r.Included {
		fmt.Fprintf(&b, "%s; included by %s\n", state, strings.Join(r.By, ", "))
	} else {
		fmt.Fprintf(&b, "%s; not included (for: %s; against: %s)\n", state, or(r.By, "nothing"), or(r.Against, "nothing"))
	}
	fmt.Fprintf(&b, "\n%s\n", indented(x.Text))
	if len(x.Results) == 0 {
		b.WriteString("\nIt said nothing: what it asks for is met.\n")
	}
	for _, s := range x.Results {
		fmt.Fprintf(&b, "\n%s: %s\n", s.Outcome, s.Result.Msg)
		for _, f := range s.Result.Facts() {
			fmt.Fprintf(&b, "  %s: %s\n", f.Name, short(f.Value, maxText))
		}
	}
	for _, f := range x.Failures {
		fmt.Fprintf(&b, "\nno answer: %s(%s): %s\n", f.Function, f.Ref, f.Cause)
	}
	if len(x.Data) > 0 {
		b.WriteString("\nIt looked at:\n")
	}
	for _, d := range x.Data {
		fmt.Fprintf(&b, "  %s = %s\n", d.Path, short(string(d.Value), maxText))
	}
	if len(x.Trace) > 0 {
		b.WriteString("\nWhat happened:\n")
	}
	for _, s := range x.Trace {
		fmt.Fprintf(&b, "  %s%-5s %s", strings.Repeat("  ", s.Depth), s.Op, s.Text)
		for i, k := range sortedKeys(s.Values) {
			sep := ", "
			if i == 0 {
				sep = "   where "
			}
			fmt.Fprintf(&b, "%s%s = %s", sep, k, short(s.Values[k], 80))
		}
		b.WriteByte('\n')
	}
	if x.Truncated {
		b.WriteString("  … and more\n")
	}
	return b.String()
}

func or(list []string, none string) string {
	if len(list) == 0 {
		return none
	}
	return strings.Join(list, ", ")
}

func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ")
}
