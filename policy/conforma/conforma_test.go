// What an evaluation comes to is tested against Conforma's own results, in
// internal/ec. Here are the parts for themselves, and what those cases do not
// reach.
package conforma

import (
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
	"pgregory.net/rapid"

	"assay.dev/assay/policy/builtin"
)

func TestScore(t *testing.T) {
	for item, want := range map[string]int{
		"@c": 10, "*": 1, "pkg": 10, "pkg.*": 10, "pkg.": 10, "pkg.rule": 110, "pkg:t": 110, "pkg.rule:t": 210,
		"a.pkg.rule": 120, "a.b.pkg.*": 30, "*:t": 101, "*.rule": 101, "pkg.*:t": 110,
	} {
		if got := score(item); got != want {
			t.Errorf("%s: %d, want %d", item, got, want)
		}
	}
}

// TestMatchersScore: every matcher of a result is an item that counts.
func TestMatchersScore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[a-z]{1,5}`)
		code := word.Draw(t, "package") + "." + word.Draw(t, "rule")
		ms := matchers(code, rapid.SliceOfN(word, 0, 3).Draw(t, "terms"), rapid.SliceOfN(word, 0, 3).Draw(t, "collections"))
		for _, m := range ms {
			missing := map[string]bool{m: true}
			if sum([]string{m}, ms, missing) < 1 || missing[m] {
				t.Fatalf("%q does not match %q", m, code)
			}
		}
	})
}

func TestVolatile(t *testing.T) {
	at := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	for name, tt := range map[string]struct {
		item VolatileItem
		want bool
	}{
		"without bounds":  {VolatileItem{}, true},
		"since this very": {VolatileItem{EffectiveOn: "2026-06-01T12:00:00Z"}, true},
		"until this very": {VolatileItem{EffectiveUntil: "2026-06-01T12:00:00Z"}, true},
		"until a date":    {VolatileItem{EffectiveUntil: "2026-06-01"}, false},
		"since tomorrow":  {VolatileItem{EffectiveOn: "2026-06-02"}, false},
		"unreadable":      {VolatileItem{EffectiveUntil: "next week"}, false},
	} {
		if got := active(&tt.item, at); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
	digest := "sha256:" + strings.Repeat("a", 64)
	c := &criteria{}
	c.addVolatile([]VolatileItem{
		{Value: "all"}, {Value: "digest", ImageDigest: digest}, {Value: "url", ImageURL: "quay.io/a/b"}, {Value: "name", ComponentNames: []string{"comp"}},
	}, at)
	for _, tt := range []struct {
		image, component string
		want             []string
	}{
		{"quay.io/a/b@" + digest, "comp", []string{"url", "digest", "name", "all"}},
		{"quay.io/a/c@" + digest, "comp-" + digest + "-arm64", []string{"digest", "name", "all"}},
		{"quay.io/a/c:tag", "other", []string{"all"}},
		{"", "comp", []string{"all"}},
	} {
		if diff := cmp.Diff(tt.want, c.items(tt.image, tt.component)); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", tt.image, tt.component, diff)
		}
	}
}

func TestParseSpec(t *testing.T) {
	for name, tt := range map[string]struct{ raw, want string }{
		"bare":             {`sources: [{policy: [a]}]`, ""},
		"resource":         {"apiVersion: appstudio.redhat.com/v1alpha1\nspec: {publicKey: k}", ""},
		"unknown member":   {`{"source": []}`, "unknown field"},
		"unknown below":    {`{"sources": [{"config": {"inclde": []}}]}`, "unknown field"},
		"wrong type":       {`{"sources": "x"}`, "cannot unmarshal"},
		"rule data":        {`{"sources": [{"ruleData": [1]}]}`, "not an object"},
		"item of no value": {`{"sources": [{"volatileConfig": {"exclude": [{}]}}]}`, "without a value"},
		"no spec":          {"apiVersion: v1\nkind: x", "no spec"},
		"given twice":      {"name: a\nname: b", "already set"},
		"no YAML":          {"{", "unable to parse"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseSpec([]byte(tt.raw))
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(`{"sources":[{"policy":["a"],"ruleData":{"k":[1]},"config":{"include":["*"]}}]}`))
	f.Add([]byte("apiVersion: a\nspec:\n  publicKey: k\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 64<<10 {
			return
		}
		s, err := ParseSpec(raw)
		if err != nil {
			return
		}
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if _, err := ParseSpec(out); err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, out)
		}
	})
}

// load writes rules and data and loads them.
func load(t testing.TB, rules string, data map[string]string, o Options) (*Policy, error) {
	t.Helper()
	dir := t.TempDir()
	spec := &Spec{Sources: []Source{{Policy: []string{filepath.Join(dir, "rules")}}}}
	write := func(name, content string) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("rules/p.rego", rules)
	for name, content := range data {
		write("data/"+name, content)
		spec.Sources[0].Data = []string{filepath.Join(dir, "data")}
	}
	set, err := builtin.New(builtin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o.Builtins = set
	if o.When.IsZero() {
		o.When = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return Load(t.Context(), spec, o)
}

func input(t testing.TB, s string) []Document {
	t.Helper()
	v, err := ast.ValueFromReader(strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	return []Document{{Name: "in", Values: []ast.Value{v}}}
}

func TestLoadRefuses(t *testing.T) {
	const fine = "package p\ndeny contains \"x\" if input.x\n"
	for name, tt := range map[string]struct {
		rules string
		data  map[string]string
		want  string
	}{
		"syntax":            {"package p\ndeny {", nil, "rego_parse_error"},
		"recursion":         {"package p\ndeny contains x if { x := deny }\n", nil, "recursive"},
		"network":           {"package p\ndeny contains x if { x := http.send({}) }\n", nil, "http.send"},
		"result of a type":  {"package p\ndeny contains 3 if true\n", nil, "unsupported value"},
		"data given twice":  {fine, map[string]string{"a.yaml": "k: 1", "b/c.json": `{"k": 2}`}, "merge error"},
		"data over ours":    {fine, map[string]string{"a.yaml": "config: {policy: {when_ns: 1}}"}, "merge error"},
		"data of a list":    {fine, map[string]string{"a.yaml": "[1]"}, "not an object"},
		"data of no syntax": {fine, map[string]string{"a.json": "{"}, "parsing data file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, tt.rules, tt.data, Options{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Load(t.Context(), &Spec{}, Options{}); !errors.Is(err, ErrNoSources) {
		t.Errorf("no sources: %v", err)
	}
	if _, err := (&Policy{}).Evaluate(t.Context(), input(t, "{}"), Target{}); err == nil {
		t.Error("the zero policy evaluates")
	}
}

func TestEvaluateRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ rules, want string }{
		"conflict":        {"package p\ndeny contains x if { x := f(1) }\nf(a) := 1 if a\nf(a) := 2 if a\n", "conflict"},
		"no msg":          {"package p\ndeny contains x if { x := {\"code\": \"p.a\"} }\n", "msg"},
		"msg of a type":   {"package p\ndeny contains x if { x := {\"msg\": 3} }\n", "msg"},
		"neither of both": {"package p\ndeny contains x if { x := input.n }\n", "neither"},
		"nothing to say":  {"package p\ndeny contains \"x\" if input.x\n", "no successes"},
		"loop":            {"package p\ndeny contains \"x\" if { some a in numbers.range(1, 9999); some b in numbers.range(1, 9999); a * b == -1 }\n", "did not end within"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := load(t, tt.rules, nil, Options{MaxTime: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Evaluate(t.Context(), input(t, `{"n": 3}`), Target{})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// TestKinds: a result keeps the kind of its rule, whatever another rule with its
// code is.
func TestKinds(t *testing.T) {
	p, err := load(t, `package p
deny contains {"code": "p.a", "msg": "denied"} if true
warn contains {"code": "p.a", "msg": "warned"} if true
deny contains "same text" if true
warn contains "same text" if true
`, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := p.Evaluate(t.Context(), input(t, "{}"), Target{})
	if err != nil {
		t.Fatal(err)
	}
	if got := said(e, func(o Outcome) []Result { return o.Failures }); !slices.Equal(got, []string{"denied", "same text"}) {
		t.Errorf("failures: %q", got)
	}
}

func said(e *Evaluation, of func(Outcome) []Result) []string {
	var out []string
	for _, o := range e.Outcomes {
		for _, r := range of(o) {
			out = append(out, r.Message)
		}
	}
	slices.Sort(out)
	return out
}

// TestConcurrent: one policy judges many at a time, and each for itself.
func TestConcurrent(t *testing.T) {
	p, err := load(t, `package p
# METADATA
# custom:
#   short_name: a
deny contains {"code": "p.a", "msg": sprintf("%d", [input.n])} if input.n > 0
`, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 32 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			in, _ := json.Marshal(map[string]int{"n": i})
			e, err := p.Evaluate(t.Context(), input(t, string(in)), Target{})
			if err != nil {
				t.Fatal(err)
			}
			if got := said(e, func(o Outcome) []Result { return o.Failures }); (i == 0) != (len(got) == 0) || i > 0 && got[0] != string(mustJSON(i)) {
				t.Errorf("%d: %q", i, got)
			}
		})
	}
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
