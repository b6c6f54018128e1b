package conforma

import (
	"encoding/json"
	"errors"
	"fmt"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy/spec"
)

// The configuration is the same as the native engine's; what only that one knows is
// refused by ParseSpec.
type (
	Spec           = spec.Spec
	Source         = spec.Source
	Config         = spec.Config
	Configuration  = spec.Configuration
	VolatileConfig = spec.VolatileConfig
	VolatileItem   = spec.VolatileItem
	Identity       = spec.Identity
)

// ErrNoSources is the error for a policy that would check nothing.
var ErrNoSources = errors.New(`the policy has no sources, so nothing would be checked; add for example "sources: [{policy: [./rules]}]"`)

// errAssay is the error for what only `assay gate` understands.
var errAssay = errors.New(`unknown field "assay": Conforma does not know it; leave it out, or use "assay gate", which does`)

// ParseSpec reads a configuration, JSON or YAML, bare or as a whole resource of any
// kind. It fails on members that the schema does not have and on values of a wrong
// type.
func ParseSpec(raw []byte) (*Spec, error) {
	s, err := parseSpec(raw)
	if err != nil {
		return nil, fmt.Errorf("unable to parse EnterpriseContractPolicySpec: %w", err)
	}
	return s, nil
}

func parseSpec(raw []byte) (*Spec, error) {
	if len(raw) > spec.MaxBytes {
		return nil, fmt.Errorf("it is larger than %d MiB", spec.MaxBytes>>20)
	}
	doc, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		return nil, err
	}
	var head struct {
		APIVersion string          `json:"apiVersion"`
		Spec       json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(doc, &head); err != nil {
		return nil, err
	}
	if head.Spec != nil {
		doc = head.Spec
	} else if head.APIVersion != "" {
		return nil, spec.ErrNoSpec
	}
	s, err := spec.Parse(doc)
	if err != nil {
		return nil, err
	}
	if s.Assay != nil {
		return nil, errAssay
	}
	for i, src := range s.Sources {
		if src.VolatileConfig == nil {
			continue
		}
		for _, items := range [][]VolatileItem{src.VolatileConfig.Include, src.VolatileConfig.Exclude} {
			for _, item := range items {
				if item.Value == "" {
					return nil, fmt.Errorf("sources[%d].volatileConfig has an item without a value", i)
				}
			}
		}
	}
	return s, nil
}

// intentionsOf are the pipeline_intention of a source's rule data, a string or a
// list.
func intentionsOf(s *Source) []string {
	var data struct {
		Intention any `json:"pipeline_intention"`
	}
	if len(s.RuleData) == 0 || json.Unmarshal(s.RuleData, &data) != nil {
		return nil
	}
	return stringsOf(data.Intention)
}

// stringsOf are the strings that v is, or lists.
func stringsOf(v any) []string {
	switch v := v.(type) {
	case string:
		if v != "" {
			return []string{v}
		}
	case []string:
		return v
	case []any:
		var out []string
		for _, x := range v {
			if s, ok := x.(string); ok && s != "" {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

func mapped(list []string, f func(string) string) []string {
	var out []string
	for _, s := range list {
		out = append(out, f(s))
	}
	return out
}
