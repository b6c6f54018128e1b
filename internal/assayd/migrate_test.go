package assayd_test

import (
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
)

// TestMigration walks through docs/migrate-from-chains.md with a key that cosign
// made in the cluster: doctor, change over, see that it works.
func TestMigration(t *testing.T) {
	t.Parallel()
	cosign := os.Getenv("ASSAY_COSIGN")
	if cosign == "" {
		t.Skip(`needs cosign: eval "$(tools/peers cosign)"`)
	}
	r := rigOn(t, kubetest.StartOwn(t))
	r.ns = "tekton-chains"
	r.c.Kubectl(t, "create", "namespace", r.ns)

	// The doctor's three answers, by the command that people call.
	out, stderr, code := r.tool("assay", "doctor", "chains")
	if code != 1 || !strings.Contains(out, "generate-key-pair k8s://tekton-chains/signing-secrets") || !strings.Contains(stderr, "not ready to change over") {
		t.Errorf("without a key: exit %d\n%s%s", code, out, stderr)
	}
	if _, stderr, code := r.tool("assay", "doctor", "chains", "--output", "yaml"); code != 2 {
		t.Errorf("wrong usage: exit %d\n%s", code, stderr)
	}
	if _, stderr, code := r.tool("assay", "doctor", "tekton"); code != 2 {
		t.Errorf("an unknown subject: exit %d\n%s", code, stderr)
	}
	made := func(args ...string) string {
		t.Helper()
		c := exec.CommandContext(t.Context(), cosign, args...)
		c.Dir = r.dir
		c.Env = append(os.Environ(), "KUBECONFIG="+r.c.Kubeconfig, "COSIGN_PASSWORD=s3cret", "HOME="+r.dir)
		b, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("cosign %s: %v\n%s", strings.Join(args, " "), err, b)
		}
		return string(b)
	}
	made("generate-key-pair", "k8s://tekton-chains/signing-secrets")
	r.settings(konflux())
	r.c.Kubectl(t, "apply", "--server-side", "-f", filepath.Join("..", "..", "deploy", "observer.yaml"))
	if out, stderr, code := r.tool("assay", "doctor", "chains", "-o", "json"); code != 0 || !strings.HasPrefix(out, "{") {
		t.Errorf("after the change-over: exit %d\n%s%s", code, out, stderr)
	}

	// What the Secret's volume holds.
	if err := os.Remove(filepath.Join(r.secrets, "x509.pem")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"cosign.key", "cosign.password"} {
		b, err := base64.StdEncoding.DecodeString(r.c.Kubectl(t, "-n", r.ns, "get", "secret", "signing-secrets", "-o", `jsonpath={.data.`+strings.Replace(name, ".", `\.`, 1)+`}`))
		if err != nil {
			t.Fatal(err)
		}
		r.replace(filepath.Join(r.secrets, name), b)
	}
	r.observe()
	run := r.generate(1)[0]
	r.load(run)
	r.signed(watchtest.PipelineRuns, run.PipelineRun.Name)

	image := images(run)[4]
	lines := block(t, "migrate-from-chains.md", "3. See that it works")
	if len(lines) != 3 {
		t.Fatalf("the document has other commands than are tried here: %q", lines)
	}
	line := func(i int, from, to string) []string {
		t.Helper()
		if !strings.Contains(lines[i], from) {
			t.Fatalf("line %d is %q", i, lines[i])
		}
		text, _, _ := strings.Cut(strings.Replace(lines[i], from, to, 1), "#")
		return strings.Fields(strings.ReplaceAll(text, "'", ""))[1:]
	}
	if got := r.c.Kubectl(t, append([]string{"-n", r.ns}, line(0, "NAME", run.PipelineRun.Name)...)...); got != "true" {
		t.Errorf("kubectl prints %q", got)
	}
	made(append(line(1, "IMAGE", image), "--allow-insecure-registry=true")...)
	r.must("assay", line(2, "IMAGE", image)...)
}
