package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/spec"
)

// Policy is a policy ready to judge: sources read, rules compiled. It is
// immutable and safe for concurrent use. Its zero value refuses to evaluate.
type Policy struct {
	spec     spec.Spec
	document json.RawMessage // spec as rules see it
	signers  *signers        // whom the policy itself asks for; nil: whoever verify trusts
	// publicKey is the policy's key as rules see it.
	publicKey string
	digest    string
	trees     []*source.Tree
	groups    []*group
	allowed   []string // registries that rules may ask beside those at hand
	limits    Limits
	meter     *meter
}

// Load reads a policy: a configuration file, a folder with one (policy.yaml), a
// folder of *.rego beside *.yaml and *.json data, or the configuration itself as
// JSON or YAML text. With Options.Sources it may be in a repository or registry, and
// with Options.Resource in a cluster (k8s://[namespace/]name). Relative sources are
// relative to the configuration, and to the working folder for text.
//
// It fails on unknown fields, sources it cannot read, Rego that does not
// compile (v1 only; http.send, opa.runtime and net.lookup_ip_addr do not
// exist), data that contradicts itself or has dates that are none, two rules with
// one code, annotations it would have to ignore, and on a policy without rules.
func Load(ctx context.Context, path string, opts Options) (*Policy, error) {
	p, err := load(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("loading policy %s: %w", abridged(path), err)
	}
	return p, nil
}

func load(ctx context.Context, path string, opts Options) (*Policy, error) {
	if opts.Builtins == nil {
		var err error
		if opts.Builtins, err = builtin.New(builtin.Options{}); err != nil {
			return nil, err
		}
	}
	r := &resolver{opts: opts}
	base := ""
	if strings.TrimSpace(path) == "" {
		return nil, errors.New("it has no name; name a file or a folder")
	}
	c, err := r.find(ctx, path, base, nil)
	if err != nil {
		return nil, err
	}
	sum := newDigester()
	c.digest(sum)
	s, places := c.flat()
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("reading policy configuration: %w", err)
	}
	flat := *s
	flat.Sources = slices.Clone(s.Sources)
	if err := flat.AddRuleData(opts.RuleData); err != nil {
		return nil, err
	}
	for _, k := range sortedKeys(opts.RuleData) {
		sum.add("rule data", k, []byte(opts.RuleData[k]))
	}
	p := &Policy{spec: flat, trees: r.trees, limits: opts.Limits.withDefaults(), meter: newMeter()}
	if p.document, err = document(&flat); err != nil {
		return nil, err
	}
	keys := keyReader{base: c.base, remote: opts.PublicKey}
	if p.signers, p.publicKey, err = signersOf(ctx, &flat, keys); err != nil {
		return nil, err
	}
	if p.signers != nil {
		sum.add("key", "", []byte(p.signers.digest()))
	}
	extra, err := readExtra(opts.Data)
	if err != nil {
		return nil, err
	}
	for _, f := range extra {
		// By name only: where the file lay does not change what it says.
		sum.add("extra", filepath.Base(f.path), f.bytes)
	}
	functions := opts.Builtins.Topdown()
	rd := &reader{fetcher: opts.Sources}
	if a := flat.Assay; a != nil {
		p.allowed, rd.sums = a.Registries, a.Checksums
		if len(a.SourceSigners) > 0 {
			if rd.signed, err = signedBy(opts, c.spec, a.SourceSigners); err != nil {
				return nil, err
			}
		}
	}
	for i := range flat.Sources {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		g, err := loadGroup(ctx, &flat.Sources[i], rd, places[i].in, extra, sum)
		if err != nil {
			return nil, fmt.Errorf("source %d: %w", i+1, err)
		}
		g.functions, g.number = functions, i+1
		if flat.Assay != nil {
			g.tolerated = flat.Assay.BuiltinErrors
		}
		p.groups = append(p.groups, g)
	}
	p.trees = append(p.trees, rd.trees...)
	p.digest = sum.digest()
	return p, nil
}

// signedBy is how sources are held to assay.sourceSigners. Without Options.Signed it
// is the Fetcher's part, which knows those of the policy itself only.
func signedBy(opts Options, own *spec.Spec, by []spec.Signer) (func(context.Context, *source.Tree) error, error) {
	if opts.Signed != nil {
		return func(ctx context.Context, t *source.Tree) error { return opts.Signed(ctx, t, by) }, nil
	}
	if own.Assay == nil || len(own.Assay.SourceSigners) == 0 {
		return nil, errors.New("assay.sourceSigners stands in a policy that this one extends, and is not looked at there; write it in this one as well")
	}
	return nil, nil
}

// Digest identifies the policy: sha256 over the kinds, relative paths and
// contents of its rules, data, configuration and extra data, sorted. The same
// files in another place have the same digest.
func (p *Policy) Digest() string { return p.digest }

// Name is the name in the configuration, or the folder's.
func (p *Policy) Name() string { return p.spec.Name }

// Spec is the configuration, with what it extends. It is the policy's: do not
// change it.
func (p *Policy) Spec() *spec.Spec { return &p.spec }

// Sources are what the policy was read from, each once, pinned to what it was.
func (p *Policy) Sources() []*source.Tree { return slices.Clone(p.trees) }

// digest adds the configurations as they were read.
func (c *config) digest(sum *digester) {
	if c.raw != nil {
		sum.add("config", "", c.raw)
	}
	for _, b := range c.bases {
		b.digest(sum)
	}
}

func readExtra(paths []string) ([]file, error) {
	var out []file
	for _, path := range paths {
		if !source.IsData(path) {
			return nil, fmt.Errorf("data file %s: not .json, .yaml or .yml", path)
		}
		raw, err := source.ReadFile(path, source.MaxFileBytes)
		if err != nil {
			return nil, fmt.Errorf("reading data file: %w", err)
		}
		out = append(out, file{path: path, bytes: raw})
	}
	return out, nil
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
