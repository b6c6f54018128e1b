package sigstore

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	ctx509 "github.com/google/certificate-transparency-go/x509"

	"assay.dev/assay/internal/testrig/peer"
)

// Servers is a deployment of the real programs, for what signs with them: Fulcio and,
// over Trillian, Rekor, as tools/peers builds them. The issuer of identity tokens and
// the certificate log are the test's: the first speaks OpenID Connect's discovery, the
// second as much of RFC 6962 as Fulcio needs, add-pre-chain.
type Servers struct {
	t testing.TB
	// Email is whom tokens name.
	Email string
	// Issuer, Fulcio and Rekor are addresses.
	Issuer, Fulcio, Rekor string
	// RootPEM is Fulcio's, RekorPEM the log's key.
	RootPEM, RekorPEM []byte

	tokens jose.Signer
	ctKey  *ecdsa.PrivateKey
	began  time.Time
}

// Start runs a deployment until the test ends. It skips the test without the programs.
func Start(t testing.TB, email string) *Servers {
	t.Helper()
	s := &Servers{t: t, Email: email, ctKey: newKey(t), began: time.Now().Add(-time.Hour).UTC().Truncate(time.Second)}
	peer.Need(t, "ASSAY_FULCIO")
	peer.Need(t, "ASSAY_TRILLIAN")
	peer.Need(t, "ASSAY_REKOR")
	s.startIssuer()
	s.startFulcio()
	s.startRekor()
	return s
}

func (s *Servers) startIssuer() {
	s.t.Helper()
	key := newKey(s.t)
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	s.t.Cleanup(srv.Close)
	s.Issuer = srv.URL
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(v) } //nolint:errcheck // the client will notice
	}
	mux.HandleFunc("/.well-known/openid-configuration", answer(map[string]any{
		"issuer": srv.URL, "jwks_uri": srv.URL + "/keys", "authorization_endpoint": srv.URL + "/auth", "token_endpoint": srv.URL + "/token",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
	}))
	mux.HandleFunc("/keys", answer(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "1", Algorithm: "ES256", Use: "sig"}}}))
	var err error
	s.tokens, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	must(s.t, err)
}

// Token is an identity token for Email.
func (s *Servers) Token() string {
	s.t.Helper()
	token, err := jwt.Signed(s.tokens).Claims(jwt.Claims{
		Issuer: s.Issuer, Subject: "1234", Audience: jwt.Audience{"sigstore"},
		IssuedAt: jwt.NewNumericDate(time.Now().Add(-time.Minute)), Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour)),
	}).Claims(map[string]any{"email": s.Email, "email_verified": true}).Serialize()
	must(s.t, err)
	return token
}

// startCertificateLog serves what Fulcio asks of a certificate log.
func (s *Servers) startCertificateLog() (url string) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /ct/v1/add-pre-chain", func(w http.ResponseWriter, r *http.Request) {
		var q struct{ Chain [][]byte }
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&q); err != nil || len(q.Chain) < 2 {
			http.Error(w, "want a chain", http.StatusBadRequest)
			return
		}
		// The poison is an extension that the library knows and reports as no error.
		pre, err := ctx509.ParseCertificate(q.Chain[0])
		if ctx509.IsFatal(err) {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		tbs, err := ctx509.RemoveCTPoison(pre.RawTBSCertificate)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		ca, err := ctx509.ParseCertificate(q.Chain[1])
		if ctx509.IsFatal(err) {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		millis := uint64(time.Now().UnixMilli())
		sum := sha256.Sum256(signedEntry(tbs, sha256.Sum256(ca.RawSubjectPublicKeyInfo), millis))
		sig, err := ecdsa.SignASN1(rand.Reader, s.ctKey, sum[:])
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		id := sha256.Sum256(spki(s.t, s.ctKey.Public()))
		json.NewEncoder(w).Encode(map[string]any{ //nolint:errcheck // the client will notice
			"sct_version": 0, "id": id[:], "timestamp": millis, "extensions": "",
			"signature": append(binary.BigEndian.AppendUint16([]byte{4, 3}, uint16(len(sig))), sig...),
		})
	})
	srv := httptest.NewServer(mux)
	s.t.Cleanup(srv.Close)
	return srv.URL
}

// startFulcio runs Fulcio.
func (s *Servers) startFulcio() {
	t := s.t
	t.Helper()
	dir, err := os.MkdirTemp("", "fulcio") // a socket's path is short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	config, ctKey := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "ct.pub")
	must(t, os.WriteFile(config, []byte("oidc-issuers:\n  "+s.Issuer+":\n    issuer-url: "+s.Issuer+"\n    client-id: sigstore\n    type: email\n"), 0o600))
	must(t, os.WriteFile(ctKey, keyPEM(t, s.ctKey.Public()), 0o600))
	_, port, address := peer.Address(t)
	_, grpc, _ := peer.Address(t)
	_, metrics, _ := peer.Address(t)
	peer.Start(t, address, nil, peer.Need(t, "ASSAY_FULCIO"), "serve", "--ca=ephemeralca", "--ct-log-url="+s.startCertificateLog(),
		"--ct-log-public-key-path="+ctKey, "--config-path="+config,
		"--host=127.0.0.1", "--port="+port, "--grpc-host=127.0.0.1", "--grpc-port="+grpc, "--metrics-port="+metrics,
		"--legacy-unix-domain-socket="+filepath.Join(dir, "s"))
	s.Fulcio = "http://" + address
	var bundle struct {
		Chains []struct{ Certificates []string }
	}
	for deadline := time.Now().Add(time.Minute); len(bundle.Chains) == 0; time.Sleep(50 * time.Millisecond) {
		if resp, err := http.Get(s.Fulcio + "/api/v2/trustBundle"); err == nil {
			_ = json.NewDecoder(resp.Body).Decode(&bundle)
			resp.Body.Close()
		}
		if time.Now().After(deadline) {
			t.Fatal("Fulcio gives no root")
		}
	}
	s.RootPEM = []byte(strings.Join(bundle.Chains[0].Certificates, "\n"))
}

// startRekor runs Rekor over Trillian.
func (s *Servers) startRekor() {
	t := s.t
	t.Helper()
	trillian := exec.Command(peer.Need(t, "ASSAY_TRILLIAN"))
	in, err := trillian.StdinPipe()
	must(t, err)
	out, err := trillian.StdoutPipe()
	must(t, err)
	must(t, trillian.Start())
	t.Cleanup(func() {
		in.Close()
		trillian.Process.Kill() //nolint:errcheck // it may be gone
		trillian.Wait()         //nolint:errcheck // it was killed
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	_, port, address := peer.Address(t)
	peer.Start(t, address, nil, peer.Need(t, "ASSAY_REKOR"), "serve", "--rekor_server.address=127.0.0.1", "--port="+port, "--rekor_server.hostname=rekor.test",
		"--trillian_log_server.address=127.0.0.1", "--trillian_log_server.port="+strings.TrimSpace(line), "--enable_retrieve_api=false", "--rekor_server.signer=memory")
	s.Rekor = "http://" + address
	resp, err := http.Get(s.Rekor + "/api/v1/log/publicKey")
	must(t, err)
	defer resp.Body.Close()
	s.RekorPEM, err = io.ReadAll(resp.Body)
	must(t, err)
}

// TrustedRoot is the deployment's, with all three parts.
func (s *Servers) TrustedRoot() []byte {
	s.t.Helper()
	ca, _ := pem.Decode(s.RootPEM)
	log, _ := pem.Decode(s.RekorPEM)
	valid := map[string]any{"start": s.began}
	known := func(url string, der []byte) []any {
		id := sha256.Sum256(der)
		return []any{map[string]any{
			"baseUrl": url, "hashAlgorithm": "SHA2_256", "logId": map[string]any{"keyId": id[:]},
			"publicKey": map[string]any{"rawBytes": der, "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": valid},
		}}
	}
	raw, err := json.Marshal(map[string]any{
		"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
		"tlogs":     known(s.Rekor, log.Bytes),
		"ctlogs":    known("https://ct.example.com", spki(s.t, s.ctKey.Public())),
		"certificateAuthorities": []any{map[string]any{
			"subject": map[string]any{"commonName": "fulcio"}, "uri": s.Fulcio, "validFor": valid,
			"certChain": map[string]any{"certificates": []any{map[string]any{"rawBytes": ca.Bytes}}},
		}},
	})
	must(s.t, err)
	return raw
}

// Cosign runs cosign, which signs to this deployment, in a folder that is its home.
// Keyless are the arguments in place of a key.
func (s *Servers) Cosign(t testing.TB, home string, args ...string) {
	t.Helper()
	c := exec.CommandContext(t.Context(), peer.Need(t, "ASSAY_COSIGN"), args...)
	c.Dir = home
	c.Env = append(os.Environ(), "COSIGN_PASSWORD=s3cret", "COSIGN_YES=true", "HOME="+home)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("cosign %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Keyless are cosign's arguments to sign as Email.
func (s *Servers) Keyless(t testing.TB, home string) []string {
	t.Helper()
	token := filepath.Join(home, "token")
	must(t, os.WriteFile(token, []byte(s.Token()), 0o600))
	return []string{"--fulcio-url", s.Fulcio, "--identity-token", token, "--insecure-skip-verify", "--oidc-issuer", s.Issuer}
}
