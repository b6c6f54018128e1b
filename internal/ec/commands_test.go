// The registry of these tests is go-containerregistry's, over HTTP on loopback.
package ec_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/internal/ec"
)

// TestFlags: what Conforma's ec takes, this takes, with the same shorthands and
// defaults. The table was made from Conforma's reference.
func TestFlags(t *testing.T) {
	t.Setenv("EC_EXPERIMENTAL", "1")
	f, err := os.Open("testdata/flags.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root := ec.Root()
	lines := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "#") {
			continue
		}
		lines++
		col := strings.Split(s.Text(), "\t")
		if len(col) != 4 {
			t.Fatalf("%q is no line of the table", s.Text())
		}
		command, flag, short, def := col[0], col[1], strings.Trim(col[2], "-"), col[3]
		c := root
		if command != "*" {
			if c, _, err = root.Find(strings.Fields(command)); err != nil || c.CommandPath() != "ec "+command {
				t.Errorf("%s: there is no such command", command)
				continue
			}
		}
		got := c.Flags().Lookup(flag)
		if got == nil {
			got = c.PersistentFlags().Lookup(flag)
		}
		switch {
		case got == nil:
			t.Errorf("%s: there is no --%s", command, flag)
		case got.Shorthand != short:
			t.Errorf("%s --%s: the shorthand is %q, want %q", command, flag, got.Shorthand, short)
		case def != "-" && got.DefValue != def && !same(got.DefValue, def):
			t.Errorf("%s --%s: the default is %q, want %q", command, flag, got.DefValue, def)
		}
	}
	if lines < 100 {
		t.Errorf("the table has %d lines", lines)
	}
}

// same says whether two durations are.
func same(a, b string) bool {
	x, err := time.ParseDuration(a)
	y, err2 := time.ParseDuration(b)
	return err == nil && err2 == nil && x == y
}

// TestConftest: ec test is conftest's test, and what its nine forms write. Wanted is
// what Conforma's own tests have on record for the same files.
func TestConftest(t *testing.T) {
	program := build(t)
	dir := t.TempDir()
	write(t, dir, "happy.rego", "package main\n\ndeny contains result if {\n\tfalse\n\tresult := \"never\"\n}\n")
	write(t, dir, "empty.rego", "package main\n")
	write(t, dir, "warn.rego", "package main\n\nwarn contains result if {\n\tresult := \"Has a warning\"\n}\n")
	write(t, dir, "deny.rego", "package main\n\ndeny contains result if {\n\tdata.rule_data.ripe == \"over\"\n\tresult := {\"msg\": \"Failure due to overripeness\"}\n}\n")
	write(t, dir, "builtin.rego", "package main\n\ndeny contains result if {\n\tec.purl.is_valid(\"pkg:oci/x\")\n\tresult := \"asked\"\n}\n")
	write(t, dir, "data.yaml", "rule_data:\n  ripe: over\n")
	write(t, dir, "in.json", "{}")
	write(t, dir, "broken.json", "{\"a\n\"}")
	const dirs = "in.json"
	fails := `[{"filename":"in.json","namespace":"main","successes":0,"failures":[{"msg":"Failure due to overripeness","metadata":{"query":"data.main.deny"}}]}]`
	appstudio := func(namespace string, s, f, w int, result, note string) string {
		return fmt.Sprintf(`{"timestamp":"T","namespace":%q,"successes":%d,"failures":%d,"warnings":%d,"result":%q,"note":%q}`, namespace, s, f, w, result, note)
	}
	none := "Error: running test: load: loading policies: load: 1 error occurred during loading: stat none.rego: no such file or directory"
	timestamp := regexp.MustCompile(`"timestamp":\s*"\d+"`)
	for name, tt := range map[string]struct {
		args string
		code int
		want string // compact where it is JSON
	}{
		"success":                {"-p happy.rego -o json", 0, `[{"filename":"in.json","namespace":"main","successes":1}]`},
		"success, appstudio":     {"-p happy.rego -o appstudio", 0, appstudio("main", 1, 0, 0, "SUCCESS", "All checks passed successfully")},
		"skipped, appstudio":     {"-p empty.rego -o appstudio", 0, appstudio("main", 0, 0, 0, "SKIPPED", "All checks were skipped")},
		"a warning":              {"-p warn.rego -o json", 0, `[{"filename":"in.json","namespace":"main","successes":0,"warnings":[{"msg":"Has a warning","metadata":{"query":"data.main.warn"}}]}]`},
		"a warning, appstudio":   {"-p warn.rego -o appstudio", 0, appstudio("main", 0, 0, 1, "WARNING", "Warnings detected")},
		"fail on warnings":       {"--fail-on-warn -p warn.rego -o appstudio", 1, appstudio("main", 0, 0, 1, "WARNING", "Warnings detected")},
		"a failure":              {"-p deny.rego -d data.yaml -o json", 1, fails},
		"a failure, no fail":     {"--no-fail -p deny.rego -d data.yaml -o json", 0, fails},
		"a failure is 2":         {"--fail-on-warn -p deny.rego -d data.yaml -o json", 2, fails},
		"plain":                  {"--no-color -p deny.rego -d data.yaml", 1, "FAIL - in.json - main - Failure due to overripeness\n\n1 test, 0 passed, 0 warnings, 1 failure, 0 exceptions\n"},
		"a failure, appstudio":   {"-p deny.rego -d data.yaml -o appstudio", 1, appstudio("main", 0, 1, 0, "FAILURE", "Failures detected")},
		"no policy":              {"-p none.rego -o json", 1, ""},
		"no policy, appstudio":   {"-p none.rego -o appstudio", 1, appstudio("", 0, 0, 0, "ERROR", none)},
		"no policy, no fail":     {"--no-fail -p none.rego -o appstudio", 0, appstudio("", 0, 0, 0, "ERROR", none)},
		"quiet":                  {"--quiet -p happy.rego", 0, ""},
		"quiet, and no policy":   {"--quiet -p none.rego", 1, ""}, // Conforma: 0
		"nothing tested":         {"-p empty.rego -o tap", 1, ""}, // Conforma: 0
		"no such package":        {"-p deny.rego -n other -o tap", 1, ""},
		"builtins of ec":         {"-p builtin.rego -o tap", 1, "1..1\nnot ok 1 - in.json - main - asked\n"},
		"table":                  {"-p happy.rego -o table", 0, ""},
		"junit":                  {"-p deny.rego -d data.yaml -o junit", 1, ""},
		"github":                 {"-p deny.rego -d data.yaml -o github", 1, ""},
		"azuredevops":            {"-p deny.rego -d data.yaml -o azuredevops", 1, ""},
		"sarif":                  {"-p deny.rego -d data.yaml -o sarif", 1, ""},
		"capabilities of nobody": {"-p builtin.rego --capabilities in.json", 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("EC_EXPERIMENTAL", "1")
			stdout, code := program(t, dir, append([]string{"test", dirs}, strings.Fields(tt.args)...)...)
			if code != tt.code {
				t.Errorf("exit code %d, want %d\n%s", code, tt.code, stdout)
			}
			got := timestamp.ReplaceAllString(stdout, `"timestamp":"T"`)
			var b bytes.Buffer
			if json.Compact(&b, []byte(got)) == nil {
				got = b.String()
			}
			if want := tt.want; want != "" && cmp.Diff(strings.TrimSpace(want), strings.TrimSpace(got)) != "" {
				t.Errorf("(-want +got):\n%s", cmp.Diff(want, got))
			}
			mark := map[string]string{"table": "RESULT", "junit": "<testsuites>", "github": "::error file=in.json", "azuredevops": "##vso[task.logissue type=error", "sarif": "sarif-schema-2.1.0"}[name]
			if !strings.Contains(stdout, mark) {
				t.Errorf("%q is not in\n%s", mark, stdout)
			}
		})
	}
	t.Run("not asked for", func(t *testing.T) {
		t.Setenv("EC_EXPERIMENTAL", "")
		if _, stdout, stderr := run(t, dir, []string{"test", "in.json", "-p", "happy.rego"}); !strings.Contains(stderr, "EC_EXPERIMENTAL=1") || stdout != "" {
			t.Errorf("%s%s", stdout, stderr)
		}
	})
	t.Run("to a file", func(t *testing.T) {
		t.Setenv("EC_EXPERIMENTAL", "1")
		if stdout, code := program(t, dir, "test", "in.json", "-p", "happy.rego", "-o", "appstudio=out.json"); code != 0 || stdout != "" {
			t.Errorf("%d %s", code, stdout)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "out.json")); err != nil || !strings.Contains(string(b), `"SUCCESS"`) {
			t.Errorf("%s %v", b, err)
		}
	})
	t.Run("fetched", func(t *testing.T) {
		t.Setenv("EC_EXPERIMENTAL", "1")
		write(t, dir, "remote/deny.rego", "package main\n\ndeny contains \"fetched\" if true\n")
		stdout, code := program(t, dir, "test", "in.json", "-p", "into", "-u", filepath.Join(dir, "remote"), "-o", "tap")
		if code != 1 || !strings.Contains(stdout, "fetched") {
			t.Errorf("%d %s", code, stdout)
		}
	})
}

func TestCompareCommand(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.yaml", "sources:\n- policy: [a, b]\n  volatileConfig:\n    exclude:\n    - {value: x, effectiveUntil: 2040-01-01, imageUrl: r.example/o/r}\n")
	write(t, dir, "b.yaml", "apiVersion: appstudio.redhat.com/v1alpha1\nkind: EnterpriseContractPolicy\nmetadata: {name: n}\nspec:\n  sources:\n  - policy: [b, a]\n")
	at := []string{"--effective-time", "2039-01-01T00:00:00Z"}
	for name, tt := range map[string]struct {
		args []string
		code int
		want string
	}{
		"not": {nil, 0, "❌ Policies are not equivalent\nEffective time: 2039-01-01T00:00:00Z\n"},
		"of an image": {[]string{"--image-url", "r.example/o/other"}, 0,
			"✅ Policies are equivalent\nEffective time: 2039-01-01T00:00:00Z\nImage digest: \nImage ref: \nImage URL: r.example/o/other\n"},
		"JSON": {[]string{"--output", "json", "--image-url", "r.example/o/r"}, 0,
			"{\n  \"effective_time\": \"2039-01-01T00:00:00Z\",\n  \"equivalent\": false,\n  \"image_info\": {\n    \"Digest\": \"\",\n    \"Ref\": \"\",\n    \"URL\": \"r.example/o/r\"\n  },\n  \"policy1\": \"a.yaml\",\n  \"policy2\": \"b.yaml\"\n}\n"},
		"another form": {[]string{"--output", "yaml"}, 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := run(t, dir, append(append([]string{"compare", "a.yaml", "b.yaml"}, at...), tt.args...))
			if code != tt.code || stdout != tt.want {
				t.Errorf("%d %s%s", code, stderr, cmp.Diff(tt.want, stdout))
			}
		})
	}
	if code, stdout, stderr := run(t, dir, []string{"compare", "a.yaml", "none.yaml"}); code != 1 || stdout != "" || !strings.Contains(stderr, "failed to load second policy") {
		t.Errorf("%d %s%s", code, stdout, stderr)
	}
}

func TestTrackCommand(t *testing.T) {
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	digests := map[string]string{}
	for _, tag := range []string{"1.0", "1.1"} {
		img, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
			Layer: static.NewLayer([]byte(tag), types.OCILayer), Annotations: map[string]string{"dev.tekton.image.kind": "task"},
		})
		if err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference(host + "/tasks:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		digests[tag] = d.String()
	}
	dir := t.TempDir()
	entry := func(tag string) string {
		return "  oci://" + host + "/tasks:" + tag + ":\n    - ref: " + digests[tag] + "\n"
	}
	must := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := run(t, dir, append([]string{"track"}, args...))
		if code != 0 {
			t.Fatalf("%q: %d\n%s", args, code, stderr)
		}
		return stdout
	}
	want := "---\ntrusted_tasks:\n" + entry("1.0")
	if got := must("bundle", "--bundle", host+"/tasks:1.0"); got != want {
		t.Errorf("%s", cmp.Diff(want, got))
	}
	if got := must("bundle", "-b", host+"/tasks:1.0", "-o", "oci:"+host+"/list:latest"); got != "" {
		t.Errorf("with --output: %s", got)
	}
	want = "---\ntrusted_tasks:\n" + entry("1.0") + entry("1.1")
	if got := must("tekton-task", "-b", host+"/tasks:1.1", "-i", "oci:"+host+"/list:latest", "--replace"); got != want {
		t.Errorf("%s", cmp.Diff(want, got))
	}
	must("bundle", "-i", "oci:"+host+"/list:latest", "-o", "list.yaml")
	if got, err := os.ReadFile(filepath.Join(dir, "list.yaml")); err != nil || string(got) != want {
		t.Errorf("%v %s", err, cmp.Diff(want, string(got)))
	}
	must("bundle", "-i", "list.yaml", "-r", "-g", "git+https://x.example/y//z.yaml@abc")
	if got, err := os.ReadFile(filepath.Join(dir, "list.yaml")); err != nil || !strings.Contains(string(got), "  git+https://x.example/y//z.yaml:\n    - ref: abc\n") {
		t.Errorf("%v %s", err, got)
	}
	code, stdout, stderr := run(t, dir, []string{"track", "bundle", "-g", "git+https://x.example/y//z.yaml"})
	refusedFor(t, code, stdout, stderr, "provide the --freshen parameter")
	code, stdout, stderr = run(t, dir, []string{"track", "bundle"})
	refusedFor(t, code, stdout, stderr, "at least one of the flags in the group [bundle git input] is required")
}

// TestLog: the log says as much as it is asked for, where it is asked to.
func TestLog(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "rules/main.rego", passing+"\ndeny contains \"no\" if {\n\tprint(\"here we are\")\n\tinput.worse\n}\n")
	args := []string{"validate", "input", `{}`, "-p", `{"sources":[{"policy":["` + dir + `/rules"]}]}`}
	t.Setenv("TMPDIR", t.TempDir())
	for name, tt := range map[string]struct {
		args       []string
		want, none string
	}{
		"nothing":   {nil, "", "level="},
		"verbose":   {[]string{"--verbose"}, `level=debug msg="globalTimeout is 5m0s"` + "\n", "level=trace"},
		"debug":     {[]string{"--debug", "--timeout=7m"}, `level=debug msg="globalTimeout is 7m0s" func=start file="trace.go:`, "level=trace"},
		"rules":     {[]string{"--trace=opa"}, `level=trace msg="[data.main.deny] Enter data.main.deny"`, "Wrote"},
		"print":     {[]string{"--trace=opa"}, `main.rego:12: here we are"`, ""},
		"no rules":  {[]string{"--trace"}, "globalTimeout", "Enter data.main.deny"},
		"profiles":  {[]string{"--trace=perf,mem,cpu"}, "Wrote performance trace to: ", "level="},
		"all":       {[]string{"--trace", "--quiet", "--trace=none"}, "", "level="},
		"not known": {[]string{"--trace=optical"}, `"optical" is none of none,all,perf,cpu,mem,opa,log`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, stderr := run(t, dir, append(args, tt.args...))
			if !strings.Contains(stderr, tt.want) || tt.none != "" && strings.Contains(stderr, tt.none) {
				t.Errorf("want %q, not %q:\n%s", tt.want, tt.none, stderr)
			}
		})
	}
	for _, kind := range []string{"perf.*", "cpuprofile.*", "memprofile.*"} {
		if list, _ := filepath.Glob(filepath.Join(os.Getenv("TMPDIR"), kind)); len(list) != 1 {
			t.Errorf("files %s: %q", kind, list)
		}
	}
	if code, _, stderr := run(t, dir, append(args, "--verbose", "--logfile", "log")); code != 0 || stderr != "" {
		t.Errorf("%d %s", code, stderr)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "log")); err != nil || !strings.Contains(string(b), "globalTimeout") {
		t.Errorf("%s %v", b, err)
	}
	if code, _, stderr := run(t, dir, append(args, "--logfile", "none/log")); code != 0 || !strings.Contains(stderr, "log lines will appear on standard error") {
		t.Errorf("%d %s", code, stderr)
	}
}

// TestExtraRuleData: values are words, or stand for what is in a file or at an
// address.
func TestExtraRuleData(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "from: afar\n") }))
	defer s.Close()
	dir := t.TempDir()
	t.Setenv("SSL_CERT_FILE", write(t, dir, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))))
	host := serve(t, "127.0.0.1:0")
	write(t, dir, "file.yaml", "from: near\n")
	write(t, dir, "empty.json", "")
	write(t, dir, "rules/main.rego", `package main
import data.rule_data__configuration__ as given
# METADATA
# title: Data
# custom:
#   short_name: data
deny contains result if {
	some k, v in given
	result := {"code": "main.data", "term": k, "msg": v}
}
`)
	refs, err := os.ReadFile(filepath.Join(material(t), "image-set", "refs.json"))
	if err != nil {
		t.Fatal(err)
	}
	var images map[string]string
	if err := json.Unmarshal(refs, &images); err != nil {
		t.Fatal(err)
	}
	args := []string{"validate", "image", "-i", host + "/" + images["good"], "-k", filepath.Join(material(t), "image-set", "cosign.pub"), "--skip-image-sig-check", "--skip-att-sig-check", "--ignore-rekor", "-p", `{"sources":[{"policy":["` + dir + `/rules"],"ruleData":{"old":"kept"}}]}`}
	for name, tt := range map[string]struct{ value, want string }{
		"a word":            {"k=v=w", "v=w"},
		"two":               {"k=v,l=w", "v"},
		"JSON":              {`k={}`, "{}"},
		"a file":            {"k=file.yaml", "from: near\n"},
		"no file":           {"k=none.yaml", "none.yaml"},
		"an address":        {"k=" + s.URL + "/data.yaml", "from: afar\n"},
		"no such file":      {"k=dir/none.yaml", ""},
		"an empty file":     {"k=empty.json", ""},
		"no value":          {"k", ""},
		"an address of nil": {"k=https://127.0.0.1:1/data.yaml", ""},
	} {
		t.Run(name, func(t *testing.T) {
			code, stdout, stderr := run(t, dir, append(args, "--extra-rule-data", tt.value, "--output", "json", "--retry-max-retry", "0"))
			if tt.want == "" {
				refusedFor(t, code, stdout, stderr, "xtra")
				return
			}
			var report struct {
				Components []struct {
					Violations []struct {
						Msg      string
						Metadata struct{ Term string }
					}
				}
			}
			if err := json.Unmarshal([]byte(stdout), &report); err != nil {
				t.Fatalf("%v\n%s%s", err, stdout, stderr)
			}
			got := map[string]string{}
			for _, v := range report.Components[0].Violations {
				got[v.Metadata.Term] = v.Msg
			}
			if got["k"] != tt.want || got["old"] != "kept" {
				t.Errorf("%q, want %q\n%s", got, tt.want, stderr)
			}
		})
	}
}
