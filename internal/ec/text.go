package ec

import (
	"bufio"
	"fmt"
	"io"
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
	show    show
	colour  bool

	// count is how many items there are, and the next how many results of a kind in all.
	count                           int
	violations, warnings, successes int
	// items gives each item, in order, as often as it is asked.
	items func(func(textItem) error) error
}

const textWidth = 130

// write writes the report. Items are asked for once for each kind of result.
func (t *textReport) write(w io.Writer) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "Success: %t\nResult: %s\nViolations: %d, Warnings: %d, Successes: %d\n", t.success, t.result, t.violations, t.warnings, t.successes)
	if t.count > 1 {
		fmt.Fprintf(b, "%s:\n", t.kind)
	}
	if err := t.items(func(i textItem) error {
		t.heading(b, i)
		return nil
	}); err != nil {
		return err
	}
	showWarnings, showSuccesses := t.warnings > 0 && t.show.warnings, t.successes > 0 && t.show.successes
	if t.violations > 0 || showWarnings || showSuccesses {
		b.WriteString("Results:\n")
	}
	for _, k := range []struct {
		show              bool
		kind, mark, color string
		of                func(textItem) []conforma.Result
	}{
		{t.violations > 0, "Violation", "✕", "31", func(i textItem) []conforma.Result { return i.violations }},
		{showWarnings, "Warning", "›", "33", func(i textItem) []conforma.Result { return i.warnings }},
		{showSuccesses, "Success", "✓", "32", func(i textItem) []conforma.Result { return i.successes }},
	} {
		if !k.show {
			continue
		}
		if err := t.items(func(i textItem) error {
			t.results(b, k.kind, k.mark, k.color, i, k.of(i))
			return nil
		}); err != nil {
			return err
		}
	}
	if t.show.docsLink && (t.violations > 0 || showWarnings) {
		b.WriteString("For more information about policy issues, see the policy documentation: https://conforma.dev/docs/policy/\n")
	}
	return b.Flush()
}

func (t *textReport) heading(b *bufio.Writer, i textItem) {
	if t.count == 1 {
		for _, l := range i.lines {
			b.WriteString(strings.Replace(l, "FilePath:", "Input File:", 1) + "\n")
		}
		b.WriteString("\n")
		return
	}
	for n, l := range i.lines {
		if n == 0 {
			fmt.Fprintf(b, "- %s\n", strings.Replace(l, "Component:", "Name:", 1))
		} else {
			fmt.Fprintf(b, "  %s\n", l)
		}
	}
	fmt.Fprintf(b, "  Violations: %d, Warnings: %d, Successes: %d\n\n", len(i.violations), len(i.warnings), i.successful)
}

func (t *textReport) results(b *bufio.Writer, kind, mark, code string, item textItem, list []conforma.Result) {
	paint := func(s string) string {
		if !t.colour {
			return s
		}
		return "\x1b[" + code + "m" + s + "\x1b[0m"
	}
	for _, r := range list {
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
