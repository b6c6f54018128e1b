package goimage

import (
	"fmt"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// architectures that the go command builds Linux programs for, and that run in
// containers, with the variable that fixes their baseline. Fixing it keeps the
// toolchain's default, which a packager may have changed, out of the result.
var architectures = map[string]string{
	"amd64":   "GOAMD64=v1",
	"arm64":   "GOARM64=v8.0",
	"arm":     "",
	"386":     "GO386=sse2",
	"ppc64le": "GOPPC64=power8",
	"s390x":   "",
	"riscv64": "GORISCV64=rva20u64",
	"loong64": "",
}

// aliases are how Konflux's platform lists and kernels spell architectures.
var aliases = map[string]string{"x86_64": "amd64", "aarch64": "arm64"}

// ParsePlatform reads os/arch or os/arch/variant, such as linux/arm64 or
// linux/x86_64. It fails on everything that this package cannot build for.
func ParsePlatform(s string) (ocispec.Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 {
		return ocispec.Platform{}, fmt.Errorf("platform %q: want linux/ARCH or linux/ARCH/VARIANT", s)
	}
	p := ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if a, ok := aliases[p.Architecture]; ok {
		p.Architecture = a
	}
	if p.OS != "linux" {
		return ocispec.Platform{}, fmt.Errorf("platform %q: only linux is supported", s)
	}
	if _, ok := architectures[p.Architecture]; !ok {
		var known []string
		for a := range architectures {
			known = append(known, a)
		}
		slices.Sort(known)
		return ocispec.Platform{}, fmt.Errorf("platform %q: architecture %q is not one of %s", s, p.Architecture, strings.Join(known, ", "))
	}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	switch p.Architecture + "/" + p.Variant {
	case "arm/", "arm/v7":
		p.Variant = "v7"
	case "arm/v5", "arm/v6":
	case "arm64/v8":
		p.Variant = "" // the only one, and by convention left out
	default:
		if p.Variant != "" {
			return ocispec.Platform{}, fmt.Errorf("platform %q: variant %q is not supported", s, p.Variant)
		}
	}
	return p, nil
}

// env is what makes the go command build for p.
func env(p ocispec.Platform) []string {
	out := []string{"GOOS=" + p.OS, "GOARCH=" + p.Architecture}
	if v := architectures[p.Architecture]; v != "" {
		out = append(out, v)
	}
	if p.Architecture == "arm" {
		out = append(out, "GOARM="+strings.TrimPrefix(p.Variant, "v"))
	}
	return out
}
