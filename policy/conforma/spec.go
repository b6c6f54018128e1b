package conforma

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

// Spec is a policy configuration, EnterpriseContractPolicy's spec. As JSON it is
// what reports and rules see.
type Spec struct {
	Name          string         `json:"name,omitempty"`
	Description   string         `json:"description,omitempty"`
	Sources       []Source       `json:"sources,omitempty"`
	Configuration *Configuration `json:"configuration,omitempty"`
	RekorURL      string         `json:"rekorUrl,omitempty"`
	PublicKey     string         `json:"publicKey,omitempty"`
	Identity      *Identity      `json:"identity,omitempty"`
}

// Source is one group of rules and data.
type Source struct {
	Name           string          `json:"name,omitempty"`
	Policy         []string        `json:"policy,omitempty"`
	Data           []string        `json:"data,omitempty"`
	RuleData       json.RawMessage `json:"ruleData,omitempty"`
	Config         *Config         `json:"config,omitempty"`
	VolatileConfig *VolatileConfig `json:"volatileConfig,omitempty"`
}

// Config says which rules of a source count.
type Config struct {
	Exclude []string `json:"exclude,omitempty"`
	Include []string `json:"include,omitempty"`
}

// Configuration is the old place of Config, for all sources.
type Configuration struct {
	Exclude     []string `json:"exclude,omitempty"`
	Include     []string `json:"include,omitempty"`
	Collections []string `json:"collections,omitempty"`
}

// VolatileConfig is a Config whose items hold for a time or for some images.
type VolatileConfig struct {
	Exclude []VolatileItem `json:"exclude,omitempty"`
	Include []VolatileItem `json:"include,omitempty"`
}

// VolatileItem is one of its items. Both bounds are inclusive.
type VolatileItem struct {
	Value          string   `json:"value"`
	EffectiveOn    string   `json:"effectiveOn,omitempty"`
	EffectiveUntil string   `json:"effectiveUntil,omitempty"`
	ImageRef       string   `json:"imageRef,omitempty"` // the old name of ImageDigest
	ImageURL       string   `json:"imageUrl,omitempty"`
	ImageDigest    string   `json:"imageDigest,omitempty"`
	ComponentNames []string `json:"componentNames,omitempty"`
	Reference      string   `json:"reference,omitempty"`
}

// Identity is who has to have signed, where no key is named.
type Identity struct {
	Subject       string `json:"subject,omitempty"`
	SubjectRegExp string `json:"subjectRegExp,omitempty"`
	Issuer        string `json:"issuer,omitempty"`
	IssuerRegExp  string `json:"issuerRegExp,omitempty"`
}

// ErrNoSources is the error for a policy that would check nothing.
var ErrNoSources = errors.New(`the policy has no sources, so nothing would be checked; add for example "sources: [{policy: [./rules]}]"`)

// ParseSpec reads a configuration, JSON or YAML, bare or as a whole resource. It
// fails on members that the schema does not have and on values of a wrong type.
func ParseSpec(raw []byte) (*Spec, error) {
	doc, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		return nil, fmt.Errorf("unable to parse EnterpriseContractPolicySpec: %w", err)
	}
	var head struct {
		APIVersion string          `json:"apiVersion"`
		Spec       json.RawMessage `json:"spec"`
	}
	if err := json.Unmarshal(doc, &head); err != nil {
		return nil, fmt.Errorf("unable to parse EnterpriseContractPolicySpec: %w", err)
	}
	if head.Spec != nil {
		doc = head.Spec
	} else if head.APIVersion != "" {
		return nil, errors.New("unable to parse EnterpriseContractPolicySpec: the resource has no spec")
	}
	spec := new(Spec)
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	if err := dec.Decode(spec); err != nil {
		return nil, fmt.Errorf("the policy configuration does not have the form of an EnterpriseContractPolicySpec: %w", err)
	}
	for i, s := range spec.Sources {
		if len(s.RuleData) > 0 && !bytes.HasPrefix(bytes.TrimSpace(s.RuleData), []byte("{")) {
			return nil, fmt.Errorf("the policy configuration does not have the form of an EnterpriseContractPolicySpec: sources[%d].ruleData is not an object", i)
		}
		if s.VolatileConfig == nil {
			continue
		}
		for _, items := range [][]VolatileItem{s.VolatileConfig.Include, s.VolatileConfig.Exclude} {
			for _, item := range items {
				if item.Value == "" {
					return nil, fmt.Errorf("the policy configuration does not have the form of an EnterpriseContractPolicySpec: sources[%d].volatileConfig has an item without a value", i)
				}
			}
		}
	}
	return spec, nil
}

// AddRuleData puts strings at the top of every source's rule data, over what is
// there. Pairs are key=value.
func (s *Spec) AddRuleData(pairs map[string]string) error {
	if len(pairs) == 0 {
		return nil
	}
	for i := range s.Sources {
		data := map[string]any{}
		if raw := s.Sources[i].RuleData; len(raw) > 0 {
			dec := json.NewDecoder(bytes.NewReader(raw))
			dec.UseNumber()
			if err := dec.Decode(&data); err != nil {
				return fmt.Errorf("reading ruleData of source %d: %w", i+1, err)
			}
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

// intentions are the pipeline_intention of a source's rule data, a string or a
// list.
func (s *Source) intentions() []string {
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

// pinned is a source's address as reports of images show it.
func pinned(source string) string {
	if strings.HasPrefix(source, "file::") {
		return source
	}
	return "file::" + source
}

// Pinned is the configuration with each source's address as it was read.
func (s *Spec) Pinned() *Spec {
	out := *s
	out.Sources = nil
	for _, src := range s.Sources {
		src.Policy = mapped(src.Policy, pinned)
		src.Data = mapped(src.Data, pinned)
		out.Sources = append(out.Sources, src)
	}
	return &out
}

func mapped(list []string, f func(string) string) []string {
	var out []string
	for _, s := range list {
		out = append(out, f(s))
	}
	return out
}
