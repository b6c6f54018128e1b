package provenancetest_test

import (
	"encoding/json"
	"testing"

	"assay.dev/assay/hint"
	"assay.dev/assay/provenance/provenancetest"
)

// TestShape: the numbers in the benchmark's name are those of the run.
func TestShape(t *testing.T) {
	for _, tt := range []struct {
		name     string
		script   int
		min, max int // bytes of the average TaskRun
	}{
		{"small", provenancetest.SmallScript, 5000, 6500},
		{"real", provenancetest.RealScript, 21000, 25000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pr, trs := provenancetest.PipelineRun("team-a", "build-1", tt.script)
			steps, bytes := 0, 0
			images := map[string]bool{}
			for _, tr := range trs {
				data, err := json.Marshal(tr)
				if err != nil {
					t.Fatal(err)
				}
				bytes += len(data)
				steps += len(tr.Status.Steps)
				for _, c := range hint.OfTaskRun(tr).Images {
					images[c.Value()] = true
				}
			}
			if len(trs) != 20 || steps != 59 || len(images) != 6 || len(pr.Status.ChildReferences) != 20 {
				t.Errorf("%d TaskRuns, %d steps, %d images, %d references; want 20, 59, 6, 20", len(trs), steps, len(images), len(pr.Status.ChildReferences))
			}
			if mean := bytes / len(trs); mean < tt.min || mean > tt.max {
				t.Errorf("a TaskRun has %d bytes on average, want %d to %d", mean, tt.min, tt.max)
			}
			if _, malformed := hint.All(pr, trs...); len(malformed) > 0 {
				t.Errorf("malformed hints: %v", malformed)
			}
		})
	}
}
