package pipeline

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
)

// setParams gives a run the parameters of a command line, each NAME=VALUE, over
// its own. How a value is read follows from the declared type: an array is
// a,b,c or a JSON list, an object k:v,k2:v2 or a JSON object, as with tkn. What
// neither the pipeline nor the run declares is an error, except where the
// pipeline is written into the run and may use parameters without declaring
// them; then it is a string.
func setParams(run v1.Params, given []string, declared v1.ParamSpecs, inline bool) (v1.Params, error) {
	out := slices.Clone(run)
	seen := map[string]bool{}
	for _, g := range given {
		name, text, ok := strings.Cut(g, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("parameter %q: write name=value", g)
		}
		if seen[name] {
			return nil, fmt.Errorf("parameter %s is given twice", name)
		}
		seen[name] = true
		kind, known := paramType(name, declared, run)
		if !known && !inline {
			var names []string
			for _, d := range declared {
				names = append(names, d.Name)
			}
			return nil, fmt.Errorf("parameter %s is not declared: there are %s", name, orNone(names))
		}
		value, err := paramValue(text, kind)
		if err != nil {
			return nil, fmt.Errorf("parameter %s: %w", name, err)
		}
		at := slices.IndexFunc(out, func(p v1.Param) bool { return p.Name == name })
		if at < 0 {
			out = append(out, v1.Param{Name: name, Value: *value})
		} else {
			out[at].Value = *value
		}
	}
	return out, nil
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func paramType(name string, declared v1.ParamSpecs, run v1.Params) (v1.ParamType, bool) {
	for _, d := range declared {
		if d.Name != name {
			continue
		}
		switch {
		case d.Type != "":
			return d.Type, true
		case d.Default != nil:
			return d.Default.Type, true
		case d.Properties != nil:
			return v1.ParamTypeObject, true
		}
		return v1.ParamTypeString, true
	}
	for _, p := range run {
		if p.Name == name {
			return p.Value.Type, true
		}
	}
	return v1.ParamTypeString, false
}

func paramValue(text string, kind v1.ParamType) (*v1.ParamValue, error) {
	switch kind {
	case v1.ParamTypeArray:
		list := []string{}
		if strings.HasPrefix(strings.TrimSpace(text), "[") {
			if err := json.Unmarshal([]byte(text), &list); err != nil {
				return nil, fmt.Errorf("reading a JSON list of strings: %w", err)
			}
		} else if text != "" {
			list = strings.Split(text, ",")
		}
		return &v1.ParamValue{Type: v1.ParamTypeArray, ArrayVal: list}, nil
	case v1.ParamTypeObject:
		object := map[string]string{}
		if strings.HasPrefix(strings.TrimSpace(text), "{") {
			if err := json.Unmarshal([]byte(text), &object); err != nil {
				return nil, fmt.Errorf("reading a JSON object of strings: %w", err)
			}
			return v1.NewObject(object), nil
		}
		for _, pair := range strings.Split(text, ",") {
			k, v, ok := strings.Cut(pair, ":")
			if !ok || k == "" {
				return nil, fmt.Errorf("an object is key:value,key:value or JSON, not %q", text)
			}
			object[k] = v
		}
		return v1.NewObject(object), nil
	}
	return &v1.ParamValue{Type: v1.ParamTypeString, StringVal: text}, nil
}
