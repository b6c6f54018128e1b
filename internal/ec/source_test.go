package ec_test

import (
	"encoding/pem"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"
	"github.com/rogpeppe/go-internal/testscript"

	"assay.dev/assay/internal/ec"
	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/policy/source/fetch"
)

// withScripts runs the tests, and lets scripts run this binary as ec, in a process of its
// own: what a process believes of certificates is read once.
func withScripts(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"ec": func() { os.Exit(ec.Main(os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// TestSources runs testdata/source/*.txtar against real servers: git's http-backend
// over TLS with a certificate of its own (SSL_CERT_FILE), a registry (olareg), and
// files over https.
//
// Commands: `repository NAME FOLDER` makes $GIT/NAME.git and keeps the commit in
// $COMMIT; `vendor POLICY FOLDER [ADDRESS]` vendors as `assay policy vendor` does, and
// pushes; `network on|off`.
func TestSources(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "source"),
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			root := filepath.Join(env.WorkDir, ".git-root")
			if err := os.Mkdir(root, 0o755); err != nil {
				return err
			}
			backend, err := testrig.GitHandler(t.Context(), root)
			if err != nil {
				return err
			}
			yes := true
			registry := olareg.New(config.Config{
				Storage: config.ConfigStorage{StoreType: config.StoreMem},
				API:     config.ConfigAPI{PushEnabled: &yes},
				Log:     slog.New(slog.DiscardHandler),
			})
			off := new(atomic.Bool)
			gate := func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if off.Load() {
						panic(http.ErrAbortHandler)
					}
					h.ServeHTTP(w, r)
				})
			}
			mux := http.NewServeMux()
			mux.Handle("/files/", http.StripPrefix("/files/", http.FileServer(http.Dir(env.WorkDir))))
			mux.Handle("/", backend)
			tls := httptest.NewUnstartedServer(gate(mux))
			tls.Config.ErrorLog = log.New(io.Discard, "", 0)
			tls.StartTLS()
			plain := httptest.NewServer(gate(registry))
			env.Defer(func() { tls.Close(); plain.Close() })
			ca := filepath.Join(env.WorkDir, ".ca.pem")
			if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tls.Certificate().Raw}), 0o644); err != nil {
				return err
			}
			env.Setenv("SSL_CERT_FILE", ca)
			env.Setenv("GIT", strings.TrimPrefix(tls.URL, "https://"))
			env.Setenv("REGISTRY", strings.TrimPrefix(plain.URL, "http://"))
			env.Setenv("HOME", filepath.Join(env.WorkDir, ".home"))
			env.Setenv("XDG_CACHE_HOME", filepath.Join(env.WorkDir, ".cache"))
			env.Values["root"], env.Values["off"], env.Values["client"] = root, off, tls.Client().Transport
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"repository": func(ts *testscript.TestScript, _ bool, args []string) {
				commit, err := testrig.GitRepository(t.Context(), ts.Value("root").(string), args[0], ts.MkAbs(args[1]))
				ts.Check(err)
				ts.Setenv("COMMIT", commit)
			},
			"network": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Value("off").(*atomic.Bool).Store(args[0] == "off")
			},
			"vendor": func(ts *testscript.TestScript, _ bool, args []string) {
				f, err := fetch.New(fetch.Options{Cache: ts.MkAbs(".vendor-cache"), Transport: ts.Value("client").(http.RoundTripper)})
				ts.Check(err)
				_, err = fetch.Vendor(t.Context(), f, ts.MkAbs(args[0]), ts.MkAbs(args[1]), fetch.VendorOptions{})
				ts.Check(err)
				if len(args) > 2 {
					pinned, err := fetch.Push(t.Context(), ts.MkAbs(args[1]), args[2], fetch.Options{})
					ts.Check(err)
					ts.Setenv("PINNED", pinned)
				}
			},
			// subst replaces $NAMES in files.
			"subst": func(ts *testscript.TestScript, _ bool, args []string) {
				for _, name := range args {
					b := os.Expand(ts.ReadFile(name), ts.Getenv)
					ts.Check(os.WriteFile(ts.MkAbs(name), []byte(b), 0o644))
				}
			},
		},
	})
}

// TestClusterPolicy: a policy that is an object of a cluster. The cluster is a real
// kube-apiserver, asked by the real assayd. The test runs with ASSAY_SLOW=1.
func TestClusterPolicy(t *testing.T) {
	c := kubetest.Start(t)
	c.Define(t, "enterprisecontractpolicies", "EnterpriseContractPolicy")
	ns := c.Namespace(t)
	c.Apply(t, "apiVersion: appstudio.redhat.com/v1alpha1\nkind: EnterpriseContractPolicy\nmetadata: {name: mine, namespace: "+ns+"}\nspec: {name: of the cluster, sources: [{policy: [./rules]}]}\n")
	program, dir := filepath.Join(testrig.Binaries(t), "ec"), t.TempDir()
	write(t, dir, "rules/main.rego", oneRule)
	write(t, dir, "in.json", "{}")
	for ref, want := range map[string]string{ns + "/mine": `"name":"of the cluster"`, ns + "/none": "unable to fetch EnterpriseContractPolicy"} {
		cmd := exec.CommandContext(t.Context(), program, "validate", "input", "--kubeconfig", c.Kubeconfig, "-p", ref, "in.json", "--output", "json")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); !strings.Contains(string(out), want) {
			t.Errorf("%s: %v: %s; want %q", ref, err, out, want)
		}
	}
}
