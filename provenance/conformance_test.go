package provenance_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/provenance"
)

var formats = []provenance.Format{
	provenance.InToto, provenance.SLSAv1, provenance.SLSAv2alpha3, provenance.SLSAv2alpha4,
}

// TestConformance compares with what Tekton Chains printed for the same input,
// by the rules of the cases' README.
func TestConformance(t *testing.T) {
	root := conformanceDir(t)
	inputs, err := filepath.Glob(filepath.Join(root, "*", "input.json"))
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no cases below %s (%v)", root, err)
	}
	for _, input := range inputs {
		dir := filepath.Dir(input)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			in, cfg := loadCase(t, dir)
			unstable := readUnstable(t, dir)
			for _, format := range formats {
				name := strings.ReplaceAll(string(format), "/", "-")
				if format == provenance.InToto {
					name = "slsa-v1"
				}
				got, err := provenance.Statement(in, cfg, format, provenance.Options{})
				compare(t, string(format), filepath.Join(dir, "expected-"+name+".json"), got, err, unstable[name])

				again, _ := provenance.Statement(in, cfg, format, provenance.Options{})
				if !bytes.Equal(got, again) {
					t.Errorf("%s: two statements of one input differ", format)
				}
			}
			images, err := provenance.SimpleSigning(in, provenance.Options{})
			got, _ := json.Marshal(images)
			compare(t, "simplesigning", filepath.Join(dir, "expected-simplesigning.json"), got, err, unstable["simplesigning"])
			compareChildren(t, dir, in)
		})
	}
}

// compareChildren checks the choice and order of children where upstream's
// reconciler got as far as choosing them.
func compareChildren(t *testing.T, dir string, in provenance.Input) {
	t.Helper()
	var want struct {
		Outcome  string
		Children []string
	}
	decodeFile(t, filepath.Join(dir, "expected-reconcile.json"), &want)
	if in.PipelineRun == nil || len(in.PipelineRun.Status.ChildReferences) == 0 || want.Outcome != "sign" {
		return
	}
	var got []string
	for _, tr := range in.Children {
		got = append(got, tr.Name)
	}
	if diff := cmp.Diff(want.Children, got); diff != "" {
		t.Errorf("children (-want +got):\n%s", diff)
	}
	if len(in.Missing) > 0 {
		t.Errorf("missing children %q in a run that upstream signs", in.Missing)
	}
}

func compare(t *testing.T, what, file string, got []byte, gotErr error, unstable []string) {
	t.Helper()
	want := readJSON(t, file)
	if failure, ok := upstreamError(want); ok {
		// A crash of upstream's asks for no more than that we neither crash nor
		// drop the run in silence: a statement or an error.
		if gotErr == nil && !strings.HasPrefix(failure, "panic:") {
			t.Errorf("%s: stated what upstream refuses with %q", what, failure)
		}
		return
	}
	if gotErr != nil {
		t.Errorf("%s: %v", what, gotErr)
		return
	}
	var gotValue any
	if err := json.Unmarshal(got, &gotValue); err != nil {
		t.Errorf("%s: wrote invalid JSON: %v", what, err)
		return
	}
	for _, rule := range unstable {
		pointer, kind, _ := strings.Cut(rule, ": ")
		for _, v := range []any{want, gotValue} {
			relax(t, v, pointer, kind)
		}
	}
	if diff := cmp.Diff(openContent(want), openContent(gotValue)); diff != "" {
		t.Errorf("%s (-upstream +assay):\n%s", what, diff)
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
func relax(t *testing.T, v any, pointer, kind string) {
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

func loadCase(t testing.TB, dir string) (provenance.Input, provenance.Config) {
	t.Helper()
	var input struct {
		Run      json.RawMessage
		Children []json.RawMessage
	}
	decodeFile(t, filepath.Join(dir, "input.json"), &input)
	var children [][]byte
	for _, c := range input.Children {
		children = append(children, c)
	}
	in, err := provenance.Load(input.Run, children...)
	if err != nil {
		t.Fatal(err)
	}
	var data map[string]string
	decodeFile(t, filepath.Join(dir, "config.json"), &data)
	cfg, err := provenance.ParseConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	return in, cfg
}

func readUnstable(t *testing.T, dir string) map[string][]string {
	t.Helper()
	file := filepath.Join(dir, "unstable.json")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var m map[string][]string
	decodeFile(t, file, &m)
	return m
}

func readJSON(t testing.TB, file string) any {
	t.Helper()
	var v any
	decodeFile(t, file, &v)
	return v
}

func decodeFile(t testing.TB, file string, into any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", file, err))
	}
}

// conformanceDir finds ../shared/conformance/chains beside the repository.
func conformanceDir(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for !slices.ContainsFunc([]string{"go.mod"}, func(f string) bool { _, err := os.Stat(filepath.Join(dir, f)); return err == nil }) {
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the package")
		}
		dir = filepath.Dir(dir)
	}
	root := filepath.Join(dir, "..", "shared", "conformance", "chains")
	if _, err := os.Stat(root); err != nil {
		t.Skipf("conformance cases are not at ../shared/conformance/chains beside the repository: %v", err)
	}
	return root
}
