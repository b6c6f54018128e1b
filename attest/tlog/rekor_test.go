package tlog_test

// Rekor v1 and v2 here are the real servers, built from their modules (tools/rekor:
// rekor-server over Trillian, its log in memory; tools/rekor-tiles: the POSIX
// server). What no real server does on demand (refusals, limits, lies) is played by
// a server in the test that speaks the wire protocol.

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	rekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"google.golang.org/protobuf/proto"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/store"
	"assay.dev/assay/store/storetest"
)

// peer is the path of a peer's binary, or the test is skipped.
func peer(t *testing.T, variable string) string {
	t.Helper()
	if os.Getenv("ASSAY_SLOW") == "" {
		t.Skip("starts real servers: set ASSAY_SLOW=1; make test-all does")
	}
	path := os.Getenv(variable)
	if path == "" {
		t.Skipf("%s is not set: eval \"$(tools/peers)\" builds the server and sets it", variable)
	}
	return path
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// start runs a server until the test ends.
func start(t *testing.T, path string, args ...string) (stdout io.Reader) {
	t.Helper()
	c := exec.Command(path, args...)
	c.Dir = t.TempDir()
	c.Env = []string{"HOME=" + c.Dir, "PATH=/usr/bin:/bin", "TMPDIR=" + c.Dir}
	log, err := os.Create(filepath.Join(c.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = log
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if stdout, err = c.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		c.Process.Kill()
		c.Wait()
		log.Close()
		if t.Failed() {
			b, _ := os.ReadFile(log.Name())
			t.Logf("%s: %s", filepath.Base(path), b[max(0, len(b)-4000):])
		}
	})
	return stdout
}

// answers waits until a server answers at all.
func answers(t *testing.T, url string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		res, err := http.Get(url)
		if err == nil {
			res.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", url, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func startRekor1(t *testing.T) string {
	t.Helper()
	server, trillian := peer(t, "ASSAY_REKOR"), peer(t, "ASSAY_TRILLIAN")
	line, err := bufio.NewReader(start(t, trillian)).ReadString('\n')
	if err != nil {
		t.Fatalf("trillian does not say its port: %v", err)
	}
	port := freePort(t)
	start(t, server, "serve", "--rekor_server.address=127.0.0.1", "--port="+strconv.Itoa(port), "--rekor_server.hostname=rekor.test",
		"--trillian_log_server.address=127.0.0.1", "--trillian_log_server.port="+strings.TrimSpace(line),
		"--enable_retrieve_api=false", "--rekor_server.signer=memory", "--max_request_body_size=200000")
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	answers(t, url+"/ping")
	return url
}

// startRekor2 returns the address to write to, that of the tiles, and the key.
func startRekor2(t *testing.T) (write, read string, key []byte) {
	t.Helper()
	server := peer(t, "ASSAY_REKOR_TILES")
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	start(t, server, "serve", "--http-port="+strconv.Itoa(port), "--grpc-port="+strconv.Itoa(freePort(t)), "--http-metrics-port="+strconv.Itoa(freePort(t)),
		"--hostname=rekor2.test", "--storage-dir="+filepath.Join(dir, "log"), "--signer-filepath="+file, "--checkpoint-interval=200ms", "--batch-max-age=50ms", "--persistent-antispam=true")
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	answers(t, url+"/healthz")
	tiles := httptest.NewServer(http.FileServer(http.Dir(filepath.Join(dir, "log"))))
	t.Cleanup(tiles.Close)
	return url, tiles.URL, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})
}

// records are a statement by two keys and an image's signature.
func records(t *testing.T) (statement, image store.Record) {
	t.Helper()
	one, two := storetest.NewRecordSigner(t), storetest.NewRecordSigner(t)
	name := "example.com/image@sha256:" + strings.Repeat("0", 64)
	subjects := []intoto.Subject{storetest.ImageSubject(name)}
	return storetest.StatementRecord(t, storetest.NewRun("TaskRun"), "logged", subjects, one, two),
		storetest.ImageRecord(t, storetest.NewRun("TaskRun"), name, one)
}

// check verifies each signature of a record with the entries that cover it.
func check(t *testing.T, rec store.Record, entries []store.LogEntry, trust tlog.Trust) {
	t.Helper()
	for i, s := range tlog.SignedOf(rec) {
		covering := tlog.Covering(entries, s)
		if len(covering) != 1 {
			t.Fatalf("%s: signature %d is covered by %d of %d entries", rec.Key, i, len(covering), len(entries))
		}
		in, err := tlog.CheckRekor(covering[0].Rekor, s, trust)
		if err != nil {
			t.Fatalf("%s: signature %d: %v", rec.Key, i, err)
		}
		if in.Promise || in.Size == 0 || in.Kind != tlog.KindRekor {
			t.Errorf("%s: signature %d: %+v; want a proof", rec.Key, i, in)
		}
		other := s
		other.Payload = append([]byte(nil), append(s.Payload, ' ')...)
		if _, err := tlog.CheckRekor(covering[0].Rekor, other, trust); err == nil || !strings.Contains(err.Error(), "the log entry is about") {
			t.Errorf("another payload: %v", err)
		}
	}
}

func TestRekor1(t *testing.T) {
	url := startRekor1(t)
	pin := filepath.Join(t.TempDir(), "rekor.pub")
	l, err := tlog.NewRekor(tlog.RekorOptions{URL: url + "/", PinFile: pin})
	if err != nil {
		t.Fatal(err)
	}
	statement, image := records(t)
	a, err := l.Upload(t.Context(), statement)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Upload(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	if len(a) != 1 || len(b) != 2 {
		t.Fatalf("%d and %d entries; want one for each payload that is signed", len(a), len(b))
	}
	key, err := os.ReadFile(pin)
	if err != nil {
		t.Fatal(err)
	}
	k, err := tlog.ParseRekorKey("rekor", key)
	if err != nil {
		t.Fatal(err)
	}
	trust := tlog.Trust{Rekor: []tlog.RekorKey{k}}
	check(t, statement, a, trust)
	check(t, image, b, trust)
	if a[0].URL != url+"/api/v1/log/entries?logIndex=0" {
		t.Errorf("URL %s", a[0].URL)
	}
	res, err := http.Get(a[0].URL)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("the annotation's address: %v, %v", res, err)
	} else {
		res.Body.Close()
	}

	t.Run("again", func(t *testing.T) { // 409
		again, err := l.Upload(t.Context(), statement)
		if err != nil {
			t.Fatal(err)
		}
		if again[0].URL != a[0].URL {
			t.Errorf("%s; want the entry that is there, %s", again[0].URL, a[0].URL)
		}
		check(t, statement, again, trust)
	})
	t.Run("Ed25519", func(t *testing.T) {
		k := newKey(t, 7)
		rec := statement
		s := k.sign(store.PayloadType, string(statement.Payload))
		rec.Signatures = []store.Signature{{KeyID: k.public.KeyID(), Sig: s.Sig, Key: k.public}}
		entries, err := l.Upload(t.Context(), rec)
		if err != nil {
			t.Fatal(err)
		}
		check(t, rec, entries, trust)
		rec = image
		s = k.sign(simplesigning.MediaType, string(image.Payload))
		rec.Signatures = []store.Signature{{KeyID: k.public.KeyID(), Sig: s.Sig, Key: k.public}}
		if _, err := l.Upload(t.Context(), rec); store.ClassOf(err) != store.Permanent || !strings.Contains(err.Error(), "sign with an ECDSA key") {
			t.Errorf("an image's signature: %v", err)
		}
	})
	t.Run("certificate", func(t *testing.T) {
		rec := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), "example.com/image@sha256:"+strings.Repeat("1", 64), storetest.NewCertSigner(t))
		entries, err := l.Upload(t.Context(), rec)
		if err != nil {
			t.Fatal(err)
		}
		check(t, rec, entries, trust)
	})
	t.Run("cosign's annotation", func(t *testing.T) {
		e := b[0].Rekor
		text, err := json.Marshal(map[string]any{
			"SignedEntryTimestamp": e.InclusionPromise.SignedEntryTimestamp,
			"Payload": map[string]any{"body": e.CanonicalizedBody, "integratedTime": e.IntegratedTime,
				"logIndex": e.LogIndex, "logID": fmt.Sprintf("%x", e.LogId.KeyId)},
		})
		if err != nil {
			t.Fatal(err)
		}
		back, err := tlog.ParseCosignBundle(string(text))
		if err != nil {
			t.Fatal(err)
		}
		in, err := tlog.CheckRekor(back, tlog.SignedOf(image)[0], trust)
		if err != nil || !in.Promise || in.Time.Unix() != e.IntegratedTime {
			t.Errorf("%+v, %v; want a promise", in, err)
		}
		back.IntegratedTime++
		if _, err := tlog.CheckRekor(back, tlog.SignedOf(image)[0], trust); err == nil || !strings.Contains(err.Error(), "signed entry timestamp") {
			t.Errorf("another time: %v", err)
		}
	})
	t.Run("forged", func(t *testing.T) { forgeRekor(t, a[0].Rekor, tlog.SignedOf(statement)[0], trust) })
	t.Run("pinned", func(t *testing.T) {
		other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		wrong, err := tlog.NewRekorKey("", other.Public())
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(pin, wrong.PEM(), 0o644); err != nil {
			t.Fatal(err)
		}
		l, err := tlog.NewRekor(tlog.RekorOptions{URL: url, PinFile: pin})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.Upload(t.Context(), image); err == nil || store.ClassOf(err) != store.Configuration || !strings.Contains(err.Error(), "does not hold") {
			t.Errorf("another key is pinned: %v", err)
		}
		if _, err := tlog.NewRekor(tlog.RekorOptions{URL: url, PinFile: pin, Key: key}); err == nil || !strings.Contains(err.Error(), "pinned") {
			t.Errorf("pinned and configured differ: %v", err)
		}
	})
	t.Run("too large", func(t *testing.T) {
		big := storetest.StatementRecord(t, storetest.NewRun("TaskRun"), strings.Repeat("x", 250_000), []intoto.Subject{storetest.ImageSubject("example.com/image@sha256:" + strings.Repeat("0", 64))}, storetest.NewRecordSigner(t))
		_, err := l.Upload(t.Context(), big)
		if store.ClassOf(err) != store.Permanent || err == nil || !strings.Contains(err.Error(), "a log of your own") {
			t.Errorf("%v (%v); want permanent, with the remedy", err, store.ClassOf(err))
		}
	})
}

func TestRekor2(t *testing.T) {
	write, read, key := startRekor2(t)
	l, err := tlog.NewRekor(tlog.RekorOptions{URL: write, ReadURL: read, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	statement, image := records(t)
	a, err := l.Upload(t.Context(), statement)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Upload(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	if len(a) != 2 || len(b) != 2 {
		t.Fatalf("%d and %d entries; want one for each signature", len(a), len(b))
	}
	k, err := tlog.ParseRekorKey("rekor2", key)
	if err != nil {
		t.Fatal(err)
	}
	trust := tlog.Trust{Rekor: []tlog.RekorKey{k}}
	check(t, statement, a, trust)
	check(t, image, b, trust)
	again, err := l.Upload(t.Context(), statement) // 409, from the tiles
	if err != nil {
		t.Fatal(err)
	}
	if again[0].URL != a[0].URL || !bytes.Equal(again[0].Rekor.LogId.KeyId, a[0].Rekor.LogId.KeyId) {
		t.Errorf("again: %v; want %v", again[0], a[0])
	}
	check(t, statement, again, trust)
	forgeRekor(t, a[0].Rekor, tlog.SignedOf(statement)[0], trust)

	cert := storetest.ImageRecord(t, storetest.NewRun("TaskRun"), "example.com/image@sha256:"+strings.Repeat("1", 64), storetest.NewCertSigner(t))
	withCert, err := l.Upload(t.Context(), cert)
	if err != nil {
		t.Fatal(err)
	}
	check(t, cert, withCert, trust)

	keyless, err := tlog.NewRekor(tlog.RekorOptions{URL: write, Version: tlog.RekorAuto})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keyless.Upload(t.Context(), image); store.ClassOf(err) != store.Configuration || !strings.Contains(err.Error(), "configure it") {
		t.Errorf("without key: %v", err)
	}
}

// forgeRekor changes an entry in each way that matters.
func forgeRekor(t *testing.T, e *rekor.TransparencyLogEntry, s tlog.Signed, trust tlog.Trust) {
	t.Helper()
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := tlog.NewRekorKey("stranger", stranger.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, want string
		change     func(*rekor.TransparencyLogEntry)
		trust      tlog.Trust
	}{
		{"no key", "no key of a Rekor log", nil, tlog.Trust{}},
		{"stranger's log", "none of the trusted Rekor keys", nil, tlog.Trust{Rekor: []tlog.RekorKey{k}}},
		{"body changed", "", func(e *rekor.TransparencyLogEntry) {
			e.CanonicalizedBody = bytes.Replace(e.CanonicalizedBody, []byte(`"kind":`), []byte(`"kinD":`), 1)
		}, trust},
		{"body longer", "the tree is another", func(e *rekor.TransparencyLogEntry) { e.CanonicalizedBody = append(e.CanonicalizedBody, ' ') }, trust},
		{"index", "", func(e *rekor.TransparencyLogEntry) { e.InclusionProof.LogIndex++ }, trust},
		{"negative", "negative", func(e *rekor.TransparencyLogEntry) { e.LogIndex = -1 }, trust},
		{"tree size", "the checkpoint of a tree", func(e *rekor.TransparencyLogEntry) { e.InclusionProof.TreeSize++ }, trust},
		{"root", "root is not", func(e *rekor.TransparencyLogEntry) { e.InclusionProof.RootHash[0] ^= 1 }, trust},
		{"more hashes", "the tree is another", func(e *rekor.TransparencyLogEntry) {
			e.InclusionProof.Hashes = append(e.InclusionProof.Hashes, make([]byte, 32))
		}, trust},
		{"no checkpoint", "", func(e *rekor.TransparencyLogEntry) { e.InclusionProof.Checkpoint = nil }, trust},
		{"nothing", "neither proof nor promise", func(e *rekor.TransparencyLogEntry) { e.InclusionProof, e.InclusionPromise = nil, nil }, trust},
		{"kind", "is of kind", func(e *rekor.TransparencyLogEntry) { e.KindVersion.Version = "9" }, trust},
		{"witness demanded", "cosigned by 0", nil, func() tlog.Trust {
			_, _, w, err := tlog.GenerateKey("example.org/witness")
			if err != nil {
				t.Fatal(err)
			}
			k := trust.Rekor[0]
			k.Witnessed = true
			return tlog.Trust{Rekor: []tlog.RekorKey{k}, Witnesses: []tlog.WitnessKey{w}}
		}()},
	} {
		c := proto.CloneOf(e)
		if tc.change != nil {
			tc.change(c)
		}
		if _, err := tlog.CheckRekor(c, s, tc.trust); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v; want an error with %q", tc.name, err, tc.want)
		}
	}
}

// TestRekorFaults: what each refusal means to who has to do something about it.
func TestRekorFaults(t *testing.T) {
	_, image := records(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := tlog.NewRekorKey("", key.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		status int
		header string
		class  store.Class
		after  time.Duration
		says   string
	}{
		{http.StatusUnauthorized, "", store.Configuration, 0, "token"},
		{http.StatusForbidden, "", store.Configuration, 0, "token"},
		{http.StatusNotFound, "", store.Configuration, 0, "address"},
		{http.StatusMethodNotAllowed, "", store.Configuration, 0, "address"},
		{http.StatusMovedPermanently, "", store.Configuration, 0, "address"},
		{http.StatusRequestEntityTooLarge, "", store.Permanent, 0, "a log of your own"},
		{http.StatusBadRequest, "", store.Permanent, 0, "the reason"},
		{http.StatusUnprocessableEntity, "", store.Permanent, 0, "the reason"},
		{http.StatusTooManyRequests, "7", store.Transient, 7 * time.Second, ""},
		{http.StatusServiceUnavailable, "99999999999", store.Transient, time.Hour, ""},
		{http.StatusServiceUnavailable, "soon", store.Transient, 0, ""},
		{http.StatusInternalServerError, "", store.Transient, 0, ""},
		{http.StatusCreated, "", store.Permanent, 0, "reading the answer"},
		{http.StatusConflict, "", store.Permanent, 0, "does not say where"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if tc.header != "" {
				w.Header().Set("Retry-After", tc.header)
			}
			w.WriteHeader(tc.status)
			io.WriteString(w, "the reason")
		}))
		l, err := tlog.NewRekor(tlog.RekorOptions{URL: srv.URL, Version: tlog.Rekor1, Key: k.PEM()})
		if err != nil {
			t.Fatal(err)
		}
		_, err = l.Upload(t.Context(), image)
		var f *store.Fault
		if !errors.As(err, &f) || f.Class != tc.class || f.RetryAfter != tc.after || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%d: %v, %+v; want %v, %v, %q", tc.status, err, f, tc.class, tc.after, tc.says)
		}
		srv.Close()
		if _, err := l.Upload(t.Context(), image); store.ClassOf(err) != store.Transient || err == nil {
			t.Errorf("a log that is down: %v", err)
		}
	}
	for name, o := range map[string]tlog.RekorOptions{
		"scheme":  {URL: "ftp://x"},
		"no host": {URL: "https://"},
		"version": {Version: "3"},
		"key":     {Key: []byte("x")},
	} {
		if l, err := tlog.NewRekor(o); l != nil || store.ClassOf(err) != store.Configuration {
			t.Errorf("%s: %v, %v", name, l, err)
		}
	}
	if _, err := tlog.NewRekor(tlog.RekorOptions{}); err != nil {
		t.Errorf("the public log by default: %v", err)
	}
}

// TestRekorNeither: a web server that is no Rekor is named so.
func TestRekorNeither(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	l, err := tlog.NewRekor(tlog.RekorOptions{URL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, image := records(t)
	if _, err := l.Upload(t.Context(), image); store.ClassOf(err) != store.Configuration || !strings.Contains(err.Error(), "neither v1") {
		t.Errorf("%v", err)
	}
}

func FuzzCosignBundle(f *testing.F) {
	body := base64.StdEncoding.EncodeToString([]byte(`{"apiVersion":"0.0.1","kind":"hashedrekord","spec":{"data":{"hash":{"algorithm":"sha256","value":"` + fmt.Sprintf("%x", sha256.Sum256([]byte("x"))) + `"}},"signature":{"content":"eA==","publicKey":{"content":"eA=="}}}}`))
	f.Add(`{"SignedEntryTimestamp":"eA==","Payload":{"body":"` + body + `","integratedTime":1,"logIndex":1,"logID":"00"}}`)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	k, err := tlog.NewRekorKey("", key.Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		e, err := tlog.ParseCosignBundle(text)
		if err != nil {
			return
		}
		if _, err := tlog.CheckRekor(e, tlog.Signed{Payload: []byte("x"), Sig: []byte("x")}, tlog.Trust{Rekor: []tlog.RekorKey{k}}); err == nil {
			t.Errorf("an entry that nobody signed was believed: %s", text)
		}
	})
}
