// Package goimage builds a Go program from source and prefetched modules,
// without a network, and writes it as a container image with its bill of
// materials.
//
//	source + modules ──verify──▶ go build ──▶ layer ──▶ image ──▶ SBOM of what is in it
//
// The same source and modules give the same digest: the environment of the go
// command is complete and fixed, paths and build ids are trimmed, the layer has
// one time throughout, and neither the run nor the machine is written anywhere.
// The modules are compared with the source's go.sum once more before the build
// and, from what the linker recorded in the program, after it.
package goimage

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/mod/module"

	"assay.dev/assay/task/gomod"
)

// Options say what to build. GoRoot, Source, Modules, Out, Work, Package,
// Platform and Log are required.
type Options struct {
	GoRoot   string // the toolchain's folder
	Source   string // folder of the source
	Context  string // folder in the source that has go.mod; default "."
	Modules  string // tree as package gomod writes it; "" or absent: none were prefetched
	Out      string // folder of the image layout to write
	Work     string // scratch space; removed afterwards but for Out
	Package  string // what to build: an import path, or ./folder
	Platform string // linux/amd64 and so on
	// Epoch is the time of every file and of the image; the commit's time. The
	// zero time is 1970.
	Epoch time.Time
	// Revision and URL are the commit and repository for the image's labels;
	// either may be empty.
	Revision, URL string
	// Labels are further labels of the image.
	Labels map[string]string
	Log    io.Writer
}

// Result is what was built.
type Result struct {
	Name     string // of the program
	Image    ocispec.Descriptor
	SBOM     ocispec.Descriptor // manifest of the bill of materials
	SBOMBlob ocispec.Descriptor // the bill itself
	Modules  int                // modules in the program
}

// Build builds the program and writes the layout. It fails when prefetched
// modules are not those of go.sum, when the build fails, and when the program
// holds a module that go.sum does not pin. On an error Out is no image layout.
func Build(ctx context.Context, o Options) (*Result, error) {
	if o.GoRoot == "" || o.Source == "" || o.Out == "" || o.Work == "" || o.Log == nil {
		return nil, errors.New("building image: GoRoot, Source, Out, Work and Log must be set")
	}
	if err := checkPackage(o.Package); err != nil {
		return nil, fmt.Errorf("building image: %w", err)
	}
	platform, err := ParsePlatform(o.Platform)
	if err != nil {
		return nil, fmt.Errorf("building image: %w", err)
	}
	if o.Context == "" {
		o.Context = "."
	}
	if !filepath.IsLocal(o.Context) {
		return nil, fmt.Errorf("building image: context %q is not a folder inside the source", o.Context)
	}
	if err := checkURL(o.URL); err != nil {
		return nil, fmt.Errorf("building image: %w", err)
	}
	if o.Epoch.IsZero() {
		o.Epoch = time.Unix(0, 0)
	}
	o.Epoch = o.Epoch.UTC().Truncate(time.Second)
	if err := os.MkdirAll(o.Work, 0o755); err != nil {
		return nil, fmt.Errorf("building image: %w", err)
	}
	work, err := os.MkdirTemp(o.Work, "build-")
	if err != nil {
		return nil, fmt.Errorf("building image: %w", err)
	}
	defer os.RemoveAll(work)

	binary, info, err := compile(ctx, o, platform, work)
	if err != nil {
		return nil, fmt.Errorf("building %s for %s: %w", o.Package, o.Platform, err)
	}
	res, err := pack(o, platform, binary, info)
	if err != nil {
		return nil, fmt.Errorf("packing %s for %s: %w", o.Package, o.Platform, err)
	}
	return res, nil
}

// compile verifies the modules, builds, and checks what was built.
func compile(ctx context.Context, o Options, p ocispec.Platform, work string) (string, *buildinfo.BuildInfo, error) {
	dir := filepath.Join(o.Source, o.Context)
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		return "", nil, fmt.Errorf("no go.mod in folder %q of the source; hint: parameter CONTEXT names the folder", o.Context)
	}
	sums, err := gomod.ReadSums(filepath.Join(dir, "go.sum"))
	if err != nil {
		return "", nil, err
	}
	proxy := "off"
	if o.Modules != "" {
		mods, extra, err := gomod.Verify(o.Modules, sums)
		if err != nil {
			return "", nil, err
		}
		fmt.Fprintf(o.Log, "%d prefetched modules are those that go.sum pins\n", len(mods))
		for _, name := range extra {
			fmt.Fprintf(o.Log, "prefetched but not pinned by go.sum, not used: %s\n", name)
		}
		abs, err := filepath.Abs(filepath.Join(o.Modules, filepath.FromSlash(gomod.ProxyDir)))
		if err != nil {
			return "", nil, err
		}
		proxy = (&url.URL{Scheme: "file", Path: abs}).String()
	}
	binary := filepath.Join(work, "program")
	cmd := exec.CommandContext(ctx, filepath.Join(o.GoRoot, "bin", "go"),
		"build", "-ldflags=-s -w -buildid=", "-o", binary, "--", o.Package)
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = o.Log, o.Log
	cmd.Env = append(gomod.Env(o.GoRoot, work, filepath.Join(work, "modcache")), "GOPROXY="+proxy)
	cmd.Env = append(cmd.Env, env(p)...)
	if err := cmd.Run(); err != nil {
		return "", nil, fmt.Errorf("go build: %w", err)
	}
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return "", nil, fmt.Errorf("reading what is in the program: %w; hint: PACKAGE must be one main package", err)
	}
	if err := checkModules(info, sums); err != nil {
		return "", nil, err
	}
	return binary, info, nil
}

// checkModules compares what the linker recorded with go.sum. Modules without a
// sum are part of the source: the main module, and what go.mod replaces with a
// folder.
func checkModules(info *buildinfo.BuildInfo, sums gomod.Sums) error {
	for _, m := range linked(info) {
		if m.Sum == "" {
			continue
		}
		ok := false
		for _, want := range sums[module.Version{Path: m.Path, Version: m.Version}] {
			ok = ok || want == m.Sum
		}
		if !ok {
			return fmt.Errorf("the program holds %s %s with sum %s, which go.sum does not pin", m.Path, m.Version, m.Sum)
		}
	}
	return nil
}

// checkPackage admits one import path or folder, and nothing that the go
// command would read as an option or a pattern.
func checkPackage(s string) error {
	switch {
	case s == "":
		return errors.New("no package; hint: parameter PACKAGE is an import path or ./folder")
	case strings.Contains(s, "..."):
		return fmt.Errorf("package %q is a pattern: name one main package", s)
	case !packagePattern.MatchString(s), strings.HasSuffix(s, ".go"):
		return fmt.Errorf("package %q is not an import path or ./folder", s)
	}
	for _, part := range strings.Split(s, "/") {
		if part == ".." {
			return fmt.Errorf("package %q leaves the source", s)
		}
	}
	return nil
}

var packagePattern = regexp.MustCompile(`^[A-Za-z0-9._~][A-Za-z0-9._~/+-]*$`)

// checkURL keeps credentials out of labels.
func checkURL(s string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || u.User != nil {
		return errors.New("the source's url does not parse or holds credentials")
	}
	return nil
}

var major = regexp.MustCompile(`^v[0-9]+$`)

// programName is what the go command would call the program: the last element
// of its import path that is not a major version.
func programName(importPath string) (string, error) {
	parts := strings.Split(strings.Trim(importPath, "/"), "/")
	for i := len(parts) - 1; i >= 0; i-- {
		if i > 0 && major.MatchString(parts[i]) {
			continue
		}
		if programPattern.MatchString(parts[i]) {
			return parts[i], nil
		}
		break
	}
	return "", fmt.Errorf("import path %q gives the program no name", importPath)
}

var programPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)
