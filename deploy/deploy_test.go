// Package deploy_test checks the manifests and the chart that they are rendered
// from: that they are the same, that a real API server takes them, and that the
// rights they give are those the observer needs and no others.
package deploy_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	authv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"assay.dev/assay/internal/testrig/kubetest"
)

var update = flag.Bool("update", false, "render observer.yaml anew")

// render runs helm over the chart.
func render(t *testing.T, args ...string) string {
	t.Helper()
	helm := os.Getenv("ASSAY_HELM")
	if helm == "" {
		t.Skip("ASSAY_HELM names no helm: `make test-all`, which builds it, runs this")
	}
	args = append([]string{"template", "assay-observer", "helm/assay-observer", "--kube-version", "1.30.0"}, args...)
	out, err := exec.Command(helm, args...).Output()
	if err != nil {
		var stderr []byte
		if e, ok := err.(*exec.ExitError); ok {
			stderr = e.Stderr
		}
		t.Fatalf("rendering the chart: %v\n%s", err, stderr)
	}
	return string(out)
}

// TestManifests: observer.yaml is the chart with its default values.
func TestManifests(t *testing.T) {
	got := render(t)
	if *update {
		if err := os.WriteFile("observer.yaml", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("observer.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("observer.yaml is not what the chart gives; -update renders it (-file +chart):\n%s", diff)
	}
}

// TestApply has a real API server take the manifests, as an operator would give
// them, and asks it what the observer's account may do.
func TestApply(t *testing.T) {
	c := kubetest.Start(t)
	for _, ns := range []string{"tekton-chains", "team-a", "team-b"} {
		c.Kubectl(t, "create", "namespace", ns)
	}
	apply := func(t *testing.T, manifests string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "manifests.yaml")
		if err := os.WriteFile(file, []byte(manifests), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Kubectl(t, "apply", "--server-side", "-f", file)
	}
	can := func(t *testing.T, want bool, verb, resource, sub, namespace string) {
		t.Helper()
		group, rest, name := "", resource, ""
		if r, n, ok := strings.Cut(rest, "/"); ok {
			rest, name = r, n
		}
		if r, g, ok := strings.Cut(rest, "."); ok {
			rest, group = r, g
		}
		answer, err := c.Client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authv1.SubjectAccessReview{
			Spec: authv1.SubjectAccessReviewSpec{
				User: "system:serviceaccount:tekton-chains:assay-observer",
				ResourceAttributes: &authv1.ResourceAttributes{
					Verb: verb, Group: group, Resource: rest, Subresource: sub, Name: name, Namespace: namespace,
				},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if answer.Status.Allowed != want {
			t.Errorf("may %s %s %s in %s: %t, want %t", verb, resource, sub, namespace, answer.Status.Allowed, want)
		}
	}
	manifests, err := os.ReadFile("observer.yaml")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("namespaces of the operator's choice", func(t *testing.T) {
		apply(t, render(t, "--set", "watch.namespaces={team-a}", "--set", "replicas=3", "--set", "registryCredentials.from=none"))
		can(t, true, "patch", "pipelineruns.tekton.dev", "", "team-a")
		can(t, false, "patch", "pipelineruns.tekton.dev", "", "team-b")
		can(t, false, "get", "secrets", "", "team-a")
	})
	t.Run("all namespaces", func(t *testing.T) {
		apply(t, string(manifests))
		can(t, true, "watch", "pipelineruns.tekton.dev", "", "team-b")
		can(t, true, "patch", "taskruns.tekton.dev", "", "team-b")
		can(t, true, "get", "secrets", "", "team-b")
		can(t, false, "list", "secrets", "", "team-b")
		can(t, false, "list", "secrets", "", "tekton-chains")
		can(t, false, "update", "pipelineruns.tekton.dev", "", "team-b")
		can(t, false, "patch", "pipelineruns.tekton.dev", "status", "team-b")
		can(t, false, "delete", "taskruns.tekton.dev", "", "team-b")
		can(t, false, "create", "pods", "", "tekton-chains")
		can(t, true, "update", "leases.coordination.k8s.io", "", "tekton-chains")
		can(t, false, "update", "leases.coordination.k8s.io", "", "team-b")
		can(t, true, "patch", "configmaps/chains-config", "", "tekton-chains")
		can(t, false, "patch", "configmaps/other", "", "tekton-chains")
	})
}
