package policy

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/spec"
)

// Bounds of a chain of extends.
const (
	maxExtends  = 8
	maxPolicies = 32
)

// configNames are where a policy folder may keep its configuration. A folder that
// was fetched may keep it in .ec as well, as Conforma has it.
var (
	configNames  = []string{"policy.yaml", "policy.yml", "policy.json"}
	fetchedNames = []string{".ec/policy.json", ".ec/policy.yaml", ".ec/policy.yml", "policy.json", "policy.yaml", "policy.yml"}
)

// config is a policy configuration and where it was.
type config struct {
	spec *spec.Spec
	// raw is as it was read; nil for a folder without a configuration.
	raw []byte
	// base is the folder that relative addresses in it are relative to, and file the
	// configuration itself, which is no data; empty for one from elsewhere.
	base, file string
	// bases are what it extends.
	bases []*config
}

// resolver finds configurations.
type resolver struct {
	opts  Options
	trees []*source.Tree
	seen  int
}

// find reads the policy at ref, and those that it extends. within are the addresses
// of those that led here.
func (r *resolver) find(ctx context.Context, ref, base string, within []string) (*config, error) {
	if r.seen++; r.seen > maxPolicies {
		return nil, fmt.Errorf("more than %d policies extend each other", maxPolicies)
	}
	c, id, err := r.read(ctx, ref, base)
	if err != nil {
		return nil, err
	}
	if slices.Contains(within, id) {
		return nil, fmt.Errorf("it extends itself: %s → %s", strings.Join(within, " → "), id)
	}
	if c.spec.Assay == nil || len(c.spec.Assay.Extends) == 0 {
		return c, nil
	}
	if within = append(slices.Clone(within), id); len(within) > maxExtends {
		return nil, fmt.Errorf("extends is nested deeper than %d levels: %s", maxExtends, strings.Join(within, " → "))
	}
	for _, e := range c.spec.Assay.Extends {
		b, err := r.find(ctx, e, c.base, within)
		if err != nil {
			return nil, fmt.Errorf("extending %s: %w", abridged(e), err)
		}
		c.bases = append(c.bases, b)
	}
	return c, nil
}

// abridged is an address as messages have it: an inline policy is long.
func abridged(ref string) string {
	if isInline(ref) {
		return "inline policy"
	}
	return ref
}

// isInline says whether a reference is the policy itself, JSON or YAML.
func isInline(ref string) bool {
	return strings.HasPrefix(strings.TrimSpace(ref), "{") || strings.Contains(ref, "\n")
}

// read reads one configuration. Its id is the same for the same one.
func (r *resolver) read(ctx context.Context, ref, base string) (c *config, id string, err error) {
	if name, ok := strings.CutPrefix(ref, "k8s://"); ok {
		if r.opts.Resource == nil {
			return nil, "", errors.New("policies of clusters are not read here; save it (kubectl get … -o yaml) and name the file")
		}
		raw, err := r.opts.Resource(ctx, name)
		if err != nil {
			return nil, "", err
		}
		c, err = parsed(raw, "", "policy")
		return c, ref, err
	}
	if isInline(ref) {
		c, err = parsed([]byte(ref), base, "policy")
		return c, ref, err
	}
	kind, err := source.Local{Base: base}.Kind(ref)
	if err != nil {
		return nil, "", err
	}
	p, names := "", fetchedNames
	if kind == source.File {
		if p, err = localPath(base, ref); err != nil {
			return nil, "", err
		}
		id, names = p, configNames
	} else {
		if r.opts.Sources == nil {
			return nil, "", fmt.Errorf("%s policies are not fetched here; download it and name the file or folder", kind)
		}
		tree, err := r.opts.Sources.Fetch(ctx, ref)
		if err != nil {
			return nil, "", err
		}
		r.trees = append(r.trees, tree)
		p, id = tree.Path, tree.Pinned
	}
	info, err := os.Stat(p)
	if err != nil {
		return nil, "", err
	}
	file := p
	if info.IsDir() {
		base = p
		if file, err = findConfig(p, names, kind == source.File); err != nil {
			return nil, "", err
		}
		if file == "" && kind != source.File {
			return nil, "", fmt.Errorf("%s has no policy configuration; it would be one of %s", ref, strings.Join(names, ", "))
		}
	} else {
		base = filepath.Dir(p)
	}
	name := filepath.Base(base)
	if file == "" {
		return &config{base: base, spec: &spec.Spec{Name: name, Sources: []spec.Source{{Policy: []string{"."}, Data: []string{"."}}}}}, id, nil
	}
	raw, err := source.ReadFile(file, spec.MaxBytes)
	if err != nil {
		return nil, "", err
	}
	if c, err = parsed(raw, base, name); err != nil {
		return nil, "", err
	}
	c.file = file
	return c, id, nil
}

func parsed(raw []byte, base, name string) (*config, error) {
	s, err := spec.Parse(raw)
	if err != nil {
		return nil, err
	}
	if s.Name == "" {
		s.Name = name
	}
	return &config{spec: s, raw: raw, base: base}, nil
}

// localPath is the path of a local address, without a prefix such as file::.
func localPath(base, address string) (string, error) {
	p := strings.TrimPrefix(strings.TrimPrefix(address, "file::"), "file://")
	if rest, ok := strings.CutPrefix(p, "~/"); ok {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("locating %q: %w", address, err)
		}
		return filepath.Join(home, rest), nil
	}
	if filepath.IsAbs(p) {
		return p, nil
	}
	return filepath.Join(base, p), nil
}

func findConfig(dir string, names []string, one bool) (string, error) {
	var found []string
	for _, name := range names {
		switch _, err := os.Stat(filepath.Join(dir, name)); {
		case err == nil:
			found = append(found, name)
		case !errors.Is(err, os.ErrNotExist):
			return "", err
		}
	}
	if len(found) > 1 && one {
		return "", fmt.Errorf("folder has more than one configuration (%s); keep one or name the file", strings.Join(found, ", "))
	}
	if len(found) == 0 {
		return "", nil
	}
	return filepath.Join(dir, found[0]), nil
}

// flat is the policy that a configuration and those it extends come to. Addresses
// in it are what its Fetcher takes, whatever folder they were relative to: place
// tells which.
func (c *config) flat() (*spec.Spec, []place) {
	own := make([]place, len(c.spec.Sources))
	for i := range own {
		own[i] = place{c, c.spec.Sources[i].Policy, c.spec.Sources[i].Data}
	}
	if len(c.bases) == 0 {
		return c.spec, own
	}
	var base *spec.Spec
	var places []place
	for _, b := range c.bases {
		s, p := b.flat()
		base, places = overlay(base, places, s, p)
	}
	s, places := overlay(base, places, c.spec, own)
	return s, places
}

// place says which configuration the addresses of a source stand in.
type place struct {
	in           *config
	policy, data []string
}

// overlay puts one policy on another, and the places of their sources alike.
func overlay(base *spec.Spec, basePlaces []place, over *spec.Spec, overPlaces []place) (*spec.Spec, []place) {
	if base == nil {
		return over, overPlaces
	}
	out, from := spec.Overlay(base, over)
	places := make([]place, len(out.Sources))
	for i, f := range from {
		var p place
		if f.Base >= 0 {
			p = basePlaces[f.Base]
		}
		if f.Over >= 0 {
			o := overPlaces[f.Over]
			if f.Base < 0 {
				p = o
			}
			// Addresses that the overlay replaces are relative to it; a source with
			// some of each is of the overlay, and the others are made absolute.
			if f.Base >= 0 && (len(o.policy) > 0 || len(o.data) > 0) {
				p = mixed(p, o)
			}
		}
		places[i] = p
		out.Sources[i].Policy, out.Sources[i].Data = p.policy, p.data
	}
	return out, places
}

// mixed is a base's source with what an overlay's source replaces of it.
func mixed(base, over place) place {
	out := place{in: over.in, policy: over.policy, data: over.data}
	if len(out.policy) == 0 {
		out.policy = absolute(base.in, base.policy)
	}
	if len(out.data) == 0 {
		out.data = absolute(base.in, base.data)
	}
	return out
}

func absolute(c *config, addresses []string) []string {
	var out []string
	for _, a := range addresses {
		if kind, err := (source.Local{Base: c.base}).Kind(a); err == nil && kind == source.File {
			if p, err := localPath(c.base, a); err == nil {
				a = p
			}
		}
		out = append(out, a)
	}
	return out
}
