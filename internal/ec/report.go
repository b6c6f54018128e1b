package ec

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/conforma"
	"assay.dev/assay/verify"
)

// imageFormats are those that reports of images are written in.
var imageFormats = []string{"json", "yaml", "text", "appstudio", "hacbs", "summary", "summary-markdown", "junit", "attestation", "policy-input", "vsa"}

// imageReport is the report of `validate image`.
type imageReport struct {
	Success       bool            `json:"success"`
	Snapshot      string          `json:"snapshot,omitempty"`
	Components    json.RawMessage `json:"components"` // stands for those in kept
	Key           string          `json:"key"`
	Policy        *conforma.Spec  `json:"policy"`
	Version       string          `json:"ec-version"`
	EffectiveTime time.Time       `json:"effective-time"`
	Assay         *additions      `json:"assay,omitempty"`

	created time.Time
	colour  bool
	kept    []kept // as the report lists them
	spool   spool
}

// kept is a component whose results lie encoded in the spool.
type kept struct {
	component
	order      int  // of the snapshot
	entry      span // a reportComponent
	nested     span // the results of packages of several segments, if there are any
	statements []span
	input      span

	success                         bool
	violations, warnings, successes int // all there are
	listed                          int // successes that the entry has
}

// wanted is what a report keeps for its forms.
type wanted struct{ successes, statements, inputs bool }

func wantedBy(sh show, to []target) wanted {
	w := wanted{successes: sh.successes}
	for _, t := range to {
		w.successes = w.successes || t.show.successes
		w.statements = w.statements || t.format == "attestation"
		w.inputs = w.inputs || t.format == "policy-input"
	}
	return w
}

type reportComponent struct {
	component
	Violations   []conforma.Result   `json:"violations,omitempty"`
	Warnings     []conforma.Result   `json:"warnings,omitempty"`
	Successes    []conforma.Result   `json:"successes,omitempty"`
	Success      bool                `json:"success"`
	Signatures   []signature         `json:"signatures,omitempty"`
	Attestations []reportAttestation `json:"attestations,omitempty"`
}

type reportAttestation struct {
	Type               string      `json:"type,omitempty"`
	PredicateType      string      `json:"predicateType,omitempty"`
	PredicateBuildType string      `json:"predicateBuildType,omitempty"`
	Signatures         []signature `json:"signatures,omitempty"`
}

// additions are what Conforma's report does not say.
type additions struct {
	// SkippedChecks are checks of signatures that were switched off.
	SkippedChecks []string `json:"skippedChecks,omitempty"`
	// PastEffectiveTime says that rules were taken as of a time in the past.
	PastEffectiveTime bool `json:"pastEffectiveTime,omitempty"`
	// BuiltinFailures are calls of built-in functions without an answer, by image or
	// file.
	BuiltinFailures map[string][]builtin.Failure `json:"builtinFailures,omitempty"`
	// ForeignRegistries are registries that rules named and that hold none of the
	// images.
	ForeignRegistries []string `json:"foreignRegistries,omitempty"`
	// Signer is who had to have signed, and SignedBy who did what counted, by image.
	Signer   *signerOf             `json:"signer,omitempty"`
	SignedBy map[string][]signedBy `json:"signedBy,omitempty"`
	// CouldNotCheck is what could not be found out and why, by image: a registry or a
	// log that did not answer, not an image that is bad.
	CouldNotCheck map[string]string `json:"couldNotCheck,omitempty"`
	// LogsAsked are the transparency logs that were searched for entries.
	LogsAsked []string `json:"logsAsked,omitempty"`
	// Summaries are verification summaries that stood in for judging an image.
	Summaries map[string]*takenSummary `json:"acceptedSummaries,omitempty"`
	// SetAside is evidence that did not verify, by image.
	SetAside map[string][]verify.Rejected `json:"setAside,omitempty"`
	// NestedPackages are packages of several segments that are included and that
	// Conforma leaves out. NestedViolations says that only they have violations.
	NestedPackages   []string `json:"nestedPackages,omitempty"`
	NestedViolations bool     `json:"nestedViolations,omitempty"`
}

func (a *additions) empty() bool {
	return len(a.SkippedChecks) == 0 && !a.PastEffectiveTime && len(a.BuiltinFailures) == 0 && len(a.ForeignRegistries) == 0 && len(a.SetAside) == 0 && len(a.Summaries) == 0 && a.Signer == nil && len(a.CouldNotCheck) == 0 && len(a.LogsAsked) == 0 && len(a.NestedPackages) == 0
}

// note adds what an evaluation of about tells.
func (a *additions) note(about string, e *conforma.Evaluation) {
	if e == nil {
		return
	}
	if len(e.Failures) > 0 {
		if a.BuiltinFailures == nil {
			a.BuiltinFailures = map[string][]builtin.Failure{}
		}
		a.BuiltinFailures[about] = e.Failures
	}
	for _, h := range e.Hosts {
		if !slices.Contains(a.ForeignRegistries, h) {
			a.ForeignRegistries = append(a.ForeignRegistries, h)
		}
	}
	for _, o := range e.Nested {
		if !slices.Contains(a.NestedPackages, o.Namespace) {
			a.NestedPackages = append(a.NestedPackages, o.Namespace)
		}
	}
}

func failing(outcomes []conforma.Outcome) bool {
	return slices.ContainsFunc(outcomes, func(o conforma.Outcome) bool { return len(o.Failures) > 0 })
}

// report judges all components and makes the report. What is known of a component
// is encoded at once, so that reports of many take no more memory than those of few.
// Packages of several segments come in where nothing else fails and they do. Where
// one component cannot be judged there is no report, as with Conforma; the error
// names each. The caller closes the report.
func (j *judge) report(ctx context.Context, add *additions, want wanted) (*imageReport, error) {
	r := &imageReport{
		Key: j.demand.PublicKey, Policy: j.spec, Version: Version(), EffectiveTime: j.when,
		Components: json.RawMessage("[]"), created: time.Now().UTC(),
	}
	list := j.snapshot.Components
	if j.only != nil {
		list = j.only
	}
	errs := make([]error, len(list))
	home := map[string]bool{}
	nested := false
	var mu sync.Mutex // guards r, add, home and nested
	j.each(len(list), func(i int) {
		if ctx.Err() != nil {
			errs[i] = context.Cause(ctx)
			return
		}
		o, err := j.component(ctx, list[i])
		if err != nil {
			errs[i] = fmt.Errorf("error validating image %s of component %s: %w", list[i].ContainerImage, list[i].Name, err)
			return
		}
		j.debugf("judged %s of component %s: %d violations", o.component.ContainerImage, o.component.Name, len(o.violations))
		p, err := j.encode(o, want)
		if err != nil {
			errs[i] = err
			return
		}
		mu.Lock()
		defer mu.Unlock()
		host, _, _ := strings.Cut(o.component.ContainerImage, "/")
		home[host] = true
		add.tell(o)
		nested = nested || o.evaluation != nil && failing(o.evaluation.Nested)
		if r.EffectiveTime.IsZero() || j.when.IsZero() && o.when.After(r.EffectiveTime) {
			r.EffectiveTime = o.when
		}
		errs[i] = r.keep(i, p)
	})
	if err := errors.Join(errs...); err != nil {
		return nil, errors.Join(err, r.close())
	}
	slices.SortFunc(r.kept, func(a, b kept) int {
		return cmp.Or(strings.Compare(b.ContainerImage, a.ContainerImage), cmp.Compare(a.order, b.order))
	})
	add.Signer, add.LogsAsked = j.demand.signer(), j.verify.search.hosts()
	add.ForeignRegistries = slices.DeleteFunc(add.ForeignRegistries, func(h string) bool { return home[h] })
	slices.Sort(add.ForeignRegistries)
	slices.Sort(add.NestedPackages)
	r.Success = !slices.ContainsFunc(r.kept, func(k kept) bool { return !k.success })
	if add.NestedViolations = r.Success && nested; add.NestedViolations {
		if err := r.unfold(j.info, want); err != nil {
			return nil, errors.Join(err, r.close())
		}
		r.Success = false
	}
	if r.EffectiveTime.IsZero() {
		r.EffectiveTime = r.created
	}
	if !add.empty() {
		r.Assay = add
	}
	return r, nil
}

// tell adds what a component tells.
func (a *additions) tell(o *judged) {
	image := o.component.ContainerImage
	a.note(image, o.evaluation)
	if o.taken != nil {
		if a.Summaries == nil {
			a.Summaries = map[string]*takenSummary{}
		}
		a.Summaries[image] = o.taken
	}
	if o.unchecked != "" {
		if a.CouldNotCheck == nil {
			a.CouldNotCheck = map[string]string{}
		}
		a.CouldNotCheck[image] = o.unchecked
	}
	if len(o.by) > 0 {
		if a.SignedBy == nil {
			a.SignedBy = map[string][]signedBy{}
		}
		a.SignedBy[image] = o.by
	}
	if len(o.setAside) > 0 {
		if a.SetAside == nil {
			a.SetAside = map[string][]verify.Rejected{}
		}
		a.SetAside[image] = o.setAside
	}
}

// encoded is what becomes of a judged component before it is kept.
type encoded struct {
	kept
	entry, nested, input []byte
	statements           [][]byte
}

func (j *judge) encode(o *judged, want wanted) (*encoded, error) {
	out := &encoded{}
	c := o.entry(j.info)
	if err := out.fill(c, want); err != nil {
		return nil, err
	}
	if o.evaluation != nil && len(o.evaluation.Nested) > 0 {
		more := &judged{}
		more.take(o.evaluation.Nested)
		// With the successes: whether they are listed is decided when they come in.
		e := more.entry(j.info)
		if c.Successes != nil {
			e.Successes = append(e.Successes, c.Successes...)
		}
		var err error
		if out.nested, err = json.Marshal(e); err != nil {
			return nil, fmt.Errorf("encoding the results of %s: %w", c.ContainerImage, err)
		}
	}
	if want.statements {
		for _, a := range o.attestations {
			out.statements = append(out.statements, a.statement)
		}
	}
	if want.inputs {
		out.input = o.input
	}
	return out, nil
}

// fill encodes a component, without successes that nobody wants to see.
func (e *encoded) fill(c *reportComponent, want wanted) error {
	e.component, e.success = c.component, c.Success
	e.violations, e.warnings, e.successes = len(c.Violations), len(c.Warnings), len(c.Successes)
	shown := *c
	if !want.successes {
		shown.Successes = nil
	}
	e.listed = len(shown.Successes)
	var err error
	if e.entry, err = json.Marshal(&shown); err != nil {
		return fmt.Errorf("encoding the results of %s: %w", c.ContainerImage, err)
	}
	return nil
}

func (r *imageReport) keep(order int, e *encoded) error {
	k := e.kept
	k.order = order
	var errs [3]error
	k.entry, errs[0] = r.spool.put(e.entry)
	k.nested, errs[1] = r.spool.put(e.nested)
	k.input, errs[2] = r.spool.put(e.input)
	for _, s := range e.statements {
		p, err := r.spool.put(s)
		if err != nil {
			return err
		}
		k.statements = append(k.statements, p)
	}
	r.kept = append(r.kept, k)
	return errors.Join(errs[:]...)
}

// unfold adds the results of packages of several segments to those of all others.
func (r *imageReport) unfold(info bool, want wanted) error {
	for i := range r.kept {
		k := &r.kept[i]
		if k.nested.n == 0 {
			continue
		}
		var c, more reportComponent
		if err := errors.Join(r.decode(k.entry, &c), r.decode(k.nested, &more)); err != nil {
			return err
		}
		c.Violations, c.Warnings = append(c.Violations, more.Violations...), append(c.Warnings, more.Warnings...)
		c.Successes, c.Success = more.Successes, len(c.Violations) == 0
		sorted(info, c.Violations, c.Warnings, c.Successes)
		e := &encoded{}
		if err := e.fill(&c, want); err != nil {
			return err
		}
		var err error
		if k.entry, err = r.spool.put(e.entry); err != nil {
			return err
		}
		k.success, k.violations, k.warnings, k.successes, k.listed = e.success, e.violations, e.warnings, e.successes, e.listed
	}
	return nil
}

// decode reads a piece, with numbers as they are written.
func (r *imageReport) decode(p span, to any) error {
	b, err := r.spool.get(p)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("reading kept results: %w", err)
	}
	return nil
}

// components gives one component after the other as the report lists them.
func (r *imageReport) components(f func(kept, *reportComponent) error) error {
	for _, k := range r.kept {
		c := new(reportComponent)
		if err := r.decode(k.entry, c); err != nil {
			return err
		}
		if err := f(k, c); err != nil {
			return err
		}
	}
	return nil
}

// close gives back what the report kept. It cannot be written after.
func (r *imageReport) close() error { return r.spool.close() }

func sorted(info bool, lists ...[]conforma.Result) {
	for _, l := range lists {
		conforma.Sort(l)
		if !info {
			conforma.Condense(l)
		}
	}
}

func (j *judged) entry(info bool) *reportComponent {
	sorted(info, j.violations, j.warnings, j.successes)
	c := &reportComponent{
		component: j.component, Violations: j.violations, Warnings: j.warnings, Successes: j.successes,
		Success: len(j.violations) == 0, Signatures: j.signatures,
	}
	for i, a := range j.attestations {
		c.Attestations = append(c.Attestations, reportAttestation{
			Type: statementV01, PredicateType: j.parsed[i].predicateType, PredicateBuildType: j.parsed[i].buildType, Signatures: a.signatures,
		})
	}
	return c
}
