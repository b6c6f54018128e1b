package provenancetest

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/internal/testrig/conformance"
)

// Case is one of the cases of what Tekton Chains prints: a finished run, the
// settings in force, and upstream's answer for every format.
type Case struct {
	Name string
	dir  string
}

// Cases lists the cases, which lie beside the repository and not in it. Without
// them the test is skipped.
func Cases(t testing.TB) []Case {
	t.Helper()
	root := conformance.Dir(t, "chains")
	inputs, err := filepath.Glob(filepath.Join(root, "*", "input.json"))
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no cases below %s (%v)", root, err)
	}
	cases := make([]Case, len(inputs))
	for i, input := range inputs {
		dir := filepath.Dir(input)
		cases[i] = Case{Name: filepath.Base(dir), dir: dir}
	}
	return cases
}

// Input is the case's run and its children, each one JSON object.
func (c Case) Input(t testing.TB) (run json.RawMessage, children []json.RawMessage) {
	t.Helper()
	var input struct {
		Run      json.RawMessage
		Children []json.RawMessage
	}
	c.read(t, "input.json", &input)
	return input.Run, input.Children
}

// Config is the data of chains-config that was in force; ConfigFile is the file
// with it.
func (c Case) Config(t testing.TB) map[string]string {
	t.Helper()
	var data map[string]string
	c.read(t, "config.json", &data)
	return data
}

// ConfigFile is the path of the settings.
func (c Case) ConfigFile() string { return filepath.Join(c.dir, "config.json") }

// Reconcile is what upstream's reconciler decides: sign, skip or error, and the
// children it hands to the formatter.
func (c Case) Reconcile(t testing.TB) (outcome string, children []string) {
	t.Helper()
	var want struct {
		Outcome  string
		Children []string
	}
	c.read(t, "expected-reconcile.json", &want)
	return want.Outcome, want.Children
}

// Compare reports where got, made in one of chains-config's formats, differs from
// upstream's answer by the rules of the cases' README. gotErr says that there is
// none.
func (c Case) Compare(t testing.TB, format string, got []byte, gotErr error) {
	t.Helper()
	name := strings.ReplaceAll(format, "/", "-")
	if format == "in-toto" {
		name = "slsa-v1"
	}
	var want any
	c.read(t, "expected-"+name+".json", &want)
	if failure, ok := upstreamError(want); ok {
		// A crash of upstream's asks for no more than that we neither crash nor
		// drop the run in silence: a statement or an error.
		if gotErr == nil && !strings.HasPrefix(failure, "panic:") {
			t.Errorf("%s: stated what upstream refuses with %q", format, failure)
		}
		return
	}
	if gotErr != nil {
		t.Errorf("%s: %v", format, gotErr)
		return
	}
	var gotValue any
	if err := json.Unmarshal(got, &gotValue); err != nil {
		t.Errorf("%s: wrote invalid JSON: %v", format, err)
		return
	}
	for _, rule := range c.unstable(t)[name] {
		pointer, kind, _ := strings.Cut(rule, ": ")
		for _, v := range []any{want, gotValue} {
			relax(t, v, pointer, kind)
		}
	}
	if diff := cmp.Diff(openContent(want), openContent(gotValue)); diff != "" {
		t.Errorf("%s (-upstream +assay):\n%s", format, diff)
	}
}

// unstable lists, by format, what upstream leaves to chance.
func (c Case) unstable(t testing.TB) map[string][]string {
	t.Helper()
	if _, err := os.Stat(filepath.Join(c.dir, "unstable.json")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var m map[string][]string
	c.read(t, "unstable.json", &m)
	return m
}

func (c Case) read(t testing.TB, file string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(c.dir, file))
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatalf("%s: %v", filepath.Join(c.Name, file), err)
	}
}

func upstreamError(v any) (string, bool) {
	m, ok := v.(map[string]any)
	if !ok || len(m) != 1 {
		return "", false
	}
	failure, ok := m["error"].(string)
	return failure, ok
}

// relax makes what upstream leaves to chance equal on both sides.
func relax(t testing.TB, v any, pointer, kind string) {
	t.Helper()
	var parent map[string]any
	key := ""
	for part := range strings.SplitSeq(strings.Trim(pointer, "/"), "/") {
		if part == "" {
			break
		}
		if parent != nil {
			v = parent[key]
		}
		m, ok := v.(map[string]any)
		if !ok {
			t.Fatalf("unstable pointer %s leads nowhere", pointer)
		}
		parent, key = m, part
	}
	if parent != nil {
		v = parent[key]
	}
	switch kind {
	case "order":
		list := v.([]any)
		sort.Slice(list, func(i, j int) bool { return text(list[i]) < text(list[j]) })
	case "value":
		parent[key] = "any"
	default:
		t.Fatalf("unknown instability %q", kind)
	}
}

func text(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}

// openContent replaces base64 content by the JSON in it, without the
// apiVersion and kind of an embedded TaskRun.
func openContent(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = openContent(v[i])
		}
	case map[string]any:
		for k := range v {
			content, ok := v[k].(string)
			if k != "content" || !ok {
				v[k] = openContent(v[k])
				continue
			}
			data, err := base64.StdEncoding.DecodeString(content)
			if err != nil {
				continue
			}
			var inner any
			if json.Unmarshal(data, &inner) != nil {
				continue
			}
			if m, ok := inner.(map[string]any); ok && v["name"] == "pipelineTask" {
				delete(m, "apiVersion")
				delete(m, "kind")
			}
			v[k] = inner
		}
	}
	return v
}
