package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"assay.dev/assay/api"
	"assay.dev/assay/internal/gate"
	"assay.dev/assay/observe"
	"assay.dev/assay/policy"
	"assay.dev/assay/report/trace"
	"assay.dev/assay/verify"
)

func (a *app) traceCommand() *cobra.Command {
	var g gateFlags
	c := &cobra.Command{
		Use:   "trace IMAGE",
		Short: "Draw the chain from commit over each task to image, evidence and verdict",
		Long: `Verifies the image's evidence and draws what it says: the commit, each task in the
order of the artifacts, what went in and out with digests, the image, its bill of
materials, who signed, and with --policy the verdict.`,
		Example: "  assay trace $IMAGE --key $KEY\n  assay trace $IMAGE --key $KEY --policy $POLICY --output svg > trace.svg",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json", "svg"); err != nil {
				return err
			}
			v, err := g.trust.verifier()
			if err != nil {
				return err
			}
			e, err := v.image(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			t, err := chainOf(e)
			if err != nil {
				return err
			}
			if g.policy != "" {
				gt, _, err := g.open(cmd.Context(), "")
				if err != nil {
					return err
				}
				t.Verdict = verdictOf(judgeAll(cmd.Context(), gt, args)[0])
				t.Policy = gt.Policy.Name()
			}
			switch a.output {
			case "json":
				return a.json(t)
			case "svg":
				return trace.SVG(a.out, t)
			}
			return trace.Text(a.out, t)
		},
	}
	g.add(c)
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

// chainOf takes the newest run with an observation; the others are counted.
func chainOf(e *verify.Evidence) (*trace.Chain, error) {
	t := &trace.Chain{Image: e.Ref()}
	for _, s := range e.Signatures() {
		t.Signatures = append(t.Signatures, trace.Signature{Kind: "image signature (" + s.Format + ")", By: s.KeyName, Grade: string(s.Grade)})
	}
	for _, s := range e.Statements() {
		t.Signatures = append(t.Signatures, trace.Signature{Kind: s.PredicateType, By: s.KeyName, Grade: string(s.Grade)})
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
			t.Observation = &o
		}
	}
	if t.Observation == nil {
		return nil, fmt.Errorf("%s has no observation (%s) to trace: it was not executed by an Assay that you trust; `assay verify` shows what it has", e.Ref(), api.PredicateObservation)
	}
	return t, nil
}
