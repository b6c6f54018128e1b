package repotest_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// apache2 is the SHA-256 of the licence as the Apache Software Foundation
// publishes it.
const apache2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"

func TestLicense(t *testing.T) {
	r, err := files()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(r.root, "LICENSE"))
	if err != nil {
		t.Fatalf("%v: the repository is under Apache-2.0 and has to say so in LICENSE", err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != apache2 {
		t.Error("LICENSE is not the unmodified text of Apache-2.0: restore it; notices of our own belong into NOTICE")
	}
}

// TestNeededFiles: what a newcomer and the documents look for is there.
func TestNeededFiles(t *testing.T) {
	r, err := files()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{
		"README.md", "CONTRIBUTING.md", "Makefile", ".golangci.yml", "docs/quickstart.md", "docs/concepts.md",
		"docs/threat-model.md", "docs/slsa.md", "docs/observation.md", "docs/compatibility.md", "docs/commands.md",
		"docs/release-notes/README.md",
	} {
		if !slices.Contains(r.names, f) {
			t.Errorf("%s is missing: write it, or mend this list with a reason in the commit", f)
		}
	}
}

// registryHosts are names of package registries. Which one a machine uses is its
// own business: commands and tests take it from the go command's settings.
var registryHosts = regexp.MustCompile(`(?i)\b(` + strings.Join([]string{
	`proxy\.golang` + `\.org`, `sum\.golang` + `\.org`, `gopr` + `oxy\.(io|cn)`, `registry\.npmjs` + `\.org`,
	`pypi` + `\.org`, `files\.pythonhosted` + `\.org`, `crates` + `\.io`, `deb\.debian` + `\.org`, `snapshot\.debian` + `\.org`,
}, "|") + `)\b`)

// homes are paths that exist on one developer's machine only.
var homes = regexp.MustCompile(`(^|[\s"'=(:])/(home/[a-z][a-z0-9_-]*|Users/[A-Za-z][A-Za-z0-9_-]*)/`)

// TestNoPlacesOfAMachine: nothing in the repository depends on where it was
// written.
func TestNoPlacesOfAMachine(t *testing.T) {
	r, err := files()
	if err != nil {
		t.Fatal(err)
	}
	// The folder of this checkout, if its name says enough to look for.
	checkout := ""
	if strings.Count(r.root, "/") > 1 {
		checkout = r.root
	}
	for _, name := range r.names {
		if name == "go.sum" || strings.HasSuffix(name, "/go.sum") || name == "LICENSE" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(r.root, name))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.IndexByte(content, 0) >= 0 {
			continue // binary
		}
		for i, line := range strings.Split(string(content), "\n") {
			switch {
			case registryHosts.MatchString(line):
				t.Errorf("%s:%d names the package registry %s: take it from the go command's settings, or leave the name out", name, i+1, registryHosts.FindString(line))
			case homes.MatchString(line):
				t.Errorf("%s:%d names a folder of somebody's home, %s: use a relative path or a variable", name, i+1, strings.TrimSpace(homes.FindString(line)))
			case checkout != "" && strings.Contains(line, checkout+"/"):
				t.Errorf("%s:%d names the folder of a checkout, %s: use a path relative to the repository", name, i+1, checkout)
			}
		}
	}
}

// TestExampleYAML: what people copy parses, with no key given twice.
func TestExampleYAML(t *testing.T) {
	r, err := files()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range r.names {
		if !strings.HasPrefix(name, "examples/") && !strings.HasPrefix(name, "catalog/") {
			continue
		}
		if ext := path.Ext(name); ext != ".yaml" && ext != ".yml" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(r.root, name))
		if err != nil {
			t.Fatal(err)
		}
		for i, doc := range regexp.MustCompile(`(?m)^---.*$`).Split(string(content), -1) {
			if strings.TrimSpace(doc) == "" {
				continue
			}
			n++
			var v any
			if err := yaml.UnmarshalStrict([]byte(doc), &v); err != nil {
				t.Errorf("%s, document %d: %v", name, i+1, err)
			} else if _, ok := v.(map[string]any); !ok {
				t.Errorf("%s, document %d is no object: an example is something one can use", name, i+1)
			}
		}
	}
	if n == 0 {
		t.Error("no example YAML found: the test looks in the wrong place")
	}
}
