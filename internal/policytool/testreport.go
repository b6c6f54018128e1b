package policytool

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// WriteText writes what tests came to as a person reads it: what failed, and with
// verbose every test.
func (r *TestRun) WriteText(w io.Writer, verbose bool) error {
	var b strings.Builder
	for i := range r.Tests {
		t := &r.Tests[i]
		if t.Outcome == passed && !verbose {
			continue
		}
		fmt.Fprintf(&b, "%s %s", map[string]string{passed: "pass ", failed: "FAIL ", errored: "ERROR", skipped: "skip "}[t.Outcome], t.FullName())
		if verbose && t.Outcome != skipped {
			fmt.Fprintf(&b, " (%.3fs)", t.Seconds)
		}
		b.WriteByte('\n')
		if t.Outcome != passed && t.Outcome != skipped {
			line := t.Line
			if t.FailedLine > 0 {
				line = t.FailedLine
			}
			fmt.Fprintf(&b, "      %s:%d", t.File, line)
			if t.FailedAt != "" {
				fmt.Fprintf(&b, ": %s", t.FailedAt)
			}
			b.WriteByte('\n')
		}
		for _, c := range t.Cases {
			fmt.Fprintf(&b, "      case %s\n", c)
		}
		for _, text := range []string{t.Error, t.Output} {
			for line := range strings.Lines(text) {
				fmt.Fprintf(&b, "      | %s\n", printable(strings.TrimRight(line, "\n")))
			}
		}
	}
	if r.Failed+r.Errors > 0 {
		for i, u := range r.Unmocked {
			if i == maxUnmocked {
				fmt.Fprintf(&b, "… and %d more calls\n", len(r.Unmocked)-i)
				break
			}
			fmt.Fprintf(&b, "no answer: %s(%q); tests replace it: with %s as …\n", u.Function, printable(u.Ref), u.Function)
		}
	}
	if c := r.Coverage; c != nil {
		for _, f := range c.Files {
			if len(f.Missed) > 0 {
				fmt.Fprintf(&b, "%5.1f%%  %s: no test reaches %s\n", f.Percent, f.File, strings.Join(f.Missed, ", "))
			} else if verbose {
				fmt.Fprintf(&b, "%5.1f%%  %s\n", f.Percent, f.File)
			}
		}
		fmt.Fprintf(&b, "coverage: %.1f%% of %d lines of rules\n", c.Percent, c.Covered+c.Missed)
	}
	fmt.Fprintf(&b, "%d tests: %d passed", r.Total(), r.Passed)
	for _, x := range []struct {
		n    int
		what string
	}{{r.Failed, "failed"}, {r.Errors, "could not be run"}, {r.Skipped, "skipped"}} {
		if x.n > 0 {
			fmt.Fprintf(&b, ", %d %s", x.n, x.what)
		}
	}
	b.WriteByte('\n')
	_, err := io.WriteString(w, b.String())
	return err
}

// maxUnmocked is how many calls without an answer a report tells.
const maxUnmocked = 10

// printable is text without control characters, which rules may have from anywhere.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, s)
}

type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Errors   int          `xml:"errors,attr"`
	Skipped  int          `xml:"skipped,attr"`
	Time     string       `xml:"time,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	File    string        `xml:"file,attr"`
	Line    int           `xml:"line,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitMessage `xml:"failure"`
	Error   *junitMessage `xml:"error"`
	Skipped *struct{}     `xml:"skipped"`
	Output  string        `xml:"system-out,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// WriteJUnit writes what tests came to as JUnit's XML, a suite for each package.
func (r *TestRun) WriteJUnit(w io.Writer) error {
	out := junitSuites{Tests: r.Total(), Failures: r.Failed, Errors: r.Errors, Skipped: r.Skipped, Time: fmt.Sprintf("%.3f", r.Seconds)}
	index := map[string]int{}
	for i := range r.Tests {
		t := &r.Tests[i]
		n, ok := index[t.Package]
		if !ok {
			n = len(out.Suites)
			index[t.Package] = n
			out.Suites = append(out.Suites, junitSuite{Name: t.Package})
		}
		s := &out.Suites[n]
		c := junitCase{Class: t.Package, Name: t.Name, File: t.File, Line: t.Line, Time: fmt.Sprintf("%.3f", t.Seconds), Output: printableLines(t.Output)}
		s.Tests++
		switch t.Outcome {
		case failed:
			at := fmt.Sprintf("%s:%d", t.File, max(t.Line, t.FailedLine))
			c.Failure = &junitMessage{Message: printable(strings.TrimSpace("failed at " + at + " " + t.FailedAt)), Text: printableLines(strings.Join(t.Cases, "\n"))}
			s.Failures++
		case errored:
			c.Error = &junitMessage{Message: "could not be run", Text: printableLines(t.Error)}
			s.Errors++
		case skipped:
			c.Skipped = &struct{}{}
			s.Skipped++
		}
		s.Cases = append(s.Cases, c)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(out); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = printable(lines[i])
	}
	return strings.Join(lines, "\n")
}
