package conforma

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy/source"
)

// errNoRego is what a source group's policy without rules is refused with, in
// upstream's words.
var errNoRego = errors.New("no rego files found in policy subdirectory")

// sources reads the trees of a policy, and notes what they were pinned to.
type sources struct {
	from   source.Fetcher
	pinned map[string]string // by address
}

func (s *sources) read(ctx context.Context, address string, want func(name string) bool) ([]source.Content, error) {
	t, err := s.from.Fetch(ctx, address)
	if err != nil {
		return nil, err
	}
	s.pinned[address] = PinnedAddress(t)
	return t.Files(want)
}

// PinnedAddress is the address of what was read, as Conforma's reports have it: one over https
// becomes http::, and nothing is said of its content.
func PinnedAddress(t *source.Tree) string {
	if rest, ok := strings.CutPrefix(t.Pinned, "https://"); ok {
		rest, _, _ = strings.Cut(rest, "#")
		return "http::" + rest
	}
	return t.Pinned
}

// parseData reads a data file, which has to be an object at its top.
func parseData(f source.Content) (map[string]any, error) {
	raw := f.Bytes
	if filepath.Ext(f.Path) != ".json" {
		var err error
		if raw, err = yaml.YAMLToJSON(raw); err != nil {
			return nil, fmt.Errorf("parsing data file %s: %w", f.Path, err)
		}
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("parsing data file %s: %w", f.Path, err)
	}
	m, ok := v.(map[string]any)
	if !ok && v != nil {
		return nil, fmt.Errorf("parsing data file %s: it is not an object at its top", f.Path)
	}
	return m, nil
}

// merge adds src to dst, map by map. One key with two values is an error.
func merge(dst, src map[string]any, at string) error {
	for k, v := range src {
		old, ok := dst[k]
		if !ok {
			dst[k] = v
			continue
		}
		a, aok := old.(map[string]any)
		b, bok := v.(map[string]any)
		if !aok || !bok {
			return fmt.Errorf("merge error: %s%s is given twice", at, k)
		}
		if err := merge(a, b, at+k+"."); err != nil {
			return err
		}
	}
	return nil
}
