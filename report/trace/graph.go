package trace

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"assay.dev/assay/observe"
)

// Mark says how a link is known.
type Mark string

// Marks.
const (
	// MarkObserved: an observer that the trust binds as one did or measured it, or
	// checked it against bytes that it fetched itself.
	MarkObserved Mark = "observed"
	// MarkAttested: somebody who is no observer signed it; Link.By says who.
	MarkAttested Mark = "attested"
	// MarkInferred: nobody says it; it follows from names and digests that fit.
	MarkInferred Mark = "inferred"
	// MarkMissing: it should be there and is not.
	MarkMissing Mark = "missing"
)

// Kinds of nodes.
const (
	KindSource    = "source"
	KindTask      = "task"
	KindRun       = "run"
	KindInput     = "input"
	KindAction    = "action"
	KindImage     = "image"
	KindSBOM      = "sbom"
	KindSignature = "signature"
	KindVerdict   = "verdict"
)

// Node is one thing in the chain.
type Node struct {
	ID    string   `json:"id"`
	Kind  string   `json:"kind"`
	Title string   `json:"title"`
	Lines []string `json:"lines,omitempty"`
	// Class refines the kind for pictures: hermetic, pass, fail.
	Class string `json:"class,omitempty"`
}

// Link joins two nodes, in the order of making.
type Link struct {
	From string `json:"from"`
	To   string `json:"to"`
	// What went from one to the other: an artifact with its digest.
	What string `json:"what,omitempty"`
	Mark Mark   `json:"mark"`
	// By is who attests it; empty for other marks.
	By string `json:"by,omitempty"`
	// Why is the reason for a mark that is not obvious.
	Why string `json:"why,omitempty"`
}

// said is a link's mark in words.
func (l Link) said() string {
	s := string(l.Mark)
	if l.Mark == MarkAttested {
		s = "attested by " + l.By
	}
	if l.Why != "" {
		s += ": " + l.Why
	}
	return s
}

// Graph is the whole chain.
type Graph struct {
	Nodes []Node `json:"nodes"`
	Links []Link `json:"links"`
}

func (g *Graph) node(n Node) string {
	g.Nodes = append(g.Nodes, n)
	return n.ID
}

// link adds a link; between two nodes what goes is gathered, unless it is known in
// another way.
func (g *Graph) link(l Link) {
	if l.From == l.To {
		return
	}
	for i, o := range g.Links {
		if o.From == l.From && o.To == l.To && o.Mark == l.Mark && o.By == l.By && o.Why == l.Why {
			if l.What != "" && !strings.Contains(o.What, l.What) {
				if o.What != "" {
					o.What += ", "
				}
				g.Links[i].What = o.What + l.What
			}
			return
		}
	}
	g.Links = append(g.Links, l)
}

func (g *Graph) linked(from, to string) bool {
	return slices.ContainsFunc(g.Links, func(l Link) bool { return l.From == from && l.To == to })
}

// Graph makes the chain's nodes and links. Everything in it comes from the evidence in
// the chain, or is marked otherwise.
func (c *Chain) Graph() *Graph {
	g := &Graph{Nodes: []Node{}, Links: []Link{}}
	switch {
	case c.Observation != nil:
		c.observed(g)
	case c.Build != nil:
		c.built(g)
	default:
		g.node(c.imageNode())
		g.missing("source", KindSource, "source", "no provenance says what was built")
	}
	c.sboms(g)
	c.signers(g)
	if c.Verdict != "" {
		g.node(Node{ID: "verdict", Kind: KindVerdict, Title: "verdict: " + clean(c.Verdict), Lines: []string{"policy " + clean(c.Policy)}, Class: verdictClass(c.Verdict)})
		g.link(Link{From: "image", To: "verdict", Mark: MarkObserved, Why: "judged here and now"})
	}
	return g
}

// missing adds a node that is not there, before the image.
func (g *Graph) missing(id, kind, title, why string) {
	g.node(Node{ID: id, Kind: kind, Title: title + ": missing", Class: "missing"})
	g.link(Link{From: id, To: "image", Mark: MarkMissing, Why: why})
}

func (c *Chain) imageNode() Node {
	lines := []string{fmt.Sprintf("%d signatures and attestations", len(c.Signatures))}
	for _, s := range c.Signatures {
		if s.Grade == gradeObserver {
			lines = append(lines, "by "+clean(s.By)+", an observer")
			break
		}
	}
	return Node{ID: "image", Kind: KindImage, Title: "image " + clean(short(c.Image)), Lines: lines}
}

const gradeObserver = "observer"

// observed draws a run that an Assay executed.
func (c *Chain) observed(g *Graph) {
	o := c.Observation
	// An observation counts as one only if its signer is an observer to the verifier.
	mark := func(k observe.Knowledge, why string) (m Mark, by, reason string) {
		switch k {
		case observe.Observed, observe.Checked:
			if c.ObservedBy.Grade == gradeObserver {
				return MarkObserved, "", why
			}
			return MarkAttested, clean(c.ObservedBy.By) + " (" + clean(c.ObservedBy.Grade) + ")", why
		case observe.Failed:
			return MarkMissing, "", why
		}
		return MarkAttested, "the build itself", strings.TrimPrefix(why+"; claimed and not checked", "; ")
	}
	did := func(from, to, what string) {
		m, by, why := mark(observe.Observed, "")
		g.link(Link{From: from, To: to, What: clean(what), Mark: m, By: by, Why: why})
	}
	if s := o.Source; s != nil {
		g.node(Node{ID: "source", Kind: KindSource, Title: "commit " + clean(short(s.Commit)), Lines: []string{clean(s.Repository), clean(fmt.Sprintf("commit %s, repository %s", s.CommitStatus, s.RepositoryStatus))}})
	}
	made := map[string]string{} // artifact or image digest → task that made it
	var tasks []string
	for i := range o.Tasks {
		t := &o.Tasks[i]
		id := fmt.Sprintf("task-%d", i)
		n := Node{ID: id, Kind: KindTask, Title: clean(taskName(t)), Lines: []string{clean(facts(t)), clean(reference(t.Ref))}}
		if t.Hermetic.Enforced {
			n.Class = "hermetic"
		}
		tasks = append(tasks, g.node(n))
		if s := o.Source; s != nil && t.TaskRun == s.Task {
			worst := s.CommitStatus
			if s.RepositoryStatus != observe.Checked && s.RepositoryStatus != observe.Observed {
				worst = s.RepositoryStatus
			}
			m, by, why := mark(worst, s.Reason)
			g.link(Link{From: "source", To: id, What: clean("commit " + short(s.Commit)), Mark: m, By: by, Why: clean(why)})
		}
		for _, in := range t.Inputs {
			if from, ok := made[digestIn(in.URI)]; ok {
				did(from, id, in.Name+" "+short(in.URI))
			}
		}
		// Images that a parameter names by digest were taken from who made them: so it
		// looks, but what a task does with a parameter is its own affair.
		for _, d := range slices.Sorted(maps.Keys(made)) {
			if strings.Contains(string(t.Params), d) && !g.linked(made[d], id) {
				g.link(Link{From: made[d], To: id, What: short(d), Mark: MarkInferred, Why: "a parameter names it"})
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
	g.node(c.imageNode())
	if from, ok := made[digestIn(c.Image)]; ok {
		did(from, "image", short(c.Image))
	} else {
		// The observation is about this image and its run is known to have made it; which
		// task did is not.
		g.link(Link{From: last(tasks, "source"), To: "image", Mark: MarkMissing, Why: "no task is known to have put it into the registry"})
	}
	if o.Source == nil {
		g.missing("source", KindSource, "source", "the run cloned no commit that could be checked")
	}
	// Which SBOMs the export of the image put there itself.
	for i := range c.SBOMs {
		if from, ok := made[c.SBOMs[i].Digest]; ok {
			c.SBOMs[i].madeBy, c.SBOMs[i].Mark = from, MarkObserved
		}
	}
}

func last(list []string, otherwise string) string {
	if len(list) == 0 {
		return otherwise
	}
	return list[len(list)-1]
}

// built draws what a provenance says.
func (c *Chain) built(g *Graph) {
	b := c.Build
	by := clean(b.By) + " (" + clean(b.Grade) + ")"
	attested := func(from, to, what, why string) {
		m := Link{From: from, To: to, What: clean(what), Mark: MarkAttested, By: by, Why: why}
		if b.Grade == gradeObserver {
			// He watched a Tekton and measured nothing, so it stays his word.
			m.By = clean(b.By) + ", an observer"
		}
		g.link(m)
	}
	src := b.Source
	if src.Repository+src.Commit != "" {
		title := "commit " + clean(short(src.Commit))
		if src.Commit == "" {
			title = "source, commit not said"
		}
		g.node(Node{ID: "source", Kind: KindSource, Title: title, Lines: lines(src.Repository, src.Ref)})
	}
	if len(b.Tasks) == 0 {
		title, why := "run "+clean(b.Invocation), "the provenance names no steps or tasks"
		if b.Workflow != "" {
			title = "workflow " + clean(workflowName(b.Workflow))
		}
		g.node(Node{ID: "run", Kind: KindRun, Title: title, Lines: lines(b.Builder, b.Invocation)})
		if src.Repository != "" {
			attested("source", "run", "commit "+short(src.Commit), "")
		}
		g.node(c.imageNode())
		attested("run", "image", short(c.Image), "")
		g.node(Node{ID: "steps", Kind: KindTask, Title: "steps: missing", Class: "missing"})
		g.link(Link{From: "steps", To: "run", Mark: MarkMissing, Why: why})
		c.read(g)
	} else {
		c.tasks(g, attested)
	}
	if src.Repository+src.Commit == "" {
		g.missing("source", KindSource, "source", "the provenance does not say what was built")
	}
	shown := 0
	first := "run"
	if len(b.Tasks) > 0 {
		first = "task-0"
	}
	for i, in := range b.Inputs {
		if in.Digest == src.Commit && src.Commit != "" {
			continue
		}
		if len(b.Tasks) > 0 {
			continue // images of steps and definitions of tasks: the JSON has them
		}
		if shown++; shown > maxInputs {
			break
		}
		id := g.node(Node{ID: fmt.Sprintf("input-%d", i), Kind: KindInput, Title: clean(in.URI), Lines: lines(short(in.Digest))})
		attested(id, first, short(in.Digest), "")
	}
}

// tasks draws those of Tekton.
func (c *Chain) tasks(g *Graph, attested func(from, to, what, why string)) {
	b := c.Build
	ids := map[string]string{}
	made := map[string]string{}
	for i, t := range b.Tasks {
		id := g.node(Node{ID: fmt.Sprintf("task-%d", i), Kind: KindTask, Title: clean(t.Name), Lines: lines(t.Outcome, short(t.Ref))})
		ids[t.Name] = id
		if c.Build.Source.Commit != "" && slices.Contains(t.Makes, b.Source.Commit) && !slices.ContainsFunc(g.Links, func(l Link) bool { return l.From == "source" }) {
			g.link(Link{From: "source", To: id, What: "commit " + short(b.Source.Commit), Mark: MarkInferred, Why: "its result is that commit"})
		}
	}
	if b.Source.Repository != "" && !slices.ContainsFunc(g.Links, func(l Link) bool { return l.From == "source" }) {
		attested("source", "task-0", "commit "+short(b.Source.Commit), "for the run; which task cloned it is not said")
	}
	for i, t := range b.Tasks {
		id := fmt.Sprintf("task-%d", i)
		for _, d := range t.Takes {
			if from, ok := made[d]; ok {
				g.link(Link{From: from, To: id, What: short(d), Mark: MarkInferred, Why: "a result of one is a parameter of the other"})
			}
		}
		for _, u := range t.Uses {
			if from, ok := ids[u]; ok {
				g.link(Link{From: from, To: id, Mark: MarkInferred, Why: "the pipeline hands results over"})
			}
		}
		for _, a := range t.After {
			if from, ok := ids[a]; ok && !g.linked(from, id) {
				g.link(Link{From: from, To: id, Mark: MarkInferred, Why: "it ran after"})
			}
		}
		for _, d := range t.Makes {
			if _, ok := made[d]; !ok {
				made[d] = id
			}
		}
	}
	g.node(c.imageNode())
	switch from, ok := made[digestIn(c.Image)]; {
	case ok:
		attested(from, "image", short(c.Image), "its result names the digest")
	default:
		attested(fmt.Sprintf("task-%d", len(b.Tasks)-1), "image", short(c.Image), "for the run; which task made it is not said")
	}
}

// read draws what workflow files say was used.
func (c *Chain) read(g *Graph) {
	n := 0
	for _, r := range c.Build.Readings {
		for _, u := range r.Uses {
			if n++; n > maxInputs {
				return
			}
			title, class := u.Name, "pinned"
			if u.Ref != "" {
				title += "@" + short(u.Ref)
			}
			where := u.Where
			if !u.Pinned {
				class, where = "unpinned", where+", not pinned"
			}
			id := g.node(Node{ID: fmt.Sprintf("use-%d", n), Kind: KindAction, Title: clean(title), Lines: lines(u.Kind, where), Class: class})
			why := "the workflow's file names it; not attested"
			if u.Conditional {
				why = "the workflow's file names it under a condition; not attested"
			}
			g.link(Link{From: id, To: "run", Mark: MarkInferred, Why: why})
		}
	}
}

// sboms draws bills of materials, or that there is none.
func (c *Chain) sboms(g *Graph) {
	if len(c.SBOMs) == 0 {
		g.node(Node{ID: "sbom", Kind: KindSBOM, Title: "bill of materials: missing", Class: "missing"})
		g.link(Link{From: "image", To: "sbom", Mark: MarkMissing, Why: "none is attested or attached"})
		return
	}
	for i, s := range c.SBOMs {
		id := g.node(Node{ID: fmt.Sprintf("sbom-%d", i), Kind: KindSBOM, Title: "bill of materials " + clean(short(s.Digest)), Lines: lines(s.Type)})
		l := Link{From: "image", To: id, Mark: s.Mark, By: clean(s.By)}
		switch {
		case s.madeBy != "":
			l.From, l.What = s.madeBy, clean(short(s.Digest))
		case s.Mark == MarkInferred:
			l.Why = "it hangs on the image, and nobody signed that it belongs there"
		}
		g.link(l)
	}
}

// signers draws who vouches, one node each.
func (c *Chain) signers(g *Graph) {
	if len(c.Signatures) == 0 {
		g.node(Node{ID: "signature", Kind: KindSignature, Title: "signature: missing", Class: "missing"})
		g.link(Link{From: "image", To: "signature", Mark: MarkMissing, Why: "nobody whom the trust knows vouches for it"})
		return
	}
	var order []string
	kinds := map[string][]string{}
	grade := map[string]string{}
	for _, s := range c.Signatures {
		if kinds[s.By] == nil {
			order = append(order, s.By)
		}
		kinds[s.By] = append(kinds[s.By], s.Kind)
		// The best that he was found to be.
		if grade[s.By] != gradeObserver {
			grade[s.By] = s.Grade
		}
	}
	for i, by := range order {
		g.node(Node{ID: fmt.Sprintf("signer-%d", i), Kind: KindSignature, Title: "signed by " + clean(by), Lines: append([]string{clean(grade[by])}, lines(kinds[by]...)...)})
		g.link(Link{From: "image", To: fmt.Sprintf("signer-%d", i), What: fmt.Sprintf("%d signed", len(kinds[by])), Mark: MarkAttested, By: clean(by) + " (" + clean(grade[by]) + ")"})
	}
}

// lines drops empty ones.
func lines(s ...string) []string {
	var out []string
	for _, l := range s {
		if l != "" {
			out = append(out, clean(l))
		}
	}
	return out
}

// workflowName is owner/name/file@ref of a workflow's address.
func workflowName(address string) string {
	address = strings.TrimPrefix(address, "https://")
	return strings.Replace(address, "/.github/workflows/", "/", 1)
}
