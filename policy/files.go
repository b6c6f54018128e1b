package policy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/spec"
)

// Files are what a policy is made of, read and neither compiled nor judged: for tools
// that say what is wrong with a policy, which Load does by the first thing only.
type Files struct {
	// Spec is the configuration, with what it extends.
	Spec *spec.Spec
	// Configs are the configurations as they were read, the policy's own first, then
	// those it extends. A folder of rules without one has none.
	Configs []File
	// Sources are the trees that were read, each once.
	Sources []*source.Tree
	Groups  []SourceFiles
}

// SourceFiles are the files of one source.
type SourceFiles struct {
	// Number is that of the source in the policy, from 1.
	Number int
	Source *spec.Source
	Rules  []File
	Data   []File
	// Err is why they could not be read, or not all.
	Err error
}

// File is one file of a policy. Path is as the policy's digest has it.
type File struct {
	Path  string
	Bytes []byte
}

// ReadFiles reads the files of a policy that Load would read, which has the same
// arguments. It fails where the configuration, or one that it extends, cannot be read
// or means nothing; a source that cannot be read is told in its Err.
func ReadFiles(ctx context.Context, path string, opts Options) (*Files, error) {
	out, err := readFiles(ctx, path, opts)
	if err != nil {
		return nil, fmt.Errorf("reading policy %s: %w", abridged(path), err)
	}
	return out, nil
}

func readFiles(ctx context.Context, path string, opts Options) (*Files, error) {
	r := &resolver{opts: opts}
	c, err := r.find(ctx, path, "", nil)
	if err != nil {
		return nil, err
	}
	s, places := c.flat()
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("reading policy configuration: %w", err)
	}
	out := &Files{Spec: s}
	c.list(&out.Configs)
	extra, err := readExtra(opts.Data)
	if err != nil {
		return nil, err
	}
	rd := &reader{fetcher: opts.Sources}
	for i := range s.Sources {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		src := &s.Sources[i]
		g := SourceFiles{Number: i + 1, Source: src}
		g.Rules, g.Err = rd.all(ctx, places[i].in, src.Policy, source.IsRego)
		if g.Err == nil {
			g.Data, g.Err = rd.all(ctx, places[i].in, src.Data, source.IsData)
		}
		for _, f := range extra {
			g.Data = append(g.Data, File{f.path, f.bytes})
		}
		out.Groups = append(out.Groups, g)
	}
	out.Sources = slices.Concat(r.trees, rd.trees)
	return out, nil
}

// list adds the configurations, without those that only a folder stood for.
func (c *config) list(to *[]File) {
	if c.raw != nil {
		*to = append(*to, File{c.file, c.raw})
	}
	for _, b := range c.bases {
		b.list(to)
	}
}

// all are the files of several addresses.
func (r *reader) all(ctx context.Context, in *config, addresses []string, want func(string) bool) ([]File, error) {
	var list []file
	for _, a := range addresses {
		files, err := r.read(ctx, in, a, want)
		if err != nil {
			return nil, err
		}
		list = append(list, files...)
	}
	var out []File
	for _, f := range unique(list) {
		out = append(out, File{f.path, f.bytes})
	}
	return out, nil
}

// ParseData reads a data file as policies do: an object, JSON or YAML by its name. It
// fails on what is none, on keys given twice and on a second document.
func ParseData(f File) (map[string]any, error) { return parseData(file{path: f.Path, bytes: f.Bytes}) }

// Names says whether an include or exclude item names some result of a rule, whatever
// terms that has. A code that ends in .* stands for all of a package.
func Names(item, code string, collections []string) bool {
	if !strings.HasPrefix(item, "@") {
		item, _, _ = strings.Cut(item, ":")
	}
	return matchers(code, nil, collections)[item]
}

// RulesFor is Rules for one image or component: items that hold for some only are
// looked at as well. Image is a reference, with a digest or without; what is empty no
// such item names.
func (p *Policy) RulesFor(at time.Time, image, component string) []RuleInfo {
	if at.IsZero() {
		at = time.Now()
	}
	repo, digest, _ := strings.Cut(image, "@")
	return p.list(target{repository: withoutTag(repo), digest: digest, component: component, when: at})
}
