package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/verify"
)

// The JSON report has Conforma's fields under Conforma's names, and ours under
// "assay". It is a contract: fields are added, never renamed or removed. Success
// comes last, since that is when it is known.
type jsonHead struct {
	EffectiveTime *time.Time `json:"effective-time,omitempty"`
	Assay         jsonRun    `json:"assay"`
}

type jsonRun struct {
	Policy  policy.Identified `json:"policy"`
	Sources []Source          `json:"sources,omitempty"`
	At      *time.Time        `json:"at,omitempty"`
	Trusted []Trusted         `json:"trusted,omitempty"`
	Skipped []string          `json:"skipped,omitempty"`
}

type jsonComponent struct {
	Name           string          `json:"name"`
	ContainerImage string          `json:"containerImage"`
	Success        bool            `json:"success"`
	Violations     []policy.Result `json:"violations"`
	Warnings       []policy.Result `json:"warnings"`
	Successes      []policy.Result `json:"successes"`
	Assay          jsonAssay       `json:"assay"`
}

type jsonAssay struct {
	// Result is pass, fail, unchecked where rules ran and something they asked is not
	// known, or error where no rule ran.
	Result   string            `json:"result"`
	Error    string            `json:"error,omitempty"`
	Parent   string            `json:"parent,omitempty"`
	Signers  []Signer          `json:"signers,omitempty"`
	Rejected []verify.Rejected `json:"rejected,omitempty"`
	Aside    []Aside           `json:"notJudged,omitempty"`
	Accepted *Accepted         `json:"accepted,omitempty"`
	*verdictRest
}

type verdictRest struct {
	Policy        policy.Identified   `json:"policy"`
	EffectiveTime time.Time           `json:"effectiveTime"`
	BackDated     bool                `json:"backDated,omitempty"`
	Run           string              `json:"run,omitempty"`
	Runs          []policy.RunVerdict `json:"runs,omitempty"`
	Questions     []policy.Answer     `json:"questions"`
	Notes         []policy.Result     `json:"notes,omitempty"`
	Failures      []builtin.Failure   `json:"failures,omitempty"`
	NotFound      []builtin.Failure   `json:"notFound,omitempty"`
	Hosts         []string            `json:"hosts,omitempty"`
	Digests       []string            `json:"digests"`
	Destination   string              `json:"destination,omitempty"`
	Expiry        time.Time           `json:"expiry"`
}

func (r *Run) head() jsonHead {
	h := jsonHead{Assay: jsonRun{Policy: r.Policy, Sources: r.Sources, Trusted: r.Trusted, Skipped: r.Skipped}}
	if !r.EffectiveTime.IsZero() {
		t := r.EffectiveTime.UTC()
		h.EffectiveTime = &t
	}
	if !r.At.IsZero() {
		t := r.At.UTC()
		h.Assay.At = &t
	}
	return h
}

func (e *Entry) component() jsonComponent {
	c := jsonComponent{
		Name: e.name(), ContainerImage: e.ref(), Success: e.Passed(),
		Violations: []policy.Result{}, Warnings: []policy.Result{}, Successes: []policy.Result{},
		Assay: jsonAssay{Parent: e.Parent, Signers: e.Signers, Rejected: e.Rejected, Aside: e.Aside, Accepted: e.Accepted},
	}
	if e.Err != nil {
		c.Assay.Result, c.Assay.Error = "error", e.Err.Error()
		return c
	}
	v := e.Verdict
	// append, so that none is [] and not null.
	c.Violations = append(c.Violations, v.Violations...)
	c.Warnings = append(c.Warnings, v.Warnings...)
	c.Successes = append(c.Successes, v.Successes...)
	c.Assay.Result = string(v.Result)
	c.Assay.verdictRest = &verdictRest{
		Policy: v.Policy, EffectiveTime: v.EffectiveTime, BackDated: v.BackDated,
		Run: v.Run, Runs: v.Runs, Questions: v.Questions, Notes: v.Notes,
		Failures: v.Failures, NotFound: v.NotFound, Hosts: v.Hosts,
		Digests: v.Digests, Destination: v.Destination, Expiry: v.Expiry,
	}
	return c
}

// stream is what the handlers share that write as they go: where to, how it went,
// and how many there were.
type stream struct {
	w     io.Writer
	run   Run
	n     tally
	begun bool
	err   error
}

func newStream(w io.Writer) stream { return stream{w: w, n: tally{}} }

// Start implements Handler.
func (s *stream) Start(r Run) error {
	s.run = r
	return s.err
}

// next checks and counts an entry, and says whether it is the first.
func (s *stream) next(e *Entry) (first bool, err error) {
	if s.err == nil {
		s.err = e.check()
	}
	if s.err != nil {
		return false, s.err
	}
	s.n[e.state()]++
	first = !s.begun
	s.begun = true
	return first, nil
}

func (s *stream) write(parts ...string) error {
	for _, p := range parts {
		if s.err != nil {
			return s.err
		}
		if _, err := io.WriteString(s.w, p); err != nil {
			s.err = fmt.Errorf("writing report: %w", err)
		}
	}
	return s.err
}

// encode is indented JSON below a prefix, without the first line's.
func (s *stream) encode(v any, prefix string) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent(prefix, "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil && s.err == nil {
		s.err = fmt.Errorf("writing report: %w", err)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

type jsonHandler struct{ stream }

// JSON writes one document in Conforma's form, indented, so that a log viewer
// survives it.
func JSON(w io.Writer) Handler { return &jsonHandler{newStream(w)} }

func (h *jsonHandler) open() string {
	head := h.encode(h.run.head(), "")
	return strings.TrimSuffix(head, "\n}") + ",\n  \"components\": ["
}

// Verdict implements Handler.
func (h *jsonHandler) Verdict(e Entry) error {
	first, err := h.next(&e)
	if err != nil {
		return err
	}
	lead := ",\n    "
	if first {
		lead = h.open() + "\n    "
	}
	return h.write(lead, h.encode(e.component(), "    "))
}

// Close implements Handler.
func (h *jsonHandler) Close() error {
	lead := "\n  "
	if !h.begun {
		lead = h.open()
	}
	return h.write(lead, fmt.Sprintf("],\n  \"success\": %t\n}\n", h.n.success()))
}

type yamlHandler struct{ stream }

// YAML writes what JSON does, as YAML.
func YAML(w io.Writer) Handler { return &yamlHandler{newStream(w)} }

func (h *yamlHandler) yaml(v any) string {
	b, err := yaml.Marshal(v)
	if err != nil && h.err == nil {
		h.err = fmt.Errorf("writing report: %w", err)
	}
	return string(b)
}

// Verdict implements Handler.
func (h *yamlHandler) Verdict(e Entry) error {
	first, err := h.next(&e)
	if err != nil {
		return err
	}
	if first {
		if err := h.write(h.yaml(h.run.head()), "components:\n"); err != nil {
			return err
		}
	}
	return h.write(h.yaml([]jsonComponent{e.component()}))
}

// Close implements Handler.
func (h *yamlHandler) Close() error {
	if !h.begun {
		if err := h.write(h.yaml(h.run.head()), "components: []\n"); err != nil {
			return err
		}
	}
	return h.write(fmt.Sprintf("success: %t\n", h.n.success()))
}
