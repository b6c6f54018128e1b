package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/cache"

	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/spec"
)

// group is one source, compiled.
type group struct {
	number    int
	source    *spec.Source
	scoped    scoped
	compiler  *ast.Compiler
	functions map[string]*topdown.Builtin
	values    cache.InterQueryValueCache
	tolerated []string             // functions whose errors are undefined
	data      map[string]ast.Value // top-level keys but config
	config    map[string]any       // data.config as the data files have it
	packs     map[string]*pack
	rules     map[string]*rule
	all       []*rule // tracked or not, as they stand in the files

	prepared sync.Map // names of packages → func() (*prepared, error)
}

func loadGroup(ctx context.Context, src *spec.Source, r *reader, in *config, extra []file, sum *digester) (*group, error) {
	var rego, data []file
	for _, s := range src.Policy {
		files, err := r.read(ctx, in, s, source.IsRego)
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("source %q: no .rego files in it", s)
		}
		rego = append(rego, files...)
	}
	for _, s := range src.Data {
		files, err := r.read(ctx, in, s, source.IsData)
		if err != nil {
			return nil, err
		}
		data = append(data, files...)
	}
	g := &group{source: src, values: builtin.Values()}
	var err error
	if g.scoped, err = scopedOf(src.VolatileConfig); err != nil {
		return nil, err
	}
	tree, err := dataTree(src, append(unique(data), extra...))
	if err != nil {
		return nil, err
	}
	if err := checkDates(tree); err != nil {
		return nil, err
	}
	rego = unique(rego)
	modules, err := g.compile(rego, tree)
	if err != nil {
		return nil, err
	}
	if err := g.inspect(modules); err != nil {
		return nil, err
	}
	judges := false
	for _, p := range g.packs {
		for _, k := range p.rules {
			judges = judges || k != note
		}
	}
	if !judges {
		return nil, errors.New("it has no deny, violation or warn rule, so nothing would be checked")
	}
	for _, f := range rego {
		sum.add("policy", f.path, f.bytes)
	}
	for _, f := range data {
		sum.add("data", f.path, f.bytes)
	}
	return g, g.setData(tree)
}

// unique drops files that two sources name.
func unique(files []file) []file {
	slices.SortStableFunc(files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	return slices.CompactFunc(files, func(a, b file) bool { return a.abs == b.abs })
}

func dataTree(src *spec.Source, files []file) (map[string]any, error) {
	tree := map[string]any{}
	for _, f := range files {
		m, err := parseData(f)
		if err != nil {
			return nil, err
		}
		if err := merge(tree, m, "data."); err != nil {
			return nil, fmt.Errorf("merging data file %s: %w; a key can have one value only", f.path, err)
		}
	}
	if _, ok := tree["rule_data__configuration__"]; ok {
		return nil, errors.New("merging data: data.rule_data__configuration__ is ruleData's; write it there")
	}
	ruleData, err := src.ParseRuleData()
	if err != nil {
		return nil, fmt.Errorf("reading ruleData: %w", err)
	}
	tree["rule_data__configuration__"] = ruleData
	if config, ok := tree["config"]; ok {
		m, isMap := config.(map[string]any)
		if !isMap {
			return nil, errors.New("merging data: data.config is not an object")
		}
		for _, k := range []string{"policy", "default_sigstore_opts"} {
			if _, ok := m[k]; ok {
				return nil, fmt.Errorf("merging data: data.config.%s is set by the evaluation and cannot be given", k)
			}
		}
	}
	return tree, nil
}

func (g *group) compile(files []file, tree map[string]any) (map[string]*ast.Module, error) {
	caps := builtin.Capabilities()
	modules := map[string]*ast.Module{}
	for _, f := range files {
		m, err := ast.ParseModuleWithOpts(f.path, string(f.bytes), ast.ParserOptions{
			ProcessAnnotation: true,
			RegoVersion:       ast.RegoV1,
			Capabilities:      caps,
		})
		if err != nil {
			return nil, fmt.Errorf("parsing rules: %w", err)
		}
		if m == nil {
			return nil, fmt.Errorf("parsing rules: %s is empty", f.path)
		}
		modules[f.path] = m
	}
	c := ast.NewCompiler().
		WithCapabilities(caps).
		WithPathConflictsCheck(func(path []string) (bool, error) { return exists(tree, path), nil })
	c.Compile(modules)
	if c.Failed() {
		return nil, fmt.Errorf("compiling rules: %w", c.Errors)
	}
	g.compiler = c
	return modules, nil
}

// exists says whether data has a value at path, which a rule there would hide.
func exists(tree map[string]any, path []string) bool {
	var v any = tree
	for _, k := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return false
		}
		if v, ok = m[k]; !ok {
			return false
		}
	}
	return true
}

func (g *group) setData(tree map[string]any) error {
	g.config, _ = tree["config"].(map[string]any)
	delete(tree, "config")
	g.data = map[string]ast.Value{}
	for k, v := range tree {
		value, err := ast.InterfaceToValue(v)
		if err != nil {
			return fmt.Errorf("reading data.%s: %w", k, err)
		}
		g.data[k] = value
	}
	return nil
}
