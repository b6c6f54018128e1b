package kubeaccess_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/kubeaccess"
)

const config = `apiVersion: v1
kind: Config
current-context: a
contexts:
- {name: a, context: {cluster: one, user: u, namespace: team}}
- {name: b, context: {cluster: two, user: u}}
clusters:
- {name: one, cluster: {server: "https://one.example"}}
- {name: two, cluster: {server: "https://two.example"}}
users:
- {name: u, user: {token: t}}
`

func TestFind(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, empty, junk := write("good", config), write("empty", ""), write("junk", "{")
	for _, tc := range []struct {
		name       string
		o          kubeaccess.Options
		env        string
		pod        bool // looks like one, and has no account
		host, ns   string
		says, more string // of the error
	}{
		{name: "a flag's file", o: kubeaccess.Options{Kubeconfig: good}, host: "https://one.example", ns: "team"},
		{name: "another context", o: kubeaccess.Options{Kubeconfig: good, Context: "b"}, host: "https://two.example", ns: "default"},
		{name: "another server", o: kubeaccess.Options{Kubeconfig: good, Server: "https://x.example"}, host: "https://x.example", ns: "team"},
		{name: "KUBECONFIG", env: good, host: "https://one.example", ns: "team"},
		{name: "a server and nothing else", o: kubeaccess.Options{Server: "https://x.example"}, host: "https://x.example", ns: "default"},
		{name: "nothing anywhere", says: "KUBECONFIG is not set; ", more: "is not there; this is no Pod of a cluster. Name a kubeconfig with --kubeconfig or KUBECONFIG, or run a cluster of your own: `assayd up`"},
		{name: "a Pod without an account", pod: true, says: "the Pod's account cannot be used", more: "assayd up"},
		{name: "KUBECONFIG names nothing", env: filepath.Join(dir, "none"), says: filepath.Join(dir, "none") + " is not there", more: "assayd up"},
		{name: "an empty file", o: kubeaccess.Options{Kubeconfig: empty}, says: empty + " names no cluster", more: "assayd up"},
		{name: "a flag's file that is not there", o: kubeaccess.Options{Kubeconfig: "/nonexistent"}, says: "/nonexistent", more: "--kubeconfig"},
		{name: "no kubeconfig", o: kubeaccess.Options{Kubeconfig: junk}, says: junk, more: "--kubeconfig"},
		{name: "no such context", o: kubeaccess.Options{Kubeconfig: good, Context: "c"}, says: `context "c" does not exist`, more: "another context"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("HOME", dir)
			t.Setenv("KUBECONFIG", tc.env)
			t.Setenv("KUBERNETES_SERVICE_HOST", "")
			if tc.pod {
				t.Setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
				t.Setenv("KUBERNETES_SERVICE_PORT", "1")
			}
			c, ns, err := kubeaccess.Find(tc.o)
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), tc.more) {
					t.Fatalf("%v; want %q and %q", err, tc.says, tc.more)
				}
				return
			}
			if err != nil || c.Host != tc.host || ns != tc.ns {
				t.Errorf("%v, namespace %q, %v", c, ns, err)
			}
		})
	}
}
