package fulcio

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

func message(t testing.TB) signing.Message {
	t.Helper()
	m, err := signing.Inspect(dsse.PAE(store.PayloadType, []byte(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://slsa.dev/provenance/v1"}`)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func readFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), store.As(store.Configuration, err)
}

// issuer is an OpenID Connect issuer: discovery, keys, and the tokens they sign.
type issuer struct {
	url string
	key *ecdsa.PrivateKey
}

func startIssuer(t *testing.T) *issuer {
	t.Helper()
	i := new(issuer)
	var err error
	if i.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{ //nolint:errcheck // the client will notice
			"issuer": i.url, "jwks_uri": i.url + "/keys", "authorization_endpoint": i.url + "/auth", "token_endpoint": i.url + "/token",
			"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
		})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &i.key.PublicKey, KeyID: "1", Algorithm: "ES256", Use: "sig"}}}) //nolint:errcheck // see above
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	i.url = srv.URL
	return i
}

// token makes a token that ends after a while.
func (i *issuer) token(t testing.TB, audience string, lives time.Duration) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: "1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.Signed(s).Claims(jwt.Claims{
		Issuer: i.url, Subject: "1234", Audience: jwt.Audience{audience}, IssuedAt: jwt.NewNumericDate(time.Now().Add(-time.Minute)), Expiry: jwt.NewNumericDate(time.Now().Add(lives)),
	}).Claims(map[string]any{"email": "observer@factory.test", "email_verified": true}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// startFulcio runs Fulcio itself with an authority in memory and no certificate
// log, and returns its address and its root as PEM.
func startFulcio(t *testing.T, issuer string) (address string, roots []byte) {
	t.Helper()
	if os.Getenv("ASSAY_SLOW") == "" {
		t.Skip("needs a running Fulcio: set ASSAY_SLOW=1; make test-all does")
	}
	binary := os.Getenv("ASSAY_FULCIO")
	if binary == "" {
		t.Skip(`needs Fulcio: eval "$(tools/peers fulcio)"; make test-all does`)
	}
	dir, err := os.MkdirTemp("", "fulcio") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(config, []byte("oidc-issuers:\n  "+issuer+":\n    issuer-url: "+issuer+"\n    client-id: sigstore\n    type: email\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	var out bytes.Buffer
	cmd := exec.Command(binary, "serve", "--ca=ephemeralca", "--ct-log-url=", "--config-path="+config,
		"--host=127.0.0.1", "--port="+port, "--grpc-host=127.0.0.1", "--grpc-port="+freePort(t), "--metrics-port="+freePort(t),
		"--legacy-unix-domain-socket="+filepath.Join(dir, "s"))
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill() //nolint:errcheck // it may be gone
		cmd.Wait()         //nolint:errcheck // it was killed
		if t.Failed() {
			t.Log(out.String())
		}
	})
	address = "http://127.0.0.1:" + port
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		resp, err := http.Get(address + "/api/v2/trustBundle")
		if err == nil && resp.StatusCode == http.StatusOK {
			var bundle struct {
				Chains []struct {
					Certificates []string `json:"certificates"`
				} `json:"chains"`
			}
			err = json.NewDecoder(resp.Body).Decode(&bundle)
			resp.Body.Close()
			if err != nil || len(bundle.Chains) == 0 {
				t.Fatalf("trust bundle: %v", err)
			}
			return address, []byte(strings.Join(bundle.Chains[0].Certificates, "\n"))
		}
		if time.Now().After(deadline) {
			t.Fatalf("Fulcio does not start: %v\n%s", err, out.String())
		}
	}
}

// counter counts requests for certificates.
type counter struct{ n atomic.Int32 }

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasSuffix(r.URL.Path, "/signingCert") {
		c.n.Add(1)
	}
	return http.DefaultTransport.RoundTrip(r)
}

func TestFulcio(t *testing.T) {
	iss := startIssuer(t)
	address, roots := startFulcio(t, iss.url)
	dir := t.TempDir()
	file, trusted := filepath.Join(dir, "token"), filepath.Join(dir, "roots.pem")
	put := func(path, data string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(trusted, string(roots))
	put(file, iss.token(t, Audience, time.Hour))
	set := signing.Fulcio{Enabled: true, Address: address, TokenFile: file, Provider: "github", TUFMirror: "https://tuf-repo-cdn.sigstore.dev"}
	m := message(t)
	count := new(counter)
	open := func(set signing.Fulcio, trust Trust) *Driver {
		t.Helper()
		d, err := Open(set, Options{Trust: trust, ReadToken: readFile, Client: &http.Client{Transport: count}})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	t.Run("one certificate for many signatures", func(t *testing.T) {
		count.n.Store(0)
		d := open(set, Trust{Roots: trusted})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				s, err := d.Sign(t.Context(), m)
				if err != nil {
					t.Error(err)
					return
				}
				block, _ := pem.Decode(s.Cert)
				cert, err := x509.ParseCertificate(block.Bytes)
				if err != nil || len(cert.EmailAddresses) != 1 || cert.EmailAddresses[0] != "observer@factory.test" {
					t.Errorf("certificate %+v, %v", cert, err)
				}
				if signing.Verify(m, s) != nil || len(s.Chain) == 0 {
					t.Errorf("signature %+v", s)
				}
			})
		}
		wg.Wait()
		if n := count.n.Load(); n != 1 {
			t.Errorf("%d certificates for 20 signatures", n)
		}
		// Past half time the next one is fetched while the old one still signs; in
		// the last quarter nothing is signed with it.
		first := d.now
		d.mu.Lock()
		d.now = &identity{key: first.key, public: first.public, cert: first.cert, chain: first.chain, from: time.Now().Add(-6 * time.Minute), until: time.Now().Add(4 * time.Minute)}
		d.mu.Unlock()
		if s, err := d.Sign(t.Context(), m); err != nil || s.KeyID != first.public.KeyID() {
			t.Errorf("past half time: %v", err)
		}
		for id := first.public.KeyID(); id == first.public.KeyID(); {
			s, err := d.Sign(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			id = s.KeyID
		}
		second := d.now
		d.mu.Lock()
		d.now = &identity{key: second.key, public: second.public, cert: second.cert, from: time.Now().Add(-9 * time.Minute), until: time.Now().Add(time.Minute)}
		d.mu.Unlock()
		if s, err := d.Sign(t.Context(), m); err != nil || s.KeyID == second.public.KeyID() {
			t.Errorf("in the last quarter: %v", err)
		}
	})
	t.Run("TUF mirror", func(t *testing.T) {
		repo := newTUF(t, roots)
		set := set
		set.TUFMirror = repo.url
		pinned := filepath.Join(dir, "root.json")
		put(pinned, string(repo.rootJSON))
		if _, err := open(set, Trust{TUFRoot: pinned}).Sign(t.Context(), m); err != nil {
			t.Errorf("pinned: %v", err)
		}
		state := filepath.Join(t.TempDir(), "state")
		if _, err := open(set, Trust{State: state}).Sign(t.Context(), m); err != nil {
			t.Errorf("first use: %v", err)
		}
		// Another repository under the same name is not believed any more, once what
		// was fetched is too old.
		repo.replace(newTUF(t, roots))
		if err := os.RemoveAll(filepath.Join(state, "tuf")); err != nil {
			t.Fatal(err)
		}
		if _, err := open(set, Trust{State: state}).Sign(t.Context(), m); err == nil {
			t.Error("a mirror that was replaced is believed")
		}
		if _, err := open(set, Trust{}).Sign(t.Context(), m); err == nil || !strings.Contains(err.Error(), "--tuf-root") || store.ClassOf(err) != store.Configuration {
			t.Errorf("neither pinned nor kept: %v", err)
		}
		stranger := newTUF(t, otherRoot(t))
		set.TUFMirror = stranger.url
		put(pinned, string(stranger.rootJSON))
		if _, err := open(set, Trust{TUFRoot: pinned}).Sign(t.Context(), m); err == nil || store.ClassOf(err) != store.Configuration || !strings.Contains(err.Error(), "not by an authority") {
			t.Errorf("another authority's root: %v", err)
		}
	})
	for _, tc := range []struct {
		name  string
		token string
		set   func(*signing.Fulcio)
		trust func() Trust
		class store.Class
		says  string
	}{
		{"token for others", iss.token(t, "others", time.Hour), nil, nil, store.Configuration, "for audience others"},
		{"token of an unknown issuer", startIssuer(t).token(t, Audience, time.Hour), nil, nil, store.Configuration, ""},
		{"token that ran out", iss.token(t, Audience, -time.Minute+time.Second), nil, nil, store.Configuration, "ran out"},
		{"no token", "hello", nil, nil, store.Configuration, "no JWT"},
		{"no file", "", func(s *signing.Fulcio) { s.TokenFile = "/nonexistent" }, nil, store.Configuration, "no such file"},
		{"authority away", iss.token(t, Audience, time.Hour), func(s *signing.Fulcio) { s.Address = "http://127.0.0.1:1" }, nil, store.Transient, "refused"},
		{"authority that is none", iss.token(t, Audience, time.Hour), func(s *signing.Fulcio) { s.Address = iss.url }, nil, store.Configuration, "404"},
		{"authority that is not trusted", iss.token(t, Audience, time.Hour), nil, func() Trust {
			path := filepath.Join(dir, "other.pem")
			put(path, string(otherRoot(t)))
			return Trust{Roots: path}
		}, store.Configuration, "not by an authority that is trusted"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			put(file, tc.token)
			set, trust := set, Trust{Roots: trusted}
			if tc.set != nil {
				tc.set(&set)
			}
			if tc.trust != nil {
				trust = tc.trust()
			}
			count.n.Store(0)
			d := open(set, trust)
			for range 3 {
				if _, err := d.Sign(t.Context(), m); err == nil || store.ClassOf(err) != tc.class || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("%v (%v), want %v %q", err, store.ClassOf(err), tc.class, tc.says)
				}
			}
			if n := count.n.Load(); n > 1 {
				t.Errorf("asked %d times in a row for the same refusal", n)
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		d := open(set, Trust{Roots: trusted})
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Sign(t.Context(), m); err == nil {
			t.Error("a closed identity signs")
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	for _, set := range []signing.Fulcio{{}, {Address: "fulcio.test"}, {Address: "ftp://fulcio.test"}, {Address: "https://fulcio.test", Provider: "carrier-pigeon"}} {
		if _, err := Open(set, Options{ReadToken: readFile}); err == nil || store.ClassOf(err) != store.Configuration {
			t.Errorf("%+v: %v", set, err)
		}
	}
	if err := (Trust{Roots: "/nonexistent"}).Check(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := (Trust{TUFRoot: "/nonexistent"}).Check(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"signedCertificateEmbeddedSct":{"chain":{"certificates":["-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"]}}}`))
	f.Add([]byte(`{"signedCertificateDetachedSct":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > maxAnswer {
			return
		}
		if certs, err := parse(data); err == nil && len(certs) == 0 {
			t.Error("no certificates and no error")
		}
	})
}
