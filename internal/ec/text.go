package ec

import (
	"fmt"
	"strings"
	"unicode"

	"assay.dev/assay/policy/conforma"
)

// textItem is one component or input file in a text report.
type textItem struct {
	lines      []string // what it is, as key: value
	label      string   // of reference
	reference  string
	violations []conforma.Result
	warnings   []conforma.Result
	successes  []conforma.Result
	successful int // successes, shown or not
}

// textReport is what a text report says.
type textReport struct {
	success bool
	result  string
	kind    string // heads the list of several items
	items   []textItem
	show    show
	colour  bool
}

const textWidth = 130

func (t *textReport) String() string {
	var b strings.Builder
	violations, warnings, successes := 0, 0, 0
	for _, i := range t.items {
		violations += len(i.violations)
		warnings += len(i.warnings)
		successes += i.successful
	}
	fmt.Fprintf(&b, "Success: %t\nResult: %s\nViolations: %d, Warnings: %d, Successes: %d\n", t.success, t.result, violations, warnings, successes)
	if len(t.items) > 1 {
		fmt.Fprintf(&b, "%s:\n", t.kind)
		for _, i := range t.items {
			for n, l := range i.lines {
				if n == 0 {
					fmt.Fprintf(&b, "- %s\n", strings.Replace(l, "Component:", "Name:", 1))
				} else {
					fmt.Fprintf(&b, "  %s\n", l)
				}
			}
			fmt.Fprintf(&b, "  Violations: %d, Warnings: %d, Successes: %d\n\n", len(i.violations), len(i.warnings), i.successful)
		}
	} else {
		for _, i := range t.items {
			for _, l := range i.lines {
				b.WriteString(strings.Replace(l, "FilePath:", "Input File:", 1) + "\n")
			}
			b.WriteString("\n")
		}
	}
	showWarnings, showSuccesses := warnings > 0 && t.show.warnings, successes > 0 && t.show.successes
	if violations > 0 || showWarnings || showSuccesses {
		b.WriteString("Results:\n")
	}
	if violations > 0 {
		t.results(&b, "Violation", "✕", "31", func(i textItem) []conforma.Result { return i.violations })
	}
	if showWarnings {
		t.results(&b, "Warning", "›", "33", func(i textItem) []conforma.Result { return i.warnings })
	}
	if showSuccesses {
		t.results(&b, "Success", "✓", "32", func(i textItem) []conforma.Result { return i.successes })
	}
	if t.show.docsLink && (violations > 0 || showWarnings) {
		b.WriteString("For more information about policy issues, see the policy documentation: https://conforma.dev/docs/policy/\n")
	}
	return b.String()
}

func (t *textReport) results(b *strings.Builder, kind, mark, code string, of func(textItem) []conforma.Result) {
	paint := func(s string) string {
		if !t.colour {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
	for _, item := range t.items {
		for _, r := range of(item) {
			name := r.Metadata["code"]
			if name == nil {
				name = "<no value>"
			}
			fmt.Fprintf(b, "%s %s\n", paint(mark), paint(fmt.Sprintf("[%s] %v", kind, name)))
			if item.reference != "" {
				fmt.Fprintf(b, "  %s: %s\n", item.label, item.reference)
			}
			line := func(key, text string) {
				if text != "" {
					b.WriteString("  " + strings.ReplaceAll(wrapped(key+": "+text, textWidth-2), "\n", "\n  ") + "\n")
				}
			}
			if kind != "Success" {
				line("Reason", r.Message)
			}
			switch term := r.Metadata["term"].(type) {
			case string:
				line("Term", term)
			case []any:
				var all []string
				for _, x := range term {
					all = append(all, fmt.Sprint(x))
				}
				line("Terms", strings.Join(all, ", "))
			}
			for _, key := range []string{"title", "description", "solution"} {
				if s, ok := r.Metadata[key].(string); ok && (key != "solution" || kind != "Success") {
					line(strings.ToUpper(key[:1])+key[1:], s)
				}
			}
			b.WriteString("\n")
		}
	}
}

// wrapped breaks lines at spaces so that they are at most width long where their
// words are.
func wrapped(s string, width int) string {
	var b strings.Builder
	line := 0
	var word, space []rune
	flush := func() {
		if len(word) == 0 {
			return
		}
		if line > 0 && line+len(space)+len(word) > width {
			b.WriteByte('\n')
			line = 0
		} else {
			b.WriteString(string(space))
			line += len(space)
		}
		b.WriteString(string(word))
		line += len(word)
		word, space = word[:0], space[:0]
	}
	for _, r := range s {
		switch {
		case r == '\n':
			flush()
			b.WriteByte('\n')
			line, space = 0, space[:0]
		case unicode.IsSpace(r) && r != '\u00a0':
			flush()
			space = append(space, r)
		default:
			word = append(word, r)
		}
	}
	flush()
	return b.String()
}
