package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/internal/gate"
	"assay.dev/assay/observe"
	"assay.dev/assay/policy"
	"assay.dev/assay/report/trace"
	"assay.dev/assay/store"
	"assay.dev/assay/store/attached"
	"assay.dev/assay/verify"
)

func (a *app) traceCommand() *cobra.Command {
	var (
		v verifyFlags
		g gateFlags
	)
	c := &cobra.Command{
		Use:   "trace IMAGE|FILE",
		Short: "Draw the chain from commit over each task to image, evidence and verdict",
		Long: `Verifies the evidence and draws what it says: the commit, each task in the order of
the artifacts, what went in and out with digests, the image, its bill of materials, who
signed, and with --policy the verdict. It draws what an Assay executed, what Tekton
Chains or Konflux watched, and what GitHub's workflows attest.

Each link says how it is known: observed (by an observer that your trust names as
one), attested by somebody, inferred (from names and digests that fit; nobody says it)
or missing.

For GitHub's provenance it lists what the provenance does not say. With --workflow-repo
it reads the workflow's file at the attested commit and lists the actions it names and
which are not pinned by digest: inferred, not attested.

Exit codes: 0 drawn, 1 could not be checked, 2 usage, 3 nothing verifies.`,
		Example: `  assay trace $IMAGE --key $KEY
  assay trace $IMAGE --key $KEY --policy $POLICY --output svg > trace.svg
  assay trace gh.tar.gz --bundle gh.sigstore.json --repo cli/cli --workflow-repo https://github.com/cli/cli`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json", "svg", "dot"); err != nil {
				return err
			}
			e, err := a.verify(cmd.Context(), &v, args)
			var none *verify.NoEvidenceError
			if errors.As(err, &none) {
				return &exit{exitRefused, none}
			}
			if err != nil {
				return err
			}
			t, err := a.chain(cmd.Context(), e, v.workflows)
			if err != nil {
				return err
			}
			if g.policy != "" {
				if len(args) == 0 || len(e.Manifest()) == 0 {
					return usagef("--policy judges images")
				}
				g.trust, g.identity = v.trust, v.identity
				gt, _, err := g.open(cmd.Context(), "")
				if err != nil {
					return err
				}
				t.Verdict = verdictOf(judgeAll(cmd.Context(), gt, args)[0])
				t.Policy = gt.Policy.Name()
			}
			switch a.output {
			case "json":
				return a.json(struct {
					*trace.Chain
					*trace.Graph
				}{t, t.Graph()})
			case "svg":
				return trace.SVG(a.out, t)
			case "dot":
				return trace.DOT(a.out, t)
			}
			return trace.Text(a.out, t)
		},
	}
	v.add(c)
	f := c.Flags()
	f.StringVarP(&g.policy, "policy", "p", "", "policy: a file, or a folder with policy.yaml or *.rego; its verdict is drawn too")
	f.StringArrayVar(&g.data, "data", nil, "data file for the policy, such as trusted tasks (repeatable)")
	f.StringVar(&g.effective, "effective-time", "", "judge as of this time: RFC 3339 or YYYY-MM-DD (default: now)")
	f.BoolVar(&g.past, "allow-past-effective-time", false, "accept an --effective-time in the past, where later rules are not in force")
	return c
}

func verdictOf(j *gate.Judgement) string {
	switch {
	case j.Unchecked():
		return "not checked"
	case j.Passed():
		return string(policy.Pass)
	}
	return string(policy.Fail)
}

// chain takes the newest run with an observation, the others are counted; without one
// the provenance whose signer is farthest from the build.
func (a *app) chain(ctx context.Context, e *verify.Evidence, workflows []string) (*trace.Chain, error) {
	t := &trace.Chain{Image: e.Ref(), SBOMs: []trace.SBOM{}}
	for _, s := range e.Signatures() {
		t.Signatures = append(t.Signatures, vouching("image signature ("+s.Format+")", s.Identity, verify.SignerFacts{}))
	}
	var best *verify.Statement
	for _, s := range e.Statements() {
		by := vouching(s.PredicateType, s.Identity, factsOf(&s))
		t.Signatures = append(t.Signatures, by)
		switch s.Typed.(type) {
		case *predicate.SPDX, *predicate.BOM:
			t.SBOMs = append(t.SBOMs, trace.SBOM{Type: s.PredicateType, Digest: s.PayloadDigest, Mark: trace.MarkAttested, By: by.By + " (" + by.Grade + ")"})
		case predicate.Provenance:
			if best == nil || rank(by.Grade) < rank(vouching("", best.Identity, factsOf(best)).Grade) {
				best = &s
			}
		}
	}
	if err := a.attachedSBOMs(ctx, e, t); err != nil {
		return nil, err
	}
	for _, r := range e.Runs() {
		if r.Observation == nil {
			continue
		}
		var o observe.Observation
		if err := json.Unmarshal(r.Observation.Predicate, &o); err != nil {
			return nil, fmt.Errorf("reading the observation of run %s: %w", r.ID, err)
		}
		t.Runs++
		if t.Observation == nil || o.Run.Closed.After(t.Observation.Run.Closed) {
			t.Observation, t.ObservedBy = &o, vouching(r.Observation.PredicateType, r.Observation.Identity, verify.SignerFacts{})
		}
	}
	if t.Observation != nil || best == nil {
		return t, nil
	}
	t.Build = trace.OfProvenance(best.Typed)
	by := vouching("", best.Identity, factsOf(best))
	t.Build.By, t.Build.Grade, t.Build.Reason = by.By, by.Grade, by.Reason
	t.Runs = 1
	if c := best.Certificate; c != nil {
		t.Build.Workflow, t.Build.Caller = c.Signer(), c.BuildConfigURI
		if t.Build.Source.Commit == "" && t.Build.Source.Repository == c.SourceRepository() {
			t.Build.Source.Commit = c.SourceDigest()
		}
		for _, u := range verify.Unsaid(best.Typed, c) {
			t.Build.Unsaid = append(t.Build.Unsaid, u.Text)
		}
	}
	var err error
	t.Build.Readings, err = a.readWorkflows(ctx, best.Certificate, workflows)
	return t, err
}

// factsOf are what a grade is made of, where the trust binds nothing.
func factsOf(s *verify.Statement) verify.SignerFacts {
	f := verify.SignerFacts{Certificate: s.Certificate}
	if p, ok := s.Typed.(predicate.Provenance); ok {
		f.Builder, f.Source = p.BuilderID(), p.Source()
	}
	return f
}

// vouching names a signer. What verification left ungraded is graded by its
// certificate.
func vouching(kind string, id verify.Identity, f verify.SignerFacts) trace.Signature {
	s := trace.Signature{Kind: kind, By: id.KeyName, Grade: string(id.Grade), Reason: id.Reason}
	if id.Certificate != nil && id.Grade == verify.GradeUnknown {
		f.Certificate = id.Certificate
		i := verify.Independent(f)
		s.Grade, s.Reason = string(i.Grade), i.Reason()
	}
	return s
}

// rank orders grades, the most independent first.
func rank(grade string) int {
	order := []verify.Grade{verify.GradeObserver, verify.GradeIsolatedWorkflow, verify.GradeBuilder, verify.GradeKeyHolder}
	if i := slices.Index(order, verify.Grade(grade)); i >= 0 {
		return i
	}
	return len(order)
}

// attachedSBOMs adds what hangs on an image unsigned.
func (a *app) attachedSBOMs(ctx context.Context, e *verify.Evidence, t *trace.Chain) error {
	if len(e.Manifest()) == 0 {
		return nil
	}
	h, err := a.hangsOn(ctx, e.Ref(), "")
	if err != nil {
		return err
	}
	add := func(kind, digest string) {
		t.SBOMs = append(t.SBOMs, trace.SBOM{Type: kind, Digest: digest, Mark: trace.MarkInferred})
	}
	m, err := h.Tagged(ctx, h.subject.Digest, ".sbom")
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err == nil {
		for _, l := range m.Layers {
			add(l.MediaType, l.Digest)
		}
	}
	refs, err := h.Referrers(ctx, h.subject.Digest)
	if err != nil {
		return err
	}
	for _, d := range refs {
		if attached.IsSBOM(d.ArtifactType) {
			add(d.ArtifactType, d.Digest)
		}
	}
	return nil
}
