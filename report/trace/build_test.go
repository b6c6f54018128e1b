package trace

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/observe"
	"assay.dev/assay/verify/workflow"
)

// TestWatched draws a real pipeline's provenance as Tekton Chains writes it, in both
// versions, from the conformance data.
func TestWatched(t *testing.T) {
	for file, typ := range map[string]string{
		"expected-slsa-v1.json":       "https://slsa.dev/provenance/v0.2",
		"expected-slsa-v2alpha4.json": "https://slsa.dev/provenance/v1",
	} {
		t.Run(file, func(t *testing.T) {
			root, err := filepath.Abs("../../../shared/conformance/chains/pr-build-large-deep")
			if err != nil {
				t.Fatal(err)
			}
			data, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				t.Skipf("no conformance data: %v", err)
			}
			var s struct {
				Predicate json.RawMessage `json:"predicate"`
				Subject   []struct {
					Name   string            `json:"name"`
					Digest map[string]string `json:"digest"`
				} `json:"subject"`
			}
			if err := json.Unmarshal(data, &s); err != nil {
				t.Fatal(err)
			}
			p, err := predicate.Parse(typ, s.Predicate)
			if err != nil {
				t.Fatal(err)
			}
			b := OfProvenance(p)
			b.By, b.Grade, b.Reason = "chains.pub", "key holder", "it is a bare key"
			if b.Origin != "watched" || len(b.Tasks) < 10 || b.Source.Commit == "" {
				t.Errorf("origin %s, %d tasks, source %+v", b.Origin, len(b.Tasks), b.Source)
			}
			c := &Chain{Image: s.Subject[0].Name + "@sha256:" + s.Subject[0].Digest["sha256"], Build: b, Runs: 1,
				Signatures: []Signature{{Kind: typ, By: "chains.pub", Grade: "key holder"}}}
			g := c.Graph()
			marks := map[Mark]int{}
			for _, l := range g.Links {
				marks[l.Mark]++
				if l.Mark == MarkObserved {
					t.Errorf("observed, though nobody did: %+v", l)
				}
			}
			if marks[MarkInferred] < len(b.Tasks)/2 || marks[MarkAttested] < 2 {
				t.Errorf("marks %v", marks)
			}
			draws(t, strings.TrimSuffix(file, ".json"), c)
		})
	}
}

// draws compares text and DOT with golden files and reads the picture.
func draws(t *testing.T, name string, c *Chain) {
	t.Helper()
	var b bytes.Buffer
	if err := Text(&b, c); err != nil {
		t.Fatal(err)
	}
	golden(t, name+".txt", b.Bytes())
	b.Reset()
	if err := DOT(&b, c); err != nil {
		t.Fatal(err)
	}
	golden(t, name+".dot", b.Bytes())
	b.Reset()
	if err := SVG(&b, c); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, b.Bytes())
}

func TestWorkflow(t *testing.T) {
	commit := strings.Repeat("c", 40)
	p, err := predicate.Parse("https://slsa.dev/provenance/v1", []byte(`{"buildDefinition":{"buildType":"https://actions.github.io/buildtypes/workflow/v1",
		"externalParameters":{"workflow":{"ref":"refs/tags/v1","repository":"https://github.com/ours/app","path":".github/workflows/release.yml"}},
		"resolvedDependencies":[{"uri":"git+https://github.com/ours/app@refs/tags/v1","digest":{"gitCommit":"`+commit+`"}}]},
		"runDetails":{"builder":{"id":"https://github.com/ours/app/.github/workflows/release.yml@refs/tags/v1"},"metadata":{"invocationId":"https://github.com/ours/app/actions/runs/1/attempts/1"}}}`))
	if err != nil {
		t.Fatal(err)
	}
	b := OfProvenance(p)
	b.By, b.Grade, b.Reason = "https://github.com/ours/app/.github/workflows/release.yml@refs/tags/v1", "builder", "it is a workflow of the source's own repository"
	b.Workflow, b.Caller = b.By, b.By
	b.Unsaid = []string{"which actions ran, and at which commits"}
	b.Readings = []*workflow.Reading{{Basis: workflow.Basis, Path: ".github/workflows/release.yml", Commit: commit, Scripts: 1, Uses: []workflow.Use{
		{Kind: workflow.KindAction, Name: "actions/checkout", Ref: "v4", Where: "release.yml, job build, step 1"},
		{Kind: workflow.KindAction, Name: "actions/cache", Ref: commit, Pinned: true, Where: "release.yml, job build, step 2", Conditional: true},
	}}}
	c := &Chain{Image: "app.tar.gz", Build: b, Signatures: []Signature{{Kind: b.Type, By: b.By, Grade: b.Grade}},
		SBOMs: []SBOM{{Type: "https://spdx.dev/Document", Digest: digest("5"), Mark: MarkAttested, By: "x (builder)"}, {Type: "text/spdx+json", Digest: digest("6"), Mark: MarkInferred}}}
	draws(t, "workflow", c)
	for _, l := range c.Graph().Links {
		if strings.HasPrefix(l.From, "use-") && l.Mark != MarkInferred {
			t.Errorf("%+v: want it inferred", l)
		}
	}
}

// TestMarks: an observation is observed only where its signer is an observer to the
// verifier, and what a build claims is the build's word.
func TestMarks(t *testing.T) {
	c := chain()
	count := func() map[Mark]int {
		m := map[Mark]int{}
		for _, l := range c.Graph().Links {
			m[l.Mark]++
		}
		return m
	}
	if m := count(); m[MarkObserved] < 4 {
		t.Errorf("by an observer: %v", m)
	}
	c.Verdict = ""
	c.ObservedBy.Grade = "key holder"
	if m := count(); m[MarkObserved] != 0 {
		t.Errorf("by a key holder: %v", m)
	}
	c.ObservedBy.Grade = "observer"
	c.Observation.Source.RepositoryStatus = observe.Claimed
	for _, l := range c.Graph().Links {
		if l.From == "source" && (l.Mark != MarkAttested || l.By != "the build itself") {
			t.Errorf("a repository that is only claimed: %+v", l)
		}
	}
	if diff := cmp.Diff(map[Mark]int{MarkMissing: 3}, func() map[Mark]int {
		c = &Chain{Image: "x@" + digest("e")}
		return count()
	}()); diff != "" {
		t.Errorf("of nothing:\n%s", diff)
	}
}

// TestCircle: tasks that say they run after each other end no program.
func TestCircle(t *testing.T) {
	c := &Chain{Image: "x@" + digest("e"), Build: &Build{Tasks: []Task{{Name: "a", After: []string{"b"}, Takes: []string{digest("1")}, Makes: []string{digest("1")}}, {Name: "b", After: []string{"a", "a"}}}}}
	draws(t, "circle", c)
}
