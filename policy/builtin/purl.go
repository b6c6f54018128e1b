package builtin

import (
	"github.com/open-policy-agent/opa/v1/ast"
	packageurl "github.com/package-url/packageurl-go"
)

func purlIsValid(_ *call, args []*ast.Term) (*ast.Term, error) {
	s, ok := args[0].Value.(ast.String)
	if !ok {
		return ast.BooleanTerm(false), nil
	}
	_, err := packageurl.FromString(string(s))
	return ast.BooleanTerm(err == nil), nil
}

func purlParse(_ *call, args []*ast.Term) (*ast.Term, error) {
	s, err := text(args[0], "the package URL")
	if err != nil {
		return nil, err
	}
	p, err := packageurl.FromString(s)
	if err != nil {
		return nil, err
	}
	qualifiers := make([]*ast.Term, len(p.Qualifiers))
	for i, q := range p.Qualifiers {
		qualifiers[i] = ast.ObjectTerm(item("key", ast.StringTerm(q.Key)), item("value", ast.StringTerm(q.Value)))
	}
	return ast.ObjectTerm(
		item("type", ast.StringTerm(p.Type)),
		item("namespace", ast.StringTerm(p.Namespace)),
		item("name", ast.StringTerm(p.Name)),
		item("version", ast.StringTerm(p.Version)),
		item("qualifiers", ast.ArrayTerm(qualifiers...)),
		item("subpath", ast.StringTerm(p.Subpath)),
	), nil
}
