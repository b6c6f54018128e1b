package gomod

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// maxInput bounds the prefetch input.
const maxInput = 1 << 20

// Package is one entry of the prefetch input that this package can serve: a
// folder of the source with a go.mod.
type Package struct {
	Path string // relative to the source, clean, inside it
}

// ParseInput reads the prefetch input as Hermeto takes it: an object with
// packages, a list of packages, one package, or the bare name of a type. Empty
// input is no packages. It fails on every type but gomod and on every flag or
// field it does not know, by name, since prefetching less than was asked for
// would only show as a failed build.
func ParseInput(s string) ([]Package, error) {
	if len(s) > maxInput {
		return nil, fmt.Errorf("parsing prefetch input: %d bytes, more than the %d allowed", len(s), maxInput)
	}
	data := bytes.TrimSpace([]byte(s))
	if len(data) == 0 {
		return nil, nil
	}
	pkgs, err := parseInput(data)
	if err != nil {
		return nil, fmt.Errorf("parsing prefetch input: %w", err)
	}
	return pkgs, nil
}

type inputPackage struct {
	Type string  `json:"type"`
	Path *string `json:"path"`
}

func parseInput(data []byte) ([]Package, error) {
	var raw []inputPackage
	switch data[0] {
	case '[':
		if err := strict(data, &raw); err != nil {
			return nil, err
		}
	case '{':
		// One package and a list of them are both objects; the field tells.
		var keys map[string]json.RawMessage
		if err := json.Unmarshal(data, &keys); err != nil {
			return nil, err
		}
		if _, ok := keys["packages"]; !ok {
			raw = make([]inputPackage, 1)
			if err := strict(data, &raw[0]); err != nil {
				return nil, err
			}
			break
		}
		var in struct {
			Packages []inputPackage `json:"packages"`
			Flags    []string       `json:"flags"`
		}
		if err := strict(data, &in); err != nil {
			return nil, err
		}
		if len(in.Flags) > 0 {
			return nil, fmt.Errorf("flag %q is not supported; hint: remove it, vendored modules are not used", in.Flags[0])
		}
		raw = in.Packages
	default:
		raw = []inputPackage{{Type: string(data)}}
	}
	if len(raw) == 0 {
		return nil, errors.New(`no packages; hint: {"type": "gomod", "path": "."}`)
	}
	var out []Package
	seen := map[string]bool{}
	for i, p := range raw {
		if p.Type != "gomod" {
			return nil, fmt.Errorf("package %d: type %q is not supported: only gomod is", i, p.Type)
		}
		path := "."
		if p.Path != nil {
			path = *p.Path
		}
		if !filepath.IsLocal(path) {
			return nil, fmt.Errorf("package %d: path %q is not a folder inside the source", i, path)
		}
		path = filepath.Clean(path)
		if !seen[path] {
			seen[path] = true
			out = append(out, Package{Path: path})
		}
	}
	return out, nil
}

// strict decodes exactly one JSON value without unknown fields.
func strict(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}
