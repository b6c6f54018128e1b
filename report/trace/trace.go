// Package trace draws the chain from a commit over each task to an image and
// what is known about it: as a tree of text and as a picture. It draws verified
// evidence and judges nothing.
package trace

import (
	"fmt"
	"io"
	"strings"
	"time"

	"assay.dev/assay/observe"
)

// Chain is what there is to draw. Observation is required.
type Chain struct {
	Image       string               `json:"image"`
	Runs        int                  `json:"runs"` // runs that made this digest; the newest is drawn
	Observation *observe.Observation `json:"observation"`
	Signatures  []Signature          `json:"signatures"`
	Policy      string               `json:"policy,omitempty"`
	Verdict     string               `json:"verdict,omitempty"`
}

// Signature is who vouched.
type Signature struct {
	Kind  string `json:"kind"`
	By    string `json:"by"`
	Grade string `json:"grade"`
}

// short is a digest as a person compares it.
func short(d string) string {
	if i := strings.LastIndex(d, "sha256:"); i >= 0 && len(d) >= i+19 {
		return "sha256:" + d[i+7:i+19]
	}
	if len(d) == 40 {
		return d[:12]
	}
	return d
}

// clean keeps names that pipelines chose from steering a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '·'
		}
		return r
	}, s)
}

func taskName(t *observe.TaskRecord) string {
	if t.PipelineTask != "" {
		return t.PipelineTask
	}
	return t.TaskRun
}

// facts are the short remarks on a task.
func facts(t *observe.TaskRecord) string {
	var f []string
	f = append(f, "network "+t.Network)
	if t.Hermetic.Enforced {
		f = append(f, "hermetic")
	}
	if t.Attempt > 0 {
		f = append(f, fmt.Sprintf("attempt %d", t.Attempt+1))
	}
	if t.Outcome != "succeeded" {
		f = append(f, t.Outcome)
	}
	f = append(f, t.Finished.Sub(t.Started).Round(10*time.Millisecond).String())
	return strings.Join(f, ", ")
}

// reference says where a task's definition came from.
func reference(r observe.Ref) string {
	if r.Bundle == "" {
		return "written into the run"
	}
	return fmt.Sprintf("%s of %s (%s)", clean(r.Name), short(r.Bundle), r.Status)
}

// node is one line of the tree.
type node struct {
	text string
	kids []*node
}

func (n *node) add(format string, a ...any) *node {
	k := &node{text: clean(fmt.Sprintf(format, a...))}
	n.kids = append(n.kids, k)
	return k
}

// Text draws the chain as a tree, readable without colour.
func Text(w io.Writer, c *Chain) error {
	o := c.Observation
	root := &node{text: "image " + clean(c.Image)}
	if s := o.Source; s != nil {
		n := root.add("commit %s (%s) of %s (%s)", s.Commit, s.CommitStatus, s.Repository, s.RepositoryStatus)
		if s.Ref != "" {
			n.add("found at %s", s.Ref)
		}
		n.add("git tree %s, exported as %s", s.GitTree, short(s.Tree))
		if s.Reason != "" {
			n.add("%s", s.Reason)
		}
	}
	run := root.add("run %s %s, opened %s, key separation %s", o.Run.ID, o.Run.Outcome, o.Run.Opened.UTC().Format(time.RFC3339), o.Run.Executor.KeySeparation)
	for i := range o.Tasks {
		t := &o.Tasks[i]
		n := run.add("%s: %s", taskName(t), facts(t))
		n.add("task  %s", reference(t.Ref))
		for _, in := range t.Inputs {
			n.add("in    %s %s, tree %s", in.Name, short(in.URI), short(in.Digest))
		}
		for _, out := range t.Outputs {
			switch out.Kind {
			case "commit":
				n.add("out   %s %s", out.Name, short(out.CommitID))
			case "image":
				n.add("out   %s image %s%s", out.Name, short(out.URI), referrers(out))
			default:
				n.add("out   %s %s, tree %s", out.Name, short(out.URI), short(out.Digest))
			}
		}
		for _, u := range t.Uploads {
			n.add("push  %s", short(u))
		}
	}
	signed := root.add("vouched for by")
	for _, s := range c.Signatures {
		signed.add("%s (%s): %s", s.By, s.Grade, s.Kind)
	}
	for _, cl := range o.Claims {
		if cl.Status == observe.Failed {
			root.add("claim failed: %s %s: %s", cl.Field, cl.Value, cl.Reason)
		}
	}
	if c.Runs > 1 {
		root.add("%d runs made this digest; this is the newest", c.Runs)
	}
	if c.Verdict != "" {
		root.add("verdict of %s: %s", c.Policy, c.Verdict)
	}
	var b strings.Builder
	b.WriteString(root.text + "\n")
	draw(&b, root.kids, "")
	_, err := io.WriteString(w, b.String())
	return err
}

func referrers(t observe.Tree) string {
	if len(t.Manifests) < 2 {
		return ""
	}
	n, many := len(t.Manifests)-1, "s"
	if n == 1 {
		many = ""
	}
	return fmt.Sprintf(" with %d referrer%s (bill of materials)", n, many)
}

func draw(b *strings.Builder, kids []*node, indent string) {
	for i, k := range kids {
		branch, below := "├─ ", "│  "
		if i == len(kids)-1 {
			branch, below = "└─ ", "   "
		}
		b.WriteString(indent + branch + k.text + "\n")
		draw(b, k.kids, indent+below)
	}
}
