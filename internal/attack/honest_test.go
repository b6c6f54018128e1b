package attack_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/ledger"
)

// TestHonest: what refuses liars must not refuse honest runs, however much of
// Tekton they use: results of every type in parameters, arrays, scripts and
// results of the pipeline, matrix with include, when, onError, finally, labels
// and annotations from everywhere, tasks from a bundle and written in.
func TestHonest(t *testing.T) {
	r := newRig(t)
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		must(t, err)
		return string(b)
	}
	file := r.Write("task.yaml", strings.ReplaceAll(read("honest-task.yaml"), "assay.dev/image/task", r.Catalog.Images["task"]))
	ref, errout, code := r.Run("bundle", "push", "localhost:5055/catalog/lab:1", file)
	if code != 0 {
		t.Fatal(errout)
	}
	for _, name := range []string{"honest-taskrun.yaml", "honest-pipelinerun.yaml"} {
		o := r.object(t, asYAML(strings.ReplaceAll(read(name), "BUNDLE", strings.TrimSpace(ref))))
		o.ended(ledger.Succeeded)
		if o.Code != 0 || o.Stated == nil {
			t.Errorf("%s: exit %d\n%s", name, o.Code, o.Stderr)
		}
	}
	r.clean(t)
}
