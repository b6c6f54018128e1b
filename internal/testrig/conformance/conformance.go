// Package conformance finds the conformance data that lies beside the repository
// and not in it.
package conformance

import (
	"os"
	"path/filepath"
	"testing"
)

// Dir is a folder of the data, such as Dir(t, "chains"). It skips the test where
// the data is absent, and fails it outside a module.
func Dir(t testing.TB, parts ...string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the package")
		}
		dir = filepath.Dir(dir)
	}
	part := filepath.Join(append([]string{"..", "shared", "conformance"}, parts...)...)
	root := filepath.Join(dir, part)
	if _, err := os.Stat(root); err != nil {
		t.Skipf("conformance data is not at %s beside the repository: %v", part, err)
	}
	return root
}
