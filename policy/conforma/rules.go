package conforma

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
)

// conftest's names of rules.
var (
	denyName = regexp.MustCompile(`^(deny|violation)(_[a-zA-Z0-9]+)*$`)
	warnName = regexp.MustCompile(`^warn(_[a-zA-Z0-9]+)*$`)
)

// rule is what annotations say about one rule.
type rule struct {
	code        string
	pkg         string // dotted, whole
	title       string
	description string
	solution    string
	effectiveOn string
	collections []string
	dependsOn   []string
	intentions  []string
}

// inspected is what reading the source of a group tells.
type inspected struct {
	rules map[string]*rule // tracked: those with a short_name
	// all has the untracked too, as far as a code can be guessed, to choose
	// packages by.
	all map[string]*rule
}

// inspect reads the annotations of modules, each for itself.
func inspect(modules []*ast.Module) (*inspected, error) {
	in := &inspected{rules: map[string]*rule{}, all: map[string]*rule{}}
	untracked := map[string]bool{}
	for _, m := range modules {
		set, errs := ast.BuildAnnotationSet([]*ast.Module{m})
		if len(errs) > 0 {
			return nil, errs
		}
		for _, r := range m.Rules {
			for _, a := range set.Chain(r) {
				if err := in.add(a, untracked); err != nil {
					return nil, err
				}
			}
		}
	}
	maps.Copy(in.all, in.rules)
	for code := range untracked {
		// One whose code an annotated rule has as well hides that one's collections.
		if strings.Contains(code, ".") {
			in.all[code] = &rule{code: code}
		}
	}
	return in, nil
}

func (in *inspected) add(a *ast.AnnotationsRef, untracked map[string]bool) error {
	r := a.GetRule()
	decision := r != nil && (denyName.MatchString(string(r.Head.Name)) || warnName.MatchString(string(r.Head.Name)))
	if !decision && a.Annotations == nil {
		return nil
	}
	if r != nil {
		if err := checkValue(r); err != nil {
			return err
		}
	}
	if a.Annotations == nil {
		untracked[untrackedCode(a, r)] = true
		return nil
	}
	info := describe(a)
	if info == nil {
		return nil
	}
	if in.rules[info.code] != nil {
		return fmt.Errorf("found a second rule with the same code: `%s`", info.code)
	}
	in.rules[info.code] = info
	return nil
}

// checkValue refuses rules whose head has a value that can be no result.
func checkValue(r *ast.Rule) error {
	t := r.Head.Value
	if t == nil {
		t = r.Head.Key
	}
	if t != nil {
		switch t.Value.(type) {
		case ast.String, ast.Object, ast.Var, ast.Call:
			return nil
		}
	}
	return fmt.Errorf("the rule %q returns an unsupported value, at %s", r.String(), r.Location)
}

// untrackedCode is the code of a rule without annotations: the one that its body
// gives, or else its own name.
func untrackedCode(a *ast.AnnotationsRef, r *ast.Rule) string {
	if code := codeOf(r); code != "" {
		return code
	}
	pkg := ""
	if len(a.Path) > 1 {
		pkg = strings.ReplaceAll(a.Path[1].String(), `"`, "")
	}
	return pkg + "." + string(r.Head.Name)
}

// codeOf finds the code in a body such as result := {"code": "a.b", …}.
func codeOf(r *ast.Rule) string {
	for _, e := range r.Body {
		if !e.IsAssignment() || len(e.Operands()) < 2 {
			continue
		}
		o, ok := e.Operand(1).Value.(ast.Object)
		if !ok {
			continue
		}
		if v := o.Get(ast.StringTerm("code")); v != nil {
			if s, ok := v.Value.(ast.String); ok && s != "" {
				return string(s)
			}
		}
	}
	return ""
}

// describe reads annotations; nil without a short_name.
func describe(a *ast.AnnotationsRef) *rule {
	custom := a.Annotations.Custom
	short, ok := custom["short_name"]
	if !ok || fmt.Sprint(short) == "" {
		return nil
	}
	pkg := packageOf(a)
	return &rule{
		code:        pkg + "." + fmt.Sprint(short),
		pkg:         pkg,
		title:       a.Annotations.Title,
		description: link.ReplaceAllString(a.Annotations.Description, "$4"),
		solution:    link.ReplaceAllString(annotation(custom, "solution"), "$4"),
		effectiveOn: annotation(custom, "effective_on"),
		collections: onlyStrings(custom["collections"]),
		dependsOn:   dependencies(custom),
		intentions:  onlyStrings(custom["pipeline_intention"]),
	}
}

func packageOf(a *ast.AnnotationsRef) string {
	var path ast.Ref
	switch p := a.GetPackage(); {
	case p != nil:
		path = p.Path
	case len(a.Path) > 0:
		path = a.Path[:len(a.Path)-1]
	}
	return dotted(path)
}

// dotted is a package's path as codes have it, without data.
func dotted(path ast.Ref) string {
	var out []string
	for _, t := range path {
		out = append(out, strings.Trim(t.Value.String(), `"`))
	}
	if len(out) > 0 && out[0] == "data" {
		out = out[1:]
	}
	return strings.Join(out, ".")
}

// link is a cross reference of AsciiDoc, in which annotations are written:
// xref:module:ROOT:page.adoc#anchor[label].
var link = regexp.MustCompile(`xref:(?:([^:]+):ROOT:(.+?)\.adoc(#[^[]+)?|[\w\.\$\#/]+)\[([\w\s/\.]+)\]`)

// annotation is a string annotation. YAML has made a time of an unquoted date;
// a whole reference to a page becomes its address.
func annotation(custom map[string]any, key string) string {
	switch v := custom[key].(type) {
	case time.Time:
		return v.Format(time.RFC3339)
	case string:
		return link.ReplaceAllStringFunc(v, func(s string) string {
			m := link.FindStringSubmatch(s)
			if m[1] == "" || m[2] == "" || m[3] == "" {
				return s
			}
			return "https://conforma.dev/docs/" + m[1] + "/" + m[2] + ".html" + m[3]
		})
	}
	return ""
}

func onlyStrings(v any) []string {
	list, ok := v.([]any)
	if !ok {
		return nil
	}
	var out []string
	for _, x := range list {
		if s, ok := x.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func dependencies(custom map[string]any) []string {
	v, ok := custom["depends_on"]
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		return []string{fmt.Sprint(v)}
	}
	var out []string
	for _, x := range list {
		out = append(out, fmt.Sprint(x))
	}
	return out
}

// pack is a package with rules that are evaluated.
type pack struct {
	name  string // dotted, without data
	ref   string // as a query names it
	rules []string
	// exceptions says that there is a rule named exception.
	exceptions bool
}

// packs are the packages of modules, by name. Those without decisions are there
// with no rules.
func packs(modules []*ast.Module) (map[string]*pack, error) {
	out := map[string]*pack{}
	for _, m := range modules {
		name := dotted(m.Package.Path)
		if name == "" {
			return nil, errors.New("a package has no name")
		}
		p := out[name]
		if p == nil {
			p = &pack{name: name, ref: m.Package.Path.String()}
			out[name] = p
		}
		for _, r := range m.Rules {
			switch head := string(r.Head.Name); {
			case head == "exception":
				p.exceptions = true
			case (denyName.MatchString(head) || warnName.MatchString(head)) && !slices.Contains(p.rules, head):
				p.rules = append(p.rules, head)
			}
		}
	}
	for _, p := range out {
		slices.Sort(p.rules)
	}
	return out, nil
}
