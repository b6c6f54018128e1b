package policy

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/policy/spec"
)

var update = flag.Bool("update", false, "write golden files")

const explained = `package team.tasks

import data.lib

# METADATA
# title: Tasks are allowed
# description: Every task is one of those that the data lists.
# custom:
#   short_name: allowed
#   solution: Use a task of the list.
#   collections: [base]
#   effective_on: "2026-01-01"
deny contains result if {
	some name in input.snapshot.components
	not lib.listed(name.name)
	result := {"code": "team.tasks.allowed", "msg": sprintf("Task %q is not listed", [name.name]), "term": name.name, "list": data.tasks}
}

# METADATA
# title: Later
# custom:
#   short_name: later
#   effective_on: "2027-01-01"
warn contains {"code": "team.tasks.later", "msg": "later"}

note contains "untracked"
`

func explainable(t *testing.T) *Policy {
	t.Helper()
	return loaded(t, map[string]string{
		"rules/tasks.rego": explained,
		"rules/lib.rego":   "package lib\n\nlisted(name) if name in data.tasks\n",
		"data/tasks.yaml":  "tasks: [build, scan]\n",
		"policy.yaml":      "sources: [{policy: [./rules], data: [./data], config: {include: ['@base', team.tasks.later], exclude: ['team.tasks.allowed:spared']}}]\n",
	})
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s: -want +got:\n%s", name, d)
	}
}

func TestExplain(t *testing.T) {
	p := explainable(t)
	c := Context{Now: noon, Snapshot: &Snapshot{Components: []Component{{Name: "build"}, {Name: "spared"}, {Name: "mine"}}}}
	x, err := p.explain(t.Context(), &fakeEvidence{ref: testImage}, c, "team.tasks.allowed")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "explain.txt", x.String())
	if _, err := p.explain(t.Context(), &fakeEvidence{ref: testImage}, c, "tasks.allowed"); err == nil || !strings.Contains(err.Error(), "there are team.tasks.allowed") {
		t.Errorf("%v", err)
	}
	if _, err := p.Explain(t.Context(), nil, c, "team.tasks.allowed"); err == nil {
		t.Error("without evidence there is an explanation")
	}
	if _, err := new(Policy).explain(t.Context(), &fakeEvidence{ref: testImage}, c, "x"); err == nil {
		t.Error("without a policy there is an explanation")
	}
}

// TestExplainIsBounded: a rule that takes many steps is cut, and says so.
func TestExplainIsBounded(t *testing.T) {
	p := loaded(t, map[string]string{"p.rego": "package p\n\n# METADATA\n# title: T\n# custom:\n#   short_name: r\ndeny contains {\"code\": \"p.r\", \"msg\": \"m\"} if {\n\tsome i in numbers.range(1, 5000)\n\ti == 5000\n\tinput.image\n}\n"})
	x, err := p.explain(t.Context(), &fakeEvidence{ref: testImage}, Context{Now: noon}, "p.r")
	if err != nil {
		t.Fatal(err)
	}
	if !x.Truncated || len(x.Trace) > maxSteps || len(x.Results) != 1 {
		t.Errorf("%t, %d steps, %v", x.Truncated, len(x.Trace), x.Results)
	}
}

func TestRules(t *testing.T) {
	rules := explainable(t).Rules(noon)
	want := []RuleInfo{
		{Kind: "note", Source: 1, Package: "team.tasks", Rule: "note", File: "rules/tasks.rego", Line: 26, InForce: true},
		{
			Code: "team.tasks.allowed", Title: "Tasks are allowed", Description: "Every task is one of those that the data lists.", Solution: "Use a task of the list.",
			Collections: []string{"base"}, Kind: "deny", Source: 1, Package: "team.tasks", Rule: "deny", File: "rules/tasks.rego", Line: 13,
			EffectiveOn: "2026-01-01", InForce: true, Included: true, By: []string{"@base"},
		},
		{
			Code: "team.tasks.later", Title: "Later", Kind: "warn", Source: 1, Package: "team.tasks", Rule: "warn", File: "rules/tasks.rego", Line: 24,
			EffectiveOn: "2027-01-01", Included: true, By: []string{"team.tasks.later"},
		},
	}
	if d := cmp.Diff(want, rules); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	for _, r := range explainable(t).Rules(noon.AddDate(1, 0, 0)) {
		if !r.InForce {
			t.Errorf("%s is not in force a year later", r.Code)
		}
	}
}

// TestWaiver: what a report offers works, until the day it names.
func TestWaiver(t *testing.T) {
	files := map[string]string{
		"rules/p.rego": "package p\ndeny contains {\"code\": \"p.a\", \"msg\": \"m\", \"term\": \"x\", \"digests\": [\"d\"]}\nwarn contains {\"code\": \"p.w\", \"msg\": \"w\"}\n",
		"policy.yaml":  "sources:\n- policy: [./rules]\n",
	}
	v, err := judge(t, files, Options{}, Context{})
	if err != nil {
		t.Fatal(err)
	}
	r := v.Violations[0]
	if d := cmp.Diff([]Fact{{"term", "x"}, {"digests", `["d"]`}}, r.Facts()); d != "" {
		t.Errorf("facts: -want +got:\n%s", d)
	}
	waiver := r.WaiverYAML(v.Image, noon.Add(time.Hour))
	want := "volatileConfig:\n  exclude:\n  - effectiveUntil: \"2026-11-23T13:00:00Z\"\n    imageDigest: sha256:" + strings.Repeat("1", 64) + "\n    value: p.a:x\n"
	if d := cmp.Diff(want, waiver); d != "" {
		t.Fatalf("-want +got:\n%s", d)
	}
	files["policy.yaml"] += "  " + strings.ReplaceAll(strings.TrimSpace(waiver), "\n", "\n  ") + "\n"
	for after, want := range map[time.Duration]Outcome{0: Pass, time.Hour: Pass, time.Hour + time.Second: Fail} {
		v, err := judge(t, files, Options{}, Context{Now: noon.Add(after)})
		if err != nil || v.Result != want {
			t.Errorf("after %s: %v, %v; want %s", after, v, err, want)
		}
	}
	if (Result{Msg: "m"}).WaiverYAML(v.Image, noon) != "" || (Result{}).Waiver("", noon) != nil {
		t.Error("what has no code can be waived")
	}
	if d := cmp.Diff([]spec.VolatileItem{{Value: "p.b", EffectiveUntil: "2026-11-23T12:00:00Z"}}, Result{Code: "p.b"}.Waiver("", noon)); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}
