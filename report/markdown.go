package report

import (
	"fmt"
	"io"
	"strings"
	"time"

	"assay.dev/assay/policy"
)

type markdownHandler struct{ stream }

// Markdown writes what fits in a comment or a job's summary: a section for each
// image that did not pass, a line for each that did.
func Markdown(w io.Writer) Handler { return &markdownHandler{newStream(w)} }

// Verdict implements Handler.
func (h *markdownHandler) Verdict(e Entry) error {
	first, err := h.next(&e)
	if err != nil {
		return err
	}
	var b strings.Builder
	if first {
		b.WriteString(h.head())
	}
	mark := map[string]string{statePass: "✅ passed", stateRefused: "❌ refused", stateUnchecked: "⚠️ not checked"}[e.state()]
	title := plainCode(e.ref())
	if n := e.name(); n != "" {
		title = markdown(n) + " " + title
	}
	fmt.Fprintf(&b, "### %s: %s\n\n", mark, title)
	for _, c := range e.causes() {
		fmt.Fprintf(&b, "- **could not be checked**: %s\n", markdown(c))
	}
	if v := e.Verdict; v != nil {
		h.verdict(&b, &e)
	}
	for _, r := range e.Rejected {
		fmt.Fprintf(&b, "- evidence set aside: %s %s: %s\n", markdown(r.Format), plainCode(r.Digest), markdown(r.Reason))
	}
	for _, a := range e.Aside {
		fmt.Fprintf(&b, "- not judged: %s: %s\n", plainCode(a.Digest), markdown(a.Reason))
	}
	return h.write(b.String(), "\n")
}

func (h *markdownHandler) head() string {
	var b strings.Builder
	b.WriteString("## Assay gate\n\n")
	if p := h.run.Policy; p.Digest != "" {
		fmt.Fprintf(&b, "Policy %s %s", markdown(p.Name), plainCode(p.Digest))
		if !h.run.EffectiveTime.IsZero() {
			fmt.Fprintf(&b, ", as of %s", h.run.EffectiveTime.UTC().Format(time.RFC3339))
		}
		b.WriteString("\n\n")
	}
	for _, s := range h.run.Skipped {
		fmt.Fprintf(&b, "> **Switched off:** %s\n\n", markdown(s))
	}
	return b.String()
}

func (h *markdownHandler) verdict(b *strings.Builder, e *Entry) {
	v := e.Verdict
	if v.BackDated {
		fmt.Fprintf(b, "- **back-dated**: judged as of %s; rules that came into force later are off\n", v.EffectiveTime.Format(time.RFC3339))
	}
	if a := e.Accepted; a != nil && a.By != "" {
		fmt.Fprintf(b, "- accepted by the verdict that %s signed at %s; no rule was asked\n", markdown(a.By), a.When.UTC().Format(time.RFC3339))
	}
	for _, s := range signedBy(e.Signers) {
		fmt.Fprintf(b, "- signed %s\n", markdown(s))
	}
	if len(v.Hosts) > 0 {
		fmt.Fprintf(b, "- rules asked other registries: %s\n", markdown(strings.Join(v.Hosts, ", ")))
	}
	for _, a := range v.Questions {
		fmt.Fprintf(b, "- %s **%s**\n", markdown(asked(a.Question)), markdown(a.Answer))
	}
	for _, r := range v.Violations {
		markdownResult(b, "Violation", v, r)
	}
	for _, r := range v.Warnings {
		markdownResult(b, "Warning", v, r)
	}
	fmt.Fprintf(b, "\n%s, %s, %s passed\n", count(len(v.Violations), "violation"), count(len(v.Warnings), "warning"), count(len(v.Successes), "rule"))
}

func markdownResult(b *strings.Builder, what string, v *policy.Verdict, r policy.Result) {
	fmt.Fprintf(b, "\n**%s** %s", what, plainCode(code(r)))
	if r.Title != "" {
		fmt.Fprintf(b, " %s", markdown(r.Title))
	}
	fmt.Fprintf(b, "\n\n%s\n\n", markdown(r.Msg))
	list := details(v, r, what == "Violation")
	if len(list) == 0 {
		return
	}
	b.WriteString("| | |\n| --- | --- |\n")
	for _, d := range list {
		fmt.Fprintf(b, "| %s | %s |\n", markdown(d.label), markdown(d.value))
	}
}

// Close implements Handler.
func (h *markdownHandler) Close() error {
	if !h.begun {
		return h.write(h.head(), "⚠️ no image was checked\n")
	}
	return h.write("**", h.n.String(), "**\n")
}

// markdown makes text that means itself: no markup, no mentions, no links of its own
// choosing, one line.
func markdown(s string) string {
	var b strings.Builder
	for _, r := range clean(s) {
		switch r {
		case '&':
			b.WriteString("&amp;")
		case '<':
			b.WriteString("&lt;")
		case '>':
			b.WriteString("&gt;")
		case '@':
			b.WriteString("&#64;")
		case '#':
			b.WriteString("&#35;")
		case ':':
			// No addresses that turn into links.
			b.WriteString("&#58;")
		case '\\', '`', '*', '_', '{', '}', '[', ']', '(', ')', '!', '|', '~', '$':
			b.WriteByte('\\')
			b.WriteRune(r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// plainCode is text in backquotes, where it can stand there.
func plainCode(s string) string {
	if s == "" || strings.ContainsAny(s, "`|<>\\") || clean(s) != s {
		return markdown(s)
	}
	return "`" + s + "`"
}
