package ec_test

import (
	"errors"
	"os/exec"
	"path/filepath"
	"testing"
)

// build builds the program. What OPA keeps for all of a process, and what it
// prints past the writers it is given, is tested in a process of its own.
func build(t testing.TB) func(t testing.TB, dir string, args ...string) (stdout string, code int) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "ec")
	if out, err := exec.Command("go", "build", "-o", bin, "assay.dev/assay/cmd/ec").CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	return func(t testing.TB, dir string, args ...string) (string, int) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), bin, args...)
		cmd.Dir = dir
		out, err := cmd.Output()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return string(out), exit.ExitCode()
		}
		if err != nil {
			t.Fatal(err)
		}
		return string(out), 0
	}
}
