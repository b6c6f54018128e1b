// Package compare says whether two policy configurations would judge an image the
// same at a time, going by what they say and without evaluating anything. It is
// what `ec compare` prints, and what a verification summary is accepted by in ec
// mode.
//
//	configuration ─▶ groups, by where rules and data come from ─▶ differences
//
// A group is all sources with the same policy and data addresses; their rule data
// is merged, and their include and exclude items, with the volatile ones in force,
// are sets. What makes no difference: order, names, repetition, pkg.* for pkg, the
// way an address is written (git:: or https://), and, as with Conforma, the
// version in an address (?ref=…, @sha256:…).
//
// The last is a weakness: rules that changed under one address count as equal.
// Package vsa, the native way, compares digests.
package compare

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"assay.dev/assay/policy/spec"
)

// Image is what volatile items may be bound to. Empty members match none that
// names one.
type Image struct{ Digest, Ref, URL string }

// Difference is one thing that only one of two configurations has.
type Difference struct {
	// Group is the addresses of its policy and data, "policy|data".
	Group string
	// Field is sources (the whole group), include, exclude or ruleData.
	Field string
	// First and Second are what the configurations have there; "" for nothing.
	First, Second string
}

// Differences lists them, sorted; none means equivalent. Without an image, volatile
// items count whatever image they are bound to. It fails on rule data that is no
// object.
func Differences(first, second *spec.Spec, at time.Time, image *Image) ([]Difference, error) {
	a, err := groups(first, at, image)
	if err != nil {
		return nil, fmt.Errorf("reading the first policy: %w", err)
	}
	b, err := groups(second, at, image)
	if err != nil {
		return nil, fmt.Errorf("reading the second policy: %w", err)
	}
	names := maps.Clone(a)
	maps.Copy(names, b)
	var out []Difference
	for _, name := range slices.Sorted(maps.Keys(names)) {
		x, y := a[name], b[name]
		switch {
		case y == nil:
			out = append(out, Difference{Group: name, Field: "sources", First: name})
		case x == nil:
			out = append(out, Difference{Group: name, Field: "sources", Second: name})
		default:
			out = append(out, x.against(name, y)...)
		}
	}
	return out, nil
}

// group is what several sources of the same addresses come to.
type group struct {
	include, exclude map[string]bool
	data             map[string]any
}

func groups(s *spec.Spec, at time.Time, image *Image) (map[string]*group, error) {
	out := map[string]*group{}
	rules := map[string][]map[string]any{}
	for i := range s.Sources {
		src := &s.Sources[i]
		name := addresses(src.Policy) + "|" + addresses(src.Data)
		g := out[name]
		if g == nil {
			g = &group{map[string]bool{}, map[string]bool{}, map[string]any{}}
			out[name] = g
		}
		if src.Config != nil {
			add(g.include, src.Config.Include...)
			add(g.exclude, src.Config.Exclude...)
		}
		if s.Configuration != nil {
			add(g.include, s.Configuration.Include...)
			add(g.exclude, s.Configuration.Exclude...)
		}
		if src.VolatileConfig != nil {
			add(g.include, active(src.VolatileConfig.Include, at, image)...)
			add(g.exclude, active(src.VolatileConfig.Exclude, at, image)...)
		}
		d, err := object(src.RuleData)
		if err != nil {
			return nil, fmt.Errorf("sources[%d].ruleData: %w", i, err)
		}
		if d != nil {
			rules[name] = append(rules[name], d)
		}
	}
	for name, list := range rules {
		// The order of sources makes no difference, so that of merging must not either.
		slices.SortFunc(list, func(a, b map[string]any) int { return strings.Compare(canonical(a), canonical(b)) })
		for _, d := range list {
			merge(out[name].data, d)
		}
	}
	return out, nil
}

// object reads rule data, and keeps numbers as they are written.
func object(raw json.RawMessage) (map[string]any, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		return nil, err
	}
	return m, nil
}

func merge(to, from map[string]any) {
	for k, v := range from {
		x, isMap := to[k].(map[string]any)
		y, both := v.(map[string]any)
		if isMap && both {
			merge(x, y)
			continue
		}
		to[k] = v
	}
}

var (
	scheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*::`)
	digest = regexp.MustCompile(`@[A-Za-z0-9]+:[A-Za-z0-9]+$`)
)

// addresses are a list's, without what makes no difference.
func addresses(list []string) string {
	set := map[string]bool{}
	for _, s := range list {
		s = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(s), "http://"), "https://")
		s = scheme.ReplaceAllString(s, "")
		if i := strings.IndexAny(s, "?#"); i >= 0 {
			s = s[:i]
		}
		set[digest.ReplaceAllString(s, "")] = true
	}
	return strings.Join(slices.Sorted(maps.Keys(set)), ",")
}

func add(set map[string]bool, items ...string) {
	for _, s := range items {
		if s = strings.TrimSuffix(strings.TrimSpace(s), ".*"); s != "" {
			set[s] = true
		}
	}
}

// active are the volatile items in force. One with a time that cannot be read never
// is, as with Conforma.
func active(items []spec.VolatileItem, at time.Time, image *Image) []string {
	var out []string
	for i := range items {
		v := &items[i]
		on, until, err := v.Times()
		if err != nil || !on.IsZero() && at.Before(on) || !until.IsZero() && at.After(until) {
			continue
		}
		other := func(want, have string) bool { return want != "" && want != have }
		if image != nil && (other(v.ImageDigest, image.Digest) || other(v.ImageRef, image.Ref) || other(v.ImageURL, image.URL)) {
			continue
		}
		out = append(out, v.Value)
	}
	return out
}

func (g *group) against(name string, other *group) []Difference {
	var out []Difference
	sets := func(field string, a, b map[string]bool) {
		all := maps.Clone(a)
		maps.Copy(all, b)
		for _, item := range slices.Sorted(maps.Keys(all)) {
			switch {
			case !b[item]:
				out = append(out, Difference{Group: name, Field: field, First: item})
			case !a[item]:
				out = append(out, Difference{Group: name, Field: field, Second: item})
			}
		}
	}
	sets("include", g.include, other.include)
	sets("exclude", g.exclude, other.exclude)
	if !reflect.DeepEqual(g.data, other.data) {
		out = append(out, Difference{Group: name, Field: "ruleData", First: canonical(g.data), Second: canonical(other.data)})
	}
	return out
}

// canonical is JSON with sorted keys.
func canonical(m map[string]any) string {
	b, err := json.Marshal(m)
	if err != nil { // what was JSON can be written as JSON
		panic(err)
	}
	return string(b)
}
