// Tests of the server: real HTTP and TLS on loopback, a real registry (olareg), real
// signatures and policies; cluster_test.go has a real kube-apiserver.
package gateserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/attest"
	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/gateserver"
	"assay.dev/assay/policy"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/conforma"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

const rules = `package main

# METADATA
# title: The component is not called bad
# custom:
#   short_name: name
deny contains result if {
	startswith(input.component_name, "bad")
	result := {"code": "main.name", "msg": sprintf("called %s", [input.component_name])}
}

# METADATA
# title: There is no spam
# custom:
#   short_name: spam
deny contains result if {
	input.spam
	result := {"code": "main.spam", "msg": "there is spam"}
}

# METADATA
# title: Odd names are odd
# custom:
#   short_name: odd
warn contains result if {
	startswith(input.component_name, "odd")
	result := {"code": "main.odd", "msg": "an odd name"}
}
`

// rig is a registry with images, a key, a policy, and what loads them.
type rig struct {
	t        *testing.T
	dir      string
	registry string
	key      *attest.Key
	// hold, while set, is called by the registry before each answer.
	hold   atomic.Pointer[func(*http.Request)]
	judged atomic.Int64 // gates made
	log    *logged
}

// logged is a log that is read while it is written.
type logged struct {
	lines chan string
}

func (l *logged) Write(b []byte) (int, error) {
	select {
	case l.lines <- string(b):
	default:
	}
	return len(b), nil
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), key: storetest.NewKey(t), log: &logged{make(chan string, 10000)}}
	t.Setenv("DOCKER_CONFIG", r.dir)
	reg := storetest.NewRegistry(true)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if f := r.hold.Load(); f != nil {
			(*f)(req)
		}
		reg.ServeHTTP(w, req)
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	r.registry = strings.TrimPrefix(srv.URL, "http://")
	r.write("policy/rules/main.rego", rules)
	r.write("policy/policy.yaml", "name: test\nsources: [{policy: [./rules]}]\n")
	return r
}

func (r *rig) write(path, text string) string {
	r.t.Helper()
	p := filepath.Join(r.dir, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o600)); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// image pushes an image, which is signed and attested.
func (r *rig) image(repo string, signed bool) store.Subject {
	r.t.Helper()
	s := storetest.PushImage(r.t, http.DefaultTransport, r.registry, repo, "v1")
	if !signed {
		return s
	}
	n, err := name.NewRepository(s.Repo)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := oci.New(n, nil, oci.Options{}).Put(r.t.Context(), s, storetest.Signature(r.t, r.key, s), storetest.Provenance(r.t, r.key, s, repo)); err != nil {
		r.t.Fatal(err)
	}
	return s
}

// load is what a server loads.
func (r *rig) load(ctx context.Context) (*gateserver.Standing, error) {
	p, err := policy.Load(ctx, filepath.Join(r.dir, "policy"), policy.Options{})
	if err != nil {
		return nil, err
	}
	base := &gate.Gate{Policy: p, Transport: http.DefaultTransport, Keys: []verify.Key{{Name: "key", Public: r.key.Public()}}}
	return &gateserver.Standing{
		Policy: p, Trust: "sha256:trust",
		New: func(now time.Time) (*gate.Gate, error) {
			r.judged.Add(1)
			return base.Again(now, now)
		},
		Input: func(ctx context.Context, when time.Time) (*conforma.Policy, *conforma.Spec, error) {
			set, err := builtin.New(builtin.Options{})
			if err != nil {
				return nil, nil, err
			}
			s := &conforma.Spec{Sources: []conforma.Source{{Policy: []string{filepath.Join(r.dir, "policy", "rules")}}}}
			c, err := conforma.Load(ctx, s, conforma.Options{When: when, Builtins: set})
			return c, s, err
		},
	}, nil
}

// serve is a server that is ready, on HTTP, open to all unless the options say more.
func (r *rig) serve(o gateserver.Options) (*gateserver.Server, string) {
	r.t.Helper()
	o.Load = r.load
	if o.Access.Tokens == "" {
		o.Access.Open = true
	}
	o.Log = slog.New(slog.NewJSONHandler(r.log, nil))
	s, err := gateserver.New(o)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := s.Reload(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	h := httptest.NewServer(s.Handler())
	r.t.Cleanup(h.Close)
	return s, h.URL
}

// said is an answer.
type said struct {
	status         int
	result, conf   string
	body           string
	retry          string
	header         http.Header
	admission      *gateserver.Response
	decodedAnswers map[string]any
}

func (r *rig) ask(method, url, body string, header ...string) said {
	r.t.Helper()
	s, err := ask(r.t.Context(), http.DefaultClient, method, url, body, header...)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func ask(ctx context.Context, c *http.Client, method, url, body string, header ...string) (said, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return said{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		return said{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return said{}, err
	}
	out := said{status: resp.StatusCode, result: resp.Header.Get("X-Assay-Result"), conf: resp.Header.Get("X-Conforma-Result"), retry: resp.Header.Get("Retry-After"), body: string(b), header: resp.Header}
	var review struct {
		Response *gateserver.Response `json:"response"`
	}
	if json.Unmarshal(b, &review) == nil {
		out.admission = review.Response
	}
	_ = json.Unmarshal(b, &out.decodedAnswers)
	return out, nil
}

// review is an AdmissionReview for a Pod that is created with images.
func review(images ...string) string {
	var list []string
	for i, image := range images {
		list = append(list, fmt.Sprintf(`{"name":"c%d","image":%q}`, i, image))
	}
	return reviewOf("", "Pod", "CREATE", `{"spec":{"containers":[`+strings.Join(list, ",")+`]}}`, "null")
}

func reviewOf(group, kind, operation, object, old string) string {
	return fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u-1","kind":{"group":%q,"version":"v1","kind":%q},"operation":%q,"namespace":"ns","object":%s,"oldObject":%s,"dryRun":false}}`, group, kind, operation, object, old)
}
