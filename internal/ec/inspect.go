package ec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy/conforma"
	"assay.dev/assay/policy/source"
)

func inspectCommand(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "inspect", Short: "Show what rules and data there are", Args: cobra.ArbitraryArgs, RunE: onlyCommands}
	c.AddCommand(inspectPolicyCommand(g), inspectDataCommand(g))
	return c
}

var ruleFormats = []string{"json", "text", "names", "short-names"}

func inspectPolicyCommand(g *globals) *cobra.Command {
	var (
		sources                   []string
		policy, dest, form        string
		rule, packaged, collected string
	)
	c := &cobra.Command{
		Use: "policy", Short: "List the rules of sources, with their annotations", Args: cobra.NoArgs,
		Example: "  ec inspect policy --source quay.io/conforma/release-policy --output short-names",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(ruleFormats, form) {
				return fmt.Errorf("invalid value for --output '%s'. accepted values: %s", form, strings.Join(ruleFormats, ", "))
			}
			ctx, cancel := g.within(cmd.Context())
			defer cancel()
			if policy != "" {
				spec, err := g.loadSpec(ctx, policy)
				if err != nil {
					return err
				}
				for _, s := range spec.Sources {
					sources = append(sources, s.Policy...)
				}
			}
			found := map[string][]annotated{}
			for _, address := range sources {
				t, err := g.fetchTo(ctx, address, dest)
				if err != nil {
					return err
				}
				list, err := inspectTree(t)
				if err != nil {
					return err
				}
				found[conforma.PinnedAddress(t)] = list
			}
			if rule != "" || packaged != "" || collected != "" {
				for at, list := range found {
					found[at] = slices.DeleteFunc(list, func(a annotated) bool {
						return !(rule != "" && (a.code() == rule || a.shortName() == rule) || packaged != "" && a.pkg() == packaged ||
							collected != "" && slices.Contains(a.collections(), collected))
					})
				}
			}
			if form == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(found)
			}
			return writeRules(cmd.OutOrStdout(), found, form)
		},
	}
	f := c.Flags()
	f.StringVarP(&policy, "policy", "p", "", "policy configuration whose sources are listed: a file, an address, a name in a cluster, or written out")
	f.StringArrayVarP(&sources, "source", "s", nil, "address of rules (repeatable)")
	f.StringVarP(&dest, "dest", "d", "", "folder to write the sources to as well")
	f.StringVarP(&form, "output", "o", "text", "one of "+strings.Join(ruleFormats, ", "))
	f.StringVar(&rule, "rule", "", "list the rules of this name, with or without its package")
	f.StringVar(&packaged, "package", "", "list the rules of this package")
	f.StringVar(&collected, "collection", "", "list the rules in this collection")
	c.MarkFlagsMutuallyExclusive("policy", "source")
	return c
}

// fetchTo fetches a source, and copies it below dest, if any, as fetch does.
func (g *globals) fetchTo(ctx context.Context, address, dest string) (*source.Tree, error) {
	t, err := g.policies().Fetch(ctx, address)
	if err != nil || dest == "" {
		return t, err
	}
	if err := copyTree(ctx, t, filepath.Join(dest, "policy", folderOf(address))); err != nil {
		return nil, fmt.Errorf("writing source %q: %w", address, err)
	}
	return t, nil
}

// annotated is a rule, or a package, with one of the annotations that hold for it.
type annotated struct{ *ast.AnnotationsRef }

// MarshalJSON writes it as `opa inspect` does, with the place.
func (a annotated) MarshalJSON() ([]byte, error) {
	m := map[string]any{"path": a.Path}
	if a.Annotations != nil {
		m["annotations"] = a.Annotations
	}
	if a.Location != nil {
		m["location"] = location{a.Location.File, a.Location.Row, a.Location.Col}
	}
	return json.Marshal(m)
}

type location struct {
	File string `json:"file"`
	Row  int    `json:"row"`
	Col  int    `json:"col"`
}

// ruleNames are those of rules that decide.
var ruleNames = regexp.MustCompile(`^(?:warn|deny|violation)(?:_[a-zA-Z0-9]+)*$`)

// inspectTree lists the rules that decide, and whatever is annotated.
func inspectTree(t *source.Tree) ([]annotated, error) {
	files, err := t.Files(source.IsRego)
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, errors.New("no rego files found in policy subdirectory")
	}
	out := []annotated{}
	for _, f := range files {
		m, err := ast.ParseModuleWithOpts(f.Path, string(f.Bytes), ast.ParserOptions{ProcessAnnotation: true})
		if err != nil {
			return nil, err
		}
		if m == nil {
			continue // nothing but comments
		}
		set, errs := ast.BuildAnnotationSet([]*ast.Module{m})
		if len(errs) > 0 {
			return nil, errs
		}
		for _, r := range m.Rules {
			for _, ref := range set.Chain(r) {
				a := annotated{ref}
				rule := ref.GetRule()
				if ref.Annotations == nil && (rule == nil || !ruleNames.MatchString(rule.Head.Name.String())) {
					continue
				}
				if err := checkValue(rule); err != nil {
					return nil, err
				}
				out = append(out, a)
			}
		}
	}
	return out, nil
}

// checkValue refuses rules whose value can be no result.
func checkValue(r *ast.Rule) error {
	if r == nil {
		return nil
	}
	term := r.Head.Value
	if term == nil {
		term = r.Head.Key
	}
	if term != nil {
		switch term.Value.(type) {
		case ast.String, ast.Object, ast.Var, ast.Call:
			return nil
		}
	}
	return fmt.Errorf("the rule %q returns an unsupported value, at %s", r.String(), r.Location)
}

func (a annotated) custom(key string) any {
	if a.Annotations == nil {
		return nil
	}
	return a.Annotations.Custom[key]
}

func (a annotated) shortName() string {
	if v := a.custom("short_name"); v != nil {
		return fmt.Sprint(v)
	}
	return ""
}

func (a annotated) collections() []string {
	var out []string
	list, _ := a.custom("collections").([]any)
	for _, v := range list {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// pkg is the package's path without data.
func (a annotated) pkg() string {
	path := a.Path
	if p := a.GetPackage(); p != nil {
		path = p.Path
	} else if len(path) > 0 {
		path = path[:len(path)-1]
	}
	var out []string
	for _, t := range path {
		out = append(out, strings.Trim(t.Value.String(), `"`))
	}
	if len(out) > 0 && out[0] == "data" {
		out = out[1:]
	}
	return strings.Join(out, ".")
}

func (a annotated) code() string { return a.pkg() + "." + a.shortName() }

// kind is how the rule counts, by its own name.
func (a annotated) kind() string {
	if len(a.Path) == 0 {
		return "other"
	}
	switch k := strings.Trim(a.Path[len(a.Path)-1].String(), `"`); k {
	case "deny", "warn":
		return k
	}
	return "other"
}

// documentation is where Conforma's site has the rule, if it is one of Conforma's.
func (a annotated) documentation() string {
	parts := strings.Split(a.Path.String(), ".")
	name := a.shortName()
	if len(parts) < 3 || parts[len(parts)-2] == "" || name == "" {
		return ""
	}
	p := parts[len(parts)-2]
	return fmt.Sprintf("https://conforma.dev/docs/policy/packages/release_%s.html#%s__%s", p, p, name)
}

// links are Asciidoc's, which are written out as their text.
var links = regexp.MustCompile(`xref:(?:([^:]+):ROOT:(.+?)\.adoc(#[^[]+)?|[\w\.\$\#/]+)\[([\w\s/\.]+)\]`)

func writeRules(w io.Writer, found map[string][]annotated, form string) error {
	var b strings.Builder
	for _, at := range slices.Sorted(maps.Keys(found)) {
		if form == "text" {
			fmt.Fprintf(&b, "# Source: %s\n\n", at)
		}
		for _, a := range found[at] {
			switch {
			case a.Annotations == nil:
				_, name, _ := strings.Cut(a.Path.String(), ".")
				fmt.Fprintf(&b, "%s\n(No annotations found)\n--\n", name)
			case a.Annotations.Scope != "rule":
			case form != "text":
				fmt.Fprintln(&b, a.code())
			default:
				fmt.Fprintf(&b, "%s (%s)\n", a.code(), a.kind())
				if d := a.documentation(); d != "" {
					fmt.Fprintln(&b, d)
				}
				fmt.Fprintf(&b, "%s\n%s", a.Annotations.Title, links.ReplaceAllString(a.Annotations.Description, "$4"))
				if c := a.collections(); len(c) > 0 {
					fmt.Fprintf(&b, "\n%s", c)
				}
				b.WriteString("\n--\n")
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func inspectDataCommand(g *globals) *cobra.Command {
	var (
		sources    []string
		dest, form string
	)
	c := &cobra.Command{
		Use: "policy-data", Short: "Show the data of sources as one document", Args: cobra.NoArgs,
		Example: "  ec inspect policy-data --source git::https://github.com/conforma/policy//example/data",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if form != "json" && form != "yaml" {
				return fmt.Errorf("invalid value for --output '%s'. accepted values: json, yaml", form)
			}
			ctx, cancel := g.within(cmd.Context())
			defer cancel()
			all := map[string]any{}
			for _, address := range sources {
				t, err := g.fetchTo(ctx, address, dest)
				if err != nil {
					return err
				}
				files, err := t.Files(source.IsData)
				if err != nil {
					return err
				}
				for _, f := range files {
					one := map[string]any{}
					if err := yaml.Unmarshal(f.Bytes, &one); err != nil {
						return fmt.Errorf("reading %s: %w", f.Path, err)
					}
					for k, v := range one {
						if _, ok := all[k]; ok {
							return fmt.Errorf("Merge error. The '%s' key was found more than once!", k) //nolint:staticcheck // Conforma's words
						}
						all[k] = v
					}
				}
			}
			if form == "json" {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(all)
			}
			out, err := yaml.Marshal(all)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), string(out))
			return err
		},
	}
	f := c.Flags()
	f.StringArrayVarP(&sources, "source", "s", nil, "address of data (repeatable; required)")
	f.StringVarP(&dest, "dest", "d", "", "folder to write the sources to as well")
	f.StringVarP(&form, "output", "o", "json", "one of json, yaml")
	_ = c.MarkFlagRequired("source")
	return c
}
