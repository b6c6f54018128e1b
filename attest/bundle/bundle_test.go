package bundle_test

import (
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"

	"assay.dev/assay/attest/bundle"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store/storetest"
)

const good = `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"h"}},"dsseEnvelope":{"payload":"eA==","payloadType":"t","signatures":[{"sig":"eA=="}]}}`

const message = `{"mediaType":"application/vnd.dev.sigstore.bundle+json;version=0.2","verificationMaterial":{"publicKey":{}},"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="},"signature":"eA=="}}`

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, doc string
		ok        bool
	}{
		{"DSSE", good, true},
		{"message", message, true},
		{"certificate", strings.Replace(good, `"publicKey":{"hint":"h"}`, `"certificate":{"rawBytes":"eA=="}`, 1), true},
		{"log entries and timestamps", strings.Replace(good, `{"publicKey"`, `{"tlogEntries":[{}],"timestampVerificationData":{},"publicKey"`, 1), true},
		{"unknown version", strings.Replace(good, "v0.3", "v0.9", 1), false},
		{"no version", strings.Replace(good, "mediaType", "mediatype", 1), false},
		{"both contents", strings.Replace(good, `"dsseEnvelope"`, message[strings.Index(message, `"messageSignature"`):len(message)-1]+`,"dsseEnvelope"`, 1), false},
		{"no content", good[:strings.Index(good, `,"dsse`)] + "}", false},
		{"two signatures", strings.Replace(good, `[{`, `[{"sig":"eA=="},{`, 1), false},
		{"key and certificate", strings.Replace(good, `{"publicKey"`, `{"certificate":{},"publicKey"`, 1), false},
		{"nobody signed", strings.Replace(good, `"publicKey":{"hint":"h"}`, ``, 1), false},
		{"unknown member", strings.Replace(good, `{"mediaType"`, `{"extra":1,"mediaType"`, 1), false},
		{"unknown material", strings.Replace(good, `{"publicKey"`, `{"magic":1,"publicKey"`, 1), false},
		{"duplicate", strings.Replace(good, `{"mediaType"`, `{"dsseEnvelope":{},"mediaType"`, 1), false},
		{"other digest algorithm", strings.Replace(message, "SHA2_256", "SHA2_512", 1), false},
		{"short digest", strings.Replace(message, "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", "eA==", 1), false},
	} {
		b, err := bundle.Parse([]byte(tc.doc))
		if (err == nil) != tc.ok || (b != nil) != tc.ok {
			t.Errorf("%s: %v; want ok %t", tc.name, err, tc.ok)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(message))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		b, err := bundle.Parse(data)
		if err != nil {
			return
		}
		if (b.Envelope == nil) == (b.Message == nil) {
			t.Fatal("not exactly one content")
		}
		if out, err := b.MarshalJSON(); err == nil {
			if _, err := bundle.Parse(out); err != nil {
				t.Fatalf("what we wrote we cannot read: %v\n%s", err, out)
			}
		}
	})
}

func TestEncode(t *testing.T) {
	signer, other := storetest.NewCertSigner(t), storetest.NewCertSigner(t)
	r := storetest.StatementRecord(t, storetest.NewRun("TaskRun"), "x", []intoto.Subject{{Name: "a", Digest: map[string]string{"sha1": "0"}}}, signer)
	leaf, _ := pem.Decode(signer.Cert)
	foreign, _ := pem.Decode(other.Cert)
	entries := []json.RawMessage{json.RawMessage(`{"logIndex":"1"}`)}

	b, err := bundle.Encode(r.Envelope(), signer.Key, bundle.Material{Leaf: leaf.Bytes, LogEntries: entries})
	if err != nil {
		t.Fatal(err)
	}
	got, err := bundle.Parse(b)
	if err != nil || !got.Certificate || string(got.Leaf) != string(leaf.Bytes) || got.LogEntries != 1 || got.Hint != "" {
		t.Errorf("with a certificate: %+v, %v", got, err)
	}
	if b, err = bundle.Encode(r.Envelope(), signer.Key, bundle.Material{}); err != nil {
		t.Fatal(err)
	}
	if got, err = bundle.Parse(b); err != nil || got.Certificate || got.Hint != signer.Key.Hint() || got.LogEntries != 0 {
		t.Errorf("with a bare key: %+v, %v", got, err)
	}
	// As MarshalJSON writes the same bundle.
	if plain, err := bundle.New(r.Envelope(), signer.Key); err != nil {
		t.Fatal(err)
	} else if want, err := plain.MarshalJSON(); err != nil || string(want) != string(b) {
		t.Errorf("with a bare key: %s\nwant %s (%v)", b, want, err)
	}
	for name, try := range map[string]func() ([]byte, error){
		"another's certificate": func() ([]byte, error) {
			return bundle.Encode(r.Envelope(), signer.Key, bundle.Material{Leaf: foreign.Bytes})
		},
		"no certificate": func() ([]byte, error) {
			return bundle.Encode(r.Envelope(), signer.Key, bundle.Material{Leaf: []byte("x")})
		},
		"another's signature": func() ([]byte, error) { return bundle.Encode(r.Envelope(), other.Key, bundle.Material{}) },
		"broken log entry": func() ([]byte, error) {
			return bundle.Encode(r.Envelope(), signer.Key, bundle.Material{LogEntries: []json.RawMessage{[]byte("{")}})
		},
	} {
		if b, err := try(); err == nil {
			t.Errorf("%s: %s; want an error", name, b)
		}
	}
}
