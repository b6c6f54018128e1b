package policytool

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/version"

	"assay.dev/assay/policy/builtin"
)

// Severity is how bad a finding is.
type Severity string

// The severities. A policy with an error is refused by the gate or does not do what it
// says; a warning is likely a slip; a note is worth knowing.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Note    Severity = "note"
)

func (s Severity) rank() int { return slices.Index([]Severity{Error, Warning, Note}, s) }

// Finding is one thing that is wrong, or may be, with a policy.
type Finding struct {
	Severity Severity `json:"severity"`
	// Code says what kind of thing it is, for programs.
	Code string `json:"code"`
	// File, Line and Column are where; empty and zero where it is no place in a file.
	File   string `json:"file,omitempty"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	// Source is the number of the source in the policy, from 1; zero: none.
	Source  int    `json:"source,omitempty"`
	Message string `json:"message"`
	// Details are further lines of the message.
	Details []string `json:"details,omitempty"`
	// Remedy is what to do about it.
	Remedy string `json:"remedy,omitempty"`
	// Excerpt is the line of the file; Caret the same with a mark below the column.
	Excerpt string `json:"excerpt,omitempty"`
}

// Place is where, as editors and terminals read it; empty for nowhere.
func (f *Finding) Place() string {
	switch {
	case f.File == "":
		return ""
	case f.Line == 0:
		return f.File
	case f.Column == 0:
		return fmt.Sprintf("%s:%d", f.File, f.Line)
	}
	return fmt.Sprintf("%s:%d:%d", f.File, f.Line, f.Column)
}

// Write writes the finding as a person reads it.
func (f *Finding) Write(w io.Writer) error {
	var b strings.Builder
	if p := f.Place(); p != "" {
		b.WriteString(p + ": ")
	} else if f.Source > 0 {
		fmt.Fprintf(&b, "source %d: ", f.Source)
	}
	fmt.Fprintf(&b, "%s: %s [%s]\n", f.Severity, f.Message, f.Code)
	for _, d := range f.Details {
		fmt.Fprintf(&b, "    %s\n", d)
	}
	if f.Excerpt != "" {
		fmt.Fprintf(&b, "    | %s\n", f.Excerpt)
		if f.Column > 0 {
			fmt.Fprintf(&b, "    | %s^\n", margin(f.Excerpt, f.Column))
		}
	}
	if f.Remedy != "" {
		fmt.Fprintf(&b, "    → %s\n", f.Remedy)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// margin is white space as wide as what is before the column, counted in characters
// as OPA does.
func margin(line string, column int) string {
	var b strings.Builder
	for i, r := range []rune(line) {
		if i >= column-1 {
			break
		}
		if r == '\t' {
			b.WriteRune('\t')
		} else {
			b.WriteByte(' ')
		}
	}
	return b.String()
}

// maxExcerpt bounds the line that a message shows.
const maxExcerpt = 240

// at sets the place, with the line of the file.
func (f Finding) at(file string, content []byte, line, column int) Finding {
	f.File, f.Line, f.Column = file, line, column
	if line <= 0 {
		return f
	}
	lines := strings.Split(string(content), "\n")
	if line > len(lines) {
		return f
	}
	text := strings.TrimRight(lines[line-1], " \t\r")
	if len(text) <= maxExcerpt {
		f.Excerpt = text
	}
	return f
}

// sortFindings orders by file and place, those of no file first.
func sortFindings(list []Finding) {
	slices.SortStableFunc(list, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column),
			cmp.Compare(a.Severity.rank(), b.Severity.rank()), cmp.Compare(a.Code, b.Code), cmp.Compare(a.Message, b.Message))
	})
}

// compilerErrors turns the errors of OPA's parser or compiler into findings. content
// is that of files by name, program the version of this program.
func compilerErrors(errs ast.Errors, severity Severity, content map[string][]byte, program string) []Finding {
	var out []Finding
	for _, e := range errs {
		out = append(out, compilerError(e, severity, content, program))
	}
	return out
}

func compilerError(e *ast.Error, severity Severity, content map[string][]byte, program string) Finding {
	f := Finding{Severity: severity, Code: strings.ReplaceAll(strings.TrimPrefix(strings.TrimSuffix(e.Code, "_error"), "rego_"), "_", "-"), Message: e.Message}
	if e.Details != nil {
		if _, isLine := e.Details.(*ast.ParserErrorDetail); !isLine {
			f.Details = e.Details.Lines()
		}
	}
	f.Remedy = remedy(e, program)
	if l := e.Location; l != nil {
		f = f.at(l.File, content[l.File], l.Row, l.Col)
	}
	return f
}

// remedy says what to do about what the compiler says.
func remedy(e *ast.Error, program string) string {
	msg := e.Message
	switch e.Code {
	case ast.TypeErr:
		if name, ok := strings.CutPrefix(msg, "undefined function "); ok {
			return undefinedFunction(name, program)
		}
		if _, ok := e.Details.(*ast.ArgErrDetail); ok {
			name, _, _ := strings.Cut(msg, ": ")
			return signature(name)
		}
		if strings.HasPrefix(msg, "undefined ref: ") {
			return "no rule, import or data has this name; look for a typing error, or a file that is in no source of the policy"
		}
	case ast.UnsafeVarErr:
		return "the variable gets no value: bind it with some … in …, := or as an argument, or import what it is to be"
	case ast.RecursionErr:
		return "a rule must not need itself; compute what both need in a third"
	case ast.ParseErr:
		switch {
		case strings.Contains(msg, "`if` keyword is required"), strings.Contains(msg, "`contains` keyword is required"):
			return "rules are Rego v1: deny contains result if { … }; `opa fmt --v0-v1` rewrites older ones"
		case strings.Contains(msg, "yaml: "):
			return "the METADATA block is YAML, indented below its key; a # that belongs to no block needs an empty line between"
		}
	case ast.CompileErr:
		switch {
		case strings.HasSuffix(msg, "unused"):
			return "remove it, or use it; a value that is not needed is called _"
		case strings.Contains(msg, "conflicts with"):
			return "rules and data share one tree: rename the rule, or the key in the data"
		}
	}
	return ""
}

// undefinedFunction is the remedy for a function that does not exist here.
func undefinedFunction(name, program string) string {
	if slices.Contains(builtin.Denied(), name) {
		return name + " is OPA's, and no policy may call it here: it reaches the network or tells about the machine; registries are asked with ec.oci.*"
	}
	if strings.HasPrefix(name, "data.") {
		return "no file of the source defines it; look for a typing error, or a library that is in no source of the policy"
	}
	out := fmt.Sprintf("this is assay %s with OPA %s: a policy for a newer one may need a newer program", program, version.Version)
	if near := nearest(name); near != "" {
		return fmt.Sprintf("is %s meant? If not: %s", near, out)
	}
	return out
}

// signature is what a function takes, for somebody who gave it something else.
func signature(name string) string {
	for _, b := range builtin.Capabilities().Builtins {
		if b.Name == name {
			return fmt.Sprintf("%s is called as %s%s", name, name, strings.TrimSuffix(b.Decl.FuncArgs().String(), ")")+")")
		}
	}
	return "look at what " + name + " is defined with: number and types of the arguments"
}

// nearest is the function whose name is most like one; "" where none is much.
func nearest(name string) string {
	best, least := "", max(2, len(name)/4)+1
	for _, b := range builtin.Capabilities().Builtins {
		if d := distance(name, b.Name, least); d < least {
			best, least = b.Name, d
		}
	}
	return best
}

// distance is Levenshtein's, or limit if that is less.
func distance(a, b string, limit int) int {
	if d := len(a) - len(b); d >= limit || -d >= limit {
		return limit
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			step := before
			if a[i-1] != b[j-1] {
				step++
			}
			before = row[j]
			row[j] = min(step, row[j]+1, row[j-1]+1)
		}
	}
	return min(row[len(b)], limit)
}
