package ec_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestRequests: everything is fetched once, for checks, rules and built-ins.
func TestRequests(t *testing.T) {
	host, count := serveCounted(t, "127.0.0.1:0")
	for _, name := range []string{"good", "builtins", "two-components"} {
		t.Run(name, func(t *testing.T) {
			to, c := stage(t, filepath.Join(material(t), "image-cases", name), "REGISTRY", host, "127.0.0.1:5066", host)
			run(t, to, c.Args)
			list := count.reset()
			once := map[string]int{}
			for _, r := range list {
				_, path, _ := strings.Cut(r, " ")
				if once[path]++; once[path] > 1 && !strings.HasSuffix(path, "/none/manifests/latest") {
					t.Errorf("asked for twice: %s", r)
				}
			}
			images := 1
			if name == "two-components" {
				images = 2
			}
			t.Logf("%d requests for %d image(s)", len(list), images)
			// One asks the registry how it wants to be asked. The rules of "builtins" ask for
			// a tag more (.sbom), and for an image that is not there.
			most := 1 + 8*images
			if name == "builtins" {
				most += 2
			}
			if len(list) > most {
				t.Errorf("%d requests, want at most %d:\n%s", len(list), most, strings.Join(list, "\n"))
			}
		})
	}
}

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

const passing = `package main
# METADATA
# title: Fine
# custom:
#   short_name: fine
deny contains result if {
	input.bad
	result := {"code": "main.fine", "msg": "it is bad"}
}
`

// TestUnearned: what Conforma passes with exit 0 though nobody checked anything is
// refused, in ec mode too.
func TestUnearned(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "rules/main.rego", passing)
	policy := write(t, dir, "policy.json", `{"sources":[{"policy":["`+dir+`/rules"]}]}`)
	empty := write(t, dir, "empty.json", `{}`)
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"no sources":          {[]string{"validate", "input", empty, "-p", `{"sources":[]}`}, "has no sources"},
		"an empty policy":     {[]string{"validate", "input", empty, "-p", `{}`}, "has no sources"},
		"source of no policy": {[]string{"validate", "input", empty, "-p", `{"sources":[{"data":["` + dir + `"]}]}`}, "names no policy"},
		"an empty array":      {[]string{"validate", "input", write(t, dir, "array.json", "[]"), "-p", policy}, "no documents"},
		"YAML of comments":    {[]string{"validate", "input", write(t, dir, "comments.yaml", "# nothing\n---\n# here\n"), "-p", policy}, "no documents"},
		"no components":       {[]string{"validate", "image", "--images", `{"components":[]}`, "-p", policy, "--ignore-rekor"}, "no components"},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := run(t, dir, tt.args)
			refusedFor(t, code, stdout, stderr, tt.want)
		})
	}
}

// TestNested: packages of several segments count where nothing else fails.
func TestNested(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "rules/main.rego", passing)
	write(t, dir, "rules/nested.rego", `package org.team
# METADATA
# title: Nested
# custom:
#   short_name: rule
deny contains result if {
	input.nested
	result := {"code": "org.team.rule", "msg": "nested"}
}
`)
	policy := write(t, dir, "policy.json", `{"sources":[{"policy":["rules"]}]}`)
	for name, tt := range map[string]struct {
		input      string
		code       int
		violations []string
	}{
		"only it fails":       {`{"nested":true}`, 1, []string{"nested"}},
		"both fail":           {`{"nested":true,"bad":true}`, 1, []string{"it is bad"}},
		"neither fails":       {`{}`, 0, nil},
		"only the other does": {`{"bad":true}`, 1, []string{"it is bad"}},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, _ := run(t, dir, []string{"validate", "input", tt.input, "-p", policy, "-o", "json"})
			report := parseReport(t, stdout).(map[string]any)
			if got := messages(report, "violations"); code != tt.code || !slices.Equal(got, tt.violations) {
				t.Errorf("exit %d, violations %q; want %d, %q", code, got, tt.code, tt.violations)
			}
			add, _ := report["assay"].(map[string]any)
			if got, _ := json.Marshal(add["nestedPackages"]); string(got) != `["org.team"]` {
				t.Errorf("the report does not name the package: %s", got)
			}
		})
	}
}

// TestRefused: what ec takes and this does not is refused by its name.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{
		{"validate", "image", "--vsa"},
		{"validate", "image", "--vsa-upload", "local@x"},
		{"validate", "image", "--certificate-identity=x"},
		{"validate", "input", "--server"},
		{"validate", "input", "--server", "x"},
		{"validate", "vsa", "x"},
		{"test", "."}, {"compare", "a", "b"}, {"fetch", "policy"}, {"inspect", "policy", "-o", "spam"}, {"init", "other"}, {"track", "bundle"},
		{"validate", "image", "-i", "x", "--snapshot", "ns/name"},
		{"validate", "image", "-i", "x", "-p", "ns/name"},
		{"validate", "image", "-i", "x", "-p", "git::https://127.0.0.1:1/org/repo", "--retry-max-retry", "0"},
		{"validate", "image", "-i", "x", "-p", `{"sources":[{"policy":["oci::127.0.0.1:1/x/y"]}],"publicKey":"k8s://ns/key"}`, "--ignore-rekor"},
		{"validate", "image", "-i", "x", "-p", `{"sources":[{"policy":["."]}]}`, "--ignore-rekor"},
		{"validate", "image", "-i", "x", "--output", "vsa"},
		{"validate", "image", "-i", "x", "--output", "sarif"},
		{"validate", "image", "-i", "x", "--filter-type", "other"},
		{"validate", "image", "-i", "x", "--extra-rule-data", "novalue"},
		{"validate", "image"},
		{"validate", "other"},
		{"other"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			code, stdout, stderr := run(t, dir, args)
			if code != 1 || stdout != "" || !strings.HasPrefix(stderr, "Error: ") {
				t.Errorf("exit %d, %q, %q", code, stdout, stderr)
			}
		})
	}
}

// TestEffectiveTime: one in the past needs the flag, and shows.
func TestEffectiveTime(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "rules/main.rego", passing)
	args := []string{"validate", "input", "{}", "-p", `{"sources":[{"policy":["rules"]}]}`, "-o", "json", "--effective-time", "2020-01-01"}
	code, stdout, stderr := run(t, dir, args)
	refusedFor(t, code, stdout, stderr, "is in the past")
	code, stdout, _ = run(t, dir, append(args, "--allow-past-effective-time"))
	if add, _ := parseReport(t, stdout).(map[string]any)["assay"].(map[string]any); code != 0 || add["pastEffectiveTime"] != true {
		t.Errorf("exit %d, the report says %v", code, add)
	}
}

// TestStrict: exit codes and targets as users set them.
func TestStrict(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "rules/main.rego", passing)
	args := []string{"validate", "input", `{"bad":true}`, "-p", `{"sources":[{"policy":["rules"]}]}`, "--output", "json=out.json", "--output", "summary=sum.json", "--output", "text?show-successes=true"}
	if code, _, stderr := run(t, dir, args); code != 1 || !strings.Contains(stderr, "Error: success criteria not met") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	code, stdout, _ := run(t, dir, append(args, "--strict=false"))
	if code != 0 || !strings.HasPrefix(stdout, "Success: false\nResult: FAILURE\nViolations: 1, Warnings: 0, Successes: 0\nInput File: {") {
		t.Errorf("exit %d: %s", code, stdout)
	}
	for _, f := range []string{"out.json", "sum.json"} {
		if b, err := os.ReadFile(filepath.Join(dir, f)); err != nil || !json.Valid(b) {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// TestLoop: a policy that does not end is stopped.
func TestLoop(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "rules/main.rego", `package main
deny contains "never" if {
	some a in numbers.range(1, 100000)
	some b in numbers.range(1, 100000)
	a * b == -1
}
`)
	code, stdout, stderr := run(t, dir, []string{"validate", "input", "{}", "-p", `{"sources":[{"policy":["rules"]}]}`, "--timeout", "1s"})
	refusedFor(t, code, stdout, stderr, "did not end within 1s")
}

// TestTold: what built-ins could not answer, and whom rules would have asked, is in
// the report, under a key that Conforma's reports do not have.
func TestTold(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "rules/main.rego", `package main
# METADATA
# custom:
#   short_name: there
deny contains {"code": "main.there", "msg": "there"} if ec.oci.descriptor("127.0.0.1:1/app:1")
`)
	code, stdout, stderr := run(t, dir, []string{"validate", "input", "{}", "-p", `{"sources":[{"policy":["rules"]}]}`, "-o", "json", "--retry-max-retry", "0"})
	add, _ := parseReport(t, stdout).(map[string]any)["assay"].(map[string]any)
	if code != 0 {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if got, _ := json.Marshal(add["foreignRegistries"]); string(got) != `["127.0.0.1:1"]` {
		t.Errorf("registries: %s", got)
	}
	if got, _ := json.Marshal(add["builtinFailures"]); !strings.Contains(string(got), `"function":"ec.oci.descriptor"`) || strings.Contains(string(got), "notFound") {
		t.Errorf("failures: %s", got)
	}
}
