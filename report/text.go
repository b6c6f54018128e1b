package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"assay.dev/assay/policy"
)

// TextOptions change the text report. The zero value is plain and shows
// warnings, not successes.
type TextOptions struct {
	Color         bool // mark states in colour as well
	Successes     bool // list rules that passed
	HideWarnings  bool
	HideQuestions bool
}

// Text writes one tree an image, as they come:
//
//	REFUSED  repo@sha256:…
//	  policy  release sha256:…
//	  scanned for CVEs, and when?  no
//	    No task of the run scanned the image for CVEs
//	  VIOLATION  source.untouched: Nothing touched the source between clone and build
//	    Task … changed the source: …
//	    task      run-1-tweak
//	    digests   sha256:…
//	    in force  since 2026-01-01
//	    solution  …
//	    waive     …
func Text(w io.Writer, opts TextOptions) Handler {
	return &textHandler{stream: newStream(w), opts: opts}
}

type textHandler struct {
	stream
	opts TextOptions
}

// asked is how each question is put.
func asked(q policy.Question) string {
	switch q {
	case policy.Scanned:
		return "Was it scanned for CVEs, and how recently?"
	case policy.TrustedBuild:
		return "Did a trusted task build it, from appropriate inputs?"
	case policy.UntouchedSource:
		return "Did the sources stay untouched between clone and build?"
	}
	return string(q)
}

// Verdict implements Handler.
func (h *textHandler) Verdict(e Entry) error {
	first, err := h.next(&e)
	if err != nil {
		return err
	}
	var b strings.Builder
	if !first {
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%s\n", strings.TrimRight(h.paint(e.state())+"  "+clean(e.ref()), " "))
	if e.Err != nil {
		fmt.Fprintf(&b, "  It could not be checked: %s\n", clean(e.Err.Error()))
	}
	if e.Component != "" {
		name := e.Component
		if e.Parent != "" {
			name += ", of the index " + e.Parent
		}
		line(&b, 1, "component", name)
	}
	if e.Verdict != nil {
		h.verdict(&b, &e)
	}
	for _, r := range e.Rejected {
		fmt.Fprintf(&b, "  %s  %s %s: %s\n", h.paint("SET ASIDE"), clean(r.Format), clean(r.Digest), clean(r.Reason))
	}
	for _, a := range e.Aside {
		fmt.Fprintf(&b, "  %s  %s: %s\n", h.paint("NOT JUDGED"), clean(a.Digest), clean(a.Reason))
	}
	if v := e.Verdict; v != nil {
		fmt.Fprintf(&b, "  %s, %s, %s\n", count(len(v.Violations), "violation"), count(len(v.Warnings), "warning"), count(len(v.Successes), "rule")+" passed")
	}
	return h.write(b.String())
}

func (h *textHandler) verdict(b *strings.Builder, e *Entry) {
	v := e.Verdict
	for _, c := range e.causes() {
		fmt.Fprintf(b, "  %s  %s\n", h.paint("COULD NOT CHECK"), clean(c))
	}
	line(b, 1, "policy", strings.TrimSpace(v.Policy.Name+" "+v.Policy.Digest))
	when := v.EffectiveTime.Format(time.RFC3339)
	if v.BackDated {
		when += ", which is in the past: rules that came into force later are not"
	}
	line(b, 1, "as of", when)
	for _, s := range h.run.Skipped {
		line(b, 1, "without", s+": switched off")
	}
	for _, s := range signedBy(e.Signers) {
		line(b, 1, "signed", s)
	}
	if a := e.Accepted; a != nil && a.By != "" {
		line(b, 1, "accepted", fmt.Sprintf("by the verdict that %s signed at %s (%s); no rule was asked", a.By, a.When.UTC().Format(time.RFC3339), a.Digest))
	} else if a != nil {
		line(b, 1, "note", a.Note)
	}
	if v.Run != "" {
		line(b, 1, "run", v.Run)
	}
	if len(v.Runs) > 1 {
		for _, r := range v.Runs {
			what := "passes"
			if r.Result != policy.Pass {
				what = strings.TrimSuffix("refused by "+strings.Join(r.Codes, ", "), " by ")
			}
			line(b, 2, "run", r.ID+" "+what)
		}
	}
	if v.Destination != "" {
		line(b, 1, "release", "to "+v.Destination)
		line(b, 1, "until", v.Expiry.Format(time.RFC3339))
	}
	if len(v.Hosts) > 0 {
		line(b, 1, "asked", "by rules, beside the image's own registry: "+strings.Join(v.Hosts, ", "))
	}
	if !h.opts.HideQuestions {
		for _, a := range v.Questions {
			fmt.Fprintf(b, "  %s %s\n", clean(asked(a.Question)), a.Answer)
			for _, m := range a.Messages {
				fmt.Fprintf(b, "    %s\n", clean(m))
			}
		}
	}
	for _, r := range v.Violations {
		h.result(b, "VIOLATION", v, r)
	}
	if !h.opts.HideWarnings {
		for _, r := range v.Warnings {
			h.result(b, "WARNING", v, r)
		}
	}
	for _, r := range v.Notes {
		if r.Question == "" || h.opts.HideQuestions {
			h.result(b, "NOTE", v, r)
		}
	}
	if h.opts.Successes {
		for _, r := range v.Successes {
			fmt.Fprintf(b, "  %s  %s\n", h.paint("SUCCESS"), heading(r))
		}
	}
}

// signedBy says what each signer signed, in one line for each.
func signedBy(list []Signer) []string {
	var order []Signer
	what := map[Signer][]string{}
	for _, s := range list {
		of := s.Of
		s.Of = ""
		if what[s] == nil {
			order = append(order, s)
		}
		if of == "" {
			of = "a statement of no type"
		}
		if !slices.Contains(what[s], of) {
			what[s] = append(what[s], of)
		}
	}
	var out []string
	for _, s := range order {
		who := s.Name
		if s.Identity != "" {
			who = s.Identity + " of " + s.Issuer
		}
		out = append(out, fmt.Sprintf("by %s (%s): %s", who, s.Grade, strings.Join(what[s], ", ")))
	}
	return out
}

func (h *textHandler) result(b *strings.Builder, what string, v *policy.Verdict, r policy.Result) {
	fmt.Fprintf(b, "  %s\n", strings.TrimRight(h.paint(what)+"  "+heading(r), " "))
	fmt.Fprintf(b, "    %s\n", clean(r.Msg))
	for _, d := range details(v, r, what == "VIOLATION") {
		line(b, 2, d.label, d.value)
	}
}

// Close implements Handler.
func (h *textHandler) Close() error {
	switch n := h.n.total(); {
	case h.err != nil:
		return h.err
	case n == 0:
		return h.write("no image was checked\n")
	case n == 1:
		return nil
	}
	return h.write("\n" + h.n.String() + "\n")
}

func color(word string) string {
	switch word {
	case statePass, "SUCCESS":
		return "32"
	case stateRefused, "VIOLATION":
		return "31"
	case stateUnchecked, "COULD NOT CHECK", "WARNING", "SET ASIDE", "NOT JUDGED":
		return "33"
	}
	return ""
}

func (h *textHandler) paint(word string) string {
	if c := color(word); h.opts.Color && c != "" {
		return "\x1b[1;" + c + "m" + word + "\x1b[0m"
	}
	return word
}

// line writes a labelled value.
func line(b *strings.Builder, depth int, label, value string) {
	fmt.Fprintf(b, "%s%s\n", strings.Repeat("  ", depth), strings.TrimRight(fmt.Sprintf("%-8s  %s", clean(label), clean(value)), " "))
}
