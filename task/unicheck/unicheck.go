// Package unicheck finds characters in source that make it read differently to
// people than to compilers: bidirectional controls, as in "Trojan Source"
// (CVE-2021-42574), and characters that show nothing.
//
// Bidirectional controls are failures: they have hardly a use in source, and
// the attack needs nothing else. Invisible characters are warnings, and those
// with an honest use are left alone where it can be seen: joiners between
// letters of scripts that need them and in emoji, variation selectors after a
// symbol, a byte order mark at the start of a file.
//
// File names are looked at, too. Binary files, which are those with a NUL byte
// among their first, are counted and not read; links are not followed.
package unicheck

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"unicode/utf8"
)

// Severity says how a finding counts.
type Severity string

const (
	Failure Severity = "failure"
	Warning Severity = "warning"
)

// Finding is one character found.
type Finding struct {
	File     string // relative, with slashes
	Line     int    // from 1; 0 is the file's name itself
	Column   int    // in characters, from 1
	Rune     rune
	Name     string
	Severity Severity
}

// String is the finding as a line of text; nothing in it can play the trick
// that it reports.
func (f Finding) String() string {
	where := strconv.QuoteToASCII(f.File)
	if f.Line == 0 {
		return fmt.Sprintf("%s: %s in the file's name: U+%04X %s", where, f.Severity, f.Rune, f.Name)
	}
	return fmt.Sprintf("%s:%d:%d: %s: U+%04X %s", where, f.Line, f.Column, f.Severity, f.Rune, f.Name)
}

// Report is the result of a scan.
type Report struct {
	Failures, Warnings int
	Files, Binary      int
	// Findings are the first MaxFindings of them, in the order of the files'
	// names; the counts above have all.
	Findings []Finding
}

// MaxFindings bounds what a report lists.
const MaxFindings = 1000

// Scan looks at every file below dir. It fails when something below dir cannot
// be read: an unread file is not a clean one.
func Scan(ctx context.Context, dir string) (*Report, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("scanning: %w", err)
	}
	defer root.Close()
	r := &Report{}
	if err := r.dir(ctx, root, "."); err != nil {
		return nil, fmt.Errorf("scanning: %w", err)
	}
	return r, nil
}

func (r *Report) dir(ctx context.Context, root *os.Root, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	list, err := d.ReadDir(-1)
	d.Close()
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, e := range list {
		name := path.Join(dir, e.Name())
		r.name(name, e.Name())
		switch {
		case e.IsDir():
			err = r.dir(ctx, root, name)
		case e.Type().IsRegular():
			err = r.file(root, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *Report) name(file, base string) {
	var s scanner
	for col := 1; len(base) > 0; col++ {
		c, n := utf8.DecodeRuneInString(base)
		base = base[n:]
		if name, sev := s.next(c); name != "" {
			r.add(Finding{File: file, Column: col, Rune: c, Name: name, Severity: sev})
		}
	}
}

func (r *Report) file(root *os.Root, name string) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	r.Files++
	text, err := r.read(name, f)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if !text {
		r.Binary++
	}
	return nil
}

// read scans one file's content; it reports false for a binary one.
func (r *Report) read(name string, from io.Reader) (text bool, err error) {
	in := bufio.NewReaderSize(from, 64<<10)
	head, err := in.Peek(8 << 10)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	if bytes.IndexByte(head, 0) >= 0 {
		return false, nil
	}
	if bytes.HasPrefix(head, []byte("\ufeff")) {
		if _, err := in.Discard(3); err != nil {
			return false, err
		}
	}
	var s scanner
	line, col := 1, 0
	for {
		c, n, err := in.ReadRune()
		if errors.Is(err, io.EOF) {
			return true, nil
		}
		if err != nil {
			return true, err
		}
		col++
		if c == utf8.RuneError && n == 1 {
			s.prev = 0
			continue // not UTF-8 here: no character, no trick
		}
		if what, sev := s.next(c); what != "" {
			r.add(Finding{File: name, Line: line, Column: col, Rune: c, Name: what, Severity: sev})
		}
		if c == '\n' {
			line, col = line+1, 0
		}
	}
}

func (r *Report) add(f Finding) {
	if f.Severity == Failure {
		r.Failures++
	} else {
		r.Warnings++
	}
	if len(r.Findings) < MaxFindings {
		r.Findings = append(r.Findings, f)
	}
}
