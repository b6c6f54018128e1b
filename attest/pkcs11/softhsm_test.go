//go:build cgo

package pkcs11

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

const pin = "1234"

// softHSM makes a token with keys and returns the library. SoftHSM reads its
// settings once in a process, so there is one.
func softHSM(t *testing.T, keys map[string]crypto.Signer) (library string) {
	t.Helper()
	for _, l := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"} {
		if _, err := os.Stat(l); err == nil {
			library = l
		}
	}
	util, err := exec.LookPath("softhsm2-util")
	if err != nil || library == "" {
		t.Skip("needs SoftHSM: install Debian's package softhsm2")
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf")
	if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("directories.tokendir = "+filepath.Join(dir, "tokens")+"\nlog.level = ERROR\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(util, args...).CombinedOutput(); err != nil {
			t.Fatalf("softhsm2-util %v: %v\n%s", args, err, out)
		}
	}
	run("--init-token", "--free", "--label", "release", "--pin", pin, "--so-pin", "0000")
	run("--init-token", "--free", "--label", "other", "--pin", pin, "--so-pin", "0000")
	id := 0
	for name, k := range keys {
		der, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		id++
		run("--import", file, "--token", "release", "--label", name, "--id", "0"+string(rune('0'+id)), "--pin", pin)
	}
	return library
}

func TestSoftHSM(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string]crypto.Signer{"p256": p256, "p384": p384, "rsa": rsaKey, "ed": ed}
	modules := []string{softHSM(t, keys)}
	file := filepath.Join(t.TempDir(), "pin")
	put := func(s string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func(path string) (string, error) {
		b, err := os.ReadFile(path)
		return strings.TrimSpace(string(b)), store.As(store.Configuration, err)
	}
	m, err := signing.Inspect(dsse.PAE(store.PayloadType, []byte(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://slsa.dev/provenance/v1"}`)))
	if err != nil {
		t.Fatal(err)
	}
	put("9999")
	t.Run("wrong PIN", func(t *testing.T) {
		_, err := Open(signing.PKCS11Settings{URI: "pkcs11:token=release;object=p256", PINFile: file}, modules, read)
		var held *PINError
		if !errors.As(err, &held) || !held.Held() || store.ClassOf(err) != store.Configuration {
			t.Fatalf("%v", err)
		}
		put(pin + "\n")
		if held.Held() {
			t.Error("a new PIN is not seen")
		}
	})
	for name, k := range keys {
		t.Run(name, func(t *testing.T) {
			d, err := Open(signing.PKCS11Settings{URI: "pkcs11:token=release;object=" + name, PINFile: file}, modules, read)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			for range 2 * sessions {
				wg.Go(func() {
					s, err := d.Sign(t.Context(), m)
					if err != nil {
						t.Error(err)
						return
					}
					public, err := dsse.NewPublicKey(k.Public())
					if err != nil || s.Key.Fingerprint() != public.Fingerprint() || s.KeyID != public.KeyID() || signing.Verify(m, s) != nil {
						t.Errorf("%+v, %v", s, err)
					}
				})
			}
			wg.Wait()
			if d.Stale() {
				t.Error("stale")
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if _, err := d.Sign(t.Context(), m); err == nil {
				t.Error("a closed key signs")
			}
		})
	}
	t.Run("sessions are gone", func(t *testing.T) {
		d, err := Open(signing.PKCS11Settings{URI: "pkcs11:token=release;object=p256?module-name=softhsm2&pin-source=" + file}, modules, read)
		if err != nil {
			t.Fatal(err)
		}
		driver := d.(*Driver)
		for range sessions {
			s := <-driver.free
			if err := driver.ctx.CloseSession(s); err != nil {
				t.Fatal(err)
			}
			driver.free <- s
		}
		if _, err := d.Sign(t.Context(), m); err == nil || store.ClassOf(err) != store.Transient || !d.Stale() {
			t.Errorf("%v, stale %v: it is to be opened anew", err, d.Stale())
		}
	})
	for _, tc := range []struct {
		uri, file string
		modules   []string
		says      string
	}{
		{"pkcs11:token=release;object=none", file, modules, "0 private keys fit"},
		{"pkcs11:token=none;object=p256", file, modules, `no token "none"`},
		{"pkcs11:object=p256", file, modules, "2 tokens fit"},
		{"pkcs11:token=release;object=p256", "", modules, "wants a PIN"},
		{"pkcs11:token=release;object=p256", "/nonexistent", modules, "no such file"},
		{"pkcs11:token=release;object=p256", file, nil, "--pkcs11-module"},
		{"pkcs11:token=release;object=p256", file, []string{file}, "cannot be loaded"},
		{"nonsense", file, modules, "pkcs11:"},
	} {
		_, err := Open(signing.PKCS11Settings{URI: tc.uri, PINFile: tc.file}, tc.modules, read)
		if err == nil || store.ClassOf(err) != store.Configuration || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v (%v), want configuration %q", tc.uri, err, store.ClassOf(err), tc.says)
		}
	}
}
