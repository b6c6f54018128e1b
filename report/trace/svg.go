package trace

import (
	"encoding/xml"
	"fmt"
	"io"
	"maps"
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
	title string
	lines []string
	class string
	x, y  int
}

// edge is an artifact going from one box to another.
type edge struct{ from, to int }

// SVG draws the chain from left to right: the commit, tasks in columns by what
// they take from each other, the image and what vouches for it.
func SVG(w io.Writer, c *Chain) error {
	boxes, edges, columns := layout(c)
	width, height := 0, 0
	for x, col := range columns {
		for y, b := range col {
			boxes[b].x = margin + x*(boxW+gapX)
			boxes[b].y = margin + 40 + y*(boxH+gapY)
			width = max(width, boxes[b].x+boxW+margin)
			height = max(height, boxes[b].y+boxH+margin)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height, width, height)
	b.WriteString(`<style>
rect{fill:#f6f8fa;stroke:#57606a;rx:6}
.source rect{fill:#fff8c5;stroke:#9a6700}
.hermetic rect{fill:#dafbe1;stroke:#1a7f37}
.image rect{fill:#ddf4ff;stroke:#0969da}
.pass rect{fill:#dafbe1;stroke:#1a7f37;stroke-width:2}
.fail rect{fill:#ffebe9;stroke:#cf222e;stroke-width:2}
.title{font-weight:bold}
path{fill:none;stroke:#57606a;stroke-width:1.3}
text{fill:#1f2328}
</style>
<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0,0L8,4L0,8z" style="fill:#57606a"/></marker></defs>
`)
	fmt.Fprintf(&b, `<text x="%d" y="%d" class="title">%s</text>`+"\n", margin, margin, esc(c.Image))
	for _, e := range edges {
		f, t := boxes[e.from], boxes[e.to]
		x1, y1, x2, y2 := f.x+boxW, f.y+boxH/2, t.x, t.y+boxH/2
		fmt.Fprintf(&b, `<path d="M%d,%d C%d,%d %d,%d %d,%d" marker-end="url(#a)"/>`+"\n", x1, y1, x1+gapX/2, y1, x2-gapX/2, y2, x2, y2)
	}
	for _, x := range boxes {
		fmt.Fprintf(&b, `<g class="%s"><rect x="%d" y="%d" width="%d" height="%d"/><text x="%d" y="%d" class="title">%s</text>`, x.class, x.x, x.y, boxW, boxH, x.x+12, x.y+22, esc(cut(x.title)))
		for i, l := range x.lines {
			fmt.Fprintf(&b, `<text x="%d" y="%d">%s</text>`, x.x+12, x.y+41+i*17, esc(cut(l)))
		}
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// layout makes the boxes, their edges, and columns by the longest way from the
// source.
func layout(c *Chain) ([]box, []edge, [][]int) {
	o := c.Observation
	var boxes []box
	var edges []edge
	made := map[string]int{} // artifact or image digest → box that made it
	column := map[int]int{}
	if s := o.Source; s != nil {
		boxes = append(boxes, box{title: "commit " + short(s.Commit), lines: []string{clean(s.Repository), fmt.Sprintf("commit %s, repository %s", s.CommitStatus, s.RepositoryStatus)}, class: "source"})
	}
	for i := range o.Tasks {
		t := &o.Tasks[i]
		id := len(boxes)
		class := "task"
		if t.Hermetic.Enforced {
			class = "hermetic"
		}
		boxes = append(boxes, box{title: clean(taskName(t)), lines: []string{clean(facts(t)), clean(reference(t.Ref))}, class: class})
		link := func(from int) {
			if from != id && !linked(edges, from, id) {
				edges = append(edges, edge{from, id})
				column[id] = max(column[id], column[from]+1)
			}
		}
		if o.Source != nil && t.TaskRun == o.Source.Task {
			link(0)
		}
		for _, in := range t.Inputs {
			if from, ok := made[digestIn(in.URI)]; ok {
				link(from)
			}
		}
		// Images that a parameter names by digest were taken from who made them.
		for _, d := range slices.Sorted(maps.Keys(made)) {
			if strings.Contains(string(t.Params), d) {
				link(made[d])
			}
		}
		for _, out := range t.Outputs {
			for _, d := range append([]string{digestIn(out.URI)}, out.Manifests...) {
				if d != "" {
					made[d] = id
				}
			}
		}
		for _, d := range t.Uploads {
			if _, ok := made[d]; !ok {
				made[d] = id
			}
		}
	}
	image := len(boxes)
	lines := []string{fmt.Sprintf("%d signatures and attestations", len(c.Signatures))}
	for _, s := range c.Signatures {
		if s.Grade == "observer" {
			lines = append(lines, "by "+clean(s.By)+", an observer")
			break
		}
	}
	boxes = append(boxes, box{title: "image " + short(c.Image), lines: lines, class: "image"})
	if from, ok := made[digestIn(c.Image)]; ok {
		edges = append(edges, edge{from, image})
		column[image] = column[from] + 1
	} else {
		for _, v := range column {
			column[image] = max(column[image], v+1)
		}
	}
	if c.Verdict != "" {
		v := len(boxes)
		boxes = append(boxes, box{title: "verdict: " + c.Verdict, lines: []string{"policy " + clean(c.Policy)}, class: verdictClass(c.Verdict)})
		edges = append(edges, edge{image, v})
		column[v] = column[image] + 1
	}
	// The image and its verdict come before tasks that only read it.
	var columns [][]int
	order := make([]int, 0, len(boxes))
	for i := image; i < len(boxes); i++ {
		order = append(order, i)
	}
	for i := range image {
		order = append(order, i)
	}
	for _, i := range order {
		for len(columns) <= column[i] {
			columns = append(columns, nil)
		}
		columns[column[i]] = append(columns[column[i]], i)
	}
	return boxes, edges, columns
}

func linked(edges []edge, from, to int) bool {
	for _, e := range edges {
		if e.from == from && e.to == to {
			return true
		}
	}
	return false
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
