package doctor_test

import (
	"fmt"
	"strings"
	"testing"

	"assay.dev/assay/internal/doctor"
	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
)

// TestRightsByRole asks a real API server with RBAC about an observer whose rights
// are granted namespace by namespace.
func TestRightsByRole(t *testing.T) {
	c := kubetest.StartOwn(t)
	c.ApplyTektonCRDs(t)
	system, watched, other := c.Namespace(t), c.Namespace(t), c.Namespace(t)
	account := "system:serviceaccount:" + system + ":assay-observer"
	grant := func(namespace, rules string) {
		c.Apply(t, fmt.Sprintf(`apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: assay-observer, namespace: %[1]s}
rules:
%[2]s
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: assay-observer, namespace: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: assay-observer}
subjects: [{kind: ServiceAccount, name: assay-observer, namespace: %[3]s}]
`, namespace, rules, system))
	}
	grant(system, `- {apiGroups: [""], resources: [configmaps], resourceNames: [chains-config], verbs: [get, list, watch, patch]}
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, list, create, update, delete]}
- {apiGroups: [apps], resources: [deployments], resourceNames: [tekton-chains-controller], verbs: [get]}`)
	grant(watched, `- {apiGroups: [tekton.dev], resources: [taskruns, pipelineruns], verbs: [get, list, watch, patch]}
- {apiGroups: [""], resources: [events], verbs: [create]}
- {apiGroups: [""], resources: [serviceaccounts, secrets], verbs: [get]}`)
	for _, ns := range []string{watched, other} {
		if err := watchtest.Load(t.Context(), c.Dynamic, watchtest.Generate(1, watchtest.Options{Namespace: ns, TaskRunBytes: 6000})); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name    string
		as      string // empty: an administrator
		o       doctor.Options
		verdict doctor.Verdict
		says    []string
		not     string
	}{
		{name: "nobody says which namespaces", verdict: doctor.Apply,
			says: []string{"has its rights by Roles, in " + watched + " only", "--namespace=" + watched}, not: other},
		{name: "the namespace that is granted", o: doctor.Options{Namespaces: []string{watched}}, verdict: doctor.Same,
			says: []string{"has all 16 rights it needs in the namespaces that it watches, " + watched}},
		{name: "one more", o: doctor.Options{Namespaces: []string{watched, other}}, verdict: doctor.Apply,
			says: []string{"patch taskruns.tekton.dev in namespace " + other, "create events in namespace " + other}, not: "in namespace " + watched},
		{name: "the account asks about itself", as: account, o: doctor.Options{Namespaces: []string{watched}}, verdict: doctor.Same,
			says: []string{"has all 16 rights"}},
		{name: "somebody who may not ask", as: "somebody", o: doctor.Options{Namespaces: []string{watched}}, verdict: doctor.Unknown,
			says: []string{"run this as " + account}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			config := c.RESTConfig()
			if tc.as != "" {
				config.Impersonate.UserName = tc.as
				config.Impersonate.Groups = []string{"system:authenticated", "system:serviceaccounts", "system:serviceaccounts:" + system}
			}
			tc.o.Namespace = system
			w, err := doctor.Read(t.Context(), config, tc.o)
			if err != nil {
				t.Fatal(err)
			}
			var rights []doctor.Item
			for _, i := range doctor.Diagnose(w).Items {
				if i.Topic == "Rights" {
					rights = append(rights, i)
				}
			}
			if len(rights) != 1 || rights[0].Verdict != tc.verdict {
				t.Fatalf("%+v; want one, %s", rights, tc.verdict)
			}
			text := rights[0].What + " → " + rights[0].Remedy
			for _, says := range tc.says {
				if !strings.Contains(text, says) {
					t.Errorf("%s; want %q", text, says)
				}
			}
			if tc.not != "" && strings.Contains(text, tc.not) {
				t.Errorf("%s; it does not concern %q", text, tc.not)
			}
		})
	}
}
