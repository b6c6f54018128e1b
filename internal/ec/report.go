package ec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/conforma"
	"assay.dev/assay/verify"
)

// imageFormats are those that reports of images are written in.
var imageFormats = []string{"json", "yaml", "text", "appstudio", "hacbs", "summary", "summary-markdown", "junit", "attestation", "policy-input"}

// imageReport is the report of `validate image`.
type imageReport struct {
	Success       bool              `json:"success"`
	Snapshot      string            `json:"snapshot,omitempty"`
	Components    []reportComponent `json:"components"`
	Key           string            `json:"key"`
	Policy        *conforma.Spec    `json:"policy"`
	Version       string            `json:"ec-version"`
	EffectiveTime time.Time         `json:"effective-time"`
	Assay         *additions        `json:"assay,omitempty"`

	created time.Time
	inputs  [][]byte
	colour  bool
}

type reportComponent struct {
	component
	Violations   []conforma.Result   `json:"violations,omitempty"`
	Warnings     []conforma.Result   `json:"warnings,omitempty"`
	Successes    []conforma.Result   `json:"successes,omitempty"`
	Success      bool                `json:"success"`
	Signatures   []signature         `json:"signatures,omitempty"`
	Attestations []reportAttestation `json:"attestations,omitempty"`

	successful int
	statements [][]byte
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
	// SetAside is evidence that did not verify, by image.
	SetAside map[string][]verify.Rejected `json:"setAside,omitempty"`
	// NestedPackages are packages of several segments that are included and that
	// Conforma leaves out. NestedViolations says that only they have violations.
	NestedPackages   []string `json:"nestedPackages,omitempty"`
	NestedViolations bool     `json:"nestedViolations,omitempty"`
}

func (a *additions) empty() bool {
	return len(a.SkippedChecks) == 0 && !a.PastEffectiveTime && len(a.BuiltinFailures) == 0 && len(a.ForeignRegistries) == 0 && len(a.SetAside) == 0 && len(a.NestedPackages) == 0
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

// report makes the report. Packages of several segments come in where nothing
// else fails and they do.
func (j *judge) report(list []*judged, add *additions, showSuccesses bool) *imageReport {
	r := &imageReport{
		Success: true, Key: j.pem, Policy: j.spec.Pinned(), Version: Version(), EffectiveTime: j.when,
		Components: []reportComponent{}, created: time.Now().UTC(), colour: false,
	}
	success := !slices.ContainsFunc(list, func(o *judged) bool { return len(o.violations) > 0 })
	home := map[string]bool{}
	for _, o := range list {
		add.note(o.component.ContainerImage, o.evaluation)
		host, _, _ := strings.Cut(o.component.ContainerImage, "/")
		home[host] = true
		if len(o.setAside) > 0 {
			if add.SetAside == nil {
				add.SetAside = map[string][]verify.Rejected{}
			}
			add.SetAside[o.component.ContainerImage] = o.setAside
		}
		if success && o.evaluation != nil && failing(o.evaluation.Nested) {
			add.NestedViolations = true
		}
	}
	add.ForeignRegistries = slices.DeleteFunc(add.ForeignRegistries, func(h string) bool { return home[h] })
	slices.Sort(add.ForeignRegistries)
	slices.SortStableFunc(list, func(a, b *judged) int { return strings.Compare(b.component.ContainerImage, a.component.ContainerImage) })
	for _, o := range list {
		if add.NestedViolations && o.evaluation != nil {
			o.take(o.evaluation.Nested)
		}
		r.Components = append(r.Components, o.entry(j.info, showSuccesses))
		r.Success = r.Success && len(o.violations) == 0
		r.inputs = append(r.inputs, o.input)
		if r.EffectiveTime.IsZero() || j.when.IsZero() && o.when.After(r.EffectiveTime) {
			r.EffectiveTime = o.when
		}
	}
	if r.EffectiveTime.IsZero() {
		r.EffectiveTime = r.created
	}
	if !add.empty() {
		r.Assay = add
	}
	return r
}

func (j *judged) entry(info, showSuccesses bool) reportComponent {
	for _, l := range [][]conforma.Result{j.violations, j.warnings, j.successes} {
		conforma.Sort(l)
		if !info {
			conforma.Condense(l)
		}
	}
	c := reportComponent{
		component: j.component, Violations: j.violations, Warnings: j.warnings, Success: len(j.violations) == 0,
		Signatures: j.signatures, successful: len(j.successes),
	}
	if showSuccesses {
		c.Successes = j.successes
	}
	for i, a := range j.attestations {
		c.Attestations = append(c.Attestations, reportAttestation{
			Type: statementV01, PredicateType: j.parsed[i].predicateType, PredicateBuildType: j.parsed[i].buildType, Signatures: a.signatures,
		})
		c.statements = append(c.statements, a.statement)
	}
	return c
}

// render writes the report in a target's form.
func (r *imageReport) render(t target) ([]byte, error) {
	switch t.format {
	case "json":
		return json.Marshal(r)
	case "yaml":
		return yaml.Marshal(r)
	case "text":
		return []byte(r.text(t.show)), nil
	case "appstudio", "hacbs":
		return json.Marshal(r.appstudio())
	case "summary":
		return json.Marshal(r.summary())
	case "summary-markdown":
		return []byte(r.markdown()), nil
	case "junit":
		return r.junit()
	case "attestation":
		var all [][]byte
		for _, c := range r.Components {
			all = append(all, c.statements...)
		}
		return bytes.Join(all, []byte("\n")), nil
	case "policy-input":
		return bytes.Join(r.inputs, []byte("\n")), nil
	}
	return nil, fmt.Errorf("%q is not a valid report format", t.format)
}

func (r *imageReport) text(s show) string {
	t := &textReport{success: r.Success, result: r.appstudio().Result, kind: "Components", show: s, colour: r.colour}
	for _, c := range r.Components {
		t.items = append(t.items, textItem{
			lines: []string{"Component: " + c.Name, "ImageRef: " + c.ContainerImage}, label: "ImageRef", reference: c.ContainerImage,
			violations: c.Violations, warnings: c.Warnings, successes: c.Successes, successful: c.successful,
		})
	}
	return t.String()
}

// testOutput is the result TEST_OUTPUT of a Tekton task.
type testOutput struct {
	Timestamp string `json:"timestamp"`
	Namespace string `json:"namespace"`
	Successes int    `json:"successes"`
	Failures  int    `json:"failures"`
	Warnings  int    `json:"warnings"`
	Result    string `json:"result"`
	Note      string `json:"note,omitempty"`
}

func (r *imageReport) appstudio() testOutput {
	o := testOutput{Timestamp: strconv.FormatInt(r.created.Unix(), 10)}
	failed := false
	for _, c := range r.Components {
		o.Failures += len(c.Violations)
		o.Warnings += len(c.Warnings)
		o.Successes += c.successful
		failed = failed || !c.Success
	}
	switch {
	case o.Failures > 0 || failed:
		o.Result = "FAILURE"
	case o.Warnings > 0:
		o.Result = "WARNING"
	case o.Successes == 0:
		o.Result = "SKIPPED"
	default:
		o.Result = "SUCCESS"
	}
	return o
}

// summary is a report with one message for each code.
type summary struct {
	Snapshot   string          `json:"snapshot,omitempty"`
	Components []summaryOfItem `json:"components"`
	// Success is always false, as Conforma has it.
	Success bool   `json:"success"`
	Key     string `json:"key"`
}

type summaryOfItem struct {
	Name            string              `json:"name"`
	Success         bool                `json:"success"`
	Violations      map[string][]string `json:"violations"`
	Warnings        map[string][]string `json:"warnings"`
	Successes       map[string][]string `json:"successes"`
	TotalViolations int                 `json:"total_violations"`
	TotalWarnings   int                 `json:"total_warnings"`
	TotalSuccesses  int                 `json:"total_successes"`
}

func (r *imageReport) summary() summary {
	s := summary{Snapshot: r.Snapshot, Key: r.Key}
	for _, c := range r.Components {
		s.Components = append(s.Components, summaryOfItem{
			Name: c.Name, Success: c.Success,
			Violations: firstMessages(c.Violations), Warnings: firstMessages(c.Warnings), Successes: firstMessages(c.Successes),
			TotalViolations: len(c.Violations), TotalWarnings: len(c.Warnings), TotalSuccesses: c.successful,
		})
	}
	return s
}

// firstMessages are the first message of each code, and how many more there are.
func firstMessages(list []conforma.Result) map[string][]string {
	out, count := map[string][]string{}, map[string]int{}
	for _, r := range list {
		v, ok := r.Metadata["code"]
		if !ok {
			continue
		}
		code := fmt.Sprint(v)
		if count[code]++; count[code] == 1 {
			out[code] = []string{r.Message}
		}
	}
	for code := range out {
		if n := count[code] - 1; n > 0 {
			out[code] = append(out[code], fmt.Sprintf("There are %d more %q messages", n, code))
		}
	}
	return out
}

func (r *imageReport) markdown() string {
	o := r.appstudio()
	icon := func(ok bool) string {
		if ok {
			return ":white_check_mark:"
		}
		return ":x:"
	}
	var b strings.Builder
	b.WriteString("| Field     | Value |Status|\n|-----------|-------|-------|\n")
	row := func(field string, value any, icon string) { fmt.Fprintf(&b, "| %s | %v | %s |\n", field, value, icon) }
	row("Time", r.created.Format(time.DateTime), "")
	row("Successes", o.Successes, icon(o.Successes >= 1 && o.Failures == 0))
	row("Failures", o.Failures, icon(o.Failures == 0))
	row("Warnings", o.Warnings, icon(o.Warnings == 0))
	row("Result", "", icon(r.Success))
	return b.String()
}
