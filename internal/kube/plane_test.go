package kube_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"golang.org/x/sys/unix"

	"assay.dev/assay/internal/kube"
)

func client(t testing.TB, c *rest.Config) *kubernetes.Clientset {
	t.Helper()
	cs, err := kubernetes.NewForConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return cs
}

func configMap(name string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"said": name}}
}

// One plane serves the questions that change nothing about it: starting costs
// four seconds.
func TestPlane(t *testing.T) {
	need(t)
	dir := folder(t)
	p := start(t, kube.Options{Dir: dir})
	cs := client(t, p.RESTConfig())
	ctx := context3m(t)

	t.Run("kubectl sees the namespaces", func(t *testing.T) {
		out, err := kubectl(t, p.Kubeconfig(), "get", "namespaces", "-o", "name")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, ns := range []string{"namespace/default", "namespace/kube-system"} {
			if !strings.Contains(out, ns) {
				t.Errorf("no %s in %q", ns, out)
			}
		}
	})

	t.Run("who has no certificate is refused", func(t *testing.T) {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(p.RESTConfig().CAData)
		hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
		defer hc.CloseIdleConnections()
		for _, path := range []string{"/api/v1/namespaces", "/version", "/readyz", "/metrics"} {
			res, err := hc.Get(p.RESTConfig().Host + path)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, res.Body)
			res.Body.Close()
			if res.StatusCode != http.StatusUnauthorized {
				t.Errorf("%s: %s", path, res.Status)
			}
		}
	})

	t.Run("a certificate of etcd's authority opens nothing, and none of ours opens etcd", func(t *testing.T) {
		c := p.RESTConfig()
		read := func(name string) []byte {
			b, err := os.ReadFile(filepath.Join(dir, "pki", name))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		c.CertData, c.KeyData = read("etcd-client.crt"), read("etcd-client.key")
		if _, err := client(t, c).CoreV1().Namespaces().List(ctx, metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
			t.Errorf("etcd's client at the API server: %v", err)
		}
		pair, err := tls.X509KeyPair(p.RESTConfig().CertData, p.RESTConfig().KeyData)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(read("etcd-ca.crt"))
		var at struct{ EtcdClient int }
		decode(t, filepath.Join(dir, "ports.json"), &at)
		for name, certs := range map[string][]tls.Certificate{"administrator": {pair}, "nobody": nil} {
			hc := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certs}}}
			res, err := hc.Get("https://" + net.JoinHostPort("127.0.0.1", port(at.EtcdClient)) + "/version")
			if err == nil {
				res.Body.Close()
				t.Errorf("%s was let in to etcd: %s", name, res.Status)
			}
		}
	})

	t.Run("RBAC denies who has no rights, and tokens are issued", func(t *testing.T) {
		sa, err := cs.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "nobody"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		tok, err := cs.CoreV1().ServiceAccounts("default").CreateToken(ctx, sa.Name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c := rest.AnonymousClientConfig(p.RESTConfig())
		c.BearerToken = tok.Status.Token
		them := client(t, c)
		if _, err := them.CoreV1().Secrets("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("reading Secrets: %v", err)
		}
		who, err := them.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil || who.Status.UserInfo.Username != "system:serviceaccount:default:nobody" {
			t.Errorf("token is of %v: %v", who, err)
		}
	})

	t.Run("a namespace is furnished, emptied and released", func(t *testing.T) {
		if _, err := cs.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "tenant"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a default ServiceAccount and the authority", func() bool {
			_, err := cs.CoreV1().ServiceAccounts("tenant").Get(ctx, "default", metav1.GetOptions{})
			ca, cerr := cs.CoreV1().ConfigMaps("tenant").Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
			return err == nil && cerr == nil && ca.Data["ca.crt"] == string(p.RESTConfig().CAData)
		})
		held := configMap("held")
		held.Finalizers = []string{"assay.dev/test"}
		for _, cm := range []*corev1.ConfigMap{held, configMap("free")} {
			if _, err := cs.CoreV1().ConfigMaps("tenant").Create(ctx, cm, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := cs.CoreV1().Namespaces().Delete(ctx, "tenant", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "free to go", func() bool {
			_, err := cs.CoreV1().ConfigMaps("tenant").Get(ctx, "free", metav1.GetOptions{})
			return apierrors.IsNotFound(err)
		})
		if _, err := cs.CoreV1().Namespaces().Get(ctx, "tenant", metav1.GetOptions{}); err != nil {
			t.Fatalf("the namespace went before what a finalizer holds: %v", err)
		}
		held, err := cs.CoreV1().ConfigMaps("tenant").Get(ctx, "held", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		held.Finalizers = nil
		if _, err := cs.CoreV1().ConfigMaps("tenant").Update(ctx, held, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the namespace to go", func() bool {
			_, err := cs.CoreV1().Namespaces().Get(ctx, "tenant", metav1.GetOptions{})
			return apierrors.IsNotFound(err)
		})
	})

	t.Run("a second one on the folder is refused", func(t *testing.T) {
		_, err := kube.Start(ctx, kube.Options{Dir: dir})
		if !errors.Is(err, kube.ErrRunning) {
			t.Errorf("%v", err)
		}
	})

	t.Run("its port is not for another", func(t *testing.T) {
		at, err := kube.Running(dir)
		if err != nil {
			t.Fatal(err)
		}
		_, ps, _ := net.SplitHostPort(strings.TrimPrefix(at.Server, "https://"))
		_, err = kube.Start(ctx, kube.Options{Dir: folder(t), Port: number(t, ps)})
		if err == nil || !strings.Contains(err.Error(), "port "+ps) || !strings.Contains(err.Error(), "--port") {
			t.Errorf("%v", err)
		}
	})

	t.Run("the folder is closed", func(t *testing.T) {
		for _, name := range []string{"", "pki", "etcd", "logs", "kubeconfig", "pki/ca.key", "pki/admin.key"} {
			st, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if st.Mode().Perm()&0o077 != 0 {
				t.Errorf("%q has mode %o", name, st.Mode().Perm())
			}
		}
	})
}

func TestRestartKeepsEverything(t *testing.T) {
	need(t)
	dir, ctx := folder(t), context3m(t)
	p := start(t, kube.Options{Dir: dir})
	first := p.RESTConfig()
	if _, err := client(t, first).CoreV1().ConfigMaps("default").Create(ctx, configMap("kept"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := kube.Running(dir); !errors.Is(err, kube.ErrNotRunning) {
		t.Errorf("after Stop: %v", err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("not done after Stop")
	}
	if p.Err() != nil {
		t.Errorf("stopped on purpose, and yet: %v", p.Err())
	}
	p = start(t, kube.Options{Dir: dir})
	// The credentials of before, too.
	if _, err := client(t, first).CoreV1().ConfigMaps("default").Get(ctx, "kept", metav1.GetOptions{}); err != nil {
		t.Error(err)
	}
}

func TestDeathIsNoticed(t *testing.T) {
	need(t)
	for _, victim := range []string{"etcd", "kube-apiserver"} {
		t.Run(victim, func(t *testing.T) {
			dir, ctx := folder(t), context3m(t)
			p := start(t, kube.Options{Dir: dir})
			if _, err := client(t, p.RESTConfig()).CoreV1().ConfigMaps("default").Create(ctx, configMap("kept"), metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			etcd, api := p.Pids()
			pid := etcd
			if victim == "kube-apiserver" {
				pid = api
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			select {
			case <-p.Done():
			case <-ctx.Done():
				t.Fatal("nobody noticed")
			}
			if p.Err() == nil || !strings.Contains(p.Err().Error(), victim) {
				t.Errorf("it says: %v", p.Err())
			}
			gone(t, etcd)
			gone(t, api)
			again := start(t, kube.Options{Dir: dir})
			if _, err := client(t, again.RESTConfig()).CoreV1().ConfigMaps("default").Get(ctx, "kept", metav1.GetOptions{}); err != nil {
				t.Error(err)
			}
		})
	}
}
