package gate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/attest/strictjson"
	"assay.dev/assay/policy"
)

// Bounds of what names images.
const (
	MaxSnapshot   = 32 << 20 // bytes of a snapshot, as JSON
	maxComponents = 100_000
)

// ParseSnapshot reads what names images: a Snapshot (the resource, or its spec
// alone) as JSON or YAML, a list of references or of components, or one reference
// a line (blank lines and lines that begin with # do not count). It fails on
// duplicate members, on a resource of another kind, and on what Complete refuses.
func ParseSnapshot(raw []byte) (*policy.Snapshot, error) {
	s, err := parseSnapshot(raw)
	if err == nil {
		err = Complete(s)
	}
	if err != nil {
		return nil, fmt.Errorf("reading snapshot: %w", err)
	}
	return s, nil
}

func parseSnapshot(raw []byte) (*policy.Snapshot, error) {
	if len(raw) > MaxSnapshot {
		return nil, fmt.Errorf("larger than %d MiB", MaxSnapshot>>20)
	}
	text := bytes.TrimSpace(raw)
	if len(text) == 0 {
		return nil, errors.New("it is empty, so nothing would be checked")
	}
	doc := text
	if text[0] != '{' && text[0] != '[' {
		if lines, ok := plainList(text); ok {
			return lines, nil
		}
		var err error
		if doc, err = yaml.YAMLToJSONStrict(text); err != nil {
			return nil, fmt.Errorf("neither JSON, YAML nor one reference a line: %w", err)
		}
	}
	if err := strictjson.Check(doc, MaxSnapshot); err != nil {
		return nil, err
	}
	if list, err := strictjson.Array(doc); err == nil {
		return fromList(list)
	}
	m, err := strictjson.Object(doc)
	if err != nil {
		return nil, errors.New("want a Snapshot, a list of references, or one reference a line")
	}
	if m["apiVersion"] != nil || m["kind"] != nil {
		if kind, err := strictjson.String(m["kind"]); err != nil || kind != "Snapshot" {
			return nil, fmt.Errorf("the resource is of kind %q; want Snapshot", kind)
		}
		doc = m["spec"]
		if m, err = strictjson.Object(doc); err != nil {
			return nil, errors.New("the Snapshot has no spec")
		}
	} else if spec, err := strictjson.Object(m["spec"]); err == nil && m["components"] == nil {
		doc, m = m["spec"], spec
	}
	if m["components"] == nil {
		return nil, errors.New("it has no components, so nothing would be checked")
	}
	s := new(policy.Snapshot)
	if err := json.Unmarshal(doc, s); err != nil {
		return nil, err
	}
	return s, nil
}

// plainList reads one reference a line. A line that could not be one says that
// this is something else.
func plainList(text []byte) (*policy.Snapshot, bool) {
	s := new(policy.Snapshot)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if _, err := name.ParseReference(line); err != nil || strings.HasSuffix(line, ":") {
			return nil, false
		}
		s.Components = append(s.Components, policy.Component{ContainerImage: line})
	}
	return s, true
}

func fromList(list []json.RawMessage) (*policy.Snapshot, error) {
	s := new(policy.Snapshot)
	for i, raw := range list {
		var c policy.Component
		if ref, err := strictjson.String(raw); err == nil {
			c.ContainerImage = ref
		} else if _, err := strictjson.Object(raw); err != nil {
			return nil, fmt.Errorf("item %d is neither a reference nor a component", i+1)
		} else if err := json.Unmarshal(raw, &c); err != nil {
			return nil, fmt.Errorf("item %d: %w", i+1, err)
		}
		s.Components = append(s.Components, c)
	}
	return s, nil
}

// Complete checks a snapshot and names the components that nobody named, after
// their repository. It fails on one without components, on a component without an
// image and on two of one name: an exception that names it would hold for both.
func Complete(s *policy.Snapshot) error {
	if len(s.Components) == 0 {
		return errors.New("it has no components, so nothing would be checked")
	}
	if len(s.Components) > maxComponents {
		return fmt.Errorf("it has %d components, at most %d are judged", len(s.Components), maxComponents)
	}
	names := map[string]int{}
	for i, c := range s.Components {
		switch {
		case c.ContainerImage == "" && c.Name == "":
			return fmt.Errorf("component %d has no containerImage", i+1)
		case c.ContainerImage == "":
			return fmt.Errorf("component %q has no containerImage", c.Name)
		case c.Name == "":
			continue
		}
		if first, ok := names[c.Name]; ok {
			return fmt.Errorf("components %d and %d are both named %q; an exception for that name would hold for both: give each a name of its own", first, i+1, c.Name)
		}
		names[c.Name] = i + 1
	}
	for i := range s.Components {
		c := &s.Components[i]
		if c.Name != "" {
			continue
		}
		base := nameOf(c.ContainerImage)
		c.Name = base
		for n := 2; names[c.Name] != 0; n++ {
			c.Name = fmt.Sprintf("%s-%d", base, n)
		}
		names[c.Name] = i + 1
	}
	return nil
}

// References makes a snapshot of references alone. It fails as Complete does.
func References(refs []string) (*policy.Snapshot, error) {
	s := new(policy.Snapshot)
	for _, r := range slices.Clone(refs) {
		s.Components = append(s.Components, policy.Component{ContainerImage: r})
	}
	return s, Complete(s)
}
