package signing_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/signing"
	"assay.dev/assay/attest/simplesigning"
	"assay.dev/assay/store"
)

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

const head = `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"https://slsa.dev/provenance/v0.2"`

func statement(rest string) []byte {
	return dsse.PAE(store.PayloadType, []byte(head+rest+"}"))
}

func TestInspect(t *testing.T) {
	image, err := simplesigning.New("registry.test/app", digest)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name     string
		message  []byte
		kind     signing.MessageKind
		subjects int
	}{
		{"image", image, signing.Image, 1},
		{"statement without subject", statement(``), signing.Statement, 0},
		{"statement with null subject", statement(`,"subject":null`), signing.Statement, 0},
		{"statement with two subjects", statement(`,"subject":[{"name":"a","digest":{"SHA256":"X"}},{"name":"b"}],"predicate":{}`), signing.Statement, 2},
	} {
		m, err := signing.Inspect(tc.message)
		if err != nil || m.Kind != tc.kind || m.Subjects != tc.subjects {
			t.Errorf("%s: %+v, %v", tc.name, m, err)
		}
	}
	for _, tc := range []struct {
		name    string
		message string
		says    string
	}{
		{"nothing", "", "want the DSSE PAE"},
		{"a token to sign", "eyJhbGciOiJFUzI1NiJ9.e30", "want the DSSE PAE"},
		{"JSON that is no image signature", `{"iss":"me"}`, "unknown member"},
		{"other payload type", string(dsse.PAE("application/vnd.other+json", []byte(head+"}"))), "payload type is not"},
		{"payload type that begins alike", string(dsse.PAE(store.PayloadType+"x", []byte(head+"}"))), "payload type is not"},
		{"length too small", "DSSEv1 28 application/vnd.in-toto+json 1 {}", "length and its payload differ"},
		{"length of two spellings", "DSSEv1 28 application/vnd.in-toto+json 02 {}", "length and its payload differ"},
		{"no length", "DSSEv1 28 application/vnd.in-toto+json ", "length and its payload differ"},
		{"payload no JSON", string(dsse.PAE(store.PayloadType, []byte("hello"))), "want an object"},
		{"text behind", string(dsse.PAE(store.PayloadType, []byte(head+"} x"))), "something follows"},
		{"duplicate member", string(statement(`,"predicate":{"a":1,"\u0061":2}`)), "duplicate"},
		{"unknown statement type", string(dsse.PAE(store.PayloadType, []byte(`{"_type":"x","predicateType":"y"}`))), "is not known"},
		{"no predicate type", string(dsse.PAE(store.PayloadType, []byte(`{"_type":"https://in-toto.io/Statement/v1"}`))), "predicateType"},
		{"predicate no object", string(statement(`,"predicate":[]`)), "want an object"},
		{"subject no list", string(statement(`,"subject":{}`)), "want an array"},
		{"subject no object", string(statement(`,"subject":["a"]`)), "want an object"},
		{"too many subjects", string(statement(`,"subject":[{}` + strings.Repeat(",{}", intoto.MaxSubjects) + `]`)), "subjects"},
		{"too large", strings.Repeat(" ", signing.MaxMessage+1), "at most"},
	} {
		_, err := signing.Inspect([]byte(tc.message))
		if err == nil || !strings.Contains(err.Error(), tc.says) || store.ClassOf(err) != store.Permanent {
			t.Errorf("%s: %v (%v), want permanent %q", tc.name, err, store.ClassOf(err), tc.says)
		}
	}
}

// TestInspectWhatChainsStates: every statement that Tekton Chains makes in the
// shared cases may be signed, those without subjects too.
func TestInspectWhatChainsStates(t *testing.T) {
	files, err := filepath.Glob("../../../shared/conformance/chains/*/expected-slsa-*.json")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Skip("no conformance data beside the repository (../shared/conformance)")
	}
	for _, f := range files {
		payload, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(payload), `"_type"`) {
			continue // a case in which Chains makes none
		}
		m, err := signing.Inspect(dsse.PAE(store.PayloadType, payload))
		if err != nil {
			t.Errorf("%s: %v", f, err)
		}
		if s, err := intoto.Parse(payload); err == nil && len(s.Subjects) != m.Subjects {
			t.Errorf("%s: %d subjects counted, there are %d", f, m.Subjects, len(s.Subjects))
		}
	}
}

func BenchmarkInspect(b *testing.B) {
	message := large()
	b.SetBytes(int64(len(message)))
	for b.Loop() {
		if _, err := signing.Inspect(message); err != nil {
			b.Fatal(err)
		}
	}
}

// large is a statement of the size of a large Konflux build's.
func large() []byte {
	var p strings.Builder
	p.WriteString(`,"subject":[{"name":"registry.test/app","digest":{"sha256":"` + digest[7:] + `"}}],"predicate":{"tasks":[{}`)
	for p.Len() < 434_000 {
		p.WriteString(`,{"name":"build-container","ref":{"kind":"Task","params":[{"name":"bundle","value":"registry.test/tasks@` + digest + `"}]},` +
			`"steps":[{"entryPoint":"#!/bin/sh\nset -e\necho \"done\" >> $(results.X.path)\n","arguments":["--verbose","a"],"environment":{"image":"oci://registry.test/x"}}],"n":12.5,"ok":true}`)
	}
	p.WriteString(`]}`)
	return statement(p.String())
}
