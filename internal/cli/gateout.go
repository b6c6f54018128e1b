package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/term"

	"assay.dev/assay/report"
)

// outputs are the reports of one run. Those that go to files appear there when they
// are whole.
type outputs struct {
	report.Handler
	files []*os.File
	paths []string
}

// outputs reads --output. It fails before anything is judged.
func (a *app) outputs(list []string, successes bool) (*outputs, error) {
	if len(list) == 0 {
		list = []string{"text"}
	}
	o := &outputs{}
	var handlers []report.Handler
	stdout := ""
	for _, s := range list {
		form, path, toFile := strings.Cut(s, "=")
		if toFile && path == "" {
			return nil, errors.Join(usagef("--output %s: no file is named behind the =", s), o.abandon())
		}
		var w io.Writer = a.out
		opts := report.TextOptions{Successes: successes}
		switch {
		case toFile:
		case stdout != "":
			return nil, errors.Join(usagef("--output %s and --output %s would both go to standard output; name a file for one: %s=FILE", stdout, s, form), o.abandon())
		default:
			stdout = s
			opts.Color = isTerminal(a.out) && os.Getenv("NO_COLOR") == ""
		}
		if !strings.Contains(", "+reportForms()+",", ", "+form+",") || form == "" {
			return nil, errors.Join(usagef("--output %q: the forms are %s", form, reportForms()), o.abandon())
		}
		if toFile {
			f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
			if err != nil {
				return nil, errors.Join(fmt.Errorf("--output %s: %w", s, err), o.abandon())
			}
			o.files, o.paths = append(o.files, f), append(o.paths, path)
			w = f
		}
		handlers = append(handlers, handler(form, w, opts))
	}
	o.Handler = report.All(handlers...)
	return o, nil
}

func handler(form string, w io.Writer, opts report.TextOptions) report.Handler {
	switch form {
	case "json":
		return report.JSON(w)
	case "yaml":
		return report.YAML(w)
	case "sarif":
		return report.SARIF(w)
	case "junit":
		return report.JUnit(w)
	case "markdown":
		return report.Markdown(w)
	case "github":
		return report.GitHub(w)
	}
	return report.Text(w, opts)
}

// Close ends the reports and puts files in their places.
func (o *outputs) Close() error {
	if err := o.Handler.Close(); err != nil {
		return err
	}
	for i, f := range o.files {
		err := f.Chmod(0o644)
		if err = errors.Join(err, f.Close()); err == nil {
			err = os.Rename(f.Name(), o.paths[i])
		}
		if err != nil {
			return fmt.Errorf("writing report: %w", err)
		}
	}
	o.files = nil
	return nil
}

// abandon removes what was not closed.
func (o *outputs) abandon() error {
	for _, f := range o.files {
		f.Close()
		os.Remove(f.Name())
	}
	o.files = nil
	return nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// progress is a line on a terminal that says how far a run is.
type progress struct {
	w     io.Writer // nil: nobody looks
	last  time.Time
	shown bool
}

func newProgress(w io.Writer) *progress {
	if !isTerminal(w) {
		w = nil
	}
	return &progress{w: w, last: time.Now()}
}

func (p *progress) show(done, of int) {
	// What is done in a moment needs no line.
	if p.w == nil || done == of || time.Since(p.last) < 200*time.Millisecond {
		return
	}
	p.last, p.shown = time.Now(), true
	fmt.Fprintf(p.w, "\r\x1b[K%d of %d images judged", done, of)
}

func (p *progress) clear() {
	if p.w != nil && p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}
