package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Options change how a policy is loaded. The zero value is the policy as it
// stands in its folder.
type Options struct {
	// Data names data files (JSON or YAML objects) that every source sees
	// beside its own, such as a generated list of trusted tasks. They count in
	// the policy's digest.
	Data []string
}

// Policy is a policy ready to judge: sources read, rules compiled. It is
// immutable and safe for concurrent use. Its zero value refuses to evaluate.
type Policy struct {
	spec     Spec
	document json.RawMessage // spec as rules see it
	key      *signerKey      // whom the policy itself asks for; nil: whoever verify trusts
	digest   string
	groups   []*group
}

// group is one source, compiled.
type group struct {
	source   *Source
	compiler *ast.Compiler
	data     map[string]ast.Value // top-level keys but config
	config   map[string]any       // data.config as the data files have it
	packs    map[string]*pack
	rules    map[string]*rule
}

// configNames are where a policy folder may keep its configuration.
var configNames = []string{"policy.yaml", "policy.yml", "policy.json"}

// Load reads a policy: a configuration file, a folder with one (policy.yaml),
// or a folder of *.rego beside *.yaml and *.json data. Sources are relative to
// the configuration.
//
// It fails on unknown fields, sources it cannot read, Rego that does not
// compile (v1 only; http.send, opa.runtime and net.lookup_ip_addr do not
// exist), data that contradicts itself, two rules with one code, annotations it
// would have to ignore, and on a policy without rules.
func Load(ctx context.Context, path string, opts Options) (*Policy, error) {
	p, err := load(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("loading policy %s: %w", path, err)
	}
	return p, nil
}

func load(ctx context.Context, path string, opts Options) (*Policy, error) {
	if kind := remote(path); kind != "" {
		return nil, fmt.Errorf("%s policies are not fetched; download it and name the file or folder", kind)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	config := path
	r := &reader{base: filepath.Dir(path)}
	if info.IsDir() {
		r.base = path
		if config, err = findConfig(path); err != nil {
			return nil, err
		}
	}
	sum := newDigester()
	spec := &Spec{Name: filepath.Base(r.base), Sources: []Source{{Policy: []string{"."}, Data: []string{"."}}}}
	if config != "" {
		raw, err := readBounded(config)
		if err != nil {
			return nil, err
		}
		if spec, err = parseSpec(raw); err != nil {
			return nil, err
		}
		if spec.Name == "" {
			spec.Name = filepath.Base(r.base)
		}
		r.skip = config
		sum.add("config", "", raw)
	}
	p := &Policy{spec: *spec}
	if p.document, err = spec.document(); err != nil {
		return nil, err
	}
	if p.key, err = parsePublicKey(spec.PublicKey, r); err != nil {
		return nil, err
	}
	if p.key != nil {
		sum.add("key", "", []byte(p.key.digest))
	}
	extra, err := readExtra(opts.Data)
	if err != nil {
		return nil, err
	}
	for _, f := range extra {
		// By name only: where the file lay does not change what it says.
		sum.add("extra", filepath.Base(f.path), f.bytes)
	}
	for i := range p.spec.Sources {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		g, err := loadGroup(&p.spec.Sources[i], r, extra, sum)
		if err != nil {
			return nil, fmt.Errorf("source %d: %w", i+1, err)
		}
		p.groups = append(p.groups, g)
	}
	p.digest = sum.digest()
	return p, nil
}

// Digest identifies the policy: sha256 over the kinds, relative paths and
// contents of its rules, data, configuration and extra data, sorted. The same
// files in another place have the same digest.
func (p *Policy) Digest() string { return p.digest }

// Name is the name in the configuration, or the folder's.
func (p *Policy) Name() string { return p.spec.Name }

func findConfig(dir string) (string, error) {
	var found []string
	for _, name := range configNames {
		switch _, err := os.Stat(filepath.Join(dir, name)); {
		case err == nil:
			found = append(found, name)
		case !errors.Is(err, os.ErrNotExist):
			return "", err
		}
	}
	if len(found) > 1 {
		return "", fmt.Errorf("folder has more than one configuration (%s); keep one or name the file", strings.Join(found, ", "))
	}
	if len(found) == 0 {
		return "", nil
	}
	return filepath.Join(dir, found[0]), nil
}

func readExtra(paths []string) ([]file, error) {
	var out []file
	for _, path := range paths {
		if !isData(path) {
			return nil, fmt.Errorf("data file %s: not .json, .yaml or .yml", path)
		}
		raw, err := readBounded(path)
		if err != nil {
			return nil, fmt.Errorf("reading data file: %w", err)
		}
		out = append(out, file{path: path, bytes: raw})
	}
	return out, nil
}

func loadGroup(src *Source, r *reader, extra []file, sum *digester) (*group, error) {
	var rego, data []file
	for _, s := range src.Policy {
		files, err := r.read(s, isRego)
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("source %q: no .rego files in it", s)
		}
		rego = append(rego, files...)
	}
	for _, s := range src.Data {
		files, err := r.read(s, isData)
		if err != nil {
			return nil, err
		}
		data = append(data, files...)
	}
	g := &group{source: src}
	tree, err := dataTree(src, append(unique(data), extra...))
	if err != nil {
		return nil, err
	}
	rego = unique(rego)
	modules, err := g.compile(rego, tree)
	if err != nil {
		return nil, err
	}
	if g.packs, g.rules, err = inspect(modules); err != nil {
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
	return slices.CompactFunc(files, func(a, b file) bool { return a.path == b.path })
}

func dataTree(src *Source, files []file) (map[string]any, error) {
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
	ruleData := src.RuleData
	if ruleData == nil {
		ruleData = map[string]any{}
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

// capabilities are OPA's own but for what reaches the network or the machine:
// a policy sees its input, its data and nothing else.
func capabilities() *ast.Capabilities {
	caps := ast.CapabilitiesForThisVersion()
	caps.Builtins = slices.DeleteFunc(caps.Builtins, func(b *ast.Builtin) bool {
		return b.Name == "http.send" || b.Name == "opa.runtime" || b.Name == "net.lookup_ip_addr"
	})
	caps.AllowNet = []string{}
	return caps
}

func (g *group) compile(files []file, tree map[string]any) (map[string]*ast.Module, error) {
	caps := capabilities()
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

// digester collects what a policy consists of.
type digester struct{ lines []string }

func newDigester() *digester { return &digester{} }

func (d *digester) add(kind, path string, content []byte) {
	h := sha256.Sum256(content)
	d.lines = append(d.lines, kind+"\x00"+path+"\x00"+hex.EncodeToString(h[:])+"\n")
}

func (d *digester) digest() string {
	slices.Sort(d.lines)
	h := sha256.Sum256([]byte(strings.Join(slices.Compact(d.lines), "")))
	return "sha256:" + hex.EncodeToString(h[:])
}
