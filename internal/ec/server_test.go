package ec

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/policy/conforma"
)

// guarded is a buffer that is written and read at a time.
type guarded struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (g *guarded) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.b.Write(b)
}

func (g *guarded) String() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.b.String()
}

// startServer runs validate input --server on any port and returns its address.
func startServer(t *testing.T, args ...string) string {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	root, g := newRoot()
	root.SetArgs(append([]string{"validate", "input", "--server", "--server-port", "0"}, args...))
	out, errw := &guarded{}, &guarded{}
	root.SetOut(out)
	root.SetErr(errw)
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the server ended with: %v", err)
		}
		if err := g.stop(); err != nil {
			t.Error(err)
		}
		if out.String() != "" {
			t.Errorf("on standard output: %s", out)
		}
	})
	at := regexp.MustCompile(`Server listening on ([0-9.]+:\d+)`)
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if m := at.FindStringSubmatch(errw.String()); m != nil {
			return "http://" + m[1]
		}
		select {
		case err := <-ended:
			ended <- nil
			t.Fatalf("the server did not start: %v", err)
		default:
		}
	}
	t.Fatalf("the server did not start:\n%s", errw)
	return ""
}

func post(t *testing.T, url, mediaType, body string) (int, string, map[string]any) {
	t.Helper()
	resp, err := http.Post(url+"/v1/validate/input", mediaType, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var report map[string]any
	if err := json.Unmarshal(b, &report); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return resp.StatusCode, resp.Header.Get("X-Conforma-Result"), report
}

func serverPolicy(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	rules := "package main\n# METADATA\n# title: Spam\n# custom:\n#   short_name: spam\ndeny contains result if {\n\tinput.spam\n\tresult := {\"code\": \"main.spam\", \"msg\": \"there is spam\"}\n}\n"
	if err := os.WriteFile(filepath.Join(dir, "main.rego"), []byte(rules), 0o644); err != nil {
		t.Fatal(err)
	}
	return `{"sources":[{"policy":["` + dir + `"]}]}`
}

func TestServer(t *testing.T) {
	url := startServer(t, "-p", serverPolicy(t))
	for name, tt := range map[string]struct {
		mediaType, body string
		status          int
		result          string
		want            map[string]any
	}{
		"passes": {"application/json", `{}`, 200, "pass", map[string]any{"filepath": "input", "violations": []any{}, "warnings": []any{}, "successes": nil, "success": true, "success-count": 1.0}},
		"fails": {"application/json", `{"spam":true}`, 200, "fail", map[string]any{
			"filepath": "input", "violations": []any{map[string]any{"msg": "there is spam", "metadata": map[string]any{"code": "main.spam"}}},
			"warnings": []any{}, "successes": nil, "success": false, "success-count": 0.0}},
		"YAML":               {"application/yaml", "spam: true", 200, "fail", nil},
		"YAML, not said":     {"", "spam: true", 200, "fail", nil},
		"JSON, not said":     {"text/plain", `[{"spam": true}]`, 200, "fail", nil},
		"neither":            {"", "not valid json or yaml map", 400, "", map[string]any{"error": "request body is not valid JSON or YAML", "status": 400.0}},
		"YAML, said to JSON": {"application/json", "spam: true", 400, "", nil},
		"JSON list as YAML":  {"application/yaml", `[1]`, 400, "", nil},
		"nothing":            {"", "", 400, "", map[string]any{"error": "request body is empty", "status": 400.0}},
		"no documents":       {"application/json", "[]", 500, "", map[string]any{"error": "evaluation failed", "status": 500.0}},
	} {
		t.Run(name, func(t *testing.T) {
			status, result, report := post(t, url, tt.mediaType, tt.body)
			if status != tt.status || result != tt.result {
				t.Errorf("%d %q, want %d %q: %v", status, result, tt.status, tt.result, report)
			}
			if tt.want == nil {
				return
			}
			got := report
			if status == 200 {
				got = report["filepaths"].([]any)[0].(map[string]any)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	for path, want := range map[string]string{"/live": `{"status":"ok"}`, "/ready": `{"status":"ready"}`} {
		resp, err := http.Get(url + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != want || resp.StatusCode != 200 {
			t.Errorf("%s: %d %s %v", path, resp.StatusCode, b, err)
		}
	}
}

// TestServerShows: flags of reports count for the server.
func TestServerShows(t *testing.T) {
	url := startServer(t, "-p", serverPolicy(t), "--show-successes", "--info", "--workers", "3")
	_, _, report := post(t, url, "application/json", `{}`)
	got := report["filepaths"].([]any)[0].(map[string]any)["successes"]
	want := []any{map[string]any{"msg": "Pass", "metadata": map[string]any{"code": "main.spam", "title": "Spam"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestServerNow: now goes on while a server runs; a time that was named does not.
func TestServerNow(t *testing.T) {
	loads := 0
	s := &inputServer{load: func(_ context.Context, at time.Time) (*conforma.Policy, error) {
		loads++
		return &conforma.Policy{}, nil
	}}
	s.when = time.Now().Add(-time.Hour)
	for range 3 {
		in, err := s.current(t.Context())
		if err != nil || time.Since(in.when) > maxAge {
			t.Fatalf("%v %v", in.when, err)
		}
	}
	if loads != 1 {
		t.Errorf("loaded %d times", loads)
	}
	s.fixed, s.when = true, time.Now().Add(-time.Hour)
	if in, err := s.current(t.Context()); err != nil || time.Since(in.when) < time.Hour || loads != 1 {
		t.Errorf("a named time: %v %v, %d loads", in.when, err, loads)
	}
}

func TestServerRefused(t *testing.T) {
	for name, tt := range map[string]struct{ args, want string }{
		"files":      {`x.json --server -p {"sources":[{"policy":["/none"]}]}`, "mutually exclusive"},
		"no sources": {`--server -p {}`, "loading policy sources"},
		"port":       {`--server --server-port 70000 -p ` + serverPolicy(t), "a port is a number"},
	} {
		var out, errw bytes.Buffer
		if code := Main(append([]string{"validate", "input"}, strings.Fields(tt.args)...), &out, &errw); code != 1 || !strings.Contains(errw.String(), tt.want) || out.Len() > 0 {
			t.Errorf("%s: %d %s%s", name, code, &out, &errw)
		}
	}
}
