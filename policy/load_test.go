package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/policy/spec"
)

// folder writes files (name → content) into a temporary folder.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const passes = `package p

# METADATA
# title: T
# custom:
#   short_name: r
deny contains result if {
	input.nope
	result := {"code": "p.r", "msg": "no"}
}
`

const publicKey = `-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEmFnmZR+4q/oNimxWcdlMMDrC0Cpw
PmiEBwuFf9xM312S4KT94BFoG+2kz4j7AZVwGc+/vUX+EJ8R0IVI5IWDZg==
-----END PUBLIC KEY-----
`

func annotatedWith(line string) string {
	return strings.Replace(passes, "#   short_name: r", "#   short_name: r\n#   "+line, 1)
}

func TestLoadRefuses(t *testing.T) {
	source := func(extra string) string { return "sources:\n- policy: [.]\n" + extra }
	for name, tc := range map[string]struct {
		files map[string]string
		want  string // part of the error
	}{
		"nothing":                  {nil, "no .rego files"},
		"no rules":                 {map[string]string{"p.rego": "package p\nx := 1\n"}, "no deny, violation or warn rule"},
		"only notes":               {map[string]string{"p.rego": "package p\nnote contains \"x\"\n"}, "no deny, violation or warn rule"},
		"rego v0":                  {map[string]string{"p.rego": "package p\ndeny[m] { m := 1 }\n"}, "rego_parse_error"},
		"http.send":                {map[string]string{"p.rego": "package p\ndeny contains m if m := http.send({\"method\": \"GET\", \"url\": \"http://x\"}).body\n"}, "undefined function http.send"},
		"opa.runtime":              {map[string]string{"p.rego": "package p\ndeny contains opa.runtime().env.HOME\n"}, "undefined function opa.runtime"},
		"net.lookup_ip_addr":       {map[string]string{"p.rego": "package p\ndeny contains x if some x in net.lookup_ip_addr(\"x\")\n"}, "undefined function net.lookup_ip_addr"},
		"unknown field":            {map[string]string{"p.rego": passes, "policy.yaml": source("  polcy: []\n")}, "polcy"},
		"field given twice":        {map[string]string{"p.rego": passes, "policy.yaml": "name: a\nname: b\n" + source("")}, "already set"},
		"two documents":            {map[string]string{"p.rego": passes, "policy.yaml": source("") + "---\nname: x\n"}, "more than one YAML document"},
		"no sources":               {map[string]string{"p.rego": passes, "policy.yaml": "name: x\n"}, "has no sources"},
		"source without policy":    {map[string]string{"p.rego": passes, "policy.yaml": "sources: [{data: [.]}]\n"}, "names no policy"},
		"other kind":               {map[string]string{"p.rego": passes, "policy.yaml": "apiVersion: v1\nkind: ConfigMap\nspec: {}\n"}, "is not a policy"},
		"two configurations":       {map[string]string{"p.rego": passes, "policy.yaml": source(""), "policy.json": "{}"}, "more than one configuration"},
		"git source":               {map[string]string{"policy.yaml": "sources: [{policy: ['git::https://x/y.git//policy?ref=main']}]\n"}, "git sources are not fetched"},
		"github source":            {map[string]string{"policy.yaml": "sources: [{policy: [github.com/conforma/policy//policy/release]}]\n"}, "git sources are not fetched"},
		"oci source":               {map[string]string{"policy.yaml": "sources: [{policy: ['oci::quay.io/x/y:latest']}]\n"}, "oci sources are not fetched"},
		"https source":             {map[string]string{"policy.yaml": "sources: [{policy: ['https://x/p.rego']}]\n"}, "https sources are not fetched"},
		"unknown source kind":      {map[string]string{"policy.yaml": "sources: [{policy: ['s3::x']}]\n"}, `the kind "s3" is not known`},
		"missing folder":           {map[string]string{"p.rego": passes, "policy.yaml": "sources: [{policy: [./gone]}]\n"}, "no such file"},
		"half an identity":         {map[string]string{"p.rego": passes, "policy.yaml": source("identity: {subject: a}\n")}, "one of issuer and issuerRegExp"},
		"identity twice":           {map[string]string{"p.rego": passes, "policy.yaml": source("publicKey: key.pub\nassay: {signers: {image: [{publicKey: key.pub}]}}\n"), "key.pub": publicKey}, "beside assay.signers"},
		"bad expression":           {map[string]string{"p.rego": passes, "policy.yaml": source("identity: {subjectRegExp: '(', issuer: b}\n")}, "missing closing"},
		"other case":               {map[string]string{"p.rego": passes, "policy.yaml": "Sources: [{policy: [.]}]\n"}, `unknown field "Sources"`},
		"nested too deep":          {map[string]string{"p.rego": passes, "policy.yaml": source("  ruleData: {a: " + strings.Repeat("[", 200) + strings.Repeat("]", 200) + "}\n")}, "nested deeper"},
		"too large":                {map[string]string{"p.rego": passes, "policy.yaml": source("description: " + strings.Repeat("x", 5<<20) + "\n")}, "larger than 4 MiB"},
		"key in a KMS":             {map[string]string{"p.rego": passes, "policy.yaml": source("publicKey: k8s://ns/secret\n")}, "keys at k8s://"},
		"key that is none":         {map[string]string{"p.rego": passes, "policy.yaml": source("publicKey: key.pub\n"), "key.pub": "x"}, "not a PEM block"},
		"bad volatile date":        {map[string]string{"p.rego": passes, "policy.yaml": source("  volatileConfig: {exclude: [{value: p, effectiveUntil: soon}]}\n")}, "effectiveUntil"},
		"volatile with two scopes": {map[string]string{"p.rego": passes, "policy.yaml": source("  volatileConfig: {exclude: [{value: p, imageUrl: a/b, componentNames: [c]}]}\n")}, "more than one of"},
		"bad image digest":         {map[string]string{"p.rego": passes, "policy.yaml": source("  volatileConfig: {exclude: [{value: p, imageDigest: sha256:1}]}\n")}, "is not of the form"},
		"bad effective_on":         {map[string]string{"p.rego": annotatedWith("effective_on: next week")}, "effective_on"},
		"bad question":             {map[string]string{"p.rego": annotatedWith("question: why")}, `question "why" is unknown`},
		"bad collections":          {map[string]string{"p.rego": annotatedWith("collections: 3")}, "collections is neither"},
		"data list":                {map[string]string{"p.rego": passes, "d.yaml": "- 1\n"}, "not an object"},
		"data two documents":       {map[string]string{"p.rego": passes, "d.yaml": "a: 1\n---\nb: 2\n"}, "more than one YAML document"},
		"data twice":               {map[string]string{"p.rego": passes, "d.yaml": "a: 1\n", "e.json": `{"a": 2}`}, "data.a is given twice"},
		"data trailing":            {map[string]string{"p.rego": passes, "e.json": `{"a": 2} {}`}, "more than one document"},
		"data over a rule":         {map[string]string{"p.rego": passes, "d.yaml": "p: {deny: []}\n"}, "conflict"},
		"data as the time":         {map[string]string{"p.rego": passes, "d.yaml": "config: {policy: {when_ns: 0}}\n"}, "data.config.policy is set by the evaluation"},
		"data as ruleData":         {map[string]string{"p.rego": passes, "d.yaml": "rule_data__configuration__: {}\n"}, "is ruleData's"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(t.Context(), folder(t, tc.files), Options{})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got error %v, want one with %q", err, tc.want)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		if _, err := Load(t.Context(), filepath.Join(t.TempDir(), "gone"), Options{}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("extra data of another kind", func(t *testing.T) {
		dir := folder(t, map[string]string{"p.rego": passes, "x.txt": "a: 1"})
		if _, err := Load(t.Context(), dir, Options{Data: []string{filepath.Join(dir, "x.txt")}}); err == nil {
			t.Error("no error")
		}
	})
}

func TestTestsAreNoPartOfAPolicy(t *testing.T) {
	dir := folder(t, map[string]string{"p.rego": passes, "p_test.rego": "package p\ntest_x if deny with input as {}\n"})
	p, err := Load(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "p_test.rego")); err != nil {
		t.Fatal(err)
	}
	q, err := Load(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if p.Digest() != q.Digest() {
		t.Error("a test changes the policy's digest")
	}
}

func TestDigest(t *testing.T) {
	files := map[string]string{
		"policy.yaml":  "sources: [{policy: [./rules], data: [./data]}]\n",
		"rules/p.rego": passes,
		"data/d.yaml":  "a: 1\n",
	}
	extra := folder(t, map[string]string{"x.json": `{"b": 1}`, "y/x.json": `{"b": 2}`})
	load := func(edit func(map[string]string), data ...string) string {
		t.Helper()
		c := map[string]string{}
		for k, v := range files {
			c[k] = v
		}
		if edit != nil {
			edit(c)
		}
		p, err := Load(t.Context(), folder(t, c), Options{Data: data})
		if err != nil {
			t.Fatal(err)
		}
		return p.Digest()
	}
	same := load(nil)
	if got := load(nil); got != same {
		t.Error("the same files in another folder have another digest")
	}
	seen := map[string]string{same: "nothing"}
	for name, d := range map[string]string{
		"rules":       load(func(c map[string]string) { c["rules/p.rego"] += "# x\n" }),
		"data":        load(func(c map[string]string) { c["data/d.yaml"] = "a: 2\n" }),
		"config":      load(func(c map[string]string) { c["policy.yaml"] += "name: other\n" }),
		"a name":      load(func(c map[string]string) { c["rules/q.rego"] = c["rules/p.rego"]; delete(c, "rules/p.rego") }),
		"extra data":  load(nil, filepath.Join(extra, "x.json")),
		"extra data2": load(nil, filepath.Join(extra, "y", "x.json")),
	} {
		if other, ok := seen[d]; ok {
			t.Errorf("changing %s gives the digest of changing %s", name, other)
		}
		seen[d] = name
	}
}

func FuzzParseSpec(f *testing.F) {
	for _, s := range []string{"sources: [{policy: [.]}]", "a: &a [*a]", "apiVersion: appstudio.redhat.com/v1alpha1\nkind: EnterpriseContractPolicy\nspec: {sources: [{policy: [x]}]}", "--- \n---", "{", "\x00", "sources: [{policy: [.], volatileConfig: {exclude: [{value: x, effectiveOn: 2026-01-01}]}}]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<16 {
			return
		}
		s, err := parseSpec(raw)
		if err == nil && len(s.Sources) == 0 && len(s.Assay.Extends) == 0 {
			t.Error("a configuration without sources was accepted")
		}
	})
}

func FuzzParseData(f *testing.F) {
	for _, s := range []string{"a: 1", "{}", "[]", "a: 1\n---\nb: 1", "a: &x {b: *x}", "\xff"} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, raw []byte, yaml bool) {
		if len(raw) > 1<<16 {
			return
		}
		name := "x.json"
		if yaml {
			name = "x.yaml"
		}
		m, err := parseData(file{path: name, bytes: raw})
		if (m == nil) == (err == nil) {
			t.Error("neither data nor an error, or both")
		}
	})
}

func TestParseDay(t *testing.T) {
	want := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	for _, s := range []string{"2026-06-01", "2026-06-01T00:00:00Z", "2026-06-01T02:00:00+02:00"} {
		if got, err := spec.ParseTime(s); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
}
