package report

import (
	"fmt"
	"io"
	"strings"

	"assay.dev/assay/policy"
)

// Explain writes how a rule came to what it says of an image: the rule, what it said,
// what it read, and what happened in order. It fails when writing does.
func Explain(w io.Writer, image string, x *policy.Explanation, cause error) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", clean(image))
	if cause != nil || x == nil {
		fmt.Fprintf(&b, "  It could not be explained: %s\n", clean(fmt.Sprint(cause)))
		return explained(w, &b)
	}
	r := x.Rule
	line(&b, 1, "rule", strings.TrimSuffix(r.Code+": "+r.Title, ": "))
	line(&b, 1, "kind", r.Kind)
	line(&b, 1, "at", fmt.Sprintf("%s:%d, package %s", r.File, r.Line, r.Package))
	for _, d := range []detail{{"says", r.Description}, {"solution", r.Solution}, {"since", r.EffectiveOn}, {"run", x.Run}} {
		if d.value != "" {
			line(&b, 1, d.label, d.value)
		}
	}
	if !r.Included {
		line(&b, 1, "excluded", strings.Join(r.Against, ", "))
	}
	b.WriteString("\n")
	for l := range strings.Lines(strings.TrimRight(x.Text, "\n") + "\n") {
		fmt.Fprintf(&b, "    %s\n", clean(strings.ReplaceAll(strings.TrimRight(l, "\n"), "\t", "  ")))
	}
	b.WriteString("\n  it said\n")
	if len(x.Results) == 0 {
		b.WriteString("    nothing: its conditions were not all met\n")
	}
	for _, s := range x.Results {
		fmt.Fprintf(&b, "    %s: %s\n", clean(s.Outcome), clean(s.Result.Msg))
	}
	b.WriteString("  it read\n")
	for _, d := range x.Data {
		fmt.Fprintf(&b, "    %s = %s\n", clean(d.Path), clean(string(d.Value)))
	}
	b.WriteString("  what happened\n")
	for _, s := range x.Trace {
		fmt.Fprintf(&b, "    %s%-5s %s", strings.Repeat("  ", min(s.Depth, 20)), clean(s.Op), clean(s.Text))
		if s.File != "" {
			fmt.Fprintf(&b, "  (%s:%d)", clean(s.File), s.Line)
		}
		b.WriteByte('\n')
	}
	if x.Truncated {
		b.WriteString("    … and more than a person reads\n")
	}
	return explained(w, &b)
}

func explained(w io.Writer, b *strings.Builder) error {
	if _, err := io.WriteString(w, b.String()+"\n"); err != nil {
		return fmt.Errorf("writing report: %w", err)
	}
	return nil
}
