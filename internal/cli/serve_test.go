package cli

// The server is the real one, as the command line starts it, and the registry is olareg.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

const serveRules = `package main

# METADATA
# title: The component is not called bad
# custom:
#   short_name: name
deny contains result if {
	startswith(input.component_name, "bad")
	result := {"code": "main.name", "msg": "called bad"}
}
`

// shared is a buffer that is read while it is written.
type shared struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shared) Write(b []byte) (int, error) { s.mu.Lock(); defer s.mu.Unlock(); return s.b.Write(b) }
func (s *shared) String() string              { s.mu.Lock(); defer s.mu.Unlock(); return s.b.String() }

type serveRig struct {
	t        *testing.T
	dir      string
	registry string
	pub      string
	good     string
}

func newServeRig(t *testing.T) *serveRig {
	t.Helper()
	r := &serveRig{t: t, dir: t.TempDir()}
	t.Setenv("ASSAY_HOME", filepath.Join(r.dir, "home"))
	t.Setenv("XDG_CACHE_HOME", filepath.Join(r.dir, "cache"))
	t.Setenv("DOCKER_CONFIG", r.dir)
	srv := httptest.NewUnstartedServer(storetest.NewRegistry(true))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	r.registry = strings.TrimPrefix(srv.URL, "http://")
	key := storetest.NewKey(t)
	r.pub = r.write("key.pub", string(storetest.Public(t, key).PEM()))
	s := storetest.PushImage(t, http.DefaultTransport, r.registry, "app/good", "v1")
	repo, err := name.NewRepository(s.Repo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oci.New(repo, nil, oci.Options{}).Put(t.Context(), s, storetest.Signature(t, key, s), storetest.Provenance(t, key, s, "x")); err != nil {
		t.Fatal(err)
	}
	r.good = s.Ref()
	return r
}

func (r *serveRig) write(path, text string) string {
	r.t.Helper()
	p := filepath.Join(r.dir, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o600)); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// eventually asks until the answer is yes.
func (r *serveRig) eventually(what string, ask func() bool) {
	r.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ask() {
			return
		}
	}
	r.t.Fatalf("waited a minute in vain for %s", what)
}

// start runs gate serve and returns its address and what it logs.
func (r *serveRig) start(args ...string) (string, *shared) {
	r.t.Helper()
	ctx, stop := context.WithCancel(r.t.Context())
	out, errw := &shared{}, &shared{}
	root := (&app{in: strings.NewReader(""), out: out, err: errw}).root()
	root.SetArgs(append([]string{"gate", "serve", "--listen", "127.0.0.1:0", "--retries", "0", "--key", r.pub}, args...))
	root.SetOut(out)
	root.SetErr(errw)
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx) }()
	r.t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			r.t.Errorf("the server ended with: %v", err)
		}
		if out.String() != "" {
			r.t.Errorf("on standard output: %s", out)
		}
	})
	at := regexp.MustCompile(`"msg":"serving","address":"([0-9.:]+)"`)
	url := ""
	r.eventually("the server", func() bool {
		if m := at.FindStringSubmatch(errw.String()); m != nil {
			url = "http://" + m[1]
		}
		return url != ""
	})
	return url, errw
}

func (r *serveRig) ask(method, url, body string) (int, http.Header, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

// TestGateServe: all endpoints by the command line, and a policy that moves under it.
func TestGateServe(t *testing.T) {
	r := newServeRig(t)
	r.write("policy/rules/main.rego", serveRules)
	r.write("policy/data/x.yaml", "rule_data: {x: 1}\n")
	for form, policy := range map[string]string{
		"a configuration": filepath.Dir(r.write("policy/policy.yaml", "name: test\nsources: [{policy: [./rules], data: [./data]}]\n")),
		"a folder":        filepath.Join(r.dir, "policy", "rules"),
		"a text":          `{"name":"inline","sources":[{"policy":["` + filepath.Join(r.dir, "policy", "rules") + `"]}]}`,
	} {
		t.Run(form, func(t *testing.T) {
			r := *r
			r.t = t
			r.write("policy/rules/main.rego", serveRules)
			url, log := r.start("--policy", policy, "--reload", "20ms")
			ready := func() bool { status, _, _ := r.ask("GET", url+"/ready", ""); return status == 200 }
			r.eventually("readiness", ready)
			if status, h, body := r.ask("POST", url+"/v1/validate/image", `{"images":["`+r.good+`"]}`); status != 200 || h.Get("X-Assay-Result") != "pass" || !strings.Contains(body, `"success": true`) {
				t.Errorf("an image: %d %v %s", status, h, body)
			}
			for in, want := range map[string]string{`{"component_name":"bad"}`: "fail", `{"component_name":"x"}`: "pass"} {
				if status, h, body := r.ask("POST", url+"/v1/validate/input", in); status != 200 || h.Get("X-Conforma-Result") != want || !strings.Contains(body, `"ec-version":"`+Version()) {
					t.Errorf("%s: %d %v %s\n%s", in, status, h, body, log)
				}
			}
			digest := func() string {
				var p struct{ Digest string }
				_, _, body := r.ask("GET", url+"/v1/policy", "")
				if err := json.Unmarshal([]byte(body), &p); err != nil || p.Digest == "" {
					t.Fatalf("%s: %v", body, err)
				}
				return p.Digest
			}
			first := digest()
			r.write("policy/rules/main.rego", "package main\n{")
			r.eventually("a word about the broken policy", func() bool { return strings.Contains(log.String(), "the one from before serves on") })
			if digest() != first || !ready() {
				t.Error("a broken policy serves, or nothing does")
			}
			r.write("policy/rules/main.rego", strings.ReplaceAll(serveRules, `"bad"`, `"good"`))
			r.eventually("the new policy", func() bool { return digest() != first })
			if _, h, body := r.ask("POST", url+"/v1/validate/image", `["`+r.good+`"]`); h.Get("X-Assay-Result") != "fail" {
				t.Errorf("by the new policy: %s", body)
			}
			if _, h, body := r.ask("POST", url+"/v1/validate/input", `{"component_name":"good"}`); h.Get("X-Conforma-Result") != "fail" {
				t.Errorf("an input by the new policy: %s", body)
			}
		})
	}
}

// TestGateServeStill: what did not move is not compiled again; keys are read again all
// the same.
func TestGateServeStill(t *testing.T) {
	r := newServeRig(t)
	r.write("policy/rules/main.rego", serveRules)
	file := r.write("policy/policy.yaml", "name: test\nsources: [{policy: [./rules]}]\n")
	data := r.write("extra.yaml", "rule_data: {}\n")
	f := &serveFlags{}
	c := &cobra.Command{}
	f.add(c)
	if err := c.ParseFlags([]string{"--key", r.pub, "--policy", filepath.Join(r.dir, "policy"), "--data", data}); err != nil {
		t.Fatal(err)
	}
	k := &standings{app: &app{err: io.Discard}, flags: f}
	one, err := k.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	two, err := k.load(t.Context())
	if err != nil || two.Policy != one.Policy || two.Trust != one.Trust {
		t.Errorf("nothing moved, and it was loaded again: %v", err)
	}
	last := two.Policy
	for what, change := range map[string]func(){
		"the configuration": func() { r.write("policy/policy.yaml", "name: other\nsources: [{policy: [./rules]}]\n") },
		"a rule":            func() { r.write("policy/rules/main.rego", serveRules+"\nx := 1\n") },
		"another file":      func() { r.write("policy/rules/more.yaml", "rule_data: {y: 1}\n") },
		"extra data":        func() { r.write("extra.yaml", "rule_data: {z: 1}\n") },
	} {
		change()
		st, err := k.load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if what != "another file" && st.Policy.Digest() == last.Digest() {
			t.Errorf("%s moved, and the old policy is served", what)
		}
		last = st.Policy
	}
	if err := os.WriteFile(r.pub, []byte(storetest.Public(t, storetest.NewKey(t)).PEM()), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := k.load(t.Context())
	if err != nil || st.Policy != last || st.Trust == one.Trust {
		t.Errorf("another key: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := k.load(t.Context()); err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Error("the configuration is gone, and something is served")
	}
}

// TestGateServeUsage: what would serve the wrong people is refused at once.
func TestGateServeUsage(t *testing.T) {
	r := newServeRig(t)
	r.write("policy/rules/main.rego", serveRules)
	tokens := r.write("tokens", "ci aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n")
	for name, tc := range map[string]struct {
		args string
		code int
		want string
	}{
		"no policy":            {"--key " + r.pub, 2, "no policy given"},
		"no key":               {"--policy " + r.dir + "/policy/rules", 2, "no key given"},
		"everywhere":           {"--key " + r.pub + " --policy x --listen :0", 2, "--tokens or --client-ca"},
		"a key alone":          {"--key " + r.pub + " --policy x --tls-key x", 2, "give both"},
		"an authority alone":   {"--key " + r.pub + " --policy x --client-ca x", 2, "--tls-cert"},
		"a name alone":         {"--key " + r.pub + " --policy x --client-name x", 2, "--client-ca"},
		"tokens and everybody": {"--key " + r.pub + " --policy x --tokens " + tokens + " --insecure-no-auth", 2, "leave out"},
		"no time":              {"--key " + r.pub + " --policy x --timeout 0s", 2, "more than nothing"},
		"no tokens":            {"--key " + r.pub + " --policy x --tokens " + r.dir + "/none", 1, "none"},
		"an image":             {"image --policy x", 2, "unknown"},
		"no address":           {"--key " + r.pub + " --policy x --listen 127.0.0.1:x", 1, "starting the server"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errw bytes.Buffer
			code := Main(append([]string{"gate", "serve", "--listen", "127.0.0.1:0"}, strings.Fields(tc.args)...), strings.NewReader(""), &out, &errw)
			if code != tc.code || !strings.Contains(errw.String(), tc.want) || out.Len() > 0 {
				t.Errorf("%d, want %d and %q\n%s%s", code, tc.code, tc.want, &out, &errw)
			}
		})
	}
}
