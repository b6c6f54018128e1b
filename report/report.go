// Package report turns a stream of verdicts into what people and programs read.
//
//	h.Start(report.Run{…})            what holds for all
//	for each image: h.Verdict(report.Entry{…})
//	at the end:     h.Close()
//
// One stream, many forms: Text for a terminal, JSON and YAML with Conforma's fields,
// SARIF 2.1.0 for code scanning, JUnit for test reports, Markdown for comments,
// GitHub for annotations of a workflow; All is several at once. Each writes an image
// when it is told of it and keeps nothing of it afterwards, so that a report on ten
// thousand images takes no more memory than one on ten. What counts them all
// therefore stands at the end.
//
// A handler writes what it is given and judges nothing. An image that could not
// be checked is reported as such, neither as passed nor as refused, and the whole is
// no success. So is what an operator chose to leave out: checks that were switched
// off, an effective time in the past, evidence that was set aside, registries that
// rules asked beside the images' own.
//
// Text never relies on colour, and what pipelines chose (task names, messages)
// is stripped of control characters before it reaches a terminal or a workflow's
// log, where a line can be a command.
package report

import (
	"errors"
	"fmt"
	"time"

	"assay.dev/assay/policy"
	"assay.dev/assay/verify"
)

// Run is what holds for all images of a report.
type Run struct {
	Policy policy.Identified
	// Sources are what the policy was made of, each pinned to its content.
	Sources []Source
	// EffectiveTime is what rules are taken as of; zero where each image has its own.
	EffectiveTime time.Time
	// At is the instant of verification.
	At time.Time
	// Trusted are the keys, identities, Sigstore instances and logs that were believed.
	Trusted []Trusted
	// Skipped are checks that were switched off.
	Skipped []string
	// Recording names the recording that was judged again, if one was.
	Recording string
}

// Source is a source of the policy.
type Source struct {
	Address string `json:"address"`
	Pinned  string `json:"pinned"`
	Digest  string `json:"digest"`
}

// Trusted is somebody who was believed.
type Trusted struct {
	Kind string `json:"kind"` // key, identity, instance, log, witness
	Name string `json:"name"`
	// ID is a key's SHA-256 (of its PKIX form), an identity's name and issuer.
	ID string `json:"id,omitempty"`
	// For says what for, where not for everything: observer, image, provenance, sbom.
	For string `json:"for,omitempty"`
}

// Entry is what came of one image: a verdict, or the error that prevented one.
type Entry struct {
	Image     string // reference as the user gave it, or by digest
	Component string // its name in the snapshot
	Parent    string // component that is the index it was found in
	Verdict   *policy.Verdict
	Err       error
	// Signers are who signed what the verdict rests on.
	Signers []Signer
	// Rejected is evidence that hangs on the image, did not verify and was set aside.
	Rejected []verify.Rejected
	// Aside is what an index lists that was not judged.
	Aside []Aside
	// Accepted says whose earlier verdict was taken instead of asking the policy
	// again; nil where the policy was asked.
	Accepted *Accepted
}

// Signer is somebody who signed.
type Signer struct {
	Of       string `json:"of"`   // signature, or the predicate type of a statement
	Name     string `json:"name"` // as the trust calls it
	Key      string `json:"key,omitempty"`
	Identity string `json:"identity,omitempty"`
	Issuer   string `json:"issuer,omitempty"`
	Grade    string `json:"grade"`
}

// Aside is a manifest that was not judged, and why.
type Aside struct {
	Digest string `json:"digest"`
	Reason string `json:"reason"`
}

// Accepted is an earlier verdict that was taken for the policy's word.
type Accepted struct {
	By     string    `json:"by"`     // who signed it
	Digest string    `json:"digest"` // of the summary's payload
	When   time.Time `json:"when"`   // it was made
	// Note is why one that was found was not taken; By is then empty.
	Note string `json:"note,omitempty"`
}

// Passed says whether the image was checked and passed.
func (e *Entry) Passed() bool {
	return e.Err == nil && e.Verdict != nil && e.Verdict.Result == policy.Pass
}

// Unchecked says whether something prevented a verdict, or a part of it.
func (e *Entry) Unchecked() bool {
	return e.Err != nil || e.Verdict != nil && e.Verdict.Result == policy.Unchecked
}

// Handler writes one form of report.
type Handler interface {
	// Start takes what holds for all images; it comes first, or not at all. It fails
	// when writing fails.
	Start(Run) error
	// Verdict takes the next image's. It fails when the entry has neither
	// verdict nor error, or both, and when writing fails.
	Verdict(Entry) error
	// Close writes what comes last. It fails when writing fails, or when it or
	// another call failed before; the report is then incomplete.
	Close() error
}

// All hands everything to several handlers. All are told, whether or not one fails.
func All(list ...Handler) Handler {
	if len(list) == 1 {
		return list[0]
	}
	return all(list)
}

type all []Handler

func (a all) each(f func(Handler) error) error {
	var errs []error
	for _, h := range a {
		errs = append(errs, f(h))
	}
	return errors.Join(errs...)
}

func (a all) Start(r Run) error     { return a.each(func(h Handler) error { return h.Start(r) }) }
func (a all) Verdict(e Entry) error { return a.each(func(h Handler) error { return h.Verdict(e) }) }
func (a all) Close() error          { return a.each(Handler.Close) }

var errEntry = errors.New("writing report: an entry has either a verdict or an error")

func (e *Entry) check() error {
	if (e.Verdict == nil) == (e.Err == nil) {
		return errEntry
	}
	return nil
}

// The states of an entry.
const (
	statePass      = "PASS"
	stateRefused   = "REFUSED"
	stateUnchecked = "NOT CHECKED"
)

// state is one word for the entry.
func (e *Entry) state() string {
	switch {
	case e.Unchecked():
		return stateUnchecked
	case e.Passed():
		return statePass
	default:
		// Also an outcome that is none: only a pass is a pass.
		return stateRefused
	}
}

// ref is the image as exactly as it is known.
func (e *Entry) ref() string {
	if e.Verdict != nil && e.Verdict.Image != "" {
		return e.Verdict.Image
	}
	return e.Image
}

func (e *Entry) name() string {
	if e.Component == "" && e.Verdict != nil {
		return e.Verdict.Component
	}
	return e.Component
}

// causes are why the entry could not be checked.
func (e *Entry) causes() []string {
	if e.Err != nil {
		return []string{e.Err.Error()}
	}
	var out []string
	for _, f := range e.Verdict.Failures {
		out = append(out, fmt.Sprintf("%s %s: %s", f.Function, f.Ref, f.Cause))
	}
	return out
}

// tally counts entries by state.
type tally map[string]int

func (t tally) total() int { return t[statePass] + t[stateRefused] + t[stateUnchecked] }

func (t tally) success() bool { return t.total() > 0 && t[statePass] == t.total() }

func (t tally) String() string {
	return fmt.Sprintf("%s: %d passed, %d refused, %d not checked", count(t.total(), "image"), t[statePass], t[stateRefused], t[stateUnchecked])
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
