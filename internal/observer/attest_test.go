package observer_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/internal/observer"
	"assay.dev/assay/provenance/provenancetest"
)

// attest is `assay attest` as a process runs it.
func attest(t testing.TB, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errw bytes.Buffer
	code = observer.MainAttest(t.Context(), args, &out, &errw)
	return code, out.String(), errw.String()
}

func write(t testing.TB, name string, content []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestAttestConformance runs every case of what Tekton Chains prints through the
// command, for every format, with the children in each of the forms they may be
// given in.
func TestAttestConformance(t *testing.T) {
	// Nothing here needs a home or its key.
	t.Setenv("HOME", "")
	t.Setenv("ASSAY_HOME", "")
	for _, c := range provenancetest.Cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			run, children := c.Input(t)
			file := write(t, "run.json", run)
			for name, args := range childArgs(t, children) {
				for _, format := range []string{"in-toto", "slsa/v1", "slsa/v2alpha3", "slsa/v2alpha4", "simplesigning"} {
					all := slices.Concat([]string{"-f", file, "--format", format}, args, []string{"--config", c.ConfigFile()})
					code, stdout, stderr := attest(t, all...)
					var failed error
					switch code {
					case 0:
						if !strings.HasSuffix(stdout, "\n") || strings.Count(stdout, "\n") != 1 {
							t.Errorf("%s, %s: standard output is not one line", name, format)
						}
					case 1:
						failed = errors.New(stderr)
						if stdout != "" {
							t.Errorf("%s, %s: failed and printed %s", name, format, stdout)
						}
						if !strings.HasPrefix(lastLine(stderr), "assay: ") {
							t.Errorf("%s, %s: failed with %q", name, format, stderr)
						}
					default:
						t.Fatalf("%s, %s: exit code %d: %s", name, format, code, stderr)
					}
					c.Compare(t, format, []byte(stdout), failed)
				}
			}
		})
	}
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if strings.HasPrefix(lines[i], "assay:") {
			return lines[i]
		}
	}
	return s
}

// childArgs are the ways to hand over a PipelineRun's TaskRuns.
func childArgs(t *testing.T, children []json.RawMessage) map[string][]string {
	t.Helper()
	if len(children) == 0 {
		return map[string][]string{"none": nil}
	}
	var docs, list [][]byte
	oneEach := []string{"--children"}
	repeated := []string{}
	for i, c := range children {
		y, err := yaml.JSONToYAML(c)
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, y)
		list = append(list, c)
		file := write(t, fmt.Sprintf("child-%d.json", i), c)
		oneEach = append(oneEach, file)
		repeated = append(repeated, "--children", file)
	}
	array := slices.Concat([]byte("["), bytes.Join(list, []byte(",")), []byte("]"))
	kubectl, err := yaml.JSONToYAML(slices.Concat([]byte(`{"apiVersion":"v1","kind":"List","metadata":{"resourceVersion":""},"items":`), array, []byte("}")))
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]string{
		"a file each":           oneEach,
		"repeated":              repeated,
		"YAML documents":        {"--children", write(t, "children.yaml", bytes.Join(docs, []byte("---\n")))},
		"JSON values":           {"--children", write(t, "children.json", bytes.Join(list, []byte("\n")))},
		"JSON list":             {"--children", write(t, "list.json", array)},
		"what kubectl get says": {"--children", write(t, "kubectl.yaml", kubectl)},
	}
}

const (
	statedRun = `
apiVersion: tekton.dev/v1
kind: TaskRun
metadata:
  name: build
  managedFields: [{manager: controller, operation: Update}]
status:
  conditions: [{type: Succeeded, status: "True"}]
  steps: [{name: s, imageID: "r.io/tool@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}]
  results: [{name: IMAGE_URL, type: string, value: r.io/o/a}]
`
	statedPipelineRun = `
apiVersion: tekton.dev/v1
kind: PipelineRun
metadata: {name: release}
status:
  conditions: [{type: Succeeded, status: "False"}]
  childReferences: [{name: build}, {name: "gone"}]
  pipelineSpec: {tasks: [{name: build}]}
`
)

// TestAttest: what goes in, what comes out where, and with which exit code.
func TestAttest(t *testing.T) {
	t.Setenv("HOME", "")
	t.Setenv("ASSAY_HOME", "")
	run := write(t, "run.yaml", []byte(statedRun))
	pipelineRun := write(t, "pipelinerun.yaml", []byte(statedPipelineRun))
	empty := write(t, "empty.json", []byte("{}"))
	file := func(content string) string { return write(t, "file", []byte(content)) }
	tests := []struct {
		name    string
		args    []string
		code    int
		out     string   // part of it; empty: nothing must be printed
		warning []string // parts, in order
	}{
		{name: "a run as kubectl prints it", args: []string{"-f", run}, out: `"predicateType":"https://slsa.dev/provenance/v0.2"`, warning: []string{"warning: TaskRun build: IMAGE_URL has no IMAGE_DIGEST beside it"}},
		{name: "no setting", args: []string{"-f", run, "--config", empty}, out: "https://tekton.dev/chains/v2"},
		{name: "format by configuration", args: []string{"-f", run, "--config", file("artifacts.taskrun.format: slsa/v2alpha4")}, out: "https://slsa.dev/provenance/v1"},
		{name: "ConfigMap", args: []string{"-f", run, "--config", file("kind: ConfigMap\ndata: {builder.id: me}")}, out: `"id":"me"`},
		{name: "list of one", args: []string{"-f", file("kind: List\napiVersion: v1\nitems:\n" + "- " + strings.ReplaceAll(strings.TrimSpace(statedRun), "\n", "\n  "))}, out: "predicate"},
		{name: "CRLF", args: []string{"-f", file(strings.ReplaceAll(statedRun, "\n", "\r\n"))}, out: "predicate"},
		{name: "v1beta1", args: []string{"-f", file("apiVersion: tekton.dev/v1beta1\nkind: TaskRun\nmetadata: {name: old}\nstatus: {taskResults: [{name: IMAGES, value: 'r.io/o/a@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'}]}")}, out: `"name":"r.io/o/a"`, warning: []string{"is not finished"}},
		{name: "anchors", args: []string{"-f", file("apiVersion: tekton.dev/v1\nkind: TaskRun\nmetadata: {name: &n b, labels: {x: *n}}")}, out: `"labels":{"x":"b"}`},
		{name: "children, missing one, failed", args: []string{"-f", pipelineRun, "--children", run}, out: `"tasks":[`, warning: []string{"child gone was not given", "did not succeed", "IMAGE_URL has no"}},
		{name: "children before other flags", args: []string{"--children", run, "-f", pipelineRun, "--format", "slsa/v2alpha3"}, out: "https://slsa.dev/provenance/v1"},
		{name: "no images", args: []string{"-f", pipelineRun, "--format", "simplesigning"}, out: "[]\n"},
		{name: "terminal escapes in names", args: []string{"-f", file("apiVersion: tekton.dev/v1\nkind: TaskRun\nmetadata: {name: \"a\\u001b[2J\\nassay: all is well\"}\nstatus: {results: [{name: IMAGES, type: string, value: x}]}")}, out: "predicate", warning: []string{"is not finished", "\uFFFD[2J\uFFFDassay"}},

		{name: "image id without digest", args: []string{"-f", file(strings.Replace(statedRun, "r.io/tool@", "r.io/tool-", 1))}, code: 1, warning: []string{"repository@algorithm:hex"}},
		{name: "unknown key", args: []string{"-f", run, "--config", file("artifacts.taskrun.frobnicate: x")}, code: 1, warning: []string{"frobnicate", "accepted: "}},
		{name: "unknown value", args: []string{"-f", run, "--config", file("artifacts.taskrun.signer: gpg")}, code: 1, warning: []string{"x509, kms, none"}},
		{name: "unknown kind", args: []string{"-f", file("apiVersion: v1\nkind: Pod")}, code: 1, warning: []string{`"Pod"`}},
		{name: "children of a TaskRun", args: []string{"-f", run, "--children", run}, code: 1, warning: []string{"only PipelineRuns have children"}},
		{name: "two runs", args: []string{"-f", file(statedRun + "---" + statedRun)}, code: 1, warning: []string{"more than one object"}},
		{name: "the same child twice", args: []string{"-f", pipelineRun, "--children", run, run}, code: 1, warning: []string{"two TaskRuns"}},
		{name: "no such file", args: []string{"-f", "missing.json"}, code: 1, warning: []string{"missing.json"}},
		{name: "unknown format", args: []string{"-f", run, "--format", "tekton"}, code: 2, warning: []string{"slsa/v2alpha4", "Usage"}},
		{name: "unknown flag", args: []string{"-f", run, "--frobnicate"}, code: 2, warning: []string{"frobnicate", "Usage"}},
		{name: "a file too many", args: []string{"-f", run, run}, code: 2, warning: []string{"--children", "Usage"}},
		{name: "no run", args: nil, code: 2, warning: []string{"-f FILE", "Usage"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, stdout, stderr := attest(t, tt.args...)
			if code != tt.code {
				t.Fatalf("exit code %d, want %d: %s", code, tt.code, stderr)
			}
			if (tt.out == "") != (stdout == "") || !strings.Contains(stdout, tt.out) {
				t.Errorf("printed %q, want %q in it", stdout, tt.out)
			}
			rest := stderr
			for _, w := range tt.warning {
				_, after, found := strings.Cut(rest, w)
				if !found {
					t.Errorf("standard error %q lacks %q", stderr, w)
				}
				rest = after
			}
		})
	}
}

// FuzzAttest feeds strangers' files to the command: it ends with one JSON value,
// or with a message and nothing on standard output.
func FuzzAttest(f *testing.F) {
	f.Add([]byte(statedRun), []byte(""), []byte("{}"))
	f.Add([]byte(statedPipelineRun), []byte(statedRun), []byte("artifacts.pipelinerun.format: slsa/v2alpha4\nartifacts.pipelinerun.enable-deep-inspection: 'true'\n"))
	f.Add([]byte(statedPipelineRun), []byte("["+`{"kind":"TaskRunList","items":[{}]}`+"]"), []byte("kind: ConfigMap\n"))
	f.Fuzz(func(t *testing.T, run, children, config []byte) {
		if len(run)+len(children)+len(config) > 16<<10 {
			return
		}
		args := []string{"-f", write(t, "run", run), "--config", write(t, "config", config)}
		if len(children) > 0 {
			args = append(args, "--children", write(t, "children", children))
		}
		switch code, stdout, stderr := attest(t, args...); {
		case code == 0 && !json.Valid([]byte(stdout)):
			t.Errorf("printed %q", stdout)
		case code == 1 && (stdout != "" || !strings.Contains(stderr, "assay: ")):
			t.Errorf("failed with %q on standard output and %q on standard error", stdout, stderr)
		case code > 1:
			t.Errorf("exit code %d: %s", code, stderr)
		}
	})
}
