package intoto_test

import (
	"strings"
	"testing"

	"assay.dev/assay/attest/intoto"
)

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

const good = `{"_type":"https://in-toto.io/Statement/v0.1","predicateType":"p","subject":[{"name":"n","digest":{"sha256":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","sha1":"x"}}],"predicate":{"a":1}}`

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, doc string
		ok        bool
	}{
		{"v0.1", good, true},
		{"v1", strings.Replace(good, "v0.1", "v1", 1), true},
		{"no predicate", strings.Replace(good, `,"predicate":{"a":1}`, "", 1), true},
		{"unknown member", strings.Replace(good, "{", `{"x":1,`, 1), true},
		{"v2", strings.Replace(good, "v0.1", "v2", 1), false},
		{"no predicate type", strings.Replace(good, `"p"`, `""`, 1), false},
		{"predicate is a list", strings.Replace(good, `{"a":1}`, `[]`, 1), false},
		{"duplicate in the predicate", strings.Replace(good, `{"a":1}`, `{"a":1,"a":2}`, 1), false},
		{"duplicate subject", strings.Replace(good, `"subject"`, `"subject":[],"subject"`, 1), false},
		{"no subjects", strings.Replace(good, good[strings.Index(good, "[{"):strings.Index(good, `],"p`)+1], "[]", 1), false},
		{"subject without digest", strings.Replace(good, `"digest"`, `"Digest"`, 1), false},
		{"upper-case digest", strings.Replace(good, "e3b0c4", "E3B0C4", 1), false},
		{"short digest", strings.Replace(good, "e3b0c4", "", 1), false},
		{"trailing", good + good, false},
	} {
		s, err := intoto.Parse([]byte(tc.doc))
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v; want ok %t", tc.name, err, tc.ok)
		}
		if err == nil && !s.About(digest) {
			t.Errorf("%s: not about its subject", tc.name)
		}
	}
	s, _ := intoto.Parse([]byte(good))
	for _, d := range []string{"", "sha256:", "sha1:x", digest[:70], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"} {
		if s.About(d) {
			t.Errorf("about %q", d)
		}
	}
	b, err := intoto.ImageSignature(digest)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := intoto.Parse(b); err != nil || !s.About(digest) {
		t.Errorf("image signature: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	b, _ := intoto.ImageSignature(digest)
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		s, err := intoto.Parse(data)
		if err == nil && (len(s.Subjects) == 0 || s.PredicateType == "") {
			t.Fatalf("%+v", s)
		}
	})
}
