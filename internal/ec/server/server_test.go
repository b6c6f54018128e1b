// These tests are against a real net/http server on loopback.
package server_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/internal/ec/server"
)

type answer struct {
	Status int
	Result string
	Type   string
	Body   string
}

func ask(t *testing.T, method, url, body string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header.Get("X-Conforma-Result"), resp.Header.Get("Content-Type"), strings.TrimSpace(string(b))}
}

func TestAnswers(t *testing.T) {
	var log bytes.Buffer
	judge := func(ctx context.Context, r server.Request) (server.Verdict, error) {
		if r.MediaType != "application/json" {
			t.Errorf("media type %q", r.MediaType)
		}
		switch string(r.Body) {
		case "pass", "fail":
			return server.Verdict{Report: []byte(`{"said":"` + string(r.Body) + `"}`), Pass: string(r.Body) == "pass"}, nil
		case "refuse":
			return server.Verdict{Pass: true}, &server.Error{Message: "no input", Status: http.StatusBadRequest}
		case "error":
			return server.Verdict{Pass: true, Report: []byte("{}")}, errors.New("secret cause")
		case "nothing":
			return server.Verdict{Pass: true}, nil
		case "slow":
			<-ctx.Done()
			return server.Verdict{}, errors.New("stopped")
		case "slow pass": // late, and yet an answer
			<-ctx.Done()
			return server.Verdict{Report: []byte("{}"), Pass: true}, nil
		}
		panic("what is this")
	}
	s := httptest.NewServer(server.Handler(map[string]server.Judge{"/v1/validate/input": judge}, server.Options{
		MaxBody: 20, MaxTime: 50 * time.Millisecond, Ready: func() bool { return true }, Log: slog.New(slog.NewJSONHandler(&log, nil)),
	}))
	defer s.Close()
	const js = "application/json"
	for body, want := range map[string]answer{
		"pass":                  {200, "pass", js, `{"said":"pass"}`},
		"fail":                  {200, "fail", js, `{"said":"fail"}`},
		"":                      {400, "", js, `{"error":"request body is empty","status":400}`},
		"refuse":                {400, "", js, `{"error":"no input","status":400}`},
		"error":                 {500, "", js, `{"error":"evaluation failed","status":500}`},
		"nothing":               {500, "", js, `{"error":"evaluation failed","status":500}`},
		"slow":                  {500, "", js, `{"error":"evaluation timed out","status":500}`},
		"slow pass":             {200, "pass", js, `{}`},
		"panic":                 {500, "", js, `{"error":"internal server error","status":500}`},
		strings.Repeat("x", 21): {413, "", js, `{"error":"request body exceeds 20 byte limit","status":413}`},
	} {
		if diff := cmp.Diff(want, ask(t, http.MethodPost, s.URL+"/v1/validate/input", body)); diff != "" {
			t.Errorf("%.20q (-want +got):\n%s", body, diff)
		}
	}
	if got := ask(t, http.MethodGet, s.URL+"/v1/validate/input", ""); got.Status != http.StatusMethodNotAllowed {
		t.Errorf("GET of a judgement: %+v", got)
	}
	s.Close()
	if !strings.Contains(log.String(), "secret cause") {
		t.Errorf("the log does not say why the judgement failed:\n%s", &log)
	}
}

func TestProbes(t *testing.T) {
	ready := false
	s := httptest.NewServer(server.Handler(nil, server.Options{Ready: func() bool { return ready }}))
	defer s.Close()
	if got := ask(t, http.MethodGet, s.URL+"/live", ""); got.Status != 200 || got.Body != `{"status":"ok"}` {
		t.Errorf("live: %+v", got)
	}
	if got := ask(t, http.MethodGet, s.URL+"/ready", ""); got.Status != 503 || got.Body != `{"status":"not ready"}` {
		t.Errorf("not ready: %+v", got)
	}
	ready = true
	if got := ask(t, http.MethodGet, s.URL+"/ready", ""); got.Status != 200 || got.Body != `{"status":"ready"}` {
		t.Errorf("ready: %+v", got)
	}
	never := httptest.NewServer(server.Handler(nil, server.Options{}))
	defer never.Close()
	if got := ask(t, http.MethodGet, never.URL+"/ready", ""); got.Status != 503 {
		t.Errorf("options of nothing: %+v", got)
	}
}

// TestStop: what is being judged when the server is told to stop gets its answer.
func TestStop(t *testing.T) {
	begun, end := make(chan bool), make(chan bool)
	h := server.Handler(map[string]server.Judge{"/x": func(context.Context, server.Request) (server.Verdict, error) {
		close(begun)
		<-end
		return server.Verdict{Report: []byte("{}"), Pass: true}, nil
	}}, server.Options{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l, h, time.Minute) }()
	got := make(chan answer, 1)
	go func() { got <- ask(t, http.MethodPost, "http://"+l.Addr().String()+"/x", "{}") }()
	<-begun
	stop()
	close(end)
	if a := <-got; a.Status != 200 || a.Result != "pass" {
		t.Errorf("the answer: %+v", a)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
