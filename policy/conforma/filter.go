package conforma

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
)

// criteria are include or exclude items: for all, for an image (by repository
// or digest), for a component (by name).
type criteria struct {
	all       []string
	image     map[string][]string
	component map[string][]string
}

func (c *criteria) empty() bool { return len(c.all)+len(c.image)+len(c.component) == 0 }

// criteriaOf are a source's items that are in force at a time.
func criteriaOf(spec *Spec, src *Source, at time.Time) (include, exclude *criteria) {
	include, exclude = &criteria{}, &criteria{}
	if src.Config != nil {
		include.all = slices.Clone(src.Config.Include)
		exclude.all = slices.Clone(src.Config.Exclude)
	}
	if v := src.VolatileConfig; v != nil {
		include.addVolatile(v.Include, at)
		exclude.addVolatile(v.Exclude, at)
	}
	if old := spec.Configuration; old != nil && include.empty() && exclude.empty() {
		include.all = slices.Clone(old.Include)
		exclude.all = slices.Clone(old.Exclude)
		for _, name := range old.Collections {
			include.all = append(include.all, "@"+name)
		}
	}
	if include.empty() {
		include.all = []string{"*"}
	}
	return include, exclude
}

func (c *criteria) addVolatile(items []VolatileItem, at time.Time) {
	add := func(m *map[string][]string, key, value string) {
		if *m == nil {
			*m = map[string][]string{}
		}
		(*m)[key] = append((*m)[key], value)
	}
	for _, v := range items {
		if !active(&v, at) {
			continue
		}
		switch {
		case v.ImageRef != "":
			add(&c.image, v.ImageRef, v.Value)
		case v.ImageURL != "":
			add(&c.image, v.ImageURL, v.Value)
		case v.ImageDigest != "":
			add(&c.image, v.ImageDigest, v.Value)
		case len(v.ComponentNames) > 0:
			for _, n := range v.ComponentNames {
				add(&c.component, n, v.Value)
			}
		default:
			c.all = append(c.all, v.Value)
		}
	}
}

// active says whether an item is in force. One with a date that cannot be read
// is not.
func active(v *VolatileItem, at time.Time) bool {
	on, until, err := v.Times()
	return err == nil && !on.After(at) && (until.IsZero() || !until.Before(at))
}

// expanded is what is added to a component's name for an image of its index.
var expanded = regexp.MustCompile(`-sha256:[0-9a-f]{64}-\S+$`)

// items are those for an image and a component. What is no reference has only
// those for all.
func (c *criteria) items(image, component string) []string {
	ref, err := name.ParseReference(image)
	if err != nil {
		return c.all
	}
	out := slices.Clone(c.image[ref.Context().Name()])
	if d, ok := ref.(name.Digest); ok {
		out = append(out, c.image[d.DigestStr()]...)
	}
	if component != "" {
		out = append(out, c.component[component]...)
		if before := expanded.ReplaceAllString(component, ""); before != component {
			out = append(out, c.component[before]...)
		}
	}
	return append(out, c.all...)
}

// matchers are the items that name something with this code, these terms and
// collections. A package goes by the last segment of its name.
func matchers(code string, terms, collections []string) []string {
	parts := strings.Split(code, ".")
	var out []string
	if n := len(parts); n >= 2 && parts[n-2] != "" {
		pkg := parts[n-2]
		out = []string{pkg, pkg + ".*", pkg + "." + parts[n-1]}
		for _, t := range terms {
			for _, m := range out[:3] {
				out = append(out, m+":"+t)
			}
		}
	}
	out = append(out, "*")
	for _, c := range collections {
		out = append(out, "@"+c)
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
		n = 100
	}
	segments := strings.Split(name, ".")
	last := segments[len(segments)-1]
	switch {
	case name == "*":
		return n + 1
	case len(segments) == 1:
		return n + 10
	case len(segments) == 2 && segments[0] == "*":
		n++
	default:
		n += 10 * (len(segments) - 1)
	}
	if last != "*" && last != "" {
		n += 100
	}
	return n
}

// sum adds up the items that match, and takes them off those still missing.
func sum(items, match []string, missing map[string]bool) int {
	n := 0
	for _, m := range match {
		for _, item := range items {
			if item == m {
				n += score(item)
				delete(missing, item)
			}
		}
	}
	return n
}

// choice is what runs for an image.
type choice struct {
	rules    map[string]bool // by code: included
	packages map[string]bool // by the first segment of their rules' codes
	// nested are whole names of packages of several segments with an included rule,
	// which packages does not name.
	nested map[string]bool
	// unmatched are include items for all or for the image that name no rule.
	unmatched map[string]bool
}

// FilterType says how rules are chosen beside the include and exclude items.
type FilterType string

const (
	// IncludeExclude goes by the items alone.
	IncludeExclude FilterType = "include-exclude"
	// ECPolicy also asks that a rule's pipeline_intention fit that of the rule data,
	// and that one without goes only where none is given.
	ECPolicy FilterType = "ec-policy"
)

// choose decides what runs. Items for components are not consulted yet.
func (g *group) choose(f *filter, rules map[string]*rule, image string) *choice {
	c := &choice{rules: map[string]bool{}, packages: map[string]bool{}, nested: map[string]bool{}, unmatched: map[string]bool{}}
	include, exclude := f.include.items(image, ""), f.exclude.items(image, "")
	for _, item := range include {
		c.unmatched[item] = true
	}
	open := len(include) == 0 || len(include) == 1 && include[0] == "*"
	for code, r := range rules {
		if f.kind == ECPolicy && !r.intended(g.intentions) {
			continue
		}
		m := matchers(code, nil, r.collections)
		in, out := sum(include, m, c.unmatched), sum(exclude, m, nil)
		if in <= out && (out > 0 || !open) {
			continue
		}
		c.rules[code] = true
		first, _, _ := strings.Cut(code, ".")
		c.packages[first] = true
		if i := strings.LastIndex(code, "."); i > len(first) {
			c.nested[code[:i]] = true
		}
	}
	return c
}

func (r *rule) intended(wanted []string) bool {
	if len(wanted) == 0 {
		return len(r.intentions) == 0
	}
	return slices.ContainsFunc(r.intentions, func(s string) bool { return slices.Contains(wanted, s) })
}
