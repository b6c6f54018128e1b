package policy

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/open-policy-agent/opa/v1/ast"
)

// documents are the input documents: one for each run, with that run under
// judgement, or one without any. What was signed is parsed once and shared by all
// places where it stands.
func (f *facts) documents() ([]*ast.Term, error) {
	docs, err := f.parse()
	if err != nil {
		return nil, fmt.Errorf("encoding input document: %w", err)
	}
	return docs, nil
}

func (f *facts) parse() ([]*ast.Term, error) {
	payloads := map[string]*ast.Term{}
	payload := func(raw json.RawMessage) (*ast.Term, error) {
		if raw == nil {
			return ast.NullTerm(), nil
		}
		if t, ok := payloads[string(raw)]; ok {
			return t, nil
		}
		t, err := term(raw)
		if err == nil {
			payloads[string(raw)] = t
		}
		return t, err
	}
	// All but the payloads, which are put in by hand.
	light := f.doc
	light.Assay.Runs = make([]run, len(f.doc.Assay.Runs))
	for i, r := range f.doc.Assay.Runs {
		r.Provenance, r.Observation = nil, nil
		light.Assay.Runs[i] = r
	}
	if f.doc.Attestations != nil {
		light.Attestations = make([]attestation, len(f.doc.Attestations))
		for i, a := range f.doc.Attestations {
			a.Statement = nil
			light.Attestations[i] = a
		}
	}
	raw, err := json.Marshal(light)
	if err != nil {
		return nil, err
	}
	doc, err := term(raw)
	if err != nil {
		return nil, err
	}
	if f.doc.Attestations != nil {
		list := make([]*ast.Term, len(f.doc.Attestations))
		for i, a := range f.doc.Attestations {
			p, err := payload(a.Statement)
			if err != nil {
				return nil, err
			}
			list[i] = with(at(doc, "attestations").Value.(*ast.Array).Elem(i), "statement", p)
		}
		doc = with(doc, "attestations", ast.ArrayTerm(list...))
	}
	assay := at(doc, "assay")
	runs := make([]*ast.Term, len(f.doc.Assay.Runs))
	for i, r := range f.doc.Assay.Runs {
		provenance, err := payload(r.Provenance)
		if err != nil {
			return nil, err
		}
		observation, err := payload(r.Observation)
		if err != nil {
			return nil, err
		}
		one := at(assay, "runs").Value.(*ast.Array).Elem(i)
		runs[i] = with(with(one, "provenance", provenance), "observation", observation)
	}
	assay = with(assay, "runs", ast.ArrayTerm(runs...))
	if len(runs) == 0 {
		return []*ast.Term{with(doc, "assay", assay)}, nil
	}
	var out []*ast.Term
	for _, r := range runs {
		out = append(out, with(doc, "assay", with(assay, "run", r)))
	}
	return out, nil
}

// term is JSON in OPA's form.
func term(raw []byte) (*ast.Term, error) {
	v, err := ast.ValueFromReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	return ast.NewTerm(v), nil
}

// at is a member of an object, which is there.
func at(obj *ast.Term, key string) *ast.Term {
	return obj.Value.(ast.Object).Get(ast.StringTerm(key))
}

// with is an object with one member set; the object itself is not changed.
func with(obj *ast.Term, key string, v *ast.Term) *ast.Term {
	o := obj.Value.(ast.Object)
	pairs := make([][2]*ast.Term, 0, o.Len()+1)
	o.Foreach(func(k, x *ast.Term) {
		if s, ok := k.Value.(ast.String); !ok || string(s) != key {
			pairs = append(pairs, [2]*ast.Term{k, x})
		}
	})
	return ast.NewTerm(ast.NewObject(append(pairs, [2]*ast.Term{ast.StringTerm(key), v})...))
}
