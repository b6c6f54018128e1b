package spec

import (
	"encoding/json"
	"maps"
	"slices"
)

// From says where a source of an overlaid policy is from: its number in the base
// and in what lies over it, -1 where it is not there.
type From struct{ Base, Over int }

// Overlay is one policy put on another. The base's sources come first; a source over
// it that has the name of one of them changes that one, others are added. What is
// set over the base wins:
//
//   - name, description, keys, identity, rekorUrl, configuration and the members of
//     assay replace those of the base;
//   - of a source of the same name, policy, data, config.include and config.exclude
//     replace the base's list, ruleData replaces it key by key, and the items of
//     volatileConfig are added: they have their own ends.
//
// extends itself is not handed on. Neither policy is changed.
func Overlay(base, over *Spec) (*Spec, []From) {
	out := *base
	set := func(to *string, v string) {
		if v != "" {
			*to = v
		}
	}
	set(&out.Name, over.Name)
	set(&out.Description, over.Description)
	set(&out.RekorURL, over.RekorURL)
	// A key and an identity are two answers to one question.
	signers := over.Assay != nil && over.Assay.Signers != nil
	if over.PublicKey != "" || over.Identity != nil || signers {
		out.PublicKey, out.Identity = over.PublicKey, over.Identity
	}
	if over.Configuration != nil {
		out.Configuration = over.Configuration
	}
	out.Assay = additions(base.Assay, over)
	out.Sources = nil
	var from []From
	for i := range base.Sources {
		out.Sources = append(out.Sources, base.Sources[i])
		from = append(from, From{i, -1})
	}
	for i := range over.Sources {
		o := &over.Sources[i]
		at := -1
		if o.Name != "" {
			at = slices.IndexFunc(base.Sources, func(s Source) bool { return s.Name == o.Name })
		}
		if at < 0 {
			out.Sources = append(out.Sources, *o)
			from = append(from, From{-1, i})
			continue
		}
		from[at].Over = i
		out.Sources[at] = source(out.Sources[at], o)
	}
	return &out, from
}

func additions(base *Additions, over *Spec) *Additions {
	if base == nil && over.Assay == nil {
		return nil
	}
	out, o := Additions{}, Additions{}
	if base != nil {
		out = *base
	}
	if over.Assay != nil {
		o = *over.Assay
	}
	out.Extends = nil
	switch {
	case o.Signers != nil:
		out.Signers = o.Signers
	case over.PublicKey != "" || over.Identity != nil:
		out.Signers = nil
	}
	if o.Registries != nil {
		out.Registries = o.Registries
	}
	if o.Checksums != nil {
		out.Checksums = maps.Clone(out.Checksums)
		if out.Checksums == nil {
			out.Checksums = map[string]string{}
		}
		maps.Copy(out.Checksums, o.Checksums)
	}
	if o.BuiltinErrors != nil {
		out.BuiltinErrors = o.BuiltinErrors
	}
	if o.SourceSigners != nil {
		out.SourceSigners = o.SourceSigners
	}
	return &out
}

func source(base Source, over *Source) Source {
	if over.Policy != nil {
		base.Policy = over.Policy
	}
	if over.Data != nil {
		base.Data = over.Data
	}
	base.RuleData = ruleData(base, over)
	if over.Config != nil {
		c := Config{}
		if base.Config != nil {
			c = *base.Config
		}
		if over.Config.Include != nil {
			c.Include = over.Config.Include
		}
		if over.Config.Exclude != nil {
			c.Exclude = over.Config.Exclude
		}
		base.Config = &c
	}
	if over.VolatileConfig != nil {
		v := VolatileConfig{}
		if base.VolatileConfig != nil {
			v = *base.VolatileConfig
		}
		v.Include = slices.Concat(v.Include, over.VolatileConfig.Include)
		v.Exclude = slices.Concat(v.Exclude, over.VolatileConfig.Exclude)
		base.VolatileConfig = &v
	}
	return base
}

// ruleData merges by key. What is no object is left for the reader of rule data to
// refuse.
func ruleData(base Source, over *Source) json.RawMessage {
	if len(over.RuleData) == 0 || len(base.RuleData) == 0 {
		return slices.Concat(base.RuleData, over.RuleData)
	}
	b, err := base.ParseRuleData()
	if err != nil {
		return base.RuleData
	}
	o, err := over.ParseRuleData()
	if err != nil {
		return over.RuleData
	}
	maps.Copy(b, o)
	raw, err := json.Marshal(b)
	if err != nil {
		return over.RuleData
	}
	return raw
}
