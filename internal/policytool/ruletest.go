package policytool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
	"github.com/open-policy-agent/opa/v1/topdown"

	"assay.dev/assay/policy"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/source"
	"assay.dev/assay/policy/spec"
)

// TestOptions say which tests to run. The zero value runs all.
type TestOptions struct {
	// Run is a regular expression of tests, by their whole names (data.pkg.test_x).
	Run string
	// Ignore are patterns (path.Match) of files and folders that are passed over, by
	// their names or their paths below the argument.
	Ignore []string
	// Coverage counts which lines of rules tests reach.
	Coverage bool
	// Timeout bounds one test. Default: 30 seconds.
	Timeout time.Duration
	// Parallel is how many run at a time. Default: one for each core.
	Parallel int
	// Program is this program's version, for messages.
	Program string
}

// TestRun is what tests came to.
type TestRun struct {
	Passed  int          `json:"passed"`
	Failed  int          `json:"failed"`
	Errors  int          `json:"errors"`
	Skipped int          `json:"skipped"`
	Seconds float64      `json:"seconds"`
	Tests   []TestResult `json:"tests"`
	// Unmocked are calls of ec.* functions that no test replaced, and which here have
	// no answer.
	Unmocked []builtin.Failure `json:"unmocked,omitempty"`
	Coverage *Coverage         `json:"coverage,omitempty"`
}

// Total is how many tests there were.
func (r *TestRun) Total() int { return r.Passed + r.Failed + r.Errors + r.Skipped }

// TestResult is what one test came to.
type TestResult struct {
	Package string  `json:"package"`
	Name    string  `json:"name"`
	File    string  `json:"file"`
	Line    int     `json:"line"`
	Outcome string  `json:"outcome"` // pass, fail, error, skip
	Seconds float64 `json:"seconds"`
	// Cases are the cases of a table that failed.
	Cases []string `json:"failedCases,omitempty"`
	// FailedAt is the expression at which it ended, FailedLine where that stands.
	FailedAt   string `json:"failedAt,omitempty"`
	FailedLine int    `json:"failedLine,omitempty"`
	Error      string `json:"error,omitempty"`
	Output     string `json:"output,omitempty"` // of print()
}

// FullName is the test's name with its package.
func (r *TestResult) FullName() string { return r.Package + "." + r.Name }

// Outcomes of tests.
const (
	passed  = "pass"
	failed  = "fail"
	errored = "error"
	skipped = "skip"
)

// InvalidError says that rules or tests do not compile.
type InvalidError struct{ Findings []Finding }

func (e *InvalidError) Error() string {
	return fmt.Sprintf("the rules do not compile: %d errors", len(e.Findings))
}

// ErrNoTests is the error where nothing was tested.
var ErrNoTests = errors.New("there are no tests: no rule whose name begins with test_ in any .rego file")

// Test runs the tests of rules in files and folders, with the data beside them, laid
// out as OPA's own test command has it. Rules are compiled as the gate does: they may call the ec.* functions, which tests replace (with
// ec.oci.image_manifest as …), and nothing that reaches the network. It fails with an
// InvalidError where rules do not compile, and with ErrNoTests where none is selected.
func Test(ctx context.Context, paths []string, o TestOptions) (*TestRun, error) {
	if _, err := regexp.Compile(o.Run); err != nil {
		return nil, fmt.Errorf("reading which tests to run: %w", err)
	}
	t, err := readTests(paths, o)
	if err != nil {
		return nil, err
	}
	set, err := builtin.New(builtin.Options{})
	if err != nil {
		return nil, err
	}
	start := time.Now()
	run := &TestRun{Tests: []TestResult{}}
	results, err := t.run(ctx, set, o, false)
	if err != nil {
		return nil, err
	}
	for _, r := range results {
		run.add(r)
	}
	if run.Total() == 0 {
		if o.Run != "" {
			return nil, fmt.Errorf("%w that %q matches", ErrNoTests, o.Run)
		}
		return nil, ErrNoTests
	}
	run.Seconds = time.Since(start).Seconds()
	run.Unmocked = set.Failures()
	if t.cover != nil {
		run.Coverage = t.coverage()
	}
	slices.SortFunc(run.Tests, func(a, b TestResult) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Name, b.Name))
	})
	return run, t.locate(ctx, set, run, o)
}

// tests are the files of a run.
type tests struct {
	modules map[string]*ast.Module
	content map[string][]byte
	store   storage.Store
	cover   *cover.Cover
}

func readTests(paths []string, o TestOptions) (*tests, error) {
	t := &tests{modules: map[string]*ast.Module{}, content: map[string][]byte{}}
	data := map[string]any{}
	var invalid []Finding
	for _, p := range paths {
		files, err := walkTests(p, o.Ignore)
		if err != nil {
			return nil, err
		}
		for _, name := range files {
			if _, ok := t.content[name]; ok {
				continue
			}
			raw, err := source.ReadFile(name, source.MaxFileBytes)
			if err != nil {
				return nil, err
			}
			if strings.HasSuffix(name, ".rego") {
				t.content[name] = raw
				m, err := parseModule(name, raw)
				var errs ast.Errors
				switch {
				case errors.As(err, &errs):
					invalid = append(invalid, compilerErrors(errs, Error, t.content, o.Program)...)
				case err != nil:
					return nil, fmt.Errorf("parsing %s: %w", name, err)
				case m != nil:
					t.modules[name] = m
				}
				continue
			}
			if configuration(name, raw) {
				continue
			}
			m, err := policy.ParseData(policy.File{Path: name, Bytes: raw})
			if err != nil {
				return nil, err
			}
			if err := mergeData(data, below(p, name, m), "data."); err != nil {
				return nil, fmt.Errorf("merging data file %s: %w", name, err)
			}
		}
	}
	if len(invalid) > 0 {
		return nil, &InvalidError{invalid}
	}
	t.store = inmem.NewFromObject(data)
	if o.Coverage {
		t.cover = cover.New()
	}
	return t, nil
}

// walkTests lists the rules, tests and data at a path. What begins with a dot is no
// part of a policy.
func walkTests(root string, ignore []string) ([]string, error) {
	for _, pattern := range ignore {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("reading the pattern %q of what to ignore: %w", pattern, err)
		}
	}
	var out []string
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if p != root {
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			if strings.HasPrefix(d.Name(), ".") || ignored(filepath.ToSlash(rel), ignore) {
				if d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
		}
		if !d.IsDir() && (strings.HasSuffix(p, ".rego") || source.IsData(p)) {
			if out = append(out, p); len(out) > source.MaxFiles {
				return fmt.Errorf("%s has more than %d files of rules and data; is the path right?", root, source.MaxFiles)
			}
		}
		return nil
	})
	return out, err
}

func ignored(rel string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		whole, _ := path.Match(pattern, rel)
		name, _ := path.Match(pattern, path.Base(rel))
		return whole || name
	})
}

// configuration says whether a file is a policy's, which is no data.
func configuration(name string, raw []byte) bool {
	base := strings.TrimSuffix(filepath.Base(name), filepath.Ext(name))
	if base != "policy" {
		return false
	}
	s, err := spec.Parse(raw)
	return err == nil && (len(s.Sources) > 0 || s.Assay != nil)
}

// below is a file's data where OPA's test command has it: that of a file in a folder
// below the argument stands under the folder's name.
func below(root, name string, m map[string]any) map[string]any {
	rel, err := filepath.Rel(root, filepath.Dir(name))
	if err != nil || root == name || rel == "." {
		return m
	}
	for _, folder := range slices.Backward(strings.Split(filepath.ToSlash(rel), "/")) {
		m = map[string]any{folder: m}
	}
	return m
}

// mergeData puts a file's data to the others'. One key with two values is an error.
func mergeData(dst, src map[string]any, at string) error {
	for _, k := range slices.Sorted(maps.Keys(src)) {
		old, ok := dst[k]
		if !ok {
			dst[k] = src[k]
			continue
		}
		a, aok := old.(map[string]any)
		b, bok := src[k].(map[string]any)
		if !aok || !bok {
			return fmt.Errorf("%s%s is given twice", at, k)
		}
		if err := mergeData(a, b, at+k+"."); err != nil {
			return err
		}
	}
	return nil
}

func parseModule(name string, raw []byte) (*ast.Module, error) {
	return ast.ParseModuleWithOpts(name, string(raw), ast.ParserOptions{
		ProcessAnnotation: true, RegoVersion: ast.RegoV1, Capabilities: builtin.Capabilities(),
	})
}

// run compiles and runs. A traced run is for few tests.
func (t *tests) run(ctx context.Context, set *builtin.Set, o TestOptions, traced bool) ([]*tester.Result, error) {
	compiler := ast.NewCompiler().WithCapabilities(builtin.Capabilities()).WithEnablePrintStatements(true).SetErrorLimit(maxErrors)
	var custom []*tester.Builtin
	functions := set.Rego()
	for i, d := range builtin.Declarations() {
		custom = append(custom, &tester.Builtin{Decl: d, Func: functions[i]})
	}
	r := tester.NewRunner().SetCompiler(compiler).SetStore(t.store).SetModules(t.modules).AddCustomBuiltins(custom).
		CapturePrintOutput(true).SetTimeout(cmp.Or(o.Timeout, 30*time.Second)).SetParallel(o.Parallel).Filter(o.Run)
	switch {
	case traced:
		r = r.EnableTracing(true)
	case t.cover != nil:
		// One pass: what more the others tell does not change the numbers.
		r = r.SetCoverageRuns(nil).SetCoverageQueryTracer(t.cover)
	}
	txn, err := t.store.NewTransaction(ctx)
	if err != nil {
		return nil, err
	}
	defer t.store.Abort(ctx, txn)
	ch, err := r.RunTests(ctx, txn)
	var errs ast.Errors
	if errors.As(err, &errs) {
		return nil, &InvalidError{compilerErrors(errs, Error, t.content, o.Program)}
	}
	if err != nil {
		return nil, fmt.Errorf("running tests: %w", err)
	}
	var out []*tester.Result
	for r := range ch {
		out = append(out, r)
	}
	return out, ctx.Err()
}

func (r *TestRun) add(t *tester.Result) {
	one := TestResult{
		Package: strings.TrimPrefix(t.Package, "data."), Name: t.Name, Seconds: t.Duration.Seconds(), Output: string(t.Output),
	}
	if t.Location != nil {
		one.File, one.Line = t.Location.File, t.Location.Row
	}
	for name, sub := range t.SubResults.Iter {
		if sub.Fail && len(sub.SubResults) == 0 {
			one.Cases = append(one.Cases, strings.Join(name, "/"))
		}
	}
	switch {
	case t.Skip:
		one.Outcome = skipped
		r.Skipped++
	case t.Error != nil:
		one.Outcome, one.Error = errored, t.Error.Error()
		r.Errors++
	case t.Fail:
		one.Outcome = failed
		r.Failed++
	default:
		one.Outcome = passed
		r.Passed++
	}
	r.Tests = append(r.Tests, one)
}

// maxTraced is how many failed tests are run again to say where they ended.
const maxTraced = 25

// locate finds the expressions at which tests failed, by running them once more with a
// trace, which is too much for all.
func (t *tests) locate(ctx context.Context, set *builtin.Set, run *TestRun, o TestOptions) error {
	index := map[string]int{}
	var names []string
	for i := range run.Tests {
		if r := &run.Tests[i]; r.Outcome == failed && len(names) < maxTraced {
			index[r.FullName()] = i
			names = append(names, regexp.QuoteMeta(r.FullName()))
		}
	}
	if len(names) == 0 {
		return nil
	}
	o.Run = `^(data\.)?(` + strings.Join(names, "|") + ")$"
	again, err := t.run(ctx, set, o, true)
	if err != nil {
		return err
	}
	for _, r := range again {
		i, ok := index[strings.TrimPrefix(r.Package, "data.")+"."+r.Name]
		if !ok {
			continue
		}
		one := &run.Tests[i]
		for _, e := range slices.Backward(r.Trace) {
			x, isExpr := e.Node.(*ast.Expr)
			if e.Op == topdown.FailOp && isExpr && e.Location != nil && e.Location.File == one.File && e.Location.Row >= one.Line {
				one.FailedAt, one.FailedLine = strings.Join(strings.Fields(string(e.Location.Text)), " "), e.Location.Row
				if one.FailedAt == "" {
					one.FailedAt = x.String()
				}
				break
			}
		}
	}
	return nil
}

// Coverage is which lines of rules tests reached; those of tests do not count.
type Coverage struct {
	Percent float64        `json:"percent"`
	Covered int            `json:"coveredLines"`
	Missed  int            `json:"missedLines"`
	Files   []FileCoverage `json:"files"`
}

// FileCoverage is that of one file.
type FileCoverage struct {
	File    string  `json:"file"`
	Percent float64 `json:"percent"`
	// Missed are the lines, 3 or 5-7, that no test reached.
	Missed []string `json:"missed,omitempty"`
}

func (t *tests) coverage() *Coverage {
	rules := maps.Clone(t.modules)
	maps.DeleteFunc(rules, func(name string, _ *ast.Module) bool { return strings.HasSuffix(name, "_test.rego") })
	report := t.cover.Report(rules)
	c := &Coverage{Files: []FileCoverage{}}
	for _, name := range slices.Sorted(maps.Keys(rules)) {
		r := report.Files[name]
		if r == nil || r.CoveredLines+r.NotCoveredLines == 0 {
			continue
		}
		f := FileCoverage{File: name, Percent: percent(r.CoveredLines, r.NotCoveredLines)}
		c.Covered += r.CoveredLines
		c.Missed += r.NotCoveredLines
		f.Missed = rows(r.NotCovered)
		c.Files = append(c.Files, f)
	}
	c.Percent = percent(c.Covered, c.Missed)
	return c
}

func percent(covered, missed int) float64 {
	if covered+missed == 0 {
		return 0
	}
	return 100 * float64(covered) / float64(covered+missed)
}

// rows are the lines of ranges, with those that follow one another as one.
func rows(ranges []cover.Range) []string {
	set := map[int]bool{}
	for _, r := range ranges {
		for i := r.Start.Row; i <= r.End.Row; i++ {
			set[i] = true
		}
	}
	var out []string
	list := slices.Sorted(maps.Keys(set))
	for i := 0; i < len(list); {
		j := i
		for j+1 < len(list) && list[j+1] == list[j]+1 {
			j++
		}
		if i == j {
			out = append(out, fmt.Sprint(list[i]))
		} else {
			out = append(out, fmt.Sprintf("%d-%d", list[i], list[j]))
		}
		i = j + 1
	}
	return out
}

// maxErrors bounds how many errors a compiler tells at a time.
const maxErrors = 100
