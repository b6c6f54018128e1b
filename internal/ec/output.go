package ec

import (
	"bytes"
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
func writeAll(list []target, stdout io.Writer, render func(target) ([]byte, error)) error {
	var errs []error
	for _, t := range list {
		b, err := render(t)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !bytes.HasSuffix(b, []byte("\n")) {
			b = append(b, '\n')
		}
		if t.path == "" {
			_, err = stdout.Write(b)
		} else {
			err = os.WriteFile(t.path, b, 0o644)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// colour says whether text output has colours.
func colour(never, always bool, out io.Writer) bool {
	set := func(names ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { _, ok := os.LookupEnv(n); return ok })
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
