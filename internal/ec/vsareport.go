package ec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"assay.dev/assay/policy/vsa"
)

// vsaFormats are those of validate vsa.
var vsaFormats = []string{"json", "yaml", "text", "status"}

// vsaTargets reads --output of validate vsa, which knows no options of formats. None is
// text on standard output.
func vsaTargets(list []string) ([]target, error) {
	var out []target
	for _, s := range list {
		head, _, _ := strings.Cut(s, "?")
		t := target{}
		t.format, t.path, _ = strings.Cut(head, "=")
		if !slices.Contains(vsaFormats, t.format) {
			return nil, fmt.Errorf("unsupported format: %s (supported: %s)", t.format, strings.Join(vsaFormats, ", "))
		}
		out = append(out, t)
	}
	return out, nil
}

// vsaReport is the report of validate vsa. Its members are Conforma's.
type vsaReport struct {
	Header struct {
		Title     string `json:"title"`
		Timestamp string `json:"timestamp"`
	} `json:"header"`
	Result struct {
		Overall    string   `json:"overall"`
		Fallback   string   `json:"fallback,omitempty"`
		ImageCount int      `json:"image_count"`
		Images     []string `json:"images"`
	} `json:"result"`
	Summary struct {
		Signature       string `json:"signature"`
		Predicate       string `json:"predicate"`
		Policy          string `json:"policy"`
		FallbackReasons string `json:"fallback_reasons,omitempty"`
	} `json:"vsa_summary"`
	PolicyDiff *vsaPolicyDiff `json:"policy_diff,omitempty"`

	passed    bool
	fallbacks int
	fallback  *imageReport
}

type vsaPolicyDiff struct {
	AffectedImages string `json:"affected_images"`
	Added          string `json:"added"`
	Removed        string `json:"removed"`
	Changed        string `json:"changed"`
}

// reasons are Conforma's words for people.
var reasons = map[string]string{
	vsa.ReasonPolicy: "policy mismatch", vsa.ReasonFailed: "predicate failed", vsa.ReasonNone: "no vsa",
	vsa.ReasonExpired: "expired", vsa.ReasonNotFound: "retrieval failed",
}

func reason(code string) string {
	if w, ok := reasons[code]; ok {
		return w
	}
	return "unknown"
}

// shortDigest is how lines name an image.
func shortDigest(image string) string {
	_, digest, ok := strings.Cut(image, "@")
	if !ok {
		if len(image) > 8 {
			return "…" + image[len(image)-8:]
		}
		return image
	}
	digest = strings.TrimPrefix(digest, "sha256:")
	return digest[:min(8, len(digest))]
}

// newVSAReport puts the results together. Unlike Conforma's, the whole passes only if
// every image does: there, one image that passed when it was judged makes the report
// say so of all.
func newVSAReport(list []*vsaComponent, now time.Time) *vsaReport {
	r := &vsaReport{passed: len(list) > 0}
	r.Header.Title, r.Header.Timestamp = "VALIDATE VSA RESULT", now.Format(time.RFC3339)
	r.Result.ImageCount, r.Result.Images = len(list), []string{}
	r.Summary.Signature = "VERIFIED"
	var good, bad, matches, mismatches, added, removed, changed int
	var affected, why []string
	for i, c := range list {
		r.passed = r.passed && c.passed()
		digest := shortDigest(c.ContainerImage)
		line := fmt.Sprintf("    [%d] …%s  VSA=", i+1, digest)
		res := c.result
		if res.Passed {
			line += "PASSED"
			matches++
		} else {
			w := reason(res.Code)
			line += "FAILED(reason=" + w + ")"
			if !slices.Contains(why, w) {
				why = append(why, w)
			}
		}
		if !res.Verified {
			r.Summary.Signature = "NOT VERIFIED"
		}
		switch res.Outcome {
		case vsa.StatusPassed:
			good++
		case "":
		default:
			bad++
		}
		if res.HasDiff {
			mismatches++
			affected = append(affected, digest)
			added, removed, changed = added+res.Added, removed+res.Removed, changed+res.Changed
		}
		if c.judged {
			r.fallbacks++
			if c.good {
				line += "  Fallback=PASSED"
			} else {
				line += "  Fallback=FAILED"
			}
		}
		r.Result.Images = append(r.Result.Images, line)
	}
	r.Result.Overall = "❌ FAILED"
	if r.passed {
		r.Result.Overall = "✅ PASSED"
	}
	switch {
	case r.fallbacks == 0:
	case r.fallbacks == len(list):
		r.Result.Fallback = "used for all images"
	default:
		r.Result.Fallback = "used for some images"
	}
	switch total := good + bad; {
	case total == 0:
		r.Summary.Predicate = "(no predicate data)"
	case bad == 0:
		r.Summary.Predicate = fmt.Sprintf("passed (%d/%d)", good, total)
	case good == 0:
		r.Summary.Predicate = fmt.Sprintf("failed (%d/%d)", bad, total)
	default:
		r.Summary.Predicate = fmt.Sprintf("mixed (passed: %d, failed: %d)", good, bad)
	}
	switch {
	case matches+mismatches == 0:
		r.Summary.Policy = "(no policy data)"
	case mismatches == 0:
		r.Summary.Policy = "matches (no differences)"
	default:
		r.Summary.Policy = fmt.Sprintf("mismatches on %d/%d images (adds=%d, removes=%d, changes=%d)", mismatches, matches+mismatches, added, removed, changed)
	}
	slices.Sort(why)
	r.Summary.FallbackReasons = strings.Join(why, ", ")
	if mismatches > 0 {
		count := func(prefix string, n int) string {
			if n == 0 {
				return "none"
			}
			return fmt.Sprintf("%s%d", prefix, n)
		}
		r.PolicyDiff = &vsaPolicyDiff{strings.Join(affected, ", "), count("[include] ", added), count("", removed), count("", changed)}
	}
	return r
}

func (r *vsaReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "=== %s — %s ===\n\nResult\n  Overall: %s\n", r.Header.Title, r.Header.Timestamp, r.Result.Overall)
	if r.Result.Fallback != "" {
		fmt.Fprintf(&b, "  Fallback: %s\n", r.Result.Fallback)
	}
	fmt.Fprintf(&b, "  Images (%d):\n", r.Result.ImageCount)
	for _, line := range r.Result.Images {
		b.WriteString(line + "\n")
	}
	fmt.Fprintf(&b, "\nVSA Summary\n  Signature: %s\n  Predicate: %s\n  Policy: %s\n", r.Summary.Signature, r.Summary.Predicate, r.Summary.Policy)
	if r.Summary.FallbackReasons != "" {
		fmt.Fprintf(&b, "  Fallback reason(s): %s\n", r.Summary.FallbackReasons)
	}
	b.WriteString("\n")
	if d := r.PolicyDiff; d != nil {
		fmt.Fprintf(&b, "Policy Diff (summary)\n  Affected images: [%s]\n  Added:   %s\n  Removed: %s\n  Changed: %s\n\n", d.AffectedImages, d.Added, d.Removed, d.Changed)
	}
	return b.String()
}

func (r *vsaReport) status() []byte {
	word := "FAILURE"
	if r.passed {
		word = "SUCCESS"
	}
	return []byte(`{"result":"` + word + `"}`)
}

// render writes the report in one form. Whole says that images that were judged belong
// into the same document, as in files.
func (r *vsaReport) render(w io.Writer, t target, whole bool) error {
	if t.format == "status" {
		return lines(w, r.status())
	}
	if t.format == "text" {
		if _, err := io.WriteString(w, r.text()); err != nil || r.fallback == nil || !whole {
			return err
		}
		if _, err := io.WriteString(w, "\n=== FALLBACK: VALIDATE IMAGE ===\n"); err != nil {
			return err
		}
		return r.fallback.render(w, target{format: "text", show: show{warnings: true}})
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if whole && r.fallback != nil {
		var inner bytes.Buffer
		if err := r.fallback.render(&inner, target{format: "json"}); err != nil {
			return err
		}
		var m struct {
			*vsaReport
			Fallback json.RawMessage `json:"fallback"`
		}
		m.vsaReport, m.Fallback = r, inner.Bytes()
		if raw, err = json.MarshalIndent(m, "", "  "); err != nil {
			return err
		}
	}
	if t.format == "yaml" {
		if raw, err = yaml.JSONToYAML(raw); err != nil {
			return err
		}
	}
	return lines(w, raw)
}

// lines writes a document that ends with a line break.
func lines(w io.Writer, raw []byte) error {
	if !bytes.HasSuffix(raw, []byte("\n")) {
		raw = append(raw, '\n')
	}
	_, err := w.Write(raw)
	return err
}

// write writes all forms: to files, images that were judged included, or to standard
// output, where validate image's report of those follows.
func (r *vsaReport) write(to []target, stdout io.Writer, about string) error {
	files := slices.ContainsFunc(to, func(t target) bool { return t.path != "" })
	status := len(to) > 0 && !slices.ContainsFunc(to, func(t target) bool { return t.format != "status" })
	if _, err := io.WriteString(stdout, about); err != nil {
		return err
	}
	if len(to) == 0 {
		to = []target{{format: "text"}}
	}
	for _, t := range to {
		var b bytes.Buffer
		if err := r.render(&b, t, files); err != nil {
			return err
		}
		if t.path != "" {
			if err := os.WriteFile(t.path, b.Bytes(), 0o644); err != nil {
				return err
			}
			continue
		}
		if _, err := stdout.Write(b.Bytes()); err != nil {
			return err
		}
	}
	if files || status || r.fallback == nil {
		return nil
	}
	for _, t := range to {
		if t.format == "status" {
			continue
		}
		if t.format == "text" {
			if _, err := io.WriteString(stdout, "=== FALLBACK: VALIDATE IMAGE ===\n"); err != nil {
				return err
			}
		}
		if err := r.fallback.render(stdout, target{format: t.format, show: show{warnings: true}}); err != nil {
			return err
		}
		if _, err := io.WriteString(stdout, "\n"); err != nil {
			return err
		}
	}
	return nil
}
