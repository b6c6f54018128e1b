package policy

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"assay.dev/assay/policy/spec"
)

// Question is one of the things a release engineer asks about an image.
type Question string

// The three questions, in the order they are answered.
const (
	Scanned         Question = "scanned"          // for CVEs, and how recently
	TrustedBuild    Question = "trusted_build"    // was a trusted build task used, with appropriate inputs
	UntouchedSource Question = "untouched_source" // did nothing touch the sources between clone and build
)

// Questions lists them.
func Questions() []Question { return []Question{Scanned, TrustedBuild, UntouchedSource} }

// kind is what a rule's results are.
type kind int

const (
	deny kind = iota
	warn
	note
)

// Conftest's names of rules, and our own note.
var (
	denyName = regexp.MustCompile(`^(deny|violation)(_[a-zA-Z0-9]+)*$`)
	warnName = regexp.MustCompile(`^warn(_[a-zA-Z0-9]+)*$`)
	noteName = regexp.MustCompile(`^note(_[a-zA-Z0-9]+)*$`)
)

// String is what people call it.
func (k kind) String() string { return [...]string{"deny", "warn", "note"}[k] }

func kindOf(name string) (kind, bool) {
	switch {
	case denyName.MatchString(name):
		return deny, true
	case warnName.MatchString(name):
		return warn, true
	case noteName.MatchString(name):
		return note, true
	}
	return 0, false
}

// rule is what the annotations say about one rule. Results find theirs by code.
type rule struct {
	code        string // empty for one without a short_name
	kind        kind
	pkg, name   string
	file        string
	line        int
	text        *ast.Rule
	title       string
	description string
	solution    string
	collections []string
	dependsOn   []string
	effectiveOn string    // as written
	effective   time.Time // zero: always
	question    Question
}

// pack is one Rego package with decision rules.
type pack struct {
	path  []string // without data
	rules map[string]kind
	codes []string // of its tracked rules, sorted
	// untracked says that some decision rule has no code known beforehand, so
	// that only running it can tell.
	untracked bool
	// exceptions says that the package has a rule named exception, conftest's
	// way of skipping others.
	exceptions bool
}

func (p *pack) name() string { return strings.Join(p.path, ".") }

// inspect reads the decision rules and annotations of a source's modules.
func (g *group) inspect(modules map[string]*ast.Module) error {
	g.packs, g.rules = map[string]*pack{}, map[string]*rule{}
	packs, rules := g.packs, g.rules
	for _, file := range sortedKeys(modules) {
		m := modules[file]
		path, err := packagePath(m.Package.Path)
		if err != nil {
			return fmt.Errorf("reading %s: %w", file, err)
		}
		name := strings.Join(path, ".")
		for _, r := range m.Rules {
			head := string(r.Head.Name)
			k, ok := kindOf(head)
			if !ok && head != "exception" {
				continue
			}
			p := packs[name]
			if p == nil {
				p = &pack{path: path, rules: map[string]kind{}}
				packs[name] = p
			}
			if !ok {
				p.exceptions = true
				continue
			}
			p.rules[head] = k
			info, err := annotated(name, k, r.Annotations)
			if err != nil {
				return fmt.Errorf("reading annotations of %s in %s: %w", head, r.Location, err)
			}
			stated := info
			if stated == nil {
				stated = &rule{kind: k}
			}
			stated.pkg, stated.name = name, head
			stated.file, stated.line = file, r.Location.Row
			stated.text = r
			g.all = append(g.all, stated)
			if info == nil {
				p.untracked = true
				continue
			}
			if rules[info.code] != nil {
				return fmt.Errorf("reading annotations of %s in %s: a second rule with the code %s; give it another short_name", head, r.Location, info.code)
			}
			rules[info.code] = info
			p.codes = append(p.codes, info.code)
		}
	}
	for _, p := range packs {
		slices.Sort(p.codes)
	}
	return nil
}

func packagePath(ref ast.Ref) ([]string, error) {
	var path []string
	for _, t := range ref[1:] {
		s, ok := t.Value.(ast.String)
		if !ok {
			return nil, fmt.Errorf("package %s has a segment that is no name", ref)
		}
		path = append(path, string(s))
	}
	if len(path) == 0 {
		return nil, errors.New("package has no name")
	}
	return path, nil
}

// annotated reads a rule's own annotations; nil without a short_name.
func annotated(pkg string, k kind, all []*ast.Annotations) (*rule, error) {
	var a *ast.Annotations
	for _, x := range all {
		if s, _ := x.Custom["short_name"].(string); s != "" && (x.Scope == "rule" || x.Scope == "document") {
			a = x
			break
		}
	}
	if a == nil {
		return nil, nil
	}
	info := &rule{
		code:        pkg + "." + a.Custom["short_name"].(string),
		kind:        k,
		title:       a.Title,
		description: a.Description,
	}
	var err error
	if info.solution, err = text(a.Custom, "solution"); err != nil {
		return nil, err
	}
	if info.collections, err = texts(a.Custom, "collections"); err != nil {
		return nil, err
	}
	if info.dependsOn, err = texts(a.Custom, "depends_on"); err != nil {
		return nil, err
	}
	if info.effectiveOn, err = text(a.Custom, "effective_on"); err != nil {
		return nil, err
	}
	if info.effectiveOn != "" {
		if info.effective, err = spec.ParseTime(info.effectiveOn); err != nil {
			return nil, fmt.Errorf("effective_on: %w", err)
		}
	}
	q, err := text(a.Custom, "question")
	if err != nil {
		return nil, err
	}
	if info.question = Question(q); q != "" && !slices.Contains(Questions(), info.question) {
		return nil, fmt.Errorf("question %q is unknown; accepted are %v", q, Questions())
	}
	return info, nil
}

// text reads a string annotation; "" where there is none. YAML turns an
// unquoted date into a time before we see it.
func text(custom map[string]any, key string) (string, error) {
	switch v := custom[key].(type) {
	case nil:
		return "", nil
	case string:
		return strings.TrimSpace(v), nil
	case time.Time:
		return v.UTC().Format(time.RFC3339), nil
	default:
		return "", fmt.Errorf("%s is not a string", key)
	}
}

// texts reads an annotation that is a string or a list of strings.
func texts(custom map[string]any, key string) ([]string, error) {
	switch v := custom[key].(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var out []string
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return nil, fmt.Errorf("%s has an entry that is not a string", key)
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%s is neither a string nor a list of strings", key)
}

func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
