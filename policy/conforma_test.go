package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"sigs.k8s.io/yaml"
)

// sharedConformance finds ../shared/conformance beside the repository.
func sharedConformance(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
	cases := filepath.Join(dir, "..", "shared", "conformance")
	if _, err := os.Stat(cases); errors.Is(err, os.ErrNotExist) {
		t.Skip("conformance data is absent; it runs where ../shared/conformance stands beside the repository")
	}
	return cases
}

type conformaCase struct {
	Args []string `json:"args"`
}

type conformaReport struct {
	Exit   int             `json:"exit"`
	Stderr []string        `json:"stderr"`
	Report json.RawMessage `json:"report"`
}

type conformaResults struct {
	Violations []json.RawMessage `json:"violations"`
	Warnings   []json.RawMessage `json:"warnings"`
	Successes  []json.RawMessage `json:"successes"`
}

// differs are the cases where upstream is wrong and we are not; what is
// expected of us instead. The reasons are in the package comment.
var differs = map[string]struct {
	err                             string // part of the error
	violations, warnings, successes []string
}{
	"bad-policy-empty-sources": {err: "it has no sources"},
	"same-code-warn-and-deny":  {violations: []string{"same.a: denied"}, warnings: []string{"same.a: warned"}},
	"nested-package":           {violations: []string{"flat.b: flat", "org.team.checks.a: nested"}},
	"nested-package-alone":     {violations: []string{"org.team.checks.a: nested"}},
	"depends-on-excluded": {
		violations: []string{"dep.one: One failed"},
		successes:  []string{"dep.other: Pass", "dep.two: Pass", "dep.unknown: Pass"},
	},
	"exclude-star-term": {
		violations: []string{`breakfast.bacon: Bacon "vegan" is not allowed`, "breakfast.eggs: Eggs are stale", "dinner.wine: Wine is unlisted", "lunch.bread: Bread is whole", "lunch.soup: Soup is cold"},
		warnings:   []string{"breakfast.toast: Toast is cold"},
	},
	"exclude-package-dot": {
		violations: []string{"dinner.wine: Wine is unlisted", "lunch.bread: Bread is whole", "lunch.soup: Soup is cold"},
	},
	"exclude-term-list-any": {
		violations: []string{`breakfast.bacon: Bacon "raw" is not allowed`, `breakfast.bacon: Bacon "vegan" is not allowed`, "breakfast.eggs: Eggs are stale", "lunch.bread: Bread is whole", "lunch.soup: Soup is cold"},
		warnings:   []string{"breakfast.toast: Toast is cold"},
	},
	"effective-on-before": {
		violations: []string{"eff.old: Old", "eff.recent: Recent"},
		warnings: []string{
			"eff.dateonly: Date only. This will become a failure starting on 2026-06-01",
			"eff.future: Not yet. This will become a failure starting on 2026-06-01T00:00:00Z",
			"eff.offset: Offset. This will become a failure starting on 2026-06-01T00:00:00+02:00",
			"eff.unquoted: Unquoted. This will become a failure starting on 2026-06-01T00:00:00Z",
			"eff.warnfuture: Warned",
		},
	},
	"effective-on-exact": {
		violations: []string{"eff.offset: Offset", "eff.old: Old", "eff.recent: Recent"},
		warnings: []string{
			"eff.dateonly: Date only. This will become a failure starting on 2026-06-01",
			"eff.future: Not yet. This will become a failure starting on 2026-06-01T00:00:00Z",
			"eff.unquoted: Unquoted. This will become a failure starting on 2026-06-01T00:00:00Z",
			"eff.warnfuture: Warned",
		},
	},
	"include-two-collections-exclude-package": {
		violations: []string{`breakfast.bacon: Bacon "raw" is not allowed`, `breakfast.bacon: Bacon "vegan" is not allowed`, "breakfast.eggs: Eggs are stale"},
		warnings:   []string{": Include criterion '@midday' selects nothing: exclude items outweigh it for every rule it matches"},
	},
	"tie-collection-package": {
		violations: []string{"lunch.bread: Bread is whole", "lunch.soup: Soup is cold"},
		warnings:   []string{": Include criterion '@morning' selects nothing: exclude items outweigh it for every rule it matches"},
	},
	"two-sources-one-empty": {
		violations: []string{"builtin.policy.source_evaluated: No rule of source 2 (./rules/two) was evaluated for this image", "one.a: from one"},
		warnings:   []string{": Include criterion 'nothing' doesn't match any policy rule"},
	},
}

// TestConformaInputCases runs Conforma's own cases of filtering, dates and rule
// conventions. They hand any document as input, which Evaluate does not take, so
// this test goes below it.
func TestConformaInputCases(t *testing.T) {
	root := filepath.Join(sharedConformance(t), "conforma", "input-cases")
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Run(e.Name(), func(t *testing.T) { runInputCase(t, filepath.Join(root, e.Name())) })
	}
}

func runInputCase(t *testing.T, dir string) {
	var c conformaCase
	readJSON(t, filepath.Join(dir, "case.json"), &c)
	var want conformaReport
	readJSON(t, filepath.Join(dir, "expected.json"), &want)

	o, err := judgeCase(t, dir, c.Args)
	if other, ok := differs[filepath.Base(dir)]; ok {
		if other.err != "" {
			if err == nil || !strings.Contains(err.Error(), other.err) {
				t.Fatalf("got error %v, want one with %q", err, other.err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range []struct {
			what string
			got  []Result
			want []string
		}{{"violations", o.violations, other.violations}, {"warnings", o.warnings, other.warnings}, {"successes", o.successes, other.successes}} {
			var got []string
			for _, r := range x.got {
				got = append(got, r.Code+": "+r.Msg)
			}
			if d := cmp.Diff(x.want, got); d != "" {
				t.Errorf("%s (-want +got):\n%s", x.what, d)
			}
		}
		return
	}
	if want.Report == nil {
		if err == nil {
			t.Fatalf("no error, want one like %q", want.Stderr)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := min(len(o.violations), 1); got != want.Exit {
		t.Errorf("exit %d, want %d", got, want.Exit)
	}
	var report struct {
		Filepaths []conformaResults `json:"filepaths"`
	}
	if slices.Contains(c.Args, "summary") {
		return // another report of what the other cases compare
	}
	if err := json.Unmarshal(want.Report, &report); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		what string
		got  []Result
		want []json.RawMessage
	}{{"violations", o.violations, report.Filepaths[0].Violations}, {"warnings", o.warnings, report.Filepaths[0].Warnings}, {"successes", o.successes, report.Filepaths[0].Successes}} {
		for i := range x.got {
			x.got[i].Since = "" // ours
		}
		if d := cmp.Diff(generic(t, x.want), generic(t, x.got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", x.what, d)
		}
	}
}

func judgeCase(t *testing.T, dir string, args []string) (*outcome, error) {
	t.Helper()
	ctx := Context{Now: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)}
	var inputs []string
	var policyPath string
	for i := 2; i < len(args); i++ {
		switch a := args[i]; a {
		case "--policy":
			i++
			policyPath = args[i]
		case "--output":
			i++
		case "--effective-time":
			i++
			when, err := time.Parse(time.RFC3339, args[i])
			if err != nil {
				t.Fatal(err)
			}
			ctx.EffectiveTime = when
		case "--allow-past-effective-time":
			ctx.AllowPast = true
		case "--info", "--show-successes":
		default:
			if strings.HasPrefix(a, "-") {
				t.Fatalf("argument %s is unknown to this test", a)
			}
			inputs = append(inputs, a)
		}
	}
	p, err := Load(t.Context(), filepath.Join(dir, policyPath), Options{})
	if err != nil {
		return nil, err
	}
	when, err := ctx.times()
	if err != nil {
		return nil, err
	}
	var docs []*ast.Term
	for _, name := range inputs {
		docs = append(docs, caseDocuments(t, filepath.Join(dir, name))...)
	}
	return p.judge(t.Context(), testSession(p, when), docs, target{when: when})
}

// testSession is an evaluation below Evaluate.
func testSession(p *Policy, when time.Time) *session {
	return p.session(&facts{target: target{when: when}}, topdown.NewCancel())
}

func caseDocuments(t *testing.T, path string) []*ast.Term {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Ext(path) == ".yaml" {
		if raw, err = yaml.YAMLToJSON(raw); err != nil {
			t.Fatal(err)
		}
	}
	list := []json.RawMessage{raw}
	if bytes.HasPrefix(bytes.TrimSpace(raw), []byte("[")) {
		if err := json.Unmarshal(raw, &list); err != nil {
			t.Fatal(err)
		}
	}
	var out []*ast.Term
	for _, doc := range list {
		v, err := ast.ValueFromReader(bytes.NewReader(doc))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, ast.NewTerm(v))
	}
	return out
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// generic turns v into what its JSON says, an empty list for none.
func generic(t *testing.T, v any) []any {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var out []any
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return slices.Clip(append([]any{}, out...))
}
