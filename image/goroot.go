package image

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
)

// GoRoot lists what building with a Go toolchain of this machine needs, placed
// below dest: the command, compiler, assembler, linker and cgo, the standard
// library's sources without tests, headers and time zones. It is less than half
// of what is installed. Left out are gofmt, vet and the other tools, and cmd's
// own sources, so that go vet, go tool and go test -cover do not work there.
//
// It fails for a folder that has no such toolchain for this machine.
func GoRoot(goroot, dest string, p Platform) ([]Folder, error) {
	p = p.orHost()
	tools := path.Join("tool", p.OS+"_"+p.Architecture)
	for _, need := range []string{"bin/go", "pkg/" + tools + "/compile", "src/runtime", "VERSION"} {
		if _, err := os.Stat(filepath.Join(goroot, filepath.FromSlash(need))); err != nil {
			return nil, fmt.Errorf("looking for the Go toolchain for %s in %s: %w", p, goroot, errors.Join(err, errors.New("want the folder that go env GOROOT prints")))
		}
	}
	// Distributions make some of these links to elsewhere, so each is a folder
	// of its own, opened through the link.
	return []Folder{
		{Host: filepath.Join(goroot, "bin"), Path: path.Join(dest, "bin"), Only: []string{"go"}},
		{Host: filepath.Join(goroot, "pkg"), Path: path.Join(dest, "pkg"), Only: []string{
			"include", tools + "/asm", tools + "/cgo", tools + "/compile", tools + "/link", tools + "/preprofile"}},
		{Host: filepath.Join(goroot, "src"), Path: path.Join(dest, "src"), Exclude: []string{
			"cmd", "**/testdata", "**/*_test.go", "*.bash", "*.bat", "*.rc"}},
		{Host: goroot, Path: dest, Only: []string{"VERSION", "go.env", "lib/time", "lib/fips140"}},
	}, nil
}
