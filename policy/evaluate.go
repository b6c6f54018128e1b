package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"

	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/verify"
)

// DefaultValidity is how long a verdict holds where the caller says nothing.
const DefaultValidity = 24 * time.Hour

// Context is what a judgement is made in. The zero value judges as of now.
type Context struct {
	// Now is the time of the judgement; zero: the clock's.
	Now time.Time
	// EffectiveTime is the time rules and trusted tasks are taken as of; zero:
	// Now. One in the past switches off rules that came since, so it is refused
	// unless AllowPast is set.
	EffectiveTime time.Time
	AllowPast     bool
	// Component is the image's name in the snapshot; empty: the last element of
	// its repository. Parent is the name of the index it was expanded from.
	Component string
	Parent    string
	// Snapshot is shown to rules; nil: one of this component alone.
	Snapshot *Snapshot
	// ImageConfig is the config object (Labels, Env, …) of the image's
	// configuration blob, as JSON; empty: unknown to rules.
	ImageConfig json.RawMessage
	// ImageParent ({ref, config} of the base image), ImageFiles (parsed files by path)
	// and ImageSource ({git: …}) are input.image's parent, files and source as JSON;
	// empty: unknown to rules.
	ImageParent, ImageFiles, ImageSource json.RawMessage
	// Logs and Witnesses are the names of the transparency logs and witnesses that
	// the verifier trusts; with none, rules that ask for log entries do not.
	Logs      []string
	Witnesses []string
	// Digests is the closure that the verdict is about; empty: the image alone.
	Digests []string
	// Destination is where the image is to be released to, if anywhere.
	Destination string
	// Validity bounds the verdict's expiry; zero: DefaultValidity.
	Validity time.Duration
	// Builtins answer the ec.* functions in this judgement; nil: those that the policy
	// was loaded with. One policy can then be asked about evidence of several places.
	Builtins *builtin.Set
}

// Evaluate judges verified evidence. It returns a verdict only if every selected
// rule of every source ran; an error means that the image could not be checked, and
// no part of the policy's opinion is to be inferred. Where rules ran, but asked a
// registry that did not answer, the verdict is Unchecked.
//
// It is an error too when the rules reach one of Limits; it names them.
func (p *Policy) Evaluate(ctx context.Context, e *verify.Evidence, c Context) (*Verdict, error) {
	if e == nil {
		return nil, errors.New("evaluating policy: no evidence; verify the image first")
	}
	return p.evaluate(ctx, e, c)
}

func (p *Policy) evaluate(ctx context.Context, e evidence, c Context) (*Verdict, error) {
	if len(p.groups) == 0 {
		return nil, errors.New("evaluating policy: it was not loaded")
	}
	when, err := c.times()
	if err != nil {
		return nil, fmt.Errorf("evaluating policy: %w", err)
	}
	facts, err := newInput(e, &c, p.document, p.signers)
	if err != nil {
		return nil, fmt.Errorf("evaluating policy: %w", err)
	}
	facts.target.when = when
	if len(c.Digests) > 0 && !slices.Contains(c.Digests, e.Digest()) {
		return nil, fmt.Errorf("evaluating policy: the closure of %s does not contain it", e.Ref())
	}
	var current atomic.Pointer[session]
	where := func(err error) error {
		if s := current.Load(); s != nil {
			return s.progress.at(err)
		}
		return err
	}
	v, err := bounded(ctx, p.meter, p.limits, where, func(ctx context.Context, cancel topdown.Cancel) (*Verdict, error) {
		v := &Verdict{
			Image:         e.Ref(),
			Component:     facts.doc.ComponentName,
			Policy:        Identified{Name: p.Name(), Digest: p.digest},
			EffectiveTime: when.UTC(),
			BackDated:     when.Before(c.Now),
			Destination:   c.Destination,
			Digests:       slices.Clone(c.Digests),
		}
		if len(v.Digests) == 0 {
			v.Digests = []string{e.Digest()}
		}
		s := p.session(facts, cancel)
		if c.Builtins != nil {
			s.functions = c.Builtins.Topdown()
		}
		current.Store(s)
		best, err := p.judgeRuns(ctx, s, facts, v)
		if err != nil {
			return nil, s.progress.blame(ctx, err)
		}
		v.take(best)
		v.told(s.recorder, facts.target.repository)
		return v, nil
	})
	if err != nil {
		return nil, fmt.Errorf("evaluating policy for %s: %w", e.Ref(), err)
	}
	v.Expiry = p.expiry(&c, when, v)
	// Last, and from nothing but what is reported.
	switch {
	case len(v.Failures) > 0:
		v.Result = Unchecked
	case len(v.Violations) > 0:
		v.Result = Fail
	default:
		v.Result = Pass
	}
	return v, nil
}

// session starts an evaluation, which may ask the registries of the images at hand
// and those that the policy lists.
func (p *Policy) session(f *facts, cancel topdown.Cancel) *session {
	allowed := map[string]bool{}
	for _, h := range p.allowed {
		allowed[registryOf(h+"/x")] = true
	}
	for _, ref := range append([]string{f.doc.Image.Ref}, f.images()...) {
		allowed[registryOf(ref)] = true
	}
	// What names no registry would be everybody's.
	delete(allowed, "")
	rec := &builtin.Recorder{Allow: func(registry string) bool { return allowed[registry] }}
	return &session{when: f.target.when, recorder: rec, cancel: cancel}
}

// registryOf is the registry of a reference as the ec.* functions call it; "" if it
// is no reference.
func registryOf(ref string) string {
	r, err := name.ParseReference(ref)
	if err != nil {
		return ""
	}
	return r.Context().RegistryStr()
}

// told adds what the ec.* functions had to tell.
func (v *Verdict) told(rec *builtin.Recorder, repository string) {
	for _, f := range rec.Failures() {
		switch {
		case f.NotFound:
			v.NotFound = append(v.NotFound, f)
		case f.Unverified:
			// The rule was told, and judged.
		default:
			v.Failures = append(v.Failures, f)
		}
	}
	own := registryOf(repository)
	for _, h := range rec.Hosts() {
		if h != own {
			v.Hosts = append(v.Hosts, h)
		}
	}
}

// times settles Now, and returns the effective time.
func (c *Context) times() (time.Time, error) {
	if c.Now.IsZero() {
		c.Now = time.Now()
	}
	when := c.EffectiveTime
	if when.IsZero() {
		return c.Now, nil
	}
	if when.Before(c.Now) && !c.AllowPast {
		return when, fmt.Errorf("effective time %s is in the past, which switches off newer rules; allow a past effective time if that is meant", when.Format(time.RFC3339))
	}
	return when, nil
}

// judgeRuns evaluates once for each run and returns the outcome that counts:
// the first that passes, or the one with the fewest violations.
func (p *Policy) judgeRuns(ctx context.Context, s *session, f *facts, v *Verdict) (*outcome, error) {
	runs := f.doc.Assay.Runs
	docs, err := f.documents()
	if err != nil {
		return nil, err
	}
	if len(runs) == 0 {
		return p.judge(ctx, s, docs, f.target)
	}
	var best *outcome
	for i := range runs {
		o, err := p.judge(ctx, s, docs[i:i+1], f.target)
		if err != nil {
			return nil, err
		}
		one := RunVerdict{ID: runs[i].ID, Result: Pass}
		for _, r := range o.violations {
			one.Result = Fail
			if !slices.Contains(one.Codes, r.Code) {
				one.Codes = append(one.Codes, r.Code)
			}
		}
		v.Runs = append(v.Runs, one)
		if best == nil || len(o.violations) < len(best.violations) {
			best, v.Run = o, runs[i].ID
		}
	}
	return best, nil
}

// judge evaluates every source over the documents (one, but for the tests that
// replay Conforma's input cases) and adds up.
func (p *Policy) judge(ctx context.Context, s *session, docs []*ast.Term, t target) (*outcome, error) {
	ctx = builtin.Record(ctx, s.recorder)
	all := &outcome{}
	evaluated := 0
	for i, g := range p.groups {
		o, err := p.judgeGroup(ctx, s, g, docs, t)
		if err != nil {
			return nil, fmt.Errorf("source %d: %w", i+1, err)
		}
		if o.empty() {
			all.violations = append(all.violations, Result{
				Code:        "builtin.policy.source_evaluated",
				Msg:         fmt.Sprintf("No rule of source %d (%s) was evaluated for this image", i+1, strings.Join(g.source.Policy, ", ")),
				Title:       "Every source of the policy was evaluated",
				Description: "A source whose configuration leaves no rule checks nothing.",
				Solution:    "Include at least one rule of the source, or remove the source from the policy.",
			})
		} else {
			evaluated++
		}
		all.add(o)
	}
	if evaluated == 0 {
		return nil, errors.New("no rule was evaluated; check the include and exclude items of the policy configuration")
	}
	all.sort()
	return all, nil
}

func (p *Policy) judgeGroup(ctx context.Context, s *session, g *group, docs []*ast.Term, t target) (*outcome, error) {
	c := criteriaFor(&p.spec, g, t)
	var selected []*pack
	for _, name := range sortedKeys(g.packs) {
		if g.packs[name].hasDecision() && c.runs(g.packs[name], g.rules) {
			selected = append(selected, g.packs[name])
		}
	}
	if len(selected) == 0 {
		return categorize(g, nil, c, nil, t.when)
	}
	q, err := g.query(selected)
	if err != nil {
		return nil, err
	}
	store, err := g.store(p, t.when)
	if err != nil {
		return nil, err
	}
	var raw []said
	for _, doc := range docs {
		answer, notes, err := g.run(ctx, s, q, store, doc)
		if err != nil {
			return nil, err
		}
		more, err := collect(q, answer)
		if err != nil {
			return nil, err
		}
		raw = append(append(raw, more...), notes...)
	}
	return categorize(g, selected, c, raw, t.when)
}

func (p *pack) hasDecision() bool { return len(p.rules) > 0 }
