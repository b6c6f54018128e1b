package report

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"assay.dev/assay/policy"
)

// The JSON report has Conforma's fields under Conforma's names, and ours under
// "assay". It is a contract: fields are added, never renamed or removed.
type jsonReport struct {
	// Success: every image was checked and passed, and there was one.
	Success       bool            `json:"success"`
	Components    []jsonComponent `json:"components"`
	EffectiveTime *time.Time      `json:"effective-time,omitempty"`
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
	Result string `json:"result"` // pass, fail, or error where the image could not be checked
	Error  string `json:"error,omitempty"`
	*verdictRest
}

type verdictRest struct {
	Policy      policy.Identified   `json:"policy"`
	Run         string              `json:"run,omitempty"`
	Runs        []policy.RunVerdict `json:"runs,omitempty"`
	Questions   []policy.Answer     `json:"questions"`
	Notes       []policy.Result     `json:"notes,omitempty"`
	Digests     []string            `json:"digests"`
	Destination string              `json:"destination,omitempty"`
	Expiry      time.Time           `json:"expiry"`
}

type jsonHandler struct {
	w      io.Writer
	report jsonReport
	err    error
}

// JSON writes one document at Close, in Conforma's form, indented, so that a log
// viewer survives it.
func JSON(w io.Writer) Handler {
	return &jsonHandler{w: w, report: jsonReport{Success: true, Components: []jsonComponent{}}}
}

func (h *jsonHandler) Verdict(e Entry) error {
	if err := e.check(); err != nil {
		h.err = err
		return err
	}
	h.report.Success = h.report.Success && e.success()
	c := jsonComponent{ContainerImage: e.Image, Success: e.success(), Violations: []policy.Result{}, Warnings: []policy.Result{}, Successes: []policy.Result{}}
	if e.Err != nil {
		c.Assay = jsonAssay{Result: "error", Error: e.Err.Error()}
	} else {
		v := e.Verdict
		c.Name, c.ContainerImage = v.Component, v.Image
		// append, so that none is [] and not null.
		c.Violations = append(c.Violations, v.Violations...)
		c.Warnings = append(c.Warnings, v.Warnings...)
		c.Successes = append(c.Successes, v.Successes...)
		c.Assay = jsonAssay{Result: string(v.Result), verdictRest: &verdictRest{
			Policy: v.Policy, Run: v.Run, Runs: v.Runs, Questions: v.Questions, Notes: v.Notes,
			Digests: v.Digests, Destination: v.Destination, Expiry: v.Expiry,
		}}
		when := v.EffectiveTime
		h.report.EffectiveTime = &when
	}
	h.report.Components = append(h.report.Components, c)
	return nil
}

func (h *jsonHandler) Close() error {
	if h.err != nil {
		return h.err
	}
	h.report.Success = h.report.Success && len(h.report.Components) > 0
	enc := json.NewEncoder(h.w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(h.report); err != nil {
		return fmt.Errorf("writing report: %w", err)
	}
	return nil
}
