// Package trace draws the chain from a commit over each task to an image and
// what is known about it: as a tree of text, as a picture (SVG), as DOT and as JSON.
//
// What is drawn comes from verified evidence: of runs that an Assay executed, from
// their observation; of runs that were watched (Tekton) and of GitHub's workflows, from
// their provenance. Each link says how it is known, since the same arrow means
// different things: observed, attested by somebody, inferred from names and digests
// that fit, or missing. The package judges nothing.
package trace

import (
	"fmt"
	"io"
	"strings"
	"time"

	"assay.dev/assay/observe"
)

// Chain is what there is to draw: Observation, or else Build, or nothing but the image
// and who signed it.
type Chain struct {
	Image       string               `json:"image"`
	Runs        int                  `json:"runs"` // runs that made this digest; the newest is drawn
	Observation *observe.Observation `json:"observation,omitempty"`
	// ObservedBy signed the observation. Unless his grade is observer, nothing in it
	// counts as observed.
	ObservedBy Signature   `json:"observedBy,omitzero"`
	Build      *Build      `json:"build,omitempty"`
	Signatures []Signature `json:"signatures"`
	SBOMs      []SBOM      `json:"sboms"`
	Policy     string      `json:"policy,omitempty"`
	Verdict    string      `json:"verdict,omitempty"`
}

// SBOM is a bill of materials that is attested or attached.
type SBOM struct {
	Type   string `json:"type"`
	Digest string `json:"digest"` // of the payload or the referrer
	Mark   Mark   `json:"mark"`   // attested, or inferred for one that is only attached
	By     string `json:"by,omitempty"`

	madeBy string // task whose export put it there
}

// Signature is who vouched.
type Signature struct {
	Kind  string `json:"kind"`
	By    string `json:"by"`
	Grade string `json:"grade"`
	// Reason is why he has that grade.
	Reason string `json:"reason,omitempty"`
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

// Text draws the chain as a tree, readable without colour, with all links behind it.
func Text(w io.Writer, c *Chain) error {
	root := &node{text: "image " + clean(c.Image)}
	switch {
	case c.Observation != nil:
		c.textObserved(root)
	case c.Build != nil:
		c.textBuild(root)
	}
	signed := root.add("vouched for by")
	for _, s := range c.Signatures {
		signed.add("%s (%s): %s", s.By, s.Grade, s.Kind)
	}
	if len(c.Signatures) == 0 {
		signed.add("nobody whom the trust knows")
	}
	if c.Observation != nil {
		for _, cl := range c.Observation.Claims {
			if cl.Status == observe.Failed {
				root.add("claim failed: %s %s: %s", cl.Field, cl.Value, cl.Reason)
			}
		}
	}
	if c.Runs > 1 {
		root.add("%d runs made this digest; this is the newest", c.Runs)
	}
	if c.Verdict != "" {
		root.add("verdict of %s: %s", c.Policy, c.Verdict)
	}
	g := c.Graph()
	links := root.add("how each link is known")
	titles := map[string]string{}
	for _, n := range g.Nodes {
		titles[n.ID] = n.Title
	}
	for _, l := range g.Links {
		what := ""
		if l.What != "" {
			what = " (" + l.What + ")"
		}
		links.add("%s → %s%s: %s", titles[l.From], titles[l.To], what, l.said())
	}
	var b strings.Builder
	b.WriteString(root.text + "\n")
	draw(&b, root.kids, "")
	_, err := io.WriteString(w, b.String())
	return err
}

func (c *Chain) textObserved(root *node) {
	o := c.Observation
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
}

// textBuild tells what a provenance says, and what it does not.
func (c *Chain) textBuild(root *node) {
	b := c.Build
	if b.Source.Repository+b.Source.Commit != "" {
		n := root.add("commit %s of %s", orNot(b.Source.Commit), orNot(b.Source.Repository))
		if b.Source.Ref != "" {
			n.add("built for %s", b.Source.Ref)
		}
	}
	run := root.add("%s run %s, outcome %s", b.Origin, orNot(b.Invocation), orNot(b.Outcome))
	run.add("builder %s", b.Builder)
	run.add("said by %s (%s): %s", b.By, b.Grade, b.Reason)
	if b.Workflow != "" {
		run.add("signed in %s", b.Workflow)
	}
	if b.Caller != "" && b.Caller != b.Workflow {
		run.add("called by %s", b.Caller)
	}
	for _, t := range b.Tasks {
		n := run.add("%s: %s", t.Name, orNot(t.Outcome))
		if t.Ref != "" {
			n.add("task  %s", short(t.Ref))
		}
		for _, d := range t.Makes {
			n.add("out   %s", short(d))
		}
	}
	if len(b.Unsaid) > 0 {
		n := root.add("what the provenance does not say")
		for _, u := range b.Unsaid {
			n.add("%s", u)
		}
	}
	for _, r := range b.Readings {
		n := root.add("%s at %s: %s", r.Path, short(r.Commit), r.Basis)
		for _, u := range r.Uses {
			pin, maybe := "pinned", ""
			if !u.Pinned {
				pin = "NOT PINNED"
			}
			if u.Conditional {
				maybe = ", conditional"
			}
			name := u.Name
			if u.Ref != "" {
				name += "@" + u.Ref
			}
			n.add("%s %s: %s (%s%s)", u.Kind, name, pin, u.Where, maybe)
		}
		if r.Scripts > 0 {
			n.add("%d steps run scripts", r.Scripts)
		}
		for _, u := range r.Unread {
			n.add("not read: %s", u)
		}
	}
}

func orNot(s string) string {
	if s == "" {
		return "not said"
	}
	return s
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
