package ec

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/policy/conforma"
)

// recorded is a report that Conforma's own tests have on record.
func recorded(t *testing.T, file, key string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "conformance", "conforma", "upstream-reports", file))
	if err != nil {
		t.Skipf("conformance material is not here: %v", err)
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	var s string
	if err := json.Unmarshal(all[key], &s); err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return s
}

// TestText: text with colours is what Conforma writes, to the letter.
func TestText(t *testing.T) {
	const ref = "${REGISTRY}/acceptance/image@sha256:${REGISTRY_acceptance/image:latest_DIGEST}"
	result := func(msg, code, title, description string, term any) conforma.Result {
		m := map[string]any{"code": code, "title": title, "description": description}
		if msg != "Pass" {
			m["solution"] = "None"
		}
		if term != nil {
			m["term"] = term
		}
		return conforma.Result{Message: msg, Metadata: m}
	}
	c := reportComponent{component: component{Name: "Unnamed", ContainerImage: ref}}
	const hint = " To exclude this rule add %s to the `exclude` section of the policy configuration."
	c.Violations = []conforma.Result{
		result("Fails always (term1)", "main.reject_with_term", "Reject with term rule", "This rule will always fail."+strings.Replace(hint, "%s", `"main.reject_with_term:term1"`, 1), "term1"),
		result("Fails always (term2)", "main.reject_with_term", "Reject with term rule", "This rule will always fail."+strings.Replace(hint, "%s", `one or more of "main.reject_with_term:term2", "main.reject_with_term:term3"`, 1), []any{"term2", "term3"}),
		result("Fails always", "main.rejector", "Reject rule", "This rule will always fail."+strings.Replace(hint, "%s", `"main.rejector"`, 1), nil),
	}
	c.Successes = []conforma.Result{
		attestationCheck.result("Pass"), syntaxCheck.result("Pass"), imageSignature.result("Pass"),
		result("Pass", "main.acceptor", "Allow rule", "This rule will never fail", nil),
	}
	r := keptReport(t, &imageReport{colour: true, created: time.Now()}, &encoded{}, c)
	var b bytes.Buffer
	if err := r.text(&b, show{successes: true, warnings: true, docsLink: true}); err != nil {
		t.Fatal(err)
	}
	got := b.String()
	want := recorded(t, "validate_image.json", "detailed failures output:${TMPDIR}/output.txt")
	if diff := cmp.Diff(strings.TrimSpace(want), strings.TrimSpace(got)); diff != "" {
		t.Errorf("(-Conforma +assay):\n%s", diff)
	}
}

// keptReport puts components into a report, as if they had been judged; e is what is
// known of the last one beside what is in the report.
func keptReport(t *testing.T, r *imageReport, e *encoded, list ...reportComponent) *imageReport {
	t.Helper()
	t.Cleanup(func() {
		if err := r.close(); err != nil {
			t.Error(err)
		}
	})
	r.Components = json.RawMessage("[]")
	for i, c := range list {
		x := &encoded{}
		if i == len(list)-1 {
			x = e
		}
		successes := x.successes
		if err := x.fill(&c, wanted{successes: true}); err != nil {
			t.Fatal(err)
		}
		x.successes = max(x.successes, successes)
		if err := r.keep(i, x); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func TestOtherForms(t *testing.T) {
	r := keptReport(t, &imageReport{Key: "KEY", Version: "v", created: time.Unix(1700000000, 0).UTC()},
		&encoded{kept: kept{successes: 2}, input: []byte(`{"a":1}`), statements: [][]byte{[]byte(`{"s":1}`), []byte(`{"s":2}`)}},
		reportComponent{
			component:  component{Name: "n", ContainerImage: "r@d"},
			Violations: []conforma.Result{{Message: "no <b>", Metadata: map[string]any{"code": "p.a", "term": "t"}}, {Message: "again", Metadata: map[string]any{"code": "p.a"}}},
			Warnings:   []conforma.Result{{Message: "hm"}},
			Successes:  []conforma.Result{{Message: "Pass", Metadata: map[string]any{"code": "p.b"}}},
			Signatures: []signature{{KeyID: "k", Sig: "s", Metadata: map[string]string{"Issuer": "i"}}},
		})
	for format, want := range map[string]string{
		"appstudio":        `{"timestamp":"1700000000","namespace":"","successes":2,"failures":2,"warnings":1,"result":"FAILURE"}`,
		"hacbs":            `{"timestamp":"1700000000","namespace":"","successes":2,"failures":2,"warnings":1,"result":"FAILURE"}`,
		"summary":          `{"components":[{"name":"n","success":false,"violations":{"p.a":["no \u003cb\u003e","There are 1 more \"p.a\" messages"]},"warnings":{},"successes":{"p.b":["Pass"]},"total_violations":2,"total_warnings":1,"total_successes":2}],"success":false,"key":"KEY"}`,
		"summary-markdown": "| Field     | Value |Status|\n|-----------|-------|-------|\n| Time | 2023-11-14 22:13:20 |  |\n| Successes | 2 | :x: |\n| Failures | 2 | :x: |\n| Warnings | 1 | :x: |\n| Result |  | :x: |\n",
		"attestation":      "{\"s\":1}\n{\"s\":2}",
		"policy-input":     "{\"a\":1}",
		"junit": `<testsuites tests="4" failures="2" skipped="1"><testsuite name="n (r@d)" tests="4" failures="2" errors="0" id="0" skipped="1" time="" timestamp="2023-11-14T22:13:20Z">` +
			`<properties><property name="image" value="r@d"></property><property name="key" value="KEY"></property><property name="success" value="false"></property><property name="keyId" value="k"></property><property name="signature" value="s"></property><property name="metadata.Issuer" value="i"></property></properties>` +
			`<testcase name="p.b: Pass" classname="p.b: Pass"></testcase>` +
			`<testcase name="p.a: no &lt;b&gt; [term=t]" classname="p.a: no &lt;b&gt; [term=t]"><failure message="no &lt;b&gt;"><![CDATA[no <b>]]></failure></testcase>` +
			`<testcase name="p.a: again" classname="p.a: again"><failure message="again"><![CDATA[again]]></failure></testcase>` +
			`<testcase name="hm" classname="hm"><skipped message="hm"><![CDATA[hm]]></skipped></testcase></testsuite></testsuites>`,
	} {
		var got bytes.Buffer
		if err := r.render(&got, target{format: format}); err != nil {
			t.Errorf("%s: %v", format, err)
		} else if diff := cmp.Diff(want, got.String()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", format, diff)
		}
	}
}

func TestParseAttestation(t *testing.T) {
	v02 := func(predicate string) string {
		return `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://slsa.dev/provenance/v0.2","subject":[{"name":"n","digest":{"sha256":"ab"}}],"predicate":` + predicate + `}`
	}
	v1 := func(predicate string) string {
		return `{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://slsa.dev/provenance/v1","subject":[{"name":"n","digest":{"gitCommit":"ab"}}],"predicate":` + predicate + `}`
	}
	for name, tt := range map[string]struct{ raw, want string }{
		"v0.2":           {v02(`{"builder":{"id":"https://b"},"buildType":"t","metadata":{"buildFinishedOn":"2026-01-01T00:00:00Z"},"materials":[{"uri":"git+x","digest":{"sha1":"ab"}}]}`), ""},
		"no builder":     {v02(`{"buildType":"t"}`), "SLSA v0.2"},
		"no build type":  {v02(`{"builder":{"id":"https://b"}}`), "has no buildType"},
		"bad time":       {v02(`{"builder":{"id":"https://b"},"buildType":"t","metadata":{"buildFinishedOn":"yesterday"}}`), "cannot parse"},
		"not UTC":        {v02(`{"builder":{"id":"https://b"},"buildType":"t","metadata":{"buildFinishedOn":"2026-01-01T00:00:00+01:00"}}`), "not in UTC"},
		"builder":        {v02(`{"builder":{"id":"nobody"},"buildType":"t"}`), "is not a URI"},
		"digest":         {v02(`{"builder":{"id":"https://b"},"buildType":"t","materials":[{"digest":{"sha0":"ab"}}]}`), "is not known"},
		"git commit":     {v02(`{"builder":{"id":"https://b"},"buildType":"t","materials":[{"digest":{"gitCommit":"ab"}}]}`), "is not known"},
		"no subject":     {strings.Replace(v02(`{"builder":{"id":"https://b"},"buildType":"t"}`), `{"name":"n","digest":{"sha256":"ab"}}`, "", 1), "is empty"},
		"v1":             {v1(`{"buildDefinition":{"buildType":"t","externalParameters":{}},"runDetails":{"builder":{"id":"https://b"}}}`), ""},
		"v1, parameters": {v1(`{"buildDefinition":{"buildType":"t"},"runDetails":{"builder":{"id":"https://b"}}}`), "SLSA v1"},
		"v1, no details": {v1(`{"buildDefinition":{"buildType":"t","externalParameters":{}}}`), "has no runDetails"},
		"other":          {`{"predicateType":"https://spdx.dev/Document","predicate":3}`, ""},
		"no JSON":        {`{`, "untyped"},
	} {
		_, err := parseAttestation([]byte(tt.raw))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}

func FuzzParseAttestation(f *testing.F) {
	f.Add([]byte(`{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://slsa.dev/provenance/v0.2","subject":[{"name":"n","digest":{"sha256":"ab"}}],"predicate":{"builder":{"id":"https://b"},"buildType":"t","materials":[{}]}}`))
	f.Add([]byte(`{"predicateType":"https://slsa.dev/provenance/v1","subject":3,"predicate":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 64<<10 {
			return
		}
		if p, err := parseAttestation(raw); err == nil && p == nil {
			t.Error("neither a statement nor an error")
		}
		finished(raw)
	})
}

func FuzzParseSnapshot(f *testing.F) {
	f.Add([]byte(`{"application":"a","components":[{"name":"n","containerImage":"i","source":{"git":{"url":"u"}}}],"artifacts":{"unstableFields":{"x":1}}}`))
	f.Add([]byte("kind: Snapshot\nspec:\n  components: []\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 64<<10 {
			return
		}
		s, err := parseSnapshot(raw)
		if err != nil {
			return
		}
		both := &snapshotSpec{}
		both.merge(s)
		both.merge(s)
		seen := map[string]bool{}
		for _, c := range both.Components {
			if seen[c.ContainerImage] {
				t.Fatalf("%q is there twice", c.ContainerImage)
			}
			seen[c.ContainerImage] = true
		}
	})
}

func TestMerge(t *testing.T) {
	s := &snapshotSpec{}
	s.merge(&snapshotSpec{Components: []component{{Name: unnamed, ContainerImage: "a"}, {Name: "b", ContainerImage: "b"}}})
	s.merge(&snapshotSpec{Application: "app", Components: []component{{Name: "a", ContainerImage: "a"}, {Name: "c", ContainerImage: "b"}}})
	want := &snapshotSpec{Application: "app", Components: []component{{Name: "a", ContainerImage: "a"}, {Name: "b", ContainerImage: "b"}}}
	if diff := cmp.Diff(want, s); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
