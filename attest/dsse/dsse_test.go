package dsse_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"assay.dev/assay/attest/dsse"
)

// TestConformance runs the shared DSSE cases.
func TestConformance(t *testing.T) {
	path := conformance(t, "dsse/cases.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Name      string
		Expect    string
		Why       string
		Threshold int
		Keys      map[string]string `json:"keys_pem"`
		KeysRaw   json.RawMessage   `json:"keys_raw"`
		Envelope  json.RawMessage
		PAE       string `json:"pae_sha256"`
		PAEText   string `json:"pae_text"`
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 15 {
		t.Fatalf("%d cases; want 15 or more", len(cases))
	}
	for _, tc := range cases {
		t.Run(tc.Name, func(t *testing.T) {
			e, err := dsse.Parse(tc.Envelope)
			if err == nil {
				sum := sha256.Sum256(e.PAE())
				if tc.PAE != "" && hex.EncodeToString(sum[:]) != tc.PAE {
					t.Errorf("PAE has digest %x; want %s", sum, tc.PAE)
				}
				if tc.PAEText != "" && string(e.PAE()) != tc.PAEText {
					t.Errorf("PAE %q; want %q", e.PAE(), tc.PAEText)
				}
			}
			if tc.Expect == "accept-if-raw-rs-supported" {
				if err != nil {
					t.Errorf("parsing: %v", err)
				}
				return // raw r‖s is not supported: one form of a signature is enough
			}
			var keys []dsse.PublicKey
			for _, name := range slices.Sorted(func(yield func(string) bool) {
				for name := range tc.Keys {
					if !yield(name) {
						return
					}
				}
			}) {
				k, err := dsse.ParsePublicKey([]byte(tc.Keys[name]))
				if err != nil {
					t.Fatal(err)
				}
				keys = append(keys, k)
			}
			var good []dsse.Accepted
			if err == nil {
				good, err = e.Verify(tc.Threshold, keys...)
			}
			switch tc.Expect {
			case "accept", "implementation-defined": // a hint never refuses
				if err != nil || len(good) < tc.Threshold {
					t.Errorf("%s: %d good, %v; want accepted", tc.Why, len(good), err)
				}
			case "reject":
				if err == nil || good != nil {
					t.Errorf("%s: %d good, %v; want rejected", tc.Why, len(good), err)
				}
			default:
				t.Fatalf("unknown expectation %q", tc.Expect)
			}
		})
	}
}

// conformance finds the shared cases, which lie beside the repository.
func conformance(t *testing.T, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
	path := filepath.Join(dir, "..", "shared", "conformance", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("shared conformance cases are not here (../shared/conformance/%s beside the repository)", name)
	}
	return path
}

func TestVerifyCountsKeys(t *testing.T) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := dsse.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	e := &dsse.Envelope{PayloadType: "text/plain", Payload: []byte("x")}
	sig := ed25519.Sign(priv, e.PAE())
	e.Signatures = []dsse.Signature{{KeyID: "one", Sig: sig}, {KeyID: "two", Sig: sig}}

	if good, err := e.Verify(1, k); err != nil || len(good) != 1 || good[0].KeyID != "one" {
		t.Errorf("threshold 1: %v, %v; want the first signature", good, err)
	}
	if _, err := e.Verify(2, k); !errors.Is(err, dsse.ErrNotVerified) {
		t.Errorf("one key under two ids at threshold 2: %v", err)
	}
	if _, err := e.Verify(2, k, k); !errors.Is(err, dsse.ErrNotVerified) {
		t.Errorf("one key trusted twice at threshold 2: %v", err)
	}
	for name, f := range map[string]func() ([]dsse.Accepted, error){
		"threshold 0": func() ([]dsse.Accepted, error) { return e.Verify(0, k) },
		"no keys":     func() ([]dsse.Accepted, error) { return e.Verify(1) },
		"empty key":   func() ([]dsse.Accepted, error) { return e.Verify(1, dsse.PublicKey{}) },
	} {
		if good, err := f(); err == nil || errors.Is(err, dsse.ErrNotVerified) || good != nil {
			t.Errorf("%s: %v, %v; want a caller's mistake", name, good, err)
		}
	}
}

func TestParse(t *testing.T) {
	const good = `{"payloadType":"t","payload":"eA==","signatures":[{"keyid":"k","sig":"eA=="}]}`
	for _, tc := range []struct {
		name, doc string
		ok        bool
	}{
		{"good", good, true},
		{"unknown member is ignored", strings.Replace(good, "{", `{"extra":{},`, 1), true},
		{"null keyid", strings.Replace(good, `"k"`, `null`, 1), true},
		{"duplicate payload", strings.Replace(good, "{", `{"payload":"eQ==",`, 1), false},
		{"duplicate in a signature", strings.Replace(good, `"sig":`, `"sig":"eQ==","sig":`, 1), false},
		{"payload in another case only", strings.Replace(good, `"payload"`, `"Payload"`, 1), false},
		{"trailing data", good + "{}", false},
		{"no payloadType", strings.Replace(good, `"payloadType":"t",`, ``, 1), false},
		{"empty payloadType", strings.Replace(good, `"t"`, `""`, 1), false},
		{"payload is a number", strings.Replace(good, `"eA=="`, `1`, 1), false},
		{"no signatures", strings.Replace(good, `[{"keyid":"k","sig":"eA=="}]`, `[]`, 1), false},
		{"empty sig", strings.Replace(good, `"sig":"eA=="`, `"sig":""`, 1), false},
		{"unpadded base64", strings.Replace(good, `"eA=="`, `"eA"`, 1), false},
		{"stray bits in base64", strings.Replace(good, `"eA=="`, `"eB=="`, 1), false},
		{"line break in base64", strings.Replace(good, `"eA=="`, `"eA==\n"`, 1), false},
		{"both alphabets in one", strings.Replace(good, `"eA=="`, `"-_+/"`, 1), false},
		{"array", `[` + good + `]`, false},
		{"too many signatures", strings.Replace(good, `[{`, `[`+strings.Repeat(`{"sig":"eA=="},`, dsse.MaxSignatures)+`{`, 1), false},
	} {
		e, err := dsse.Parse([]byte(tc.doc))
		if (err == nil) != tc.ok || (e != nil) != tc.ok {
			t.Errorf("%s: %v, %v; want ok %t", tc.name, e, err, tc.ok)
		}
	}
}

func TestMarshal(t *testing.T) {
	e := &dsse.Envelope{PayloadType: "application/vnd.in-toto+json", Payload: []byte("<x>"), Signatures: []dsse.Signature{{KeyID: "SHA256:a", Sig: []byte{1}}}}
	b, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"payloadType":"application/vnd.in-toto+json","payload":"PHg+","signatures":[{"keyid":"SHA256:a","sig":"AQ=="}]}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	back, err := dsse.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(e, back); d != "" {
		t.Error(d)
	}
}

func TestPublicKeys(t *testing.T) {
	msg := []byte("message")
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsa2k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	d256, d384 := sha256.Sum256(msg), sha512.Sum384(msg)
	for _, tc := range []struct {
		name   string
		key    crypto.Signer
		digest []byte
		hash   crypto.Hash
	}{
		{"P-256", p256, d256[:], crypto.SHA256},
		{"P-384 with SHA-256", p384, d256[:], crypto.SHA256},
		{"P-384 with SHA-384", p384, d384[:], crypto.SHA384},
		{"Ed25519", ed, msg, 0},
		{"RSA", rsa2k, d256[:], crypto.SHA256},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, err := dsse.NewPublicKey(tc.key.Public())
			if err != nil {
				t.Fatal(err)
			}
			sig, err := tc.key.Sign(rand.Reader, tc.digest, tc.hash)
			if err != nil {
				t.Fatal(err)
			}
			if err := k.Verify(msg, sig); err != nil {
				t.Error(err)
			}
			if err := k.Verify([]byte("Message"), sig); !errors.Is(err, dsse.ErrNotVerified) {
				t.Errorf("another message: %v", err)
			}
			sig[len(sig)-1] ^= 1
			if err := k.Verify(msg, sig); !errors.Is(err, dsse.ErrNotVerified) {
				t.Errorf("changed signature: %v", err)
			}
			// Tekton Chains takes the key id from this library.
			s, err := ssh.NewPublicKey(tc.key.Public())
			if err != nil {
				t.Fatal(err)
			}
			if got, want := k.KeyID(), ssh.FingerprintSHA256(s); got != want {
				t.Errorf("KeyID = %s; want %s", got, want)
			}
			back, err := dsse.ParsePublicKey(k.PEM())
			if err != nil || back.Fingerprint() != k.Fingerprint() {
				t.Errorf("PEM there and back: %v", err)
			}
		})
	}
	if (dsse.PublicKey{}).Verify(msg, []byte("x")) == nil {
		t.Error("the zero key verified something")
	}
	p521, _ := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	for name, key := range map[string]crypto.PublicKey{
		"P-521": p521.Public(), "nil": nil, "short Ed25519": ed25519.PublicKey{1}, "empty RSA": &rsa.PublicKey{}, "text": "key",
	} {
		if _, err := dsse.NewPublicKey(key); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestParsePublicKeyRefuses(t *testing.T) {
	pub, _, _ := ed25519.GenerateKey(rand.Reader)
	k, _ := dsse.NewPublicKey(pub)
	for name, tc := range map[string]struct{ pem, says string }{
		"nothing":     {"", "no PEM block"},
		"private key": {"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n", "private key"},
		"cosign.key":  {"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\nAA==\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n", "private key"},
		"certificate": {"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "certificate"},
		"other":       {"-----BEGIN X-----\nAA==\n-----END X-----\n", `"X"`},
		"garbage":     {"-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n", "reading public key"},
		"two keys":    {string(k.PEM()) + string(k.PEM()), "one key a file"},
		"too large":   {string(k.PEM()) + strings.Repeat(" ", dsse.MaxKeyPEM), "at most"},
	} {
		if _, err := dsse.ParsePublicKey([]byte(tc.pem)); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v; want an error that says %q", name, err, tc.says)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"payloadType":"t","payload":"eA==","signatures":[{"keyid":"k","sig":"eA=="}]}`))
	f.Add([]byte(`{"payloadType":"t","payload":"-_8=","signatures":[{"sig":"eA=="},{"keyid":null,"sig":"eQ=="}],"x":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		e, err := dsse.Parse(data)
		if err != nil {
			return
		}
		b, err := e.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		again, err := dsse.Parse(b)
		if err != nil {
			t.Fatalf("what we wrote we cannot read: %v", err)
		}
		if string(again.PAE()) != string(e.PAE()) || len(again.Signatures) != len(e.Signatures) {
			t.Fatal("writing changed the envelope")
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	pub, _, _ := ed25519.GenerateKey(rand.Reader)
	k, _ := dsse.NewPublicKey(pub)
	f.Add(k.PEM())
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := dsse.ParsePublicKey(data)
		if err != nil {
			return
		}
		if k.Verify([]byte("m"), []byte("s")) == nil {
			t.Fatal("verified nonsense")
		}
	})
}
