package policy

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy/spec"
)

// Fact is one thing that a result says beside its message: which attestation, which
// task, which value.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Facts are the result's terms and details, sorted by name. A value that is no text
// is JSON.
func (r Result) Facts() []Fact {
	var out []Fact
	for _, t := range r.Terms {
		if t != "" {
			out = append(out, Fact{"term", t})
		}
	}
	for _, k := range sortedKeys(r.Details) {
		switch v := r.Details[k].(type) {
		case string:
			out = append(out, Fact{k, v})
		default:
			raw, err := json.Marshal(v)
			if err != nil {
				raw = []byte(fmt.Sprint(v))
			}
			out = append(out, Fact{k, string(raw)})
		}
	}
	return out
}

// Waiver is what excludes the result until a date: an item for each of its terms, or
// one for the rule. With an image (repo@sha256:…) it holds for that image alone. A
// result without a code cannot be excluded, and has none.
func (r Result) Waiver(image string, until time.Time) []spec.VolatileItem {
	if r.Code == "" {
		return nil
	}
	_, digest, _ := strings.Cut(image, "@")
	item := func(value string) spec.VolatileItem {
		return spec.VolatileItem{Value: value, ImageDigest: digest, EffectiveUntil: until.UTC().Format(time.RFC3339)}
	}
	var out []spec.VolatileItem
	for _, t := range r.Terms {
		if t != "" {
			out = append(out, item(r.Code+":"+t))
		}
	}
	if out == nil {
		out = append(out, item(r.Code))
	}
	return out
}

// WaiverYAML is Waiver as it stands in a policy, below a source: volatileConfig with
// exclude. It is empty for a result that has none.
func (r Result) WaiverYAML(image string, until time.Time) string {
	items := r.Waiver(image, until)
	if items == nil {
		return ""
	}
	raw, err := yaml.Marshal(map[string]any{"volatileConfig": spec.VolatileConfig{Exclude: items}})
	if err != nil {
		return ""
	}
	return string(raw)
}
