package verify

import (
	"fmt"
	"slices"
	"strings"
)

// NoEvidenceError says that what was required did not verify. It carries every
// piece that was found and why it does not count.
type NoEvidenceError struct {
	Ref     string
	Missing []string // image signature, provenance
	Keys    []string // names of the keys that were tried
	// Identities are the names of the certificates' identities that were tried.
	Identities []string
	Found      int // pieces of evidence found, verified or not
	Rejected   []Rejected
}

// maxReasons is how many rejected pieces the message spells out.
const maxReasons = 10

func (e *NoEvidenceError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "verifying %s: no %s verified with %s", e.Ref, strings.Join(e.Missing, " and no "), e.tried())
	for i, r := range e.Rejected {
		if i == maxReasons {
			fmt.Fprintf(&b, "\n  and %d more", len(e.Rejected)-i)
			break
		}
		fmt.Fprintf(&b, "\n  %s %s: %s", r.Format, r.Digest, r.Reason)
	}
	switch {
	case e.Found == 0:
		b.WriteString("\n  hint: nothing is attached to this digest; was the image built elsewhere, rebuilt, or copied without its evidence (cosign copy, assay release)?")
	case len(e.Rejected) == 0:
		b.WriteString("\n  hint: other evidence verified; the builder has not attached this kind, or did it for another digest (index or platform image?)")
	default:
		b.WriteString("\n  hint: if the right key is missing, give it with --key; if a piece is about another digest, verify that digest; if it was altered, do not use this image")
	}
	return b.String()
}

// Kinds are those of the rejected pieces, each once, in order.
func (e *NoEvidenceError) Kinds() []Kind {
	var out []Kind
	for _, r := range e.Rejected {
		if r.Kind != "" && !slices.Contains(out, r.Kind) {
			out = append(out, r.Kind)
		}
	}
	return out
}

func (e *NoEvidenceError) tried() string {
	switch {
	case len(e.Identities) == 0:
		return keyList(e.Keys)
	case len(e.Keys) == 0:
		return "the trusted identities"
	}
	return keyList(e.Keys) + " or the trusted identities"
}

func keyList(names []string) string {
	if len(names) == 1 {
		return fmt.Sprintf("key %q", names[0])
	}
	if len(names) > maxReasons {
		return fmt.Sprintf("%d keys", len(names))
	}
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = fmt.Sprintf("%q", n)
	}
	return "keys " + strings.Join(quoted, ", ")
}
