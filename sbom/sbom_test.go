package sbom_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"assay.dev/assay/sbom"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func sample(t *testing.T) *sbom.Document {
	t.Helper()
	dep, err := sbom.GoModule("github.com/BurntSushi/toml", "v1.2.0+incompatible", "h1:Jb5fHlvgK5eeaPbreG9UJs1E5w6l5hUzXjeaY6LTTWY=")
	if err != nil {
		t.Fatal(err)
	}
	img := sbom.Package{
		ID: "image", Name: "yq", Version: "sha256:" + strings.Repeat("ab", 32), Purpose: "CONTAINER",
		PURL:      sbom.OCIPURL("yq", "sha256:"+strings.Repeat("ab", 32), "amd64"),
		Checksums: []sbom.Checksum{{Algorithm: "SHA256", Value: strings.Repeat("ab", 32)}},
	}
	std := sbom.GoStdlib("go1.26.4")
	return &sbom.Document{
		Name: "yq", Created: time.Unix(1700000000, 0), Tool: "assay-task",
		Packages: []sbom.Package{std, img, dep},
		Relations: []sbom.Relation{
			{From: "image", Type: sbom.Contains, To: std.Key()},
			{From: sbom.DocumentID, Type: sbom.Describes, To: "image"},
			{From: "image", Type: sbom.Contains, To: dep.Key()},
		},
	}
}

func TestWriteSPDXGolden(t *testing.T) {
	got, err := sbom.WriteSPDX(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "image.spdx.json")
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("SPDX differs from %s (-want +got):\n%s", golden, diff)
	}
}

func TestReadSPDXReturnsWhatWasWritten(t *testing.T) {
	d := sample(t)
	data, err := sbom.WriteSPDX(d)
	if err != nil {
		t.Fatal(err)
	}
	got, err := sbom.ReadSPDX(data)
	if err != nil {
		t.Fatal(err)
	}
	again, err := sbom.WriteSPDX(got)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(data, again) {
		t.Errorf("written, read and written again differs:\n%s", cmp.Diff(string(data), string(again)))
	}
	root := got.Described()
	if len(root) != 1 || root[0].Name != "yq" {
		t.Errorf("described packages: %+v", root)
	}
}

func TestWriteSPDXIgnoresOrder(t *testing.T) {
	d := sample(t)
	want, err := sbom.WriteSPDX(d)
	if err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		s := *d
		s.Packages = rapid.Permutation(d.Packages).Draw(t, "packages")
		s.Relations = rapid.Permutation(d.Relations).Draw(t, "relations")
		before := slices.Clone(s.Packages)
		got, err := sbom.WriteSPDX(&s)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want, got) {
			t.Fatal("order of packages or relations shows in the bytes")
		}
		if diff := cmp.Diff(before, s.Packages); diff != "" {
			t.Fatalf("writing changed its input:\n%s", diff)
		}
	})
}

func TestWriteSPDXRefusesContradictions(t *testing.T) {
	for name, d := range map[string]*sbom.Document{
		"unnamed package":   {Packages: []sbom.Package{{ID: "a"}}},
		"same id twice":     {Packages: []sbom.Package{{ID: "a", Name: "x"}, {ID: "a", Name: "y"}}},
		"bad id":            {Packages: []sbom.Package{{ID: "a b", Name: "x"}}},
		"document's own id": {Packages: []sbom.Package{{ID: sbom.DocumentID, Name: "x"}}},
		"dangling relation": {Relations: []sbom.Relation{{From: sbom.DocumentID, Type: sbom.Describes, To: "x"}}},
	} {
		if _, err := sbom.WriteSPDX(d); err == nil {
			t.Errorf("%s: written without an error", name)
		}
	}
}

func TestReadSPDXRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"no json":         "<xml/>",
		"no version":      `{"name":"x"}`,
		"other version":   `{"spdxVersion":"SPDX-3.0"}`,
		"cyclonedx":       `{"bomFormat":"CycloneDX","specVersion":"1.6"}`,
		"null package":    `{"spdxVersion":"SPDX-2.3","packages":[null]}`,
		"bad time":        `{"spdxVersion":"SPDX-2.3","creationInfo":{"created":"today","creators":[]}}`,
		"short reference": `{"spdxVersion":"SPDX-2.3","relationships":[{"spdxElementId":"","relatedSpdxElement":"","relationshipType":"X"}]}`,
	} {
		if _, err := sbom.ReadSPDX([]byte(in)); err == nil {
			t.Errorf("%s: read without an error", name)
		}
	}
	if _, err := sbom.ReadSPDX(make([]byte, sbom.MaxBytes+1)); err == nil {
		t.Error("read a document above the bound")
	}
}

func TestPURL(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{sbom.GoPURL("github.com/BurntSushi/toml", "v1.0.0"), "pkg:golang/github.com/burntsushi/toml@v1.0.0"},
		{sbom.GoPURL("example.com/x", "v2.0.0+incompatible"), "pkg:golang/example.com/x@v2.0.0%2Bincompatible"},
		{sbom.GoPURL("stdlib", "1.26.4"), "pkg:golang/stdlib@1.26.4"},
		{sbom.GoPURL("example.com/x", ""), "pkg:golang/example.com/x"},
		{sbom.OCIPURL("yq", "sha256:ab", "arm64"), "pkg:oci/yq@sha256:ab?arch=arm64"},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}

func FuzzReadSPDX(f *testing.F) {
	data, err := os.ReadFile(filepath.Join("testdata", "image.spdx.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"spdxVersion":"SPDX-2.3","packages":[{"externalRefs":[null]}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) > 1<<16 {
			return
		}
		d, err := sbom.ReadSPDX(in)
		if err != nil {
			return
		}
		// What reads and can be written must be stable from then on.
		one, err := sbom.WriteSPDX(d)
		if err != nil {
			return
		}
		if _, err := sbom.ReadSPDX(one); err != nil {
			t.Fatalf("own output does not read: %v", err)
		}
	})
}
