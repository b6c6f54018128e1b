package provenance

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"sigs.k8s.io/yaml"
)

// MaxConfig bounds what ReadConfig reads, in bytes; a cluster stores half as
// much in a ConfigMap.
const MaxConfig = 2 << 20

// ReadConfig reads chains-config from a file: its data as a map in JSON or YAML,
// or the ConfigMap itself. What it returns is for ParseConfig; nothing in the
// file means an empty map. It fails for what is neither, for a key given twice,
// and for values that are not strings, which a cluster would refuse too.
func ReadConfig(b []byte) (map[string]string, error) {
	if len(b) > MaxConfig {
		return nil, fmt.Errorf("reading chains-config: %d bytes, more than the %d accepted", len(b), MaxConfig)
	}
	docs := split(b)
	switch len(docs) {
	case 0:
		return map[string]string{}, nil
	case 1:
	default:
		return nil, errors.New("reading chains-config: file holds more than one YAML document")
	}
	var m map[string]any
	if err := yaml.UnmarshalStrict(docs[0], &m); err != nil {
		return nil, fmt.Errorf("reading chains-config: %w", err)
	}
	if kind, ok := m["kind"]; ok {
		if kind != "ConfigMap" {
			return nil, fmt.Errorf("reading chains-config: kind %.100v; want a ConfigMap, or its data alone", kind)
		}
		if m["binaryData"] != nil {
			return nil, errors.New("reading chains-config: has binaryData, where no setting is read from; put it under data")
		}
		data, ok := m["data"].(map[string]any)
		if !ok && m["data"] != nil {
			return nil, errors.New("reading chains-config: data is no map")
		}
		m = data
	}
	out := make(map[string]string, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		s, ok := m[k].(string)
		if !ok {
			return nil, fmt.Errorf("reading chains-config: %.100s is %.100v: values in a ConfigMap are strings, put it in quotes", k, m[k])
		}
		out[k] = s
	}
	return out, nil
}
