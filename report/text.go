package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

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
//	    solution  …
func Text(w io.Writer, opts TextOptions) Handler {
	return &textHandler{w: w, opts: opts}
}

type textHandler struct {
	w       io.Writer
	opts    TextOptions
	entries []Entry
	err     error
}

// asked is how each question is put.
var asked = map[policy.Question]string{
	policy.Scanned:         "Was it scanned for CVEs, and how recently?",
	policy.TrustedBuild:    "Did a trusted task build it, from appropriate inputs?",
	policy.UntouchedSource: "Did the sources stay untouched between clone and build?",
}

func (h *textHandler) Verdict(e Entry) error {
	if h.err = e.check(); h.err != nil {
		return h.err
	}
	var b strings.Builder
	if len(h.entries) > 0 {
		b.WriteByte('\n')
	}
	h.entries = append(h.entries, e)
	image := e.Image
	if e.Verdict != nil {
		image = e.Verdict.Image
	}
	fmt.Fprintf(&b, "%s\n", strings.TrimRight(h.paint(e.state())+"  "+clean(image), " "))
	if e.Err != nil {
		fmt.Fprintf(&b, "  It could not be checked: %s\n", clean(e.Err.Error()))
	} else {
		h.verdict(&b, e.Verdict)
	}
	return h.write(b.String())
}

func (h *textHandler) verdict(b *strings.Builder, v *policy.Verdict) {
	line(b, 1, "policy", strings.TrimSpace(v.Policy.Name+" "+v.Policy.Digest))
	line(b, 1, "as of", v.EffectiveTime.Format(time.RFC3339))
	if v.Run != "" {
		line(b, 1, "run", v.Run)
	}
	if len(v.Runs) > 1 {
		for _, r := range v.Runs {
			what := "passes"
			if r.Result != policy.Pass {
				what = "refused by " + strings.Join(r.Codes, ", ")
			}
			line(b, 2, "run", r.ID+" "+what)
		}
	}
	if v.Destination != "" {
		line(b, 1, "release", "to "+v.Destination)
		line(b, 1, "until", v.Expiry.Format(time.RFC3339))
	}
	if !h.opts.HideQuestions {
		for _, a := range v.Questions {
			question := asked[a.Question]
			if question == "" {
				question = string(a.Question)
			}
			fmt.Fprintf(b, "  %s %s\n", clean(question), a.Answer)
			for _, m := range a.Messages {
				fmt.Fprintf(b, "    %s\n", clean(m))
			}
		}
	}
	for _, r := range v.Violations {
		h.result(b, "VIOLATION", r)
	}
	if !h.opts.HideWarnings {
		for _, r := range v.Warnings {
			h.result(b, "WARNING", r)
		}
	}
	for _, r := range v.Notes {
		if r.Question == "" || h.opts.HideQuestions {
			h.result(b, "NOTE", r)
		}
	}
	if h.opts.Successes {
		for _, r := range v.Successes {
			fmt.Fprintf(b, "  %s  %s\n", h.paint("SUCCESS"), heading(r))
		}
	}
	fmt.Fprintf(b, "  %s, %s, %s\n", count(len(v.Violations), "violation"), count(len(v.Warnings), "warning"), count(len(v.Successes), "rule")+" passed")
}

func heading(r policy.Result) string {
	switch {
	case r.Code == "":
		return clean(r.Title)
	case r.Title == "":
		return clean(r.Code)
	}
	return clean(r.Code + ": " + r.Title)
}

func (h *textHandler) result(b *strings.Builder, what string, r policy.Result) {
	fmt.Fprintf(b, "  %s\n", strings.TrimRight(h.paint(what)+"  "+heading(r), " "))
	fmt.Fprintf(b, "    %s\n", clean(r.Msg))
	if len(r.Terms) > 0 {
		line(b, 2, "term", strings.Join(r.Terms, ", "))
	}
	for _, key := range slices.Sorted(maps.Keys(r.Details)) {
		for _, s := range words(r.Details[key]) {
			line(b, 2, key, s)
		}
	}
	if r.EffectiveOn != "" {
		line(b, 2, "in force", "from "+r.EffectiveOn)
	}
	if r.Solution != "" {
		line(b, 2, "solution", r.Solution)
	}
}

// words are the values of a detail, one a line.
func words(v any) []string {
	if list, ok := v.([]any); ok {
		var out []string
		for _, x := range list {
			out = append(out, fmt.Sprint(x))
		}
		return out
	}
	return []string{fmt.Sprint(v)}
}

func (h *textHandler) Close() error {
	if h.err != nil {
		return h.err
	}
	if len(h.entries) == 0 {
		return h.write("no image was checked\n")
	}
	if len(h.entries) == 1 {
		return nil
	}
	n := map[string]int{}
	for _, e := range h.entries {
		n[e.state()]++
	}
	return h.write(fmt.Sprintf("\n%s: %d passed, %d refused, %d not checked\n", count(len(h.entries), "image"), n["PASS"], n["REFUSED"], n["NOT CHECKED"]))
}

func (h *textHandler) write(s string) error {
	if _, err := io.WriteString(h.w, s); err != nil {
		h.err = fmt.Errorf("writing report: %w", err)
	}
	return h.err
}

var colors = map[string]string{
	"PASS": "32", "SUCCESS": "32",
	"REFUSED": "31", "VIOLATION": "31",
	"NOT CHECKED": "33", "WARNING": "33",
}

func (h *textHandler) paint(word string) string {
	if c := colors[word]; h.opts.Color && c != "" {
		return "\x1b[1;" + c + "m" + word + "\x1b[0m"
	}
	return word
}

// line writes a labelled value.
func line(b *strings.Builder, depth int, label, value string) {
	fmt.Fprintf(b, "%s%s\n", strings.Repeat("  ", depth), strings.TrimRight(fmt.Sprintf("%-8s  %s", clean(label), clean(value)), " "))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// clean makes text fit for one line of a terminal: control characters, line
// breaks, and what reorders or hides text become visible escapes.
func clean(s string) string {
	bad := func(r rune) bool {
		return r == unicode.ReplacementChar || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029'
	}
	if !strings.ContainsFunc(s, bad) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n' || r == '\t':
			b.WriteByte(' ')
		case bad(r):
			fmt.Fprintf(&b, "\\u%04x", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
