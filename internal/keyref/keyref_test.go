// The tests run the real assay-observer and assayd: against SoftHSM (Debian's package
// softhsm2), and with ASSAY_SLOW=1 against OpenBao's transit engine and a real
// kube-apiserver.
package keyref_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/keyref"
	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/testrig/peer"
)

func newKey(t *testing.T) (private, public []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: pub})
}

func write(t *testing.T, name string, data []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPlain(t *testing.T) {
	private, public := newKey(t)
	t.Setenv("A_KEY", string(public))
	t.Setenv("ASSAY_PKCS11_MODULE", "")
	t.Setenv("COSIGN_PKCS11_MODULE_PATH", "")
	for _, tc := range []struct {
		name, ref, says string
	}{
		{"text", string(public), ""},
		{"file", write(t, "k.pub", public), ""},
		{"environment", "env://A_KEY", ""},
		{"empty", "", "it is empty"},
		{"private text", string(private), "PRIVATE KEY"},
		{"private file", write(t, "k", private), "PRIVATE KEY"},
		{"no file", "/none/k.pub", "want a PEM file, or one of k8s://"},
		{"large file", write(t, "k", make([]byte, 1<<20)), "larger than"},
		{"no variable", "env://NOT_SET", "is not set"},
		{"another scheme", "gitlab://group/project", "scheme gitlab:// is not known; want a file or one of k8s://, env://, awskms://"},
		{"another case", "K8S://a/b", "scheme K8S:// is not known"},
		{"k8s without namespace", "k8s://secret", "want k8s://NAMESPACE/SECRET"},
		{"k8s with more", "k8s://a/b/c", "want k8s://NAMESPACE/SECRET"},
		{"token that names its own library", "pkcs11:token=a;object=b?module-path=/tmp/evil.so", "no PKCS #11 library may be loaded"},
		{"service without program", "awskms:///alias/k", "make build"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := keyref.Public(t.Context(), tc.ref, keyref.Options{})
			if tc.says == "" {
				if err != nil || !bytes.Equal(got, public) {
					t.Errorf("%s %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v; want %q", err, tc.says)
			}
			if got != nil {
				t.Errorf("a key beside an error: %s", got)
			}
			if strings.Count(fmt.Sprint(err), "\n") > 0 {
				t.Errorf("several lines: %v", err)
			}
		})
	}
}

func observer(t *testing.T) string {
	return filepath.Join(testrig.Binaries(t), "assay-observer")
}

func TestToken(t *testing.T) {
	library := ""
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
	if err := os.Mkdir(filepath.Join(dir, "tokens"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SOFTHSM2_CONF", write(t, "conf", []byte("directories.tokendir = "+filepath.Join(dir, "tokens")+"\nlog.level = ERROR\n")))
	private, public := newKey(t)
	other, _ := newKey(t)
	for _, args := range [][]string{
		{"--init-token", "--free", "--label", "release", "--pin", "1234", "--so-pin", "0000"},
		{"--import", write(t, "k", private), "--token", "release", "--label", "chains", "--id", "01", "--pin", "1234"},
		{"--import", write(t, "k", other), "--token", "release", "--label", "twice", "--id", "02", "--pin", "1234"},
		{"--import", write(t, "k", other), "--token", "release", "--label", "twice", "--id", "03", "--pin", "1234"},
	} {
		if out, err := exec.Command(util, args...).CombinedOutput(); err != nil {
			t.Fatalf("softhsm2-util %v: %v\n%s", args, err, out)
		}
	}
	o := keyref.Options{Observer: observer(t), Modules: []string{library}}
	own := keyref.Options{Observer: o.Observer, OwnWords: true}
	for _, tc := range []struct {
		name, uri string
		o         keyref.Options
		says      string
	}{
		{"no PIN is needed", "pkcs11:token=release;object=chains", o, ""},
		{"by id", "pkcs11:token=release;id=%01", o, ""},
		{"the public half", "pkcs11:token=release;object=chains;type=public", o, ""},
		{"library in the user's own words", "pkcs11:token=release;object=chains?module-path=" + library, own, ""},
		{"another library than allowed", "pkcs11:token=release;object=chains?module-path=/tmp/evil.so", o, "another PKCS #11 library"},
		{"no such key", "pkcs11:token=release;object=none", o, "shows no public key"},
		{"no such token", "pkcs11:token=none;object=chains", o, "no token"},
		{"two keys", "pkcs11:token=release;object=twice", o, "2 public keys fit"},
		{"a PIN in the URI", "pkcs11:token=release;object=chains?pin-value=1234", o, "holds the PIN"},
		{"unknown attribute", "pkcs11:token=release;object=chains;slot-id=1", o, `"slot-id" is not supported`},
	} {
		t.Run(tc.name, func(t *testing.T) { check(t, tc.uri, tc.o, public, tc.says) })
	}
}

func check(t *testing.T, ref string, o keyref.Options, want []byte, says string) {
	t.Helper()
	got, err := keyref.Public(t.Context(), ref, o)
	switch {
	case says == "" && (err != nil || !bytes.Equal(got, want)):
		t.Errorf("%s %v", got, err)
	case says != "" && (err == nil || !strings.Contains(err.Error(), says)):
		t.Errorf("%v; want %q", err, says)
	}
}

func TestVault(t *testing.T) {
	b, home := peer.OpenBao(t), t.TempDir()
	b.Do("PUT", "sys/mounts/transit", `{"type":"transit"}`)
	b.Do("PUT", "transit/keys/release", `{"type":"ecdsa-p256"}`)
	raw := b.Do("GET", "transit/keys/release", "")
	var answer struct {
		Data struct {
			Keys map[string]struct {
				Public string `json:"public_key"`
			}
		}
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		t.Fatal(err)
	}
	public := []byte(answer.Data.Keys["1"].Public)
	o := keyref.Options{Observer: observer(t)}
	t.Setenv("HOME", home)
	t.Setenv("VAULT_ADDR", "")
	t.Setenv("VAULT_TOKEN", "")
	check(t, "hashivault://release", o, nil, "set VAULT_ADDR")
	t.Setenv("VAULT_ADDR", b.Address)
	check(t, "hashivault://release", o, nil, "set VAULT_TOKEN")
	if err := os.WriteFile(filepath.Join(home, ".vault-token"), []byte("root\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	check(t, "hashivault://release", o, public, "")
	t.Setenv("VAULT_TOKEN", "root")
	check(t, "hashivault://release", o, public, "")
	check(t, "hashivault://none", o, nil, "hashivault://none")
	t.Setenv("VAULT_TOKEN", "wrong")
	check(t, "hashivault://release", o, nil, "permission denied")
}

func TestSecret(t *testing.T) {
	c := kubetest.Start(t)
	_, public := newKey(t)
	ns := c.Namespace(t)
	c.Kubectl(t, "-n", ns, "create", "secret", "generic", "signing", "--from-literal=cosign.pub="+string(public))
	c.Kubectl(t, "-n", ns, "create", "secret", "generic", "empty", "--from-literal=x509.pem=x")
	o := keyref.Options{Kubeconfig: c.Kubeconfig, Assayd: filepath.Join(testrig.Binaries(t), "assayd")}
	check(t, "k8s://"+ns+"/signing", o, public, "")
	check(t, "k8s://"+ns+"/none", o, nil, "not found")
	check(t, "k8s://"+ns+"/empty", o, nil, "the Secret has no cosign.pub")
}
