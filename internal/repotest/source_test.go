package repotest_test

import (
	"bytes"
	"go/ast"
	"go/doc/comment"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"assay.dev/assay/internal/repotest"
)

// maxLines bounds a source file: one idea a file.
const maxLines = 700

// source is one Go file of the repository.
type source struct {
	name    string // relative to the root
	content []byte
	file    *ast.File
	fset    *token.FileSet
}

func (s *source) test() bool { return strings.HasSuffix(s.name, "_test.go") }

func (s *source) at(n ast.Node) int { return s.fset.Position(n.Pos()).Line }

// files reads the repository once: its root, all names, and the Go files.
var files = sync.OnceValues(func() (r struct {
	root    string
	names   []string
	sources []*source
}, err error) {
	if r.root, err = repotest.Root(); err != nil {
		return r, err
	}
	if r.names, err = repotest.Files(r.root); err != nil {
		return r, err
	}
	for _, name := range r.names {
		if path.Ext(name) != ".go" || strings.Contains(name, "testdata/") {
			continue
		}
		s := &source{name: name, fset: token.NewFileSet()}
		if s.content, err = os.ReadFile(filepath.Join(r.root, name)); err != nil {
			return r, err
		}
		if s.file, err = parser.ParseFile(s.fset, name, s.content, parser.ParseComments|parser.SkipObjectResolution); err != nil {
			return r, err
		}
		r.sources = append(r.sources, s)
	}
	return r, nil
})

func eachSource(t *testing.T, f func(*source)) {
	t.Helper()
	r, err := files()
	if err != nil {
		t.Fatal(err)
	}
	if len(r.sources) < 50 {
		t.Fatalf("only %d Go files found below %s", len(r.sources), r.root)
	}
	for _, s := range r.sources {
		f(s)
	}
}

func TestFormat(t *testing.T) {
	eachSource(t, func(s *source) {
		if out, err := format.Source(s.content); err != nil {
			t.Errorf("%s: %v", s.name, err)
		} else if !bytes.Equal(out, s.content) {
			t.Errorf("%s is not formatted: run gofmt -w %s", s.name, s.name)
		}
	})
}

func TestLength(t *testing.T) {
	eachSource(t, func(s *source) {
		if n := bytes.Count(s.content, []byte("\n")); n > maxLines {
			t.Errorf("%s has %d lines, more than %d: give its second idea a file of its own", s.name, n, maxLines)
		}
	})
}

// TestPackageDocs: a package begins with an essay, in one place.
func TestPackageDocs(t *testing.T) {
	docs, seen := map[string][]string{}, map[string]string{}
	eachSource(t, func(s *source) {
		if s.test() {
			return
		}
		dir := path.Dir(s.name)
		seen[dir] = s.file.Name.Name
		if s.file.Doc == nil {
			return
		}
		docs[dir] = append(docs[dir], s.name)
		text, name := s.file.Doc.Text(), s.file.Name.Name
		begins := "Package " + name + " "
		ok := strings.HasPrefix(text, begins)
		if name == "main" {
			begins = "Command or the program's name"
			first, _, _ := strings.Cut(text, " ")
			ok = first == "Command" || strings.EqualFold(first, path.Base(dir))
		}
		if !ok {
			t.Errorf("%s: the package doc begins %q: begin it with %q and say what it is for", s.name, firstLine(text), begins)
		}
	})
	for dir, name := range seen {
		switch len(docs[dir]) {
		case 0:
			t.Errorf("package %s (%s) has no package doc: say what it is, how the pieces fit and what it does not do", name, dir)
		case 1:
		default:
			t.Errorf("package %s has %d package docs (%s): keep one, make the others comments after the package clause", name, len(docs[dir]), strings.Join(docs[dir], ", "))
		}
	}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// obvious are methods whose doc the interface they implement has.
var obvious = map[string]bool{
	"Error": true, "Unwrap": true, "Is": true, "As": true, "String": true, "Close": true,
	"Read": true, "Write": true, "Len": true, "Less": true, "Swap": true, "Set": true,
	"MarshalJSON": true, "UnmarshalJSON": true, "ServeHTTP": true, "RoundTrip": true,
	"Open": true, "Stat": true, "LogValue": true, "Temporary": true, "Timeout": true,
}

// TestDocComments: every export of a package that others import says what it
// does. Members of a documented group or of a documented type and values with a
// comment beside them are documented; so are methods that an interface of the
// standard library defines.
func TestDocComments(t *testing.T) {
	types := map[string]bool{} // folder/Type of documented types
	eachSource(t, func(s *source) {
		for _, d := range s.file.Decls {
			if d, ok := d.(*ast.GenDecl); ok && d.Tok == token.TYPE {
				for _, spec := range d.Specs {
					if v := spec.(*ast.TypeSpec); d.Doc != nil || v.Doc != nil {
						types[path.Dir(s.name)+"/"+v.Name.Name] = true
					}
				}
			}
		}
	})
	eachSource(t, func(s *source) {
		if s.test() || s.file.Name.Name == "main" {
			return
		}
		complain := func(n ast.Node, name string) {
			t.Errorf("%s:%d: %s is exported and has no doc comment: say what it is and what happens on failure", s.name, s.at(n), name)
		}
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				name := d.Name.Name
				if d.Recv != nil {
					recv := receiver(d.Recv.List[0].Type)
					if !ast.IsExported(recv) || obvious[name] {
						continue
					}
					name = recv + "." + name
				}
				if d.Name.IsExported() && d.Doc == nil && !inRun(s, d) {
					complain(d, name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch v := spec.(type) {
					case *ast.TypeSpec:
						if v.Name.IsExported() && v.Doc == nil && d.Doc == nil && v.Comment == nil {
							complain(v, v.Name.Name)
						}
					case *ast.ValueSpec:
						if id, ok := v.Type.(*ast.Ident); ok && types[path.Dir(s.name)+"/"+id.Name] {
							continue
						}
						for _, n := range v.Names {
							if n.IsExported() && v.Doc == nil && v.Comment == nil && d.Doc == nil {
								complain(v, n.Name)
							}
						}
					}
				}
			}
		}
	})
}

// inRun says whether a function stands directly below the one before, line by
// line: a run of one-liners shares the comment above the first.
func inRun(s *source, d *ast.FuncDecl) bool {
	line := s.at(d)
	for _, other := range s.file.Decls {
		f, ok := other.(*ast.FuncDecl)
		if ok && s.fset.Position(f.End()).Line == line-1 && s.fset.Position(f.End()).Line == s.at(f.Name) {
			return f.Doc != nil || inRun(s, f)
		}
	}
	return false
}

func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// TestNoInit: what a package needs arrives through constructors.
func TestNoInit(t *testing.T) {
	eachSource(t, func(s *source) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s:%d: func init registers behind the reader's back: make it a value that main or a constructor passes on", s.name, s.at(f))
			}
		}
	})
}

// unfinished are the words by which people mark what is not done.
var unfinished = regexp.MustCompile(`\b(` + strings.Join([]string{"TO" + "DO", "FIX" + "ME", "XX" + "X", "HA" + "CK"}, "|") + `)\b|context\.TO` + `DO\(`)

func TestNothingUnfinished(t *testing.T) {
	r, err := files()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range r.names {
		switch path.Ext(name) {
		case ".go", ".rego", ".yaml", ".yml", ".sh", ".mod", "":
		default:
			continue
		}
		if strings.Contains(name, "testdata/") || name == "LICENSE" {
			continue
		}
		content, err := os.ReadFile(filepath.Join(r.root, name))
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(content), "\n") {
			if m := unfinished.FindString(line); m != "" {
				t.Errorf("%s:%d: %s: finish it, or open an issue and say in the code what is and is not done", name, i+1, m)
			}
		}
	}
}

// TestDocSyntax: package docs render; a heading or list that go doc does not see
// is text run together.
func TestDocSyntax(t *testing.T) {
	eachSource(t, func(s *source) {
		if s.file.Doc == nil || s.test() {
			return
		}
		text := s.file.Doc.Text()
		doc := new(comment.Parser).Parse(text)
		if len(doc.Content) == 0 {
			t.Errorf("%s: the package doc is empty", s.name)
		}
		if lines := strings.Count(text, "\n"); lines > 90 {
			t.Errorf("%s: the package doc has %d lines: an essay is short; move the specification into docs or a .md beside it", s.name, lines)
		}
	})
}
