package kube

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Lifetimes. Leaves are renewed by Start when less than a third is left.
const (
	authorityLife = 20 * 365 * 24 * time.Hour
	leafLife      = 2 * 365 * 24 * time.Hour
	// backdate forgives a clock that is set back a little.
	backdate = time.Hour
)

// pki is the folder of certificates. There are two authorities: one for the API
// server and its clients, one for etcd, so that nobody who gets a client
// certificate of the former can talk to etcd past all authorization.
type pki struct {
	dir string
	// uid owns the keys that the children read; the authorities' stay ours.
	uid int
	now func() time.Time
}

func (p pki) file(name string) string { return filepath.Join(p.dir, name) }

// authority is a certificate authority with its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
}

// leaf says what one certificate is for.
type leaf struct {
	name   string // of the files
	cn     string
	groups []string
	server bool
	client bool
	// ours: only we read the key, not the children.
	ours bool
}

// Names by which the API server is called: from this machine, and from Pods.
var apiNames = []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}

// ensure makes what is missing or about to expire. What is there and unreadable
// is an error, never replaced: everybody's credentials depend on it.
func (p pki) ensure() error {
	ca, err := p.authority("ca", "assay kubernetes")
	if err != nil {
		return err
	}
	etcd, err := p.authority("etcd-ca", "assay etcd")
	if err != nil {
		return err
	}
	for _, l := range []struct {
		by *authority
		leaf
	}{
		{ca, leaf{name: "apiserver", cn: "kube-apiserver", server: true}},
		{ca, leaf{name: "admin", cn: "assay-admin", groups: []string{"system:masters"}, client: true, ours: true}},
		{etcd, leaf{name: "etcd-server", cn: "etcd", server: true}},
		// A peer is both ends.
		{etcd, leaf{name: "etcd-peer", cn: "etcd", server: true, client: true}},
		{etcd, leaf{name: "etcd-client", cn: "kube-apiserver", client: true}},
	} {
		if err := p.leaf(l.by, l.leaf); err != nil {
			return err
		}
	}
	return p.serviceAccountKey()
}

func (p pki) authority(name, cn string) (*authority, error) {
	keyPEM, kerr := os.ReadFile(p.file(name + ".key"))
	crt, cerr := os.ReadFile(p.file(name + ".crt"))
	var signer crypto.Signer
	var err error
	switch {
	case kerr == nil && cerr == nil:
		return parseAuthority(name, keyPEM, crt)
	case kerr == nil && errors.Is(cerr, fs.ErrNotExist):
		// A start was interrupted here; with the same key and name nothing that
		// was signed by it becomes invalid.
		if signer, err = parseKey(keyPEM); err != nil {
			return nil, fmt.Errorf("reading the authority %s: %w", name, err)
		}
	case errors.Is(kerr, fs.ErrNotExist) && errors.Is(cerr, fs.ErrNotExist):
		if signer, keyPEM, err = newKey(); err != nil {
			return nil, err
		}
		if err := writeFile(p.file(name+".key"), keyPEM, 0o600, -1); err != nil {
			return nil, err
		}
	case errors.Is(kerr, fs.ErrNotExist):
		return nil, fmt.Errorf("reading the authority %s: %s is gone: restore it, or remove %s too and hand out new kubeconfigs", name, p.file(name+".key"), p.file(name+".crt"))
	default:
		return nil, fmt.Errorf("reading the authority %s: %w", name, errors.Join(kerr, cerr))
	}
	serial, err := serialNumber()
	if err != nil {
		return nil, err
	}
	now := p.now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: cn},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, signer.Public(), signer)
	if err != nil {
		return nil, fmt.Errorf("making the authority %s: %w", name, err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := writeFile(p.file(name+".crt"), certPEM, 0o644, -1); err != nil {
		return nil, err
	}
	return parseAuthority(name, keyPEM, certPEM)
}

func parseAuthority(name string, key, crt []byte) (*authority, error) {
	cert, err := parseCertificate(crt)
	if err != nil {
		return nil, fmt.Errorf("reading the authority %s: %w", name, err)
	}
	signer, err := parseKey(key)
	if err != nil {
		return nil, fmt.Errorf("reading the authority %s: %w", name, err)
	}
	if pub, ok := signer.Public().(*ecdsa.PublicKey); !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("reading the authority %s: key and certificate do not belong together", name)
	}
	return &authority{cert: cert, key: signer, pem: crt}, nil
}

// leaf makes a certificate unless a good one is there.
func (p pki) leaf(by *authority, l leaf) error {
	crt, key := p.file(l.name+".crt"), p.file(l.name+".key")
	if p.good(by, l) {
		return p.own(key, l)
	}
	signer, keyPEM, err := newKey()
	if err != nil {
		return err
	}
	serial, err := serialNumber()
	if err != nil {
		return err
	}
	now := p.now()
	t := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: l.cn, Organization: l.groups},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLife), KeyUsage: x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
	}
	if l.server {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		t.DNSNames = []string{"localhost"}
		if l.name == "apiserver" {
			t.DNSNames = apiNames
		}
		t.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback, serviceIP}
	}
	if l.client {
		t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	der, err := x509.CreateCertificate(rand.Reader, t, by.cert, signer.Public(), by.key)
	if err != nil {
		return fmt.Errorf("making the certificate %s: %w", l.name, err)
	}
	if err := writeFile(key, keyPEM, 0o600, -1); err != nil {
		return err
	}
	if err := p.own(key, l); err != nil {
		return err
	}
	return writeFile(crt, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644, -1)
}

// own gives a key to the children's user.
func (p pki) own(key string, l leaf) error {
	if l.ours || p.uid < 0 {
		return nil
	}
	if err := os.Chown(key, p.uid, p.uid); err != nil {
		return fmt.Errorf("giving %s to the control plane's user: %w", l.name, err)
	}
	return nil
}

// good says whether a leaf on disk is by this authority, pairs with its key and
// lives long enough. Anything else is made anew: a leaf is nobody's secret to keep.
func (p pki) good(by *authority, l leaf) bool {
	crtPEM, err := os.ReadFile(p.file(l.name + ".crt"))
	if err != nil {
		return false
	}
	keyPEM, err := os.ReadFile(p.file(l.name + ".key"))
	if err != nil {
		return false
	}
	cert, err := parseCertificate(crtPEM)
	if err != nil {
		return false
	}
	signer, err := parseKey(keyPEM)
	if err != nil {
		return false
	}
	pub, ok := signer.Public().(*ecdsa.PublicKey)
	if !ok || !pub.Equal(cert.PublicKey) || cert.CheckSignatureFrom(by.cert) != nil {
		return false
	}
	return cert.NotAfter.Sub(p.now()) > leafLife/3
}

// serviceAccountKey makes the key that signs ServiceAccounts' tokens.
func (p pki) serviceAccountKey() error {
	b, err := os.ReadFile(p.file("service-account.key"))
	if errors.Is(err, fs.ErrNotExist) {
		if _, b, err = newKey(); err != nil {
			return err
		}
		if err := writeFile(p.file("service-account.key"), b, 0o600, p.uid); err != nil {
			return err
		}
	}
	if err != nil {
		return fmt.Errorf("reading the key of service accounts: %w", err)
	}
	signer, err := parseKey(b)
	if err != nil {
		return fmt.Errorf("reading the key of service accounts: %w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return fmt.Errorf("encoding the key of service accounts: %w", err)
	}
	if p.uid >= 0 {
		if err := os.Chown(p.file("service-account.key"), p.uid, p.uid); err != nil {
			return fmt.Errorf("giving a key to the control plane's user: %w", err)
		}
	}
	return writeFile(p.file("service-account.pub"), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o644, -1)
}

func newKey() (crypto.Signer, []byte, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a key: %w", err)
	}
	return k, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func serialNumber() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

func parseCertificate(b []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("want one PEM block CERTIFICATE")
	}
	return x509.ParseCertificate(block.Bytes)
}

func parseKey(b []byte) (crypto.Signer, error) {
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("want one PEM block PRIVATE KEY")
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("want an ECDSA key, not %T", k)
	}
	return signer, nil
}

// writeFile replaces a file at once and durably; uid -1 leaves it ours.
func writeFile(path string, b []byte, mode os.FileMode, uid int) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("writing %s: %w", path, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b)
	if uid >= 0 {
		err = errors.Join(err, f.Chown(uid, uid))
	}
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
