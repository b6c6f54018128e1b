package pipeline_test

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"assay.dev/assay/internal/testrig/conformance"
	"assay.dev/assay/pipeline"
)

const runID = "6f1c7a52-6a0e-4a53-9a38-0a1f3c7d9e11"

// tektonDir is the source of the Tekton module that we build with.
func tektonDir(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/tektoncd/pipeline").Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Skip("the source of github.com/tektoncd/pipeline is not in the module cache; go mod download gets it")
	}
	return dir
}

// examples lists Tekton's examples as the shared index does.
func examples(t testing.TB) []string {
	f, err := os.Open(filepath.Join(conformance.Dir(t, "tekton-examples"), "index.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if file, _, _ := strings.Cut(lines.Text(), "\t"); strings.HasSuffix(file, ".yaml") {
			out = append(out, file)
		}
	}
	if len(out) < 100 {
		t.Fatalf("the index names only %d examples", len(out))
	}
	return out
}

// Every example of Tekton's resolves or is refused as an input error that names
// what is not supported. The list of refusals is a golden file: a change of it
// is a change of what we run.
func TestTektonExamples(t *testing.T) {
	dir := filepath.Join(tektonDir(t), "examples")
	var lines []string
	for _, file := range examples(t) {
		objects, err := pipeline.Load(filepath.Join(dir, file))
		var runs []string
		if err == nil {
			runs = objects.Runs()
		}
		for _, run := range runs {
			_, e := pipeline.Resolve(context.Background(), objects, pipeline.Options{RunID: runID, Run: run})
			if e != nil {
				err = e
			}
		}
		if err == nil {
			lines = append(lines, file+"\tresolves")
			continue
		}
		var in *pipeline.InputError
		if !errors.As(err, &in) {
			t.Errorf("%s: %v is no InputError", file, err)
			continue
		}
		if in.Origin.File != filepath.Join(dir, file) {
			t.Errorf("%s: the error does not name the file: %v", file, err)
		}
		lines = append(lines, file+"\t"+strings.ReplaceAll(in.Path+": "+in.Problem, dir, ""))
	}
	slices.Sort(lines)
	golden(t, "testdata/examples.txt", []byte(strings.Join(lines, "\n")+"\n"))
}
