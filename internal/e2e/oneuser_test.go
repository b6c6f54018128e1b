package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/testrig"
)

// Where one user is all there is, as without root or as root of a container
// that maps no others, runs go on and every record says so.
func TestOneUser(t *testing.T) {
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("needs unshare of util-linux, which every Debian has")
	}
	bin := testrig.Binaries(t)
	home := filepath.Join(t.TempDir(), "home")
	assay := func(args ...string) string {
		c := exec.Command(unshare, append([]string{"--user", "--map-root-user", filepath.Join(bin, "assay")}, args...)...)
		c.Env = append(os.Environ(), "ASSAY_HOME="+home)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("assay %s: %v\n%s", args[0], err, out)
		}
		return string(out)
	}
	assay("catalog", "push")
	out := assay("run", "-f", filepath.Join(testrig.Root(), "examples/run/hello.yaml"))
	for _, want := range []string{"key separation: none", "hello, world", "succeeded"} {
		if !strings.Contains(out, want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
}
