package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"assay.dev/assay/policy"
)

type junitSuite struct {
	XMLName    xml.Name        `xml:"testsuite"`
	Name       string          `xml:"name,attr"`
	Tests      int             `xml:"tests,attr"`
	Failures   int             `xml:"failures,attr"`
	Errors     int             `xml:"errors,attr"`
	Timestamp  string          `xml:"timestamp,attr,omitempty"`
	Properties []junitProperty `xml:"properties>property,omitempty"`
	Cases      []junitCase     `xml:"testcase"`
	Out        string          `xml:"system-out,omitempty"`
}

type junitProperty struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Name      string     `xml:"name,attr"`
	ClassName string     `xml:"classname,attr"`
	Failure   *junitFail `xml:"failure,omitempty"`
	Error     *junitFail `xml:"error,omitempty"`
}

type junitFail struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr"`
	Text    string `xml:",chardata"`
}

type junitHandler struct{ stream }

// JUnit writes a test report: a suite for each image and a case for each rule. A
// violation is a failure, what could not be checked an error; warnings and what was
// set aside stand in the suite's output.
func JUnit(w io.Writer) Handler { return &junitHandler{newStream(w)} }

const junitOpen = xml.Header + "<testsuites name=\"assay gate\">\n"

// Verdict implements Handler.
func (h *junitHandler) Verdict(e Entry) error {
	first, err := h.next(&e)
	if err != nil {
		return err
	}
	if first {
		if err := h.write(junitOpen); err != nil {
			return err
		}
	}
	raw, err := xml.MarshalIndent(h.suite(&e), "  ", "  ")
	if err != nil {
		h.err = fmt.Errorf("writing report: %w", err)
		return h.err
	}
	return h.write(string(raw), "\n")
}

func (h *junitHandler) suite(e *Entry) junitSuite {
	name := clean(e.ref())
	if n := e.name(); n != "" {
		name = clean(n) + " " + name
	}
	s := junitSuite{Name: name}
	add := func(c junitCase) {
		c.ClassName = clean(e.name())
		if c.ClassName == "" {
			c.ClassName = "image"
		}
		s.Tests++
		s.Cases = append(s.Cases, c)
	}
	for _, c := range e.causes() {
		s.Errors++
		add(junitCase{Name: "it could be checked", Error: &junitFail{Message: clean(c), Type: "could not check"}})
	}
	var notes []string
	for _, k := range h.run.Skipped {
		notes = append(notes, "not checked, as asked: "+k)
	}
	if v := e.Verdict; v != nil {
		s.Timestamp = v.EffectiveTime.Format("2006-01-02T15:04:05")
		s.Properties = append(s.Properties, junitProperty{"policy", strings.TrimSpace(v.Policy.Name + " " + v.Policy.Digest)})
		for _, by := range signedBy(e.Signers) {
			s.Properties = append(s.Properties, junitProperty{"signed", clean(by)})
		}
		for _, r := range v.Violations {
			s.Failures++
			add(junitCase{Name: caseName(r), Failure: &junitFail{Message: clean(r.Msg), Type: clean(code(r)), Text: lines(v, r)}})
		}
		for _, r := range v.Successes {
			add(junitCase{Name: caseName(r)})
		}
		if len(v.Violations) == 0 && !e.Passed() && !e.Unchecked() {
			s.Failures++
			add(junitCase{Name: "verdict", Failure: &junitFail{Message: "the image was refused", Type: "refused"}})
		}
		if v.BackDated {
			notes = append(notes, "judged as of "+v.EffectiveTime.Format("2006-01-02T15:04:05Z07:00")+", which is in the past")
		}
		for _, r := range v.Warnings {
			notes = append(notes, "WARNING "+caseName(r)+": "+clean(r.Msg))
		}
	}
	for _, r := range e.Rejected {
		notes = append(notes, clean("SET ASIDE "+r.Format+" "+r.Digest+": "+r.Reason))
	}
	for _, a := range e.Aside {
		notes = append(notes, clean("NOT JUDGED "+a.Digest+": "+a.Reason))
	}
	s.Out = strings.Join(notes, "\n")
	return s
}

func caseName(r policy.Result) string {
	name := code(r)
	if len(r.Terms) > 0 {
		name += "[" + strings.Join(r.Terms, ",") + "]"
	}
	return clean(name)
}

// lines are a violation's details, one a line.
func lines(v *policy.Verdict, r policy.Result) string {
	var b strings.Builder
	for _, d := range details(v, r, true) {
		fmt.Fprintf(&b, "%s: %s\n", clean(d.label), clean(d.value))
	}
	return strings.ToValidUTF8(b.String(), string(utf8.RuneError))
}

// Close implements Handler.
func (h *junitHandler) Close() error {
	if !h.begun {
		return h.write(junitOpen, "  <testsuite name=\"assay gate\" tests=\"1\" failures=\"0\" errors=\"1\"><testcase name=\"an image was checked\" classname=\"image\"><error message=\"no image was checked\" type=\"could not check\"></error></testcase></testsuite>\n</testsuites>\n")
	}
	return h.write("</testsuites>\n")
}
