package cli_test

// The cluster is a real kube-apiserver, asked by the real assayd; assay is the real
// program. The test runs with ASSAY_SLOW=1.

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/internal/testrig/kubetest"
)

// TestGateCluster: policy, Snapshot and key that are objects of a cluster.
func TestGateCluster(t *testing.T) {
	c := kubetest.Start(t)
	r := newGateRig(t)
	c.Define(t, "enterprisecontractpolicies", "EnterpriseContractPolicy")
	c.Define(t, "snapshots", "Snapshot")
	ns := c.Namespace(t)
	pem, err := os.ReadFile(r.pub)
	if err != nil {
		t.Fatal(err)
	}
	c.Apply(t, fmt.Sprintf(`apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: %[1]s}
stringData:
  cosign.pub: |
    %[2]s
---
apiVersion: appstudio.redhat.com/v1alpha1
kind: EnterpriseContractPolicy
metadata: {name: mine, namespace: %[1]s}
spec: {name: of the cluster, sources: [{policy: [%[3]q]}]}
---
apiVersion: appstudio.redhat.com/v1alpha1
kind: Snapshot
metadata: {name: good, namespace: %[1]s}
spec: {application: app, components: [{name: one, containerImage: %[4]q}]}
---
apiVersion: appstudio.redhat.com/v1alpha1
kind: Snapshot
metadata: {name: bad, namespace: %[1]s}
spec: {application: app, components: [{name: bad-one, containerImage: %[4]q}]}
`, ns, strings.ReplaceAll(strings.TrimSpace(string(pem)), "\n", "\n    "), filepath.Join(r.policy, "rules"), r.image("app/one", true).Ref()))
	program := filepath.Join(testrig.Binaries(t), "assay")
	for name, tt := range map[string]struct {
		snapshot, policy, key string
		code                  int
		want                  string
	}{
		"passes":      {ns + "/good", ns + "/mine", ns + "/keys", 0, "of the cluster"},
		"refused":     {ns + "/bad", ns + "/mine", ns + "/keys", 3, "called bad-one"},
		"no Snapshot": {ns + "/none", ns + "/mine", ns + "/keys", 1, ns + "/none"},
		"no policy":   {ns + "/good", ns + "/none", ns + "/keys", 1, ns + "/none"},
		"no Secret":   {ns + "/good", ns + "/mine", ns + "/none", 1, "k8s://" + ns + "/none"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), program, "gate", "--kubeconfig", c.Kubeconfig,
				"--snapshot", "k8s://"+tt.snapshot, "--policy", "k8s://"+tt.policy, "--key", "k8s://"+tt.key, "--retries", "0")
			out, _ := cmd.CombinedOutput() //nolint:errcheck // its exit code is looked at
			if code := cmd.ProcessState.ExitCode(); code != tt.code || !strings.Contains(string(out), tt.want) {
				t.Errorf("exit %d, want %d and %q: %s", code, tt.code, tt.want, out)
			}
		})
	}
}
