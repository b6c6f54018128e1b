package verify

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"assay.dev/assay/attest/predicate"
)

// Grades of certificates; see docs/independence.md.
const (
	GradeIsolatedWorkflow Grade = "isolated workflow" // a reusable workflow in another repository than the source's
	GradeBuilder          Grade = "builder"           // the build's own identity: its repository's workflow signs for itself
)

// SignerFacts is all that a grade is made of: what verification found of the signer,
// what the verifier's trust says of him, and what he says in what he signed. The zero
// value is a bare key without a role.
type SignerFacts struct {
	// Observer says that the trust binds this key or identity as an observer, for
	// Builders: exact builder.id values, or prefixes that end in "/".
	Observer bool
	Builders []string
	// Exact says that the trust names this very identity, its ref included, and not a
	// pattern that it fits.
	Exact bool
	// Certificate is the signer's; nil for a bare key.
	Certificate *Certificate
	// Builder is builder.id of what was signed, for an image signature that of the
	// provenance by the same signer. Empty: none.
	Builder string
	// Source is what was built, as the signed provenance says; the zero value where it
	// is none.
	Source predicate.Source
}

// Independence says whether the identity that signed could have been used by the
// build that it speaks of.
type Independence struct {
	Grade Grade `json:"grade"`
	// Reasons lead to the grade, the decisive one first; those behind it limit what it
	// means. There is always one.
	Reasons []Reason `json:"reasons"`
	// Workflow is the one that signed; nil where the signer is none that is understood.
	Workflow *SignerWorkflow `json:"workflow,omitempty"`
}

// Reason is a word for policies and a sentence for people.
type Reason struct {
	Code string `json:"code"`
	Text string `json:"text"`
}

// SignerWorkflow is what a certificate says of the workflow that signed.
type SignerWorkflow struct {
	Repository string `json:"repository"` // https://github.com/owner/name
	Path       string `json:"path"`       // .github/workflows/build.yml
	Ref        string `json:"ref"`
	// RefKind is digest, tag, branch or pull request.
	RefKind string `json:"refKind"`
	// Commit is what the ref was when it ran; empty where the certificate does not say.
	Commit string `json:"commit,omitempty"`
	// Source is the repository it ran for.
	Source string `json:"source"`
	// SameOwner says that one owner has both repositories.
	SameOwner bool   `json:"sameOwner"`
	Runner    string `json:"runner,omitempty"`
	Trigger   string `json:"trigger,omitempty"`
	// Impostor says that the commit may be that of a fork: see docs/independence.md.
	Impostor bool `json:"impostor"`
}

// Kinds of refs.
const (
	RefDigest      = "digest"
	RefTag         = "tag"
	RefBranch      = "branch"
	RefPullRequest = "pull request"
)

// Codes of reasons. Policies compare them, so they stay as they are.
const (
	ReasonObserverBound     = "observer-bound"
	ReasonObserverNoBuilder = "observer-without-builder"
	ReasonObserverUnfit     = "observer-other-builder"
	ReasonBareKey           = "bare-key"
	ReasonIsolated          = "workflow-in-another-repository"
	ReasonOwnWorkflow       = "workflow-of-the-source"
	ReasonClaimedSource     = "workflow-of-the-claimed-source"
	ReasonSelfHosted        = "runner-self-hosted"
	ReasonRunnerUnstated    = "runner-not-stated"
	ReasonProposedWorkflow  = "workflow-of-a-pull-request"
	ReasonPinnedDigest      = "ref-digest"
	ReasonPinnedTag         = "ref-tag"
	ReasonUnpinned          = "ref-branch"
	ReasonImpostor          = "commit-of-a-fork-possible"
	ReasonSameOwner         = "same-owner"
	ReasonProposal          = "source-is-a-proposal"
	ReasonByHand            = "started-by-hand"
	ReasonOtherSource       = "statement-names-other-source"
	ReasonDelegated         = "builder-delegated"
	ReasonNotWorkflow       = "identity-is-no-workflow"
	ReasonUnknownIssuer     = "issuer-not-understood"
	ReasonUnreadable        = "identity-not-understood"
	ReasonNoSource          = "source-not-stated"
	ReasonContradiction     = "contradiction"
	ReasonTwoSigners        = "two-signers" // of a run: package policy says so
)

func (i *Independence) because(code, format string, a ...any) {
	i.Reasons = append(i.Reasons, Reason{code, fmt.Sprintf(format, a...)})
}

// Reason is all reasons as one sentence.
func (i Independence) Reason() string {
	var s []string
	for _, r := range i.Reasons {
		s = append(s, r.Text)
	}
	return strings.Join(s, "; ")
}

// Independent grades a signer. It believes the trust, and of the certificate what an
// authority put into it; what the signer says of himself can only lower a grade. Where
// two of these contradict each other, or anything cannot be read in one way alone, the
// grade is unknown. It has no effect but its result.
func Independent(f SignerFacts) Independence {
	var i Independence
	if f.Observer {
		switch {
		case f.Builder == "":
			i.because(ReasonObserverNoBuilder, "what it signed names no builder that the trust's binding as observer could fit")
		case !fitsBuilder(f.Builders, f.Builder):
			i.because(ReasonObserverUnfit, "builder %q is none of those for which the trust binds it as observer", f.Builder)
		default:
			i.Grade = GradeObserver
			i.because(ReasonObserverBound, "the trust binds it as observer for builder %q", f.Builder)
			return i
		}
	}
	if f.Certificate == nil {
		i.Grade = GradeKeyHolder
		i.because(ReasonBareKey, "it is a bare key, and whoever has it may have been the build")
		return i
	}
	unfit := i.Reasons
	i = certified(f)
	i.Reasons = append(i.Reasons, unfit...)
	return i
}

// fitsBuilder says whether a builder.id is bound. A prefix covers what lies below it,
// and nothing that a reader of addresses could take for something else.
func fitsBuilder(bound []string, builder string) bool {
	return builder != "" && slices.ContainsFunc(bound, func(b string) bool {
		if b == builder {
			return true
		}
		rest, ok := strings.CutPrefix(builder, b)
		if !ok || !strings.HasSuffix(b, "/") || b == "/" || rest == "" || strings.ContainsAny(rest, "%?#\\ \t\r\n") {
			return false
		}
		return !slices.ContainsFunc(strings.Split(rest, "/"), func(s string) bool { return s == "" || s == "." || s == ".." })
	})
}

// certified grades by a certificate.
func certified(f SignerFacts) Independence {
	c := f.Certificate
	i := Independence{Grade: GradeUnknown}
	if c.SANType != "uri" {
		i.because(ReasonNotWorkflow, "%q is an account, not a workflow: nothing says whether the build could sign in as it", c.SAN)
		return i
	}
	host, ok := workflowHost(c.Issuer)
	if !ok {
		return foreign(c)
	}
	w, err := readWorkflow(host, c.SAN)
	if err != nil {
		i.because(ReasonUnreadable, "reading the workflow %q: %v", c.SAN, err)
		return i
	}
	if c.SourceRepository() == "" {
		i.because(ReasonNoSource, "the certificate does not say for which repository the workflow ran")
		return i
	}
	source, err := readRepository(host, c.SourceRepository())
	if err != nil {
		i.because(ReasonUnreadable, "reading the source repository %q: %v", c.SourceRepository(), err)
		return i
	}
	i.Workflow = &SignerWorkflow{
		Repository: w.repository.address(host), Path: w.path, Ref: w.ref, RefKind: w.kind, Commit: c.BuildSignerDigest,
		Source: source.address(host), SameOwner: strings.EqualFold(w.repository.owner, source.owner),
		Runner: c.RunnerEnvironment, Trigger: c.Trigger(),
	}
	if why := contradiction(f, host, w, source); why != "" {
		i.because(ReasonContradiction, "%s", why)
		return i
	}
	i.workflow(f, host, w, source)
	return i
}

// workflow grades a GitHub workflow whose facts agree with each other.
func (i *Independence) workflow(f SignerFacts, host string, w workflowAddress, source repositoryName) {
	c := f.Certificate
	claimed, claims := readRepository(host, f.Source.Repository)
	switch {
	case w.repository.same(source):
		i.Grade = GradeBuilder
		i.because(ReasonOwnWorkflow, "it is a workflow of the source's own repository, %s, so whoever can change what is built can change what signs", i.Workflow.Repository)
	case claims == nil && w.repository.same(claimed):
		i.Grade = GradeBuilder
		i.because(ReasonClaimedSource, "the provenance says that %s was built, which has this workflow itself", claimed.address(host))
	case w.kind == RefPullRequest:
		i.Grade = GradeBuilder
		i.because(ReasonProposedWorkflow, "its ref %s is a pull request's, so anybody may have written the workflow", w.ref)
	case c.RunnerEnvironment == "self-hosted":
		i.Grade = GradeBuilder
		i.because(ReasonSelfHosted, "it ran on a self-hosted runner, a machine of whoever asked for the build, which holds the identity's token")
	case c.RunnerEnvironment != "github-hosted":
		i.because(ReasonRunnerUnstated, "it is a workflow of another repository, %s, but the certificate does not say on whose machine it ran (runner environment %q)", i.Workflow.Repository, c.RunnerEnvironment)
	default:
		i.Grade = GradeIsolatedWorkflow
		i.because(ReasonIsolated, "it is a reusable workflow of %s, which %s cannot change, in a job of its own on a hosted runner", i.Workflow.Repository, i.Workflow.Source)
	}
	i.limits(f, w, claims == nil && !claimed.same(source))
}

// limits adds what a reader of the grade should know.
func (i *Independence) limits(f SignerFacts, w workflowAddress, otherSource bool) {
	c := f.Certificate
	if i.Grade != GradeBuilder {
		switch w.kind {
		case RefDigest:
			i.because(ReasonPinnedDigest, "its ref is the commit %s", w.ref)
			if i.Workflow.Impostor = !f.Exact; i.Workflow.Impostor {
				i.because(ReasonImpostor, "a commit of any fork of %s can be called so: compare it with one that you have read", i.Workflow.Repository)
			}
		case RefTag:
			i.because(ReasonPinnedTag, "its ref is the tag %s, which whoever can push to %s can move", strings.TrimPrefix(w.ref, "refs/tags/"), i.Workflow.Repository)
		case RefBranch:
			i.because(ReasonUnpinned, "its ref is the branch %s: it is whatever was there that minute", strings.TrimPrefix(w.ref, "refs/heads/"))
		}
		if i.Workflow.SameOwner {
			i.because(ReasonSameOwner, "both repositories belong to %s, whose administrators can change both", w.repository.owner)
		}
	}
	if _, _, delegated := builderAgrees(f.Builder, c.Signer()); delegated {
		i.because(ReasonDelegated, "that %q built is the delegator's word, which called it", f.Builder)
	}
	switch trigger := c.Trigger(); {
	case strings.HasPrefix(c.SourceRef(), "refs/pull/"), trigger == "pull_request", trigger == "pull_request_target":
		i.because(ReasonProposal, "it ran for a pull request (%s of %s): what it built, nobody need have accepted", first(trigger, "ref"), first(c.SourceRef(), "no ref"))
	case trigger == "workflow_dispatch":
		i.because(ReasonByHand, "it was started by hand on %s", first(c.SourceRef(), "a ref that is not stated"))
	}
	if otherSource {
		i.because(ReasonOtherSource, "the provenance says that %s was built, and the certificate that it ran for %s", f.Source.Repository, i.Workflow.Source)
	}
}

// contradiction is what cannot both be true; empty if there is none.
func contradiction(f SignerFacts, host string, w workflowAddress, source repositoryName) string {
	c := f.Certificate
	if c.BuildSignerURI != "" && c.BuildSignerURI != c.SAN {
		return fmt.Sprintf("the certificate names %q as its owner and %q as the signer", c.SAN, c.BuildSignerURI)
	}
	if w.kind == RefDigest && c.BuildSignerDigest != "" && c.BuildSignerDigest != w.ref {
		return fmt.Sprintf("the certificate says that the workflow at commit %s was at commit %s", w.ref, c.BuildSignerDigest)
	}
	if c.SourceRepositoryURI != "" && c.GitHubWorkflowRepository != "" && !strings.EqualFold(c.SourceRepositoryURI, "https://"+host+"/"+c.GitHubWorkflowRepository) {
		return fmt.Sprintf("the certificate names two source repositories, %q and %q", c.SourceRepositoryURI, c.GitHubWorkflowRepository)
	}
	if owner := c.SourceRepositoryOwnerURI; owner != "" && !strings.EqualFold(owner, "https://"+host+"/"+source.owner) {
		return fmt.Sprintf("the certificate says that %q owns %q", owner, c.SourceRepository())
	}
	if run := c.RunInvocationURI; run != "" {
		address, rest, ok := strings.Cut(run, "/actions/runs/")
		ran, err := readRepository(host, address)
		if !ok || err != nil || !runForm.MatchString(rest) {
			return fmt.Sprintf("the run %q is no address of one", run)
		}
		if !ran.same(source) {
			return fmt.Sprintf("the certificate says that a run of %q built %q", address, c.SourceRepository())
		}
	}
	if said, signed, delegated := builderAgrees(f.Builder, c.Signer()); !delegated && said != signed {
		return fmt.Sprintf("the provenance says that %q built, and %q signed it", f.Builder, c.Signer())
	}
	return ""
}

var runForm = regexp.MustCompile(`^[0-9]{1,20}(/attempts/[0-9]{1,9})?$`)

// builderAgrees compares builder.id with the workflow that signed, where it names a
// workflow. Delegated says that the signer is one of those that are called by the
// builder and speak for it, at a release.
func builderAgrees(builder, signer string) (said, signed string, delegated bool) {
	if !strings.Contains(builder, "/.github/workflows/") {
		return "", "", false // the platform, or the builder's own name for itself
	}
	workflow, ref, _ := strings.Cut(signer, "@")
	saidWorkflow, saidRef, hasRef := strings.Cut(builder, "@")
	if slices.Contains(delegators, workflow) && released.MatchString(ref) && saidWorkflow != workflow {
		return builder, signer, true
	}
	if !hasRef {
		return saidWorkflow, workflow, false
	}
	return saidWorkflow + "@" + saidRef, workflow + "@" + ref, false
}

// tenant is the host of a GitHub Enterprise Cloud tenant in its issuer.
var tenant = regexp.MustCompile(`^https://token\.actions\.([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.ghe\.com)$`)

// workflowHost is where an issuer's workflows live.
func workflowHost(issuer string) (string, bool) {
	if issuer == GitHubIssuer {
		return "github.com", true
	}
	if m := tenant.FindStringSubmatch(issuer); m != nil {
		return m[1], true
	}
	// An enterprise may have an issuer of its own below GitHub's.
	slug, ok := strings.CutPrefix(issuer, GitHubIssuer+"/")
	return "github.com", ok && ownerForm.MatchString(slug)
}

// foreign grades certificates of other issuers. GitLab's say enough to see that a
// project signs for itself; that a pipeline of another project is out of its reach,
// nothing says.
func foreign(c *Certificate) Independence {
	i := Independence{Grade: GradeUnknown}
	source := strings.TrimSuffix(c.SourceRepositoryURI, "/")
	if c.Issuer == "https://gitlab.com" && source != "" && strings.HasPrefix(strings.ToLower(c.SAN), strings.ToLower(source)+"//") {
		i.Grade = GradeBuilder
		i.because(ReasonOwnWorkflow, "it is a pipeline of the source's own project, %s", source)
		return i
	}
	i.because(ReasonUnknownIssuer, "what identities of issuer %q mean for a build is not known here", c.Issuer)
	return i
}

// repositoryName is a repository of GitHub's.
type repositoryName struct{ owner, name string }

func (r repositoryName) same(o repositoryName) bool {
	return strings.EqualFold(r.owner, o.owner) && strings.EqualFold(r.name, o.name)
}

func (r repositoryName) address(host string) string {
	return "https://" + host + "/" + r.owner + "/" + r.name
}

// The names that GitHub gives: ASCII alone, so that nothing looks like another.
var (
	ownerForm = regexp.MustCompile(`^[A-Za-z0-9](?:[A-Za-z0-9_-]{0,98}[A-Za-z0-9_])?$`)
	nameForm  = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)
)

// readRepository reads https://host/owner/name and nothing that means the same.
func readRepository(host, address string) (repositoryName, error) {
	rest, ok := strings.CutPrefix(address, "https://"+host+"/")
	owner, name, two := strings.Cut(rest, "/")
	switch {
	case !ok || !two:
		return repositoryName{}, fmt.Errorf("want https://%s/OWNER/NAME", host)
	case !ownerForm.MatchString(owner) || !nameForm.MatchString(name):
		return repositoryName{}, errors.New("GitHub has no such names")
	case strings.HasSuffix(name, "."), strings.HasSuffix(strings.ToLower(name), ".git"):
		// Either would be another spelling of a repository without it.
		return repositoryName{}, errors.New("the name ends in a dot or .git")
	}
	return repositoryName{owner, name}, nil
}

// workflowAddress is https://host/owner/name/.github/workflows/file@ref.
type workflowAddress struct {
	repository repositoryName
	path       string
	ref        string
	kind       string
}

var (
	fileForm   = regexp.MustCompile(`^[^/@\\%?#]+\.ya?ml$`)
	commitForm = regexp.MustCompile(`^(?:[0-9a-f]{40}|[0-9a-f]{64})$`)
	pullForm   = regexp.MustCompile(`^refs/pull/[0-9]+/(?:head|merge)$`)
)

const workflows = "/.github/workflows/"

func readWorkflow(host, address string) (w workflowAddress, err error) {
	repository, rest, ok := strings.Cut(address, workflows)
	if !ok {
		return w, fmt.Errorf("want https://%s/OWNER/NAME%sFILE@REF", host, workflows)
	}
	if w.repository, err = readRepository(host, repository); err != nil {
		return w, err
	}
	file, ref, ok := strings.Cut(rest, "@")
	if !ok || !fileForm.MatchString(file) {
		return w, fmt.Errorf("%q is no workflow's file and ref", rest)
	}
	w.path, w.ref = strings.TrimPrefix(workflows, "/")+file, ref
	switch {
	case commitForm.MatchString(ref):
		w.kind = RefDigest
	case pullForm.MatchString(ref):
		w.kind = RefPullRequest
	case len(ref) > len("refs/tags/") && strings.HasPrefix(ref, "refs/tags/"):
		w.kind = RefTag
	case len(ref) > len("refs/heads/") && strings.HasPrefix(ref, "refs/heads/"):
		w.kind = RefBranch
	default:
		return w, fmt.Errorf("ref %q is neither a commit nor below refs/heads, refs/tags or refs/pull", ref)
	}
	return w, nil
}

// WorkflowFile is a workflow's file at a commit.
type WorkflowFile struct {
	Repository string `json:"repository"`
	Path       string `json:"path"`
	Commit     string `json:"commit"`
}

// WorkflowFiles are the workflow that signed and the one that was started, where the
// certificate names them with their commits: the first alone where they are one. None
// is no error.
func (c *Certificate) WorkflowFiles() []WorkflowFile {
	host, ok := workflowHost(c.Issuer)
	if !ok {
		return nil
	}
	var out []WorkflowFile
	for _, w := range []struct{ address, commit string }{
		{c.Signer(), c.BuildSignerDigest},
		{c.BuildConfigURI, first(c.BuildConfigDigest, c.GitHubWorkflowSHA)},
	} {
		a, err := readWorkflow(host, w.address)
		if err != nil {
			continue
		}
		if a.kind == RefDigest {
			w.commit = a.ref
		}
		f := WorkflowFile{a.repository.address(host), a.path, w.commit}
		if w.commit != "" && !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}
