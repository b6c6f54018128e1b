package ec

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy/conforma"
)

// inputFormats are those that reports of inputs are written in.
var inputFormats = []string{"json", "yaml", "text", "summary"}

// maxInputFiles bounds the files of a folder.
const maxInputFiles = 10_000

// readInput reads what an argument names: a file, a folder's files, or a document
// written out.
func readInput(arg string) ([]conforma.Document, error) {
	if json.Valid([]byte(arg)) || isYAMLMap(arg) {
		values, err := parseInput("", []byte(arg))
		return []conforma.Document{{Name: "", Values: values}}, err
	}
	info, err := os.Stat(arg)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("unable to parse the provided input file: %s", arg)
	}
	if err != nil {
		return nil, err
	}
	files := []string{arg}
	if info.IsDir() {
		entries, err := os.ReadDir(arg)
		if err != nil {
			return nil, err
		}
		if len(entries) == 0 {
			return nil, fmt.Errorf("the directory %s contained no files", arg)
		}
		if len(entries) > maxInputFiles {
			return nil, fmt.Errorf("the directory %s has more than %d files", arg, maxInputFiles)
		}
		files = nil
		for _, e := range entries {
			files = append(files, filepath.Join(arg, e.Name()))
		}
	}
	var out []conforma.Document
	for _, f := range files {
		raw, err := readFile(f)
		if err != nil {
			return nil, err
		}
		values, err := parseInput(filepath.Ext(f), raw)
		if err != nil {
			return nil, fmt.Errorf("parsing %s: %w", f, err)
		}
		out = append(out, conforma.Document{Name: f, Values: values})
	}
	return out, nil
}

func isYAMLMap(s string) bool {
	var m map[string]any
	return s != "" && yaml.Unmarshal([]byte(s), &m) == nil
}

// parseInput reads the documents of a file: those of YAML, or the elements of an
// array, or the one value.
func parseInput(ext string, raw []byte) ([]ast.Value, error) {
	var docs [][]byte
	switch strings.ToLower(ext) {
	case ".json":
		docs = [][]byte{raw}
	case ".yaml", ".yml", "":
		for _, d := range splitYAML(raw) {
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

// splitYAML are the documents of a YAML file, without those of nothing but
// comments.
func splitYAML(raw []byte) [][]byte {
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

// inputReport is the report of `validate input`.
type inputReport struct {
	Success       bool           `json:"success"`
	FilePaths     []inputEntry   `json:"filepaths"`
	Policy        *conforma.Spec `json:"policy"`
	Version       string         `json:"ec-version"`
	EffectiveTime time.Time      `json:"effective-time"`
	Assay         *additions     `json:"assay,omitempty"`

	colour bool
}

type inputEntry struct {
	FilePath     string            `json:"filepath"`
	Violations   []conforma.Result `json:"violations"`
	Warnings     []conforma.Result `json:"warnings"`
	Successes    []conforma.Result `json:"successes"`
	Success      bool              `json:"success"`
	SuccessCount int               `json:"success-count"`
}

// inputs judges files.
type inputs struct {
	*runner
	spec   *conforma.Spec
	policy *conforma.Policy
	when   time.Time
	info   bool
	show   show
}

func (in *inputs) all(ctx context.Context, args []string, add *additions) (*inputReport, error) {
	evaluations, errs := make([]*conforma.Evaluation, len(args)), make([]error, len(args))
	in.each(len(args), func(i int) {
		docs, err := readInput(args[i])
		if err == nil {
			if evaluations[i], err = in.policy.Evaluate(ctx, docs, conforma.Target{}); err != nil {
				err = fmt.Errorf("evaluating policy: %w", err)
			}
		}
		if err != nil {
			errs[i] = fmt.Errorf("error validating file %s: %w", args[i], err)
		}
	})
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return in.report(args, evaluations, add), nil
}

// report is that of documents that were evaluated.
func (in *inputs) report(args []string, evaluations []*conforma.Evaluation, add *additions) *inputReport {
	success, nested := true, false
	for i, e := range evaluations {
		add.note(args[i], e)
		success = success && !failing(e.Outcomes)
		nested = nested || failing(e.Nested)
	}
	slices.Sort(add.ForeignRegistries)
	add.NestedViolations = success && nested
	r := &inputReport{Success: success && !nested, FilePaths: []inputEntry{}, Policy: in.spec, Version: Version(), EffectiveTime: in.when}
	for i, e := range evaluations {
		if add.NestedViolations {
			e.Outcomes = append(e.Outcomes, e.Nested...)
		}
		r.FilePaths = append(r.FilePaths, in.entry(args[i], e))
	}
	slices.SortStableFunc(r.FilePaths, func(a, b inputEntry) int { return strings.Compare(b.FilePath, a.FilePath) })
	add.LogsAsked = in.verify.search.hosts()
	if !add.empty() {
		r.Assay = add
	}
	return r
}

func (in *inputs) entry(name string, e *conforma.Evaluation) inputEntry {
	all := &judged{violations: []conforma.Result{}, warnings: []conforma.Result{}, successes: []conforma.Result{}}
	all.take(e.Outcomes)
	for _, l := range [][]conforma.Result{all.violations, all.warnings, all.successes} {
		conforma.Sort(l)
		if !in.info {
			conforma.Condense(l)
		}
	}
	out := inputEntry{FilePath: name, Violations: all.violations, Success: len(all.violations) == 0, SuccessCount: len(all.successes)}
	if in.show.warnings {
		out.Warnings = all.warnings
	}
	if in.show.successes {
		out.Successes = all.successes
	}
	return out
}

func (r *inputReport) render(w io.Writer, t target) error {
	switch t.format {
	case "json":
		return encode(w, r)
	case "yaml":
		b, err := yaml.Marshal(r)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	case "summary":
		s := struct {
			FilePaths []summaryOfItem `json:"filepaths"`
			Success   bool            `json:"success"`
			Key       string          `json:"key"`
		}{}
		for _, f := range r.FilePaths {
			s.FilePaths = append(s.FilePaths, summaryOfItem{
				Name: f.FilePath, Success: f.Success,
				Violations: firstMessages(f.Violations), Warnings: firstMessages(f.Warnings), Successes: firstMessages(f.Successes),
				TotalViolations: len(f.Violations), TotalWarnings: len(f.Warnings), TotalSuccesses: f.SuccessCount,
			})
		}
		return encode(w, s)
	case "text":
		return r.text(w, t.show)
	}
	return fmt.Errorf("%q is not a valid report format", t.format)
}

func (r *inputReport) text(w io.Writer, s show) error {
	t := &textReport{success: r.Success, result: "SUCCESS", kind: "Input Files", show: s, colour: r.colour, count: len(r.FilePaths)}
	for _, f := range r.FilePaths {
		t.violations += len(f.Violations)
		t.warnings += len(f.Warnings)
		t.successes += f.SuccessCount
		switch {
		case len(f.Violations) > 0:
			t.result = "FAILURE"
		case len(f.Warnings) > 0 && t.result == "SUCCESS":
			t.result = "WARNING"
		}
	}
	t.items = func(each func(textItem) error) error {
		for _, f := range r.FilePaths {
			if err := each(textItem{
				lines: []string{"FilePath: " + f.FilePath}, label: "FilePath", reference: f.FilePath,
				violations: f.Violations, warnings: f.Warnings, successes: f.Successes, successful: f.SuccessCount,
			}); err != nil {
				return err
			}
		}
		return nil
	}
	return t.write(w)
}
