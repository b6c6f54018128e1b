package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Bounds of a configuration. People write them by hand; what is larger is no policy.
const (
	MaxBytes = 4 << 20
	maxDepth = 100
)

// ErrNoSpec is the error for a resource that has no spec.
var ErrNoSpec = errors.New("the resource has no spec")

// resource is a whole EnterpriseContractPolicy object. Metadata and status are the
// API server's and say nothing about the policy.
type resource struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata,omitempty"`
	Spec       *Spec          `json:"spec"`
	Status     map[string]any `json:"status,omitempty"`
}

// Parse reads a configuration, JSON or YAML, bare or as a whole resource. Members
// that are unknown, spelt in another case or given twice are errors that name their
// place, and so are a second document, a value of a wrong type, and what is larger
// or nested deeper than a person writes. What the configuration means is Check's.
func Parse(raw []byte) (*Spec, error) {
	s, err := parse(raw)
	if err != nil {
		return nil, fmt.Errorf("parsing policy configuration: %w", err)
	}
	return s, nil
}

func parse(raw []byte) (*Spec, error) {
	if len(raw) > MaxBytes {
		return nil, fmt.Errorf("it is larger than %d MiB", MaxBytes>>20)
	}
	doc, err := OneDocument(raw)
	if err != nil {
		return nil, err
	}
	if err := shallow(doc); err != nil {
		return nil, err
	}
	var tree map[string]any
	if err := json.Unmarshal(doc, &tree); err != nil || tree == nil {
		return nil, errors.New("it is not an object at its top")
	}
	s := new(Spec)
	if _, whole := tree["apiVersion"]; whole {
		var r resource
		if err := strict(doc, tree, &r); err != nil {
			return nil, err
		}
		if r.Kind != "EnterpriseContractPolicy" || !strings.HasPrefix(r.APIVersion, "appstudio.redhat.com/") {
			return nil, fmt.Errorf("%s %s is not a policy; expected kind EnterpriseContractPolicy of appstudio.redhat.com", r.APIVersion, r.Kind)
		}
		if r.Spec == nil {
			return nil, ErrNoSpec
		}
		s = r.Spec
	} else if err := strict(doc, tree, s); err != nil {
		return nil, err
	}
	for i, src := range s.Sources {
		if len(src.RuleData) > 0 && !bytes.HasPrefix(bytes.TrimSpace(src.RuleData), []byte("{")) {
			if !bytes.Equal(bytes.TrimSpace(src.RuleData), []byte("null")) {
				return nil, fmt.Errorf("sources[%d].ruleData is not an object", i)
			}
			s.Sources[i].RuleData = nil
		}
	}
	return s, nil
}

// OneDocument turns YAML or JSON into JSON. It fails on a second document, which
// the YAML library would drop without a word, and on keys given twice.
func OneDocument(raw []byte) ([]byte, error) {
	content := false
	for line := range bytes.Lines(raw) {
		line = bytes.TrimRight(line, " \t\r\n")
		if bytes.Equal(line, []byte("---")) || bytes.HasPrefix(line, []byte("--- ")) {
			if content {
				return nil, errors.New("more than one YAML document; split the file")
			}
			continue
		}
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			content = true
		}
	}
	return yaml.YAMLToJSONStrict(raw)
}

// shallow refuses what is nested deeper than maxDepth.
func shallow(doc []byte) error {
	dec := json.NewDecoder(bytes.NewReader(doc))
	depth := 0
	for {
		t, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			if depth++; depth > maxDepth {
				return fmt.Errorf("it is nested deeper than %d levels", maxDepth)
			}
		case json.Delim('}'), json.Delim(']'):
			depth--
		}
	}
}

// strict decodes a document that has exactly the members that v has; tree is the
// document. Package json would take other spellings of the case, of which rules would
// not know. A word that YAML takes for a truth value, such as n, is no text: which
// component or package was meant would be lost.
func strict(doc []byte, tree any, v any) error {
	if err := known(tree, reflect.TypeOf(v), ""); err != nil {
		return err
	}
	return json.Unmarshal(doc, v)
}

var rawMessage = reflect.TypeFor[json.RawMessage]()

// known checks the names of members, level by level.
func known(tree any, t reflect.Type, at string) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch v := tree.(type) {
	case map[string]any:
		if t == rawMessage || t.Kind() != reflect.Struct {
			return nil
		}
		names := map[string]reflect.Type{}
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			names[name] = f.Type
		}
		for k, x := range v {
			place := strings.TrimPrefix(at+"."+k, ".")
			ft, ok := names[k]
			if !ok {
				return fmt.Errorf("unknown field %q; known here are %s", place, strings.Join(sorted(names), ", "))
			}
			if err := known(x, ft, place); err != nil {
				return err
			}
		}
	case []any:
		if t == rawMessage || t.Kind() != reflect.Slice {
			return nil
		}
		for i, x := range v {
			if err := known(x, t.Elem(), fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func sorted(m map[string]reflect.Type) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// AddRuleData puts strings at the top of every source's rule data, over what is
// there. It fails on rule data that is no object.
func (s *Spec) AddRuleData(pairs map[string]string) error {
	if len(pairs) == 0 {
		return nil
	}
	for i := range s.Sources {
		data, err := s.Sources[i].ParseRuleData()
		if err != nil {
			return fmt.Errorf("reading ruleData of source %d: %w", i+1, err)
		}
		for k, v := range pairs {
			data[k] = v
		}
		raw, err := json.Marshal(data)
		if err != nil {
			return fmt.Errorf("encoding ruleData of source %d: %w", i+1, err)
		}
		s.Sources[i].RuleData = raw
	}
	return nil
}

// ParseRuleData is the rule data as a map that is the caller's; numbers keep their
// spelling. It fails on rule data that is no object.
func (s *Source) ParseRuleData() (map[string]any, error) {
	data := map[string]any{}
	if len(s.RuleData) == 0 {
		return data, nil
	}
	dec := json.NewDecoder(bytes.NewReader(s.RuleData))
	dec.UseNumber()
	if err := dec.Decode(&data); err != nil {
		return nil, err
	}
	if data == nil {
		data = map[string]any{}
	}
	return data, nil
}
