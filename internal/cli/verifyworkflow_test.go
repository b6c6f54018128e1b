package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/verify"
)

// TestReadWorkflows reads a workflow of a repository that git made, at the commit that
// a certificate names, and prints what it says as inferred.
func TestReadWorkflows(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed; its package is called git")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, ".github", "workflows", "build.yml")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("jobs:\n  build:\n    steps:\n    - uses: actions/checkout@v4\n    - run: make\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	git := func(args ...string) string {
		c := exec.CommandContext(t.Context(), "git", append([]string{"-C", dir, "-c", "user.name=a", "-c", "user.email=a@x"}, args...)...)
		c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", "-b", "main")
	git("add", ".")
	git("commit", "-q", "-m", "one")
	commit := git("rev-parse", "HEAD")
	cert := &verify.Certificate{
		Issuer: verify.GitHubIssuer, BuildSignerURI: "https://github.com/o/n/.github/workflows/build.yml@refs/heads/main", BuildSignerDigest: commit,
	}
	var out, errout bytes.Buffer
	a := &app{out: &out, err: &errout}
	r, err := a.readWorkflows(t.Context(), cert, []string{dir})
	if err != nil {
		t.Fatal(err)
	}
	a.printUnsaid(statementJSON{Inferred: r, Unsaid: []verify.Omission{{Code: verify.UnsaidSteps}}})
	want := `    not said   steps (assay trace explains)
    inferred, not attested, from .github/workflows/build.yml at ` + commit[:12] + `: 1 uses, 1 not pinned by digest, 1 scripts
      NOT PINNED action actions/checkout@v4 (build.yml, job build, step 1)
`
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", out.String(), want)
	}
	cert.BuildSignerDigest = strings.Repeat("a", 40)
	if _, err := a.readWorkflows(t.Context(), cert, []string{dir}); err == nil || !strings.Contains(errout.String(), "in none of the repositories given") {
		t.Errorf("another commit: %v, %s", err, errout.String())
	}
	if r, err := a.readWorkflows(t.Context(), cert, nil); r != nil || err != nil {
		t.Errorf("nothing asked: %v %v", r, err)
	}
	if _, err := a.readWorkflows(t.Context(), nil, []string{dir}); err == nil {
		t.Error("a bare key: no error")
	}
}
