package ec_test

// The cluster is a real kube-apiserver, asked by the real assayd; ec is the real
// program. The test runs with ASSAY_SLOW=1.

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/store/storetest"
)

// TestCluster: a Snapshot and a key that are objects of a cluster.
func TestCluster(t *testing.T) {
	c := kubetest.Start(t)
	c.Define(t, "snapshots", "Snapshot")
	ns, key := c.Namespace(t), storetest.NewKey(t)
	s := newShelf(t)
	s.signTag(nil, how{key: key})
	s.attestTag(nil, how{key: key})
	pem := strings.ReplaceAll(strings.TrimSpace(string(key.PublicPEM())), "\n", "\n    ")
	c.Apply(t, fmt.Sprintf(`apiVersion: appstudio.redhat.com/v1alpha1
kind: Snapshot
metadata: {name: snap, namespace: %[1]s}
spec: {application: app, components: [{name: one, containerImage: %[2]q}]}
---
apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: %[1]s}
stringData:
  cosign.pub: |
    %[3]s
`, ns, s.tag.Name(), pem))
	program, dir := filepath.Join(testrig.Binaries(t), "ec"), t.TempDir()
	write(t, dir, "rules/main.rego", oneRule)
	for name, tt := range map[string]struct {
		snapshot, key string
		want          string // in the output; with ok an exit of 0
		ok            bool
	}{
		"both":        {ns + "/snap", "k8s://" + ns + "/keys", `"name":"one"`, true},
		"no Snapshot": {ns + "/none", "k8s://" + ns + "/keys", `reading --snapshot ` + ns + `/none`, false},
		"no Secret":   {ns + "/snap", "k8s://" + ns + "/none", "k8s://" + ns + "/none", false},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), program, "validate", "image", "--kubeconfig", c.Kubeconfig, "--snapshot", tt.snapshot, "-k", tt.key, "--ignore-rekor", "-p", onePolicy, "--output", "json")
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			if (err == nil) != tt.ok || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v: %s; want %q", err, out, tt.want)
			}
		})
	}
}
