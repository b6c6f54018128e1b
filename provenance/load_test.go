package provenance_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/provenance"
)

const (
	aTaskRun     = "apiVersion: tekton.dev/v1\nkind: TaskRun\nmetadata: {name: a}\n"
	aPipelineRun = "apiVersion: tekton.dev/v1\nkind: PipelineRun\nmetadata: {name: p}\n"
)

func TestLoadChildren(t *testing.T) {
	child := func(name string) []byte {
		return []byte(strings.Replace(aTaskRun, "name: a", "name: "+name, 1))
	}
	refs := aPipelineRun + "status: {childReferences: [{name: c}, {name: gone}, {name: a}]}\n"
	tests := []struct {
		name, run         string
		children          [][]byte
		want, wantMissing []string
	}{
		{"no references: all in file order", aPipelineRun, [][]byte{child("b"), child("a")}, []string{"b", "a"}, nil},
		{"order of references; unreferenced left out", refs, [][]byte{child("a"), child("b"), child("c")}, []string{"c", "a"}, []string{"gone"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in, err := provenance.Load([]byte(tt.run), tt.children...)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, tr := range in.Children {
				got = append(got, tr.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("children (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.wantMissing, in.Missing); diff != "" {
				t.Errorf("missing (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoadForms(t *testing.T) {
	tests := map[string]string{
		"yaml":                     aTaskRun,
		"yaml with markers":        "# comment\n---\n" + aTaskRun + "...\n",
		"yaml, trailing empty doc": aTaskRun + "---\n# nothing\n",
		"json":                     `{"apiVersion":"tekton.dev/v1","kind":"TaskRun","metadata":{"name":"a"}}`,
		"json after blanks":        "\n\t {\"apiVersion\":\"tekton.dev/v1\",\"kind\":\"TaskRun\",\"metadata\":{\"name\":\"a\"}}\n",
		"v1beta1":                  strings.Replace(aTaskRun, "/v1", "/v1beta1", 1),
	}
	for name, data := range tests {
		t.Run(name, func(t *testing.T) {
			in, err := provenance.Load([]byte(data))
			if err != nil {
				t.Fatal(err)
			}
			if in.TaskRun == nil || in.TaskRun.Name != "a" || in.TaskRun.APIVersion != "tekton.dev/v1" {
				t.Errorf("read %+v", in.TaskRun)
			}
		})
	}
}

func TestLoadRefusals(t *testing.T) {
	big := append([]byte(aTaskRun), bytes.Repeat([]byte("#"), provenance.MaxObject)...)
	tests := []struct {
		name     string
		run      string
		children []string
		want     string
	}{
		{"empty", " \n", nil, "empty"},
		{"only comments", "# nothing\n---\n", nil, "empty"},
		{"not yaml", "a: [", nil, "parsing YAML"},
		{"a list of words", "- a\n", nil, "no object"},
		{"a word", "a\n", nil, "no object"},
		{"a list in a list", "[[{}]]", nil, "no object"},
		{"other kind", "apiVersion: tekton.dev/v1\nkind: CustomRun\n", nil, `"CustomRun"`},
		{"other version", "apiVersion: tekton.dev/v2\nkind: TaskRun\n", nil, "accepted are"},
		{"no version", "kind: TaskRun\n", nil, "accepted are"},
		{"two documents", aTaskRun + "---\n" + aTaskRun, nil, "more than one"},
		{"three documents", "---\n" + aTaskRun + "---\n" + aTaskRun + "---\n", nil, "more than one"},
		{"trailing JSON", `{"apiVersion":"tekton.dev/v1","kind":"TaskRun"} {}`, nil, "more than one"},
		{"trailing garbage", `{"apiVersion":"tekton.dev/v1","kind":"TaskRun"} x`, nil, "parsing"},
		{"duplicate field, JSON", `{"apiVersion":"tekton.dev/v1","kind":"TaskRun","spec":{"timeout":"1h","timeou\u0074":"2h"}}`, nil, "twice"},
		{"duplicate field, YAML", aTaskRun + "kind: TaskRun\n", nil, "already set"},
		{"wrong type", aTaskRun + "spec: {retries: many}\n", nil, "parsing object"},
		{"child of a TaskRun", aTaskRun, []string{aTaskRun}, "only PipelineRuns"},
		{"PipelineRun as child", aPipelineRun, []string{aPipelineRun}, "child 0"},
		{"bad child", aPipelineRun, []string{aTaskRun, "{"}, "child 1"},
		{"same child twice", aPipelineRun + "status: {childReferences: [{name: a}]}\n", []string{aTaskRun, aTaskRun}, "two TaskRuns"},
		{"too large", string(big), nil, "bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var children [][]byte
			for _, c := range tt.children {
				children = append(children, []byte(c))
			}
			_, err := provenance.Load([]byte(tt.run), children...)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one about %q", err, tt.want)
			}
		})
	}
}

// FuzzStatement feeds strangers' bytes through everything: whatever loads must
// either be stated as valid JSON, the same bytes twice, or refused.
func FuzzStatement(f *testing.F) {
	files, err := filepath.Glob("testdata/golden/*/*.yaml")
	if err != nil {
		f.Fatal(err)
	}
	seeds := [][2][]byte{{[]byte(aTaskRun), nil}, {[]byte(aPipelineRun), []byte(aTaskRun)}}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		child, err := os.ReadFile(filepath.Join("testdata/golden/pipelinerun-deep/child-3.yaml"))
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, [2][]byte{data, nil}, [2][]byte{data, child})
	}
	for _, s := range seeds {
		f.Add(s[0], s[1])
		f.Add(bytes.ReplaceAll(s[0], []byte("dev/v1"), []byte("dev/v1beta1")), s[1])
	}
	cfgs := []provenance.Config{
		config(f),
		config(f, "artifacts.pipelinerun.enable-deep-inspection", "true", "builddefinition.buildtype", string(provenance.BuildTypeTekton)),
	}
	f.Fuzz(func(t *testing.T, run, child []byte) {
		if len(run)+len(child) > 64<<10 {
			t.Skip("larger than a mutation needs to be")
		}
		var children [][]byte
		if len(child) > 0 {
			children = append(children, child)
		}
		in, err := provenance.Load(run, children...)
		if err != nil {
			return
		}
		for _, cfg := range cfgs {
			for _, format := range formats {
				data, err := provenance.Statement(in, cfg, format, provenance.Options{})
				if err != nil {
					continue
				}
				if !json.Valid(data) {
					t.Fatalf("%s: invalid JSON: %s", format, data)
				}
				if again, _ := provenance.Statement(in, cfg, format, provenance.Options{}); !bytes.Equal(data, again) {
					t.Fatalf("%s: two statements of one input differ", format)
				}
			}
		}
		if in.TaskRun != nil {
			if _, err := provenance.SimpleSigning(in, provenance.Options{}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestV1beta1 is the same run in both versions: the statement must not tell.
func TestV1beta1(t *testing.T) {
	spec := "spec: {params: [{name: a, value: b}]}\n"
	oldRun := strings.Replace(aTaskRun, "/v1", "/v1beta1", 1) + spec + "status: {taskResults: [{name: r, value: v}]}\n"
	newRun := aTaskRun + spec + "status: {results: [{name: r, value: v}]}\n"
	var got [2][]byte
	for i, data := range []string{oldRun, newRun} {
		in, err := provenance.Load([]byte(data))
		if err != nil {
			t.Fatal(err)
		}
		if got[i], err = provenance.Statement(in, config(t), provenance.SLSAv2alpha4, provenance.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(got[1]), string(got[0])); diff != "" {
		t.Errorf("v1beta1 is stated differently (-v1 +v1beta1):\n%s", diff)
	}
}
