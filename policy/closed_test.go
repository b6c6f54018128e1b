package policy

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/registry"

	"assay.dev/assay/policy/builtin"
)

// TestClosed goes through the points at which Conforma lets something pass that
// nobody checked, or says less than it knows. All of them run in the native mode,
// the one of `assay gate` and `assay release`. The registry of these tests is
// go-containerregistry's, in this process, with faults put before it.
func TestClosed(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		"a warning with a violation's code does not soften it":      testSameCode,
		"packages of several segments run":                          testNestedPackages,
		"no sources, no rules, nothing included, nothing evaluated": testNothing,
		"a registry that does not answer is not an answer":          testRegistryFails,
		"what is not there is an answer":                            testNotFound,
		"rules ask the registries that are listed, and no others":   testRegistries,
		"an unchecked component leaves the others their results":    testOneUnchecked,
		"skipped rules are in the verdict":                          testSkipped,
		"bad dates are errors":                                      testBadDates,
		"two components with one image keep names and exceptions":   testTwoComponents,
		"back-dating needs to be allowed, and shows":                testBackDating,
		"a policy that loops is stopped and named":                  testLoops,
		"a policy that allocates is stopped and named":              testAllocations,
		"and its neighbours are not":                                testCrowd,
	} {
		t.Run(name, test)
	}
}

// judge loads files and judges an image that has no evidence but its name.
func judge(t *testing.T, files map[string]string, o Options, c Context) (*Verdict, error) {
	t.Helper()
	p, err := Load(t.Context(), folder(t, files), o)
	if err != nil {
		return nil, err
	}
	if c.Now.IsZero() {
		c.Now = noon
	}
	return p.evaluate(t.Context(), &fakeEvidence{ref: testImage}, c)
}

func messages(rs []Result) []string {
	var out []string
	for _, r := range rs {
		out = append(out, r.Code+": "+r.Msg)
	}
	return out
}

func testSameCode(t *testing.T) {
	v, err := judge(t, map[string]string{"p.rego": `package p
deny contains {"code": "p.a", "msg": "denied"}
warn contains {"code": "p.a", "msg": "warned"}
`}, Options{}, Context{})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"p.a: denied"}, messages(v.Violations)); d != "" || v.Result != Fail {
		t.Errorf("%s: -want +got:\n%s", v.Result, d)
	}
}

func testNestedPackages(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"beside another": {"p.rego": passes, "n.rego": "package org.team.checks\ndeny contains {\"code\": \"org.team.checks.a\", \"msg\": \"nested\"}\n"},
		"alone":          {"n.rego": "package org.team.checks\ndeny contains {\"code\": \"org.team.checks.a\", \"msg\": \"nested\"}\n"},
	} {
		v, err := judge(t, files, Options{}, Context{})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{"org.team.checks.a: nested"}, messages(v.Violations)); d != "" {
			t.Errorf("%s: -want +got:\n%s", name, d)
		}
	}
}

func testNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"no sources":          {map[string]string{"p.rego": passes, "policy.yaml": "name: x\n"}, "has no sources"},
		"empty sources":       {map[string]string{"p.rego": passes, "policy.yaml": "sources: []\n"}, "has no sources"},
		"no files":            {map[string]string{"policy.yaml": "sources: [{policy: [.]}]\n"}, "no .rego files"},
		"no rules":            {map[string]string{"p.rego": "package p\nx := 1\n"}, "no deny, violation or warn rule"},
		"only tests":          {map[string]string{"p_test.rego": "package p\ntest_x if true\n"}, "no .rego files"},
		"nothing included":    {map[string]string{"p.rego": passes, "policy.yaml": "sources: [{policy: [.], config: {include: ['@none']}}]"}, "no rule was evaluated"},
		"everything excluded": {map[string]string{"p.rego": passes, "policy.yaml": "sources: [{policy: [.], config: {exclude: [p]}}]"}, "no rule was evaluated"},
		"included elsewhere":  {map[string]string{"p.rego": passes, "policy.yaml": "sources: [{policy: [.], volatileConfig: {include: [{value: p, componentNames: [other]}]}}]"}, "no rule was evaluated"},
	} {
		v, err := judge(t, tc.files, Options{}, Context{})
		if v != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: verdict %v, error %v; want one with %q", name, v, err, tc.want)
		}
	}
	// One source of two is empty: that is a violation, and the other is judged.
	v, err := judge(t, map[string]string{
		"a/p.rego": passes, "b/q.rego": strings.Replace(passes, "package p", "package q", 1),
		"policy.yaml": "sources: [{policy: [./a]}, {policy: [./b], config: {include: [none]}}]",
	}, Options{}, Context{})
	if err != nil {
		t.Fatal(err)
	}
	if v.Result != Fail || v.Violations[0].Code != "builtin.policy.source_evaluated" || len(v.Successes) != 1 {
		t.Errorf("%s: %v, %v", v.Result, v.Violations, v.Successes)
	}
}

// asks is a policy that looks at a manifest, and one rule that needs none.
const asks = `package q

# METADATA
# title: Manifest
# custom:
#   short_name: manifest
deny contains {"code": "q.manifest", "msg": "it has layers"} if count(ec.oci.image_manifest(data.ref).layers) > 0

# METADATA
# title: Name
# custom:
#   short_name: name
deny contains {"code": "q.name", "msg": "it is called greedy"} if input.component_name == "greedy"
`

// testSet are functions that reach a registry, which fails as fault says.
func testSet(t *testing.T, fault func(w http.ResponseWriter, r *http.Request) bool) (*builtin.Set, string) {
	t.Helper()
	real := registry.New()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault == nil || !fault(w, r) {
			real.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	set, err := builtin.New(builtin.Options{Transport: http.DefaultTransport})
	if err != nil {
		t.Fatal(err)
	}
	return set, strings.TrimPrefix(s.URL, "http://")
}

func refused(w http.ResponseWriter, r *http.Request) bool {
	if strings.Contains(r.URL.Path, "/manifests/") {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	return false
}

func withRegistry(host string) string {
	return "sources: [{policy: [.], ruleData: {}, data: [./data]}]\nassay: {registries: ['" + host + "']}\n"
}

func testRegistryFails(t *testing.T) {
	for name, component := range map[string]string{"nothing else": "other", "a violation beside it": "greedy"} {
		set, host := testSet(t, refused)
		v, err := judge(t, map[string]string{"q.rego": asks, "data/d.yaml": "ref: " + host + "/a/b:c\n", "policy.yaml": withRegistry(host)}, Options{Builtins: set}, Context{Component: component})
		if err != nil {
			t.Fatal(err)
		}
		if v.Result != Unchecked || len(v.Failures) != 1 || len(v.NotFound) != 0 {
			t.Fatalf("%s: %s, %v, %v", name, v.Result, v.Failures, v.NotFound)
		}
		f := v.Failures[0]
		if f.Function != "ec.oci.image_manifest" || f.Ref != host+"/a/b:c" || !strings.Contains(f.Cause, "503") {
			t.Errorf("%s: %+v", name, f)
		}
		if (component == "greedy") != (len(v.Violations) == 1) {
			t.Errorf("%s: what the rules said is lost: %v", name, v.Violations)
		}
	}
	// Nor is it where nothing is reached at all.
	v, err := judge(t, map[string]string{"q.rego": asks, "data/d.yaml": "ref: localhost:5055/a/b:c\n", "policy.yaml": "sources: [{policy: [.], data: [./data]}]"}, Options{}, Context{})
	if err != nil || v.Result != Unchecked || !strings.Contains(v.Failures[0].Cause, "no registry is reached") {
		t.Errorf("%v, %v", v, err)
	}
}

func testNotFound(t *testing.T) {
	set, host := testSet(t, nil)
	v, err := judge(t, map[string]string{"q.rego": asks, "data/d.yaml": "ref: " + host + "/a/b:c\n", "policy.yaml": withRegistry(host)}, Options{Builtins: set}, Context{})
	if err != nil {
		t.Fatal(err)
	}
	if v.Result != Pass || len(v.Failures) != 0 || len(v.NotFound) != 1 || v.NotFound[0].Ref != host+"/a/b:c" {
		t.Errorf("%s, %v, %v", v.Result, v.Failures, v.NotFound)
	}
	if d := cmp.Diff([]string{host}, v.Hosts); d != "" {
		t.Errorf("hosts: -want +got:\n%s", d)
	}
}

func testRegistries(t *testing.T) {
	asked := 0
	set, host := testSet(t, func(http.ResponseWriter, *http.Request) bool { asked++; return false })
	files := map[string]string{"q.rego": asks, "data/d.yaml": "ref: " + host + "/a/b:c\n", "policy.yaml": "sources: [{policy: [.], data: [./data]}]"}
	v, err := judge(t, files, Options{Builtins: set}, Context{})
	if err != nil {
		t.Fatal(err)
	}
	if v.Result != Unchecked || asked != 0 || !strings.Contains(v.Failures[0].Cause, "registry "+host+": "+builtin.ErrNotAllowed.Error()) {
		t.Errorf("%s, %v, asked %d times", v.Result, v.Failures, asked)
	}
	if d := cmp.Diff([]string{host}, v.Hosts); d != "" {
		t.Errorf("hosts: -want +got:\n%s", d)
	}
	// An image at hand opens its registry, to this evaluation alone.
	snapshot := &Snapshot{Components: []Component{{Name: "a", ContainerImage: host + "/a/b@" + testImage[strings.Index(testImage, "sha256:"):]}}}
	if v, err = judge(t, files, Options{Builtins: set}, Context{Snapshot: snapshot}); err != nil || v.Result != Pass || asked == 0 {
		t.Errorf("%v, %v, asked %d times", v, err, asked)
	}
	if v, err = judge(t, files, Options{Builtins: set}, Context{}); err != nil || v.Result != Unchecked {
		t.Errorf("what another evaluation was allowed is allowed: %v, %v", v, err)
	}
}

func testOneUnchecked(t *testing.T) {
	set, host := testSet(t, refused)
	rule := strings.Replace(asks, `if count(`, "if {\n\tinput.component_name == \"far\"\n\tcount(", 1)
	rule = strings.Replace(rule, "> 0\n", "> 0\n}\n", 1)
	p, err := Load(t.Context(), folder(t, map[string]string{"q.rego": rule, "data/d.yaml": "ref: " + host + "/a/b:c\n", "policy.yaml": withRegistry(host)}), Options{Builtins: set})
	if err != nil {
		t.Fatal(err)
	}
	for component, want := range map[string]Outcome{"far": Unchecked, "near": Pass, "greedy": Fail} {
		v, err := p.evaluate(t.Context(), &fakeEvidence{ref: testImage}, Context{Now: noon, Component: component})
		if err != nil || v.Result != want {
			t.Errorf("%s: %v, %v; want %s", component, v, err, want)
		}
	}
}

func testSkipped(t *testing.T) {
	v, err := judge(t, map[string]string{"p.rego": "package p\ndeny_x contains \"x\"\nwarn contains \"y\" if input.nope\nexception contains [\"x\"]\n", "q.rego": strings.Replace(passes, "package p", "package q", 1)}, Options{}, Context{})
	if err != nil {
		t.Fatal(err)
	}
	if v.Result != Pass || len(v.Notes) != 1 || !strings.Contains(v.Notes[0].Msg, "Rule deny_x of package p was skipped") {
		t.Errorf("%s: %v", v.Result, v.Notes)
	}
}

func testBadDates(t *testing.T) {
	source := func(extra string) string { return "sources:\n- policy: [.]\n  data: [./data]\n" + extra }
	for name, tc := range map[string]struct {
		files map[string]string
		want  string
	}{
		"of a rule": {map[string]string{"p.rego": annotatedWith("effective_on: next week")}, "effective_on"},
		"of a result": {map[string]string{"p.rego": `package p
deny contains {"code": "p.x", "msg": "m", "effective_on": "later"}
`}, "effective_on"},
		"begin of an exception":  {map[string]string{"p.rego": passes, "policy.yaml": source("  volatileConfig: {exclude: [{value: p, effectiveOn: soon}]}\n")}, "volatileConfig.exclude[0]: effectiveOn"},
		"end of an exception":    {map[string]string{"p.rego": passes, "policy.yaml": source("  volatileConfig: {include: [{value: p, effectiveUntil: 2026-13-01}]}\n")}, "volatileConfig.include[0]: effectiveUntil"},
		"since when a task":      {map[string]string{"p.rego": passes, "data/d.yaml": "trusted_tasks: {'oci://a/b:1': [{ref: x, effective_on: 2026-01-01}]}"}, `data.trusted_tasks["oci://a/b:1"][0].effective_on`},
		"until when a task":      {map[string]string{"p.rego": passes, "data/d.yaml": "trusted_tasks: {'oci://a/b:1': [{ref: x}, {ref: y, expires_on: tomorrow}]}"}, `data.trusted_tasks["oci://a/b:1"][1].expires_on`},
		"of a rule about tasks":  {map[string]string{"p.rego": passes, "data/d.yaml": "trusted_task_rules: {deny: {old: [{pattern: 'oci://a/*', effective_on: 3}]}}"}, `data.trusted_task_rules["deny"]["old"][0].effective_on`},
		"of required tasks":      {map[string]string{"p.rego": passes, "data/d.yaml": "required-tasks: [{effective_on: 'x', tasks: [a]}]"}, "data.required-tasks[0].effective_on"},
		"of a pipeline's tasks":  {map[string]string{"p.rego": passes, "data/d.yaml": "pipeline-required-tasks: {fbc: [{effective_on: '2026', tasks: [a]}]}"}, `data.pipeline-required-tasks["fbc"][0].effective_on`},
		"of one required task":   {map[string]string{"p.rego": passes, "data/d.yaml": "required-tasks: [{tasks: [a], effective_on_by_task: {a: when}}]"}, "effective_on_by_task"},
		"in ruleData":            {map[string]string{"p.rego": passes, "policy.yaml": source("  ruleData: {trusted_tasks: {x: [{ref: y, expires_on: never}]}}\n")}, "data.rule_data__configuration__.trusted_tasks"},
		"beside what is granted": {map[string]string{"p.rego": passes, "data/d.yaml": "rule_data_custom: {trusted_tasks: {x: [{ref: y, expires_on: [1]}]}}"}, "data.rule_data_custom.trusted_tasks"},
	} {
		if _, ok := tc.files["policy.yaml"]; !ok {
			tc.files["policy.yaml"] = source("")
		}
		if _, ok := tc.files["data/d.yaml"]; !ok {
			tc.files["data/d.yaml"] = "a: 1"
		}
		v, err := judge(t, tc.files, Options{}, Context{})
		if v != nil || err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: verdict %v, error %v; want one with %q", name, v, err, tc.want)
		}
	}
}

func testTwoComponents(t *testing.T) {
	p, err := Load(t.Context(), folder(t, map[string]string{
		"p.rego":      "package p\ndeny contains {\"code\": \"p.a\", \"msg\": input.component_name}\nwarn contains {\"code\": \"p.w\", \"msg\": \"w\"}\n",
		"policy.yaml": "sources: [{policy: [.], volatileConfig: {exclude: [{value: p.a, componentNames: [spared]}]}}]",
	}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for component, want := range map[string][]string{"spared": nil, "judged": {"p.a: judged"}} {
		v, err := p.evaluate(t.Context(), &fakeEvidence{ref: testImage}, Context{Now: noon, Component: component})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, messages(v.Violations)); d != "" || v.Component != component {
			t.Errorf("%s: -want +got:\n%s", v.Component, d)
		}
	}
}

func testBackDating(t *testing.T) {
	files := map[string]string{"p.rego": annotatedWith(`effective_on: "2026-11-20T00:00:00Z"`)}
	past := noon.Add(-30 * 24 * time.Hour)
	if v, err := judge(t, files, Options{}, Context{EffectiveTime: past}); v != nil || err == nil || !strings.Contains(err.Error(), "in the past") {
		t.Errorf("verdict %v, error %v", v, err)
	}
	v, err := judge(t, files, Options{}, Context{EffectiveTime: past, AllowPast: true})
	if err != nil || !v.BackDated || !v.EffectiveTime.Equal(past) {
		t.Errorf("%v, %v", v, err)
	}
	if v, err = judge(t, files, Options{}, Context{EffectiveTime: noon.Add(time.Hour)}); err != nil || v.BackDated {
		t.Errorf("%v, %v", v, err)
	}
}

// testLoops: every one of these would go on for ever.
func testLoops(t *testing.T) {
	for name, tc := range map[string]struct{ rego, want string }{
		"in a rule":     {`deny contains "x" if { some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i * j == -1 }`, "at the rule q.deny"},
		"in a function": {"forever(n) := count([1 | some i in numbers.range(1, 100000); some j in numbers.range(1, 100000); i + j == n])\ndeny contains \"x\" if forever(-1) > 0", "at the rule q.deny, in q.forever"},
		"in one call":   {`deny contains "x" if count(numbers.range(1, 100000000000)) == 0`, "at the rule q.deny"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t, map[string]string{"p.rego": passes, "q.rego": "package q\n\n" + tc.rego + "\n"})
			p, err := Load(t.Context(), dir, Options{Limits: Limits{Time: 300 * time.Millisecond}})
			if err != nil {
				t.Fatal(err)
			}
			v, err := p.evaluate(t.Context(), &fakeEvidence{ref: testImage}, Context{Now: noon})
			if v != nil || !errors.Is(err, errTime) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("verdict %v, error %v; want one with %q", v, err, tc.want)
			}
		})
	}
}

// testAllocations: it would take all memory that there is.
func testAllocations(t *testing.T) {
	dir := folder(t, map[string]string{"p.rego": passes, "q.rego": `package q

deny contains "x" if {
	everything := [[i, j, k] | some i in numbers.range(1, 1000); some j in numbers.range(1, 1000); some k in numbers.range(1, 1000)]
	count(everything) == 0
}
`})
	p, err := Load(t.Context(), dir, Options{Limits: Limits{Memory: 64 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	v, err := p.evaluate(t.Context(), &fakeEvidence{ref: testImage}, Context{Now: noon})
	if v != nil || !errors.Is(err, errMemory) || !strings.Contains(err.Error(), "at the rule q.deny") {
		t.Errorf("verdict %v, error %v", v, err)
	}
}

// testCrowd: of several evaluations at once, the one that allocates is at fault.
func testCrowd(t *testing.T) {
	dir := folder(t, map[string]string{"p.rego": passes, "q.rego": `package q

deny contains "x" if {
	input.component_name == "greedy"
	everything := [[i, j, k] | some i in numbers.range(1, 1000); some j in numbers.range(1, 1000); some k in numbers.range(1, 1000)]
	count(everything) == 0
}

deny contains "y" if {
	input.component_name == "slow"
	count([1 | some i in numbers.range(1, 700); some j in numbers.range(1, 1000); i + j == -1]) == 1
}
`})
	p, err := Load(t.Context(), dir, Options{Limits: Limits{Memory: 64 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var wg sync.WaitGroup
	for _, name := range []string{"greedy", "slow", "other"} {
		wg.Go(func() {
			v, err := p.evaluate(t.Context(), &fakeEvidence{ref: testImage}, Context{Now: noon, Component: name})
			switch {
			case name == "greedy" && !errors.Is(err, errMemory):
				t.Errorf("%s: %v, %v", name, v, err)
			case name != "greedy" && (err != nil || v.Result != Pass):
				t.Errorf("%s: %v, %v", name, v, err)
			}
		})
	}
	wg.Wait()
}

// TestUnverifiedIsKnown: that a signature does not verify is an answer, which the
// rule judges.
func TestUnverifiedIsKnown(t *testing.T) {
	set, _ := testSet(t, nil)
	v, err := judge(t, map[string]string{"q.rego": `package q
deny contains "unsigned" if not ec.sigstore.verify_image(input.image.ref, {"ignore_rekor": true, "public_key": "k", "rekor_url": "", "certificate_identity": "", "certificate_identity_regexp": "", "certificate_oidc_issuer": "", "certificate_oidc_issuer_regexp": ""}).success
`}, Options{Builtins: set}, Context{})
	if err != nil {
		t.Fatal(err)
	}
	// Nothing here verifies at all, and that is no answer.
	if v.Result != Unchecked || len(v.Violations) != 1 || !slices.ContainsFunc(v.Failures, func(f builtin.Failure) bool { return f.Function == builtin.VerifyImage }) {
		t.Errorf("%s: %v, %v", v.Result, v.Violations, v.Failures)
	}
}
