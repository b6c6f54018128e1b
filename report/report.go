// Package report turns a stream of verdicts into what people and programs read:
// a text tree for a terminal, JSON for whatever comes next.
//
//	for each image:  h.Verdict(report.Entry{…})
//	at the end:      h.Close()
//
// A handler writes what it is given and judges nothing. An image that could not
// be checked is an entry with an error: it is reported as such, neither as
// passed nor as refused, and the whole is no success.
//
// Text never relies on colour, and what pipelines chose (task names, messages)
// is stripped of control characters before it reaches a terminal.
package report

import (
	"errors"

	"assay.dev/assay/policy"
)

// Entry is what came of one image: a verdict, or the error that prevented one.
type Entry struct {
	Image   string // reference as the user gave it
	Verdict *policy.Verdict
	Err     error
}

// Handler writes one form of report.
type Handler interface {
	// Verdict takes the next image's. It fails when the entry has neither
	// verdict nor error, or both, and when writing fails.
	Verdict(Entry) error
	// Close writes what comes last. It fails when writing fails, or when it or
	// Verdict failed before; the report is then incomplete.
	Close() error
}

var errEntry = errors.New("writing report: an entry has either a verdict or an error")

func (e *Entry) check() error {
	if (e.Verdict == nil) == (e.Err == nil) {
		return errEntry
	}
	return nil
}

// state is one word for the entry.
func (e *Entry) state() string {
	switch {
	case e.Err != nil:
		return "NOT CHECKED"
	case e.Verdict.Result == policy.Pass:
		return "PASS"
	default:
		// Also an outcome that is none: only a pass is a pass.
		return "REFUSED"
	}
}

// success holds only for a verdict that passed.
func (e *Entry) success() bool { return e.state() == "PASS" }
