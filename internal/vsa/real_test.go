package vsa_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/policy/vsa"
	"assay.dev/assay/store/storetest"
)

// TestRekorReal: the real server takes what we upload, and what it keeps is the
// envelope. Its index needs a database, so the answer to the search is made here from
// the id that the server gives.
func TestRekorReal(t *testing.T) {
	server, trillian := os.Getenv("ASSAY_REKOR"), os.Getenv("ASSAY_TRILLIAN")
	if os.Getenv("ASSAY_SLOW") == "" || server == "" || trillian == "" {
		t.Skip("needs Rekor: eval \"$(tools/peers rekor trillian)\" and set ASSAY_SLOW=1; make test-all does")
	}
	line, err := bufio.NewReader(start(t, trillian)).ReadString('\n')
	fatal(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fatal(t, err)
	port := l.Addr().(*net.TCPAddr).Port
	fatal(t, l.Close())
	start(t, server, "serve", "--rekor_server.address=127.0.0.1", "--port="+strconv.Itoa(port), "--rekor_server.hostname=rekor.test",
		"--trillian_log_server.address=127.0.0.1", "--trillian_log_server.port="+strings.TrimSpace(line),
		"--enable_retrieve_api=false", "--rekor_server.signer=memory",
		"--enable_attestation_storage", "--attestation_storage_bucket=file://"+t.TempDir())
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	deadline := time.Now().Add(time.Minute)
	for {
		res, err := http.Get(url + "/ping")
		if err == nil {
			res.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	k := storetest.NewKey(t)
	statement, err := vsa.ConformaStatement("example.com/app", otherDigest, map[string]any{"status": "passed"})
	fatal(t, err)
	env, key, err := startSigner(t, k).Sign(t.Context(), statement)
	fatal(t, err)
	p := place(t, "rekor@"+url+"?retries=6")
	fatal(t, p.Put(t.Context(), env, key, nil, time.Now()))
	rt := roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Path != "/api/v1/index/retrieve" {
			return http.DefaultTransport.RoundTrip(r)
		}
		res, err := http.Get(url + "/api/v1/log/entries?logIndex=0")
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		var entries map[string]any
		if err := json.NewDecoder(res.Body).Decode(&entries); err != nil {
			return nil, err
		}
		var ids []string
		for id := range entries {
			ids = append(ids, id)
		}
		raw, err := json.Marshal(ids)
		return &http.Response{StatusCode: 200, Header: http.Header{}, Request: r, Body: io.NopCloser(bytes.NewReader(raw))}, err
	})
	got, err := p.Get(t.Context(), otherDigest, rt)
	fatal(t, err)
	if len(got) != 1 || !bytes.Equal(got[0].Payload, statement) {
		t.Fatalf("%d envelopes", len(got))
	}
	if _, err := got[0].Verify(1, storetest.Public(t, k)); err != nil {
		t.Error(err)
	}
}

// start runs a server until the test ends.
func start(t *testing.T, path string, args ...string) io.Reader {
	t.Helper()
	c := exec.Command(path, args...)
	c.Dir = t.TempDir()
	c.Env = []string{"HOME=" + c.Dir, "PATH=/usr/bin:/bin", "TMPDIR=" + c.Dir}
	var log bytes.Buffer
	c.Stderr = &log
	in, err := c.StdinPipe()
	fatal(t, err)
	out, err := c.StdoutPipe()
	fatal(t, err)
	fatal(t, c.Start())
	t.Cleanup(func() {
		in.Close()
		_ = c.Process.Kill()
		_ = c.Wait()
		if t.Failed() {
			b := log.Bytes()
			t.Logf("%s: %s", filepath.Base(path), b[max(0, len(b)-4000):])
		}
	})
	return out
}
