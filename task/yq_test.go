package task_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/sbom"
)

// The demo's source pins all it needs: with nothing but this machine's module
// cache as a proxy, every module is there and is the one that go.sum pins.
// Building it takes a minute and is left to `make demo`.
func TestPrefetchExampleYQ(t *testing.T) {
	cache := filepath.Join(goEnv(t, "GOMODCACHE"), "cache", "download")
	if _, err := os.Stat(filepath.Join(cache, "github.com/mikefarah/yq/v4/@v/v4.47.2.zip")); err != nil {
		t.Skip("yq's modules are not in this machine's module cache; `make demo` or `cd examples/yq && go mod download` fetches them")
	}
	source, err := filepath.Abs("../examples/yq")
	if err != nil {
		t.Fatal(err)
	}
	before := read(t, filepath.Join(source, "go.sum"))
	dir := t.TempDir()
	step := newStep(t)
	out := step.run(0, "prefetch", "--input=gomod", "--goproxy=file://"+cache, "--goroot="+goEnv(t, "GOROOT"),
		"--source="+source, "--output="+filepath.Join(dir, "out"), "--work="+filepath.Join(dir, "work"))
	if !strings.Contains(out, "github.com/mikefarah/yq/v4 v4.47.2 h1:") {
		t.Errorf("prefetch says %s", out)
	}
	if got := step.result("MODULES"); !strings.Contains(got, `"pkg:golang/github.com/mikefarah/yq/v4@v4.47.2"`) {
		t.Errorf("modules %s", got)
	}
	doc, err := sbom.ReadSPDX([]byte(read(t, filepath.Join(dir, "out", "bom.json"))))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range doc.Packages {
		if !strings.HasPrefix(p.PURL, "pkg:golang/") || len(p.Checksums) != 1 {
			t.Errorf("package %+v", p)
		}
	}
	if len(doc.Packages) < 20 {
		t.Errorf("%d packages in the bill of materials", len(doc.Packages))
	}
	if read(t, filepath.Join(source, "go.sum")) != before {
		t.Error("go.sum was changed")
	}
}
