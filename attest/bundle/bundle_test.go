package bundle_test

import (
	"strings"
	"testing"

	"assay.dev/assay/attest/bundle"
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
