package provenance_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/provenance"
)

var update = flag.Bool("update", false, "write golden files anew")

// TestGolden keeps the bytes of every format. The files are indented for the
// reviewer's sake only; order and values are as written.
func TestGolden(t *testing.T) {
	dirs, err := filepath.Glob("testdata/golden/*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no golden cases (%v)", err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			in, cfg := loadGolden(t, dir)
			for _, format := range formats[1:] {
				got, err := provenance.Statement(in, cfg, format, provenance.Options{})
				if err != nil {
					t.Fatal(err)
				}
				golden(t, filepath.Join(dir, strings.ReplaceAll(string(format), "/", "-")+".json"), got)
			}
			images, err := provenance.SimpleSigning(in, provenance.Options{})
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.Marshal(images)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join(dir, "simplesigning.json"), got)
		})
	}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	var indented bytes.Buffer
	if err := json.Indent(&indented, got, "", "  "); err != nil {
		t.Fatalf("%s: invalid JSON: %v", file, err)
	}
	indented.WriteByte('\n')
	if *update {
		if err := os.WriteFile(file, indented.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), indented.String()); diff != "" {
		t.Errorf("%s (-want +got; go test -update writes it anew):\n%s", file, diff)
	}
}

func loadGolden(t testing.TB, dir string) (provenance.Input, provenance.Config) {
	t.Helper()
	run, err := os.ReadFile(filepath.Join(dir, "run.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "child-*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var children [][]byte
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		children = append(children, data)
	}
	in, err := provenance.Load(run, children...)
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
