package policy

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/verify"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const testImage = "localhost:5055/staging/run-1@sha256:1111111111111111111111111111111111111111111111111111111111111111"

func loaded(t *testing.T, files map[string]string) *Policy {
	t.Helper()
	p, err := Load(t.Context(), folder(t, files), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRuleErrorsAreNoVerdict: each of these reads as a pass, or as nothing, in
// an evaluation that is not strict.
func TestRuleErrorsAreNoVerdict(t *testing.T) {
	for name, rule := range map[string]struct{ rego, want string }{
		"builtin":         {`deny contains "x" if time.parse_rfc3339_ns("yesterday") > 0`, "time.parse_rfc3339_ns"},
		"builtin type":    {`deny contains "x" if sum(input.assay.runs) > object.get(input.assay.run, "x", 1)`, "object.get"},
		"division":        {`deny contains "x" if 1 / count(input.assay.runs) > 0`, "divide by zero"},
		"conflict":        {"v := 1 if input.image\nv := 2 if input.assay\ndeny contains \"x\" if v == 3", "conflicting values"},
		"true":            {`deny if input.image`, "not a set"},
		"object":          {`deny[k] := v if some k, v in {"a": 1}`, "not a set"},
		"number":          {`deny contains 1`, "neither a string nor an object"},
		"no msg":          {`deny contains {"code": "p.x"}`, "without a string msg"},
		"msg not string":  {`deny contains {"code": "p.x", "msg": 1}`, "without a string msg"},
		"code not string": {`deny contains {"code": 1, "msg": "m"}`, "code is not a string"},
		"bad term":        {`deny contains {"code": "p.x", "msg": "m", "term": {"a": 1}}`, "term is neither"},
		"bad day":         {`deny contains {"code": "p.x", "msg": "m", "effective_on": "later"}`, "effective_on"},
		"warn breaks too": {`warn contains "x" if to_number("x") > 0`, "to_number"},
	} {
		t.Run(name, func(t *testing.T) {
			p := loaded(t, map[string]string{"p.rego": passes, "q.rego": "package q\n" + rule.rego + "\n"})
			v, err := p.evaluate(t.Context(), &fakeEvidence{ref: testImage}, Context{Now: noon})
			if err == nil || v != nil {
				t.Fatalf("verdict %v, error %v", v, err)
			}
			if !strings.Contains(err.Error(), rule.want) {
				t.Errorf("error %v does not say %q", err, rule.want)
			}
		})
	}
}

// TestBuiltinErrors: what a policy lists is undefined when it fails, and told.
func TestBuiltinErrors(t *testing.T) {
	files := map[string]string{
		"p.rego":      passes + "\ndeny contains \"x\" if json.unmarshal(input.image.ref)\nwarn contains \"y\" if to_number(input.image.ref) > 1\n",
		"policy.yaml": "sources: [{policy: [.]}]\nassay: {builtinErrors: [json.unmarshal, to_number]}",
	}
	v, err := judge(t, files, Options{}, Context{})
	if err != nil {
		t.Fatal(err)
	}
	if v.Result != Pass || len(v.Notes) != 2 || !strings.Contains(v.Notes[0].Msg, "json.unmarshal: invalid character") {
		t.Errorf("%s: %v", v.Result, v.Notes)
	}
	files["policy.yaml"] = "sources: [{policy: [.]}]\nassay: {builtinErrors: [json.unmarshal]}"
	if v, err := judge(t, files, Options{}, Context{}); v != nil || err == nil || !strings.Contains(err.Error(), "to_number") || !strings.Contains(err.Error(), "assay.builtinErrors") {
		t.Errorf("verdict %v, error %v", v, err)
	}
}

func TestEvaluateRefuses(t *testing.T) {
	p := loaded(t, map[string]string{"p.rego": passes})
	good := &fakeEvidence{ref: testImage}
	for name, tc := range map[string]struct {
		p    *Policy
		e    evidence
		c    Context
		want string
	}{
		"zero policy":        {new(Policy), good, Context{Now: noon}, "not loaded"},
		"zero evidence":      {p, new(verify.Evidence), Context{Now: noon}, "names no image by digest"},
		"tag only":           {p, &fakeEvidence{ref: "a/b:latest"}, Context{Now: noon}, "names no image by digest"},
		"past time":          {p, good, Context{Now: noon, EffectiveTime: noon.Add(-time.Hour)}, "in the past"},
		"closure without it": {p, good, Context{Now: noon, Digests: []string{"sha256:2"}}, "does not contain it"},
		"bad image config":   {p, good, Context{Now: noon, ImageConfig: json.RawMessage("{")}, "encoding input"},
		"nothing included": {
			loaded(t, map[string]string{"p.rego": passes, "policy.yaml": "sources: [{policy: [.], config: {include: ['@none']}}]"}),
			good, Context{Now: noon}, "no rule was evaluated",
		},
	} {
		t.Run(name, func(t *testing.T) {
			v, err := tc.p.evaluate(t.Context(), tc.e, tc.c)
			if err == nil || v != nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("verdict %v, error %v; want an error with %q", v, err, tc.want)
			}
		})
	}
	if _, err := p.Evaluate(t.Context(), nil, Context{}); err == nil {
		t.Error("no evidence is accepted")
	}
}

// TestInput pins the input document: Conforma's keys, and ours.
func TestInput(t *testing.T) {
	w := patched(t, nil)
	e := w.evidence(t)
	p := loaded(t, map[string]string{"policy.yaml": "sources: [{policy: [.]}]", "p.rego": `package p
deny contains json.marshal(json.remove(input, ["attestations", "assay/statements"]))
warn contains sprintf("statement %s %s", [s.payloadDigest, s.identity.grade]) if some s in input.assay.statements
warn contains sprintf("%s %s", [a.statement.predicateType, json.marshal(a.signatures)]) if some a in input.attestations
`})
	e.manifest = []byte(`{"manifests":[]}`)
	e.runs[0].Provenance.Payload = []byte(`{"predicateType":"p","n":12345678901234567890}`)
	e.runs[0].Observation.Payload = []byte(`{"predicateType":"o"}`)
	e.runs[0].Provenance.Log = []tlog.Inclusion{{Log: "l", Kind: tlog.KindTile, Index: 3, Size: 4, Witnesses: []string{"w"}}}
	e.runs[0].Observation.NotLogged = "why"
	v, err := p.evaluate(t.Context(), e, Context{Now: noon, ImageConfig: json.RawMessage(`{"Labels":{"a":"b"}}`), Logs: []string{"l"}, Witnesses: []string{"w"}})
	if err != nil {
		t.Fatal(err)
	}
	const id = `"grade":"observer","key":"aa11","keyName":"test","keyid":"k1","reason":"as the test says"`
	run := `{"id":"run-1","identity":{` + id + `},"observation":{"predicateType":"o"},"observationLog":[],"observationNotLogged":"why",` +
		`"provenance":{"n":12345678901234567890,"predicateType":"p"},"provenanceDigest":"` + e.runs[0].Provenance.PayloadDigest + `",` +
		`"provenanceLog":[{"index":3,"kind":"tile","log":"l","size":4,"witnesses":["w"]}]}`
	want := `{"assay":{"logs":["l"],"manifest":{"manifests":[]},"rejected":[],"run":` + run + `,"runs":[` + run + `],"signatures":[{"format":"cosign-tag",` + id + `,"sig":"c2ln"}],"witnesses":["w"]},` +
		`"component_name":"run-1","image":{"config":{"Labels":{"a":"b"}},"ref":"` + testImage + `","signatures":[{"keyid":"k1","sig":"c2ln"}]},` +
		`"policy_spec":` + string(p.document) + `,"snapshot":{"application":"","artifacts":{},"components":[{"containerImage":"` + testImage + `","name":"run-1"}]}}`
	if d := cmp.Diff(want, v.Violations[0].Msg); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	sig := `[{"keyid":"k1","sig":"c2ln"}]`
	if d := cmp.Diff([]string{"o " + sig, "p " + sig}, []string{v.Warnings[0].Msg, v.Warnings[1].Msg}); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func TestPolicyKey(t *testing.T) {
	// The policy names a key; evidence by another is shown as rejected only.
	p := loaded(t, map[string]string{"policy.yaml": "publicKey: key.pub\nsources: [{policy: [.]}]", "key.pub": publicKey, "p.rego": `package p
deny contains sprintf("%d %d %d %d", [count(object.get(input, "attestations", null)), count(input.assay.signatures), count(input.assay.runs), count(input.assay.rejected)]) if input.attestations != null
deny contains sprintf("none %d %d %d", [count(input.assay.signatures), count(input.assay.runs), count(input.assay.rejected)]) if input.attestations == null
`})
	e := patched(t, nil).evidence(t)
	judge := func() string {
		v, err := p.evaluate(t.Context(), e, Context{Now: noon})
		if err != nil {
			t.Fatal(err)
		}
		return v.Violations[0].Msg
	}
	if got := judge(); got != "none 0 0 3" {
		t.Errorf("by another key: %s", got)
	}
	e.signatures[0].Key = p.signers.image[0].key
	e.runs[0].Provenance.Key, e.runs[0].Observation.Key = p.signers.image[0].key, p.signers.image[0].key
	if got := judge(); got != "2 1 1 0" {
		t.Errorf("by the key: %s", got)
	}
}

func TestMixedSigners(t *testing.T) {
	observer, holder := identity("observer"), identity("key holder")
	other := observer
	other.Key = "bb22"
	for name, tc := range map[string]struct {
		a, b verify.Identity
		want verify.Grade
	}{
		"same":           {observer, observer, verify.GradeObserver},
		"two observers":  {observer, other, verify.GradeUnknown},
		"weak provides":  {holder, observer, verify.GradeKeyHolder},
		"weak observes":  {observer, holder, verify.GradeKeyHolder},
		"unknown grades": {verify.Identity{}, observer, verify.GradeUnknown},
	} {
		if got := weaker(true, tc.a, tc.b); got.Grade != tc.want {
			t.Errorf("%s: grade %s, want %s", name, got.Grade, tc.want)
		}
	}
}

func TestExpiry(t *testing.T) {
	rego := annotatedWith(`effective_on: "2026-11-23T18:00:00Z"`)
	for name, tc := range map[string]struct {
		files map[string]string
		c     Context
		want  time.Time
	}{
		"default":                 {map[string]string{"p.rego": passes}, Context{Now: noon}, noon.Add(DefaultValidity)},
		"validity":                {map[string]string{"p.rego": passes}, Context{Now: noon, Validity: time.Hour}, noon.Add(time.Hour)},
		"rule comes into force":   {map[string]string{"p.rego": rego}, Context{Now: noon}, noon.Add(6 * time.Hour)},
		"rule is in force":        {map[string]string{"p.rego": rego}, Context{Now: noon.Add(7 * time.Hour)}, noon.Add(31 * time.Hour)},
		"an exclusion ends":       {map[string]string{"p.rego": passes, "policy.yaml": "sources: [{policy: [.], volatileConfig: {exclude: [{value: p.x, effectiveUntil: '2026-11-23T14:00:00Z'}]}}]"}, Context{Now: noon}, noon.Add(2 * time.Hour)},
		"long validity, result":   {map[string]string{"p.rego": "package p\ndeny contains {\"code\": \"p.x\", \"msg\": \"m\", \"effective_on\": \"2026-11-24\"}"}, Context{Now: noon, Validity: 1000 * time.Hour}, noon.Add(12 * time.Hour)},
		"as of a time in the far": {map[string]string{"p.rego": passes}, Context{Now: noon, EffectiveTime: noon.Add(900 * time.Hour)}, noon.Add(DefaultValidity)},
	} {
		v, err := loaded(t, tc.files).evaluate(t.Context(), &fakeEvidence{ref: testImage}, tc.c)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !v.Expiry.Equal(tc.want) {
			t.Errorf("%s: %s, want %s", name, v.Expiry, tc.want)
		}
	}
}

func TestVolatileScopes(t *testing.T) {
	const always = "package p\n\n# METADATA\n# title: T\n# custom:\n#   short_name: r\ndeny contains {\"code\": \"p.r\", \"msg\": \"no\"}\n\n# METADATA\n# title: T\n# custom:\n#   short_name: ok\ndeny contains {\"code\": \"p.ok\", \"msg\": \"no\"} if input.nope\n"
	for name, tc := range map[string]struct {
		item string
		c    Context
		want Outcome
	}{
		"everywhere":        {"value: p.r", Context{}, Pass},
		"digest":            {"value: p.r, imageDigest: 'sha256:" + strings.Repeat("1", 64) + "'", Context{}, Pass},
		"old digest field":  {"value: p.r, imageRef: 'sha256:" + strings.Repeat("1", 64) + "'", Context{}, Pass},
		"other digest":      {"value: p.r, imageDigest: 'sha256:" + strings.Repeat("2", 64) + "'", Context{}, Fail},
		"url":               {"value: p.r, imageUrl: 'localhost:5055/staging/run-1'", Context{}, Pass},
		"other url":         {"value: p.r, imageUrl: 'localhost:5055/staging/run'", Context{}, Fail},
		"component":         {"value: p.r, componentNames: [a, b]", Context{Component: "b"}, Pass},
		"other component":   {"value: p.r, componentNames: [a]", Context{Component: "b"}, Fail},
		"parent":            {"value: p.r, componentNames: [a]", Context{Component: "a-sha256:1-amd64", Parent: "a"}, Pass},
		"begins at once":    {"value: p.r, effectiveOn: '2026-11-23T12:00:00Z'", Context{}, Pass},
		"ends at once":      {"value: p.r, effectiveUntil: '2026-11-23T12:00:00Z'", Context{}, Pass},
		"ended":             {"value: p.r, effectiveUntil: '2026-11-23T11:59:59Z'", Context{}, Fail},
		"pending":           {"value: p.r, effectiveOn: '2026-11-24'", Context{}, Fail},
		"whole package":     {"value: p", Context{}, ""},
		"unrelated package": {"value: q", Context{}, Fail},
	} {
		t.Run(name, func(t *testing.T) {
			p := loaded(t, map[string]string{"p.rego": always, "policy.yaml": "sources: [{policy: [.], volatileConfig: {exclude: [{" + tc.item + "}]}}]"})
			tc.c.Now = noon
			v, err := p.evaluate(t.Context(), &fakeEvidence{ref: testImage}, tc.c)
			if tc.want == "" {
				if err == nil {
					t.Error("a policy of which nothing is left gave a verdict")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if v.Result != tc.want {
				t.Errorf("%s, want %s: %v", v.Result, tc.want, v.Violations)
			}
		})
	}
}

// TestWarningsHideNoViolation: depends_on behind a warning.
func TestWarningsHideNoViolation(t *testing.T) {
	const rego = `package p

# METADATA
# title: W
# custom:
#   short_name: w
warn contains {"code": "p.w", "msg": "warned"}

# METADATA
# title: D
# custom:
#   short_name: d
#   depends_on: [p.w]
deny contains {"code": "p.d", "msg": "denied"}

# METADATA
# title: A
# custom:
#   short_name: a
#   depends_on: [p.b]
deny contains {"code": "p.a", "msg": "a"} if data.circle

# METADATA
# title: B
# custom:
#   short_name: b
#   depends_on: [p.a]
deny contains {"code": "p.b", "msg": "b"} if data.circle
`
	v, err := loaded(t, map[string]string{"p.rego": rego}).evaluate(t.Context(), &fakeEvidence{ref: testImage}, Context{Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	if v.Result != Fail || len(v.Violations) != 1 {
		t.Errorf("%s: %v", v.Result, v.Violations)
	}
	circle := strings.Replace(rego, "deny contains {\"code\": \"p.d\"", "deny contains {\"code\": \"p.d\"", 1)
	circle = strings.Replace(circle, "\"denied\"}", "\"denied\"} if not data.circle", 1)
	v, err = loaded(t, map[string]string{"p.rego": circle, "d.yaml": "circle: true"}).evaluate(t.Context(), &fakeEvidence{ref: testImage}, Context{Now: noon})
	if err != nil {
		t.Fatal(err)
	}
	if v.Result != Fail || len(v.Violations) != 2 {
		t.Errorf("in a circle: %s: %v", v.Result, v.Violations)
	}
}

func TestEvaluateInParallel(t *testing.T) {
	w := patched(t, nil)
	p := examplePolicy(t, "release", w, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			v, err := p.evaluate(t.Context(), w.evidence(t), Context{Now: w.When})
			if err != nil || v.Result != Pass {
				t.Errorf("%v, %v", v, err)
			}
		})
	}
	wg.Wait()
}

func TestVerdictSurvivesJSON(t *testing.T) {
	w := patched(t, []any{map[string]any{"op": "replace", "path": "/runs/0/observation/run/outcome", "value": "failed"}})
	v, err := examplePolicy(t, "release", w, nil).evaluate(t.Context(), w.evidence(t), Context{Now: w.When, Destination: "released/yq"})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var back Verdict
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(&back)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(raw), string(again)); d != "" {
		t.Errorf("-first +second:\n%s", d)
	}
}

// TestFilterLaws: more includes never remove, more excludes never add, and a
// tie is out.
func TestFilterLaws(t *testing.T) {
	items := rapid.SampledFrom([]string{"*", "p", "p.", "p.*", "p.r", "p:t", "p.r:t", "*:t", "a.p", "a.p.r", "@c", "@d", "q", "p.s", "*:u"})
	rapid.Check(t, func(t *rapid.T) {
		lists := rapid.SliceOfN(items, 0, 6)
		c := criteria{include: lists.Draw(t, "include"), exclude: lists.Draw(t, "exclude")}
		code := rapid.SampledFrom([]string{"p.r", "a.p.r", "q.r"}).Draw(t, "code")
		m := matchers(code, rapid.SampledFrom([][]string{nil, {"t"}, {"t", "u"}}).Draw(t, "terms"), []string{"c"})
		item := items.Draw(t, "item")
		more := criteria{include: append(slices.Clone(c.include), item), exclude: c.exclude}
		less := criteria{include: c.include, exclude: append(slices.Clone(c.exclude), item)}
		if c.includes(m) && !more.includes(m) {
			t.Errorf("including %s removed %s", item, code)
		}
		if !c.includes(m) && less.includes(m) {
			t.Errorf("excluding %s added %s", item, code)
		}
		if (criteria{include: c.include, exclude: c.include}).includes(m) {
			t.Error("a tie is in")
		}
	})
}
