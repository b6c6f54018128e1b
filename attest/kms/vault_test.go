package kms

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/internal/testrig/peer"
	"assay.dev/assay/store"
)

func message(t testing.TB) signing.Message {
	t.Helper()
	m, err := signing.Inspect(dsse.PAE(store.PayloadType, []byte(`{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://slsa.dev/provenance/v1"}`)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// readFile reads any file; which may be read is for the signer to say.
func readFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), store.As(store.Configuration, err)
}

// bao is an OpenBao server with keys and a policy to sign with them.
type bao struct {
	*peer.Bao
	t   *testing.T
	key *ecdsa.PrivateKey // signs the tokens that its JWT method accepts
}

func startBao(t *testing.T) *bao {
	t.Helper()
	b := &bao{Bao: peer.OpenBao(t), t: t}
	b.Do("PUT", "sys/mounts/transit", `{"type":"transit"}`)
	for name, kind := range map[string]string{"ec": "ecdsa-p256", "ed": "ed25519", "rsa": "rsa-2048"} {
		b.Do("PUT", "transit/keys/"+name, `{"type":"`+kind+`"}`)
	}
	b.Do("PUT", "sys/policies/acl/sign", policy(`path "transit/keys/*" { capabilities = ["read"] } path "transit/sign/*" { capabilities = ["update"] }`))
	var err error
	if b.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&b.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	public, err := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})))
	if err != nil {
		t.Fatal(err)
	}
	b.Do("PUT", "sys/auth/cluster", `{"type":"jwt"}`)
	b.Do("PUT", "auth/cluster/config", `{"jwt_validation_pubkeys":[`+string(public)+`]}`)
	b.Do("PUT", "auth/cluster/role/signer", `{"role_type":"jwt","user_claim":"sub","bound_audiences":["vault"],"token_policies":["sign"],"token_ttl":"1h"}`)
	return b
}

func policy(text string) string {
	b, _ := json.Marshal(map[string]string{"policy": text}) // of strings, cannot fail
	return string(b)
}

// token makes a Vault token with the right to sign.
func (b *bao) token() string {
	b.t.Helper()
	var a struct {
		Auth struct {
			Token string `json:"client_token"`
		} `json:"auth"`
	}
	if err := json.Unmarshal(b.Do("POST", "auth/token/create", `{"policies":["sign"]}`), &a); err != nil {
		b.t.Fatal(err)
	}
	return a.Auth.Token
}

// jwt makes a token of a cluster's service account.
func (b *bao) jwt(audience string) string {
	b.t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: b.key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		b.t.Fatal(err)
	}
	token, err := jwt.Signed(s).Claims(jwt.Claims{
		Subject: "spiffe://cluster.test/signer", Audience: jwt.Audience{audience},
		IssuedAt: jwt.NewNumericDate(time.Now()), Expiry: jwt.NewNumericDate(time.Now().Add(time.Hour)),
	}).Serialize()
	if err != nil {
		b.t.Fatal(err)
	}
	return token
}

// signs opens a key and checks a signature by it.
func signs(t *testing.T, set signing.KMSSettings) *Driver {
	t.Helper()
	d, err := Open(t.Context(), set, readFile)
	if err != nil {
		t.Fatal(err)
	}
	m := message(t)
	s, err := d.Sign(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if err := signing.Verify(m, s); err != nil || s.KeyID != s.Key.KeyID() {
		t.Fatalf("signature %+v: %v", s, err)
	}
	return d
}

// refuses checks that a key cannot be opened, and that the reason is classed as
// one that somebody must mend.
func refuses(t *testing.T, set signing.KMSSettings, says string) {
	t.Helper()
	_, err := Open(t.Context(), set, readFile)
	if err == nil || store.ClassOf(err) != store.Configuration || !strings.Contains(err.Error(), says) {
		t.Errorf("%+v: %v (%v), want configuration %q", set, err, store.ClassOf(err), says)
	}
}

func TestVault(t *testing.T) {
	b := startBao(t)
	t.Setenv("VAULT_TOKEN", "")
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	put := func(token string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set := signing.KMSSettings{Ref: "hashivault://ec", Address: b.Address, Token: b.token()}
	for _, key := range []string{"ec", "ed", "rsa"} {
		t.Run(key, func(t *testing.T) {
			set := set
			set.Ref = "hashivault://" + key
			signs(t, set)
		})
	}
	t.Run("token file wins, and its change is seen", func(t *testing.T) {
		put(b.token())
		set := set
		set.Token, set.TokenPath = "wrong", file
		d := signs(t, set)
		if d.Stale() {
			t.Error("stale from the start")
		}
		put(b.token())
		if !d.Stale() {
			t.Error("a new token is not seen")
		}
	})
	t.Run("JWT", func(t *testing.T) {
		put(b.jwt("vault"))
		set := signing.KMSSettings{Ref: "hashivault://ec", Address: b.Address, OIDCPath: "cluster", OIDCRole: "signer", OIDCTokenPath: file}
		d := signs(t, set)
		// The login is revoked, or ran out: the next one is for the signer to open.
		b.Do("PUT", "sys/leases/revoke-prefix/auth/cluster", "{}")
		_, err := d.Sign(t.Context(), message(t))
		if store.ClassOf(err) != store.Configuration {
			t.Errorf("revoked: %v", err)
		}
		signs(t, set)
		put(b.jwt("others"))
		refuses(t, set, "login")
	})
	t.Run("SPIRE", func(t *testing.T) {
		agent := startWorkloadAPI(t, b.jwt)
		set := signing.KMSSettings{Ref: "hashivault://ec", Address: b.Address, OIDCPath: "cluster", OIDCRole: "signer", SpireSock: "unix://" + agent, SpireAudience: "vault"}
		signs(t, set)
		set.SpireSock = agent // a bare path too
		signs(t, set)
		set.SpireAudience = "others"
		refuses(t, set, "login")
		set.SpireAudience = ""
		refuses(t, set, "audience")
	})
	t.Run("rotation in the service", func(t *testing.T) {
		d := signs(t, set)
		b.Do("POST", "transit/keys/ec/rotate", "")
		m := message(t)
		s, err := d.Sign(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		if signing.Verify(m, s) == nil {
			t.Error("the driver learns of rotations: package signer need not open it anew any more")
		}
		signs(t, set) // opened anew it has the new key
	})
	t.Run("refusals", func(t *testing.T) {
		bad := set
		bad.Token = "wrong"
		refuses(t, bad, "permission denied")
		bad = set
		bad.Ref = "hashivault://none"
		refuses(t, bad, "transit key path")
		bad.Ref = "hashivault://a/b"
		refuses(t, bad, "")
		bad = set
		bad.Token = ""
		refuses(t, bad, "no token")
		bad.TokenPath = filepath.Join(dir, "missing")
		refuses(t, bad, "no such file")
		bad.TokenPath, bad.SpireSock = "", "/nowhere"
		refuses(t, bad, "role")
	})
	t.Run("sealed", func(t *testing.T) {
		d := signs(t, set)
		b.Do("PUT", "sys/seal", "")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := d.Sign(ctx, message(t)); err == nil || store.ClassOf(err) != store.Transient {
			t.Errorf("%v (%v), want transient", err, store.ClassOf(err))
		}
	})
}

// TestVaultAway: nobody listens.
func TestVaultAway(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := Open(ctx, signing.KMSSettings{Ref: "hashivault://k", Address: "http://127.0.0.1:1", Token: "t"}, readFile)
	if err == nil || store.ClassOf(err) != store.Transient {
		t.Errorf("%v (%v), want transient", err, store.ClassOf(err))
	}
	for ref, says := range map[string]string{"vault://k": "unknown scheme", "": "unknown scheme", "hashivault://": "format", "awskms:///x": "format", "gcpkms://x": "format", "azurekms://x": ""} {
		refuses(t, signing.KMSSettings{Ref: ref, Address: "http://127.0.0.1:1", Token: "t"}, says)
	}
	t.Setenv("VAULT_ADDR", "")
	refuses(t, signing.KMSSettings{Ref: "hashivault://k", Token: "t"}, "no address")
}
