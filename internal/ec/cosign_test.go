package ec_test

// cosign signs here, with a certificate of Fulcio and entries of Rekor: the real
// programs, built from their modules (tools/peers). The issuer of the identity token
// is the test's. The test runs with ASSAY_SLOW=1.

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"assay.dev/assay/internal/testrig/peer"
)

// tokens is an OpenID Connect issuer, and makes tokens for one person.
func tokens(t *testing.T, email string) (issuer string, token func() string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	mux := http.NewServeMux()
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	answer := func(v any) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode(v) } //nolint:errcheck // the client will notice
	}
	mux.HandleFunc("/.well-known/openid-configuration", answer(map[string]any{
		"issuer": srv.URL, "jwks_uri": srv.URL + "/keys", "authorization_endpoint": srv.URL + "/auth", "token_endpoint": srv.URL + "/token",
		"response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{"ES256"},
	}))
	mux.HandleFunc("/keys", answer(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "1", Algorithm: "ES256", Use: "sig"}}}))
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	must(t, err)
	return srv.URL, func() string {
		s, err := jwt.Signed(signer).Claims(jwt.Claims{
			Issuer: srv.URL, Subject: "1234", Audience: jwt.Audience{"sigstore"},
			IssuedAt: jwt.NewNumericDate(time.Now().Add(-time.Minute)), Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour)),
		}).Claims(map[string]any{"email": email, "email_verified": true}).Serialize()
		must(t, err)
		return s
	}
}

// startFulcio runs Fulcio without a certificate log, and returns its root as PEM.
func startFulcio(t *testing.T, issuer string) (url string, root []byte) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fulcio") // a socket's path is short
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := write(t, dir, "config.yaml", "oidc-issuers:\n  "+issuer+":\n    issuer-url: "+issuer+"\n    client-id: sigstore\n    type: email\n")
	_, port, address := peer.Address(t)
	_, grpc, _ := peer.Address(t)
	_, metrics, _ := peer.Address(t)
	peer.Start(t, address, nil, peer.Need(t, "ASSAY_FULCIO"), "serve", "--ca=ephemeralca", "--ct-log-url=", "--config-path="+config,
		"--host=127.0.0.1", "--port="+port, "--grpc-host=127.0.0.1", "--grpc-port="+grpc, "--metrics-port="+metrics,
		"--legacy-unix-domain-socket="+filepath.Join(dir, "s"))
	url = "http://" + address
	var bundle struct {
		Chains []struct{ Certificates []string }
	}
	for deadline := time.Now().Add(time.Minute); len(bundle.Chains) == 0; time.Sleep(50 * time.Millisecond) {
		if resp, err := http.Get(url + "/api/v2/trustBundle"); err == nil {
			_ = json.NewDecoder(resp.Body).Decode(&bundle)
			resp.Body.Close()
		}
		if time.Now().After(deadline) {
			t.Fatal("Fulcio gives no root")
		}
	}
	return url, []byte(strings.Join(bundle.Chains[0].Certificates, "\n"))
}

// startRekor runs Rekor over Trillian, and returns its key as PEM.
func startRekor(t *testing.T) (url string, key []byte) {
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
	url = "http://" + address
	resp, err := http.Get(url + "/api/v1/log/publicKey")
	must(t, err)
	defer resp.Body.Close()
	key, err = io.ReadAll(resp.Body)
	must(t, err)
	return url, key
}

// TestCosign: what cosign signs and attests, with a key and without, with entries
// that come with the signatures and with ones that must be looked for.
func TestCosign(t *testing.T) {
	cosign := peer.Need(t, "ASSAY_COSIGN")
	const email = "builder@factory.test"
	issuer, token := tokens(t, email)
	fulcio, root := startFulcio(t, issuer)
	rekor, key := startRekor(t)
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	for _, v := range []string{"SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", "SIGSTORE_TSA_CERTIFICATE_FILE", "TUF_MIRROR", "TUF_ROOT_JSON", "TUF_ROOT", "SIGSTORE_ROOT_FILE", "SIGSTORE_REKOR_PUBLIC_KEY"} {
		t.Setenv(v, "")
	}
	// The deployment's trusted root, by TUF.
	block, _ := pem.Decode(root)
	log, _ := pem.Decode(key)
	id := sha256.Sum256(log.Bytes)
	valid := map[string]any{"start": time.Now().Add(-time.Hour).UTC()}
	trusted, err := json.Marshal(map[string]any{
		"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
		"tlogs": []any{map[string]any{
			"baseUrl": rekor, "hashAlgorithm": "SHA2_256", "logId": map[string]any{"keyId": id[:]},
			"publicKey": map[string]any{"rawBytes": log.Bytes, "keyDetails": "PKIX_ECDSA_P256_SHA_256", "validFor": valid},
		}},
		"certificateAuthorities": []any{map[string]any{
			"subject": map[string]any{"commonName": "fulcio"}, "uri": fulcio, "validFor": valid,
			"certChain": map[string]any{"certificates": []any{map[string]any{"rawBytes": block.Bytes}}},
		}},
	})
	must(t, err)
	mirror, first := tufRepository(t, trusted)
	if code, out, stderr := run(t, home, []string{"sigstore", "initialize", "--mirror", mirror, "--root", write(t, home, "root.json", string(first))}); code != 0 {
		t.Fatalf("exit %d: %s %s", code, out, stderr)
	}
	cmd := func(t *testing.T, args ...string) {
		t.Helper()
		c := exec.CommandContext(t.Context(), cosign, args...)
		c.Dir = home
		c.Env = append(os.Environ(), "COSIGN_PASSWORD=s3cret", "COSIGN_YES=true", "HOME="+home) // with what was set up
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("cosign %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	cmd(t, "generate-key-pair")
	predicate := write(t, home, "predicate.json", `{"buildDefinition":{"buildType":"https://example.com/b","externalParameters":{}},"runDetails":{"builder":{"id":"https://example.com/builder"}}}`)
	common := []string{"--allow-insecure-registry=true", "--use-signing-config=false", "--rekor-url", rekor}
	keyed := func() []string { return []string{"--key", "cosign.key"} }
	keyless := func() []string {
		return []string{"--fulcio-url", fulcio, "--identity-token", write(t, home, "token", token()), "--insecure-skip-verify", "--oidc-issuer", issuer}
	}
	pub := filepath.Join(home, "cosign.pub")
	byMail := []string{"--certificate-identity", email, "--certificate-oidc-issuer", issuer}
	for name, tt := range map[string]struct {
		with   func() []string
		args   []string
		ok     bool
		bundle string
	}{
		"key":                    {keyed, []string{"-k", pub}, true, "false"},
		"key, Rekor named":       {keyed, []string{"-k", pub, "-r", rekor}, true, "false"},
		"keyless":                {keyless, byMail, true, "false"},
		"keyless, by expression": {keyless, []string{"--certificate-identity-regexp", "@factory", "--certificate-oidc-issuer-regexp", "127.0.0.1"}, true, "false"},
		"keyless, somebody else": {keyless, []string{"--certificate-identity", "other@factory.test", "--certificate-oidc-issuer", issuer}, false, "false"},
		"keyless, wrong issuer":  {keyless, []string{"--certificate-identity", email, "--certificate-oidc-issuer", "https://accounts.example.com"}, false, "false"},
		"key, bundle":            {keyed, []string{"-k", pub}, true, "true"},
		"keyless, bundle":        {keyless, byMail, true, "true"},
		"keyless, bundle, else":  {keyless, []string{"--certificate-identity", "other@factory.test", "--certificate-oidc-issuer", issuer}, false, "true"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			ref := s.tag.Context().Name() + "@" + s.digest.String()
			cmd(t, slices.Concat([]string{"sign", "--new-bundle-format=" + tt.bundle}, common, tt.with(), []string{ref})...)
			cmd(t, slices.Concat([]string{"attest", "--new-bundle-format=" + tt.bundle, "--type", "slsaprovenance1", "--predicate", predicate}, common, tt.with(), []string{ref})...)
			code, report, stderr := s.validate(tt.args...)
			if (code == 0) != tt.ok {
				t.Errorf("exit %d: %s %v", code, stderr, report)
			}
			if tt.ok && !strings.Contains(fmt.Sprint(report), "kind:rekor") {
				t.Errorf("no log is named: %v", report)
			}
		})
	}
}
