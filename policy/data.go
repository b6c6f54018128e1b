package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"

	"assay.dev/assay/policy/spec"
)

// parseData reads one data file: a JSON or YAML object. Numbers keep their
// spelling, so that a large one compares as written.
func parseData(f file) (map[string]any, error) {
	raw := f.bytes
	if path.Ext(f.path) != ".json" {
		var err error
		if raw, err = spec.OneDocument(f.bytes); err != nil {
			return nil, fmt.Errorf("parsing data file %s: %w", f.path, err)
		}
	} else if len(bytes.TrimSpace(raw)) == 0 {
		return nil, fmt.Errorf("parsing data file %s: it is empty", f.path)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("parsing data file %s: %w", f.path, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("parsing data file %s: more than one document", f.path)
	}
	switch v := v.(type) {
	case nil: // an empty file
		return map[string]any{}, nil
	case map[string]any:
		return v, nil
	}
	return nil, fmt.Errorf("parsing data file %s: not an object at the top", f.path)
}

// merge adds src to dst, map by map. One key with two values is an error:
// which would win would depend on the order of files.
func merge(dst, src map[string]any, at string) error {
	for k, v := range src {
		old, ok := dst[k]
		if !ok {
			dst[k] = clone(v)
			continue
		}
		a, aok := old.(map[string]any)
		b, bok := v.(map[string]any)
		if !aok || !bok {
			return fmt.Errorf("%s is given twice", at+k)
		}
		if err := merge(a, b, at+k+"."); err != nil {
			return err
		}
	}
	return nil
}

// clone copies maps, so that merging into them leaves their file's tree alone.
func clone(v any) any {
	m, ok := v.(map[string]any)
	if !ok {
		return v
	}
	c := make(map[string]any, len(m))
	for k, v := range m {
		c[k] = clone(v)
	}
	return c
}
