package fulcio

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// Google's services are no programs that anybody can run: their wire protocol is
// spoken on loopback, under their real names and TLS. The metadata server and the
// token service of an account's file hand out access tokens; IAM takes those and
// nothing else.

const impersonated = "signer@project-1.iam.gserviceaccount.com"

// googles is all of them. Requests go to real addresses; dial brings them here.
type googles struct {
	t      *testing.T
	iam    *httptest.Server
	plain  *httptest.Server // metadata and token service
	key    *rsa.PrivateKey  // of the account's file
	token  string           // what IAM gives
	status int              // what IAM answers instead; 0: nothing
}

func startGoogles(t *testing.T, token string) *googles {
	t.Helper()
	g := &googles{t: t, token: token}
	var err error
	if g.key, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	g.iam = httptest.NewTLSServer(http.HandlerFunc(g.serveIAM))
	t.Cleanup(g.iam.Close)
	g.plain = httptest.NewServer(http.HandlerFunc(g.serveTokens))
	t.Cleanup(g.plain.Close)
	return g
}

func (g *googles) serveIAM(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var ask struct {
		Audience     string `json:"audience"`
		IncludeEmail bool   `json:"includeEmail"`
	}
	switch {
	case g.status != 0:
		w.WriteHeader(g.status)
		fmt.Fprint(w, `{"error":{"code":403,"message":"Permission 'iam.serviceAccounts.getOpenIdToken' denied","status":"PERMISSION_DENIED"}}`)
	case r.Host != "iamcredentials.googleapis.com" || r.Method != "POST" || r.URL.Path != "/v1/projects/-/serviceAccounts/"+impersonated+":generateIdToken",
		err != nil, json.Unmarshal(body, &ask) != nil, ask.Audience != Audience, !ask.IncludeEmail:
		w.WriteHeader(http.StatusNotFound)
	case r.Header.Get("Authorization") != "Bearer access-by-metadata" && r.Header.Get("Authorization") != "Bearer access-by-file":
		w.WriteHeader(http.StatusUnauthorized)
	default:
		_ = json.NewEncoder(w).Encode(map[string]string{"token": g.token})
	}
}

func (g *googles) serveTokens(w http.ResponseWriter, r *http.Request) {
	metadata := r.Header.Get("Metadata-Flavor") == "Google"
	w.Header().Set("Metadata-Flavor", "Google")
	w.Header().Set("Content-Type", "application/json")
	switch {
	case metadata && strings.HasSuffix(r.URL.Path, "/service-accounts/default/token"):
		fmt.Fprint(w, `{"access_token":"access-by-metadata","expires_in":3600,"token_type":"Bearer"}`)
	case metadata && strings.HasSuffix(r.URL.Path, "/universe/universe-domain"):
		fmt.Fprint(w, "googleapis.com")
	case r.URL.Path == "/token" && g.asserted(r):
		fmt.Fprint(w, `{"access_token":"access-by-file","expires_in":3600,"token_type":"Bearer"}`)
	default:
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":"invalid_grant"}`)
	}
}

// asserted checks what RFC 7523 asks of a service account: a token that its key
// signed, for this address, with the scope that is wanted.
func (g *googles) asserted(r *http.Request) bool {
	if r.FormValue("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer" {
		return false
	}
	parsed, err := jwt.ParseSigned(r.FormValue("assertion"), []jose.SignatureAlgorithm{jose.RS256})
	if err != nil {
		return false
	}
	var claims struct {
		jwt.Claims
		Scope string `json:"scope"`
	}
	return parsed.Claims(g.key.Public(), &claims) == nil && claims.Issuer == "caller@project-1.iam.gserviceaccount.com" && claims.Scope == googleScope &&
		claims.Validate(jwt.Expected{AnyAudience: jwt.Audience{g.plain.URL + "/token"}, Time: time.Now()}) == nil
}

// client reaches IAM under its own name, on loopback.
func (g *googles) client() *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(g.iam.Certificate())
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "example.com"}, // httptest's name
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "iamcredentials.googleapis.com:443" {
				address = g.iam.Listener.Addr().String()
			}
			if host, _, _ := net.SplitHostPort(address); host != "127.0.0.1" {
				return nil, fmt.Errorf("the test goes to %s", address)
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}}
}

// file is a service account's.
func (g *googles) file(key *rsa.PrivateKey) string {
	g.t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		g.t.Fatal(err)
	}
	text, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "project-1", "private_key_id": "1", "client_id": "1",
		"client_email": "caller@project-1.iam.gserviceaccount.com", "token_uri": g.plain.URL + "/token",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		g.t.Fatal(err)
	}
	path := filepath.Join(g.t.TempDir(), "adc.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		g.t.Fatal(err)
	}
	return path
}

func TestGoogleImpersonate(t *testing.T) {
	iss := startIssuer(t)
	token := iss.token(t, Audience, time.Hour)
	g := startGoogles(t, token)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(g.plain.URL, "http://")
	for _, tc := range []struct {
		name     string
		provider string
		account  string
		file     string
		gives    string
		status   int
		class    store.Class // of what is refused
		says     string
	}{
		{name: "by the metadata server", provider: "google-impersonate", account: impersonated, gives: token},
		{name: "by an account's file", provider: "google-impersonate", account: impersonated, file: g.file(g.key), gives: token},
		{name: "among all", account: impersonated, file: g.file(g.key), gives: token},
		{name: "nobody is named", provider: "google-impersonate", class: store.Configuration, says: googleAccount + " is not set"},
		{name: "no account", provider: "google-impersonate", account: "../../x", class: store.Configuration, says: "no service account's address"},
		{name: "another key", provider: "google-impersonate", account: impersonated, file: g.file(other), class: store.Configuration, says: "invalid_grant"},
		{name: "a file that is not there", provider: "google-impersonate", account: impersonated, file: "/nonexistent", class: store.Configuration, says: "no such file"},
		{name: "no right to it", provider: "google-impersonate", account: impersonated, status: http.StatusForbidden, class: store.Configuration, says: "getOpenIdToken"},
		{name: "IAM is down", provider: "google-impersonate", account: impersonated, status: http.StatusServiceUnavailable, class: store.Transient, says: "503"},
		{name: "what it gives is no token", provider: "google-impersonate", account: impersonated, gives: "nothing", class: store.Configuration, says: "no JWT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, name := range sourceEnv {
				t.Setenv(name, "")
			}
			t.Setenv("HOME", t.TempDir()) // no file of gcloud's
			t.Setenv("GCE_METADATA_HOST", host)
			t.Setenv(googleAccount, tc.account)
			t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", tc.file)
			g.token, g.status = tc.gives, tc.status
			d, err := Open(signing.Fulcio{Provider: tc.provider, Address: "https://fulcio.test"}, Options{ReadToken: readFile, Client: g.client()})
			if err != nil {
				t.Fatal(err)
			}
			got, err := d.token(t.Context())
			if tc.says == "" {
				if err != nil || got != token {
					t.Errorf("%q, %v", got, err)
				}
				return
			}
			if err == nil || store.ClassOf(err) != tc.class || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v (%v); want %v with %q", err, store.ClassOf(err), tc.class, tc.says)
			}
		})
	}
}
