package attest_test

import (
	"context"
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
	"path/filepath"
	"strings"
	"testing"

	"github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
)

const imageDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func statement(t testing.TB) []byte {
	return []byte(`{"_type":"` + api.StatementV01 + `","predicateType":"https://example.com/p","subject":[{"name":"a","digest":{"sha256":"` +
		strings.TrimPrefix(imageDigest, "sha256:") + `"}}],"predicate":{"a":"<&>"}}`)
}

func TestSign(t *testing.T) {
	for _, kind := range attest.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			k, err := attest.GenerateKey(kind)
			if err != nil {
				t.Fatal(err)
			}
			public, err := dsse.ParsePublicKey(k.PublicPEM())
			if err != nil {
				t.Fatal(err)
			}
			env, err := attest.Statement(t.Context(), k, statement(t))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := env.Verify(1, public); err != nil {
				t.Error(err)
			}
			if env.Signatures[0].KeyID != public.KeyID() || !strings.HasPrefix(k.KeyID(), "SHA256:") {
				t.Errorf("key id %q; want %q", env.Signatures[0].KeyID, public.KeyID())
			}
			img, err := attest.Image(t.Context(), k, "localhost:5055/staging/x", imageDigest)
			if err != nil {
				t.Fatal(err)
			}
			const want = `{"critical":{"identity":{"docker-reference":"localhost:5055/staging/x"},"image":{"docker-manifest-digest":"` + imageDigest + `"},"type":"cosign container image signature"},"optional":null}`
			if string(img.Payload) != want {
				t.Errorf("payload %s\nwant    %s", img.Payload, want)
			}
			if err := public.Verify(img.Payload, img.Sig); err != nil {
				t.Error(err)
			}
			s, err := intoto.Parse(img.Envelope.Payload)
			if err != nil || !s.About(imageDigest) || s.PredicateType != intoto.PredicateImageSignature {
				t.Errorf("image statement: %+v, %v", s, err)
			}
			b, err := bundle.New(env, public)
			if err != nil {
				t.Fatal(err)
			}
			readable(t, b)
		})
	}
	if _, err := attest.GenerateKey("rsa"); err == nil {
		t.Error("unknown kind: no error")
	}
}

// readable checks that Sigstore's own types read the bundle.
func readable(t *testing.T, b *bundle.Bundle) {
	t.Helper()
	data, err := b.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	var theirs v1.Bundle
	if err := protojson.Unmarshal(data, &theirs); err != nil {
		t.Fatal(err)
	}
	if theirs.MediaType != bundle.MediaType || theirs.GetVerificationMaterial().GetPublicKey().GetHint() != b.Hint {
		t.Errorf("Sigstore reads %s", theirs.String())
	}
	if env := theirs.GetDsseEnvelope(); string(env.GetPayload()) != string(b.Envelope.Payload) || string(env.GetSignatures()[0].GetSig()) != string(b.Envelope.Signatures[0].Sig) {
		t.Error("Sigstore reads another envelope")
	}
	// And what they write, we read.
	data, err = protojson.Marshal(&theirs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bundle.Parse(data); err != nil {
		t.Error(err)
	}
}

func TestSignRefuses(t *testing.T) {
	k, _ := attest.GenerateKey(attest.Ed25519)
	ctx := t.Context()
	for name, f := range map[string]func() error{
		"no statement": func() error { _, err := attest.Statement(ctx, k, []byte("{}")); return err },
		"duplicate members": func() error {
			_, err := attest.Statement(ctx, k, append([]byte(`{"_type":"x",`), statement(t)[1:]...))
			return err
		},
		"no signer":       func() error { _, err := attest.Statement(ctx, nil, statement(t)); return err },
		"no payload type": func() error { _, err := attest.Envelope(ctx, k, "", nil); return err },
		"no digest":       func() error { _, err := attest.Image(ctx, k, "r", "latest"); return err },
		"no reference":    func() error { _, err := attest.Image(ctx, k, "", imageDigest); return err },
		"bad payload":     func() error { _, err := attest.ImagePayload(ctx, k, []byte("{}")); return err },
		"broken signer":   func() error { _, err := attest.Statement(ctx, broken{k}, statement(t)); return err },
	} {
		if f() == nil {
			t.Errorf("%s: no error", name)
		}
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := attest.Statement(done, k, statement(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// broken is a driver that signs something else.
type broken struct{ *attest.Key }

func (b broken) Sign(ctx context.Context, message []byte) ([]byte, error) {
	return b.Key.Sign(ctx, append(message, 'x'))
}

func TestKeyFiles(t *testing.T) {
	for _, kind := range attest.Kinds() {
		for name, password := range map[string][]byte{"clear": nil, "password": []byte("s3cret"), "empty password": {}} {
			if password != nil && kind != attest.ECDSAP256 {
				continue // the box does not look inside, and scrypt is slow on purpose
			}
			dir := t.TempDir()
			path, public := filepath.Join(dir, "a.key"), filepath.Join(dir, "a.pub")
			k, err := attest.GenerateKey(kind)
			if err != nil {
				t.Fatal(err)
			}
			if err := k.WriteFiles(path, public, password); err != nil {
				t.Fatal(err)
			}
			if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
				t.Errorf("key file has mode %v", info.Mode())
			}
			var ask attest.Password
			if password != nil {
				ask = attest.StaticPassword(password)
			}
			back, err := attest.LoadSigner(path, ask)
			if err != nil {
				t.Fatalf("%s, %s: %v", kind, name, err)
			}
			if back.KeyID() != k.KeyID() {
				t.Errorf("%s, %s: another key came back", kind, name)
			}
			if err := k.WriteFiles(path, public, password); !errors.Is(err, os.ErrExist) {
				t.Errorf("overwriting: %v", err)
			}
			// The public file is taken: no private key without its half.
			other := filepath.Join(dir, "b.key")
			if err := k.WriteFiles(other, public, password); !errors.Is(err, os.ErrExist) {
				t.Errorf("overwriting public: %v", err)
			}
			if _, err := os.Stat(other); !errors.Is(err, os.ErrNotExist) {
				t.Error("a lone private key was left behind")
			}
		}
	}
}

func TestParseKeyErrors(t *testing.T) {
	k, _ := attest.GenerateKey(attest.ECDSAP256)
	sealed, err := k.PrivatePEM([]byte("right"))
	if err != nil {
		t.Fatal(err)
	}
	clear, _ := k.PrivatePEM(nil)
	box, _ := pem.Decode(sealed)
	ec, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	as := func(typ string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: b}) }
	pkcs8 := func(key crypto.PrivateKey) []byte {
		b, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return as("PRIVATE KEY", b)
	}
	wrong := attest.StaticPassword([]byte("wrong"))
	for name, tc := range map[string]struct {
		pem      []byte
		password attest.Password
		is       error
		says     string
	}{
		"wrong password":      {sealed, wrong, attest.ErrPassword, "wrong password"},
		"no password":         {sealed, nil, attest.ErrNoPassword, "encrypted"},
		"nil password":        {sealed, attest.StaticPassword(nil), attest.ErrNoPassword, "encrypted"},
		"box is no box":       {as("ENCRYPTED COSIGN PRIVATE KEY", []byte("x")), wrong, nil, "decrypting"},
		"box of other params": {as(box.Type, []byte(strings.Replace(string(box.Bytes), `"N":65536`, `"N":65537`, 1))), wrong, nil, "param"},
		"public key":          {k.PublicPEM(), nil, attest.ErrKeyKind, "public half"},
		"EC PRIVATE KEY":      {as("EC PRIVATE KEY", []byte{1}), nil, attest.ErrKeyKind, "openssl pkcs8"},
		"PKCS #8 encrypted":   {as("ENCRYPTED PRIVATE KEY", []byte{1}), nil, attest.ErrKeyKind, "cosign"},
		"certificate":         {as("CERTIFICATE", []byte{1}), nil, attest.ErrKeyKind, "CERTIFICATE"},
		"no PEM":              {[]byte("hello"), nil, attest.ErrKeyKind, "no PEM"},
		"two blocks":          {append(clear, clear...), nil, attest.ErrKeyKind, "one key a file"},
		"RSA":                 {pkcs8(rsaKey), nil, attest.ErrKeyKind, "RSA"},
		"P-521":               {pkcs8(ec), nil, nil, "P-521"},
		"garbage":             {as("PRIVATE KEY", []byte{1, 2, 3}), nil, nil, "reading private key"},
	} {
		_, err := attest.ParseKey(tc.pem, tc.password)
		if err == nil || tc.is != nil && !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v; want %v saying %q", name, err, tc.is, tc.says)
		}
		if err != nil && strings.Contains(name, "params") && errors.Is(err, attest.ErrPassword) {
			t.Errorf("%s: blamed on the password", name)
		}
	}
	if _, err := attest.ParseKey(as("ENCRYPTED COSIGN PRIVATE KEY", box.Bytes), attest.StaticPassword([]byte("right"))); err != nil {
		t.Errorf("cosign's older name of the format: %v", err)
	}
}

func TestLoadSignerPermissions(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "k.key")
	k, _ := attest.GenerateKey(attest.Ed25519)
	if err := k.WriteFiles(path, filepath.Join(dir, "k.pub"), nil); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := attest.LoadSigner(path, nil); !errors.Is(err, attest.ErrPermissions) || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("mode %o: %v; want ErrPermissions with the remedy", mode, err)
		}
	}
	if err := os.Chmod(path, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := attest.LoadSigner(path, nil); err != nil {
		t.Errorf("mode 400: %v", err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 12345, 12345); err != nil {
			t.Fatal(err)
		}
		if _, err := attest.LoadSigner(path, nil); !errors.Is(err, attest.ErrPermissions) {
			t.Errorf("somebody else's file: %v", err)
		}
	}
	if _, err := attest.LoadSigner(dir, nil); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("folder: %v", err)
	}
	if _, err := attest.LoadSigner(filepath.Join(dir, "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

func FuzzParseKey(f *testing.F) {
	k, _ := attest.GenerateKey(attest.Ed25519)
	clear, _ := k.PrivatePEM(nil)
	f.Add(clear)
	f.Add(k.PublicPEM())
	f.Fuzz(func(t *testing.T, data []byte) {
		// Without a password, so that no input buys a key derivation.
		k, err := attest.ParseKey(data, nil)
		if err == nil {
			if _, ok := k.Public().(ed25519.PublicKey); !ok {
				if _, ok := k.Public().(*ecdsa.PublicKey); !ok {
					t.Fatalf("key of type %T", k.Public())
				}
			}
		}
	})
}
