package policytool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/gate/recording"
	"assay.dev/assay/policy"
	"assay.dev/assay/report"
)

// DiffOptions say how two policies are compared.
type DiffOptions struct {
	// At is the time as of which both judge; zero: each recording's own.
	At time.Time
	// Workers is how many recordings are judged at a time. Default: one for each core,
	// at most eight.
	Workers int
}

// Difference is how two policies differ over recorded evidence.
type Difference struct {
	Old    policy.Identified `json:"old"`
	New    policy.Identified `json:"new"`
	Rules  RuleChanges       `json:"rules"`
	Images int               `json:"images"`
	// Fails are images that pass by the old policy and not by the new one, Passes the
	// other way round; Warns have new warnings and the outcome they had.
	Fails  []ImageChange `json:"nowFail"`
	Passes []ImageChange `json:"nowPass"`
	Warns  []ImageChange `json:"newWarnings"`
	// Unchecked could not be judged by one of the policies.
	Unchecked []ImageChange  `json:"unchecked"`
	Sources   SourcesChanges `json:"sources"`
}

// RuleChanges are the codes of rules that are in one policy only, or of which
// annotations, kind, date or inclusion differ.
type RuleChanges struct {
	Added   []string `json:"added"`
	Removed []string `json:"removed"`
	Changed []string `json:"changed"`
}

// SourcesChanges are what the two policies were read from.
type SourcesChanges struct {
	Old []CheckedSource `json:"old"`
	New []CheckedSource `json:"new"`
}

// ImageChange is what changes for one image.
type ImageChange struct {
	Image     string `json:"image"`
	Component string `json:"component,omitempty"`
	Recording string `json:"recording"`
	Old       string `json:"old"`
	New       string `json:"new"`
	// Codes are those of the new violations, or warnings; for what passes now, of the
	// violations that are gone.
	Codes []string `json:"codes"`
	Cause string   `json:"cause,omitempty"` // of what could not be checked
}

// Recordings are the recordings at a path: the folder itself, or those in it. It fails
// where there is none.
func Recordings(path string) ([]string, error) {
	is := func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "recording.json"))
		return err == nil
	}
	if is(path) {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("reading recordings: %w; `assay gate --record DIR` makes one", err)
	}
	var out []string
	for _, e := range entries {
		if dir := filepath.Join(path, e.Name()); e.IsDir() && is(dir) {
			out = append(out, dir)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("reading recordings: there is none in %s; `assay gate --record DIR` makes one", path)
	}
	return out, nil
}

// Diff judges what was recorded by two policies, several recordings at a time, and says
// what differs. It keeps of each image what changes, and nothing of its evidence. It
// fails on a recording that cannot be read; an image that cannot be judged is told.
func Diff(ctx context.Context, before, after *policy.Policy, dirs []string, o DiffOptions) (*Difference, error) {
	d := &Difference{
		Old: policy.Identified{Name: before.Name(), Digest: before.Digest()}, New: policy.Identified{Name: after.Name(), Digest: after.Digest()},
		Rules: ruleChanges(before.Rules(o.At), after.Rules(o.At)), Fails: []ImageChange{}, Passes: []ImageChange{}, Warns: []ImageChange{}, Unchecked: []ImageChange{},
		Sources: SourcesChanges{sourcesOf(before), sourcesOf(after)},
	}
	workers := o.Workers
	if workers <= 0 {
		workers = min(runtime.NumCPU(), 8)
	}
	type pair struct {
		before, after []judged
		err           error
	}
	all := make([]pair, len(dirs))
	turns := make(chan struct{}, workers)
	var wg sync.WaitGroup
	for i, dir := range dirs {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			if all[i].before, all[i].err = replay(ctx, dir, before, o.At); all[i].err == nil {
				all[i].after, all[i].err = replay(ctx, dir, after, o.At)
			}
		})
	}
	wg.Wait()
	for i, p := range all {
		if p.err == nil && len(p.before) != len(p.after) {
			p.err = errors.New("the policies were shown different images")
		}
		if p.err != nil {
			return nil, fmt.Errorf("judging the recording %s: %w", dirs[i], p.err)
		}
		for j := range p.before {
			d.image(dirs[i], &p.before[j], &p.after[j])
		}
	}
	return d, nil
}

// judged is what is kept of an image's verdict.
type judged struct {
	image, component, outcome, cause string
	violations, warnings             []string
}

func replay(ctx context.Context, dir string, p *policy.Policy, at time.Time) ([]judged, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := recording.Open(dir, "")
	if err != nil {
		return nil, err
	}
	g := &gate.Gate{Policy: p, Workers: 1}
	if err := r.Apply(g); err != nil {
		return nil, err
	}
	if err := g.Believe(); err != nil {
		return nil, err
	}
	if !at.IsZero() {
		g.Context.EffectiveTime, g.Context.AllowPast, g.AttestationTime = at, true, false
	}
	if g.Context.Builtins, err = g.Functions(); err != nil {
		return nil, err
	}
	s := r.Case().Snapshot
	if s == nil {
		return nil, errors.New("it names no images")
	}
	var out []judged
	_, err = g.Stream(ctx, s, func(e report.Entry) error {
		out = append(out, judgedOf(&e))
		return nil
	})
	return out, err
}

func judgedOf(e *report.Entry) judged {
	j := judged{image: e.Image, component: e.Component, outcome: string(policy.Fail)}
	switch {
	case e.Passed():
		j.outcome = string(policy.Pass)
	case e.Unchecked():
		j.outcome = string(policy.Unchecked)
	}
	if e.Err != nil {
		j.cause = e.Err.Error()
	}
	if v := e.Verdict; v != nil {
		for _, f := range v.Failures {
			j.cause = f.Function + "(" + f.Ref + "): " + f.Cause
		}
		j.violations, j.warnings = codes(v.Violations), codes(v.Warnings)
	}
	return j
}

func codes(list []policy.Result) []string {
	var out []string
	for _, r := range list {
		c := r.Code
		if c == "" {
			c = r.Msg
		}
		out = append(out, c)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (d *Difference) image(dir string, a, b *judged) {
	d.Images++
	c := ImageChange{Image: b.image, Component: b.component, Recording: dir, Old: a.outcome, New: b.outcome}
	unchecked := string(policy.Unchecked)
	switch {
	case a.outcome == unchecked || b.outcome == unchecked:
		c.Codes = without(b.violations, a.violations)
		if c.Cause = b.cause; b.outcome != unchecked {
			c.Cause = a.cause
		}
		d.Unchecked = append(d.Unchecked, c)
	case a.outcome != b.outcome && b.outcome == string(policy.Fail):
		c.Codes = without(b.violations, a.violations)
		d.Fails = append(d.Fails, c)
	case a.outcome != b.outcome:
		c.Codes = without(a.violations, b.violations)
		d.Passes = append(d.Passes, c)
	default:
		if c.Codes = without(b.warnings, a.warnings); len(c.Codes) > 0 {
			d.Warns = append(d.Warns, c)
		}
	}
}

// without is what of a list another does not have.
func without(list, other []string) []string {
	out := []string{}
	for _, s := range list {
		if !slices.Contains(other, s) {
			out = append(out, s)
		}
	}
	return out
}

func ruleChanges(before, after []policy.RuleInfo) RuleChanges {
	index := func(list []policy.RuleInfo) map[string]policy.RuleInfo {
		m := map[string]policy.RuleInfo{}
		for _, r := range list {
			key := codeOf(&r)
			// Where a rule stands is no change of it.
			r.File, r.Line, r.Source = "", 0, 0
			m[key] = r
		}
		return m
	}
	a, b := index(before), index(after)
	c := RuleChanges{Added: []string{}, Removed: []string{}, Changed: []string{}}
	for _, code := range sortedNames(b) {
		switch old, ok := a[code]; {
		case !ok:
			c.Added = append(c.Added, code)
		case !reflect.DeepEqual(old, b[code]):
			c.Changed = append(c.Changed, code)
		}
	}
	for _, code := range sortedNames(a) {
		if _, ok := b[code]; !ok {
			c.Removed = append(c.Removed, code)
		}
	}
	return c
}

func sourcesOf(p *policy.Policy) []CheckedSource {
	out := []CheckedSource{}
	for _, t := range p.Sources() {
		out = append(out, CheckedSource{t.Address, t.Pinned, t.Digest})
	}
	return out
}

// WriteText writes the difference as a person reads it.
func (d *Difference) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "old %s %s\nnew %s %s\n", d.Old.Name, d.Old.Digest, d.New.Name, d.New.Digest)
	for _, l := range []struct {
		what string
		list []string
	}{{"added", d.Rules.Added}, {"removed", d.Rules.Removed}, {"changed", d.Rules.Changed}} {
		if len(l.list) > 0 {
			fmt.Fprintf(&b, "rules %s: %s\n", l.what, strings.Join(l.list, ", "))
		}
	}
	for _, l := range []struct {
		what string
		list []ImageChange
	}{{"would now fail", d.Fails}, {"would now pass", d.Passes}, {"would have new warnings", d.Warns}, {"could not be checked", d.Unchecked}} {
		fmt.Fprintf(&b, "%d of %d images %s\n", len(l.list), d.Images, l.what)
		for _, c := range l.list {
			fmt.Fprintf(&b, "  %s (%s)", c.Image, c.Component)
			if len(c.Codes) > 0 {
				fmt.Fprintf(&b, ": %s", printable(strings.Join(c.Codes, ", ")))
			}
			if c.Cause != "" {
				fmt.Fprintf(&b, ": %s", printable(c.Cause))
			}
			b.WriteByte('\n')
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
