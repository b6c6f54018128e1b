package fulcio

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// tufRepo is a TUF repository with one target, trusted_root.json.
type tufRepo struct {
	url      string
	rootJSON []byte
	handler  atomic.Pointer[http.Handler]
}

func (r *tufRepo) replace(by *tufRepo) { r.handler.Store(by.handler.Load()) }

// otherRoot is a root certificate of nobody's.
func otherRoot(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "other"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// newTUF makes a repository that vouches for a root certificate.
func newTUF(t *testing.T, roots []byte) *tufRepo {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	block, _ := pem.Decode(roots)
	cert, err := x509.ParseCertificate(block.Bytes)
	must(err)
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01, []root.CertificateAuthority{
		&root.FulcioCertificateAuthority{Root: cert, ValidityPeriodStart: time.Now().Add(-time.Hour), URI: "https://fulcio.test"},
	}, nil, nil, nil)
	must(err)
	target, err := trusted.MarshalJSON()
	must(err)

	dir := t.TempDir()
	must(os.MkdirAll(filepath.Join(dir, "targets"), 0o700))
	end := time.Now().Add(24 * time.Hour)
	top, targets, snapshot, timestamp := metadata.Root(end), metadata.Targets(end), metadata.Snapshot(end), metadata.Timestamp(end)
	info, err := metadata.TargetFile().FromBytes("trusted_root.json", target, "sha256")
	must(err)
	targets.Signed.Targets["trusted_root.json"] = info
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	key, err := metadata.KeyFromPublicKey(public)
	must(err)
	for _, role := range []string{"root", "targets", "snapshot", "timestamp"} {
		must(top.Signed.AddKey(key, role))
	}
	signer, err := signature.LoadSigner(private, 0)
	must(err)
	_, err = top.Sign(signer)
	must(err)
	_, err = targets.Sign(signer)
	must(err)
	_, err = snapshot.Sign(signer)
	must(err)
	_, err = timestamp.Sign(signer)
	must(err)
	must(top.ToFile(filepath.Join(dir, "1.root.json"), true))
	must(top.ToFile(filepath.Join(dir, "root.json"), true))
	must(targets.ToFile(filepath.Join(dir, "1.targets.json"), true))
	must(snapshot.ToFile(filepath.Join(dir, "1.snapshot.json"), true))
	must(timestamp.ToFile(filepath.Join(dir, "timestamp.json"), true))
	must(os.WriteFile(filepath.Join(dir, "targets", info.Hashes["sha256"].String()+".trusted_root.json"), target, 0o600))
	r := new(tufRepo)
	var h http.Handler = http.FileServer(http.Dir(dir))
	r.handler.Store(&h)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { (*r.handler.Load()).ServeHTTP(w, req) }))
	t.Cleanup(srv.Close)
	r.url = srv.URL
	r.rootJSON, err = os.ReadFile(filepath.Join(dir, "root.json"))
	must(err)
	return r
}
