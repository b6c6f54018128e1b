package fulcio

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tuf"
	"github.com/sigstore/sigstore-go/pkg/verify"

	"assay.dev/assay/store"
)

// publicFulcio is the authority that Sigstore's own TUF repository vouches for.
const publicFulcio = "https://fulcio.sigstore.dev"

// Trust says how a certificate is checked before anything is signed with it, so
// that a wrong authority shows here and not at every verifier.
//
//	Roots                         that file alone
//	TUF mirror of one's own       trusted_root.json from it, beginning at TUFRoot; without
//	                              one, at the root.json seen first, which State keeps
//	Sigstore's mirror, its Fulcio trusted_root.json from it; the beginning is built in
//	Sigstore's mirror, another    only that the chain holds together: Sigstore does not
//	                              know the authority
//
// Where the roots name certificate logs, the certificate must carry a timestamp of
// one. Chains fetches root.json of a mirror of one's own unauthenticated, each
// time; here that happens once at most, is logged, and later ones must be signed by
// the one before.
type Trust struct {
	Roots   string // file: trusted_root.json, or certificates as PEM
	TUFRoot string // file: root.json
	State   string // folder, made where it is missing
}

// Check returns an error unless the files that are named can be read.
func (t Trust) Check() error {
	if t.Roots != "" {
		if _, err := t.roots(); err != nil {
			return err
		}
	}
	if t.TUFRoot != "" {
		if _, err := os.ReadFile(t.TUFRoot); err != nil {
			return fmt.Errorf("reading the TUF root: %w", err)
		}
	}
	return nil
}

// anchors are what a chain must lead to: one of the two is set.
type anchors struct {
	material *root.TrustedRoot
	pool     *x509.CertPool
}

func (t Trust) roots() (anchors, error) {
	data, err := os.ReadFile(t.Roots)
	if err != nil {
		return anchors{}, fmt.Errorf("reading roots: %w", err)
	}
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		m, err := root.NewTrustedRootFromJSON(data)
		if err != nil {
			return anchors{}, fmt.Errorf("reading roots %s: %w", t.Roots, err)
		}
		return anchors{material: m}, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return anchors{}, fmt.Errorf("reading roots %s: neither a trusted_root.json nor certificates as PEM", t.Roots)
	}
	return anchors{pool: pool}, nil
}

// check returns an error unless a chain leads to a root that is trusted.
func (d *Driver) check(ctx context.Context, certs []*x509.Certificate) error {
	for i, c := range certs[:len(certs)-1] {
		if err := c.CheckSignatureFrom(certs[i+1]); err != nil {
			return store.As(store.Configuration, fmt.Errorf("the authority's chain does not hold together at certificate %d: %w", i, err))
		}
	}
	a, err := d.anchors(ctx)
	if err != nil {
		return err
	}
	leaf := certs[0]
	switch {
	case a.material != nil:
		chains, err := verify.VerifyLeafCertificate(leaf.NotBefore, leaf, a.material)
		if err == nil && len(a.material.CTLogs()) > 0 {
			err = verify.VerifySignedCertificateTimestamp(chains, 1, a.material)
		}
		return untrusted(err)
	case a.pool != nil:
		between := x509.NewCertPool()
		for _, c := range certs[1:] {
			between.AddCert(c)
		}
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: a.pool, Intermediates: between, CurrentTime: leaf.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		})
		return untrusted(err)
	}
	return nil
}

func untrusted(err error) error {
	if err == nil {
		return nil
	}
	return store.As(store.Configuration, fmt.Errorf("the certificate is not by an authority that is trusted here: %w", err))
}

func (d *Driver) anchors(ctx context.Context) (anchors, error) {
	t, mirror := d.options.Trust, strings.TrimSuffix(d.set.TUFMirror, "/")
	own := mirror != "" && mirror != tuf.DefaultMirror
	switch {
	case t.Roots != "":
		a, err := t.roots()
		return a, store.As(store.Configuration, err)
	case own:
	case strings.TrimSuffix(d.set.Address, "/") == publicFulcio:
		mirror = tuf.DefaultMirror
	default:
		return anchors{}, nil
	}
	o := tuf.DefaultOptions().WithContext(ctx).WithRepositoryBaseURL(mirror).WithCacheValidity(1)
	o.DisableLocalCache = t.State == ""
	o.CachePath = filepath.Join(t.State, "tuf")
	if own {
		first, err := d.firstRoot(ctx, mirror)
		if err != nil {
			return anchors{}, fmt.Errorf("beginning to trust the TUF mirror %s: %w", mirror, err)
		}
		o.Root = first
	}
	client, err := tuf.New(o)
	if err != nil {
		return anchors{}, fmt.Errorf("asking the TUF mirror %s: %w", mirror, err)
	}
	data, err := client.GetTarget("trusted_root.json")
	if err != nil {
		return anchors{}, store.As(store.Configuration, fmt.Errorf("asking the TUF mirror %s for trusted_root.json (mirrors without one are too old; give --fulcio-root): %w", mirror, err))
	}
	m, err := root.NewTrustedRootFromJSON(data)
	if err != nil {
		return anchors{}, store.As(store.Configuration, fmt.Errorf("reading trusted_root.json of %s: %w", mirror, err))
	}
	return anchors{material: m}, nil
}

// firstRoot is where trust in a mirror begins.
func (d *Driver) firstRoot(ctx context.Context, mirror string) ([]byte, error) {
	t := d.options.Trust
	if t.TUFRoot != "" {
		data, err := os.ReadFile(t.TUFRoot)
		return data, store.As(store.Configuration, err)
	}
	if t.State == "" {
		return nil, store.As(store.Configuration, errors.New("it is one of your own: start the signer with --tuf-root FILE, or with --tuf-state FOLDER to trust the root.json that is seen first"))
	}
	kept := filepath.Join(t.State, url.PathEscape(mirror)+".root.json")
	data, err := os.ReadFile(kept)
	if !errors.Is(err, fs.ErrNotExist) {
		return data, store.As(store.Configuration, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, mirror+"/root.json", nil)
	if err != nil {
		return nil, err
	}
	if data, err = ask(d.options.Client, req); err != nil {
		return nil, err
	}
	if !json.Valid(data) {
		return nil, errors.New("its root.json is no JSON")
	}
	if err := keep(kept, data); err != nil {
		return nil, store.As(store.Configuration, fmt.Errorf("keeping its root.json: %w", err))
	}
	sum := sha256.Sum256(data)
	d.options.Log.Warn("trusting a TUF mirror's root.json because it is the first one seen; compare its SHA-256 with what the mirror's operator says, or pin it with --tuf-root",
		"mirror", mirror, "sha256", hex.EncodeToString(sum[:]), "kept", kept)
	return data, nil
}

// keep writes a file as a whole or not at all.
func keep(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".root-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
