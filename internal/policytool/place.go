package policytool

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"assay.dev/assay/policy"
)

// places knows where things stand in the configurations of a policy.
type places struct{ files []configFile }

type configFile struct {
	policy.File
	nodes []placed
}

// placed is one value of a configuration.
type placed struct {
	path         string // sources[0].config.include[1]
	value        string
	line, column int
}

// placesIn reads configurations. What is no YAML has no places.
func placesIn(configs []policy.File, name string) *places {
	p := &places{}
	for _, c := range configs {
		if c.Path == "" {
			c.Path = name
		}
		f := configFile{File: c}
		var doc yaml.Node
		if yaml.Unmarshal(c.Bytes, &doc) == nil && len(doc.Content) > 0 {
			root := doc.Content[0]
			// The whole resource has the configuration below spec.
			for i := 0; root.Kind == yaml.MappingNode && i+1 < len(root.Content); i += 2 {
				if root.Content[i].Value == "spec" {
					root = root.Content[i+1]
					break
				}
			}
			f.walk(root, "", 0)
		}
		p.files = append(p.files, f)
	}
	return p
}

// maxPlaceDepth bounds how deep a configuration is looked into: aliases may make a
// circle.
const maxPlaceDepth = 50

func (f *configFile) walk(n *yaml.Node, path string, depth int) {
	if depth > maxPlaceDepth || len(f.nodes) > 100_000 {
		return
	}
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			k, v := n.Content[i], n.Content[i+1]
			at := strings.TrimPrefix(path+"."+k.Value, ".")
			// The key's place stands for what is below it.
			if v.Kind != yaml.ScalarNode {
				f.nodes = append(f.nodes, placed{at, "", k.Line, k.Column})
			}
			f.walk(v, at, depth+1)
			if v.Kind == yaml.ScalarNode {
				last := &f.nodes[len(f.nodes)-1]
				last.line, last.column = k.Line, k.Column
			}
		}
	case yaml.SequenceNode:
		for i, v := range n.Content {
			f.walk(v, fmt.Sprintf("%s[%d]", path, i), depth+1)
		}
	case yaml.ScalarNode:
		f.nodes = append(f.nodes, placed{path, n.Value, n.Line, n.Column})
	case yaml.AliasNode:
		f.walk(n.Alias, path, depth+1)
	}
}

// item places an include or exclude item of a source: list is config.include,
// volatileConfig.exclude and so on.
func (p *places) item(f Finding, source int, list, value string) Finding {
	own := fmt.Sprintf("sources[%d].%s[", source-1, list)
	if source == 0 {
		own = list + "["
	}
	for _, prefix := range []string{own, "." + list + "["} {
		for i := range p.files {
			for _, n := range p.files[i].nodes {
				if n.value == value && (strings.HasPrefix(n.path, own) || prefix != own && strings.Contains(n.path, prefix)) {
					return f.at(p.files[i].Path, p.files[i].Bytes, n.line, n.column)
				}
			}
		}
	}
	return p.file(f)
}

// file places a finding in the policy's own configuration, if it has one.
func (p *places) file(f Finding) Finding {
	if len(p.files) > 0 {
		f.File = p.files[0].Path
	}
	return f
}

// pathIn finds paths of fields, and yamlLine lines, in messages about configurations.
var (
	pathIn   = regexp.MustCompile(`(?:unknown field "|^|[ :"])((?:sources|configuration|identity|assay|publicKey|rekorUrl|name|spec)[A-Za-z0-9_.\[\]]*)`)
	yamlLine = regexp.MustCompile(`line (\d+)`)
)

// message places a finding by what it says.
func (p *places) message(f Finding) Finding {
	if len(p.files) == 0 {
		return f
	}
	if m := yamlLine.FindStringSubmatch(f.Message); m != nil && strings.Contains(f.Message, "yaml: ") {
		if n, err := strconv.Atoi(m[1]); err == nil {
			return f.at(p.files[0].Path, p.files[0].Bytes, n, 0)
		}
	}
	for _, m := range pathIn.FindAllStringSubmatch(f.Message, -1) {
		path := strings.TrimPrefix(strings.TrimRight(m[1], "."), "spec.")
		for ; path != ""; path = parent(path) {
			for i := range p.files {
				for _, n := range p.files[i].nodes {
					if n.path == path {
						return f.at(p.files[i].Path, p.files[i].Bytes, n.line, n.column)
					}
				}
			}
		}
	}
	return p.file(f)
}

// parent is the path that a path is below.
func parent(path string) string {
	i := strings.LastIndexAny(path, ".[")
	if i < 0 {
		return ""
	}
	return path[:i]
}

func sortedNames[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
