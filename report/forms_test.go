package report_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy"
	"assay.dev/assay/report"
	"assay.dev/assay/verify"
)

func written(t testing.TB, h report.Handler, b *bytes.Buffer, list []report.Entry) []byte {
	t.Helper()
	if err := h.Start(started()); err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if err := h.Verdict(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// said is an image refused with a text that a stranger chose.
func said(text string) []report.Entry {
	return []report.Entry{{Image: "r.example/app@" + digest("1"), Component: text, Verdict: &policy.Verdict{
		Result: policy.Fail, Image: "r.example/app@" + digest("1"), Component: text, EffectiveTime: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Violations: []policy.Result{{Code: "a.b", Msg: text, Terms: []string{text}, Title: text, Solution: text, Details: map[string]any{text: text}}},
		Warnings:   []policy.Result{{Code: text, Msg: text}},
	}, Rejected: []verify.Rejected{{Format: text, Digest: text, Reason: text}}}, {Image: text, Err: errors.New(text)}}
}

// TestSARIF: what the specification requires, and what GitHub's code scanning does.
// The golden files were held against OASIS's schema of 2.1.0, which is not kept here.
func TestSARIF(t *testing.T) {
	for _, list := range [][]report.Entry{nil, entries(), entries()[:1], said("x\ny")} {
		var b bytes.Buffer
		var log struct {
			Schema  string `json:"$schema"`
			Version string
			Runs    []struct {
				Tool struct {
					Driver struct {
						Name  string
						Rules []struct{ ID string }
					}
				}
				Results []struct {
					RuleID, Level, Kind string
					Message             struct{ Text string }
					Locations           []struct {
						PhysicalLocation struct{ ArtifactLocation struct{ URI string } }
					}
					PartialFingerprints map[string]string
				}
				Invocations []struct {
					ExecutionSuccessful        *bool
					ToolExecutionNotifications []struct {
						Level   string
						Message struct{ Text string }
					}
				}
			}
		}
		dec := json.NewDecoder(bytes.NewReader(written(t, report.SARIF(&b), &b, list)))
		if err := dec.Decode(&log); err != nil {
			t.Fatal(err)
		}
		if log.Version != "2.1.0" || log.Schema == "" || len(log.Runs) != 1 || log.Runs[0].Tool.Driver.Name == "" || len(log.Runs[0].Invocations) != 1 {
			t.Fatalf("not a log of one run: %+v", log)
		}
		run := log.Runs[0]
		var rules []string
		for _, r := range run.Tool.Driver.Rules {
			rules = append(rules, r.ID)
		}
		for _, r := range run.Results {
			if !slices.Contains(rules, r.RuleID) || r.Message.Text == "" || !slices.Contains([]string{"error", "warning"}, r.Level) || r.Kind != "fail" ||
				len(r.Locations) != 1 || !strings.HasPrefix(r.Locations[0].PhysicalLocation.ArtifactLocation.URI, "oci/") || len(r.PartialFingerprints) == 0 {
				t.Errorf("result %+v", r)
			}
		}
		unchecked := len(list) == 0
		want := 0
		for _, e := range list {
			unchecked = unchecked || e.Unchecked()
			if e.Verdict != nil {
				want += len(e.Verdict.Violations) + len(e.Verdict.Warnings)
			}
		}
		if len(run.Results) != want {
			t.Errorf("%d results, want %d", len(run.Results), want)
		}
		if ok := run.Invocations[0].ExecutionSuccessful; ok == nil || *ok == unchecked {
			t.Errorf("executionSuccessful of a run with unchecked=%t", unchecked)
		}
	}
}

// TestJUnit: every count is what stands there, and an error is no failure.
func TestJUnit(t *testing.T) {
	type suite struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Errors   int `xml:"errors,attr"`
		Cases    []struct {
			Failure *struct{} `xml:"failure"`
			Error   *struct{} `xml:"error"`
		} `xml:"testcase"`
	}
	for _, list := range [][]report.Entry{nil, entries(), said("<&]]>\"'\x00\x1b\ufffe")} {
		var b bytes.Buffer
		var doc struct {
			XMLName xml.Name `xml:"testsuites"`
			Suites  []suite  `xml:"testsuite"`
		}
		if err := xml.Unmarshal(written(t, report.JUnit(&b), &b, list), &doc); err != nil {
			t.Fatal(err)
		}
		if want := max(len(list), 1); len(doc.Suites) != want {
			t.Errorf("%d suites, want %d", len(doc.Suites), want)
		}
		for i, s := range doc.Suites {
			failures, errs := 0, 0
			for _, c := range s.Cases {
				if c.Failure != nil {
					failures++
				}
				if c.Error != nil {
					errs++
				}
			}
			if s.Tests != len(s.Cases) || s.Failures != failures || s.Errors != errs {
				t.Errorf("suite %d: counts %+v", i, s)
			}
			if i < len(list) && (list[i].Passed() != (failures+errs == 0)) {
				t.Errorf("suite %d: %d failures and %d errors of an image that passed: %t", i, failures, errs, list[i].Passed())
			}
		}
	}
}

// TestYAML: YAML says what JSON says.
func TestYAML(t *testing.T) {
	for _, list := range [][]report.Entry{nil, entries(), said("a: b # - c\n...")} {
		var j, y bytes.Buffer
		a, err := yaml.YAMLToJSON(written(t, report.YAML(&y), &y, list))
		if err != nil {
			t.Fatal(err)
		}
		var x, z any
		if err := json.Unmarshal(a, &x); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(written(t, report.JSON(&j), &j, list), &z); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(x) != fmt.Sprint(z) {
			t.Errorf("YAML says\n%v\nJSON\n%v", x, z)
		}
	}
}

// TestWaiver: the exception that a report proposes can be pasted into a policy.
func TestWaiver(t *testing.T) {
	for _, term := range []string{"", "tweak", "oci://r.example/task:0.1", `quo"te`, "a\nb"} {
		v := said("x")[:1]
		v[0].Verdict.Violations[0].Terms = []string{term}
		var b bytes.Buffer
		out := string(written(t, report.Text(&b, report.TextOptions{}), &b, v))
		_, item, ok := strings.Cut(out, "with the date you choose: ")
		item, _, _ = strings.Cut(item, "\n")
		var got struct{ Value, ImageDigest, EffectiveUntil string }
		if err := yaml.UnmarshalStrict([]byte(item), &got); !ok || err != nil {
			t.Fatalf("%q: %v\n%s", term, err, out)
		}
		want := strings.TrimSuffix("a.b:"+term, ":")
		if got.Value != want || got.ImageDigest != digest("1") || got.EffectiveUntil != "2026-01-15" {
			t.Errorf("%q: %+v", term, got)
		}
	}
}

// FuzzForms: whatever a stranger writes into a message, every form stays what it is:
// no workflow command but ours, no markup, documents that parse.
func FuzzForms(f *testing.F) {
	for _, s := range []string{"plain", "a\n::error::b", "::stop-commands::x", "</failure>", "| a | <img src=x> @all #1 [x](y) `z`", "\u202eevil", "\xff\xfe", "%0A::set-output", "a\r::warning::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 1<<10 {
			t.Skip("bounded input")
		}
		list := said(s)
		var b bytes.Buffer
		for l := range strings.Lines(string(written(t, report.GitHub(&b), &b, list))) {
			if !strings.HasPrefix(l, "::error title=") && !strings.HasPrefix(l, "::warning title=") && !strings.HasPrefix(l, "::notice title=") || strings.ContainsAny(l, "\r\x1b") {
				t.Errorf("line %q", l)
			}
		}
		b.Reset()
		for l := range strings.Lines(string(written(t, report.Text(&b, report.TextOptions{}), &b, list))) {
			if strings.ContainsFunc(strings.TrimSuffix(l, "\n"), func(r rune) bool { return r < ' ' || r == '\u202e' }) {
				t.Errorf("line %q", l)
			}
		}
		b.Reset()
		if md := written(t, report.Markdown(&b), &b, list); bytes.ContainsAny(md, "<\x1b") {
			t.Errorf("markup in\n%s", md)
		}
		b.Reset()
		if doc := written(t, report.SARIF(&b), &b, list); !json.Valid(doc) {
			t.Errorf("SARIF\n%s", doc)
		}
		b.Reset()
		if doc := written(t, report.JSON(&b), &b, list); !json.Valid(doc) {
			t.Errorf("JSON\n%s", doc)
		}
		b.Reset()
		dec := xml.NewDecoder(bytes.NewReader(written(t, report.JUnit(&b), &b, list)))
		for {
			if _, err := dec.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	})
}
