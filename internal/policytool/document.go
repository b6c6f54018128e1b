package policytool

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"assay.dev/assay/policy"
	"assay.dev/assay/policy/builtin"
)

// Document is what a policy's annotations say of it.
type Document struct {
	Policy      policy.Identified `json:"policy"`
	Description string            `json:"description,omitempty"`
	Packages    []PackageDoc      `json:"packages"`
	// Collections are codes of rules, by collection.
	Collections map[string][]string `json:"collections"`
	// RuleData are the keys of rule data that rules read, with the packages that do.
	RuleData map[string][]string `json:"ruleData"`
}

// PackageDoc is one package with its rules.
type PackageDoc struct {
	Name        string            `json:"name"`
	Title       string            `json:"title,omitempty"`
	Description string            `json:"description,omitempty"`
	Rules       []policy.RuleInfo `json:"rules"`
}

// Describe documents a policy that was loaded from the same name with the same options.
// It fails where its files can no longer be read or compiled.
func Describe(ctx context.Context, p *policy.Policy, ref string, opts policy.Options) (*Document, error) {
	files, err := policy.ReadFiles(ctx, ref, opts)
	if err != nil {
		return nil, err
	}
	d := &Document{
		Policy: policy.Identified{Name: p.Name(), Digest: p.Digest()}, Description: p.Spec().Description,
		Packages: []PackageDoc{}, Collections: map[string][]string{}, RuleData: map[string][]string{},
	}
	titles := map[string]*ast.Annotations{}
	for i := range files.Groups {
		g := &files.Groups[i]
		if g.Err != nil {
			return nil, fmt.Errorf("source %d: %w", g.Number, g.Err)
		}
		modules := map[string]*ast.Module{}
		for _, f := range g.Rules {
			m, err := parseModule(f.Path, f.Bytes)
			if err != nil {
				return nil, fmt.Errorf("parsing rules: %w", err)
			}
			if m == nil {
				continue
			}
			modules[f.Path] = m
			for _, a := range m.Annotations {
				if a.Scope == "package" {
					titles[strings.TrimPrefix(m.Package.Path.String(), "data.")] = a
				}
			}
		}
		c := ast.NewCompiler().WithCapabilities(builtin.Capabilities())
		if c.Compile(modules); c.Failed() {
			return nil, fmt.Errorf("compiling rules: %w", c.Errors)
		}
		for _, u := range usesOf(c).ruleData {
			pkg := strings.TrimPrefix(u.rule.Module.Package.Path.String(), "data.")
			if !slices.Contains(d.RuleData[u.Name], pkg) {
				d.RuleData[u.Name] = append(d.RuleData[u.Name], pkg)
			}
		}
	}
	for _, l := range d.RuleData {
		slices.Sort(l)
	}
	for _, r := range p.Rules(time.Time{}) {
		// What it comes to today is Show's to say.
		r.InForce, r.Included, r.By, r.Against = false, false, nil, nil
		n := len(d.Packages)
		if n == 0 || d.Packages[n-1].Name != r.Package {
			pkg := PackageDoc{Name: r.Package}
			if a := titles[r.Package]; a != nil {
				pkg.Title, pkg.Description = a.Title, a.Description
			}
			d.Packages = append(d.Packages, pkg)
			n++
		}
		d.Packages[n-1].Rules = append(d.Packages[n-1].Rules, r)
		for _, c := range r.Collections {
			d.Collections[c] = append(d.Collections[c], codeOf(&r))
		}
	}
	return d, nil
}

// WriteMarkdown writes the document as Markdown.
func (d *Document) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", markdown(d.Policy.Name))
	if d.Description != "" {
		fmt.Fprintf(&b, "%s\n\n", markdown(d.Description))
	}
	for _, p := range d.Packages {
		fmt.Fprintf(&b, "## %s\n\n", p.Name)
		for _, text := range []string{p.Title, p.Description} {
			if text != "" {
				fmt.Fprintf(&b, "%s\n\n", markdown(text))
			}
		}
		for i := range p.Rules {
			r := &p.Rules[i]
			title := r.Title
			if title == "" {
				title = r.Rule
			}
			fmt.Fprintf(&b, "### %s\n\n", markdown(title))
			if r.Description != "" {
				fmt.Fprintf(&b, "%s\n\n", markdown(r.Description))
			}
			if r.Code != "" {
				fmt.Fprintf(&b, "* Code: `%s`\n", r.Code)
			}
			fmt.Fprintf(&b, "* Kind: %s\n", r.Kind)
			for _, x := range []struct{ what, text string }{
				{"In force from", r.EffectiveOn}, {"Collections", strings.Join(r.Collections, ", ")},
				{"Depends on", strings.Join(r.DependsOn, ", ")}, {"Solution", r.Solution},
			} {
				if x.text != "" {
					fmt.Fprintf(&b, "* %s: %s\n", x.what, markdown(x.text))
				}
			}
			b.WriteByte('\n')
		}
	}
	for _, table := range []struct {
		title string
		rows  map[string][]string
	}{{"Collections", d.Collections}, {"Rule data", d.RuleData}} {
		if len(table.rows) == 0 {
			continue
		}
		fmt.Fprintf(&b, "## %s\n\n", table.title)
		for _, k := range sortedNames(table.rows) {
			fmt.Fprintf(&b, "* `%s`: %s\n", k, strings.Join(table.rows[k], ", "))
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, strings.TrimRight(b.String(), "\n")+"\n")
	return err
}

// markdown is a text on one line that does not become markup of its own.
func markdown(s string) string {
	s = printable(strings.Join(strings.Fields(s), " "))
	return strings.NewReplacer("<", "&lt;", "|", `\|`).Replace(s)
}
