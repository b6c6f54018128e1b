package ec

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

// show says what reports for people list.
type show struct{ successes, warnings, docsLink bool }

// target is where a report goes and in what form: FORMAT[=FILE][?OPTIONS].
type target struct {
	format string
	path   string
	show   show
}

func parseTarget(s string, fallback string, defaults show) (target, error) {
	head, options, _ := strings.Cut(s, "?")
	t := target{show: defaults}
	t.format, t.path, _ = strings.Cut(head, "=")
	if t.format == "" {
		t.format = fallback
	}
	vals, err := url.ParseQuery(options)
	if err != nil {
		return t, fmt.Errorf("--output %s: %w", s, err)
	}
	for key, to := range map[string]*bool{"show-successes": &t.show.successes, "show-warnings": &t.show.warnings, "show-policy-docs-link": &t.show.docsLink} {
		if v := vals.Get(key); v != "" {
			if *to, err = strconv.ParseBool(v); err != nil {
				return t, fmt.Errorf("--output %s: %w", s, err)
			}
		}
	}
	return t, nil
}

// targets reads --output. Formats that are not accepted are refused before
// anything is judged.
func targets(list []string, fallback string, defaults show, accepted ...string) ([]target, error) {
	if len(list) == 0 {
		list = []string{"text"}
	}
	var out []target
	for _, s := range list {
		t, err := parseTarget(s, fallback, defaults)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(accepted, t.format) {
			return nil, fmt.Errorf("%q is not a valid report format; this command writes %s", t.format, strings.Join(accepted, ", "))
		}
		out = append(out, t)
	}
	return out, nil
}

// writeAll writes a report to each target. All are tried.
func writeAll(list []target, stdout io.Writer, render func(io.Writer, target) error) error {
	var errs []error
	for _, t := range list {
		if t.path == "" {
			errs = append(errs, writeOne(stdout, t, render))
			continue
		}
		f, err := os.OpenFile(t.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
		if err != nil {
			errs = append(errs, fmt.Errorf("writing the %s report: %w", t.format, err))
			continue
		}
		errs = append(errs, errors.Join(writeOne(f, t, render), f.Close()))
	}
	return errors.Join(errs...)
}

// writeOne writes a report that ends with a line break.
func writeOne(to io.Writer, t target, render func(io.Writer, target) error) error {
	b := bufio.NewWriterSize(to, 64<<10)
	w := &lastByte{Writer: b}
	if err := render(w, t); err != nil {
		return fmt.Errorf("writing the %s report: %w", t.format, err)
	}
	if w.last != '\n' {
		_ = b.WriteByte('\n') // Flush has its error
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("writing the %s report: %w", t.format, err)
	}
	return nil
}

// lastByte knows what was written last.
type lastByte struct {
	io.Writer
	last byte
}

func (w *lastByte) Write(b []byte) (int, error) {
	if len(b) > 0 {
		w.last = b[len(b)-1]
	}
	return w.Writer.Write(b)
}

// colour says whether text output has colours.
func colour(never, always bool, out io.Writer) bool {
	set := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return os.Getenv(n) != "" })
	}
	switch {
	case never || set("EC_NO_COLOR", "EC_NO_COLOUR", "NO_COLOR", "NO_COLOUR"):
		return false
	case always || set("EC_FORCE_COLOR", "EC_FORCE_COLOUR", "FORCE_COLOR", "FORCE_COLOUR"):
		return true
	}
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
