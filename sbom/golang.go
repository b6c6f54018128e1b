package sbom

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	pathpkg "path"
	"strings"

	"github.com/package-url/packageurl-go"
)

// GoModule is the package of a Go module. Its URL names the module path, not
// the proxy it came from. sum is the module's h1 sum as go.sum has it; empty:
// the package has no checksum (a main module that was built from its source).
// A sum of another algorithm is an error.
func GoModule(path, version, sum string) (Package, error) {
	p := Package{Name: path, Version: version, PURL: GoPURL(path, version), Purpose: "LIBRARY"}
	if sum == "" {
		return p, nil
	}
	b64, ok := strings.CutPrefix(sum, "h1:")
	if !ok {
		return Package{}, fmt.Errorf("sum %q of %s: only h1 sums are known", sum, path)
	}
	raw, err := base64.StdEncoding.DecodeString(b64)
	if err != nil || len(raw) != 32 {
		return Package{}, fmt.Errorf("sum %q of %s is not 32 bytes in base64", sum, path)
	}
	p.Checksums = []Checksum{{Algorithm: "SHA256", Value: hex.EncodeToString(raw)}}
	p.Comment = "go.sum " + sum
	return p, nil
}

// GoStdlib is the package of the Go standard library that a toolchain brings;
// version is the toolchain's, such as go1.26.4.
func GoStdlib(version string) Package {
	v := strings.TrimPrefix(version, "go")
	return Package{Name: "stdlib", Version: v, PURL: GoPURL("stdlib", v), Purpose: "LIBRARY"}
}

// GoPURL is the package URL of a Go module: namespace and name in lower case,
// as the purl specification wants for this type.
func GoPURL(path, version string) string {
	dir, name := pathpkg.Split(strings.ToLower(path))
	return packageurl.NewPackageURL(packageurl.TypeGolang, strings.TrimSuffix(dir, "/"), name, version, nil, "").ToString()
}

// OCIPURL is the package URL of an image by digest; arch may be empty.
func OCIPURL(name, digest, arch string) string {
	var q packageurl.Qualifiers
	if arch != "" {
		q = packageurl.Qualifiers{{Key: "arch", Value: arch}}
	}
	return packageurl.NewPackageURL(packageurl.TypeOCI, "", strings.ToLower(name), digest, q, "").ToString()
}
