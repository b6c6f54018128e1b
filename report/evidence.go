package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"assay.dev/assay/policy"
)

// waiverDays is how long the exception that a report proposes would hold.
const waiverDays = 14

// waiver is an item for volatileConfig.exclude that would let this violation pass on
// this image for some days; empty where none can: results without a code cannot be
// named, and what is refused before rules are asked is no rule's.
func waiver(v *policy.Verdict, r policy.Result) string {
	_, digest, ok := strings.Cut(v.Image, "@")
	if r.Code == "" || strings.HasPrefix(r.Code, "builtin.") || !ok {
		return ""
	}
	value := r.Code
	if len(r.Terms) > 0 && r.Terms[0] != "" {
		value += ":" + r.Terms[0]
	}
	from := v.EffectiveTime
	if v.Expiry.After(from) {
		from = v.Expiry // judged as of the past
	}
	return fmt.Sprintf("{value: %s, imageDigest: %q, effectiveUntil: %q}",
		quoted(value), digest, from.AddDate(0, 0, waiverDays).Format(time.DateOnly))
}

// quoted is a YAML scalar: in JSON's form wherever there could be a doubt.
func quoted(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-/", r)
	}
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) && unicode.IsLetter(rune(s[0])) {
		return s
	}
	return fmt.Sprintf("%q", s)
}

// detail is one thing that a result says beside its message.
type detail struct{ label, value string }

// details are a result's evidence, and what follows from it, in order.
func details(v *policy.Verdict, r policy.Result, violation bool) []detail {
	var out []detail
	if len(r.Terms) > 0 {
		out = append(out, detail{"term", strings.Join(r.Terms, ", ")})
	}
	for _, key := range slices.Sorted(maps.Keys(r.Details)) {
		for _, s := range words(r.Details[key]) {
			out = append(out, detail{key, s})
		}
	}
	switch {
	case r.EffectiveOn != "":
		out = append(out, detail{"in force", "from " + r.EffectiveOn})
	case r.Since != "":
		out = append(out, detail{"in force", "since " + r.Since})
	}
	if r.Solution != "" {
		out = append(out, detail{"solution", r.Solution})
	}
	if !violation {
		return out
	}
	if w := waiver(v, r); w != "" {
		out = append(out, detail{"waive", "add to volatileConfig.exclude of the policy's source, with the date you choose: " + w})
	}
	return out
}

// words are the values of a detail, one a line.
func words(v any) []string {
	switch v := v.(type) {
	case []any:
		var out []string
		for _, x := range v {
			out = append(out, words(x)...)
		}
		return out
	case map[string]any:
		var out []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			out = append(out, k+"="+strings.Join(words(v[k]), " "))
		}
		return []string{strings.Join(out, ", ")}
	}
	return []string{fmt.Sprint(v)}
}

func heading(r policy.Result) string {
	switch {
	case r.Code == "":
		return clean(r.Title)
	case r.Title == "":
		return clean(r.Code)
	}
	return clean(r.Code + ": " + r.Title)
}

// code is a result's code, or a word for the lack of one.
func code(r policy.Result) string {
	if r.Code == "" {
		return "uncoded"
	}
	return r.Code
}

// clean makes text fit for one line of a terminal: control characters, line
// breaks, and what reorders or hides text become visible escapes.
func clean(s string) string {
	bad := func(r rune) bool {
		return r == unicode.ReplacementChar || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029'
	}
	if !strings.ContainsFunc(s, bad) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\n' || r == '\t':
			b.WriteByte(' ')
		case bad(r):
			fmt.Fprintf(&b, "\\u%04x", r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
