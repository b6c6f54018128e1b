// Tests of the whole programs assayd, assay-observer, assay-log and assay as users
// start them, with the real parts around them: kube-apiserver and etcd, Tekton's
// controller with pods that are carried out (testrig/kubelet), a registry (olareg)
// on loopback, cosign, and Tekton Chains' own controller where ASSAY_CHAINS names
// it. Nothing is faked. They run with ASSAY_SLOW=1 and skip without the programs
// of tools/peers.
//
// Tests have namespaces, registries and observers of their own and share one control
// plane, and what mostly waits runs beside one another. A control plane of its own
// has a test that stops it (TestServerKilled), runs Tekton's controller on it
// (TestEndToEnd) or needs namespace tekton-chains and rights in the whole cluster
// (TestMigration, TestRights).
package assayd_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
	"assay.dev/assay/store/storetest"
)

// rig is a namespace of a cluster with everything an observer needs.
type rig struct {
	t        *testing.T
	c        *kubetest.Cluster
	bin      string // folder of the programs
	ns       string // of the runs, chains-config and leases
	dir      string
	secrets  string // folder of the signing key
	pub      string // file with its public key
	registry string
	handler  http.Handler // the registry itself
	home     string       // of our programs
	numbered int          // runs generated
}

var (
	started atomic.Int64 // names log files apart
	listAll = metav1.ListOptions{}
)

func newRig(t *testing.T) *rig { return rigOn(t, kubetest.Start(t)) }

func rigOn(t *testing.T, c *kubetest.Cluster) *rig {
	t.Helper()
	c.ApplyTektonCRDs(t)
	reg := storetest.Registry(t, true)
	srv := httptest.NewUnstartedServer(reg)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	r := &rig{t: t, c: c, bin: testrig.Binaries(t), ns: c.Namespace(t), dir: t.TempDir(), registry: srv.Listener.Addr().String(), handler: reg}
	// Not t.TempDir: users of their own pass through it.
	home, err := os.MkdirTemp("", "assay-test-")
	if err == nil {
		err = os.Chmod(home, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(home) })
	r.home = filepath.Join(home, "home")
	r.secrets = filepath.Join(r.dir, "signing-secrets")
	if err := os.Mkdir(r.secrets, 0o700); err != nil {
		t.Fatal(err)
	}
	r.pub = r.key(r.secrets, "first")
	return r
}

// key puts a new key into a folder, at once and whole as a Secret's volume does,
// and returns the file with its public part.
func (r *rig) key(secrets, called string) string {
	r.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		r.t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		r.t.Fatal(err)
	}
	r.replace(filepath.Join(secrets, "x509.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}))
	pub := filepath.Join(r.dir, called+".pub")
	if err := os.WriteFile(pub, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return pub
}

func (r *rig) replace(path string, data []byte) {
	r.t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		r.t.Fatal(err)
	}
}

// konflux are settings as Konflux has them, with changes: pairs of key and value.
func konflux(change ...string) map[string]string {
	s := map[string]string{
		"artifacts.taskrun.storage":                    "",
		"artifacts.pipelinerun.format":                 "slsa/v1",
		"artifacts.pipelinerun.storage":                "oci",
		"artifacts.pipelinerun.enable-deep-inspection": "true",
		"artifacts.oci.storage":                        "oci",
		"builder.id":                                   "https://tekton.example.com/chains/v2",
		"transparency.enabled":                         "false",
		"assay.retry.max-backoff":                      "2s",
	}
	for i := 0; i < len(change); i += 2 {
		s[change[i]] = change[i+1]
	}
	return s
}

// settings write chains-config.
func (r *rig) settings(data map[string]string) {
	r.t.Helper()
	body, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "chains-config", "namespace": r.ns}, "data": data})
	if err != nil {
		r.t.Fatal(err)
	}
	r.c.Apply(r.t, string(body))
}

// observer is a process of assayd observer.
type observer struct {
	*kubetest.Process
	t       *testing.T
	address string // of /readyz and /metrics
}

// observe starts an observer of the rig's namespace that starts its own signer,
// and stops it with the test.
func (r *rig) observe(args ...string) *observer {
	r.t.Helper()
	return r.start(nil, append([]string{"observer", "--kubeconfig", r.c.Kubeconfig, "--namespace", r.ns, "--system-namespace", r.ns,
		"--metrics-addr", "127.0.0.1:0", "--secrets", r.secrets}, args...)...)
}

var serving = regexp.MustCompile(`"serving /metrics, /healthz and /readyz","address":"([^"]+)"`)

// start runs assayd observer and waits until it serves.
func (r *rig) start(env []string, args ...string) *observer {
	r.t.Helper()
	p, err := r.c.Run(fmt.Sprintf("assayd-%d", started.Add(1)), filepath.Join(r.bin, "assayd"), args, append([]string{"TMPDIR=" + r.dir}, env...))
	if err != nil {
		r.t.Fatal(err)
	}
	o := &observer{Process: p, t: r.t}
	r.t.Cleanup(func() {
		p.Stop()
		if r.t.Failed() {
			r.t.Logf("end of the log of assayd %s:\n%s", strings.Join(args, " "), kubetest.Tail(p.Log))
		}
	})
	kubetest.Eventually(r.t, "assayd to serve", func() (bool, error) {
		select {
		case <-p.Done():
			return false, fmt.Errorf("it ended:\n%s", kubetest.Tail(p.Log))
		default:
		}
		m := serving.FindStringSubmatch(o.log())
		if m != nil {
			o.address = m[1]
		}
		return m != nil, nil
	})
	return o
}

func (o *observer) log() string {
	o.t.Helper()
	b, err := os.ReadFile(o.Process.Log)
	if err != nil {
		o.t.Fatal(err)
	}
	return string(b)
}

// get asks for a page; code 0 if nobody answers.
func (o *observer) get(path string) (int, string) {
	res, err := http.Get("http://" + o.address + path)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

// metric adds up a metric's values over its labels.
func (o *observer) metric(name string) (sum float64) {
	_, text := o.get("/metrics")
	for line := range strings.SplitSeq(text, "\n") {
		if strings.HasPrefix(line, name+" ") || strings.HasPrefix(line, name+"{") {
			v, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
			if err != nil {
				o.t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

// says waits until /readyz answers with this code and contains all the words.
func (o *observer) says(code int, words ...string) {
	o.t.Helper()
	var got int
	var text string
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		got, text = o.get("/readyz")
		ok := got == code
		for _, w := range words {
			ok = ok && strings.Contains(text, w)
		}
		if ok {
			return
		}
	}
	o.t.Fatalf("/readyz says %d and not %d with %q:\n%s", got, code, words, text)
}

// tool runs one of our programs and returns what it printed and its exit code.
func (r *rig) tool(program string, args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(r.bin, program), args...)
	c.Env = append(os.Environ(), "ASSAY_HOME="+r.home, "KUBECONFIG="+r.c.Kubeconfig)
	c.Dir = r.dir
	var out, errb bytes.Buffer
	c.Stdout, c.Stderr = &out, &errb
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return out.String(), errb.String(), c.ProcessState.ExitCode()
}

// must runs one of our programs, fails the test unless it exits with 0, and
// returns what it printed.
func (r *rig) must(program string, args ...string) string {
	r.t.Helper()
	out, stderr, code := r.tool(program, args...)
	if code != 0 {
		r.t.Fatalf("%s %s: exit %d\n%s%s", program, strings.Join(args, " "), code, out, stderr)
	}
	return out
}

// cosign runs cosign, which has no log to ask.
func (r *rig) cosign(args ...string) string {
	r.t.Helper()
	bin := os.Getenv("ASSAY_COSIGN")
	if bin == "" {
		r.t.Skip(`needs cosign: eval "$(tools/peers cosign)"`)
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, bin, append(args[:len(args)-1:len(args)-1], "--insecure-ignore-tlog=true", "--allow-insecure-registry=true", args[len(args)-1])...)
	c.Dir, c.Env = r.dir, append(os.Environ(), "HOME="+r.dir)
	var errb bytes.Buffer
	c.Stderr = &errb
	out, err := c.Output()
	if err != nil {
		r.t.Fatalf("cosign %s: %v\n%s", strings.Join(args, " "), err, errb.String())
	}
	return string(out)
}

func (r *rig) get(res schema.GroupVersionResource, name string) *unstructured.Unstructured {
	r.t.Helper()
	u, err := r.c.Dynamic.Resource(res).Namespace(r.ns).Get(r.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	return u
}

// signed waits for a run's mark, which must be true, and returns the run.
func (r *rig) signed(res schema.GroupVersionResource, name string) *unstructured.Unstructured {
	r.t.Helper()
	u := r.marked(res, name)
	if got := u.GetAnnotations()["chains.tekton.dev/signed"]; got != "true" {
		r.t.Errorf("%s %s: signed is %q: %v", res.Resource, name, got, u.GetAnnotations())
	}
	// One that somebody else set, Chains say, goes right after the mark.
	kubetest.Eventually(r.t, "the finalizers of "+name+" to go", func() (bool, error) {
		return len(r.get(res, name).GetFinalizers()) == 0, nil
	})
	return u
}

func (r *rig) marked(res schema.GroupVersionResource, name string) *unstructured.Unstructured {
	r.t.Helper()
	var u *unstructured.Unstructured
	kubetest.Eventually(r.t, res.Resource+" "+name+" to be marked", func() (bool, error) {
		var err error
		u, err = r.c.Dynamic.Resource(res).Namespace(r.ns).Get(r.t.Context(), name, metav1.GetOptions{})
		if err != nil && (apierrors.IsNotFound(err) || apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err)) {
			return false, err
		}
		return err == nil && u.GetAnnotations()["chains.tekton.dev/signed"] != "", nil
	})
	return u
}

// generate makes n finished runs of Konflux's size with images of their own in the
// registry.
func (r *rig) generate(n int) []watchtest.Run {
	var out []watchtest.Run
	for range n {
		r.numbered++
		o := watchtest.Options{Namespace: r.ns, TaskRunBytes: 6000}
		for i := range 6 {
			subject := storetest.PushImage(r.t, storetest.Transport(r.handler), r.registry, fmt.Sprintf("team-%d/app", r.numbered%5), fmt.Sprintf("%s %d %d", r.ns, r.numbered, i))
			o.Images = append(o.Images, subject.Ref())
		}
		out = append(out, watchtest.Generate(r.numbered, o))
	}
	return out
}

func (r *rig) load(runs ...watchtest.Run) {
	r.t.Helper()
	if err := watchtest.Load(r.t.Context(), r.c.Dynamic, runs...); err != nil {
		r.t.Fatal(err)
	}
}

// images are those that a generated run says it pushed.
func images(run watchtest.Run) []string {
	var out []string
	for _, tr := range run.TaskRuns {
		url, digest := "", ""
		for _, res := range tr.Status.Results {
			switch res.Name {
			case "IMAGE_URL":
				url = res.Value.StringVal
			case "IMAGE_DIGEST":
				digest = res.Value.StringVal
			}
		}
		if url != "" {
			out = append(out, url[:strings.LastIndexByte(url, ':')]+"@"+digest)
		}
	}
	return out
}

// layers are the payloads and annotations in one of cosign's tags of an image;
// none if there is no such tag.
type layer struct {
	payload     []byte // of an attestation: the statement
	annotations map[string]string
	keyid       string
}

func (r *rig) layers(image, suffix string) []layer {
	r.t.Helper()
	repo, digest, _ := strings.Cut(image, "@")
	ref, err := name.ParseReference(repo+":"+strings.Replace(digest, ":", "-", 1)+suffix, name.Insecure)
	if err != nil {
		r.t.Fatal(err)
	}
	img, err := remote.Image(ref, remote.WithContext(r.t.Context()))
	var te *transport.Error
	if errors.As(err, &te) && te.StatusCode == http.StatusNotFound {
		return nil
	}
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		r.t.Fatal(err)
	}
	var out []layer
	for _, d := range m.Layers {
		l, err := img.LayerByDigest(d.Digest)
		if err != nil {
			r.t.Fatal(err)
		}
		rc, err := l.Compressed()
		if err != nil {
			r.t.Fatal(err)
		}
		b, err := io.ReadAll(rc)
		_ = rc.Close()
		if err != nil {
			r.t.Fatal(err)
		}
		got := layer{payload: b, annotations: d.Annotations}
		if suffix == ".att" {
			got.payload, got.keyid = open(r.t, b)
		}
		out = append(out, got)
	}
	return out
}

// open takes the statement out of a DSSE envelope.
func open(t *testing.T, envelope []byte) (payload []byte, keyid string) {
	t.Helper()
	var e struct {
		Payload    string
		Signatures []struct{ KeyID string }
	}
	if err := json.Unmarshal(envelope, &e); err != nil {
		t.Fatalf("reading an envelope: %v", err)
	}
	payload, err := base64.StdEncoding.DecodeString(e.Payload)
	if err != nil || len(e.Signatures) == 0 {
		t.Fatalf("reading an envelope: %v, %d signatures", err, len(e.Signatures))
	}
	return payload, e.Signatures[0].KeyID
}

// complete fails unless every image of a generated run has exactly one signature,
// and the one that is the run's subject exactly one statement.
func (r *rig) complete(run watchtest.Run) {
	r.t.Helper()
	all := images(run)
	if len(all) != 6 {
		r.t.Fatalf("%s has %d images", run.PipelineRun.Name, len(all))
	}
	for _, image := range all {
		if n := len(r.layers(image, ".sig")); n != 1 {
			r.t.Errorf("%s: %s has %d signatures", run.PipelineRun.Name, image, n)
		}
		// With deep inspection every image is a subject.
		if n := len(r.layers(image, ".att")); n != 1 {
			r.t.Errorf("%s: %s has %d statements", run.PipelineRun.Name, image, n)
		}
	}
}

// children are the processes that a process started.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread ended
		}
		for _, w := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(w)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, n)
		}
	}
	return out
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
