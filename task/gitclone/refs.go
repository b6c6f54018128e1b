package gitclone

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

// peeled ends the name under which a server lists what an annotated tag is of.
const peeled = "^{}"

// advertised maps ref names to ids; HEAD is resolved.
func advertised(refs []*plumbing.Reference) map[string]plumbing.Hash {
	ads := map[string]plumbing.Hash{}
	for _, r := range refs {
		if r.Type() == plumbing.HashReference {
			ads[r.Name().String()] = r.Hash()
		}
	}
	for _, r := range refs {
		if r.Type() == plumbing.SymbolicReference {
			if id, ok := ads[r.Target().String()]; ok {
				ads[r.Name().String()] = id
				ads["symref:"+r.Name().String()+"="+r.Target().String()] = id
			}
		}
	}
	return ads
}

var shortID = regexp.MustCompile(`^[0-9a-f]{4,39}$`)

// resolve finds the one ref that revision names. It fails when there is none,
// and when a branch and a tag share the name: guessing would let whoever can
// push a tag choose what is built.
func resolve(ads map[string]plumbing.Hash, revision string) (string, error) {
	if revision == "" || revision == "HEAD" {
		for k := range ads {
			if target, ok := strings.CutPrefix(k, "symref:HEAD="); ok {
				return target, nil
			}
		}
		if _, ok := ads["HEAD"]; ok {
			return "HEAD", nil
		}
		return "", fmt.Errorf("the repository has no default branch; hint: set revision")
	}
	if strings.ContainsAny(revision, "*:+^~?[\\ ") || strings.HasPrefix(revision, "symref") {
		return "", fmt.Errorf("revision %q is not a branch, tag or full commit id", revision)
	}
	if strings.HasPrefix(revision, "refs/") {
		if _, ok := ads[revision]; ok {
			return revision, nil
		}
		return "", fmt.Errorf("the repository has no ref %q", revision)
	}
	branch, tag := "refs/heads/"+revision, "refs/tags/"+revision
	_, isBranch := ads[branch]
	_, isTag := ads[tag]
	switch {
	case isBranch && isTag:
		return "", fmt.Errorf("revision %q is a branch and a tag; hint: say %s or %s", revision, branch, tag)
	case isBranch:
		return branch, nil
	case isTag:
		return tag, nil
	case shortID.MatchString(revision):
		return "", fmt.Errorf("the repository has no branch or tag %q; hint: a commit is named by its full 40 digits", revision)
	}
	return "", fmt.Errorf("the repository has no branch or tag %q", revision)
}

// pointing returns a branch or tag that is at id, the first by name.
func pointing(ads map[string]plumbing.Hash, id plumbing.Hash) string {
	var names []string
	for name, at := range ads {
		if at == id && (strings.HasPrefix(name, "refs/heads/") || strings.HasPrefix(name, "refs/tags/")) {
			names = append(names, strings.TrimSuffix(name, peeled))
		}
	}
	if len(names) == 0 {
		return ""
	}
	return slices.Min(names)
}
