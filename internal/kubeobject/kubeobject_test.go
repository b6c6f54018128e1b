// The tests ask a real kube-apiserver by the real assayd. They run with ASSAY_SLOW=1.
package kubeobject_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/internal/kubeobject"
	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/internal/testrig/kubetest"
)

const objects = `apiVersion: v1
kind: Secret
metadata: {name: keys, namespace: default}
stringData: {cosign.pub: a key}
`

func TestGet(t *testing.T) {
	c := kubetest.Start(t)
	c.Define(t, "snapshots", "Snapshot")
	c.Apply(t, objects)
	ns := c.Namespace(t)
	c.Apply(t, `apiVersion: appstudio.redhat.com/v1alpha1
kind: Snapshot
metadata: {name: snap, namespace: `+ns+`}
spec: {application: app, number: 9007199254740993}
`)
	client := kubeobject.Client{Kubeconfig: c.Kubeconfig, Program: filepath.Join(testrig.Binaries(t), "assayd")}
	get := func(resource, ref string) (map[string]any, error) {
		raw, err := client.Get(t.Context(), resource, ref)
		if err != nil {
			return nil, err
		}
		var o struct {
			Kind string         `json:"kind"`
			Spec map[string]any `json:"spec"`
			Data map[string]any `json:"data"`
		}
		d := json.NewDecoder(strings.NewReader(string(raw)))
		d.UseNumber()
		if err := d.Decode(&o); err != nil {
			t.Fatal(err)
		}
		return map[string]any{"kind": o.Kind, "spec": o.Spec, "data": o.Data}, nil
	}
	spec := map[string]any{"application": "app", "number": json.Number("9007199254740993")}
	snapshot := map[string]any{"kind": "Snapshot", "spec": spec, "data": map[string]any(nil)}
	for _, resource := range []string{"snapshots.appstudio.redhat.com", "snapshots", "snapshot", "snapshots.v1alpha1.appstudio.redhat.com"} {
		got, err := get(resource, ns+"/snap")
		if err != nil {
			t.Fatalf("%s: %v", resource, err)
		}
		if diff := cmp.Diff(snapshot, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", resource, diff)
		}
	}
	got, err := get("secrets", "keys") // the context's namespace is default
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]any{"cosign.pub": "YSBrZXk="}, got["data"]); diff != "" {
		t.Error(diff)
	}

	// A user without rights.
	c.Kubectl(t, "-n", ns, "create", "serviceaccount", "nobody")
	admin := c.RESTConfig()
	token := strings.TrimSpace(c.Kubectl(t, "-n", ns, "create", "token", "nobody"))
	for _, tc := range []struct {
		name, resource, ref string
		change              func() kubeobject.Client
		is                  error
		says                string
	}{
		{"no such object", "secrets", ns + "/none", nil, kubeobject.ErrNotFound, `"none" not found`},
		{"no such resource", "gadgets.example.com", "x", nil, kubeobject.ErrNotFound, "CustomResourceDefinition"},
		{"no name", "secrets", ns + "/", nil, nil, "want NAME or NAMESPACE/NAME"},
		{"two slashes", "secrets", "a/b/c", nil, nil, "want NAME or NAMESPACE/NAME"},
		{"a flag for a name", "secrets", "--help", nil, kubeobject.ErrNotFound, "not found"},
		{"no kubeconfig", "secrets", "keys", func() kubeobject.Client {
			return kubeobject.Client{Kubeconfig: "/none", Program: client.Program}
		}, nil, "finding the cluster"},
		{"no cluster", "secrets", "keys", func() kubeobject.Client {
			return kubeobject.Client{Kubeconfig: kubeconfig(t, "https://127.0.0.1:1", "x", ""), Program: client.Program}
		}, nil, "does not answer"},
		{"no right", "secrets", "default/keys", func() kubeobject.Client {
			return kubeobject.Client{Kubeconfig: kubeconfig(t, admin.Host, token, base64.StdEncoding.EncodeToString(admin.CAData)), Program: client.Program}
		}, kubeobject.ErrForbidden, "grant it the verb get"},
		{"no assayd", "secrets", "keys", func() kubeobject.Client { return kubeobject.Client{} }, nil, "make build"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := client
			if tc.change != nil {
				c = tc.change()
			}
			_, err := c.Get(t.Context(), tc.resource, tc.ref)
			if err == nil || !strings.Contains(err.Error(), tc.says) || tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v; want %q", err, tc.says)
			}
			t.Log(err)
		})
	}
}

// kubeconfig writes a file for a server and a token.
func kubeconfig(t *testing.T, server, token, ca string) string {
	t.Helper()
	cluster := map[string]any{"server": server}
	if ca != "" {
		cluster["certificate-authority-data"] = ca
	}
	b, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "c",
		"clusters": []any{map[string]any{"name": "c", "cluster": cluster}},
		"users":    []any{map[string]any{"name": "u", "user": map[string]any{"token": token}}},
		"contexts": []any{map[string]any{"name": "c", "context": map[string]any{"cluster": "c", "user": "u"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	f := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(f, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}
