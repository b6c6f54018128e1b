// Package input reads plain documents (files, what is posted to a server) and reports
// what a policy says of them, as `ec validate input` does.
//
//	file, folder's file, request's body ─▶ Parse, FromRequest ─▶ values ─▶ policy ─▶ Entries
//
// It knows no command line and no connection, so that `assay ec` and `assay gate serve`
// share it.
package input

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/internal/ec/server"
	"assay.dev/assay/policy/conforma"
)

// IsMap says whether a text is YAML with an object in it.
func IsMap(s string) bool {
	var m map[string]any
	return s != "" && yaml.Unmarshal([]byte(s), &m) == nil
}

// Parse reads the documents of a file, by the end of its name (.json, .yaml, .yml, or
// none): those of YAML, or the elements of an array, or the one value. It fails on what
// is neither, and on other ends.
func Parse(ext string, raw []byte) ([]ast.Value, error) {
	var docs [][]byte
	switch strings.ToLower(ext) {
	case ".json":
		docs = [][]byte{raw}
	case ".yaml", ".yml", "":
		for _, d := range SplitYAML(raw) {
			j, err := yaml.YAMLToJSON(d)
			if err != nil {
				return nil, err
			}
			docs = append(docs, j)
		}
	default:
		return nil, fmt.Errorf("files of the kind %s are not read; JSON and YAML are", ext)
	}
	var out []ast.Value
	for _, d := range docs {
		if !json.Valid(d) {
			var v any
			return nil, json.Unmarshal(d, &v)
		}
		v, err := ast.ValueFromReader(bytes.NewReader(d))
		if err != nil {
			return nil, err
		}
		if a, ok := v.(*ast.Array); ok && len(docs) == 1 {
			for i := range a.Len() {
				out = append(out, a.Elem(i).Value)
			}
			continue
		}
		out = append(out, v)
	}
	return out, nil
}

// SplitYAML are the documents of a YAML file, without those of nothing but comments.
func SplitYAML(raw []byte) [][]byte {
	var out [][]byte
	var doc []byte
	content := false
	end := func() {
		if content {
			out = append(out, doc)
		}
		doc, content = nil, false
	}
	for line := range bytes.Lines(raw) {
		trimmed := bytes.TrimRight(line, " \t\r\n")
		if bytes.Equal(trimmed, []byte("---")) || bytes.HasPrefix(trimmed, []byte("--- ")) {
			end()
			line = bytes.TrimPrefix(line, []byte("---"))
			trimmed = bytes.TrimSpace(line)
		}
		if len(bytes.TrimSpace(trimmed)) > 0 && !bytes.HasPrefix(bytes.TrimSpace(trimmed), []byte("#")) {
			content = true
		}
		doc = append(doc, line...)
	}
	end()
	return out
}

// FromRequest reads what was posted, by its media type or else by its looks. It fails
// with a *server.Error, in Conforma's words.
func FromRequest(r server.Request) ([]ast.Value, error) {
	none := &server.Error{Message: "request body is not valid JSON or YAML", Status: http.StatusBadRequest}
	isJSON, ext := json.Valid(r.Body), ".yaml"
	switch r.MediaType {
	case "application/json":
		if !isJSON {
			return nil, none
		}
		ext = ".json"
	case "application/yaml", "application/x-yaml", "text/yaml":
		if !IsMap(string(r.Body)) {
			return nil, none
		}
	default:
		if isJSON {
			ext = ".json"
		} else if !IsMap(string(r.Body)) {
			return nil, none
		}
	}
	values, err := Parse(ext, r.Body)
	if err != nil {
		return nil, none
	}
	return values, nil
}

// Entry is what a report says of one input.
type Entry struct {
	FilePath     string            `json:"filepath"`
	Violations   []conforma.Result `json:"violations"`
	Warnings     []conforma.Result `json:"warnings"`
	Successes    []conforma.Result `json:"successes"`
	Success      bool              `json:"success"`
	SuccessCount int               `json:"success-count"`
}

// Options say what entries hold.
type Options struct {
	// Info keeps all metadata of results.
	Info bool
	// Warnings and Successes list them.
	Warnings, Successes bool
}

// Entries are the report on inputs that were evaluated, in the order of reports. Passed
// says whether there is no violation. Nested says that only packages of several segments
// have some; entries then hold these too.
func Entries(names []string, evaluations []*conforma.Evaluation, o Options) (list []Entry, passed, nested bool) {
	plain := true
	for _, e := range evaluations {
		plain = plain && !failing(e.Outcomes)
		nested = nested || failing(e.Nested)
	}
	nested = plain && nested
	list = []Entry{}
	for i, e := range evaluations {
		outcomes := e.Outcomes
		if nested {
			outcomes = slices.Concat(outcomes, e.Nested)
		}
		list = append(list, entry(names[i], outcomes, o))
	}
	slices.SortStableFunc(list, func(a, b Entry) int { return strings.Compare(b.FilePath, a.FilePath) })
	return list, plain && !nested && len(list) > 0, nested
}

func failing(outcomes []conforma.Outcome) bool {
	return slices.ContainsFunc(outcomes, func(o conforma.Outcome) bool { return len(o.Failures) > 0 })
}

func entry(name string, outcomes []conforma.Outcome, o Options) Entry {
	violations, warnings, successes := []conforma.Result{}, []conforma.Result{}, []conforma.Result{}
	for _, x := range outcomes {
		violations, warnings, successes = append(violations, x.Failures...), append(warnings, x.Warnings...), append(successes, x.Successes...)
	}
	for _, l := range [][]conforma.Result{violations, warnings, successes} {
		conforma.Sort(l)
		if !o.Info {
			conforma.Condense(l)
		}
	}
	out := Entry{FilePath: name, Violations: violations, Success: len(violations) == 0, SuccessCount: len(successes)}
	if o.Warnings {
		out.Warnings = warnings
	}
	if o.Successes {
		out.Successes = successes
	}
	return out
}
