package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"assay.dev/assay/policy/spec"
)

// outcome is what sources came to for one document.
type outcome struct {
	violations, warnings, successes, notes []Result
	// dropped were hidden behind a failed dependency; what they ask is open.
	dropped []Result
	rules   int // results and successes that rules gave
}

// empty says that no rule was evaluated. What is left then are remarks about
// the configuration, which have no code.
func (o *outcome) empty() bool {
	return o.rules == 0
}

func (o *outcome) add(more *outcome) {
	o.violations = append(o.violations, more.violations...)
	o.warnings = append(o.warnings, more.warnings...)
	o.successes = append(o.successes, more.successes...)
	o.notes = append(o.notes, more.notes...)
	o.dropped = append(o.dropped, more.dropped...)
}

func (o *outcome) sort() {
	for _, rs := range [][]Result{o.violations, o.warnings, o.successes, o.notes} {
		sortResults(rs)
	}
}

// staleAfter is how long the day a rule came into force stays in reports.
const staleAfter = 90 * 24 * time.Hour

// categorize turns what the rules of a source said into violations, warnings,
// successes and notes: annotations added, filtered, severities and dates
// applied, dependants of failed rules dropped.
func categorize(g *group, selected []*pack, c criteria, raw []said, when time.Time) (*outcome, error) {
	o := &outcome{}
	used := map[string]bool{}  // include items that named something kept
	known := map[string]bool{} // … that named anything
	fired := map[string]bool{} // codes with a result, kept or not
	for _, s := range raw {
		r := s.Result
		info := g.rules[r.Code]
		if r.Code != "" {
			if s.kind != note {
				fired[r.Code] = true
			}
			annotate(&r, info, when)
			m := matchers(r.Code, r.Terms, r.Collections)
			in := c.includes(m)
			mark(c.include, m, in, used, known)
			if !in {
				continue
			}
		}
		switch {
		case s.kind == note:
			o.notes = append(o.notes, r)
		case r.Severity == "warning":
			o.warnings = append(o.warnings, r)
		case r.Severity == "failure":
			o.violations = append(o.violations, r)
		case s.kind == warn:
			o.warnings = append(o.warnings, r)
		default:
			later, err := notYet(&r, when)
			if err != nil {
				return nil, err
			}
			if later {
				o.warnings = append(o.warnings, r)
			} else {
				o.violations = append(o.violations, r)
			}
		}
	}
	for _, p := range selected {
		for _, code := range p.codes {
			info := g.rules[code]
			if info.kind == note || fired[code] {
				continue
			}
			m := matchers(code, nil, info.collections)
			in := c.includes(m)
			mark(c.include, m, in, used, known)
			if in {
				o.successes = append(o.successes, info.success())
			}
		}
	}
	for code, info := range g.rules {
		// Rules of packages that were not selected exist all the same.
		mark(c.include, matchers(code, nil, info.collections), false, used, known)
	}
	o.rules = len(o.violations) + len(o.warnings) + len(o.successes)
	for _, item := range unusedIncludes(c, used) {
		msg := fmt.Sprintf("Include criterion '%s' doesn't match any policy rule", item)
		if known[item] {
			msg = fmt.Sprintf("Include criterion '%s' selects nothing: exclude items outweigh it for every rule it matches", item)
		}
		o.warnings = append(o.warnings, Result{Msg: msg})
	}
	o.dropDependants()
	for i := range o.violations {
		addExcludeHint(&o.violations[i])
	}
	// Since when it counts is of interest where it does.
	for _, rs := range [][]Result{o.warnings, o.notes} {
		for i := range rs {
			rs[i].Since = ""
		}
	}
	dedupe(&o.violations, &o.warnings, &o.notes)
	return o, nil
}

func mark(include []string, m map[string]bool, in bool, used, known map[string]bool) {
	for _, item := range include {
		if m[item] {
			known[item] = true
			if in {
				used[item] = true
			}
		}
	}
}

func unusedIncludes(c criteria, used map[string]bool) []string {
	var out []string
	for _, item := range c.include {
		// A bare * finding nothing is reported as an empty source.
		if !used[item] && item != "*" && !slices.Contains(out, item) {
			out = append(out, item)
		}
	}
	return out
}

// annotate adds what the rule's annotations say. They win over the result.
func annotate(r *Result, info *rule, when time.Time) {
	if info == nil {
		return
	}
	r.Title, r.Description, r.Solution = info.title, info.description, info.solution
	r.DependsOn, r.Question = info.dependsOn, info.question
	if len(info.collections) > 0 {
		r.Collections = info.collections
	}
	if info.effectiveOn != "" {
		r.EffectiveOn = info.effectiveOn
	}
	r.Since = r.EffectiveOn
	if r.EffectiveOn != "" {
		if t, err := spec.ParseTime(r.EffectiveOn); err == nil && when.Sub(t) > staleAfter {
			r.EffectiveOn = ""
		}
	}
}

// notYet says whether the result's rule comes into force later, and notes it in
// the message. In force is strictly after the day given.
func notYet(r *Result, when time.Time) (bool, error) {
	if r.EffectiveOn == "" {
		return false, nil
	}
	on, err := spec.ParseTime(r.EffectiveOn)
	if err != nil {
		return false, fmt.Errorf("reading effective_on of %s: %w", r.Code, err)
	}
	if on.Before(when) {
		return false, nil
	}
	r.Msg = fmt.Sprintf("%s. This will become a failure starting on %s", strings.TrimSuffix(r.Msg, "."), r.EffectiveOn)
	return true, nil
}

// passed is the message of successes, as Conforma has it.
const passed = "Pass"

func (info *rule) success() Result {
	return Result{
		Code: info.code, Msg: passed, Title: info.title, Description: info.description,
		Collections: info.collections, DependsOn: info.dependsOn, EffectiveOn: info.effectiveOn, Question: info.question,
	}
}

// dropDependants removes results whose rule depends on one that failed: they
// would only repeat it. A violation goes only behind another violation, never
// behind a warning, or a warning could open the gate.
func (o *outcome) dropDependants() {
	violated, reported := map[string]bool{}, map[string]bool{}
	for _, r := range o.violations {
		violated[r.Code], reported[r.Code] = true, true
	}
	for _, r := range o.warnings {
		reported[r.Code] = true
	}
	delete(violated, "")
	delete(reported, "")
	drop := func(rs []Result, by map[string]bool) (kept, dropped []Result) {
		for _, r := range rs {
			if slices.ContainsFunc(r.DependsOn, func(code string) bool { return by[code] && code != r.Code }) {
				dropped = append(dropped, r)
			} else {
				kept = append(kept, r)
			}
		}
		return kept, dropped
	}
	kept, gone := drop(o.violations, violated)
	if len(kept) == 0 {
		// Rules that depend on each other in a circle hide one another.
		kept, gone = o.violations, nil
	}
	o.violations, o.dropped = kept, gone
	o.warnings, gone = drop(o.warnings, reported)
	o.dropped = append(o.dropped, gone...)
	o.successes, gone = drop(o.successes, reported)
	o.dropped = append(o.dropped, gone...)
}

// addExcludeHint tells how to except the violation, as Conforma does.
func addExcludeHint(r *Result) {
	if r.Description == "" || r.Code == "" {
		return
	}
	var items []string
	for _, t := range r.Terms {
		if t != "" {
			items = append(items, fmt.Sprintf("%q", r.Code+":"+t))
		}
	}
	hint := fmt.Sprintf("%q", r.Code)
	if len(items) > 0 {
		hint = strings.Join(items, ", ")
	}
	if len(items) > 1 {
		hint = "one or more of " + hint
	}
	r.Description = fmt.Sprintf("%s. To exclude this rule add %s to the `exclude` section of the policy configuration.", strings.TrimSuffix(r.Description, "."), hint)
}

// dedupe drops results equal in all that is reported; two documents of one
// input can say the same.
func dedupe(lists ...*[]Result) {
	for _, l := range lists {
		seen := map[string]bool{}
		*l = slices.DeleteFunc(*l, func(r Result) bool {
			raw, err := r.MarshalJSON()
			if err != nil {
				return false
			}
			old := seen[string(raw)]
			seen[string(raw)] = true
			return old
		})
	}
}

// take fills in the verdict from an outcome.
func (v *Verdict) take(o *outcome) {
	nonNil := func(rs []Result) []Result {
		if rs == nil {
			return []Result{}
		}
		return rs
	}
	v.Violations, v.Warnings, v.Successes, v.Notes = nonNil(o.violations), nonNil(o.warnings), nonNil(o.successes), o.notes
	for _, q := range Questions() {
		v.Questions = append(v.Questions, answer(q, o))
	}
}

// answer is made of the results of the rules that carry the question. A warning
// says no as well: what has to be known is the fact, not whether it blocks.
func answer(q Question, o *outcome) Answer {
	a := Answer{Question: q, Answer: Unknown}
	collect := func(rs []Result, word string, messages bool) {
		for _, r := range rs {
			if r.Question != q {
				continue
			}
			if word != "" {
				a.Answer = word
			}
			if messages && !slices.Contains(a.Messages, r.Msg) {
				a.Messages = append(a.Messages, r.Msg)
			}
			if r.Code != "" && !slices.Contains(a.Codes, r.Code) {
				a.Codes = append(a.Codes, r.Code)
			}
		}
	}
	collect(o.successes, Yes, false)
	collect(o.warnings, No, true)
	collect(o.violations, No, true)
	collect(o.notes, "", true)
	if a.Answer != No {
		for _, r := range o.dropped {
			if r.Question == q {
				a.Answer = Unknown
				a.Messages = append(a.Messages, fmt.Sprintf("Rule %s could not tell: a rule that it depends on did not pass", r.Code))
			}
		}
		a.Messages = slices.Compact(a.Messages)
	}
	slices.Sort(a.Codes)
	if a.Answer == Unknown && len(a.Messages) == 0 {
		a.Messages = []string{"No rule of this policy that was evaluated answers it"}
	}
	return a
}

// expiry is the end of the validity, or the first change after the effective
// time that the policy announces, whichever is sooner.
func (p *Policy) expiry(c *Context, when time.Time, v *Verdict) time.Time {
	validity := c.Validity
	if validity <= 0 {
		validity = DefaultValidity
	}
	end := c.Now.Add(validity)
	sooner := func(t time.Time) {
		if t.After(when) && t.Before(end) {
			end = t
		}
	}
	for _, g := range p.groups {
		for _, r := range g.rules {
			sooner(r.effective)
		}
		for _, i := range slices.Concat(g.scoped.include, g.scoped.exclude) {
			for _, t := range i.boundaries() {
				sooner(t)
			}
		}
	}
	for _, r := range v.Warnings {
		if t, err := spec.ParseTime(r.EffectiveOn); err == nil {
			sooner(t)
		}
	}
	return end.UTC()
}
