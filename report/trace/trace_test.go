package trace

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/observe"
)

var update = flag.Bool("update", false, "write the golden files")

func digest(c string) string { return "sha256:" + strings.Repeat(c, 64) }

// chain is a run of five tasks: a clone, one that only reads, a build of it, an
// index of the build, and one that failed once.
func chain() *Chain {
	const repo = "localhost:5055/staging/r"
	at := func(s int) time.Time { return time.Date(2026, 11, 1, 12, 0, s, 0, time.UTC) }
	source, deps := "oci:"+repo+"@"+digest("a"), "oci:"+repo+"@"+digest("b")
	return &Chain{
		Image: repo + "@" + digest("e"), Runs: 2,
		Policy: "release", Verdict: "pass",
		ObservedBy: Signature{By: "observer", Grade: "observer"},
		Signatures: []Signature{
			{Kind: "image signature (bundle)", By: "observer", Grade: "observer"},
			{Kind: "https://slsa.dev/provenance/v0.2", By: "ci.pub", Grade: "key holder"},
		},
		Observation: &observe.Observation{
			Run:    observe.RunRecord{ID: "r", Name: "build", Opened: at(0), Closed: at(50), Outcome: "succeeded", Executor: observe.Host{KeySeparation: "user"}},
			Source: &observe.Source{Task: "build-clone", Repository: "https://git.example/app", RepositoryStatus: observe.Checked, Ref: "refs/heads/main", Commit: strings.Repeat("c", 40), CommitStatus: observe.Checked, GitTree: strings.Repeat("d", 40), Tree: digest("1"), Artifact: source},
			Tasks: []observe.TaskRecord{
				{TaskRun: "build-clone", PipelineTask: "clone", Ref: observe.Ref{Name: "git-clone", Bundle: "r.example/t@" + digest("7"), Status: observe.Checked}, Started: at(1), Finished: at(3), Outcome: "succeeded", Network: "open",
					Outputs: []observe.Tree{
						{Name: "SOURCE_ARTIFACT", Kind: "source", URI: source, Digest: digest("1")},
						{Name: "COMMIT_OBJECT", Kind: "commit", CommitID: strings.Repeat("c", 40)},
					}},
				{TaskRun: "build-read", PipelineTask: "read", Started: at(4), Finished: at(5), Outcome: "succeeded", Network: "none", Hermetic: observe.Hermetic{Enforced: true},
					Inputs: []observe.Tree{{Name: "SOURCE_ARTIFACT", URI: source, Digest: digest("1")}}},
				{TaskRun: "build-deps", PipelineTask: "deps", Attempt: 1, Started: at(4), Finished: at(6), Outcome: "Failed", Network: "open",
					Outputs: []observe.Tree{{Name: "CACHI2_ARTIFACT", Kind: "artifact", URI: deps, Digest: digest("2")}}},
				{TaskRun: "build-build-0", PipelineTask: "build", Started: at(7), Finished: at(40), Outcome: "succeeded", Network: "none", Hermetic: observe.Hermetic{Enforced: true},
					Inputs:  []observe.Tree{{Name: "SOURCE_ARTIFACT", URI: source, Digest: digest("1")}, {Name: "CACHI2_ARTIFACT", URI: deps, Digest: digest("2")}},
					Outputs: []observe.Tree{{Name: "IMAGE", Kind: "image", URI: repo + "@" + digest("d"), Manifests: []string{digest("d"), digest("5")}}}},
				{TaskRun: "build-index", PipelineTask: "index", Started: at(41), Finished: at(42), Outcome: "succeeded", Network: "registry",
					Params: json.RawMessage(`{"IMAGES":["` + repo + "@" + digest("d") + `"]}`), Uploads: []string{digest("e")}},
			},
			Claims: []observe.Claim{
				{TaskRun: "build-build-0", Field: "IMAGE", Value: repo + "@" + digest("d"), Status: observe.Checked},
				{TaskRun: "build-read", Field: "IMAGE", Value: "elsewhere@" + digest("f"), Status: observe.Failed, Reason: "this run put no such artifact into the registry"},
			},
		},
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got), -update writes it:\n%s", file, diff)
	}
}

func TestText(t *testing.T) {
	var b bytes.Buffer
	if err := Text(&b, chain()); err != nil {
		t.Fatal(err)
	}
	golden(t, "chain.txt", b.Bytes())
	b.Reset()
	// The least there is: one task, nothing known of its source.
	c := &Chain{Image: "x@" + digest("e"), Observation: &observe.Observation{Tasks: []observe.TaskRecord{{TaskRun: "only", Outcome: "succeeded", Network: "none"}}}}
	if err := Text(&b, c); err != nil {
		t.Fatal(err)
	}
	golden(t, "least.txt", b.Bytes())
}

func TestSVG(t *testing.T) {
	var b bytes.Buffer
	if err := SVG(&b, chain()); err != nil {
		t.Fatal(err)
	}
	golden(t, "chain.svg", b.Bytes())
	wellFormed(t, b.Bytes())
	b.Reset()
	if err := SVG(&b, &Chain{Image: "x@" + digest("e"), Observation: &observe.Observation{}}); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, b.Bytes())
}

// wellFormed parses a picture and refuses what could act in a browser.
func wellFormed(t *testing.T, svg []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(svg))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("no XML: %v\n%s", err, svg)
		}
		e, ok := tok.(xml.StartElement)
		if !ok {
			continue
		}
		switch e.Name.Local {
		case "svg", "title", "style", "defs", "marker", "path", "text", "g", "rect":
		default:
			t.Errorf("element %s", e.Name.Local)
		}
		for _, a := range e.Attr {
			if strings.HasPrefix(strings.ToLower(a.Name.Local), "on") || a.Name.Local == "href" {
				t.Errorf("attribute %s of %s", a.Name.Local, e.Name.Local)
			}
		}
	}
}

// Names are a pipeline's to choose: they must neither steer a terminal nor
// become markup.
func TestHostileNames(t *testing.T) {
	const evil = "\x1b[2J\r\n\u009b31m</text><script>alert(1)</script>\" onload=\"x"
	c := chain()
	c.Policy, c.Verdict = evil, evil
	c.Signatures[0].By, c.Signatures[0].Kind = evil, evil
	o := c.Observation
	o.Source.Repository, o.Source.Ref, o.Source.Reason, o.Source.Commit = evil, evil, evil, evil
	for i := range o.Tasks {
		o.Tasks[i].PipelineTask, o.Tasks[i].Ref.Name, o.Tasks[i].Outcome, o.Tasks[i].Network = evil, evil, evil, evil
		for j := range o.Tasks[i].Outputs {
			o.Tasks[i].Outputs[j].Name, o.Tasks[i].Outputs[j].CommitID = evil, evil
		}
	}
	o.Claims[1].Value, o.Claims[1].Reason = evil, evil
	var text, svg bytes.Buffer
	if err := Text(&text, c); err != nil {
		t.Fatal(err)
	}
	if err := SVG(&svg, c); err != nil {
		t.Fatal(err)
	}
	for name, out := range map[string]string{"text": text.String(), "svg": svg.String()} {
		for _, r := range out {
			if r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 {
				t.Errorf("%s: control character %q", name, r)
				break
			}
		}
	}
	plain := chain()
	plain.Observation.Source.Reason = "x" // has a line of its own
	if a, b := strings.Count(text.String(), "\n"), strings.Count(mustText(t, plain), "\n"); a != b {
		t.Errorf("a name made lines: %d, without %d", a, b)
	}
	wellFormed(t, svg.Bytes())
}

func mustText(t *testing.T, c *Chain) string {
	t.Helper()
	var b bytes.Buffer
	if err := Text(&b, c); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
