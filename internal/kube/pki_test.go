package kube

import (
	"bytes"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newPKI(t *testing.T) pki {
	t.Helper()
	p := pki{dir: t.TempDir(), uid: -1, now: time.Now}
	if err := p.ensure(); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p pki) read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(p.file(name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (p pki) cert(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	c, err := parseCertificate(p.read(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Each certificate is good for its purpose, under its authority, and for nothing
// else.
func TestCertificates(t *testing.T) {
	p := newPKI(t)
	for _, tt := range []struct {
		file, ca string
		use      x509.ExtKeyUsage
		good     bool
	}{
		{"apiserver.crt", "ca.crt", x509.ExtKeyUsageServerAuth, true},
		{"apiserver.crt", "ca.crt", x509.ExtKeyUsageClientAuth, false},
		{"apiserver.crt", "etcd-ca.crt", x509.ExtKeyUsageServerAuth, false},
		{"admin.crt", "ca.crt", x509.ExtKeyUsageClientAuth, true},
		{"admin.crt", "ca.crt", x509.ExtKeyUsageServerAuth, false},
		{"admin.crt", "etcd-ca.crt", x509.ExtKeyUsageClientAuth, false},
		{"etcd-client.crt", "etcd-ca.crt", x509.ExtKeyUsageClientAuth, true},
		{"etcd-client.crt", "ca.crt", x509.ExtKeyUsageClientAuth, false},
		{"etcd-peer.crt", "etcd-ca.crt", x509.ExtKeyUsageClientAuth, true},
		{"etcd-peer.crt", "etcd-ca.crt", x509.ExtKeyUsageServerAuth, true},
	} {
		roots := x509.NewCertPool()
		roots.AddCert(p.cert(t, tt.ca))
		_, err := p.cert(t, tt.file).Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{tt.use}})
		if (err == nil) != tt.good {
			t.Errorf("%s under %s for use %d: %v", tt.file, tt.ca, tt.use, err)
		}
	}
	if err := p.cert(t, "apiserver.crt").VerifyHostname("kubernetes.default.svc"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"ca.key", "etcd-ca.key", "admin.key", "apiserver.key", "service-account.key"} {
		st, err := os.Stat(p.file(name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, st.Mode().Perm())
		}
	}
}

func TestCertificatesAreKeptAndRenewed(t *testing.T) {
	p := newPKI(t)
	all, err := filepath.Glob(p.file("*"))
	if err != nil {
		t.Fatal(err)
	}
	before := map[string][]byte{}
	for _, f := range all {
		before[filepath.Base(f)] = p.read(t, filepath.Base(f))
	}
	changed := func() (names []string) {
		for name, b := range before {
			if !bytes.Equal(b, p.read(t, name)) {
				names = append(names, name)
			}
		}
		return names
	}
	if err := p.ensure(); err != nil {
		t.Fatal(err)
	}
	if names := changed(); len(names) > 0 {
		t.Errorf("a second start changed %v", names)
	}
	p.now = func() time.Time { return time.Now().Add(leafLife * 3 / 4) }
	if err := p.ensure(); err != nil {
		t.Fatal(err)
	}
	for _, name := range changed() {
		if strings.HasSuffix(name, "ca.crt") || strings.HasSuffix(name, "ca.key") || strings.HasPrefix(name, "service-account") {
			t.Errorf("renewal changed %s", name)
		}
	}
	if left := p.cert(t, "admin.crt").NotAfter.Sub(p.now()); left < leafLife*9/10 {
		t.Errorf("the administrator's certificate ends in %s", left)
	}
}

func TestDamagedPKI(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(t *testing.T, p pki)
		want   string // of the error; empty: it heals
	}{
		"authority's key is gone":    {func(t *testing.T, p pki) { remove(t, p.file("ca.key")) }, "ca.key is gone"},
		"authority's key is another": {func(t *testing.T, p pki) { overwrite(t, p.file("ca.key"), p.read(t, "etcd-ca.key")) }, "do not belong together"},
		"authority is garbage":       {func(t *testing.T, p pki) { overwrite(t, p.file("etcd-ca.crt"), []byte("x")) }, "etcd-ca"},
		"token key is garbage":       {func(t *testing.T, p pki) { overwrite(t, p.file("service-account.key"), []byte("x")) }, "service accounts"},
		"leaf is garbage":            {func(t *testing.T, p pki) { overwrite(t, p.file("apiserver.crt"), []byte("x")) }, ""},
		"leaf's key is gone":         {func(t *testing.T, p pki) { remove(t, p.file("apiserver.key")) }, ""},
		"interrupted before the certificate": {func(t *testing.T, p pki) {
			remove(t, p.file("ca.crt"))
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPKI(t)
			admin := p.cert(t, "admin.crt")
			tt.damage(t, p)
			err := p.ensure()
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := admin.CheckSignatureFrom(p.cert(t, "ca.crt")); err != nil {
				t.Errorf("kubeconfigs that are out there are invalid: %v", err)
			}
		})
	}
}

func remove(t *testing.T, f string) {
	t.Helper()
	if err := os.Remove(f); err != nil {
		t.Fatal(err)
	}
}

func overwrite(t *testing.T, f string, b []byte) {
	t.Helper()
	if err := os.WriteFile(f, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPorts(t *testing.T) {
	f := folder{dir: t.TempDir(), uid: -1}
	first, err := f.ports(0)
	if err != nil {
		t.Fatal(err)
	}
	if first.API == first.Client || first.API == first.Peer || first.Client == first.Peer || first.API == 0 {
		t.Fatalf("chose %+v", first)
	}
	again, err := f.ports(0)
	if err != nil || again != first {
		t.Errorf("not remembered: %+v, %v", again, err)
	}
	// Somebody took etcd's, then the API server's.
	busy := func(port int) net.Listener {
		l, err := net.Listen("tcp", loopback(port))
		if err != nil {
			t.Skip(err) // another process was faster
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	busy(first.Client)
	moved, err := f.ports(0)
	if err != nil || moved.API != first.API || moved.Client == first.Client {
		t.Errorf("etcd's port is taken: %+v, %v", moved, err)
	}
	busy(first.API)
	if _, err := f.ports(0); err == nil || !strings.Contains(err.Error(), "--port") {
		t.Errorf("the API server's port is taken: %v", err)
	}
	overwrite(t, f.path("ports.json"), []byte(`{"api":1,"more":2}`))
	if _, err := f.ports(0); err == nil || !strings.Contains(err.Error(), "ports.json") {
		t.Errorf("unknown field: %v", err)
	}
}
