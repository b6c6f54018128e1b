package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"assay.dev/assay/image"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/sandbox"
	"assay.dev/assay/sandbox/oci"
)

// idSize is how many ids a container has.
const idSize = 65536

// Kubelet carries out the Pods of a cluster until its test ends.
type Kubelet struct {
	// Registry is the test registry's host:port on loopback, plain http, open to
	// everyone. Pods reach it by the same name.
	Registry string
	// Shell is a reference by digest to an image with busybox and its commands,
	// for steps of tests; Tekton one to what Tekton puts into pods.
	Shell, Tekton string

	cluster *kubetest.Cluster
	client  kubernetes.Interface
	dir     string
	server  *httptest.Server
	images  *image.Store
	driver  *oci.Driver
	forward []sandbox.Forward
	apiPort string
	log     *slog.Logger

	wg  sync.WaitGroup
	ctx context.Context // ends with the kubelet

	mu   sync.Mutex // guards pods and volumes
	pods map[types.UID]*pod
	// claims are the folders of persistentVolumeClaims, by namespace/name.
	claims map[string]string
}

// Start runs a kubelet with a registry and images for the cluster until the test
// ends, and then removes everything: processes, mounts, files. Only one runs on a
// cluster at a time, so tests with one are not parallel. It skips the test where
// what it needs is missing.
func Start(t testing.TB, c *kubetest.Cluster) *Kubelet {
	t.Helper()
	c.Exclusive(t, "the kubelet")
	k, closer := open(t, c)
	t.Cleanup(func() {
		if err := closer(); err != nil {
			t.Errorf("kubelet: %v", err)
		}
	})
	return k
}

// need skips the test unless this machine has all that it takes.
func need(t testing.TB) (runc string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers get users and mounts of their own")
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip("no /bin/busybox: install Debian's busybox-static")
	}
	runc = os.Getenv("ASSAY_RUNC")
	if runc == "" {
		runc = filepath.Join(testrig.Root(), "bin", "runc")
	}
	if _, err := os.Stat(runc); err != nil {
		t.Skipf("no runc: `make build` makes it (%v)", err)
	}
	if os.Getenv("ASSAY_TEKTON_ENTRYPOINT") == "" {
		t.Skip(`needs Tekton's entrypoint: eval "$(tools/peers tekton-entrypoint)"`)
	}
	return runc
}

func open(t testing.TB, c *kubetest.Cluster) (_ *Kubelet, closer func() error) {
	t.Helper()
	runc := need(t)
	k := &Kubelet{
		cluster: c, client: c.Client, pods: map[types.UID]*pod{}, claims: map[string]string{},
		log: slog.New(slog.DiscardHandler),
	}
	var undo []func() error
	closer = func() error {
		var errs []error
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i]())
		}
		return errors.Join(errs...)
	}
	fail := func(err error) {
		t.Helper()
		t.Fatalf("kubelet: %v", errors.Join(err, closer()))
	}
	var err error
	// Below the cluster's folder, which the sweeper empties if we are killed.
	if k.dir, err = os.MkdirTemp(c.Dir, "kubelet-"); err != nil {
		fail(err)
	}
	undo = append(undo, func() error { return os.RemoveAll(k.dir) })
	for _, d := range []string{"", "pods", "claims", "sandbox", "logs"} {
		if err := os.MkdirAll(filepath.Join(k.dir, d), 0o711); err != nil {
			fail(err)
		}
		if err := os.Chmod(filepath.Join(k.dir, d), 0o711); err != nil {
			fail(err)
		}
	}
	enabled := true
	reg := olareg.New(config.Config{
		Storage: config.ConfigStorage{StoreType: config.StoreMem},
		API:     config.ConfigAPI{DeleteEnabled: &enabled, PushEnabled: &enabled, Referrer: config.ConfigAPIReferrer{Enabled: &enabled}},
		Log:     k.log,
	})
	k.server = httptest.NewServer(http.Handler(reg))
	undo = append(undo, reg.Close, func() error { k.server.Close(); return nil })
	k.Registry = k.server.Listener.Addr().String()
	k.images, err = image.Open(image.Options{
		Dir: filepath.Join(k.dir, "images"), IDShift: home.UIDSteps,
		Remote: image.RemoteOptions{Insecure: []string{k.Registry}, Attempts: 1},
	})
	if err != nil {
		fail(err)
	}
	undo = append(undo, func() error { k.images.Close(); return nil })
	if err := k.pack(t.Context()); err != nil {
		fail(err)
	}
	k.driver, err = oci.New(oci.Options{
		Runtime: runc, Name: "runc", StateDir: filepath.Join(k.dir, "sandbox"),
		IDBase: home.UIDSteps, IDSize: idSize, CABundle: "none",
	})
	if err != nil {
		fail(err)
	}
	undo = append(undo, k.driver.Close)
	if err := k.forwards(); err != nil {
		fail(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	k.ctx = ctx
	stopped, err := k.watch()
	if err != nil {
		cancel()
		fail(err)
	}
	undo = append(undo, func() error {
		cancel()
		stopped()
		k.wg.Wait()
		return nil
	})
	return k, closer
}

// forwards lists what pods reach on their own loopback.
func (k *Kubelet) forwards() error {
	api, err := url.Parse(k.cluster.RESTConfig().Host)
	if err != nil {
		return err
	}
	k.apiPort = api.Port()
	for name, addr := range map[string]string{"registry": k.Registry, "apiserver": api.Host} {
		_, p, err := net.SplitHostPort(addr)
		if err != nil {
			return err
		}
		port, err := strconv.Atoi(p)
		if err != nil {
			return err
		}
		k.forward = append(k.forward, sandbox.Forward{Port: port, Name: name, Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}})
	}
	return nil
}

// watch follows all Pods. The returned function waits until nothing is delivered
// any more, after ctx has ended.
func (k *Kubelet) watch() (stopped func(), err error) {
	f := informers.NewSharedInformerFactory(k.client, 0)
	inf := f.Core().V1().Pods().Informer()
	see := func(o any) {
		if p, ok := o.(*corev1.Pod); ok {
			k.see(p)
		}
	}
	_, err = inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    see,
		UpdateFunc: func(_, o any) { see(o) },
		DeleteFunc: func(o any) {
			if d, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = d.Obj
			}
			if p, ok := o.(*corev1.Pod); ok {
				k.gone(p)
			}
		},
	})
	if err != nil {
		return nil, fmt.Errorf("watching pods: %w", err)
	}
	f.Start(k.ctx.Done())
	return f.Shutdown, nil
}

// see takes notice of a Pod as it is now, and starts what is new. Pods that are
// over are somebody else's work of before.
func (k *Kubelet) see(obj *corev1.Pod) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.pods[obj.UID]
	if p == nil {
		over := obj.Status.Phase == corev1.PodSucceeded || obj.Status.Phase == corev1.PodFailed
		if over && obj.DeletionTimestamp == nil || k.ctx.Err() != nil {
			return
		}
		p = newPod(k, obj)
		k.pods[obj.UID] = p
		k.wg.Go(func() {
			p.run()
			p.tidy()
		})
	}
	p.changed(obj)
}

// gone ends what is left of a Pod that is deleted.
func (k *Kubelet) gone(obj *corev1.Pod) {
	k.mu.Lock()
	p := k.pods[obj.UID]
	delete(k.pods, obj.UID)
	k.mu.Unlock()
	if p != nil {
		p.cancel(errDeleted)
	}
}

// claim is the folder of a persistentVolumeClaim; it lives as long as the kubelet.
func (k *Kubelet) claim(namespace, name string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	key := namespace + "/" + name
	if d, ok := k.claims[key]; ok {
		return d, nil
	}
	d, err := os.MkdirTemp(filepath.Join(k.dir, "claims"), name+"-")
	if err == nil {
		err = give(d, 0o777)
	}
	if err != nil {
		return "", err
	}
	k.claims[key] = d
	return d, nil
}

// Log returns what a container of a Pod has printed so far, both streams in one.
func (k *Kubelet) Log(namespace, podName, container string) (string, error) {
	b, err := os.ReadFile(k.logFile(namespace, podName, container))
	return string(b), err
}

func (k *Kubelet) logFile(namespace, podName, container string) string {
	return filepath.Join(k.dir, "logs", namespace+"_"+podName+"_"+container)
}

// StartTekton runs Tekton's controller with this kubelet's images; see
// kubetest.Cluster.StartTekton. Each kubelet has a registry of its own, so the
// controller of a test before is replaced.
func (k *Kubelet) StartTekton(t testing.TB) *kubetest.Process {
	t.Helper()
	return k.cluster.StartTekton(t, kubetest.Tekton{Entrypoint: k.Tekton, Nop: k.Tekton, Shell: k.Shell})
}
