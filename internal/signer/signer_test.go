package signer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"assay.dev/assay/attest"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
)

// TestMain lets the tests start the signer as a process of its own.
func TestMain(m *testing.M) {
	if args := os.Getenv("SIGNER_TEST_ARGS"); args != "" {
		os.Exit(Main(context.Background(), strings.Split(args, "\n"), os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

var fileSettings = signing.Settings{Kinds: []signing.Kind{signing.X509}}

func statement(t testing.TB) []byte {
	t.Helper()
	return dsse.PAE(store.PayloadType, []byte(`{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://slsa.dev/provenance/v0.2",`+
		`"subject":[{"name":"registry.test/app","digest":{"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}],"predicate":{}}`))
}

func image(t testing.TB) []byte {
	t.Helper()
	b, err := simplesigning.New("registry.test/app", "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newKey(t testing.TB, kind attest.Kind) *attest.Key {
	t.Helper()
	k, err := attest.GenerateKey(kind)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func keyPEM(t testing.TB, k *attest.Key, password []byte) []byte {
	t.Helper()
	b, err := k.PrivatePEM(password)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func write(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func newSigner(t testing.TB, o Options) *Signer {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// serve starts a server over a socket and returns a client of it.
func serve(t testing.TB, s *Signer, uids ...uint32) *signing.Client {
	t.Helper()
	if uids == nil {
		uids = []uint32{uint32(os.Geteuid())}
	}
	dir, err := os.MkdirTemp("", "signer")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := NewServer(s, uids, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	c, err := signing.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
		os.RemoveAll(dir)
	})
	return c
}

func TestSignOverSocket(t *testing.T) {
	dir := t.TempDir()
	k := newKey(t, attest.ECDSAP256)
	write(t, dir, map[string][]byte{"x509.pem": keyPEM(t, k, nil), "cosign.key": []byte("not looked at")})
	journal := filepath.Join(t.TempDir(), "journal")
	c := serve(t, newSigner(t, Options{Secrets: dir, Journal: journal}))
	for _, m := range [][]byte{statement(t), image(t), statement(t)} {
		sigs, err := c.Sign(t.Context(), fileSettings, m)
		if err != nil {
			t.Fatal(err)
		}
		if len(sigs) != 1 || sigs[0].KeyID != k.KeyID() || sigs[0].Key.Verify(m, sigs[0].Sig) != nil || sigs[0].Cert != nil {
			t.Errorf("signatures %+v", sigs)
		}
	}
	for name, m := range map[string][]byte{"token": []byte("eyJhbGciOiJFUzI1NiJ9.e30"), "nothing": nil} {
		if _, err := c.Sign(t.Context(), fileSettings, m); err == nil || store.ClassOf(err) != store.Permanent {
			t.Errorf("signing %s: %v", name, err)
		}
	}
	if _, err := c.Sign(t.Context(), signing.Settings{}, image(t)); store.ClassOf(err) != store.Configuration {
		t.Errorf("no kind: %v", err)
	}
	h, err := c.Health(t.Context())
	if err != nil || h.Signed != 3 || h.Refused != 2 || len(h.Faults) > 0 {
		t.Errorf("health %+v, %v", h, err)
	}
	keys, err := c.Keys(t.Context())
	if err != nil || len(keys) != 1 || keys[0].PEM != string(k.PublicPEM()) || keys[0].Until != nil {
		t.Errorf("keys %+v, %v", keys, err)
	}
	lines := readJournal(t, journal)
	if len(lines) != 3 || lines[0].Kind != signing.Statement || lines[0].Subjects != 1 || lines[0].KeyIDs[0] != k.KeyID() ||
		lines[1].Kind != signing.Image || lines[0].SHA256 != lines[2].SHA256 || lines[0].UID != uint32(os.Geteuid()) {
		t.Errorf("journal %+v", lines)
	}
}

func readJournal(t testing.TB, path string) (out []line) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var l line
		if err := json.Unmarshal(s.Bytes(), &l); err == nil {
			out = append(out, l)
		}
	}
	return out
}

func TestJournalAfterCrashAndMove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal")
	if err := os.WriteFile(path, []byte(`{"kind":"sta`), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := signing.Inspect(statement(t))
	if err != nil {
		t.Fatal(err)
	}
	j, err := openJournal(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := j.add(7, m, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	j.mu.Lock()
	err = j.follow()
	j.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if err := j.add(8, m, nil); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := j.add(9, m, nil); err == nil {
		t.Error("a closed journal takes lines")
	}
	if a, b := readJournal(t, path+".1"), readJournal(t, path); len(a) != 1 || a[0].UID != 7 || len(b) != 1 || b[0].UID != 8 {
		t.Errorf("before the move %+v, after %+v", a, b)
	}
}

// TestPeers: who is not named is refused, whatever the socket's mode.
func TestPeers(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"x509.pem": keyPEM(t, newKey(t, attest.ECDSAP256), nil)})
	c := serve(t, newSigner(t, Options{Secrets: dir}), uint32(os.Geteuid())+1)
	_, err := c.Sign(t.Context(), fileSettings, image(t))
	if err == nil || store.ClassOf(err) != store.Configuration || !strings.Contains(err.Error(), "--allow-uid") {
		t.Errorf("a stranger's request: %v", err)
	}
	if _, err := c.Keys(t.Context()); err == nil {
		t.Error("a stranger reads keys")
	}
	if _, err := NewServer(nil, nil, nil); err == nil {
		t.Error("a server for nobody")
	}
}

func TestListen(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("a file was replaced")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := Listen(path); err == nil || !strings.Contains(err.Error(), "answers there already") {
		t.Errorf("a second signer: %v", err)
	}
	// A killed one leaves its socket.
	if err := l.(*socket).UnixListener.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestKeyFiles: what signs, what is refused, and that the reason helps.
func TestKeyFiles(t *testing.T) {
	ecKey, password := newKey(t, attest.ECDSAP256), []byte("secret")
	encrypted := keyPEM(t, ecKey, password)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	rsaPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for _, tc := range []struct {
		name  string
		files map[string][]byte
		says  string // empty: it signs
	}{
		{"ECDSA P-256", map[string][]byte{"x509.pem": keyPEM(t, ecKey, nil)}, ""},
		{"ECDSA P-384", map[string][]byte{"x509.pem": keyPEM(t, newKey(t, attest.ECDSAP384), nil)}, ""},
		{"Ed25519", map[string][]byte{"x509.pem": keyPEM(t, newKey(t, attest.Ed25519), nil)}, ""},
		{"RSA", map[string][]byte{"x509.pem": rsaPEM}, ""},
		{"cosign", map[string][]byte{"cosign.key": encrypted, "cosign.password": password}, ""},
		{"password with a newline", map[string][]byte{"cosign.key": encrypted, "cosign.password": []byte("secret\n")}, ""},
		{"empty password", map[string][]byte{"cosign.key": keyPEM(t, ecKey, []byte{}), "cosign.password": {}}, ""},
		{"nothing", nil, "neither x509.pem nor cosign.key"},
		{"wrong password", map[string][]byte{"cosign.key": encrypted, "cosign.password": []byte("guess")}, "wrong password"},
		{"no password", map[string][]byte{"cosign.key": encrypted}, "no cosign.password"},
		{"garbage does not fall through to the other key", map[string][]byte{"x509.pem": []byte("x"), "cosign.key": encrypted, "cosign.password": password}, "x509.pem"},
		{"public key", map[string][]byte{"x509.pem": ecKey.PublicPEM()}, "public half"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, tc.files)
			s := newSigner(t, Options{Secrets: dir})
			sigs, err := s.Sign(t.Context(), fileSettings, statement(t))
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) || store.ClassOf(err) != store.Configuration {
					t.Errorf("%v (%v), want configuration %q", err, store.ClassOf(err), tc.says)
				}
				if h := s.Health(); len(h.Faults) != 1 {
					t.Errorf("health %+v", h)
				}
				return
			}
			if err != nil || sigs[0].Key.Verify(statement(t), sigs[0].Sig) != nil {
				t.Errorf("%+v, %v", sigs, err)
			}
		})
	}
	t.Run("open to others", func(t *testing.T) {
		dir := t.TempDir()
		write(t, dir, map[string][]byte{"x509.pem": keyPEM(t, ecKey, nil)})
		if err := os.Chmod(filepath.Join(dir, "x509.pem"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := newSigner(t, Options{Secrets: dir}).Sign(t.Context(), fileSettings, statement(t)); !errors.Is(err, attest.ErrPermissions) {
			t.Errorf("%v, want a refusal", err)
		}
	})
	t.Run("no folder", func(t *testing.T) {
		if _, err := newSigner(t, Options{}).Sign(t.Context(), fileSettings, statement(t)); store.ClassOf(err) != store.Configuration {
			t.Errorf("%v", err)
		}
	})
}

// volume writes a folder as Kubernetes does a Secret's: files are links through
// ..data, which is swapped as a whole.
func volume(t testing.TB, dir, version string, files map[string][]byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, version), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, version, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(version, filepath.Join(dir, "..data_tmp")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
}

// TestRotation: while keys are replaced, some encrypted, nothing fails, every
// signature is by a key that was there, and what is asked after a swap is signed by
// the new key.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	var known sync.Map // key id → true
	var current atomic.Pointer[string]
	put := func(version string, encrypted bool) {
		k := newKey(t, attest.ECDSAP256)
		id := k.KeyID()
		known.Store(id, true)
		files := map[string][]byte{"cosign.key": keyPEM(t, k, nil), "cosign.password": {}}
		if encrypted {
			files = map[string][]byte{"cosign.key": keyPEM(t, k, []byte("p"+version)), "cosign.password": []byte("p" + version)}
		}
		volume(t, dir, version, files)
		current.Store(&id)
	}
	put("..1", true)
	s := newSigner(t, Options{Secrets: dir, Journal: filepath.Join(t.TempDir(), "j")})
	c := serve(t, s)
	stop := make(chan struct{})
	var signed atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			m := statement(t)
			for {
				select {
				case <-stop:
					return
				default:
				}
				sigs, err := c.Sign(context.Background(), fileSettings, m)
				if err != nil {
					t.Errorf("during rotation: %v", err)
					return
				}
				if _, ok := known.Load(sigs[0].KeyID); !ok || sigs[0].Key.Verify(m, sigs[0].Sig) != nil {
					t.Errorf("a signature by %s", sigs[0].KeyID)
				}
				signed.Add(1)
			}
		})
	}
	for _, version := range []string{"..2", "..3", "..4"} {
		for before := signed.Load(); signed.Load() < before+20 && !t.Failed(); {
			if _, err := c.Health(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		put(version, version == "..3")
		sigs, err := c.Sign(t.Context(), fileSettings, statement(t))
		if err != nil || sigs[0].KeyID != *current.Load() {
			t.Errorf("after the swap: %+v, %v", sigs, err)
		}
	}
	close(stop)
	wg.Wait()
	keys, err := c.Keys(t.Context())
	if err != nil || len(keys) != 4 || keys[0].KeyID != *current.Load() || keys[0].Until != nil || keys[1].Until == nil || keys[3].Until == nil {
		t.Errorf("keys %+v, %v", keys, err)
	}
	// The former keys are still known after a restart.
	h, err := openHistory(s.journal.path)
	if err != nil || len(h.list()) != 4 || h.list()[0].KeyID != *current.Load() {
		t.Errorf("history %+v, %v", h.list(), err)
	}
}

// TestGarbage: a key replaced by garbage stops signing, with the reason, and the
// old key is not used again; a good one starts it.
func TestGarbage(t *testing.T) {
	dir := t.TempDir()
	volume(t, dir, "..1", map[string][]byte{"x509.pem": keyPEM(t, newKey(t, attest.ECDSAP256), nil)})
	s := newSigner(t, Options{Secrets: dir, settle: 1})
	if _, err := s.Sign(t.Context(), fileSettings, image(t)); err != nil {
		t.Fatal(err)
	}
	volume(t, dir, "..2", map[string][]byte{"x509.pem": []byte("-----BEGIN GARBAGE-----\n")})
	for range 3 {
		if _, err := s.Sign(t.Context(), fileSettings, image(t)); store.ClassOf(err) != store.Configuration || !strings.Contains(err.Error(), "x509.pem") {
			t.Fatalf("with garbage: %v", err)
		}
	}
	k := newKey(t, attest.Ed25519)
	volume(t, dir, "..3", map[string][]byte{"x509.pem": keyPEM(t, k, nil)})
	sigs, err := s.Sign(t.Context(), fileSettings, image(t))
	if err != nil || sigs[0].KeyID != k.KeyID() || len(s.Health().Faults) > 0 {
		t.Errorf("recovered: %+v, %v, %+v", sigs, err, s.Health())
	}
}

// TestKeyWrittenInPieces: where a key is not swapped but overwritten, signing waits
// until it is whole.
func TestKeyWrittenInPieces(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"x509.pem": keyPEM(t, newKey(t, attest.ECDSAP256), nil)})
	s := newSigner(t, Options{Secrets: dir, settle: time.Hour}) // until it is whole
	if _, err := s.Sign(t.Context(), fileSettings, image(t)); err != nil {
		t.Fatal(err)
	}
	k := newKey(t, attest.ECDSAP256)
	data := keyPEM(t, k, nil)
	f, err := os.OpenFile(filepath.Join(dir, "x509.pem"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(data[:40]); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		sigs, err := s.Sign(context.Background(), fileSettings, image(t))
		if err != nil {
			got <- err.Error()
			return
		}
		got <- sigs[0].KeyID
	}()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Sign(ctx, fileSettings, image(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("who gives up is not held: %v", err)
	}
	if _, err := f.Write(data[40:]); err != nil {
		t.Fatal(err)
	}
	if id := <-got; id != k.KeyID() {
		t.Errorf("signed by %s, want %s", id, k.KeyID())
	}
}

// TestKeyReadOnce: an encrypted key costs its 100 ms once, not for each message.
func TestKeyReadOnce(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"cosign.key": keyPEM(t, newKey(t, attest.ECDSAP256), []byte("p")), "cosign.password": []byte("p")})
	s := newSigner(t, Options{Secrets: dir})
	first, err := s.files.key(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if k, err := s.files.key(t.Context()); err != nil || k != first {
			t.Fatalf("read again: %v", err)
		}
	}
}

// TestKilledAndStarted: a client whose signer is killed goes on with the next one,
// which must be told the settings again.
func TestKilledAndStarted(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string][]byte{"x509.pem": keyPEM(t, newKey(t, attest.ECDSAP256), nil)})
	short, err := os.MkdirTemp("", "signer")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(short)
	socket := filepath.Join(short, "s")
	start := func() (*exec.Cmd, io.WriteCloser) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SIGNER_TEST_ARGS="+strings.Join([]string{"--socket", socket, "--secrets", dir, "--lifeline"}, "\n"))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if s, err := bufio.NewReader(out).ReadString('\n'); s != "ready\n" {
			t.Fatalf("%q, %v: %s", s, err, stderr.String())
		}
		return cmd, in
	}
	c, err := signing.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cmd, _ := start()
	if _, err := c.Sign(t.Context(), fileSettings, statement(t)); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // it was killed
	again := make(chan error)
	go func() {
		_, err := c.Sign(context.Background(), fileSettings, statement(t))
		again <- err
	}()
	cmd, in := start()
	if err := <-again; err != nil {
		t.Error(err)
	}
	var out, errw bytes.Buffer
	if code := Main(t.Context(), []string{"health", "--socket", socket}, &out, &errw); code != 0 || !strings.Contains(out.String(), "1 signatures") {
		t.Errorf("health: %d %s %s", code, out.String(), errw.String())
	}
	// The lifeline: whoever started it is gone.
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := c.Health(t.Context()); store.ClassOf(err) != store.Transient || err == nil {
		t.Errorf("nobody there: %v", err)
	}
}

func TestMainRefuses(t *testing.T) {
	for _, args := range [][]string{nil, {"--secrets", "/x"}, {"--socket", "/x", "y"}, {"--socket", "/x", "--allow-uid", "root"}, {"--nonsense"}, {"health"}} {
		var errw bytes.Buffer
		if code := Main(t.Context(), args, io.Discard, &errw); code != 2 || errw.Len() == 0 {
			t.Errorf("%v: exit %d, %q", args, code, errw.String())
		}
	}
}

// TestOtherService: what answers and is no signer is told apart.
func TestOtherService(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go http.Serve(l, http.NotFoundHandler()) //nolint:errcheck // ends with the listener
	c, err := signing.Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Sign(t.Context(), fileSettings, image(t)); err == nil || !strings.Contains(err.Error(), "is this the socket") {
		t.Errorf("%v", err)
	}
	if _, err := signing.Dial("relative"); err == nil {
		t.Error("a relative path")
	}
	if _, err := signing.Dial("/" + strings.Repeat("x", 108)); err == nil {
		t.Error("a path too long for a socket")
	}
}

func BenchmarkSignOverSocket(b *testing.B) {
	dir := b.TempDir()
	write(b, dir, map[string][]byte{"x509.pem": keyPEM(b, newKey(b, attest.ECDSAP256), nil)})
	c := serve(b, newSigner(b, Options{Secrets: dir, Journal: filepath.Join(b.TempDir(), "j")}))
	m := image(b)
	for b.Loop() {
		if _, err := c.Sign(b.Context(), fileSettings, m); err != nil {
			b.Fatal(err)
		}
	}
}
