package trace

import (
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Measures of the picture, in pixels.
const (
	boxW, boxH = 330, 74
	gapX, gapY = 90, 26
	margin     = 30
	maxText    = 48 // characters in a line of a box
)

// box is one rectangle of the picture.
type box struct {
	Node
	x, y int
}

// SVG draws the chain from left to right: the commit, tasks in columns by what
// they take from each other, the image and what vouches for it. How a link is known is
// drawn: a full line was observed, a long dash attested, dots inferred, red is missing.
// A link's title tells the rest.
func SVG(w io.Writer, c *Chain) error {
	g := c.Graph()
	boxes, columns := layout(g)
	width, height := 3*(boxW+gapX), 0
	for x, col := range columns {
		for y, b := range col {
			b.x = margin + x*(boxW+gapX)
			b.y = margin + 40 + y*(boxH+gapY)
			width = max(width, b.x+boxW+margin)
			height = max(height, b.y+boxH+margin)
		}
	}
	height += 30
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	b.WriteString(`<style>
rect{fill:#f6f8fa;stroke:#57606a;rx:6}
.source rect{fill:#fff8c5;stroke:#9a6700}
.hermetic rect{fill:#dafbe1;stroke:#1a7f37}
.image rect{fill:#ddf4ff;stroke:#0969da}
.pass rect{fill:#dafbe1;stroke:#1a7f37;stroke-width:2}
.fail rect{fill:#ffebe9;stroke:#cf222e;stroke-width:2}
.missing rect,.unpinned rect{fill:#fff;stroke:#cf222e;stroke-dasharray:4 3}
.title{font-weight:bold}
path{fill:none;stroke:#57606a;stroke-width:1.3}
path.observed{stroke:#1a7f37;stroke-width:2}
path.attested{stroke-dasharray:9 3}
path.inferred{stroke-dasharray:2 4}
path.missing{stroke:#cf222e;stroke-dasharray:2 4}
text{fill:#1f2328}
</style>
<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0,0L8,4L0,8z" style="fill:#57606a"/></marker></defs>
`)
	fmt.Fprintf(&b, `<text x="%d" y="%d" class="title">%s</text>`+"\n", margin, margin, esc(c.Image))
	for _, l := range g.Links {
		f, t := boxes[l.From], boxes[l.To]
		if f == nil || t == nil {
			continue
		}
		x1, y1, x2, y2 := f.x+boxW, f.y+boxH/2, t.x, t.y+boxH/2
		title := l.said()
		if l.What != "" {
			title = l.What + ": " + title
		}
		fmt.Fprintf(&b, `<path class="%s" d="M%d,%d C%d,%d %d,%d %d,%d" marker-end="url(#a)"><title>%s</title></path>`+"\n", l.Mark, x1, y1, x1+gapX/2, y1, x2-gapX/2, y2, x2, y2, esc(title))
	}
	for _, n := range g.Nodes {
		x := boxes[n.ID]
		class := n.Class
		if class == "" {
			class = n.Kind
		}
		fmt.Fprintf(&b, `<g class="%s"><rect x="%d" y="%d" width="%d" height="%d"/><text x="%d" y="%d" class="title">%s</text>`, class, x.x, x.y, boxW, boxH, x.x+12, x.y+22, esc(cut(n.Title)))
		for i, l := range n.Lines[:min(2, len(n.Lines))] {
			fmt.Fprintf(&b, `<text x="%d" y="%d">%s</text>`, x.x+12, x.y+41+i*17, esc(cut(l)))
		}
		b.WriteString("</g>\n")
	}
	for i, m := range []Mark{MarkObserved, MarkAttested, MarkInferred, MarkMissing} {
		x, y := margin+i*150, height-20
		fmt.Fprintf(&b, `<path class="%s" d="M%d,%d L%d,%d"/><text x="%d" y="%d">%s</text>`+"\n", m, x, y, x+40, y, x+48, y+4, m)
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// layout puts each node into a column, by the longest way from where nothing comes from.
func layout(g *Graph) (map[string]*box, [][]*box) {
	boxes := map[string]*box{}
	column := map[string]int{}
	for _, n := range g.Nodes {
		boxes[n.ID] = &box{Node: n}
	}
	// No way is longer than there are nodes, even where links run in a circle.
	for range g.Nodes {
		moved := false
		for _, l := range g.Links {
			if to := column[l.From] + 1; column[l.To] < to && to < len(g.Nodes) {
				column[l.To], moved = to, true
			}
		}
		if !moved {
			break
		}
	}
	// The image and what hangs on it come before tasks that only read it.
	rank := map[string]int{KindImage: 0, KindVerdict: 1, KindSignature: 2, KindSBOM: 3}
	sorted := slices.Clone(g.Nodes)
	slices.SortStableFunc(sorted, func(a, b Node) int {
		ra, ok := rank[a.Kind]
		if !ok {
			ra = len(rank)
		}
		rb, ok := rank[b.Kind]
		if !ok {
			rb = len(rank)
		}
		return ra - rb
	})
	var columns [][]*box
	for _, n := range sorted {
		for len(columns) <= column[n.ID] {
			columns = append(columns, nil)
		}
		columns[column[n.ID]] = append(columns[column[n.ID]], boxes[n.ID])
	}
	return boxes, columns
}

func digestIn(ref string) string {
	if i := strings.LastIndex(ref, "sha256:"); i >= 0 {
		return ref[i:]
	}
	return ""
}

func cut(s string) string {
	if r := []rune(s); len(r) > maxText {
		return string(r[:maxText-1]) + "…"
	}
	return s
}

// verdictClass is a class of the style sheet, whatever the verdict says.
func verdictClass(v string) string {
	if v == "pass" || v == "fail" {
		return v
	}
	return "unchecked"
}

// esc makes text of any string: nothing in it is markup or a control character.
func esc(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(clean(s))); err != nil {
		return ""
	}
	return b.String()
}
