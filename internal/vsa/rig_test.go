package vsa_test

// The signer here is the real one, internal/signer, as a process of its own: this test's
// program started again. The registry is olareg, a real OCI registry, in this process.
// Rekor is vsatest's, which speaks its wire protocol around Rekor's own module;
// TestRekorReal uploads to the real server.

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/attest"
	"assay.dev/assay/internal/signer"
	"assay.dev/assay/internal/vsa"
	"assay.dev/assay/store/storetest"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "signer" {
		os.Exit(signer.Main(context.Background(), os.Args[2:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

func self(t testing.TB) string {
	t.Helper()
	p, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// keyFile writes a key as cosign does and returns its path.
func keyFile(t testing.TB, k *attest.Key, password []byte) string {
	t.Helper()
	raw, err := k.PrivatePEM(password)
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(t.TempDir(), "gate.key")
	if err := os.WriteFile(p, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func startSigner(t testing.TB, k *attest.Key) *vsa.Signer {
	t.Helper()
	s, err := vsa.StartSigner(t.Context(), keyFile(t, k, nil), vsa.SignerOptions{Observer: self(t)})
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

// host is a registry in this process.
const host = "localhost:5999"

func registry(t testing.TB) http.RoundTripper {
	return storetest.Transport(storetest.Registry(t, true))
}

func writes(rt http.RoundTripper) func(context.Context, name.Repository) (http.RoundTripper, error) {
	return func(context.Context, name.Repository) (http.RoundTripper, error) { return rt, nil }
}

func reads(rt http.RoundTripper) func(context.Context, string) (http.RoundTripper, error) {
	return func(context.Context, string) (http.RoundTripper, error) { return rt, nil }
}

func fatal(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
