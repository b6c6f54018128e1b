package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Spec is a policy configuration as EnterpriseContractPolicy spells it.
type Spec struct {
	Name          string         `json:"name,omitempty"`
	Description   string         `json:"description,omitempty"`
	Sources       []Source       `json:"sources,omitempty"`
	Configuration *Configuration `json:"configuration,omitempty"`
	RekorURL      string         `json:"rekorUrl,omitempty"`
	PublicKey     string         `json:"publicKey,omitempty"`
	Identity      *Identity      `json:"identity,omitempty"`
}

// Source is a group of rules and data that are evaluated together and apart
// from other groups; the results of all groups are added up.
type Source struct {
	Name           string          `json:"name,omitempty"`
	Policy         []string        `json:"policy,omitempty"`
	Data           []string        `json:"data,omitempty"`
	RuleData       map[string]any  `json:"ruleData,omitempty"`
	Config         *SourceConfig   `json:"config,omitempty"`
	VolatileConfig *VolatileConfig `json:"volatileConfig,omitempty"`
}

// SourceConfig says which rules of a source count; see package filter rules in
// the package comment.
type SourceConfig struct {
	Include []string `json:"include,omitempty"`
	Exclude []string `json:"exclude,omitempty"`
}

// Configuration is the old place of SourceConfig, for all sources. It counts
// for a source that has neither config nor an active volatile item.
type Configuration struct {
	Include     []string `json:"include,omitempty"`
	Exclude     []string `json:"exclude,omitempty"`
	Collections []string `json:"collections,omitempty"`
}

// VolatileConfig is a SourceConfig whose items hold for a time or for some
// images only.
type VolatileConfig struct {
	Include []VolatileItem `json:"include,omitempty"`
	Exclude []VolatileItem `json:"exclude,omitempty"`
}

// VolatileItem is one include or exclude item with its bounds, both inclusive.
type VolatileItem struct {
	Value          string   `json:"value"`
	EffectiveOn    string   `json:"effectiveOn,omitempty"`
	EffectiveUntil string   `json:"effectiveUntil,omitempty"`
	ImageRef       string   `json:"imageRef,omitempty"` // the old name of ImageDigest
	ImageDigest    string   `json:"imageDigest,omitempty"`
	ImageURL       string   `json:"imageUrl,omitempty"`
	ComponentNames []string `json:"componentNames,omitempty"`
	Reference      string   `json:"reference,omitempty"`

	on, until time.Time // parsed; zero: unbounded
}

// Identity is the keyless signer a policy asks for.
type Identity struct {
	Subject       string `json:"subject,omitempty"`
	SubjectRegExp string `json:"subjectRegExp,omitempty"`
	Issuer        string `json:"issuer,omitempty"`
	IssuerRegExp  string `json:"issuerRegExp,omitempty"`
}

// resource is a whole EnterpriseContractPolicy object. Metadata and status are
// the API server's and say nothing about the policy.
type resource struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata,omitempty"`
	Spec       *Spec          `json:"spec"`
	Status     map[string]any `json:"status,omitempty"`
}

var digestPattern = regexp.MustCompile(`^sha256:[a-fA-F0-9]{64}$`)

// parseSpec reads a policy configuration, bare or as a whole resource. Unknown
// and repeated fields are errors, and so is all that this package would have to
// ignore.
func parseSpec(raw []byte) (*Spec, error) {
	var head struct {
		APIVersion string `json:"apiVersion"`
	}
	raw, err := oneDocument(raw)
	if err != nil {
		return nil, fmt.Errorf("parsing policy configuration: %w", err)
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, fmt.Errorf("parsing policy configuration: %w", err)
	}
	spec := new(Spec)
	if head.APIVersion != "" {
		r := resource{}
		if err := yaml.UnmarshalStrict(raw, &r); err != nil {
			return nil, fmt.Errorf("parsing policy configuration: %w", err)
		}
		if r.Kind != "EnterpriseContractPolicy" || !strings.HasPrefix(r.APIVersion, "appstudio.redhat.com/") {
			return nil, fmt.Errorf("reading policy configuration: %s %s is not a policy; expected kind EnterpriseContractPolicy of appstudio.redhat.com", r.APIVersion, r.Kind)
		}
		if r.Spec == nil {
			return nil, errors.New("reading policy configuration: the resource has no spec")
		}
		spec = r.Spec
	} else if err := yaml.UnmarshalStrict(raw, spec); err != nil {
		return nil, fmt.Errorf("parsing policy configuration: %w", err)
	}
	return spec, spec.check()
}

func (s *Spec) check() error {
	if len(s.Sources) == 0 {
		return errors.New(`reading policy configuration: it has no sources, so nothing would be checked; add for example "sources: [{policy: [.], data: [.]}]"`)
	}
	if s.Identity != nil && *s.Identity != (Identity{}) {
		return errors.New("reading policy configuration: identity: keyless identities are not checked here; remove the field and name a key")
	}
	if s.RekorURL != "" {
		return errors.New("reading policy configuration: rekorUrl: transparency logs are not checked here; remove the field")
	}
	for i := range s.Sources {
		src := &s.Sources[i]
		if len(src.Policy) == 0 {
			return fmt.Errorf("reading policy configuration: sources[%d] names no policy; add for example \"policy: [.]\"", i)
		}
		if src.VolatileConfig == nil {
			continue
		}
		for what, items := range map[string][]VolatileItem{"include": src.VolatileConfig.Include, "exclude": src.VolatileConfig.Exclude} {
			for j := range items {
				if err := items[j].check(); err != nil {
					return fmt.Errorf("reading policy configuration: sources[%d].volatileConfig.%s[%d]: %w", i, what, j, err)
				}
			}
		}
	}
	return nil
}

// check parses the item's bounds. Upstream skips an item with a bad date; an
// exclusion that silently never ends or never begins is worse than an error.
func (v *VolatileItem) check() (err error) {
	if v.Value == "" {
		return errors.New("value is empty")
	}
	if v.EffectiveOn != "" {
		if v.on, err = parseDay(v.EffectiveOn); err != nil {
			return fmt.Errorf("effectiveOn: %w", err)
		}
	}
	if v.EffectiveUntil != "" {
		if v.until, err = parseDay(v.EffectiveUntil); err != nil {
			return fmt.Errorf("effectiveUntil: %w", err)
		}
	}
	scopes := 0
	for _, d := range []string{v.ImageDigest, v.ImageRef} {
		if d == "" {
			continue
		}
		scopes++
		if !digestPattern.MatchString(d) {
			return fmt.Errorf("image digest %q is not of the form sha256:<64 hex digits>", d)
		}
	}
	if v.ImageURL != "" {
		scopes++
		if strings.Contains(v.ImageURL, "@") {
			return fmt.Errorf("imageUrl %q has a digest; use imageDigest for one image", v.ImageURL)
		}
	}
	if len(v.ComponentNames) > 0 {
		scopes++
	}
	if scopes > 1 {
		return errors.New("more than one of imageDigest, imageRef, imageUrl and componentNames is set; make one item of each")
	}
	return nil
}

// parseDay reads an RFC 3339 time or a plain date, which means its first
// instant in UTC.
func parseDay(s string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return t, nil
	}
	return time.Time{}, fmt.Errorf("%q is neither an RFC 3339 time (2026-06-01T00:00:00Z) nor a date (2026-06-01)", s)
}

// document is the spec as rules see it under input.policy_spec.
func (s *Spec) document() (json.RawMessage, error) {
	raw, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encoding policy configuration: %w", err)
	}
	return raw, nil
}
