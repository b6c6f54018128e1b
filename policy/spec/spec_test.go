package spec

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	want := &Spec{Name: "nn", Sources: []Source{{Policy: []string{"."}, RuleData: json.RawMessage(`{"a":12345678901234567890}`)}}}
	for name, raw := range map[string]string{
		"YAML":     "name: nn\nsources:\n- policy: [.]\n  ruleData: {a: 12345678901234567890}\n",
		"JSON":     `{"name":"nn","sources":[{"policy":["."],"ruleData":{"a":12345678901234567890}}]}`,
		"resource": "apiVersion: appstudio.redhat.com/v1alpha1\nkind: EnterpriseContractPolicy\nmetadata: {name: x, labels: {a: b}}\nstatus: {any: thing}\nspec: {name: nn, sources: [{policy: [.], ruleData: {a: 12345678901234567890}}]}\n",
		"a marker": "---\n# text\nname: nn\nsources: [{policy: [.], ruleData: {a: 12345678901234567890}}]\n",
	} {
		got, err := Parse([]byte(raw))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: -want +got:\n%s", name, d)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ raw, want string }{
		"unknown":            {"polcy: 1", `unknown field "polcy"`},
		"unknown below":      {"sources: [{policy: [.]}, {polcy: 1}]", `unknown field "sources[1].polcy"`},
		"unknown in an item": {"sources: [{volatileConfig: {exclude: [{valu: x}]}}]", `unknown field "sources[0].volatileConfig.exclude[0].valu"`},
		"unknown addition":   {"assay: {extend: [x]}", `unknown field "assay.extend"`},
		"other case":         {"Name: x", `unknown field "Name"`},
		"other case below":   {"identity: {Subject: x}", `unknown field "identity.Subject"`},
		"given twice":        {"name: a\nname: b", "already set"},
		"JSON given twice":   {`{"name": "a", "name": "b"}`, "already set"},
		"wrong type":         {"sources: x", "cannot unmarshal"},
		"a truth value":      {"sources: [{volatileConfig: {exclude: [{value: p, componentNames: [on]}]}}]", "cannot unmarshal bool"},
		"ruleData a list":    {"sources: [{ruleData: [1]}]", "sources[0].ruleData is not an object"},
		"a list":             {"[1]", "not an object"},
		"nothing":            {"", "not an object"},
		"two documents":      {"name: a\n---\nname: b", "more than one YAML document"},
		"other kind":         {"apiVersion: v1\nkind: Pod\nspec: {}", "is not a policy"},
		"no spec":            {"apiVersion: appstudio.redhat.com/v1alpha1\nkind: EnterpriseContractPolicy", "no spec"},
		"beside spec":        {"apiVersion: appstudio.redhat.com/v1alpha1\nkind: EnterpriseContractPolicy\nspec: {}\nsources: []", `unknown field "sources"`},
		"too deep":           {"sources: [{ruleData: {a: " + strings.Repeat("[", 150) + strings.Repeat("]", 150) + "}}]", "nested deeper"},
		"too large":          {"name: " + strings.Repeat("x", MaxBytes), "larger than"},
		"no YAML":            {"a: [", "yaml"},
	} {
		if _, err := Parse([]byte(tc.raw)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got error %v, want one with %q", name, err, tc.want)
		}
	}
}

func TestCheck(t *testing.T) {
	const source = "sources: [{policy: [.]}]\n"
	for name, tc := range map[string]struct{ raw, want string }{
		"good":                  {source, ""},
		"good signers":          {source + "assay: {signers: {image: [{publicKey: k}, {identity: {subject: a, issuer: b}}]}, registries: ['quay.io', 'localhost:5000']}", ""},
		"extends is enough":     {"assay: {extends: [x]}", ""},
		"no sources":            {"name: x", "no sources"},
		"no policy":             {"sources: [{data: [.]}]", "sources[0] names no policy"},
		"bad date":              {"sources: [{policy: [.], volatileConfig: {include: [{value: x, effectiveOn: soon}]}}]", "volatileConfig.include[0]: effectiveOn"},
		"two scopes":            {"sources: [{policy: [.], volatileConfig: {exclude: [{value: x, imageUrl: a/b, componentNames: [c]}]}}]", "more than one of"},
		"no value":              {"sources: [{policy: [.], volatileConfig: {exclude: [{imageUrl: a/b}]}}]", "value is empty"},
		"half an identity":      {source + "identity: {issuer: b}", "identity: one of subject"},
		"subject twice":         {source + "identity: {subject: a, subjectRegExp: a, issuer: b}", "identity: one of subject"},
		"signer that is two":    {source + "assay: {signers: {image: [{publicKey: k, identity: {subject: a, issuer: b}}]}}", "assay.signers.image[0]: one of"},
		"signer that is none":   {source + "assay: {signers: {image: [{publicKey: k}], sbom: [{}]}}", "assay.signers.sbom[0]: one of"},
		"nobody signs images":   {source + "assay: {signers: {sbom: [{publicKey: k}]}}", "signers.image is empty"},
		"registry with a path":  {source + "assay: {registries: [quay.io/org]}", "registries[0]"},
		"checksum that is none": {source + "assay: {checksums: {x: sha256:1}}", "checksums: that of x"},
		"empty extends":         {"assay: {extends: ['']}", "extends[0] is empty"},
	} {
		s, err := Parse([]byte(tc.raw))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		err = s.Check()
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: got error %v, want %q", name, err, tc.want)
		}
	}
}

func TestParseTime(t *testing.T) {
	want := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	for _, s := range []string{"2026-06-01", "2026-06-01T00:00:00Z", "2026-06-01T02:00:00+02:00"} {
		if got, err := ParseTime(s); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "soon", "2026-13-01", "2026-06-01 00:00:00", "1748736000"} {
		if got, err := ParseTime(s); err == nil {
			t.Errorf("%q is %s", s, got)
		}
	}
}

// TestOverlay: what is set over the base wins, and neither is changed.
func TestOverlay(t *testing.T) {
	parse := func(raw string) *Spec {
		s, err := Parse([]byte(raw))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	base := parse(`{name: base, description: d, publicKey: k, rekorUrl: r,
  configuration: {include: [a]}, assay: {registries: [a], checksums: {x: "1", y: "2"}, sourceSigners: [{publicKey: s}]},
  sources: [{name: one, policy: [p], data: [d], ruleData: {a: 1, b: 2}, config: {include: [i], exclude: [e]}, volatileConfig: {exclude: [{value: v}]}}, {policy: [q]}]}`)
	over := parse(`{name: over, identity: {subject: s, issuer: i}, assay: {extends: [base], registries: [b], checksums: {y: "3"}},
  sources: [{policy: [new]}, {name: one, data: [e], ruleData: {b: 3}, config: {exclude: []}, volatileConfig: {exclude: [{value: w}]}}]}`)
	before, _ := json.Marshal([]*Spec{base, over})
	got, from := Overlay(base, over)
	want := parse(`{name: over, description: d, identity: {subject: s, issuer: i}, rekorUrl: r,
  configuration: {include: [a]}, assay: {registries: [b], checksums: {x: "1", y: "3"}, sourceSigners: [{publicKey: s}]},
  sources: [{name: one, policy: [p], data: [e], ruleData: {a: 1, b: 3}, config: {include: [i], exclude: []}, volatileConfig: {exclude: [{value: v}, {value: w}]}}, {policy: [q]}, {policy: [new]}]}`)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	if d := cmp.Diff([]From{{0, 1}, {1, -1}, {-1, 0}}, from); d != "" {
		t.Errorf("from: -want +got:\n%s", d)
	}
	if after, _ := json.Marshal([]*Spec{base, over}); string(after) != string(before) {
		t.Error("a policy was changed")
	}
}

func TestAddRuleData(t *testing.T) {
	s := &Spec{Sources: []Source{{RuleData: json.RawMessage(`{"a": "x", "n": 12345678901234567890}`)}, {}}}
	if err := s.AddRuleData(map[string]string{"a": "5"}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{`{"a":"5","n":12345678901234567890}`, `{"a":"5"}`}, []string{string(s.Sources[0].RuleData), string(s.Sources[1].RuleData)}); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	s.Sources[0].RuleData = json.RawMessage(`[]`)
	if err := s.AddRuleData(map[string]string{"a": "5"}); err == nil {
		t.Error("a list is taken for rule data")
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"sources: [{policy: [.]}]", "a: &a [*a]", "apiVersion: appstudio.redhat.com/v1alpha1\nkind: EnterpriseContractPolicy\nspec: {sources: [{policy: [x]}]}", "--- \n---", "{", "\x00", "sources: [{policy: [.], ruleData: {a: 1e400}}]", "assay: {extends: [x], signers: {image: [{publicKey: k}]}}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<16 {
			return
		}
		s, err := Parse(raw)
		if err != nil {
			return
		}
		_ = s.Check()
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if _, err := Parse(out); err != nil {
			t.Errorf("what was written cannot be read: %v\n%s", err, out)
		}
	})
}
