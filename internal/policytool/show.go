package policytool

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"assay.dev/assay/policy"
	"assay.dev/assay/policy/spec"
)

// Decision is what a rule's violations would come to.
type Decision string

// The decisions.
const (
	Refuses  Decision = "refuses"  // a violation refuses the image
	Warns    Decision = "warns"    // it is told, and refuses nothing
	Later    Decision = "later"    // a warning until the rule comes into force
	Remarks  Decision = "remarks"  // a note
	Excluded Decision = "excluded" // it does not count
)

// RuleState is one rule and what becomes of it.
type RuleState struct {
	policy.RuleInfo
	Decision Decision `json:"decision"`
	// Until is the day before which a violation is a warning; empty: none.
	Until string `json:"until,omitempty"`
	// Change is the next day on which a scoped item begins or ends to name the rule.
	Change *Change `json:"change,omitempty"`
}

// Change is what a day brings for a rule.
type Change struct {
	At   time.Time `json:"at"`
	Item string    `json:"item"`
	// List is include or exclude, and Begins whether the item begins to hold or ends.
	List   string `json:"list"`
	Begins bool   `json:"begins"`
}

// Listing is every rule of a policy, as of a time.
type Listing struct {
	Policy policy.Identified `json:"policy"`
	At     time.Time         `json:"at"`
	// Image and Component are what scoped items were compared with; empty: nothing.
	Image     string      `json:"image,omitempty"`
	Component string      `json:"component,omitempty"`
	Rules     []RuleState `json:"rules"`
}

// Show lists what each rule of a policy would decide at a time, for one image or
// component, or for those that no scoped item names.
func Show(p *policy.Policy, at time.Time, image, component string) *Listing {
	l := &Listing{
		Policy: policy.Identified{Name: p.Name(), Digest: p.Digest()}, At: at.UTC(),
		Image: image, Component: component, Rules: []RuleState{},
	}
	for _, r := range p.RulesFor(at, image, component) {
		s := RuleState{RuleInfo: r, Decision: Refuses}
		switch {
		case !r.Included:
			s.Decision = Excluded
		case r.Kind == "note":
			s.Decision = Remarks
		case r.Kind == "warn":
			s.Decision = Warns
		case !r.InForce:
			s.Decision, s.Until = Later, r.EffectiveOn
		}
		s.Change = nextChange(&p.Spec().Sources[r.Source-1], &r, at, image, component)
		l.Rules = append(l.Rules, s)
	}
	return l
}

// nextChange looks through the items that hold for a time.
func nextChange(src *spec.Source, r *policy.RuleInfo, at time.Time, image, component string) *Change {
	if src.VolatileConfig == nil {
		return nil
	}
	var next *Change
	look := func(list string, items []spec.VolatileItem) {
		for i := range items {
			v := &items[i]
			if !policy.Names(v.Value, codeOf(r), r.Collections) || !concerns(v, image, component) {
				continue
			}
			on, until, err := v.Times()
			if err != nil {
				continue // Load refused it
			}
			for _, c := range []Change{{on, v.Value, list, true}, {until, v.Value, list, false}} {
				if !c.At.IsZero() && c.At.After(at) && (next == nil || c.At.Before(next.At)) {
					next = &c
				}
			}
		}
	}
	look("include", src.VolatileConfig.Include)
	look("exclude", src.VolatileConfig.Exclude)
	return next
}

// concerns says whether an item holds for an image or component, or for all.
func concerns(v *spec.VolatileItem, image, component string) bool {
	repo, digest, _ := strings.Cut(image, "@")
	switch {
	case v.ImageDigest+v.ImageRef != "":
		return v.ImageDigest+v.ImageRef == digest
	case v.ImageURL != "":
		return v.ImageURL == repo
	case len(v.ComponentNames) > 0:
		return slices.Contains(v.ComponentNames, component)
	}
	return true
}

// codeOf is a rule's code, or that of all that its package says.
func codeOf(r *policy.RuleInfo) string {
	if r.Code == "" {
		return r.Package + ".*"
	}
	return r.Code
}

// Count is how many rules have a decision.
func (l *Listing) Count(d Decision) int {
	n := 0
	for i := range l.Rules {
		if l.Rules[i].Decision == d {
			n++
		}
	}
	return n
}

// WriteText writes the listing as a table.
func (l *Listing) WriteText(w io.Writer) error {
	var head strings.Builder
	fmt.Fprintf(&head, "policy %s %s\nas of  %s", l.Policy.Name, l.Policy.Digest, l.At.Format(time.RFC3339))
	if l.Component != "" {
		fmt.Fprintf(&head, ", for the component %s", l.Component)
	}
	if l.Image != "" {
		fmt.Fprintf(&head, ", for the image %s", l.Image)
	}
	if _, err := io.WriteString(w, head.String()+"\n\n"); err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "RULE\tDECISION\tBECAUSE")
	source := 0
	many := len(l.Rules) > 0 && l.Rules[len(l.Rules)-1].Source > 1
	for i := range l.Rules {
		r := &l.Rules[i]
		if many && r.Source != source {
			source = r.Source
			fmt.Fprintf(t, "source %d\t\t\n", source)
		}
		name := r.Code
		if name == "" {
			name = r.Package + "." + r.Rule + " (no code)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", name, r.decided(), r.because())
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%d rules: %d refuse, %d warn, %d warn until they are in force, %d remark, %d excluded\n",
		len(l.Rules), l.Count(Refuses), l.Count(Warns), l.Count(Later), l.Count(Remarks), l.Count(Excluded))
	return err
}

func (r *RuleState) decided() string {
	if r.Decision == Later {
		return "warns until " + r.Until
	}
	return string(r.Decision)
}

func (r *RuleState) because() string {
	var out []string
	if len(r.By) > 0 {
		out = append(out, "included by "+strings.Join(r.By, ", "))
	} else if !r.Included {
		out = append(out, "no include item names it")
	}
	if len(r.Against) > 0 {
		verb := "excluded by "
		if r.Included {
			verb = "outweighs the exclude "
		}
		out = append(out, verb+strings.Join(r.Against, ", "))
	}
	if r.EffectiveOn != "" && r.InForce && r.Kind == "deny" {
		out = append(out, "in force since "+r.EffectiveOn)
	}
	if c := r.Change; c != nil {
		verb := "ends"
		if c.Begins {
			verb = "begins"
		}
		out = append(out, fmt.Sprintf("the %s of %s %s on %s", c.List, c.Item, verb, c.At.UTC().Format(time.RFC3339)))
	}
	return strings.Join(out, "; ")
}
