package bundle_test

import (
	"testing"

	"assay.dev/assay/pipeline/bundle"
)

// What Parse accepts can be bundled, and parses again to the same bytes.
func FuzzParse(f *testing.F) {
	f.Add([]byte(taskYAML))
	f.Add([]byte(stepActionYAML))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := bundle.Parse(data)
		if err != nil {
			return
		}
		if _, err := bundle.Image(o); err != nil {
			t.Errorf("cannot be bundled: %v", err)
		}
		again, err := bundle.Parse(o.JSON)
		if err != nil || string(again.JSON) != string(o.JSON) {
			t.Errorf("parsed again: %v", err)
		}
	})
}
