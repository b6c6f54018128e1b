package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/mod/semver"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/attest/strictjson"
)

// Expectation is what provenance must say of where an artifact comes from. What is
// empty is not asked for. Where the signer's certificate says it too, both must: the
// certificate is an authority's word, the predicate the builder's.
type Expectation struct {
	// SourceURI is the source repository, with or without https://, compared with
	// regard to case.
	SourceURI string
	// SourceTag is the tag, SourceVersionedTag the tag as a semantic version or the
	// beginning of one (v1 is any v1.x.y), SourceBranch the branch that was built.
	SourceTag          string
	SourceVersionedTag string
	SourceBranch       string
	// BuilderID is who must have built it: a workflow's address, with its ref or
	// without, or another builder.id. Where it is empty and the signer has a
	// certificate of GitHub's, the builder must be one of TrustedBuilders.
	BuilderID string
	// Inputs are inputs that a workflow started by hand must have been given.
	Inputs map[string]string
	// PackageName and PackageVersion are those of a package that statement is about,
	// by package URL.
	PackageName    string
	PackageVersion string
}

// GitHubWorkflows is the identity of every workflow of GitHub Actions, whoever owns
// it. It is of use only together with an Expectation, which says which of them.
func GitHubWorkflows() CertificateIdentity {
	return CertificateIdentity{Name: "workflows of GitHub Actions", SANRegexp: `https://github\.com/[^/@]+/[^/@]+/\.github/workflows/[^@]+@.+`, Issuer: GitHubIssuer}
}

// TrustedBuilders are the reusable workflows that build for others and that an
// Expectation trusts without BuilderID, at a released version: those of
// slsa-github-generator, which run in a job of their own that the calling workflow
// cannot reach.
func TrustedBuilders() []string {
	var out []string
	for _, w := range []string{
		"builder_go_slsa3.yml", "builder_container-based_slsa3.yml", "builder_docker-based_slsa3.yml", "builder_nodejs_slsa3.yml",
		"builder_maven_slsa3.yml", "builder_gradle_slsa3.yml", "builder_bazel_slsa3.yml",
		"generator_generic_slsa3.yml", "generator_container_slsa3.yml",
	} {
		out = append(out, generator+w)
	}
	return out
}

const generator = "https://github.com/slsa-framework/slsa-github-generator/.github/workflows/"

// delegators sign for a builder that they were called by and that builder.id names.
var delegators = []string{generator + "delegator_generic_slsa3.yml", generator + "delegator_lowperms-generic_slsa3.yml"}

// released is the ref of a released builder.
var released = regexp.MustCompile(`^refs/tags/v[0-9]+\.[0-9]+\.[0-9]+$`)

// npm's builders: the public runners of GitHub, as npm's provenance names them.
const (
	runnerOld    = "https://github.com/actions/runner" // v0.2
	runnerHosted = "https://github.com/actions/runner/github-hosted"
)

func (e *Expectation) valid() error {
	if e == nil {
		return nil
	}
	if e.SourceURI == "" {
		return errors.New("an expectation without a source would trust everybody's builds; say --source-uri")
	}
	if e.SourceBranch != "" && e.SourceTag+e.SourceVersionedTag != "" {
		return errors.New("a build is of a branch or of a tag; say one of --source-branch and --source-tag")
	}
	if e.SourceVersionedTag != "" && !semver.IsValid(e.SourceVersionedTag) {
		return fmt.Errorf("versioned tag %q is no semantic version such as v1, v1.2 or v1.2.3", e.SourceVersionedTag)
	}
	return nil
}

// check returns nil if a statement is no provenance or is as expected.
func (e *Expectation) check(s *Statement, st *intoto.Statement) error {
	if e == nil {
		return nil
	}
	if pub, ok := s.Typed.(*predicate.Publish); ok {
		return e.packaged(pub.Name, pub.Version)
	}
	p, ok := s.Typed.(predicate.Provenance)
	if !ok {
		return e.signer(s.Certificate)
	}
	cert := s.Certificate
	source := p.Source()
	if err := e.builder(p, cert); err != nil {
		return err
	}
	want := repository(e.SourceURI)
	said := []string{repository(source.Repository)}
	if cert != nil {
		said = append(said, repository(cert.SourceRepository()))
	}
	for _, have := range said {
		if have != want {
			return kindf(KindMismatchSource, "source is %q; want %q", have, want)
		}
	}
	ref := source.Ref
	if cert != nil && cert.SourceRef() != "" {
		ref = cert.SourceRef()
		if source.Ref != "" && source.Ref != ref {
			return kindf(KindMismatchSource, "the certificate names ref %q and the provenance %q", ref, source.Ref)
		}
	}
	if cert != nil && source.Commit != "" && cert.SourceDigest() != "" && source.Commit != cert.SourceDigest() {
		return kindf(KindMismatchSource, "the certificate names commit %s and the provenance %s", cert.SourceDigest(), source.Commit)
	}
	if err := e.ref(refOf(p, ref)); err != nil {
		return err
	}
	if err := e.inputs(p); err != nil {
		return err
	}
	if e.PackageName+e.PackageVersion == "" {
		return nil
	}
	var last error = kindf(KindMismatchPackageName, "no subject is a package")
	for _, sub := range st.Subjects {
		name, version, ok := purl(sub.Name)
		if !ok {
			continue
		}
		if last = e.packaged(name, version); last == nil {
			return nil
		}
	}
	return last
}

// signer is nil if what is no provenance was signed for the source repository. It
// says nothing of builders, but must not be anybody's: see GitHubWorkflows.
func (e *Expectation) signer(cert *Certificate) error {
	if e == nil || cert == nil || repository(cert.SourceRepository()) == repository(e.SourceURI) {
		return nil
	}
	return kindf(KindMismatchSource, "it was signed for source %q; want %q", cert.SourceRepository(), e.SourceURI)
}

func (e *Expectation) packaged(name, version string) error {
	if e.PackageName != "" && e.PackageName != name {
		return kindf(KindMismatchPackageName, "package is %q; want %q", name, e.PackageName)
	}
	if e.PackageVersion != "" && e.PackageVersion != version {
		return kindf(KindMismatchPackageVersion, "package %s is of version %q; want %q", name, version, e.PackageVersion)
	}
	return nil
}

// purl splits pkg:npm/%40scope/name@version.
func purl(s string) (name, version string, ok bool) {
	s, ok = strings.CutPrefix(s, "pkg:npm/")
	if !ok {
		return "", "", false
	}
	i := strings.LastIndex(s, "@")
	if i < 0 {
		return "", "", false
	}
	name, err := url.PathUnescape(s[:i])
	return name, s[i+1:], err == nil
}

// builder compares who built with who should have.
func (e *Expectation) builder(p predicate.Provenance, cert *Certificate) error {
	said := p.BuilderID()
	if strings.HasPrefix(said, "https://cloudbuild.googleapis.com/") {
		return e.cloudBuild(said)
	}
	if said == runnerOld || said == runnerHosted {
		return e.runner(said, cert)
	}
	if e.BuilderID == runnerOld || strings.HasPrefix(e.BuilderID, runnerOld+"/") {
		return kindf(KindMismatchBuilder, "builder is %q; want %q", said, e.BuilderID)
	}
	if cert == nil {
		// A key's holder vouches for its own name.
		if e.BuilderID == "" {
			return nil
		}
		return sameBuilder(KindMismatchBuilder, said, e.BuilderID)
	}
	signer := cert.Signer()
	workflow, ref, _ := strings.Cut(signer, "@")
	if slices.Contains(delegators, workflow) {
		if !released.MatchString(ref) {
			return kindf(KindUntrustedIdentity, "the delegator %q is at ref %q, which is no release", workflow, ref)
		}
		// What it says of its caller is its own word, and to be believed.
		workflow, ref, _ = strings.Cut(said, "@")
	} else if _, saidRef, ok := strings.Cut(said, "@"); strings.HasPrefix(said, "https://github.com/") &&
		(strings.TrimSuffix(said, "@"+saidRef) != workflow || ok && saidRef != ref) {
		return kindf(KindUntrustedIdentity, "the provenance says that %q built, and %q signed it", said, signer)
	}
	if e.BuilderID != "" {
		return sameBuilder(KindUntrustedIdentity, workflow+"@"+ref, e.BuilderID)
	}
	if !slices.Contains(TrustedBuilders(), workflow) || !released.MatchString(ref) {
		return kindf(KindUntrustedIdentity, "builder %q is none of those that are trusted without being named; name it with --builder-id", workflow+"@"+ref)
	}
	return nil
}

// sameBuilder compares with the ref where the caller gives one: in full, or a tag.
func sameBuilder(k Kind, have, want string) error {
	workflow, ref, _ := strings.Cut(have, "@")
	wantWorkflow, wantRef, ok := strings.Cut(want, "@")
	if workflow != wantWorkflow || ok && ref != wantRef && ref != "refs/tags/"+wantRef {
		return kindf(k, "builder is %q; want %q", have, want)
	}
	return nil
}

// runner is for provenance that npm's own client made on GitHub's runners. The
// workflow that signed is the package's own, so it vouches for itself.
func (e *Expectation) runner(said string, cert *Certificate) error {
	switch {
	case e.BuilderID == "":
		return kindf(KindInvalidBuilder, "the package's own workflow built and signed; name its builder with --builder-id %s to accept that", runnerHosted)
	case e.BuilderID != runnerOld && e.BuilderID != runnerHosted:
		return kindf(KindUnsupportedBuilder, "builder %q is none that this kind of provenance can name; want %s", e.BuilderID, runnerHosted)
	case said == runnerHosted && e.BuilderID == runnerOld:
		return kindf(KindInvalidBuilder, "builder %q does not say who runs it; want %s", e.BuilderID, runnerHosted)
	case cert == nil:
		return kindf(KindUntrustedIdentity, "provenance of GitHub's runners is signed with a certificate")
	case cert.RunnerEnvironment != "" && cert.RunnerEnvironment != "github-hosted":
		return kindf(KindMismatchBuilder, "the certificate says that the runner is %s", cert.RunnerEnvironment)
	}
	return nil
}

// cloudBuild compares with Google's builder, with its version or without.
func (e *Expectation) cloudBuild(said string) error {
	name, version, _ := strings.Cut(said, "@")
	if name != gcbBuilder {
		return kindf(KindUnsupportedBuilder, "builder %q is not known; known is %s", said, gcbBuilder)
	}
	if e.BuilderID == "" {
		return nil
	}
	want, wantVersion, ok := strings.Cut(e.BuilderID, "@")
	if want != gcbBuilder {
		return kindf(KindUnsupportedBuilder, "builder %q is not known; known is %s", e.BuilderID, gcbBuilder)
	}
	if ok && wantVersion != version {
		return kindf(KindMismatchBuilder, "builder is %q; want %q", said, e.BuilderID)
	}
	return nil
}

// ref compares the ref that was built.
func (e *Expectation) ref(ref string) error {
	tag, isTag := strings.CutPrefix(ref, "refs/tags/")
	branch, isBranch := strings.CutPrefix(ref, "refs/heads/")
	switch {
	case e.SourceTag != "" && !isTag:
		return kindf(KindInvalidRef, "ref %q is no tag; want tag %q", ref, e.SourceTag)
	case e.SourceTag != "" && tag != e.SourceTag:
		return kindf(KindMismatchTag, "tag is %q; want %q", tag, e.SourceTag)
	case e.SourceVersionedTag != "" && !isTag:
		return kindf(KindInvalidRef, "ref %q is no tag; want version %q", ref, e.SourceVersionedTag)
	case e.SourceVersionedTag != "" && !within(tag, e.SourceVersionedTag):
		return kindf(KindMismatchVersionedTag, "tag is %q; want version %q", tag, e.SourceVersionedTag)
	case e.SourceBranch != "" && !isBranch:
		return kindf(KindInvalidRef, "ref %q is no branch; want branch %q", ref, e.SourceBranch)
	case e.SourceBranch != "" && branch != e.SourceBranch:
		return kindf(KindMismatchBranch, "branch is %q; want %q", branch, e.SourceBranch)
	}
	return nil
}

// within says whether a tag is a semantic version that another one, perhaps cut
// short, names.
func within(tag, want string) bool {
	if !semver.IsValid(tag) {
		return false
	}
	switch strings.Count(strings.TrimSuffix(want, semver.Prerelease(want)+semver.Build(want)), ".") {
	case 0:
		return semver.Major(tag) == semver.Major(want)
	case 1:
		return semver.MajorMinor(tag) == semver.MajorMinor(want)
	}
	return semver.Canonical(tag) == semver.Canonical(want)
}

// repository is a repository's address as people abbreviate it, in full.
func repository(s string) string {
	s = strings.TrimPrefix(s, "git+")
	if s != "" && !strings.Contains(s, "://") {
		s = "https://" + s
	}
	return strings.TrimSuffix(strings.TrimSuffix(s, "/"), ".git")
}

// refOf is the ref that a certificate or source names; Google Cloud Build names a tag
// among its substitutions instead.
func refOf(p predicate.Provenance, ref string) string {
	old, ok := p.(*predicate.Provenance01)
	if !ok || ref != "" {
		return ref
	}
	return gcbRef(old.Recipe.Arguments)
}

// inputs compares the inputs of a workflow that was started by hand.
func (e *Expectation) inputs(p predicate.Provenance) error {
	if len(e.Inputs) == 0 {
		return nil
	}
	have := map[string]json.RawMessage{}
	switch p := p.(type) {
	case *predicate.Provenance02:
		have = members(p.Invocation.Environment, "github_event_payload", "inputs")
	case *predicate.Provenance1:
		if have = members(p.BuildDefinition.InternalParameters["GITHUB_EVENT_PAYLOAD"], "inputs"); have == nil {
			have = members(p.BuildDefinition.ExternalParameters["inputs"])
		}
	}
	for name, want := range e.Inputs {
		raw, ok := have[name]
		if !ok {
			return kindf(KindMismatchInputs, "the workflow had no input %q", name)
		}
		value := strings.TrimSpace(string(raw))
		if s, err := strictjson.String(raw); err == nil {
			value = s
		}
		if value != want {
			return kindf(KindMismatchInputs, "input %q is %q; want %q", name, value, want)
		}
	}
	return nil
}

// members follows names to an object; nil where there is none.
func members(raw []byte, path ...string) map[string]json.RawMessage {
	for _, name := range path {
		m, err := strictjson.Object(raw)
		if err != nil {
			return nil
		}
		raw = m[name]
	}
	m, err := strictjson.Object(raw)
	if err != nil {
		return nil
	}
	return m
}
