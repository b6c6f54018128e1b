package kms

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/kms/apiv1/kmspb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// cloud stands in for three clouds at once: every HTTPS connection of this process
// is led to it by a proxy, and its certificate is for their names. The drivers and
// SDKs run as they do in production, credentials and all. AWS and Azure are their
// wire protocols; Google's is the published gRPC service.
type cloud struct {
	kmspb.UnimplementedKeyManagementServiceServer
	key  *ecdsa.PrivateKey
	rsa  *rsa.PrivateKey
	grpc *grpc.Server
	fail atomic.Int32 // an HTTP status to answer instead
}

// clouds is set once by TestMain.
var clouds *cloud

func TestMain(m *testing.M) {
	code, err := func() (int, error) {
		dir, err := os.MkdirTemp("", "clouds")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		stop, err := startClouds(dir)
		if err != nil {
			return 1, err
		}
		defer stop()
		return m.Run(), nil
	}()
	if err != nil {
		log.Print(err)
	}
	os.Exit(code)
}

func startClouds(dir string) (stop func(), err error) {
	c := &cloud{grpc: grpc.NewServer()}
	kmspb.RegisterKeyManagementServiceServer(c.grpc, c)
	if c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if c.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "clouds"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		DNSNames: []string{"*.us-east-1.amazonaws.com", "*.googleapis.com", "*.vault.azure.net", "login.microsoftonline.com"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &c.key.PublicKey, c.key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(c.rsa)
	if err != nil {
		return nil, err
	}
	account, err := json.Marshal(map[string]string{
		"type": "service_account", "project_id": "p", "private_key_id": "1", "client_email": "signer@p.iam.gserviceaccount.com", "client_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})), "token_uri": "https://oauth2.googleapis.com/token",
	})
	if err != nil {
		return nil, err
	}
	ca, credentials := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "account.json")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(credentials, account, 0o600); err != nil {
		return nil, err
	}
	server := httptest.NewUnstartedServer(c)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: c.key}}}
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	proxy := httptest.NewServer(connect(server.Listener.Addr().String()))
	for k, v := range map[string]string{
		"SSL_CERT_FILE": ca, "HTTPS_PROXY": proxy.URL, "HTTP_PROXY": "", "NO_PROXY": "",
		"AWS_ACCESS_KEY_ID": "AKID", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_CA_BUNDLE": ca,
		"GOOGLE_APPLICATION_CREDENTIALS": credentials,
		"AZURE_TENANT_ID":                "tenant", "AZURE_CLIENT_ID": "client", "AZURE_CLIENT_SECRET": "secret",
	} {
		if err := os.Setenv(k, v); err != nil {
			return nil, err
		}
	}
	clouds = c
	return func() { proxy.Close(); server.Close(); c.grpc.Stop() }, nil
}

// connect is an HTTP proxy that leads everybody to one address.
func connect(to string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect {
			http.Error(w, "only CONNECT", http.StatusMethodNotAllowed)
			return
		}
		out, err := net.Dial("tcp", to)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		in, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			out.Close()
			return
		}
		fmt.Fprint(in, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { io.Copy(out, in); out.Close() }() //nolint:errcheck // either side may end it
		io.Copy(in, out)                              //nolint:errcheck // see above
		in.Close()
	}
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		c.grpc.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fail := int(c.fail.Load())
	switch {
	case strings.HasSuffix(r.Host, "amazonaws.com"):
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		if fail != 0 {
			w.WriteHeader(fail)
			fmt.Fprint(w, `{"__type":"Failure","message":"no"}`)
			return
		}
		c.aws(w, r)
	case r.Host == "login.microsoftonline.com":
		c.login(w, r)
	case strings.HasSuffix(r.Host, "vault.azure.net"):
		if fail != 0 {
			w.WriteHeader(fail)
			fmt.Fprint(w, `{"error":{"code":"Failure","message":"no"}}`)
			return
		}
		c.azure(w, r)
	default: // oauth2.googleapis.com
		fmt.Fprint(w, `{"access_token":"t","token_type":"Bearer","expires_in":3600}`)
	}
}

func (c *cloud) aws(w http.ResponseWriter, r *http.Request) {
	var in struct {
		KeyID     string `json:"KeyId"`
		Message   []byte
		Algorithm string `json:"SigningAlgorithm"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || !strings.Contains(r.Header.Get("Authorization"), "Credential=AKID/") {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if in.KeyID != "alias/release" {
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"__type":"NotFoundException","message":"Alias is not found."}`)
		return
	}
	der, err := x509.MarshalPKIXPublicKey(&c.key.PublicKey)
	if err != nil {
		panic(err)
	}
	var out any
	switch r.Header.Get("X-Amz-Target") {
	case "TrentService.GetPublicKey":
		out = map[string]any{"KeyId": in.KeyID, "PublicKey": der, "KeyUsage": "SIGN_VERIFY", "KeySpec": "ECC_NIST_P256", "SigningAlgorithms": []string{"ECDSA_SHA_256"}}
	case "TrentService.DescribeKey":
		out = map[string]any{"KeyMetadata": map[string]any{"KeyId": in.KeyID, "KeySpec": "ECC_NIST_P256", "Enabled": true, "SigningAlgorithms": []string{"ECDSA_SHA_256"}}}
	case "TrentService.Sign":
		sig, err := ecdsa.SignASN1(rand.Reader, c.key, in.Message)
		if err != nil || in.Algorithm != "ECDSA_SHA_256" {
			panic(in)
		}
		out = map[string]any{"KeyId": in.KeyID, "Signature": sig, "SigningAlgorithm": in.Algorithm}
	}
	json.NewEncoder(w).Encode(out) //nolint:errcheck // the client will notice
}

func (c *cloud) login(w http.ResponseWriter, r *http.Request) {
	const base = "https://login.microsoftonline.com/tenant"
	switch {
	case strings.HasSuffix(r.URL.Path, "/discovery/instance"):
		fmt.Fprint(w, `{"tenant_discovery_endpoint":"`+base+`/v2.0/.well-known/openid-configuration","metadata":[{"preferred_network":"login.microsoftonline.com","preferred_cache":"login.microsoftonline.com","aliases":["login.microsoftonline.com"]}]}`)
	case strings.HasSuffix(r.URL.Path, "/openid-configuration"):
		fmt.Fprint(w, `{"issuer":"`+base+`/v2.0","authorization_endpoint":"`+base+`/oauth2/v2.0/authorize","token_endpoint":"`+base+`/oauth2/v2.0/token"}`)
	default:
		fmt.Fprint(w, `{"access_token":"azure-token","token_type":"Bearer","expires_in":3600}`)
	}
}

func (c *cloud) azure(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer azure-token" {
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/tenant", resource="https://vault.azure.net"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	const kid = "https://team.vault.azure.net/keys/release/1"
	url := base64.RawURLEncoding.EncodeToString
	if !strings.HasPrefix(r.URL.Path, "/keys/release") {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"error":{"code":"KeyNotFound","message":"not found"}}`)
		return
	}
	if !strings.HasSuffix(r.URL.Path, "/sign") {
		point, err := c.key.PublicKey.Bytes()
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(w, `{"key":{"kid":%q,"kty":"EC","crv":"P-256","x":%q,"y":%q,"key_ops":["sign","verify"]},"attributes":{"enabled":true}}`, kid, url(point[1:33]), url(point[33:]))
		return
	}
	var in struct{ Alg, Value string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Alg != "ES256" {
		panic(in)
	}
	digest, err := base64.RawURLEncoding.DecodeString(in.Value)
	if err != nil {
		panic(err)
	}
	a, b, err := ecdsa.Sign(rand.Reader, c.key, digest)
	if err != nil {
		panic(err)
	}
	fmt.Fprintf(w, `{"kid":%q,"value":%q}`, kid, url(append(a.FillBytes(make([]byte, 32)), b.FillBytes(make([]byte, 32))...)))
}

const gcpKey = "projects/p/locations/l/keyRings/r/cryptoKeys/release"

// failure is what gRPC answers where HTTP would answer a status.
func (c *cloud) failure() error {
	switch c.fail.Load() {
	case http.StatusForbidden:
		return status.Error(codes.PermissionDenied, "no")
	case http.StatusServiceUnavailable:
		return status.Error(codes.Internal, "no")
	}
	return nil
}

func (c *cloud) ListCryptoKeyVersions(_ context.Context, r *kmspb.ListCryptoKeyVersionsRequest) (*kmspb.ListCryptoKeyVersionsResponse, error) {
	if err := c.failure(); err != nil {
		return nil, err
	}
	if r.Parent != gcpKey {
		return nil, status.Error(codes.NotFound, "no such key")
	}
	return &kmspb.ListCryptoKeyVersionsResponse{TotalSize: 1, CryptoKeyVersions: []*kmspb.CryptoKeyVersion{{
		Name: gcpKey + "/cryptoKeyVersions/1", State: kmspb.CryptoKeyVersion_ENABLED, Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256,
	}}}, nil
}

func (c *cloud) GetCryptoKey(_ context.Context, r *kmspb.GetCryptoKeyRequest) (*kmspb.CryptoKey, error) {
	if r.Name != gcpKey {
		return nil, status.Error(codes.NotFound, "no such key")
	}
	return &kmspb.CryptoKey{Name: gcpKey, Purpose: kmspb.CryptoKey_ASYMMETRIC_SIGN}, nil
}

func (c *cloud) GetPublicKey(context.Context, *kmspb.GetPublicKeyRequest) (*kmspb.PublicKey, error) {
	if err := c.failure(); err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(&c.rsa.PublicKey)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	return &kmspb.PublicKey{
		Pem: string(text), PemCrc32C: sum(text), Name: gcpKey + "/cryptoKeyVersions/1", Algorithm: kmspb.CryptoKeyVersion_RSA_SIGN_PKCS1_2048_SHA256,
	}, nil
}

func (c *cloud) AsymmetricSign(_ context.Context, r *kmspb.AsymmetricSignRequest) (*kmspb.AsymmetricSignResponse, error) {
	if err := c.failure(); err != nil {
		return nil, err
	}
	digest := r.GetDigest().GetSha256()
	if len(digest) != sha256.Size {
		return nil, status.Error(codes.InvalidArgument, "want a SHA-256 digest")
	}
	sig, err := rsa.SignPKCS1v15(rand.Reader, c.rsa, crypto.SHA256, digest)
	if err != nil {
		return nil, err
	}
	return &kmspb.AsymmetricSignResponse{Signature: sig, SignatureCrc32C: sum(sig), VerifiedDigestCrc32C: true, Name: r.Name}, nil
}

func sum(b []byte) *wrapperspb.Int64Value {
	return wrapperspb.Int64(int64(crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))))
}

func TestClouds(t *testing.T) {
	for _, tc := range []struct{ name, ref, missing string }{
		{"AWS", "awskms:///alias/release", "awskms:///alias/none"},
		{"Azure", "azurekms://team.vault.azure.net/release", "azurekms://team.vault.azure.net/none"},
		{"Google", "gcpkms://" + gcpKey, "gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/none"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			defer clouds.fail.Store(0)
			d := signs(t, signing.KMSSettings{Ref: tc.ref})
			for status, class := range map[int32]store.Class{http.StatusForbidden: store.Configuration, http.StatusServiceUnavailable: store.Transient} {
				clouds.fail.Store(status)
				ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
				_, err := d.Sign(ctx, message(t))
				cancel()
				if err == nil || store.ClassOf(err) != class {
					t.Errorf("status %d: %v (%v), want %v", status, err, store.ClassOf(err), class)
				}
			}
			clouds.fail.Store(0)
			refuses(t, signing.KMSSettings{Ref: tc.missing}, "")
		})
	}
}
