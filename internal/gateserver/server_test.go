package gateserver_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/internal/gateserver"
)

// TestImages: the gate's report, what it comes to, and what is no request.
func TestImages(t *testing.T) {
	r := newRig(t)
	_, url := r.serve(gateserver.Options{MaxImages: 3})
	good, bad, bare := r.image("app/good", true), r.image("app/bad", true), r.image("app/bare", false)
	gone := r.registry + "/app/gone:1"
	images := func(refs ...string) string { return `{"images":["` + strings.Join(refs, `","`) + `"]}` }
	for name, tc := range map[string]struct {
		body   string
		status int
		result string
		want   string
	}{
		"passes":        {images(good.Ref()), 200, "pass", `"success": true`},
		"by tag":        {images(good.Repo + ":v1"), 200, "pass", good.Digest},
		"refused":       {images(good.Ref(), bad.Ref()), 200, "fail", "called bad"},
		"unsigned":      {images(bare.Ref()), 200, "fail", "builtin.image.signature_check"},
		"not checked":   {images(good.Ref(), gone), 200, "unchecked", "no such artifact"},
		"a Snapshot":    {`{"apiVersion":"appstudio.redhat.com/v1alpha1","kind":"Snapshot","spec":{"components":[{"name":"bad-one","containerImage":"` + good.Ref() + `"}]}}`, 200, "fail", "called bad-one"},
		"a list":        {`["` + good.Ref() + `"]`, 200, "pass", ""},
		"too many":      {images("a", "b", "c", "d"), 413, "", "4 images; a request may have 3"},
		"none":          {`{"images":[]}`, 400, "", "nothing would be checked"},
		"no list":       {`{"images":"x"}`, 400, "", "no list"},
		"no reference":  {`{"images":[1]}`, 400, "", "image 1 is no reference"},
		"another key":   {`{"images":["x"],"policy":"y"}`, 400, "", "policy"},
		"twice":         {`{"images":["x"],"images":["y"]}`, 400, "", "images"},
		"not JSON":      {`{`, 400, "", "error"},
		"nothing":       {``, 400, "", "request body is empty"},
		"another thing": {`{"kind":"Pod","apiVersion":"v1"}`, 400, "", "want Snapshot"},
	} {
		t.Run(name, func(t *testing.T) {
			got := r.ask(http.MethodPost, url+"/v1/validate/image", tc.body)
			if got.status != tc.status || got.result != tc.result || !strings.Contains(got.body, tc.want) || got.conf != "" {
				t.Errorf("%d %q, want %d %q and %q\n%s", got.status, got.result, tc.status, tc.result, tc.want, got.body)
			}
		})
	}
}

// TestInput: as Conforma's server.
func TestInput(t *testing.T) {
	r := newRig(t)
	_, url := r.serve(gateserver.Options{Version: "v9"})
	for name, tc := range map[string]struct {
		mediaType, body string
		status          int
		result, want    string
	}{
		"passes":      {"application/json", `{"component_name":"x"}`, 200, "pass", `"ec-version":"v9"`},
		"fails":       {"application/json", `{"component_name":"x","spam":true}`, 200, "fail", "there is spam"},
		"YAML":        {"application/yaml", "component_name: x\nspam: true", 200, "fail", `"filepath":"input"`},
		"not said":    {"", "component_name: x\nspam: true", 200, "fail", ""},
		"neither":     {"", "not valid json or yaml map", 400, "", `{"error":"request body is not valid JSON or YAML","status":400}`},
		"said wrong":  {"application/json", "spam: true", 400, "", "not valid"},
		"nothing":     {"", "", 400, "", `{"error":"request body is empty","status":400}`},
		"no document": {"application/json", "[]", 500, "", `{"error":"evaluation failed","status":500}`},
	} {
		t.Run(name, func(t *testing.T) {
			got := r.ask(http.MethodPost, url+"/v1/validate/input", tc.body, "Content-Type", tc.mediaType)
			if got.status != tc.status || got.conf != tc.result || !strings.Contains(got.body, tc.want) || got.result != "" {
				t.Errorf("%d %q, want %d %q and %q\n%s", got.status, got.conf, tc.status, tc.result, tc.want, got.body)
			}
		})
	}
}

// TestReload: what moves is served, what is broken is not, and it is said.
func TestReload(t *testing.T) {
	r := newRig(t)
	bad := r.image("app/bad", true)
	s, err := gateserver.New(gateserver.Options{Load: r.load, Access: gateserver.Access{Open: true}, Log: slog.New(slog.NewJSONHandler(r.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l, nil) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	status := func(path string) int { return r.ask(http.MethodGet, url+path, "").status }
	if status("/live") != 200 || status("/ready") != 503 || status("/v1/policy") != 503 {
		t.Errorf("before there is a policy: live %d, ready %d, policy %d", status("/live"), status("/ready"), status("/v1/policy"))
	}
	if got := r.ask(http.MethodPost, url+"/v1/validate/image", `["`+bad.Ref()+`"]`); got.status != 503 || got.result != "" {
		t.Errorf("an image before there is a policy: %+v", got)
	}
	if got := r.ask(http.MethodPost, url+"/v1/admit", review(bad.Ref())); got.admission == nil || got.admission.Allowed || got.admission.Status.Code != 503 {
		t.Errorf("admission before there is a policy: %s", got.body)
	}
	rulesFile := filepath.Join(r.dir, "policy/rules/main.rego")
	r.write("policy/rules/main.rego", "package main\n{")
	if err := s.Reload(t.Context()); err == nil || s.Ready() {
		t.Errorf("a broken policy at first: %v", err)
	}
	r.write("policy/rules/main.rego", rules)
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	digest := func() string { return fmt.Sprint(r.ask(http.MethodGet, url+"/v1/policy", "").decodedAnswers["digest"]) }
	judged := func() string { return r.ask(http.MethodPost, url+"/v1/validate/image", `["`+bad.Ref()+`"]`).result }
	first := digest()
	if status("/ready") != 200 || !strings.HasPrefix(first, "sha256:") || judged() != "fail" {
		t.Errorf("ready %d, policy %s, %s", status("/ready"), first, judged())
	}
	for what, breakIt := range map[string]func() error{
		"is broken": func() error { return os.WriteFile(rulesFile, []byte("package main\n{"), 0o600) },
		"is gone":   func() error { return os.Remove(rulesFile) },
	} {
		if err := breakIt(); err != nil {
			t.Fatal(err)
		}
		if err := s.Reload(t.Context()); err == nil {
			t.Errorf("a policy that %s is loaded", what)
		}
		if status("/ready") != 200 || digest() != first || judged() != "fail" {
			t.Errorf("a policy that %s: ready %d, serving %s", what, status("/ready"), digest())
		}
		if m := r.ask(http.MethodGet, url+"/metrics", "").body; !strings.Contains(m, "assay_gate_policy_valid 0") {
			t.Errorf("a policy that %s: no metric says so", what)
		}
	}
	r.write("policy/rules/main.rego", strings.ReplaceAll(rules, `"bad"`, `"worse"`))
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if digest() == first || judged() != "pass" {
		t.Errorf("the new policy does not serve: %s, %s", digest(), judged())
	}
	m := r.ask(http.MethodGet, url+"/metrics", "").body
	for _, want := range []string{
		"assay_gate_policy_valid 1", `assay_gate_policy_reloads_total{result="failed"} 3`, `assay_gate_policy_reloads_total{result="moved"} 2`,
		`assay_gate_images_total{endpoint="image",result="fail"}`, `assay_gate_policy_info{digest="` + digest() + `",name="test"} 1`,
		`assay_gate_requests_total{code="503",endpoint="ready"}`, `assay_gate_in_flight{pool="admit"} 0`,
	} {
		if !strings.Contains(m, want) {
			t.Errorf("no metric %s", want)
		}
	}
	close(r.log.lines)
	all := ""
	for line := range r.log.lines {
		all += line
	}
	r.log.lines = make(chan string, 10000)
	if !strings.Contains(all, "the one from before serves on") {
		t.Error("the log does not say that an old policy serves")
	}
}

// TestKeep: what cannot be loaded at first is tried again, unless it never can.
func TestKeep(t *testing.T) {
	never := errors.New("never")
	s, err := gateserver.New(gateserver.Options{Load: func(context.Context) (*gateserver.Standing, error) { return nil, never }})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Keep(t.Context(), func(err error) bool { return errors.Is(err, never) }); !errors.Is(err, never) {
		t.Error(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := s.Keep(ctx, nil); err != nil {
		t.Error(err)
	}
	for name, st := range map[string]*gateserver.Standing{"nothing": nil, "no policy": {Trust: "x"}} {
		s, err := gateserver.New(gateserver.Options{Load: func(context.Context) (*gateserver.Standing, error) { return st, nil }})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Reload(t.Context()); err == nil || s.Ready() {
			t.Errorf("%s is taken for a policy", name)
		}
	}
	if _, err := gateserver.New(gateserver.Options{}); err == nil {
		t.Error("a server that loads nothing")
	}
}

// TestLimits: too many, too large, too long.
func TestLimits(t *testing.T) {
	r := newRig(t)
	good := r.image("app/good", true)
	_, url := r.serve(gateserver.Options{MaxConcurrent: 1, MaxBody: 4096, MaxTime: time.Minute})
	begun, end := make(chan bool, 100), make(chan bool)
	hold := func(req *http.Request) {
		select {
		case begun <- true:
		default:
		}
		<-end
	}
	r.hold.Store(&hold)
	for _, path := range []string{"/v1/validate/image", "/v1/admit"} {
		body := `["` + good.Ref() + `"]`
		if path == "/v1/admit" {
			body = review(good.Ref())
		}
		first := make(chan said, 1)
		go func() {
			s, _ := ask(t.Context(), http.DefaultClient, http.MethodPost, url+path, body)
			first <- s
		}()
		<-begun
		if got := r.ask(http.MethodPost, url+path, body); got.status != 429 || got.retry == "" || got.result != "" || !strings.Contains(got.body, `"status":429`) {
			t.Errorf("%s with no slot free: %d %s", path, got.status, got.body)
		}
		// The others' slots are their own, and probes need none.
		for _, p := range []string{"/live", "/ready", "/metrics", "/v1/policy"} {
			if got := r.ask(http.MethodGet, url+p, ""); got.status != 200 {
				t.Errorf("%s with no slot free: %d", p, got.status)
			}
		}
		close(end)
		if got := <-first; got.status != 200 || got.result != "pass" {
			t.Errorf("%s: the first: %d %s", path, got.status, got.body)
		}
		end = make(chan bool)
		for len(begun) > 0 {
			<-begun
		}
	}
	r.hold.Store(nil)
	for _, path := range []string{"/v1/validate/image", "/v1/validate/input", "/v1/admit"} {
		if got := r.ask(http.MethodPost, url+path, strings.Repeat(" ", 4097)); got.status != 413 || !strings.Contains(got.body, "4096 byte") {
			t.Errorf("%s with a large body: %d %s", path, got.status, got.body)
		}
		if got := r.ask(http.MethodGet, url+path, ""); got.status != 405 {
			t.Errorf("GET %s: %d", path, got.status)
		}
	}
	if got := r.ask(http.MethodPost, url+"/v1/validate/image", `["`+good.Ref()+`"]`, "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"); got.status != 403 {
		t.Errorf("a browser that another site drives: %d", got.status)
	}
}

// TestTimeout: a registry that does not answer ends the judgement, and what waits for an
// admission is told so and not let through.
func TestTimeout(t *testing.T) {
	r := newRig(t)
	good := r.image("app/good", true)
	_, url := r.serve(gateserver.Options{MaxTime: 300 * time.Millisecond})
	end := make(chan bool)
	hold := func(*http.Request) { <-end }
	r.hold.Store(&hold)
	if got := r.ask(http.MethodPost, url+"/v1/validate/image", `["`+good.Ref()+`"]`); got.status != 500 || got.result != "" || !strings.Contains(got.body, "timed out") {
		t.Errorf("%d %q %s", got.status, got.result, got.body)
	}
	got := r.ask(http.MethodPost, url+"/v1/admit?timeout=100ms", review(good.Ref()))
	if got.status != 200 || got.admission == nil || got.admission.Allowed || got.admission.Status.Code != 503 || !strings.Contains(got.admission.Status.Message, "not over yet") || got.result != "unchecked" {
		t.Errorf("%d %s", got.status, got.body)
	}
	got = r.ask(http.MethodPost, url+"/v1/admit?timeout=10s", review(good.Ref()))
	if got.admission == nil || got.admission.Allowed || got.admission.Status.Code != 503 {
		t.Errorf("%d %s", got.status, got.body)
	}
	// Nothing of that is kept.
	r.hold.Store(nil)
	close(end)
	for range 100 {
		if got = r.ask(http.MethodPost, url+"/v1/admit", review(good.Ref())); got.result == "pass" {
			return
		}
		time.Sleep(20 * time.Millisecond) // the one before may still be under way
	}
	t.Errorf("the registry answers again: %s", got.body)
}

// TestDrain: a server that is told to stop says that it is not ready, and serves on.
func TestDrain(t *testing.T) {
	r := newRig(t)
	good := r.image("app/good", true)
	s, err := gateserver.New(gateserver.Options{Load: r.load, Access: gateserver.Access{Open: true}, Drain: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l, nil) }()
	url := "http://" + l.Addr().String()
	if got := r.ask(http.MethodGet, url+"/ready", ""); got.status != 200 {
		t.Errorf("ready: %d", got.status)
	}
	stop()
	for r.ask(http.MethodGet, url+"/ready", "").status == 200 {
		time.Sleep(time.Millisecond) // the context's end takes a moment to be seen
	}
	if got := r.ask(http.MethodPost, url+"/v1/admit", review(good.Ref())); got.result != "pass" {
		t.Errorf("while it drains: %d %s", got.status, got.body)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-served; err == nil {
		t.Error("the listener was closed, and nobody says so")
	}
}
