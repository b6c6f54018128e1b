package policytool

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
)

// Use is a place where rules read something of the data.
type Use struct {
	// Name is a key of rule data, or a path below data.
	Name string `json:"name"`
	File string `json:"file"`
	Line int    `json:"line"`
	// rule is where, for a document of rules; column for messages.
	rule   *ast.Rule
	column int
}

// uses are what compiled rules read.
type uses struct {
	data     []Use // paths below data that no rule gives
	ruleData []Use // keys of rule data
}

// usesOf looks through the rules of a compiler.
func usesOf(c *ast.Compiler) *uses {
	u := &uses{}
	for _, file := range sortedNames(c.Modules) {
		m := c.Modules[file]
		for _, r := range m.Rules {
			u.rule(c, r)
		}
	}
	return u
}

func (u *uses) rule(c *ast.Compiler, r *ast.Rule) {
	bound := map[ast.Var]*ast.Term{}
	ast.WalkExprs(r, func(x *ast.Expr) bool {
		if x.IsEquality() && len(x.Operands()) == 2 {
			if v, ok := x.Operand(0).Value.(ast.Var); ok {
				bound[v] = x.Operand(1)
			}
		}
		return false
	})
	ast.WalkExprs(r, func(x *ast.Expr) bool {
		if x.IsCall() && len(x.Operands()) > 0 && readsRuleData(x.Operator()) {
			if key, ok := constant(c, bound, x.Operand(0), 0); ok {
				u.ruleData = append(u.ruleData, use(key, x.Location, r))
			}
		}
		return false
	})
	ast.WalkRefs(r, func(ref ast.Ref) bool {
		if path, ok := basePath(c, ref); ok {
			u.data = append(u.data, use(strings.Join(path, "\x00"), ref[0].Location, r))
		}
		return false
	})
}

func use(name string, l *ast.Location, r *ast.Rule) Use {
	if l == nil {
		l = r.Location
	}
	return Use{Name: name, File: l.File, Line: l.Row, column: l.Col, rule: r}
}

// readsRuleData says whether a function is how rules read rule data by its key:
// rule_data of a library, or get of a package that is called rule_data.
func readsRuleData(op ast.Ref) bool {
	if len(op) < 2 || !op.HasPrefix(ast.DefaultRootRef) {
		return false
	}
	last, _ := op[len(op)-1].Value.(ast.String)
	before, _ := op[len(op)-2].Value.(ast.String)
	return strings.HasSuffix(string(last), "rule_data") || last == "get" && before == "rule_data"
}

// constant is the text that a term stands for, where that does not depend on anything.
func constant(c *ast.Compiler, bound map[ast.Var]*ast.Term, t *ast.Term, depth int) (string, bool) {
	if t == nil || depth > 5 {
		return "", false
	}
	switch v := t.Value.(type) {
	case ast.String:
		return string(v), true
	case ast.Var:
		return constant(c, bound, bound[v], depth+1)
	case ast.Ref:
		if rules := c.GetRulesExact(v.GroundPrefix()); len(rules) == 1 && rules[0].Head.Value != nil {
			return constant(c, nil, rules[0].Head.Value, depth+1)
		}
	}
	return "", false
}

// basePath is a reference as a path below data, where it is to no rule. It ends before
// the first part that is known only when rules run.
func basePath(c *ast.Compiler, ref ast.Ref) ([]string, bool) {
	if len(ref) < 2 || !ref.HasPrefix(ast.DefaultRootRef) {
		return nil, false
	}
	var path []string
	for i, t := range ref[1:] {
		s, ok := t.Value.(ast.String)
		if !ok {
			break
		}
		path = append(path, string(s))
		if len(c.GetRulesExact(ref[:i+2])) > 0 {
			return nil, false
		}
	}
	// Packages are no data, nor is all that is below what leads to them.
	if len(path) == 0 || c.RuleTree.Find(ref[:len(path)+1]) != nil {
		return nil, false
	}
	return path, true
}

// absent is the shortest part of a path that data does not have; "" if it has it all.
func absent(data map[string]any, path []string) string {
	var v any = data
	for i, k := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return ""
		}
		if v, ok = m[k]; !ok {
			return dotted(path[:i+1])
		}
	}
	return ""
}

// dotted is a path as Rego spells it.
func dotted(path []string) string {
	ref := ast.Ref{ast.DefaultRootDocument}
	for _, k := range path {
		ref = append(ref, ast.StringTerm(k))
	}
	return ref.String()
}

// ruleDataPlaces are where rules look for rule data, in this order.
var ruleDataPlaces = [...]string{"rule_data__configuration__", "rule_data_custom", "rule_data"}

// hasRuleData says whether a key of rule data is given.
func hasRuleData(data map[string]any, key string) bool {
	return slices.ContainsFunc(ruleDataPlaces[:], func(place string) bool {
		m, _ := data[place].(map[string]any)
		_, ok := m[key]
		return ok
	})
}

// ruleDataOf decodes a source's ruleData; nil for what is no object.
func ruleDataOf(raw json.RawMessage) map[string]any {
	out := map[string]any{}
	if json.Unmarshal(raw, &out) != nil || out == nil {
		return map[string]any{}
	}
	return out
}

func sortUses(list []Use) []Use {
	slices.SortFunc(list, func(a, b Use) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line))
	})
	return slices.CompactFunc(list, func(a, b Use) bool { return a.Name == b.Name && a.File == b.File && a.Line == b.Line })
}
