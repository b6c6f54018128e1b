package signing

import (
	"testing"

	"assay.dev/assay/attest/strictjson"
)

// FuzzScan: the fast scanner accepts what strictjson accepts, no more and no less,
// and finds the same members.
func FuzzScan(f *testing.F) {
	for _, s := range []string{
		`{}`, ` {"a":1}`, `{"a":1,"a":2}`, `{"a":{"b":[1,2.5e+3,-0,"x\u0041\"\\"]},"c":null}`, `{"\u0061":1,"a":2}`,
		`{"a":01}`, `{"a":1.}`, `{"a":"` + "\t" + `"}`, `{"a":tru}`, `{"a":1}x`, `{"\ud800":1,"\ufffd":2}`, "{\"a\":\"\xff\"}", `{"a":[[[[[]]]]]}`,
		`{"aaaaaaaaaaaaaaaaaaaaaaaaa":"0123456789012345678901234567890123456789\n"}`, `{"a":1,}`, `{,}`, `[]`, `{"a" : 1 , "b":2 }`,
		`{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"h":1,"i":1,"j":1,"k":1,"l":1,"m":1,"n":1,"o":1,"p":1,"q":1,"r":1,"s":1,"t":1,"u":1,"v":1,"w":1,"x":1,"y":1,"z":1,"a":2}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		got, err := members(data)
		want := strictjson.Check(data, 1<<16)
		if want == nil && strictjson.Kind(data) != "object" {
			if err == nil {
				t.Fatalf("%q is taken for an object", data)
			}
			return
		}
		if (err == nil) != (want == nil) {
			t.Fatalf("%q: %v, strictjson says %v", data, err, want)
		}
		if err != nil {
			return
		}
		m, err := strictjson.Object(data)
		if err != nil {
			t.Fatal(err)
		}
		if len(m) != len(got) {
			t.Fatalf("%q: %d members, want %d", data, len(got), len(m))
		}
		for name, at := range got {
			if string(data[at.from:at.to]) != string(m[name]) {
				t.Fatalf("%q: member %q is %q, want %q", data, name, data[at.from:at.to], m[name])
			}
		}
	})
}

// FuzzWire: what comes over the socket is decoded to something whole or refused.
func FuzzWire(f *testing.F) {
	f.Add([]byte(`{"kinds":["x509"],"fulcio":{},"kms":{},"pkcs11":{}}`))
	f.Add([]byte(`{"signatures":[{"keyid":"a","sig":"YQ==","key":"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"}]}`))
	f.Add([]byte(`{"class":"permanent","message":"no"}`))
	f.Add([]byte(`{"keys":[{"kind":"x509","keyid":"a","pem":"","since":"2026-01-01T00:00:00Z"}]}`))
	client, err := Dial("/nowhere")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		if s, digest, err := DecodeSettings(data); err == nil {
			if s.Check() != nil || digest == "" {
				t.Fatalf("settings that pass are not whole: %q", data)
			}
			again, _, err := s.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := DecodeSettings(again); err != nil {
				t.Fatalf("%q: read, written and refused: %v", data, err)
			}
		}
		if sigs, err := decodeSignatures(data, client.key); err == nil {
			for _, s := range sigs {
				if s.KeyID == "" || len(s.Sig) == 0 || s.Key.Crypto() == nil {
					t.Fatalf("half a signature: %+v", s)
				}
			}
		}
		if decodeFailure(data) == nil {
			t.Fatalf("a refusal without an error: %q", data)
		}
		if _, err := decodeKeys(data); err == nil && len(data) == 0 {
			t.Fatal("keys of nothing")
		}
	})
}
