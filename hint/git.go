package hint

import (
	"strings"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
)

// GitURI is the name a statement gives a repository: git+<url>.git, each part
// only where it is missing. Nothing else about the url is normalised.
func GitURI(url string) string {
	if !strings.HasPrefix(url, "git+") {
		url = "git+" + url
	}
	if !strings.HasSuffix(url, ".git") {
		url += ".git"
	}
	return url
}

// gitHint gathers CHAINS-GIT_URL and CHAINS-GIT_COMMIT, each on its own: a
// parameter beats its default, a result (even an empty one) beats both.
type gitHint struct {
	// needURL: a PipelineRun without url makes no claim. A TaskRun without url
	// claims git+.git, upstream's defect, which readers of both have to see.
	needURL bool

	url, commit     string
	hasURL, hasComm bool
}

func (g *gitHint) set(name string, v *v1.ParamValue) {
	switch name {
	case GitURL:
		g.url, g.hasURL = v.StringVal, true
	case GitCommit:
		g.commit, g.hasComm = v.StringVal, true
	}
}

func (g *gitHint) defaults(specs []v1.ParamSpec) {
	for i := range specs {
		if specs[i].Default != nil {
			g.set(specs[i].Name, specs[i].Default)
		}
	}
}

func (g *gitHint) params(params []v1.Param) {
	for i := range params {
		g.set(params[i].Name, &params[i].Value)
	}
}

func (g *gitHint) results(results []result) {
	for _, r := range results {
		g.set(r.name, r.value)
	}
}

func (g *gitHint) claim(h *Hints, w Where) {
	r := reader{w: w, h: h}
	switch {
	case !g.hasURL && !g.hasComm:
		return
	case g.commit == "" && g.url == "":
		r.malformed(GitCommit, "names neither a repository nor a commit", "write the commit id and the repository's URL, both as strings")
		return
	case g.commit == "":
		r.malformed(GitURL, "names a repository without a commit; "+GitCommit+" is missing, empty or no string", "give "+GitCommit+" as well, a string")
		return
	case g.url == "":
		effect := Misread // as the repository git+.git
		if g.needURL {
			effect = Dropped
		}
		r.fault(effect, GitCommit, "names a commit without a repository; "+GitURL+" is missing, empty or no string", "give "+GitURL+" as well, a string")
		if g.needURL {
			return
		}
	case len(g.commit) != 40 || !lowerHex(g.commit):
		// Still a claim: upstream labels whatever stands here sha1.
		r.misread(GitCommit, "is no SHA-1 commit id of 40 lower-case hex characters",
			"write what git rev-parse prints, not a branch or tag, without the line's end; ids of SHA-256 repositories have no hint")
	}
	results := make([]string, 0, 2)
	if g.hasURL {
		results = append(results, GitURL)
	}
	results = append(results, GitCommit)
	h.Git = append(h.Git, Claim{
		Where: w, Kind: Git, Role: Input, Field: "CHAINS-GIT", Results: results,
		URI: GitURI(g.url), Digest: Digest{"sha1", g.commit}, URL: g.url,
	})
}
