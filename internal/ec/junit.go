package ec

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"assay.dev/assay/policy/conforma"
)

// The form of JUnit's reports.
type junitSuites struct {
	XMLName  xml.Name `xml:"testsuites"`
	Tests    int      `xml:"tests,attr,omitempty"`
	Errors   int      `xml:"errors,attr,omitempty"`
	Failures int      `xml:"failures,attr,omitempty"`
	Skipped  int      `xml:"skipped,attr,omitempty"`
}

type junitSuite struct {
	XMLName    xml.Name
	Name       string          `xml:"name,attr"`
	Tests      int             `xml:"tests,attr"`
	Failures   int             `xml:"failures,attr"`
	Errors     int             `xml:"errors,attr"`
	ID         int             `xml:"id,attr"`
	Skipped    int             `xml:"skipped,attr,omitempty"`
	Time       string          `xml:"time,attr"`
	Timestamp  string          `xml:"timestamp,attr,omitempty"`
	Properties []junitProperty `xml:"properties>property,omitempty"`
	Cases      []junitCase     `xml:"testcase,omitempty"`
}

type junitProperty struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Name      string       `xml:"name,attr"`
	Classname string       `xml:"classname,attr"`
	Time      string       `xml:"time,attr,omitempty"`
	Skipped   *junitResult `xml:"skipped,omitempty"`
	Failure   *junitResult `xml:"failure,omitempty"`
}

type junitResult struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr,omitempty"`
	Data    string `xml:",cdata"`
}

func (r *imageReport) junit(w io.Writer) error {
	var all junitSuites
	for _, k := range r.kept {
		all.Tests += k.violations + k.warnings + k.listed
		all.Failures += k.violations
		all.Skipped += k.warnings
	}
	head, err := xml.Marshal(all)
	if err != nil {
		return err
	}
	const end = "</testsuites>"
	if _, err := w.Write(bytes.TrimSuffix(head, []byte(end))); err != nil {
		return err
	}
	if err := r.components(func(_ kept, c *reportComponent) error {
		b, err := xml.Marshal(r.suite(c))
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	}); err != nil {
		return err
	}
	_, err = io.WriteString(w, end)
	return err
}

func (r *imageReport) suite(c *reportComponent) *junitSuite {
	s := &junitSuite{
		XMLName: xml.Name{Local: "testsuite"},
		Name:    fmt.Sprintf("%s (%s)", c.Name, c.ContainerImage), Timestamp: r.created.Format(time.RFC3339),
		Properties: []junitProperty{{"image", c.ContainerImage}, {"key", r.Key}, {"success", fmt.Sprint(c.Success)}},
	}
	for _, sig := range c.Signatures {
		s.Properties = append(s.Properties, junitProperty{"keyId", sig.KeyID}, junitProperty{"signature", sig.Sig})
		for _, k := range slices.Sorted(maps.Keys(sig.Metadata)) {
			s.Properties = append(s.Properties, junitProperty{"metadata." + k, sig.Metadata[k]})
		}
	}
	for _, x := range c.Successes {
		s.Cases = append(s.Cases, testCase(x))
	}
	for _, x := range c.Violations {
		tc := testCase(x)
		tc.Failure = &junitResult{Message: x.Message, Data: x.Message}
		s.Cases = append(s.Cases, tc)
	}
	for _, x := range c.Warnings {
		tc := testCase(x)
		tc.Skipped = &junitResult{Message: x.Message, Data: x.Message}
		s.Cases = append(s.Cases, tc)
	}
	s.Tests, s.Failures, s.Skipped = len(s.Cases), len(c.Violations), len(c.Warnings)
	return s
}

// testCase is named for the code, the message and all metadata.
func testCase(r conforma.Result) junitCase {
	var more []string
	for k, v := range r.Metadata {
		if k != "code" {
			more = append(more, fmt.Sprintf("%s=%v", k, v))
		}
	}
	slices.Sort(more)
	name := r.Message
	if len(more) > 0 {
		name += " [" + strings.Join(more, ", ") + "]"
	}
	if code, ok := r.Metadata["code"].(string); ok {
		name = code + ": " + name
	}
	return junitCase{Name: name, Classname: name}
}
