package ec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy/conforma"
)

// render writes the report in a target's form, one component after the other.
func (r *imageReport) render(w io.Writer, t target) error {
	switch t.format {
	case "json":
		return r.json(w)
	case "yaml":
		return r.yaml(w)
	case "text":
		return r.text(w, t.show)
	case "appstudio", "hacbs":
		return encode(w, r.appstudio())
	case "summary":
		s, err := r.summary()
		if err != nil {
			return err
		}
		return encode(w, s)
	case "summary-markdown":
		_, err := io.WriteString(w, r.markdown())
		return err
	case "junit":
		return r.junit(w)
	case "vsa":
		s, err := r.vsa()
		if err != nil {
			return err
		}
		return encode(w, s)
	case "attestation":
		var all []span
		for _, k := range r.kept {
			all = append(all, k.statements...)
		}
		return r.lines(w, all)
	case "policy-input":
		var all []span
		for _, k := range r.kept {
			all = append(all, k.input)
		}
		return r.lines(w, all)
	}
	return fmt.Errorf("%q is not a valid report format", t.format)
}

func encode(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// lines writes pieces, with a line break between them.
func (r *imageReport) lines(w io.Writer, list []span) error {
	for i, p := range list {
		if i > 0 {
			if _, err := io.WriteString(w, "\n"); err != nil {
				return err
			}
		}
		if err := r.spool.copy(w, p); err != nil {
			return err
		}
	}
	return nil
}

// around encodes the report and gives what comes before and after mark in it, which
// is where the components belong.
func (r *imageReport) around(marshal func(any) ([]byte, error), mark string) (before, after []byte, err error) {
	b, err := marshal(r)
	if err != nil {
		return nil, nil, err
	}
	before, after, found := bytes.Cut(b, []byte(mark))
	if !found {
		return nil, nil, fmt.Errorf("writing the report: it has no place for components")
	}
	return before, after, nil
}

func (r *imageReport) json(w io.Writer) error {
	// Nothing before it but booleans and a string, in which quotes are escaped.
	const mark = `"components":[]`
	before, after, err := r.around(json.Marshal, mark)
	if err != nil {
		return err
	}
	if _, err := w.Write(append(before, mark[:len(mark)-1]...)); err != nil {
		return err
	}
	for i, k := range r.kept {
		if i > 0 {
			if _, err := io.WriteString(w, ","); err != nil {
				return err
			}
		}
		if err := r.spool.copy(w, k.entry); err != nil {
			return err
		}
	}
	_, err = w.Write(append([]byte("]"), after...))
	return err
}

func (r *imageReport) yaml(w io.Writer) error {
	if len(r.kept) == 0 {
		b, err := yaml.Marshal(r)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	}
	// At the start of a line there are only keys of the report itself. The assay key
	// sorts before it, and all of its lines are indented or list items of words.
	const mark = "\ncomponents: []\n"
	before, after, err := r.around(func(v any) ([]byte, error) {
		b, err := yaml.Marshal(v)
		return append([]byte("\n"), b...), err
	}, mark)
	if err != nil {
		return err
	}
	before = append(before, "\ncomponents:\n"...)
	if _, err := w.Write(before[1:]); err != nil {
		return err
	}
	for _, k := range r.kept {
		b, err := r.spool.get(k.entry)
		if err != nil {
			return err
		}
		if b, err = yaml.JSONToYAML(append(append([]byte("["), b...), ']')); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	_, err = w.Write(after)
	return err
}

func (r *imageReport) text(w io.Writer, s show) error {
	t := &textReport{success: r.Success, result: r.appstudio().Result, kind: "Components", show: s, colour: r.colour, count: len(r.kept)}
	for _, k := range r.kept {
		t.violations += k.violations
		t.warnings += k.warnings
		t.successes += k.successes
	}
	t.items = func(f func(textItem) error) error {
		return r.components(func(k kept, c *reportComponent) error {
			return f(textItem{
				lines: []string{"Component: " + c.Name, "ImageRef: " + c.ContainerImage}, label: "ImageRef", reference: c.ContainerImage,
				violations: c.Violations, warnings: c.Warnings, successes: c.Successes, successful: k.successes,
			})
		})
	}
	return t.write(w)
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
	for _, k := range r.kept {
		o.Failures += k.violations
		o.Warnings += k.warnings
		o.Successes += k.successes
		failed = failed || !k.success
	}
	o.conclude(failed)
	return o
}

// conclude fills in the result.
func (o *testOutput) conclude(failed bool) {
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

func (r *imageReport) summary() (summary, error) {
	s := summary{Snapshot: r.Snapshot, Key: r.Key}
	err := r.components(func(k kept, c *reportComponent) error {
		s.Components = append(s.Components, summaryOfItem{
			Name: c.Name, Success: c.Success,
			Violations: firstMessages(c.Violations), Warnings: firstMessages(c.Warnings), Successes: firstMessages(c.Successes),
			TotalViolations: k.violations, TotalWarnings: k.warnings, TotalSuccesses: k.successes,
		})
		return nil
	})
	return s, err
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
