package fetch

import (
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/attest"
	"assay.dev/assay/policy/spec"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
)

// TestSigned: an artifact is taken if one of the signers has signed it.
func TestSigned(t *testing.T) {
	reg := newRegistry(t)
	key, other := storetest.NewKey(t), storetest.NewKey(t)
	text := func(k *attest.Key) string {
		der, err := x509.MarshalPKIXPublicKey(k.Public())
		must(t, err)
		return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	pushArtifact(t, reg+"/org/signed:v1", layer{title: "a.rego", bytes: []byte("package a")})
	pushArtifact(t, reg+"/org/signed:bare", layer{title: "a.rego", bytes: []byte("package b")})
	repo, err := ggcr.NewRepository(reg + "/org/signed")
	must(t, err)
	store := oci.New(repo, http.DefaultTransport, oci.Options{})
	subject, _, err := store.Resolve(t.Context(), "v1")
	must(t, err)
	_, err = store.Put(t.Context(), subject, storetest.Signature(t, key, subject))
	must(t, err)
	cache := t.TempDir()
	get := func(tag string, keys ...*attest.Key) error {
		var signers []spec.Signer
		for _, k := range keys {
			signers = append(signers, spec.Signer{PublicKey: text(k)})
		}
		signed, err := SignedBy(t.Context(), signers, SignedOptions{})
		must(t, err)
		_, err = fetcher(t, http.DefaultTransport, Options{Cache: cache, Signed: signed}).Fetch(t.Context(), "oci::"+reg+"/org/signed:"+tag)
		return err
	}
	// In this order: what is in the cache is asked about like the rest.
	refused(t, get("v1", other), "checking who signed", subject.Digest)
	must(t, get("v1", key))
	must(t, get("v1", other, key))
	refused(t, get("v1", other), "checking who signed", subject.Digest)
	refused(t, get("bare", key), "checking who signed")
}

// TestNoNetwork reads a vendored policy where there is no network at all: in an empty
// network namespace. The test's own binary is the reader.
func TestNoNetwork(t *testing.T) {
	if dir := os.Getenv("ASSAY_TEST_VENDORED"); dir != "" {
		if _, err := http.Get("http://127.0.0.1:9"); err == nil {
			t.Fatal("there is a network")
		}
		f, l, err := OpenVendored(dir)
		must(t, err)
		for a := range l.Sources {
			if _, err := f.Fetch(t.Context(), a); err != nil {
				t.Error(err)
			}
		}
		return
	}
	dir, net := vendorRig(t)
	out := filepath.Join(t.TempDir(), "v")
	_, err := Vendor(t.Context(), fetcher(t, net, Options{}), filepath.Join(dir, "top"), out, VendorOptions{})
	must(t, err)
	if err := exec.CommandContext(t.Context(), "unshare", "--net", "true").Run(); err != nil {
		t.Skipf("needs the right to make a network namespace: %v; `make test-all` as root has it", err)
	}
	c := exec.CommandContext(t.Context(), "unshare", "--net", os.Args[0], "-test.run=^TestNoNetwork$")
	c.Env = append(os.Environ(), "ASSAY_TEST_VENDORED="+out)
	if text, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}

func TestSignedByRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		signers []spec.Signer
		want    string
	}{
		"nobody":                {nil, "nobody is named"},
		"nothing":               {[]spec.Signer{{}}, "a public key or an identity"},
		"both":                  {[]spec.Signer{{PublicKey: "x", Identity: &spec.Identity{}}}, "and not both"},
		"no key":                {[]spec.Signer{{PublicKey: "k8s://x/y"}}, "signer 1"},
		"no instance":           {[]spec.Signer{{Identity: &spec.Identity{Subject: "a", Issuer: "b"}}}, "no Sigstore instance"},
		"the second is no good": {[]spec.Signer{{Identity: &spec.Identity{Subject: "a", Issuer: "b"}}, {}}, "signer"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := SignedBy(t.Context(), tt.signers, SignedOptions{Transport: http.DefaultTransport})
			refused(t, err, tt.want)
		})
	}
}
