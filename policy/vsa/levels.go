package vsa

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/verify"
)

// Unevaluated is verifiedLevels' word where no level was looked for.
const Unevaluated = "SLSA_BUILD_LEVEL_UNEVALUATED"

// Binding is the verifier's own word that what a signer signs is of a level.
type Binding struct {
	// Signer is the name of a key, or of a certificate's identity, in the trust.
	Signer string
	// Level is one of SLSA's, SLSA_BUILD_LEVEL_0 to SLSA_BUILD_LEVEL_3, or a word of
	// one's own.
	Level string
}

// ParseBinding reads SIGNER=LEVEL. It fails if one of them is missing, or the level is
// none.
func ParseBinding(s string) (Binding, error) {
	i := strings.LastIndex(s, "=")
	if i <= 0 {
		return Binding{}, fmt.Errorf("%q: want SIGNER=LEVEL, such as observer=SLSA_BUILD_LEVEL_3", s)
	}
	b := Binding{s[:i], s[i+1:]}
	return b, CheckLevels([]string{b.Level})
}

var (
	slsaLevel = regexp.MustCompile(`^SLSA_([A-Z]+)_LEVEL_([0-4])$`)
	ownLevel  = regexp.MustCompile(`^[A-Z][A-Z0-9_]{0,63}$`)
)

// CheckLevels returns an error unless the levels are ones that a summary may claim: of
// each of SLSA's tracks one at most, and words of one's own that do not look like
// SLSA's.
func CheckLevels(levels []string) error {
	tracks := map[string]bool{}
	for _, l := range levels {
		m := slsaLevel.FindStringSubmatch(l)
		switch {
		case m != nil && m[1] != "BUILD" && m[1] != "SOURCE", m != nil && m[1] == "BUILD" && m[2] == "4":
			return fmt.Errorf("SLSA has no level %s", l)
		case m != nil && tracks[m[1]]:
			return fmt.Errorf("two levels of one track: %s", strings.Join(levels, ", "))
		case m != nil:
			tracks[m[1]] = true
		case l == Unevaluated && !tracks["BUILD"]:
			tracks["BUILD"] = true
		case strings.HasPrefix(l, "SLSA_") || l == "FAILED" || !ownLevel.MatchString(l):
			return fmt.Errorf("%q is no level; want SLSA_BUILD_LEVEL_0 to 3, SLSA_SOURCE_LEVEL_0 to 4, or a word in capitals of one's own", l)
		}
	}
	return nil
}

// Levels are the levels that the verifier binds to those who signed provenance of this
// artifact, the highest of each track. Only signers count whom the trust binds to the
// builder that they name, an observer for his builders or an isolated workflow: who
// holds a bare key writes any builder.id that he likes. Provenance of runs that failed
// or had not ended counts for nothing, and what statements say of levels is not looked
// at.
func Levels(e *verify.Evidence, bindings []Binding) []string {
	if e == nil {
		return nil
	}
	best := map[string]string{} // by track; own words are a track each
	for _, s := range e.Statements() {
		if _, ok := s.Typed.(predicate.Provenance); !ok || s.Outcome == predicate.Failed || s.Outcome == predicate.Unfinished {
			continue
		}
		if s.Grade != verify.GradeObserver && s.Grade != verify.GradeIsolatedWorkflow {
			continue
		}
		for _, b := range bindings {
			if b.Signer == "" || b.Signer != s.KeyName && b.Signer != s.TrustedAs {
				continue
			}
			track := b.Level
			if m := slsaLevel.FindStringSubmatch(b.Level); m != nil {
				track = m[1]
			}
			if b.Level > best[track] {
				best[track] = b.Level
			}
		}
	}
	var out []string
	for _, l := range best {
		out = append(out, l)
	}
	slices.Sort(out)
	return out
}
