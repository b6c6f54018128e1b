package conforma

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Members of a result's metadata that mean something.
const (
	keyCode        = "code"
	keyCollections = "collections"
	keyDependsOn   = "depends_on"
	keyDescription = "description"
	keyEffectiveOn = "effective_on"
	keySeverity    = "severity"
	keySolution    = "solution"
	keyTerm        = "term"
	keyTitle       = "title"
)

// effectiveLayout is the one layout that effective_on is read in; what has
// another is in force.
const effectiveLayout = "2006-01-02T15:04:05Z"

// stale is for how long the day since when a rule is in force is told.
const stale = 90 * 24 * time.Hour

// finder turns what rules gave into what is reported, package by package.
type finder struct {
	group  *group
	target Target
	choice *choice
	// missing are include items that have matched nothing so far.
	missing map[string]bool
}

func (f *finder) finish(o *Outcome) {
	given := slices.Concat(o.Warnings, o.Failures)
	o.Warnings, o.Failures = []Result{}, []Result{}
	for i := range given {
		f.annotate(&given[i])
	}
	for _, r := range given {
		if code := text(r.Metadata[keyCode]); code != "" && !f.keeps(&r, code) {
			continue
		}
		failure, later := f.kind(&r)
		if later {
			r.Message = fmt.Sprintf("%s. This will become a failure starting on %s", strings.TrimSuffix(r.Message, "."), r.Metadata[keyEffectiveOn])
		}
		if failure {
			o.Failures = append(o.Failures, r)
		} else {
			o.Warnings = append(o.Warnings, r)
		}
	}
	if f.group.filter.kind == ECPolicy {
		for item := range f.missing {
			if !f.choice.unmatched[item] {
				delete(f.missing, item)
			}
		}
	}
	f.successes(o)
}

// keeps says whether a result with a code is included.
func (f *finder) keeps(r *Result, code string) bool {
	if f.group.filter.kind == ECPolicy {
		return f.choice.rules[code]
	}
	collections, _ := r.Metadata[keyCollections].([]string)
	return f.included(matchers(code, stringsOf(r.Metadata[keyTerm]), collections))
}

func (f *finder) included(m []string) bool {
	t := f.target
	in := sum(f.group.filter.include.items(t.Image, t.Component), m, f.missing)
	return in > sum(f.group.filter.exclude.items(t.Image, t.Component), m, nil)
}

// kind says whether a result is a failure, and if it is none only because its
// rule is not in force yet.
func (f *finder) kind(r *Result) (failure, later bool) {
	severity := text(r.Metadata[keySeverity])
	switch {
	case !r.failure:
		return severity == "failure", false
	case severity == "warning":
		return false, false
	}
	on, err := time.Parse(effectiveLayout, text(r.Metadata[keyEffectiveOn]))
	if err != nil || on.Before(f.target.When) {
		return true, false
	}
	return false, true
}

// annotate adds what the annotations of the rule with the result's code say.
func (f *finder) annotate(r *Result) {
	code, ok := r.Metadata[keyCode].(string)
	if !ok {
		return
	}
	m := r.Metadata
	if v, ok := m[keyCollections]; ok {
		if list, ok := v.([]any); ok {
			names := make([]string, len(list))
			for i, x := range list {
				names[i] = fmt.Sprint(x)
			}
			m[keyCollections] = names
		} else {
			delete(m, keyCollections)
		}
	}
	if info := f.group.rules[code]; info != nil {
		for key, v := range map[string]string{
			keyTitle: info.title, keyEffectiveOn: info.effectiveOn, keyDescription: info.description, keySolution: info.solution,
		} {
			if v != "" {
				m[key] = v
			}
		}
		if len(info.collections) > 0 {
			m[keyCollections] = info.collections
		}
		if len(info.dependsOn) > 0 {
			m[keyDependsOn] = info.dependsOn
		}
	}
	if on, err := time.Parse(effectiveLayout, text(m[keyEffectiveOn])); err == nil && on.Before(f.target.When.Add(-stale)) {
		delete(m, keyEffectiveOn)
	}
}

// successes are the tracked rules of the package that are included and not
// reported.
func (f *finder) successes(o *Outcome) {
	seen := map[string]bool{}
	for _, r := range slices.Concat(o.Failures, o.Warnings) {
		seen[text(r.Metadata[keyCode])] = true
	}
	var rules *choice
	if f.group.filter.kind == ECPolicy {
		rules = f.group.choose(f.group.filter, f.group.rules, f.target.Image)
	}
	o.Successes = []Result{}
	for _, code := range sortedKeys(f.group.rules) {
		info := f.group.rules[code]
		if seen[code] || info.pkg != o.Namespace {
			continue
		}
		if rules != nil {
			if !rules.rules[code] {
				continue
			}
		} else if !f.included(matchers(code, nil, info.collections)) {
			continue
		}
		m := map[string]any{keyCode: code}
		for key, v := range map[string]string{keyTitle: info.title, keyDescription: info.description, keyEffectiveOn: info.effectiveOn} {
			if v != "" {
				m[key] = v
			}
		}
		if len(info.collections) > 0 {
			m[keyCollections] = info.collections
		}
		if len(info.dependsOn) > 0 {
			m[keyDependsOn] = info.dependsOn
		}
		o.Successes = append(o.Successes, Result{Message: "Pass", Metadata: m})
	}
}

// text is v if it is a string, and the first of a list.
func text(v any) string {
	if s := stringsOf(v); len(s) > 0 {
		return s[0]
	}
	return ""
}

// trim drops what depends on a rule that was reported, and tells how to exclude
// the failures that are left. A result stays once for each of its dependencies
// that was not reported, as Conforma has it.
func trim(outcomes []Outcome) {
	reported := map[string]bool{}
	for _, o := range outcomes {
		for _, r := range slices.Concat(o.Failures, o.Warnings) {
			if code, ok := r.Metadata[keyCode].(string); ok {
				reported[code] = true
			}
		}
	}
	left := func(list []Result) []Result {
		out := make([]Result, 0, len(list))
		for _, r := range list {
			needs, ok := r.Metadata[keyDependsOn].([]string)
			if !ok {
				out = append(out, r)
				continue
			}
			for _, code := range needs {
				if !reported[code] {
					out = append(out, r)
				}
			}
		}
		return out
	}
	for i := range outcomes {
		o := &outcomes[i]
		o.Failures, o.Warnings, o.Successes = left(o.Failures), left(o.Warnings), left(o.Successes)
		for _, r := range o.Failures {
			hint(r.Metadata)
		}
	}
}

// hint adds to a description how to exclude the rule.
func hint(m map[string]any) {
	description, ok := m[keyDescription].(string)
	code, coded := m[keyCode].(string)
	if !ok || !coded {
		return
	}
	var items []string
	for _, t := range stringsOf(m[keyTerm]) {
		items = append(items, fmt.Sprintf("%q", code+":"+t))
	}
	if len(items) == 0 {
		items = []string{fmt.Sprintf("%q", code)}
	}
	several := ""
	if len(items) > 1 {
		several = "one or more of "
	}
	m[keyDescription] = fmt.Sprintf("%s. To exclude this rule add %s%s to the `exclude` section of the policy configuration.", strings.TrimSuffix(description, "."), several, strings.Join(items, ", "))
}

// Sort orders results as reports have them: by code, term, message.
func Sort(list []Result) {
	slices.SortStableFunc(list, func(a, b Result) int {
		for _, key := range []string{keyCode, keyTerm} {
			if n := strings.Compare(text(a.Metadata[key]), text(b.Metadata[key])); n != 0 {
				return n
			}
		}
		return strings.Compare(a.Message, b.Message)
	})
}

// Condense leaves of each result's metadata what reports without --info have.
func Condense(list []Result) {
	for _, r := range list {
		for key := range r.Metadata {
			switch key {
			case keyCode, keyEffectiveOn, keyTerm:
			default:
				delete(r.Metadata, key)
			}
		}
	}
}
