package assayd_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"assay.dev/assay/internal/kube"
	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
	"assay.dev/assay/store/storetest"
)

// recorder is a proxy before the API server that notes what is asked for, and
// what is refused for want of rights.
type recorder struct {
	mu      sync.Mutex
	used    map[string]bool // verb resource[/name]
	refused []string
}

// record puts a recorder before a cluster and returns its address and, as PEM, the
// certificate to know it by.
func record(t *testing.T, c *kubetest.Cluster) (*recorder, string, []byte) {
	t.Helper()
	rec := &recorder{used: map[string]bool{}}
	at, err := url.Parse(c.RESTConfig().Host)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.RESTConfig().CAData)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	proxy := &httputil.ReverseProxy{
		FlushInterval: -1,
		Transport:     transport,
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(at) },
		ErrorLog:      log.New(io.Discard, "", 0),
		ModifyResponse: func(res *http.Response) error {
			what := asked(res.Request)
			rec.mu.Lock()
			defer rec.mu.Unlock()
			rec.used[what] = true
			if res.StatusCode == http.StatusForbidden || res.StatusCode == http.StatusUnauthorized {
				rec.refused = append(rec.refused, what)
			}
			return nil
		},
	}
	srv := httptest.NewUnstartedServer(proxy)
	srv.EnableHTTP2, srv.Config.ErrorLog = true, proxy.ErrorLog
	srv.StartTLS()
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close(); transport.CloseIdleConnections() })
	return rec, srv.URL, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
}

// asked is a request in the words of RBAC: verb group/resource/name. Names count
// only where rules name them.
func asked(r *http.Request) string {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	group := ""
	if parts[0] == "apis" {
		group, parts = parts[1], parts[1:]
	}
	parts = parts[2:]
	if len(parts) >= 2 && parts[0] == "namespaces" {
		parts = parts[2:]
	}
	name := ""
	if len(parts) > 1 {
		name = parts[1]
	}
	verb := map[string]string{"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete", "GET": "get"}[r.Method]
	q := r.URL.Query()
	if verb == "get" && name == "" {
		verb = "list"
		if q.Get("watch") != "" {
			verb = "watch"
		}
		name = strings.TrimPrefix(q.Get("fieldSelector"), "metadata.name=")
	}
	if group != "" || parts[0] != "configmaps" {
		if parts[0] != "deployments" && parts[0] != "statefulsets" {
			name = ""
		}
	}
	return strings.TrimRight(fmt.Sprintf("%s %s/%s/%s", verb, group, parts[0], name), "/")
}

// granted are the rules of manifests in the same words, and the Deployment.
func granted(t *testing.T, manifests []byte) (map[string]bool, *appsv1.Deployment) {
	t.Helper()
	objects, err := kube.ParseManifests(manifests)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	d := &appsv1.Deployment{}
	for _, o := range objects {
		var role rbacv1.ClusterRole
		switch o.GetKind() {
		case "Role", "ClusterRole":
			err = runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &role)
		case "Deployment":
			err = runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, d)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range role.Rules {
			names := rule.ResourceNames
			if len(names) == 0 {
				names = []string{""}
			}
			for _, g := range rule.APIGroups {
				for _, res := range rule.Resources {
					for _, v := range rule.Verbs {
						for _, n := range names {
							out[strings.TrimRight(fmt.Sprintf("%s %s/%s/%s", v, g, res, n), "/")] = true
						}
					}
				}
			}
		}
	}
	return out, d
}

// container's command line in the Deployment, with the places of this machine.
func container(t *testing.T, d *appsv1.Deployment, bin, called string, places ...string) []string {
	t.Helper()
	i := slices.IndexFunc(d.Spec.Template.Spec.Containers, func(c corev1.Container) bool { return c.Name == called })
	if i < 0 {
		t.Fatalf("the Deployment has no container %s", called)
	}
	c := d.Spec.Template.Spec.Containers[i]
	args := append([]string{filepath.Join(bin, filepath.Base(c.Command[0]))}, c.Command[1:]...)
	for _, a := range c.Args {
		args = append(args, strings.NewReplacer(places...).Replace(a))
	}
	return args
}

// as starts a program as a user with a log file, and ends it with the test.
func as(t *testing.T, uid uint32, gid uint32, logFile string, args ...string) *exec.Cmd {
	t.Helper()
	f, err := os.Create(logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "POD_NAME=assay-observer-0"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() {
		_ = syscall.Kill(cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-done
		}
		if t.Failed() {
			t.Logf("end of the log of %s:\n%s", args[0], kubetest.Tail(logFile))
		}
	})
	return cmd
}

// TestRights runs what deploy/observer.yaml runs: the command lines, users and
// service account of its Deployment, and nothing but its rights. Everything works,
// nothing is refused, and no right is left over.
func TestRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the two containers have users of their own")
	}
	t.Parallel()
	c := kubetest.StartOwn(t)
	c.ApplyTektonCRDs(t)
	bin := testrig.Binaries(t)
	manifests, err := os.ReadFile(filepath.Join(testrig.Root(), "deploy", "observer.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	const system = "tekton-chains"
	c.Kubectl(t, "create", "namespace", system)
	c.Apply(t, string(manifests))
	rights, deployment := granted(t, manifests)

	// A registry that knows one account, and the Secret with it.
	reg := storetest.Registry(t, true)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if u, p, _ := req.BasicAuth(); u != "builder" || p != "s3cret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		reg.ServeHTTP(w, req)
	}))
	t.Cleanup(srv.Close)
	dir, err := os.MkdirTemp("", "assay-rights-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	r := &rig{t: t, c: c, bin: bin, ns: c.Namespace(t), dir: dir, registry: srv.Listener.Addr().String(), handler: reg}
	auth := base64.StdEncoding.EncodeToString([]byte("builder:s3cret"))
	c.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Secret
metadata: {name: push, namespace: %s}
type: kubernetes.io/dockerconfigjson
stringData: {.dockerconfigjson: '{"auths":{"%s":{"auth":"%s"}}}'}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: %s}
secrets: [{name: push}]
`, r.ns, r.registry, auth, r.ns))

	// The account's token, as the kubelet gives it to the Pod, by way of the recorder.
	rec, address, ca := record(t, c)
	token, err := c.Client.CoreV1().ServiceAccounts(system).CreateToken(t.Context(), deployment.Spec.Template.Spec.ServiceAccountName, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	gid := int(*deployment.Spec.Template.Spec.SecurityContext.FSGroup)
	run, secrets, kubeconfig := filepath.Join(dir, "run"), filepath.Join(dir, "signing-secrets"), filepath.Join(dir, "kubeconfig")
	for _, d := range []string{run, secrets} {
		if err := os.Mkdir(d, 0o770); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(d, 0, gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(d, 0o2770); err != nil {
			t.Fatal(err)
		}
	}
	config := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],
		"clusters":[{"name":"c","cluster":{"server":%q,"certificate-authority-data":%q}}],"users":[{"name":"u","user":{"token":%q}}]}`, address, base64.StdEncoding.EncodeToString(ca), token.Status.Token)
	if err := os.WriteFile(kubeconfig, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	port := kubetest.FreePort(t)
	places := []string{"/run/assay", run, "/etc/signing-secrets", secrets, "addr=:9090", fmt.Sprintf("addr=127.0.0.1:%d", port)}
	as(t, 65532, uint32(gid), filepath.Join(dir, "signer.log"), container(t, deployment, bin, "signer", places...)...)
	args := append(container(t, deployment, bin, "observer", places...), "--kubeconfig", kubeconfig)
	logFile := filepath.Join(dir, "observer.log")
	cmd := as(t, 65531, uint32(gid), logFile, args...)
	o := &observer{Process: &kubetest.Process{PID: cmd.Process.Pid, Log: logFile}, t: t, address: net.JoinHostPort("127.0.0.1", fmt.Sprint(port))}

	// No ConfigMap at first, then nonsense, then no key: each is said and mended.
	o.says(503, "chains-config is not in namespace")
	settings := func(data map[string]string) {
		s := *r
		s.ns = system
		s.settings(data)
	}
	settings(map[string]string{"artifacts.oci.storage": "nowhere"})
	kubetest.Eventually(t, "the ConfigMap to say what is wrong", func() (bool, error) {
		cm, err := c.Client.CoreV1().ConfigMaps(system).Get(t.Context(), "chains-config", metav1.GetOptions{})
		return err == nil && strings.Contains(cm.Annotations["assay.dev/config-error"], "nowhere"), err
	})
	// Chains' defaults, but that statements of this size do not fit on a PipelineRun.
	settings(map[string]string{"artifacts.pipelinerun.storage": "oci", "assay.retry.max-backoff": "1s"})
	first := r.generate(1)[0]
	r.load(first)
	kubetest.Eventually(t, "the run to say why it waits", func() (bool, error) {
		return strings.Contains(r.get(watchtest.PipelineRuns, first.PipelineRun.Name).GetAnnotations()["assay.dev/reason"], "key") ||
			strings.Contains(r.get(watchtest.TaskRuns, first.TaskRuns[0].Name).GetAnnotations()["assay.dev/reason"], "key"), nil
	})
	o.says(503, "signer")
	// As the kubelet fills a Secret's volume: root's files, open to the Pod's group,
	// swapped as a whole.
	if err := os.Mkdir(filepath.Join(secrets, "..2026"), 0o750); err != nil {
		t.Fatal(err)
	}
	r.pub = r.key(filepath.Join(secrets, "..2026"), "first")
	for path, mode := range map[string]os.FileMode{"..2026": 0o750, "..2026/x509.pem": 0o440} {
		path = filepath.Join(secrets, path)
		if err := errors.Join(os.Chown(path, 0, gid), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Symlink("..2026", filepath.Join(secrets, "..data")), os.Symlink("..data/x509.pem", filepath.Join(secrets, "x509.pem"))); err != nil {
		t.Fatal(err)
	}
	u := r.signed(watchtest.PipelineRuns, first.PipelineRun.Name)
	if why := u.GetAnnotations()["assay.dev/reason"]; why != "" {
		t.Errorf("assay.dev/reason is left: %s", why)
	}
	o.says(200, "ready")
	// An unfinished run gets its finalizer, and loses it with the mark; Chains' own
	// goes too.
	third := r.generate(1)[0]
	third.PipelineRun.Finalizers = []string{"chains.tekton.dev/pipelinerun"}
	r.load(third)
	r.signed(watchtest.PipelineRuns, third.PipelineRun.Name)
	second := r.generate(1)[0]
	finish, err := watchtest.Create(t.Context(), c.Dynamic, second)
	if err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, "the finalizer", func() (bool, error) {
		return slices.Contains(r.get(watchtest.PipelineRuns, second.PipelineRun.Name).GetFinalizers(), "chains.tekton.dev/pipelinerun"), nil
	})
	if err := finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.signed(watchtest.PipelineRuns, second.PipelineRun.Name)
	// It leaves in good order.
	if err := syscall.Kill(cmd.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, "it to end", func() (bool, error) { return syscall.Kill(cmd.Process.Pid, 0) != nil, nil })
	leases, err := c.Client.CoordinationV1().Leases(system).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases.Items {
		if strings.Contains(l.Name, "replica-") || l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity != "" {
			t.Errorf("lease %s is left, held by %v", l.Name, l.Spec.HolderIdentity)
		}
	}

	rec.mu.Lock()
	defer rec.mu.Unlock()
	// Needed where this API server and these runs do not: servers that do not
	// stream lists, and children without the usual label.
	for _, right := range []string{"get tekton.dev/taskruns", "list tekton.dev/pipelineruns", "list /configmaps/chains-config"} {
		rec.used[right] = true
	}
	if len(rec.refused) > 0 {
		t.Errorf("refused: %q", slices.Compact(slices.Sorted(slices.Values(rec.refused))))
	}
	if diff := cmp.Diff(slices.Sorted(maps.Keys(rights)), slices.Sorted(maps.Keys(rec.used))); diff != "" {
		t.Errorf("rights given and rights used differ (-given +used):\n%s", diff)
	}
	if b, err := os.ReadFile(logFile); err != nil || bytes.Contains(b, []byte("forbidden")) {
		t.Errorf("the log speaks of what is forbidden (%v)", err)
	}
}
