// Package conftest is `conftest test` for `ec test`: configuration files of some
// twenty languages, tested by Rego.
//
//	files ─▶ parser ─▶ documents ─┐
//	policies, data ─▶ engine ─────┴─▶ results ─▶ one of nine forms
//
// Parsers, engine and forms are conftest's own packages, so that tests written for
// it give what it gives. What is around them is ours, because conftest's own runner
// brings the storage clients of two clouds along for --update; here policies come
// from package source as everywhere else.
//
// Rules are not fenced in: they may call every builtin of OPA, http.send too, unless
// --capabilities says otherwise. That is conftest's, and unlike all other commands.
package conftest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"github.com/open-policy-agent/conftest/output"
	"github.com/open-policy-agent/conftest/parser"
	"github.com/open-policy-agent/conftest/policy"
	"github.com/spf13/viper"

	"assay.dev/assay/policy/source"
)

// Options are conftest's flags of the same names.
type Options struct {
	Policy, Data, Update, Namespace, ProtoFileDirs []string
	Capabilities, RegoVersion, Ignore, Parser      string
	Trace, Strict, AllNamespaces, Combine          bool
	ShowBuiltinErrors                              bool
	// Sources is where Update comes from. Required with Update.
	Sources source.Fetcher
}

// Results are a run's.
type Results = output.CheckResults

// Run tests files. It fails on files that cannot be read or parsed, on policies that
// do not load, and where a rule gives what is no result.
func Run(ctx context.Context, files []string, o Options) (Results, error) {
	list, err := expand(files, o.Ignore)
	if err != nil {
		return nil, fmt.Errorf("parse files: %w", err)
	}
	if len(o.ProtoFileDirs) > 0 {
		viper.Set("proto-file-dirs", o.ProtoFileDirs) // where conftest's parser looks
	}
	var configurations map[string]any
	if o.Parser != "" {
		configurations, err = parser.ParseConfigurationsAs(list, o.Parser)
	} else {
		configurations, err = parser.ParseConfigurations(list)
	}
	if err != nil {
		return nil, fmt.Errorf("parse configurations: %w", err)
	}
	if err := o.update(ctx); err != nil {
		return nil, fmt.Errorf("update policies: %w", err)
	}
	capabilities, err := policy.LoadCapabilities(o.Capabilities)
	if err != nil {
		return nil, fmt.Errorf("load capabilities: %w", err)
	}
	engine, err := policy.LoadWithData(o.Policy, o.Data, policy.CompilerOptions{Strict: o.Strict, RegoVersion: o.RegoVersion, Capabilities: capabilities})
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	engine.EnableInterQueryCache()
	if o.Trace {
		engine.EnableTracing()
	}
	if o.ShowBuiltinErrors {
		engine.ShowBuiltinErrors()
	}
	namespaces := o.Namespace
	if o.AllNamespaces {
		namespaces = engine.Namespaces()
	}
	var out Results
	for _, namespace := range namespaces {
		if o.Combine {
			r, err := engine.CheckCombined(ctx, configurations, namespace)
			if err != nil {
				return nil, fmt.Errorf("check combined: %w", err)
			}
			out = append(out, r)
			continue
		}
		r, err := engine.Check(ctx, configurations, namespace)
		if err != nil {
			return nil, fmt.Errorf("query rule: %w", err)
		}
		out = append(out, r...)
	}
	return out, nil
}

// Evaluated says whether any rule was asked about any file.
func Evaluated(list Results) bool {
	for _, r := range list {
		if r.Successes > 0 || len(r.Failures) > 0 || len(r.Warnings) > 0 || len(r.Exceptions) > 0 || len(r.Skipped) > 0 {
			return true
		}
	}
	return false
}

// update puts fetched policies into the first policy folder.
func (o *Options) update(ctx context.Context) error {
	if len(o.Update) == 0 {
		return nil
	}
	if o.Sources == nil || len(o.Policy) == 0 {
		return errors.New("neither where policies come from nor where they go is known")
	}
	if err := os.MkdirAll(o.Policy[0], 0o755); err != nil {
		return err
	}
	to, err := os.OpenRoot(o.Policy[0])
	if err != nil {
		return err
	}
	defer to.Close()
	for _, address := range o.Update {
		t, err := o.Sources.Fetch(ctx, address)
		if err != nil {
			return err
		}
		list, err := t.Files(nil)
		if err != nil {
			return err
		}
		for _, f := range list {
			if err := to.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
				return err
			}
			if err := to.WriteFile(f.Path, f.Bytes, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// expand lists the files of folders that a parser knows. Links are followed, each
// folder once.
func expand(files []string, ignore string) ([]string, error) {
	skip, err := regexp.Compile(ignore)
	if err != nil {
		return nil, fmt.Errorf("given regexp couldn't be parsed: %w", err)
	}
	var out []string
	for _, f := range files {
		if f == "" {
			continue
		}
		if f == "-" {
			out = append(out, f)
			continue
		}
		info, err := os.Stat(f)
		if err != nil {
			return nil, fmt.Errorf("get file info: %w", err)
		}
		if !info.IsDir() {
			out = append(out, f)
			continue
		}
		w := walker{skip: skip, ignore: ignore != "", seen: map[string]bool{}}
		if err := w.folder(f); err != nil {
			return nil, fmt.Errorf("get files from directory: %w", err)
		}
		out = append(out, w.found...)
	}
	if len(out) == 0 {
		return nil, errors.New("no files found")
	}
	return out, nil
}

type walker struct {
	skip   *regexp.Regexp
	ignore bool
	seen   map[string]bool // folders, by their real paths
	found  []string
}

func (w *walker) folder(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			real, err := filepath.EvalSymlinks(p)
			if err == nil {
				real, err = filepath.Abs(real)
			}
			if err == nil && w.seen[real] {
				err = filepath.SkipDir
			}
			w.seen[real] = true
			return err
		case w.ignore && w.skip.MatchString(p):
			return nil
		case d.Type()&fs.ModeSymlink != 0:
			if p, err = filepath.EvalSymlinks(p); err != nil {
				return err
			}
			info, err := os.Stat(p)
			if err != nil {
				return err
			}
			if info.IsDir() {
				return w.folder(p)
			}
		}
		if parser.FileSupported(p) {
			w.found = append(w.found, p)
		}
		return nil
	})
}
