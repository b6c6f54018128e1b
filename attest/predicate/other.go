package predicate

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// TestResults is in-toto's test-result v0.1.
type TestResults struct {
	Result        string     `json:"result"` // PASSED, WARNED, FAILED
	Configuration []Resource `json:"configuration"`
	URL           string     `json:"url,omitempty"`
	PassedTests   []string   `json:"passedTests,omitempty"`
	WarnedTests   []string   `json:"warnedTests,omitempty"`
	FailedTests   []string   `json:"failedTests,omitempty"`
}

// Type implements Predicate.
func (*TestResults) Type() string { return TestResult }

func (t *TestResults) check() error {
	switch t.Result {
	case "PASSED", "WARNED", "FAILED":
	default:
		return fmt.Errorf("at [result]: %.40q; want PASSED, WARNED or FAILED", t.Result)
	}
	if t.Configuration == nil {
		return missing("configuration")
	}
	return nil
}

// Vulnerabilities is a scanner's report: in-toto's vulns v0.1 and v0.2 and cosign's
// vuln v1, whose result is the scanner's own document.
type Vulnerabilities struct {
	predicateType string
	Scanner       struct {
		URI     string          `json:"uri"`
		Version string          `json:"version,omitempty"`
		DB      json.RawMessage `json:"db,omitempty"`
		Result  json.RawMessage `json:"result"`
	} `json:"scanner"`
	Invocation json.RawMessage `json:"invocation,omitempty"`
	Metadata   struct {
		ScanStartedOn  time.Time `json:"scanStartedOn,omitzero"`
		ScanFinishedOn time.Time `json:"scanFinishedOn,omitzero"`
	} `json:"metadata,omitzero"`
}

// Type implements Predicate.
func (v *Vulnerabilities) Type() string { return v.predicateType }

// Found lists what the report names by id, for in-toto's types; nil for cosign's.
func (v *Vulnerabilities) Found() []Found {
	if v.predicateType == VulnsCosign {
		return nil
	}
	out, err := v.found()
	if err != nil {
		return nil // check made sure that it is a list of these
	}
	return out
}

// found reads the list. The text of v0.1 puts what it says of each into a member of its
// own, its example and v0.2 do not.
func (v *Vulnerabilities) found() ([]Found, error) {
	var list []struct {
		Found
		Vulnerability *Found `json:"vulnerability,omitempty"`
	}
	if err := decode(v.Scanner.Result, &list); err != nil {
		return nil, fmt.Errorf("at [scanner result]: %w", err)
	}
	out := []Found{}
	for i, f := range list {
		if f.Vulnerability != nil && v.predicateType == VulnsV01 {
			if f.ID != "" {
				return nil, fmt.Errorf("at [scanner result %d]: both id and vulnerability", i)
			}
			f.Found = *f.Vulnerability
		}
		if f.ID == "" {
			return nil, missing(fmt.Sprintf("scanner result %d id", i))
		}
		out = append(out, f.Found)
	}
	return out, nil
}

// Found is one vulnerability of a report.
type Found struct {
	ID       string     `json:"id"`
	Severity []Severity `json:"severity,omitempty"`
}

// Severity is a vulnerability's weight by one method.
type Severity struct {
	Method string `json:"method"`
	Score  string `json:"score"`
}

func (v *Vulnerabilities) check() error {
	if v.Scanner.URI == "" {
		return missing("scanner uri")
	}
	if v.predicateType == VulnsCosign {
		return nil
	}
	if len(v.Scanner.Result) == 0 {
		return missing("scanner result")
	}
	_, err := v.found()
	return err
}

// Publish is npm's: the registry says that it published a package.
type Publish struct {
	Name     string `json:"name"`
	Version  string `json:"version"`
	Registry string `json:"registry"`
}

// Type implements Predicate.
func (*Publish) Type() string { return NPMPublish }

func (p *Publish) check() error {
	if p.Name == "" || p.Version == "" {
		return missing("name, version")
	}
	return nil
}

// SPDX is a software bill of materials, SPDX 2 or 3. What is read is enough to know
// what it is about; package sbom reads the rest.
type SPDX struct {
	predicateType     string
	SPDXVersion       string `json:"spdxVersion,omitempty"` // 2.x
	Name              string `json:"name,omitempty"`
	DocumentNamespace string `json:"documentNamespace,omitempty"`
	Packages          []struct {
		SPDXID      string `json:"SPDXID"`
		Name        string `json:"name"`
		VersionInfo string `json:"versionInfo,omitempty"`
	} `json:"packages,omitempty"`
	Graph   []json.RawMessage `json:"@graph,omitempty"` // 3.x
	Context json.RawMessage   `json:"@context,omitempty"`
}

// Type implements Predicate.
func (s *SPDX) Type() string { return s.predicateType }

func (s *SPDX) check() error {
	switch {
	case strings.HasPrefix(s.SPDXVersion, "SPDX-2."):
		if s.Graph != nil {
			return errors.New("both spdxVersion and @graph: it is SPDX 2 and 3 at once")
		}
		for i, p := range s.Packages {
			if p.Name == "" || p.SPDXID == "" {
				return missing(fmt.Sprintf("packages %d name, SPDXID", i))
			}
		}
		return nil
	case s.SPDXVersion == "" && s.Graph != nil && s.Context != nil:
		return nil
	}
	return fmt.Errorf("at [spdxVersion]: %.40q; want SPDX-2.x, or @context and @graph of SPDX 3", s.SPDXVersion)
}

// BOM is a CycloneDX bill of materials. As for SPDX, enough is read to know it.
type BOM struct {
	predicateType string
	BOMFormat     string          `json:"bomFormat"`
	SpecVersion   string          `json:"specVersion"`
	SerialNumber  string          `json:"serialNumber,omitempty"`
	Version       json.RawMessage `json:"version,omitempty"`
	Components    []struct {
		Type    string `json:"type"`
		Name    string `json:"name"`
		Version string `json:"version,omitempty"`
		PURL    string `json:"purl,omitempty"`
	} `json:"components,omitempty"`
}

// Type implements Predicate.
func (b *BOM) Type() string { return b.predicateType }

func (b *BOM) check() error {
	if b.BOMFormat != "CycloneDX" {
		return fmt.Errorf("at [bomFormat]: %.40q; want CycloneDX", b.BOMFormat)
	}
	if b.SpecVersion == "" {
		return missing("specVersion")
	}
	for i, c := range b.Components {
		if c.Name == "" || c.Type == "" {
			return missing(fmt.Sprintf("components %d name, type", i))
		}
	}
	return nil
}
