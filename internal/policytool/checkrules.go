package policytool

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"assay.dev/assay/policy"
	"assay.dev/assay/policy/spec"
)

// decisionName is what rules are called whose results count.
var decisionName = regexp.MustCompile(`^(deny|violation|warn|note)(_[a-zA-Z0-9]+)*$`)

// ruleFacts are what a check remembers of a rule.
type ruleFacts struct {
	code        string // pkg.* without a short_name
	pkg         string
	collections []string
	file        string
	line        int
}

// inspect checks the rules of a source and their annotations.
func (c *checker) inspect(g *policy.SourceFiles, modules map[string]*ast.Module, content map[string][]byte) []ruleFacts {
	var out []ruleFacts
	first := map[string]ruleFacts{}
	type dependency struct {
		on   string
		rule *ast.Rule
	}
	var depends []dependency
	type said struct {
		code string
		at   *ast.Location
	}
	var codes []said
	for _, file := range sortedNames(modules) {
		m := modules[file]
		pkg := strings.TrimPrefix(m.Package.Path.String(), "data.")
		for _, r := range m.Rules {
			name := string(r.Head.Name)
			at := func(f Finding) {
				f.Source = g.Number
				c.add(f.at(file, content[file], r.Head.Location.Row, r.Head.Location.Col))
			}
			a := annotation(r)
			if !decisionName.MatchString(name) {
				if a != nil {
					at(Finding{
						Severity: Warning, Code: "never-judged", Message: fmt.Sprintf("the rule %s has a short_name, but no rule of this name is judged", name),
						Remedy: "call it deny, violation, warn or note, or one of these with a suffix such as deny_cve",
					})
				}
				continue
			}
			if r.Head.RuleKind() != ast.MultiValue || len(r.Head.Args) > 0 {
				at(Finding{
					Severity: Error, Code: "not-a-set", Message: fmt.Sprintf("the rule %s is no set, and its results cannot be read", name),
					Remedy: "write " + name + " contains result if { … }",
				})
			}
			ast.WalkTerms(r, func(t *ast.Term) bool {
				if o, ok := t.Value.(ast.Object); ok {
					if v := o.Get(ast.StringTerm("code")); v != nil {
						if s, ok := v.Value.(ast.String); ok {
							codes = append(codes, said{string(s), v.Location})
						}
					}
				}
				return false
			})
			facts := ruleFacts{code: pkg + ".*", pkg: pkg, file: file, line: r.Head.Location.Row}
			if a == nil {
				at(Finding{
					Severity: Warning, Code: "no-short-name", Message: fmt.Sprintf("the rule %s has no short_name: it is no success when it says nothing, and has no title", name),
					Remedy: "put a METADATA block with custom.short_name before it",
				})
				out = append(out, facts)
				continue
			}
			short, _ := a.Custom["short_name"].(string)
			facts.code = pkg + "." + short
			for _, w := range annotated(a) {
				at(w)
			}
			facts.collections = list(a.Custom["collections"])
			for _, on := range list(a.Custom["depends_on"]) {
				depends = append(depends, dependency{on, r})
			}
			if other, ok := first[facts.code]; ok {
				at(Finding{
					Severity: Error, Code: "duplicate-code", Message: fmt.Sprintf("a second rule with the code %s; the other is at %s:%d", facts.code, other.file, other.line),
					Remedy: "give it another short_name",
				})
			} else {
				first[facts.code] = facts
			}
			out = append(out, facts)
		}
	}
	for _, d := range depends {
		if _, ok := first[d.on]; !ok {
			l := d.rule.Head.Location
			c.add(Finding{
				Severity: Warning, Code: "depends-on-unknown", Source: g.Number, Message: fmt.Sprintf("depends_on names %s, and no rule of the source has this code", d.on),
				Remedy: near("correct the code, or remove it", d.on, sortedNames(first)),
			}.at(l.File, content[l.File], l.Row, l.Col))
		}
	}
	for _, s := range codes {
		if _, ok := first[s.code]; !ok && s.at != nil {
			c.add(Finding{
				Severity: Warning, Code: "code-unknown", Source: g.Number, Message: fmt.Sprintf("a result has the code %s, which no rule's annotations give: it has no title, solution or collections", s.code),
				Remedy: near("the code is the package and the short_name", s.code, sortedNames(first)),
			}.at(s.at.File, content[s.at.File], s.at.Row, s.at.Col))
		}
	}
	return out
}

// annotation is a rule's own with a short_name; nil without.
func annotation(r *ast.Rule) *ast.Annotations {
	for _, a := range r.Annotations {
		if s, _ := a.Custom["short_name"].(string); s != "" && (a.Scope == "rule" || a.Scope == "document") {
			return a
		}
	}
	return nil
}

// annotated checks the members of an annotation.
func annotated(a *ast.Annotations) []Finding {
	var out []Finding
	short, _ := a.Custom["short_name"].(string)
	if strings.ContainsAny(short, ".:@* ") {
		out = append(out, Finding{
			Severity: Warning, Code: "short-name", Message: fmt.Sprintf("the short_name %q has characters that mean something in include and exclude items", short),
			Remedy: "use letters, digits and _",
		})
	}
	if a.Title == "" {
		out = append(out, Finding{Severity: Note, Code: "no-title", Message: short + " has no title", Remedy: "reports show the title of the rule; add one"})
	}
	if _, ok := a.Custom["severity"]; ok {
		out = append(out, Finding{
			Severity: Warning, Code: "severity-ignored", Message: "custom.severity is not read",
			Remedy: "call the rule warn, or give the result a severity (warning, failure)",
		})
	}
	for _, key := range []string{"collections", "depends_on"} {
		if v := a.Custom[key]; v != nil && list(v) == nil {
			out = append(out, Finding{Severity: Error, Code: "annotation", Message: "custom." + key + " is neither a string nor a list of strings", Remedy: "write a list: [" + key[:1] + "…]"})
		}
	}
	for _, key := range []string{"solution", "question"} {
		if _, ok := a.Custom[key].(string); !ok && a.Custom[key] != nil {
			out = append(out, Finding{Severity: Error, Code: "annotation", Message: "custom." + key + " is no text", Remedy: "write a string"})
		}
	}
	switch v := a.Custom["effective_on"].(type) {
	case nil, time.Time:
	case string:
		if _, err := spec.ParseTime(strings.TrimSpace(v)); err != nil {
			out = append(out, Finding{Severity: Error, Code: "effective-on", Message: "effective_on: " + err.Error(), Remedy: "Conforma takes such a rule as in force; write 2026-06-01T00:00:00Z"})
		} else if _, err := time.Parse("2006-01-02T15:04:05Z", v); err != nil {
			out = append(out, Finding{Severity: Warning, Code: "effective-on", Message: fmt.Sprintf("effective_on %q is in force at once for Conforma, which reads one form only", v), Remedy: "write it as 2026-06-01T00:00:00Z"})
		}
	default:
		out = append(out, Finding{Severity: Error, Code: "effective-on", Message: "effective_on is no date", Remedy: "write 2026-06-01T00:00:00Z"})
	}
	return out
}

// list is an annotation that is a string or strings; nil for anything else.
func list(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		out := []string{}
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return nil
			}
			out = append(out, s)
		}
		return out
	}
	return nil
}

// near adds the most similar name to a remedy.
func near(remedy, name string, known []string) string {
	best, least := "", max(2, len(name)/3)+1
	for _, k := range known {
		if d := distance(name, k, least); d < least {
			best, least = k, d
		}
	}
	if best == "" {
		return remedy
	}
	return remedy + "; is " + best + " meant?"
}

// items checks the include and exclude items of a source.
func (c *checker) items(g *policy.SourceFiles, rules []ruleFacts) {
	if s := g.Source.Config; s != nil {
		for _, item := range s.Include {
			c.item(g.Number, "config.include", item, item, rules)
		}
		for _, item := range s.Exclude {
			c.item(g.Number, "config.exclude", item, item, rules)
		}
	}
	if v := g.Source.VolatileConfig; v != nil {
		c.volatile(g.Number, "volatileConfig.include", v.Include, rules)
		c.volatile(g.Number, "volatileConfig.exclude", v.Exclude, rules)
	}
}

// item tells of an item that names no rule. It is written in the configuration.
func (c *checker) item(source int, where, written, item string, rules []ruleFacts) {
	if item == "*" {
		return
	}
	var known []string
	for _, r := range rules {
		if policy.Names(item, r.code, r.collections) {
			return
		}
		// What a rule without a short_name says may have any code of its package.
		name, _, _ := strings.Cut(item, ":")
		if i := strings.LastIndex(name, "."); strings.HasSuffix(r.code, ".*") && i > 0 && policy.Names(name[:i], r.code, nil) {
			return
		}
		if strings.HasPrefix(item, "@") {
			for _, name := range r.collections {
				known = append(known, "@"+name)
			}
		} else {
			known = append(known, r.code, r.pkg, r.pkg[strings.LastIndex(r.pkg, ".")+1:], r.code[strings.LastIndex(r.pkg, ".")+1:])
		}
	}
	slices.Sort(known)
	known = slices.Compact(known)
	f := Finding{Severity: Warning, Code: "item-matches-nothing", Source: source, Message: fmt.Sprintf("%s: %q names no rule", where, item)}
	base, _, _ := strings.Cut(item, ":")
	f.Remedy = near("remove or correct it; `assay policy show` lists the codes", base, known)
	if strings.HasPrefix(item, "@") && len(known) > 0 && len(known) <= 20 {
		f.Remedy = near("the collections are "+strings.Join(known, ", "), base, known)
	}
	c.add(c.places.item(f, source, where, written))
}

// volatile checks items that hold for a time or for some images.
func (c *checker) volatile(source int, where string, items []spec.VolatileItem, rules []ruleFacts) {
	for i := range items {
		v := &items[i]
		c.item(source, where, v.Value, v.Value, rules)
		on, until, err := v.Times()
		if err != nil {
			continue // ReadFiles has refused it
		}
		add := func(s Severity, code, message, remedy string) {
			message = fmt.Sprintf("%s: the item %s %s", where, v.Value, message)
			if v.Reference != "" {
				message += " (" + v.Reference + ")"
			}
			c.add(c.places.item(Finding{Severity: s, Code: code, Source: source, Message: message, Remedy: remedy}, source, where, v.Value))
		}
		switch {
		case !until.IsZero() && until.Before(on):
			add(Error, "item-never-holds", fmt.Sprintf("ends (%s) before it begins (%s)", v.EffectiveUntil, v.EffectiveOn), "correct the dates")
		case !until.IsZero() && c.At.After(until):
			add(Warning, "item-expired", "has ended on "+v.EffectiveUntil, "remove it")
		case !until.IsZero() && until.Sub(c.At) <= c.Expiring:
			add(Warning, "item-expiring", "ends on "+v.EffectiveUntil, "what it waives will be refused from then: fix that, or extend it")
		case c.At.Before(on):
			add(Note, "item-pending", "begins on "+v.EffectiveOn, "")
		case until.IsZero():
			add(Note, "item-without-end", "has no end", "give it effectiveUntil, or move it to config")
		}
	}
}
