package trace

import (
	"fmt"
	"io"
	"strings"
)

// DOT writes the chain in the language of Graphviz.
func DOT(w io.Writer, c *Chain) error {
	g := c.Graph()
	var b strings.Builder
	b.WriteString("digraph chain {\n\trankdir=LR;\n\tnode [shape=box, style=rounded, fontname=sans];\n\tedge [fontname=sans, fontsize=10];\n")
	for _, n := range g.Nodes {
		style := ""
		if n.Class == "missing" || n.Class == "unpinned" {
			style = `, color=red, style="rounded,dashed"`
		}
		fmt.Fprintf(&b, "\t%s [label=%s, class=%s%s];\n", quote(n.ID), quote(append([]string{n.Title}, n.Lines...)...), quote(n.Kind), style)
	}
	styles := map[Mark]string{MarkObserved: "bold", MarkAttested: "solid", MarkInferred: "dotted", MarkMissing: "dashed"}
	for _, l := range g.Links {
		color := ""
		if l.Mark == MarkMissing {
			color = ", color=red"
		}
		label := []string{l.said()}
		if l.What != "" {
			label = []string{l.What, l.said()}
		}
		fmt.Fprintf(&b, "\t%s -> %s [label=%s, style=%s%s];\n", quote(l.From), quote(l.To), quote(label...), styles[l.Mark], color)
	}
	b.WriteString("}\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// quote makes a string of lines; only the quotation mark and the backslash mean
// something in it.
func quote(lines ...string) string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	for i, l := range lines {
		lines[i] = escape.Replace(clean(l))
	}
	return `"` + strings.Join(lines, `\n`) + `"`
}
