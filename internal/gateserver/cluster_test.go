package gateserver_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"assay.dev/assay/internal/gateserver"
	"assay.dev/assay/internal/testrig/kubetest"
)

// authority makes certificates.
type authority struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key, a.pem, _ = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: "test"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	return a
}

func (a *authority) sign(c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, string, string) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	if c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		a.t.Fatal(err)
	}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := c, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

// leaf is a certificate for this machine, or for a client of a name.
func (a *authority) leaf(name string) (cert, key string) {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	if name == "server" {
		c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	_, _, cert, key = a.sign(c)
	return cert, key
}

// TestCluster: a real API server asks, for Pods and what makes them; what fails is not
// stored and says why; with the gate gone nothing of these namespaces is let through.
func TestCluster(t *testing.T) {
	c := kubetest.Start(t)
	r := newRig(t)
	good, bad, bare := r.image("app/good", true), r.image("app/bad", true), r.image("app/bare", false)
	ca := newAuthority(t)
	cert, key := ca.leaf("server")
	s, err := gateserver.New(gateserver.Options{
		Load: r.load, Access: gateserver.Access{OpenAdmission: true}, Log: slog.New(slog.NewJSONHandler(r.log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	tlsConfig, err := s.TLS(gateserver.TLSFiles{Certificate: r.write("tls.crt", cert), Key: r.write("tls.key", key)})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l, tlsConfig) }()
	defer stop()

	gated, free := c.Namespace(t), c.Namespace(t)
	c.Kubectl(t, "label", "namespace", gated, "assay.dev/gate=enforce")
	c.Apply(t, `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: assay-gate-test}
webhooks:
- name: gate.assay.dev
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  timeoutSeconds: 10
  matchPolicy: Equivalent
  clientConfig:
    url: https://`+l.Addr().String()+`/v1/admit
    caBundle: `+base64.StdEncoding.EncodeToString([]byte(ca.pem))+`
  namespaceSelector: {matchLabels: {assay.dev/gate: enforce}}
  rules:
  - {apiGroups: [""], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [pods, pods/ephemeralcontainers, replicationcontrollers, podtemplates]}
  - {apiGroups: [apps], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [deployments, statefulsets, daemonsets, replicasets]}
  - {apiGroups: [batch], apiVersions: [v1], operations: [CREATE, UPDATE], resources: [jobs, cronjobs]}
`)
	t.Cleanup(func() {
		if err := c.Client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Delete(context.Background(), "assay-gate-test", metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	spec := func(image string) map[string]any {
		return map[string]any{
			"containers":                    []any{map[string]any{"name": "main", "image": image}},
			"terminationGracePeriodSeconds": int64(0),
		}
	}
	labels := map[string]any{"app": "x"}
	template := func(image string) map[string]any {
		return map[string]any{"metadata": map[string]any{"labels": labels}, "spec": spec(image)}
	}
	selector := map[string]any{"matchLabels": labels}
	jobTemplate := func(image string) map[string]any {
		t := template(image)
		t["spec"].(map[string]any)["restartPolicy"] = "Never"
		return t
	}
	kinds := map[string]func(image string) map[string]any{
		"v1 pods Pod": func(image string) map[string]any { return map[string]any{"spec": spec(image)} },
		"v1 replicationcontrollers ReplicationController": func(image string) map[string]any {
			return map[string]any{"spec": map[string]any{"selector": labels, "replicas": int64(0), "template": template(image)}}
		},
		"v1 podtemplates PodTemplate": func(image string) map[string]any { return map[string]any{"template": template(image)} },
		"apps/v1 deployments Deployment": func(image string) map[string]any {
			return map[string]any{"spec": map[string]any{"selector": selector, "replicas": int64(0), "template": template(image)}}
		},
		"apps/v1 statefulsets StatefulSet": func(image string) map[string]any {
			return map[string]any{"spec": map[string]any{"selector": selector, "replicas": int64(0), "serviceName": "x", "template": template(image)}}
		},
		"apps/v1 daemonsets DaemonSet": func(image string) map[string]any {
			return map[string]any{"spec": map[string]any{"selector": selector, "template": template(image)}}
		},
		"apps/v1 replicasets ReplicaSet": func(image string) map[string]any {
			return map[string]any{"spec": map[string]any{"selector": selector, "replicas": int64(0), "template": template(image)}}
		},
		"batch/v1 jobs Job": func(image string) map[string]any {
			return map[string]any{"spec": map[string]any{"template": jobTemplate(image)}}
		},
		"batch/v1 cronjobs CronJob": func(image string) map[string]any {
			return map[string]any{"spec": map[string]any{"schedule": "0 0 1 1 *", "jobTemplate": map[string]any{"spec": map[string]any{"template": jobTemplate(image)}}}}
		},
	}
	create := func(kind, namespace, name, image string, o metav1.CreateOptions) (*unstructured.Unstructured, error) {
		f := strings.Fields(kind)
		gv, err := schema.ParseGroupVersion(f[0])
		if err != nil {
			t.Fatal(err)
		}
		object := kinds[kind](image)
		object["apiVersion"], object["kind"] = f[0], f[2]
		object["metadata"] = map[string]any{"name": name, "namespace": namespace}
		return c.Dynamic.Resource(gv.WithResource(f[1])).Namespace(namespace).Create(t.Context(), &unstructured.Unstructured{Object: object}, o)
	}
	const pod = "v1 pods Pod"
	// A webhook's configuration takes a moment to reach the API server's cache.
	kubetest.Eventually(t, "the webhook to be asked", func() (bool, error) {
		_, err := create(pod, gated, "first", bad.Ref(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err != nil, nil
	})
	for kind := range kinds {
		_, err := create(kind, gated, "bad", bad.Ref(), metav1.CreateOptions{})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "main.name: called bad") || !strings.Contains(err.Error(), bad.Ref()) {
			t.Errorf("%s of an image that fails: %v", kind, err)
		}
		if _, err := create(kind, gated, "good", good.Ref(), metav1.CreateOptions{}); err != nil {
			t.Errorf("%s of an image that passes: %v", kind, err)
		}
		if _, err := create(kind, free, "bad", bad.Ref(), metav1.CreateOptions{}); err != nil {
			t.Errorf("%s in a namespace that is not gated: %v", kind, err)
		}
	}
	if _, err := create(pod, gated, "bare", bare.Ref(), metav1.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(fmt.Sprint(err), "builtin.image.signature_check") {
		t.Errorf("an unsigned image: %v", err)
	}
	if _, err := create(pod, gated, "tag", good.Repo+":v1", metav1.CreateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(fmt.Sprint(err), "name it by digest") {
		t.Errorf("a tag: %v", err)
	}
	if _, err := create(pod, gated, "gone", good.Repo+"@sha256:"+strings.Repeat("0", 64), metav1.CreateOptions{}); !apierrors.IsServiceUnavailable(err) || !strings.Contains(fmt.Sprint(err), "could not check") {
		t.Errorf("an image that cannot be checked: %v", err)
	}

	pods := c.Client.CoreV1().Pods(gated)
	p, err := pods.Get(t.Context(), "good", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.Labels = map[string]string{"changed": "yes"}
	if p, err = pods.Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Errorf("a change that brings no image: %v", err)
	}
	p.Spec.Containers[0].Image = bad.Ref()
	if _, err = pods.Update(t.Context(), p, metav1.UpdateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "called bad") {
		t.Errorf("a change of the image: %v", err)
	}
	p.Spec.Containers[0].Image = good.Ref()
	p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug", Image: bad.Ref(), TerminationMessagePolicy: "File", ImagePullPolicy: "Always"}}}
	if _, err = pods.UpdateEphemeralContainers(t.Context(), "good", p, metav1.UpdateOptions{}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "ephemeral container debug") {
		t.Errorf("an ephemeral container: %v", err)
	}

	stop()
	if err := <-served; err != nil {
		t.Errorf("stopping: %v", err)
	}
	if _, err := create(pod, gated, "later", good.Ref(), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), "failed calling webhook") {
		t.Errorf("with the gate gone: %v", err)
	}
	if _, err := create(pod, free, "later", good.Ref(), metav1.CreateOptions{}); err != nil {
		t.Errorf("with the gate gone, elsewhere: %v", err)
	}
	if err := pods.Delete(t.Context(), "good", metav1.DeleteOptions{}); err != nil {
		t.Errorf("with the gate gone, a deletion: %v", err)
	}
}
