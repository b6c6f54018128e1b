package simplesigning_test

import (
	"strings"
	"testing"

	"assay.dev/assay/attest/simplesigning"
)

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParse(t *testing.T) {
	b, err := simplesigning.New("example.com/a", digest)
	if err != nil {
		t.Fatal(err)
	}
	good := string(b)
	for _, tc := range []struct {
		name, doc string
		ok        bool
	}{
		{"good", good, true},
		{"options", strings.Replace(good, "null", `{"creator":"x"}`, 1), true},
		{"unknown type", strings.Replace(good, "cosign container", "other container", 1), false},
		{"unknown critical member", strings.Replace(good, `"type"`, `"also":1,"type"`, 1), false},
		{"unknown member", strings.Replace(good, `"optional"`, `"x":1,"optional"`, 1), false},
		{"duplicate digest", strings.Replace(good, `{"docker-manifest-digest"`, `{"docker-manifest-digest":"`+digest+`","docker-manifest-digest"`, 1), false},
		{"no digest", strings.Replace(good, digest, "latest", 1), false},
		{"options are a list", strings.Replace(good, "null", "[]", 1), false},
		{"trailing", good + "x", false},
	} {
		p, err := simplesigning.Parse([]byte(tc.doc))
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v; want ok %t", tc.name, err, tc.ok)
		}
		if err == nil && (p.Digest != digest || p.Reference != "example.com/a") {
			t.Errorf("%s: %+v", tc.name, p)
		}
	}
}

func FuzzParse(f *testing.F) {
	b, _ := simplesigning.New("example.com/a", digest)
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		p, err := simplesigning.Parse(data)
		if err == nil && len(p.Digest) != 71 {
			t.Fatalf("digest %q", p.Digest)
		}
	})
}
