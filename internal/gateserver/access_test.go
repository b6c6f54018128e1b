package gateserver_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/internal/gateserver"
)

const tokenA, tokenB = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

func TestParseTokens(t *testing.T) {
	for name, tc := range map[string]struct {
		in    string
		names string
		fail  string
	}{
		"two":            {"# ours\nci " + tokenA + "\n\n kube\t" + tokenB + " \n", "ci kube", ""},
		"none":           {"# nothing\n", "", "no token"},
		"empty":          {"", "", "no token"},
		"no name":        {tokenA, "", "line 1: want a name and a token"},
		"short":          {"ci secret", "", "less than 20"},
		"three":          {"ci " + tokenA + " x", "", "want a name"},
		"one name":       {"ci " + tokenA + "\nci " + tokenB, "", "line 2"},
		"one token":      {"ci " + tokenA + "\nkube " + tokenA, "", "line 2"},
		"not for header": {"ci " + tokenA + "ä", "", "does not carry"},
	} {
		got, err := gateserver.ParseTokens([]byte(tc.in))
		var names []string
		for _, g := range got {
			names = append(names, g.Name)
		}
		if (err == nil) != (tc.fail == "") || err != nil && !strings.Contains(err.Error(), tc.fail) || strings.Join(names, " ") != tc.names {
			t.Errorf("%s: %v, %v", name, names, err)
		}
		if err != nil && strings.Contains(err.Error(), "aaaa") {
			t.Errorf("%s: the message has the token in it: %v", name, err)
		}
	}
}

// FuzzParseTokens: whatever is in the file, no empty and no short token comes of it.
func FuzzParseTokens(f *testing.F) {
	f.Add([]byte("ci " + tokenA))
	f.Add([]byte("# x\n\x00 \xff"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 64<<10 {
			t.Skip("bounded input")
		}
		got, err := gateserver.ParseTokens(raw)
		if (err == nil) != (len(got) > 0) {
			t.Fatalf("%d tokens, %v", len(got), err)
		}
		for _, g := range got {
			if g.Name == "" {
				t.Fatal("a token without a name")
			}
		}
	})
}

// TestAccess: who has no token has probes, and what is opened by name.
func TestAccess(t *testing.T) {
	r := newRig(t)
	good := r.image("app/good", true)
	file := r.write("tokens", "ci "+tokenA+"\n")
	_, url := r.serve(gateserver.Options{Access: gateserver.Access{Tokens: file}})
	_, anonymous := r.serve(gateserver.Options{Access: gateserver.Access{Tokens: file, OpenAdmission: true}})
	status := func(base, method, path, body, auth string) int {
		return r.ask(method, base+path, body, "Authorization", auth).status
	}
	image := `["` + good.Ref() + `"]`
	for name, auth := range map[string]string{"nothing": "", "another": "Bearer " + tokenB, "a part": "Bearer " + tokenA[:31], "more": "Bearer " + tokenA + "a", "its name": "Bearer ci", "basic": "Basic " + tokenA, "no scheme": tokenA, "an empty one": "Bearer "} {
		for path, method := range map[string]string{"/v1/validate/image": "POST", "/v1/validate/input": "POST", "/v1/admit": "POST", "/v1/policy": "GET", "/metrics": "GET"} {
			if got := status(url, method, path, image, auth); got != 401 {
				t.Errorf("%s with %s: %d", path, name, got)
			}
			if want := map[bool]int{true: 400, false: 401}[path == "/v1/admit"]; status(anonymous, method, path, image, auth) != want {
				t.Errorf("%s with %s, where admission is open: not %d", path, name, want)
			}
		}
		for _, path := range []string{"/live", "/ready"} {
			if got := status(url, "GET", path, "", auth); got != 200 {
				t.Errorf("%s with %s: %d", path, name, got)
			}
		}
	}
	if r.judged.Load() != 0 {
		t.Error("something was judged for nobody")
	}
	for _, auth := range []string{"Bearer " + tokenA, "bearer  " + tokenA} {
		if got := status(url, "POST", "/v1/validate/image", image, auth); got != 200 {
			t.Errorf("with %q: %d", auth[:7], got)
		}
	}
	// The file changes: the new one holds. Then it is broken, and gone: what it said holds.
	change := func(text string) {
		r.write("tokens", text)
		when := time.Now().Add(time.Duration(len(text)) * time.Hour)
		if err := os.Chtimes(file, when, when); err != nil {
			t.Fatal(err)
		}
	}
	change("ci " + tokenB + "\n")
	holds := func(what string) {
		t.Helper()
		if a, b := status(url, "GET", "/v1/policy", "", "Bearer "+tokenA), status(url, "GET", "/v1/policy", "", "Bearer "+tokenB); a != 401 || b != 200 {
			t.Errorf("%s: the old token %d, the new one %d", what, a, b)
		}
	}
	holds("changed")
	change("ci short")
	holds("broken")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	holds("gone")
	if _, err := gateserver.New(gateserver.Options{Load: r.load, Access: gateserver.Access{Tokens: file}}); err == nil {
		t.Error("a server whose tokens are gone")
	}
}

// TestTLS: certificates on both sides, of the right names, and exchanged while serving.
func TestTLS(t *testing.T) {
	r := newRig(t)
	ours, theirs := newAuthority(t), newAuthority(t)
	cert, key := ours.leaf("server")
	files := gateserver.TLSFiles{Certificate: r.write("tls.crt", cert), Key: r.write("tls.key", key), ClientCA: r.write("ca.crt", theirs.pem)}
	s, err := gateserver.New(gateserver.Options{Load: r.load, Access: gateserver.Access{ClientNames: []string{"kube-apiserver"}}, Log: slog.New(slog.NewJSONHandler(r.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	config, err := s.TLS(files)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l, config) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	url := "https://" + l.Addr().String() + "/v1/policy"
	get := func(root *authority, client *authority, name string) (int, *tls.ConnectionState, error) {
		t.Helper()
		pool := x509.NewCertPool()
		pool.AddCert(root.cert)
		c := &tls.Config{RootCAs: pool}
		if client != nil {
			cert, key := client.leaf(name)
			pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{pair}
		}
		tr := &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tr.RoundTrip(req)
		if err != nil {
			return 0, nil, err
		}
		defer resp.Body.Close()
		return resp.StatusCode, resp.TLS, nil
	}
	for name, tc := range map[string]struct {
		client *authority
		name   string
		want   int // 0: no connection
	}{
		"the API server":         {theirs, "kube-apiserver", 200},
		"another name":           {theirs, "kubelet", 401},
		"nobody":                 {nil, "", 401},
		"the name, another's CA": {ours, "kube-apiserver", 0},
	} {
		got, state, err := get(ours, tc.client, tc.name)
		if got != tc.want || (err != nil) != (tc.want == 0) || state != nil && (state.Version < tls.VersionTLS12 || state.NegotiatedProtocol != "h2") {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	// Another authority's certificate takes the place of the first.
	other := newAuthority(t)
	cert, key = other.leaf("server")
	later := time.Now().Add(time.Hour)
	for file, text := range map[string]string{"tls.key": key, "tls.crt": cert} {
		if err := os.Chtimes(r.write(file, text), later, later); err != nil {
			t.Fatal(err)
		}
	}
	if got, _, err := get(other, theirs, "kube-apiserver"); got != 200 {
		t.Errorf("by the new certificate: %d, %v", got, err)
	}
	if _, _, err := get(ours, theirs, "kube-apiserver"); err == nil {
		t.Error("the old certificate is shown still")
	}
	later = later.Add(time.Hour)
	if err := os.Chtimes(r.write("tls.key", "broken"), later, later); err != nil {
		t.Fatal(err)
	}
	if got, _, err := get(other, theirs, "kube-apiserver"); got != 200 {
		t.Errorf("with a broken key on disk: %d, %v", got, err)
	}
	for name, f := range map[string]gateserver.TLSFiles{
		"a broken key":     files,
		"no certificate":   {Certificate: r.dir + "/none", Key: files.Key},
		"no authority":     {Certificate: r.write("a.crt", cert), Key: r.write("a.key", key), ClientCA: r.write("b.crt", "x")},
		"another's key":    {Certificate: r.write("c.crt", ours.pem), Key: r.write("c.key", key)},
		"a huge authority": {Certificate: r.write("a.crt", cert), Key: r.write("a.key", key), ClientCA: r.write("b.crt", strings.Repeat("x", 2<<20))},
	} {
		if _, err := s.TLS(f); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestLoopback(t *testing.T) {
	for addr, want := range map[string]bool{"127.0.0.1": true, "127.8.9.1": true, "::1": true, "0.0.0.0": false, "::": false, "192.0.2.1": false} {
		if got := gateserver.Loopback(&net.TCPAddr{IP: net.ParseIP(addr)}); got != want {
			t.Errorf("%s: %t", addr, got)
		}
	}
}
