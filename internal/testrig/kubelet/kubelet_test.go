// Tests of the kubelet with the real parts: API server and etcd, Tekton's
// controller and entrypoint, runc, a registry on loopback; nothing is faked. They
// need root and skip without it; see Start.
package kubelet_test

import (
	"testing"

	"assay.dev/assay/internal/testrig/kubelet"
	"assay.dev/assay/internal/testrig/kubetest"
)

// Two tasks through real Tekton: the second uses a result of the first, the first
// says that it made an image.
func TestPipelineRun(t *testing.T) {
	c := kubetest.Start(t)
	k := kubelet.Start(t, c)
	k.StartTekton(t)
	ns := c.Namespace(t)
	url, digest := k.Push(t, "made", map[string]string{"/hello": "hello"})
	c.Apply(t, `
apiVersion: tekton.dev/v1
kind: PipelineRun
metadata: {name: two, namespace: `+ns+`}
spec:
  pipelineSpec:
    results:
    - {name: IMAGE_URL, value: $(tasks.build.results.IMAGE_URL)}
    - {name: echoed, value: $(tasks.echo.results.echoed)}
    tasks:
    - name: build
      taskSpec:
        results: [{name: IMAGE_URL}, {name: IMAGE_DIGEST}]
        steps:
        - name: look
          image: `+k.Shell+`
          env: [{name: GREETING, value: "hi from $(context.taskRun.name)"}]
          script: |
            #!/bin/sh
            set -e
            echo "$GREETING"
            wget -q -O /dev/null http://`+k.Registry+`/v2/
            echo shared > /workspace/file
        - name: tell
          image: `+k.Shell+`
          script: |
            #!/bin/sh
            set -e
            printf '`+url+`' > $(results.IMAGE_URL.path)
            printf '`+digest+`' > $(results.IMAGE_DIGEST.path)
    - name: echo
      params: [{name: of, value: $(tasks.build.results.IMAGE_DIGEST)}]
      taskSpec:
        params: [{name: of}]
        results: [{name: echoed}]
        steps:
        - name: echo
          image: `+k.Shell+`
          command: [sh, -c, 'printf %s "$0" > $(results.echoed.path)', $(params.of)]
          securityContext: {runAsUser: 65532}
`)
	run := c.Finished(t, kubetest.PipelineRuns, ns, "two")
	if status, reason, message := kubetest.Succeeded(run); status != "True" {
		t.Fatalf("%s: %s\n%s", reason, message, c.Kubectl(t, "-n", ns, "get", "taskruns,pods", "-o", "yaml"))
	}
	got := map[string]any{}
	for _, r := range kubetest.Results(run) {
		got[r.Name] = r.Value
	}
	if got["IMAGE_URL"] != url || got["echoed"] != digest {
		t.Errorf("results are %v", got)
	}
}
