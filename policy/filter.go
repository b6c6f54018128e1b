package policy

import (
	"slices"
	"strings"
	"time"

	"assay.dev/assay/policy/spec"
)

// target is what scoped items are compared with.
type target struct {
	repository string // without tag and digest
	digest     string
	component  string
	// parent is the component's name before an index was expanded.
	parent string
	when   time.Time
}

// criteria are the include and exclude items in force for one target.
//
// A rule or result is in when the items that name it score higher in include
// than in exclude; a tie is out. Every matching item counts, so two weak ones
// can beat a stronger:
//
//	@collection   10
//	*              1
//	package       10 for each segment of it
//	.rule       +100
//	:term       +100
type criteria struct {
	include, exclude []string
}

// criteriaFor gathers a source's items for a target. Without any include item
// everything is included.
func criteriaFor(s *spec.Spec, g *group, t target) criteria {
	var c criteria
	var volatile []string
	includes := 0
	for i := range g.scoped.include {
		if item := &g.scoped.include[i]; item.active(t.when) {
			includes++
			volatile = append(volatile, item.Value)
			if item.concerns(t) {
				c.include = append(c.include, item.Value)
			}
		}
	}
	for i := range g.scoped.exclude {
		if item := &g.scoped.exclude[i]; item.active(t.when) {
			volatile = append(volatile, item.Value)
			if item.concerns(t) {
				c.exclude = append(c.exclude, item.Value)
			}
		}
	}
	switch src := g.source; {
	case src.Config != nil:
		includes += len(src.Config.Include)
		c.include = append(c.include, src.Config.Include...)
		c.exclude = append(c.exclude, src.Config.Exclude...)
	case s.Configuration != nil && len(volatile) == 0:
		old := s.Configuration
		c.include = append(c.include, old.Include...)
		for _, name := range old.Collections {
			c.include = append(c.include, "@"+name)
		}
		includes += len(c.include)
		c.exclude = append(c.exclude, old.Exclude...)
	}
	// An include meant for other images only does not open the door for this
	// one: it is configured, so it counts.
	if includes == 0 {
		c.include = []string{"*"}
	}
	return c
}

func (v *item) active(when time.Time) bool {
	return !when.Before(v.on) && (v.until.IsZero() || !when.After(v.until))
}

func (v *item) concerns(t target) bool {
	switch {
	case v.ImageDigest != "":
		return v.ImageDigest == t.digest
	case v.ImageRef != "":
		return v.ImageRef == t.digest
	case v.ImageURL != "":
		return v.ImageURL == t.repository
	case len(v.ComponentNames) > 0:
		return slices.Contains(v.ComponentNames, t.component) || t.parent != "" && slices.Contains(v.ComponentNames, t.parent)
	}
	return true
}

// boundaries are the times at which the item begins or ceases to hold.
func (v *item) boundaries() []time.Time {
	var out []time.Time
	if !v.on.IsZero() {
		out = append(out, v.on)
	}
	if !v.until.IsZero() {
		out = append(out, v.until)
	}
	return out
}

// score is how specific an item is.
func score(item string) int {
	if strings.HasPrefix(item, "@") {
		return 10
	}
	name, term, _ := strings.Cut(item, ":")
	n := 0
	if term != "" {
		n += 100
	}
	segments := strings.Split(name, ".")
	last := segments[len(segments)-1]
	switch {
	case name == "*":
		return n + 1
	case len(segments) == 1:
		return n + 10
	}
	if segments[0] == "*" {
		n++
	} else {
		n += 10 * (len(segments) - 1)
	}
	if last != "*" && last != "" {
		n += 100
	}
	return n
}

// matchers are all items that name a result with this code, these terms and
// these collections. A package of several segments answers to its whole name
// and, as upstream has it, to its last segment.
func matchers(code string, terms, collections []string) map[string]bool {
	m := map[string]bool{"*": true}
	if i := strings.LastIndex(code, "."); i >= 0 {
		pkg, name := code[:i], code[i+1:]
		for _, p := range []string{pkg, pkg[strings.LastIndex(pkg, ".")+1:]} {
			for _, s := range []string{p, p + ".", p + ".*", p + "." + name} {
				m[s] = true
			}
		}
	}
	for _, s := range sortedKeys(m) {
		for _, t := range terms {
			if t != "" {
				m[s+":"+t] = true
			}
		}
	}
	for _, c := range collections {
		m["@"+c] = true
	}
	return m
}

// sum adds up the items that match; each item of the list counts, also twice.
func sum(items []string, m map[string]bool) int {
	n := 0
	for _, item := range items {
		if m[item] {
			n += score(item)
		}
	}
	return n
}

// includes says whether something that answers to m is in.
func (c criteria) includes(m map[string]bool) bool {
	return sum(c.include, m) > sum(c.exclude, m)
}

// runs says whether a package has to be evaluated: some rule of it may be in.
func (c criteria) runs(p *pack, rules map[string]*rule) bool {
	for _, code := range p.codes {
		if c.includes(matchers(code, nil, rules[code].collections)) {
			return true
		}
	}
	// An include item with a term names no rule before it ran.
	for _, item := range c.include {
		name, term, ok := strings.Cut(item, ":")
		if !ok || term == "" {
			continue
		}
		for _, code := range p.codes {
			if matchers(code, nil, nil)[name] && c.includes(matchers(code, []string{term}, rules[code].collections)) {
				return true
			}
		}
	}
	if !p.untracked {
		return false
	}
	pkg := p.name()
	short := pkg[strings.LastIndex(pkg, ".")+1:]
	for _, item := range c.include {
		name, _, _ := strings.Cut(item, ":")
		if i := strings.LastIndex(name, "."); i >= 0 && (name[:i] == pkg || name[:i] == short) && !strings.HasSuffix(name, ".*") {
			return true
		}
	}
	m := matchers(pkg+".*", nil, nil)
	return c.includes(m)
}
