package policy_test

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/policy"
	"assay.dev/assay/policy/source/fetch"
)

type noNetwork struct{}

func (noNetwork) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("the network was used")
}

// TestVendored: a vendored policy is read by its lock, and a change of it refused.
func TestVendored(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("policy.yaml", "sources: [{policy: [./rules], data: [./data]}]\n")
	write("rules/p.rego", "package p\ndeny contains \"x\" if data.nope\n")
	write("data/d.yaml", "a: 1\n")
	vendored := filepath.Join(dir, "vendored")
	first, err := fetch.New(fetch.Options{Transport: noNetwork{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fetch.Vendor(t.Context(), first, dir, vendored, fetch.VendorOptions{}); err != nil {
		t.Fatal(err)
	}
	load := func() (*policy.Policy, error) {
		lock, err := fetch.ReadLock(filepath.Join(vendored, fetch.LockName))
		if err != nil {
			t.Fatal(err)
		}
		f, err := fetch.New(fetch.Options{Lock: lock, Transport: noNetwork{}})
		if err != nil {
			t.Fatal(err)
		}
		return policy.Load(t.Context(), vendored, policy.Options{Sources: f})
	}
	p, err := load()
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Sources()) != 2 {
		t.Errorf("sources %v", p.Sources())
	}
	files, err := filepath.Glob(filepath.Join(vendored, "sources", "*", "p.rego"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	if err := os.WriteFile(files[0], []byte("package p\nwarn contains \"x\" if data.nope\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := load(); err == nil || !strings.Contains(err.Error(), "the lock says") {
		t.Errorf("a changed rule is read: %v", err)
	}
}
