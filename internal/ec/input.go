package ec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/internal/ec/input"
	"assay.dev/assay/policy/conforma"
)

// inputFormats are those that reports of inputs are written in.
var inputFormats = []string{"json", "yaml", "text", "summary"}

// maxInputFiles bounds the files of a folder.
const maxInputFiles = 10_000

// readInput reads what an argument names: a file, a folder's files, or a document
// written out.
func readInput(arg string) ([]conforma.Document, error) {
	if json.Valid([]byte(arg)) || input.IsMap(arg) {
		values, err := input.Parse("", []byte(arg))
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
		values, err := input.Parse(filepath.Ext(f), raw)
		if err != nil {
			return nil, fmt.Errorf("parsing %s: %w", f, err)
		}
		out = append(out, conforma.Document{Name: f, Values: values})
	}
	return out, nil
}

// inputReport is the report of `validate input`.
type inputReport struct {
	Success       bool           `json:"success"`
	FilePaths     []input.Entry  `json:"filepaths"`
	Policy        *conforma.Spec `json:"policy"`
	Version       string         `json:"ec-version"`
	EffectiveTime time.Time      `json:"effective-time"`
	Assay         *additions     `json:"assay,omitempty"`

	colour bool
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
	for i, e := range evaluations {
		add.note(args[i], e)
	}
	slices.Sort(add.ForeignRegistries)
	r := &inputReport{Policy: in.spec, Version: Version(), EffectiveTime: in.when}
	o := input.Options{Info: in.info, Warnings: in.show.warnings, Successes: in.show.successes}
	r.FilePaths, r.Success, add.NestedViolations = input.Entries(args, evaluations, o)
	add.LogsAsked = in.verify.search.hosts()
	if !add.empty() {
		r.Assay = add
	}
	return r
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
