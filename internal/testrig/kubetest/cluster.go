package kubetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"assay.dev/assay/internal/kube"
)

// Cluster is a control plane for tests.
type Cluster struct {
	// Plane has the processes' ids and the administrator's configuration.
	Plane *kube.Plane
	// Dir is a folder for files of the cluster; Kubeconfig one of them.
	Dir, Kubeconfig string
	// Client and Dynamic are the administrator's.
	Client  kubernetes.Interface
	Dynamic dynamic.Interface

	mu     sync.Mutex // guards the below
	tekton bool       // definitions are applied
	procs  map[string]*Process
	taken  map[string]string // part → test, see Exclusive
	// webhookPort is where Tekton's webhook listens; 0: it was never started.
	webhookPort int
}

// shared is the one cluster of a test binary. A test binary is one package's.
var shared struct {
	sync.Once
	c    *Cluster
	err  error
	skip string
}

// Start returns the cluster that all tests of a package share, and brings it up
// at the first call. It skips the test where slow tests are not wanted or the
// programs are missing, and fails it where they do not start.
func Start(t testing.TB) *Cluster {
	t.Helper()
	shared.Do(func() {
		if shared.skip = missing(); shared.skip == "" {
			shared.c, shared.err = start()
		}
	})
	if shared.skip != "" {
		t.Skip(shared.skip)
	}
	if shared.err != nil {
		t.Fatalf("kubetest: %v", shared.err)
	}
	select {
	case <-shared.c.Plane.Done():
		t.Fatalf("kubetest: the shared control plane is gone: %v", shared.c.Plane.Err())
	default:
	}
	return shared.c
}

// StartOwn brings up a cluster for one test alone, for tests that stop, kill or
// restart it. It ends with the test. It skips and fails as Start does.
func StartOwn(t testing.TB) *Cluster {
	t.Helper()
	if why := missing(); why != "" {
		t.Skip(why)
	}
	c, err := start()
	if err != nil {
		t.Fatalf("kubetest: %v", err)
	}
	t.Cleanup(func() {
		c.stopProcesses()
		if err := c.Plane.Stop(); err != nil {
			t.Errorf("kubetest: %v", err)
		}
		if err := os.RemoveAll(c.Dir); err != nil {
			t.Errorf("kubetest: %v", err)
		}
	})
	return c
}

// missing says why no cluster can be started, or "".
func missing() string {
	if os.Getenv("ASSAY_SLOW") == "" {
		return "needs a Kubernetes API server: set ASSAY_SLOW=1; make test-all does"
	}
	if _, err := kube.Find(); err != nil {
		return err.Error()
	}
	return ""
}

func start() (_ *Cluster, err error) {
	dir, err := os.MkdirTemp("", "assay-kubetest-")
	if err != nil {
		return nil, err
	}
	if err := sweep(dir); err != nil {
		return nil, err
	}
	// Pods' users must be able to pass through to what lies in here for them.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	c := &Cluster{Dir: dir, procs: map[string]*Process{}, taken: map[string]string{}}
	if err := c.Restart(context.Background()); err != nil {
		return nil, err
	}
	return c, nil
}

// Restart starts the control plane on its folder: the first time, or after it was
// stopped or killed. Clients that were made before stay valid.
func (c *Cluster) Restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	p, err := kube.Start(ctx, kube.Options{Dir: filepath.Join(c.Dir, "kube"), Ephemeral: true})
	if err != nil {
		return err
	}
	c.Plane, c.Kubeconfig = p, kube.KubeconfigFile(filepath.Join(c.Dir, "kube"))
	if c.Client, err = kubernetes.NewForConfig(p.RESTConfig()); err != nil {
		return err
	}
	c.Dynamic, err = dynamic.NewForConfig(p.RESTConfig())
	return err
}

// sweeper waits for the end of its input, then removes $1 and what lives of it.
// Containers of a kubelet that was killed outlive it: they are the processes that
// see a file system of the sandbox (tmpfs "assay" below $1) at none of its paths
// below $1. Mounts go before files, and no file is removed through one.
const sweeper = `
cat >/dev/null
flock -w 20 "$1/kube/lock" true
for i in 1 2 3 4 5 6 7 8 9 10; do
  devices=$(awk -v d="$1/" 'index($5, d) == 1 && / - tmpfs assay / { print $3 }' /proc/self/mountinfo | sort -u | tr '\n' ' ')
  if [ -n "$devices" ]; then
    for p in /proc/[0-9]*; do
      awk -v d="$1/" -v devices="$devices" '
        BEGIN { n = split(devices, a, " "); for (k = 1; k <= n; k++) ours[a[k]] = 1 }
        index($5, d) == 1 { outside = 1 }
        $3 in ours { sees = 1 }
        END { exit !(sees && !outside) }' "$p/mountinfo" 2>/dev/null && kill -9 "${p#/proc/}"
    done
    awk -v d="$1/" 'index($5, d) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r -n1 umount -l
  fi
  grep -qF " $1/" /proc/self/mountinfo || { rm -rf "$1" && exit; }
  sleep 0.2
done`

// sweep removes dir when this process is gone, however it went, and with it the
// last of its children: they hold the lock.
func sweep(dir string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("sh", "-c", sweeper, "sweep", dir)
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the sweeper: %w", err)
	}
	// w stays open until the process ends; nobody else may hold it, so it is
	// close-on-exec, as os.Pipe makes it, and kept from the collector.
	keepOpen(w)
	return nil
}

// keepOpen keeps a file from being closed by the garbage collector.
func keepOpen(f *os.File) { go func() { <-make(chan struct{}); _ = f.Close() }() }

// RESTConfig is the administrator's configuration.
func (c *Cluster) RESTConfig() *rest.Config { return c.Plane.RESTConfig() }

var notName = regexp.MustCompile(`[^a-z0-9]+`)

// Namespace makes a fresh namespace and waits until it is furnished. It is
// deleted after the test, without waiting for that.
func (c *Cluster) Namespace(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	prefix := strings.Trim(notName.ReplaceAllString(strings.ToLower(t.Name()), "-"), "-")
	ns, err := c.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: prefix[:min(len(prefix), 40)] + "-"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("kubetest: making a namespace: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		select {
		case <-c.Plane.Done():
			return
		default:
		}
		if err := c.Client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			t.Logf("kubetest: deleting namespace %s: %v", ns.Name, err)
		}
	})
	Eventually(t, "namespace "+ns.Name+" to be furnished", func() (bool, error) {
		_, err := c.Client.CoreV1().ServiceAccounts(ns.Name).Get(ctx, "default", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
	return ns.Name
}

// Eventually asks until the answer is yes, for at most two minutes. An error of
// the question ends the test at once.
func Eventually(t testing.TB, what string, ask func() (bool, error)) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(25 * time.Millisecond) {
		ok, err := ask()
		if err != nil {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		if ok {
			return
		}
	}
	t.Fatalf("waited two minutes in vain for %s", what)
}

// Kubectl runs kubectl as the administrator and returns what it prints. It skips
// the test without kubectl and fails it with kubectl's words.
func (c *Cluster) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	bin := os.Getenv("ASSAY_KUBECTL")
	if bin == "" {
		t.Skip(`needs kubectl: eval "$(tools/peers kubectl)"`)
	}
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Env = []string{"KUBECONFIG=" + c.Kubeconfig, "HOME=" + c.Dir}
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	if err := cmd.Run(); err != nil {
		t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, errb.String())
	}
	return out.String()
}

// Apply sends manifests to the cluster by server-side apply.
func (c *Cluster) Apply(t testing.TB, manifests string) {
	t.Helper()
	objects, err := kube.ParseManifests([]byte(manifests))
	if err != nil {
		t.Fatalf("kubetest: %v", err)
	}
	if err := kube.Apply(t.Context(), c.RESTConfig(), objects...); err != nil {
		t.Fatalf("kubetest: %v", err)
	}
}

// Tail returns the end of a log, for messages of failed tests.
func Tail(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	const last = 4 << 10
	if st, err := f.Stat(); err == nil && st.Size() > last {
		if _, err := f.Seek(-last, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Define has the cluster serve a namespaced kind of group appstudio.redhat.com, version
// v1alpha1, whose objects may hold anything.
func (c *Cluster) Define(t testing.TB, plural, kind string) {
	t.Helper()
	name := plural + ".appstudio.redhat.com"
	c.Apply(t, `apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: `+name+`}
spec:
  group: appstudio.redhat.com
  scope: Namespaced
  names: {plural: `+plural+`, singular: `+strings.ToLower(kind)+`, kind: `+kind+`}
  versions:
  - {name: v1alpha1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`)
	c.Kubectl(t, "wait", "--for=condition=Established", "crd/"+name, "--timeout=60s")
}
