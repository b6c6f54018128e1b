// Package gomod fetches the modules a Go program is built from and proves that
// they are the ones its go.sum pins.
//
//	go.mod, go.sum ──Fetch──▶ tree ──artifact──▶ Verify ──▶ go build, offline
//
// The go command downloads, but is not taken at its word: each go.mod and zip
// that it leaves is hashed here and compared with the go.sum of the source.
// What is not pinned is refused. Zips are then written anew, entries sorted,
// stored and without times, so that one go.sum gives one tree whichever proxy
// served it, and nothing hides between the entries of a zip.
//
// The tree has the folders of a module proxy and can be used as one:
//
//	bom.json                                         SPDX 2.3, every module
//	deps/gomod/pkg/mod/cache/download/M/@v/V.mod     GOPROXY=file://…
//	deps/gomod/pkg/mod/cache/download/M/@v/V.zip
//
// No code of a module is ever run.
package gomod

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/mod/module"
)

// maxSums bounds a go.sum file; the largest in the wild are a few megabytes.
const maxSums = 32 << 20

// Sums is what go.sum files pin: module version → accepted h1 sums. The
// version of a go.mod file ends in "/go.mod", as in the file itself.
type Sums map[module.Version][]string

// ParseSums reads a go.sum file. It fails on a line that is not
// `path version algorithm:sum` with a valid module path and version. Sums of
// algorithms other than h1 are skipped, as the go command does.
func ParseSums(data []byte) (Sums, error) {
	if len(data) > maxSums {
		return nil, fmt.Errorf("parsing go.sum: %d bytes, more than the %d allowed", len(data), maxSums)
	}
	sums := Sums{}
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, 64<<10)
	for n := 1; sc.Scan(); n++ {
		f := strings.Fields(sc.Text())
		if len(f) == 0 {
			continue
		}
		if len(f) != 3 {
			return nil, fmt.Errorf("parsing go.sum: line %d has %d fields, want path, version and sum", n, len(f))
		}
		v := module.Version{Path: f[0], Version: f[1]}
		plain := strings.TrimSuffix(v.Version, "/go.mod")
		if err := module.Check(v.Path, plain); err != nil {
			return nil, fmt.Errorf("parsing go.sum: line %d: %w", n, err)
		}
		if module.CanonicalVersion(plain) != plain {
			return nil, fmt.Errorf("parsing go.sum: line %d: version %q is not canonical", n, plain)
		}
		if !strings.Contains(f[2], ":") {
			return nil, fmt.Errorf("parsing go.sum: line %d: sum %q names no algorithm", n, f[2])
		}
		if strings.HasPrefix(f[2], "h1:") {
			sums[v] = append(sums[v], f[2])
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("parsing go.sum: %w", err)
	}
	return sums, nil
}

// ReadSums reads the go.sum file at path; a file that does not exist pins
// nothing, as for a module without dependencies.
func ReadSums(path string) (Sums, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Sums{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading go.sum: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading go.sum: %s is not a file", path)
	}
	if info.Size() > maxSums {
		return nil, fmt.Errorf("reading go.sum: %d bytes, more than the %d allowed", info.Size(), maxSums)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading go.sum: %w", err)
	}
	return ParseSums(data)
}

// Add puts the sums of another go.sum beside those of s. A module version that
// both pin must be pinned to a common sum.
func (s Sums) Add(other Sums) error {
	for v, theirs := range other {
		ours, ok := s[v]
		if !ok {
			s[v] = theirs
			continue
		}
		var common []string
		for _, sum := range ours {
			for _, t := range theirs {
				if sum == t {
					common = append(common, sum)
				}
			}
		}
		if len(common) == 0 {
			return fmt.Errorf("%s %s is pinned to %s by one go.sum and to %s by another",
				v.Path, v.Version, strings.Join(ours, ", "), strings.Join(theirs, ", "))
		}
		s[v] = common
	}
	return nil
}

// check says whether v is pinned to sum.
func (s Sums) check(v module.Version, sum string) error {
	want, ok := s[v]
	if !ok {
		return &UnpinnedError{Module: v}
	}
	for _, w := range want {
		if w == sum {
			return nil
		}
	}
	return &MismatchError{Module: v, Want: want, Got: sum}
}

// UnpinnedError says that go.sum knows nothing of a module version.
type UnpinnedError struct{ Module module.Version }

func (e *UnpinnedError) Error() string {
	return fmt.Sprintf("%s %s is not in go.sum; hint: run `go mod tidy` and commit go.sum", e.Module.Path, e.Module.Version)
}

// MismatchError says that a module is not the one that go.sum pins.
type MismatchError struct {
	Module module.Version
	Want   []string
	Got    string
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("%s %s has sum %s, but go.sum pins %s: these are not the bytes the source was written against",
		e.Module.Path, e.Module.Version, e.Got, strings.Join(e.Want, ", "))
}
