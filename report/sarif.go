package report

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"assay.dev/assay/policy"
)

// sarifSchema is what readers of SARIF 2.1.0 look for.
const sarifSchema = "https://json.schemastore.org/sarif-2.1.0.json"

type sarifText struct {
	Text string `json:"text"`
}

type sarifRule struct {
	ID               string          `json:"id"`
	ShortDescription *sarifText      `json:"shortDescription,omitempty"`
	FullDescription  *sarifText      `json:"fullDescription,omitempty"`
	Help             *sarifText      `json:"help,omitempty"`
	Properties       *sarifRuleProps `json:"properties,omitempty"`
}

type sarifRuleProps struct {
	Tags  []string `json:"tags,omitempty"`
	Since string   `json:"since,omitempty"`
}

type sarifResult struct {
	RuleID              string            `json:"ruleId"`
	Kind                string            `json:"kind"`
	Level               string            `json:"level"`
	Message             sarifText         `json:"message"`
	Locations           []sarifLocation   `json:"locations"`
	PartialFingerprints map[string]string `json:"partialFingerprints"`
	Properties          map[string]any    `json:"properties,omitempty"`
}

type sarifLocation struct {
	Physical sarifPhysical  `json:"physicalLocation"`
	Logical  []sarifLogical `json:"logicalLocations"`
}

type sarifPhysical struct {
	Artifact sarifArtifact `json:"artifactLocation"`
}

type sarifArtifact struct {
	URI string `json:"uri"`
}

type sarifLogical struct {
	FullyQualifiedName string `json:"fullyQualifiedName"`
	Kind               string `json:"kind"`
}

type sarifNotification struct {
	Level   string    `json:"level"`
	Message sarifText `json:"message"`
}

type sarifInvocation struct {
	ExecutionSuccessful bool                `json:"executionSuccessful"`
	Notifications       []sarifNotification `json:"toolExecutionNotifications"`
}

type sarifDriver struct {
	Name           string      `json:"name"`
	InformationURI string      `json:"informationUri"`
	Rules          []sarifRule `json:"rules"`
}

// maxNotifications bounds what stands at the end of a SARIF report, which has to be
// kept until then.
const maxNotifications = 200

type sarifHandler struct {
	stream
	results bool
	rules   map[string]sarifRule
	aside   []sarifNotification
	dropped int
}

// SARIF writes a SARIF 2.1.0 log: a result for each violation and warning, at the
// image it is about. An image that could not be checked is no result but a
// notification of the tool's, and the run is then not successful. Rules and
// notifications stand at the end.
func SARIF(w io.Writer) Handler {
	return &sarifHandler{stream: newStream(w), rules: map[string]sarifRule{}}
}

const sarifOpen = "{\n  \"$schema\": \"" + sarifSchema + "\",\n  \"version\": \"2.1.0\",\n  \"runs\": [\n    {\n      \"results\": ["

// Verdict implements Handler.
func (h *sarifHandler) Verdict(e Entry) error {
	first, err := h.next(&e)
	if err != nil {
		return err
	}
	if first {
		if err := h.write(sarifOpen); err != nil {
			return err
		}
	}
	for _, c := range e.causes() {
		h.notify("error", "%s could not be checked: %s", e.ref(), c)
	}
	for _, r := range e.Rejected {
		h.notify("warning", "evidence set aside on %s: %s %s: %s", e.ref(), r.Format, r.Digest, r.Reason)
	}
	for _, a := range e.Aside {
		h.notify("note", "%s lists %s, which was not judged: %s", e.ref(), a.Digest, a.Reason)
	}
	if e.Verdict == nil {
		return h.err
	}
	if e.Verdict.BackDated {
		h.notify("warning", "%s was judged as of %s, which is in the past", e.ref(), e.Verdict.EffectiveTime)
	}
	if err := h.list(&e, "error", e.Verdict.Violations); err != nil {
		return err
	}
	return h.list(&e, "warning", e.Verdict.Warnings)
}

func (h *sarifHandler) list(e *Entry, level string, list []policy.Result) error {
	for _, r := range list {
		id := code(r)
		if _, ok := h.rules[id]; !ok {
			h.rules[id] = describe(r)
		}
		lead := "\n        "
		if h.results {
			lead = ",\n        "
		}
		h.results = true
		if err := h.write(lead, h.encode(finding(e, level, r), "        ")); err != nil {
			return err
		}
	}
	return nil
}

func finding(e *Entry, level string, r policy.Result) sarifResult {
	repo, digest, _ := strings.Cut(e.ref(), "@")
	props := map[string]any{"image": e.ref(), "digest": digest}
	for _, d := range details(e.Verdict, r, level == "error") {
		if old, ok := props[d.label].(string); ok {
			props[d.label] = old + "\n" + d.value
		} else {
			props[d.label] = d.value
		}
	}
	msg := r.Msg
	if msg == "" {
		msg = heading(r)
	}
	// The same finding on the next build of the component is the same alert.
	sum := sha256.Sum256([]byte(strings.Join(append([]string{code(r), e.name(), repo}, r.Terms...), "\x00")))
	return sarifResult{
		RuleID: code(r), Kind: "fail", Level: level, Message: sarifText{msg},
		Locations: []sarifLocation{{
			Physical: sarifPhysical{sarifArtifact{imageURI(e.ref())}},
			Logical:  []sarifLogical{{FullyQualifiedName: e.name(), Kind: "module"}},
		}},
		PartialFingerprints: map[string]string{"assayFinding/v1": hex.EncodeToString(sum[:])},
		Properties:          props,
	}
}

// imageURI is a reference as a URI that is relative, which is what code scanning
// takes, and says what it is.
func imageURI(ref string) string {
	var b strings.Builder
	for _, c := range []byte(ref) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', strings.IndexByte("-._~/@", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return "oci/" + b.String()
}

func describe(r policy.Result) sarifRule {
	text := func(s string) *sarifText {
		if s == "" {
			return nil
		}
		return &sarifText{s}
	}
	out := sarifRule{ID: code(r), ShortDescription: text(r.Title), FullDescription: text(r.Description), Help: text(r.Solution)}
	if len(r.Collections) > 0 || r.Since != "" {
		out.Properties = &sarifRuleProps{Tags: r.Collections, Since: r.Since}
	}
	return out
}

func (h *sarifHandler) notify(level, format string, args ...any) {
	if len(h.aside) == maxNotifications {
		h.dropped++
		return
	}
	h.aside = append(h.aside, sarifNotification{level, sarifText{fmt.Sprintf(format, args...)}})
}

// Close implements Handler.
func (h *sarifHandler) Close() error {
	if !h.begun {
		if err := h.write(sarifOpen); err != nil {
			return err
		}
		h.notify("error", "no image was checked")
	}
	for _, s := range h.run.Skipped {
		h.aside = append(h.aside, sarifNotification{"warning", sarifText{"not checked, as asked: " + s}})
	}
	if h.dropped > 0 {
		h.aside = append(h.aside, sarifNotification{"warning", sarifText{fmt.Sprintf("%d further notices are in the other reports", h.dropped)}})
	}
	if h.aside == nil {
		h.aside = []sarifNotification{}
	}
	driver := sarifDriver{Name: "assay gate", InformationURI: "https://assay.dev", Rules: []sarifRule{}}
	for _, id := range slices.Sorted(maps.Keys(h.rules)) {
		driver.Rules = append(driver.Rules, h.rules[id])
	}
	end := "],\n"
	if h.results {
		end = "\n      ],\n"
	}
	rest := struct {
		Tool struct {
			Driver sarifDriver `json:"driver"`
		} `json:"tool"`
		Invocations []sarifInvocation `json:"invocations"`
		Properties  map[string]any    `json:"properties"`
	}{
		Invocations: []sarifInvocation{{ExecutionSuccessful: h.n.total() > 0 && h.n[stateUnchecked] == 0, Notifications: h.aside}},
		Properties:  map[string]any{"policy": h.run.Policy, "trusted": h.run.Trusted, "passed": h.n[statePass], "refused": h.n[stateRefused], "notChecked": h.n[stateUnchecked]},
	}
	rest.Tool.Driver = driver
	body := strings.TrimPrefix(h.encode(rest, "    "), "{\n")
	return h.write(end, body, "\n  ]\n}\n")
}
