package verify

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/attest/predicate"
)

var update = flag.Bool("update", false, "write the golden files")

const (
	theirs = "https://github.com/theirs/builder/.github/workflows/build.yml"
	ours   = "https://github.com/ours/app"
	sha    = "0123456789abcdef0123456789abcdef01234567"
)

// isolated is a certificate of a reusable workflow at a tag, which says all that
// GitHub's do today.
func isolated() *Certificate {
	return &Certificate{
		SAN: theirs + "@refs/tags/v1", SANType: "uri", Issuer: GitHubIssuer,
		BuildSignerURI: theirs + "@refs/tags/v1", BuildSignerDigest: sha,
		BuildConfigURI: ours + "/.github/workflows/release.yml@refs/heads/main", BuildTrigger: "push",
		RunInvocationURI: ours + "/actions/runs/1/attempts/1", RunnerEnvironment: "github-hosted",
		SourceRepositoryURI: ours, SourceRepositoryOwnerURI: "https://github.com/ours",
		SourceRepositoryRef: "refs/heads/main", SourceRepositoryDigest: strings.Repeat("c", 40),
	}
}

func by(workflow, ref string) func(*SignerFacts) {
	return func(f *SignerFacts) {
		f.Certificate.SAN, f.Certificate.BuildSignerURI = workflow+"@"+ref, workflow+"@"+ref
	}
}

func source(address string) func(*SignerFacts) {
	return func(f *SignerFacts) {
		f.Certificate.SourceRepositoryURI, f.Certificate.RunInvocationURI = address, ""
		f.Certificate.SourceRepositoryOwnerURI = ""
	}
}

// TestIndependent has a case for each grade and for each attack on it.
func TestIndependent(t *testing.T) {
	for _, tc := range []struct {
		name  string
		edit  func(*SignerFacts)
		grade Grade
		codes string
	}{
		{"as it should be", func(*SignerFacts) {}, GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag"},
		{"the statement agrees", func(f *SignerFacts) {
			f.Builder, f.Source = theirs+"@refs/tags/v1", predicate.Source{Repository: ours}
		}, GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag"},
		{"at a commit, which a fork may have made", by(theirs, sha), GradeIsolatedWorkflow, "workflow-in-another-repository ref-digest commit-of-a-fork-possible"},
		{"at a commit that the trust names", func(f *SignerFacts) { by(theirs, sha)(f); f.Exact = true }, GradeIsolatedWorkflow, "workflow-in-another-repository ref-digest"},
		{"at a branch", by(theirs, "refs/heads/main"), GradeIsolatedWorkflow, "workflow-in-another-repository ref-branch"},
		{"of the same owner", by("https://github.com/Ours/builder/.github/workflows/b.yaml", "refs/tags/v1"), GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag same-owner"},
		{"a tag with an @, as monorepos have", by(theirs, "refs/tags/pkg@1.0.0"), GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag"},

		// Signs for itself.
		{"its own workflow", by(ours+"/.github/workflows/release.yml", "refs/heads/main"), GradeBuilder, "workflow-of-the-source"},
		{"its own workflow in another case", by("https://github.com/OURS/App/.github/workflows/release.yml", "refs/heads/main"), GradeBuilder, "workflow-of-the-source"},
		{"its own workflow called as a reusable one", by(ours+"/.github/workflows/sign.yml", "refs/tags/v1"), GradeBuilder, "workflow-of-the-source"},
		{"a workflow of what the provenance says was built", func(f *SignerFacts) {
			f.Source = predicate.Source{Repository: "https://github.com/Theirs/builder"}
		}, GradeBuilder, "workflow-of-the-claimed-source statement-names-other-source"},
		{"a pull request to the builder", by(theirs, "refs/pull/7/merge"), GradeBuilder, "workflow-of-a-pull-request"},
		{"a self-hosted runner", func(f *SignerFacts) { f.Certificate.RunnerEnvironment = "self-hosted" }, GradeBuilder, "runner-self-hosted"},

		// Look-alikes.
		{"source with a trailing dot", source("https://github.com/theirs/builder."), GradeUnknown, "identity-not-understood"},
		{"source with .git", source("https://github.com/theirs/builder.git"), GradeUnknown, "identity-not-understood"},
		{"source with a slash behind", source(ours + "/"), GradeUnknown, "identity-not-understood"},
		{"source with two slashes", source("https://github.com//theirs/builder"), GradeUnknown, "identity-not-understood"},
		{"source with an escape", source("https://github.com/theirs%2Fbuilder/x"), GradeUnknown, "identity-not-understood"},
		{"source over http", source("http://github.com/ours/app"), GradeUnknown, "identity-not-understood"},
		{"source elsewhere", source("https://github.com.evil.example/ours/app"), GradeUnknown, "identity-not-understood"},
		{"source with a user", source("https://github.com@evil.example/ours/app"), GradeUnknown, "identity-not-understood"},
		{"source in Cyrillic", source("https://github.com/thеirs/builder"), GradeUnknown, "identity-not-understood"},
		{"source of full width", source("https://github.com/ours/ａpp"), GradeUnknown, "identity-not-understood"},
		{"source with a soft hyphen", source("https://github.com/ours/a\u00adpp"), GradeUnknown, "identity-not-understood"},
		{"signer in Cyrillic", by("https://github.com/thеirs/builder/.github/workflows/build.yml", "refs/tags/v1"), GradeUnknown, "identity-not-understood"},
		{"a workflow's file that looks like a ref", by(theirs+"@v1.yml", "refs/tags/v1"), GradeUnknown, "identity-not-understood"},
		{"a workflow below a folder", by("https://github.com/theirs/builder/.github/workflows/x/build.yml", "refs/tags/v1"), GradeUnknown, "identity-not-understood"},
		{"a workflow elsewhere in the repository", by("https://github.com/theirs/builder/ci/build.yml", "refs/tags/v1"), GradeUnknown, "identity-not-understood"},
		{"a short ref", by(theirs, "v1"), GradeUnknown, "identity-not-understood"},
		{"a short commit", by(theirs, sha[:12]), GradeUnknown, "identity-not-understood"},
		{"a commit in capitals", by(theirs, strings.ToUpper(sha)), GradeUnknown, "identity-not-understood"},
		{"a ref of no kind", by(theirs, "refs/notes/x"), GradeUnknown, "identity-not-understood"},
		{"an empty tag", by(theirs, "refs/tags/"), GradeUnknown, "identity-not-understood"},

		// What is missing.
		{"no runner environment", func(f *SignerFacts) { f.Certificate.RunnerEnvironment = "" }, GradeUnknown, "runner-not-stated ref-tag"},
		{"another runner environment", func(f *SignerFacts) { f.Certificate.RunnerEnvironment = "GitHub-hosted" }, GradeUnknown, "runner-not-stated ref-tag"},
		{"no source", func(f *SignerFacts) { source("")(f) }, GradeUnknown, "source-not-stated"},
		{"no more than the name and the older source", func(f *SignerFacts) {
			*f.Certificate = Certificate{SAN: theirs + "@refs/tags/v1", SANType: "uri", Issuer: GitHubIssuer, GitHubWorkflowRepository: "ours/app", RunnerEnvironment: "github-hosted"}
		}, GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag"},
		{"the older source is its own", func(f *SignerFacts) {
			*f.Certificate = Certificate{SAN: theirs + "@refs/tags/v1", SANType: "uri", Issuer: GitHubIssuer, GitHubWorkflowRepository: "theirs/Builder"}
		}, GradeBuilder, "workflow-of-the-source"},

		// What contradicts itself.
		{"two signers", func(f *SignerFacts) { f.Certificate.BuildSignerURI = theirs + "@refs/tags/v2" }, GradeUnknown, "contradiction"},
		{"two sources", func(f *SignerFacts) { f.Certificate.GitHubWorkflowRepository = "other/app" }, GradeUnknown, "contradiction"},
		{"another owner", func(f *SignerFacts) { f.Certificate.SourceRepositoryOwnerURI = "https://github.com/theirs" }, GradeUnknown, "contradiction"},
		{"a run of another repository", func(f *SignerFacts) {
			f.Certificate.RunInvocationURI = "https://github.com/theirs/builder/actions/runs/1"
		}, GradeUnknown, "contradiction"},
		{"no run at all", func(f *SignerFacts) { f.Certificate.RunInvocationURI = ours + "/actions/runs/1/../2" }, GradeUnknown, "contradiction"},
		{"two commits", func(f *SignerFacts) {
			by(theirs, sha)(f)
			f.Certificate.BuildSignerDigest = strings.Repeat("0", 40)
		}, GradeUnknown, "contradiction"},
		{"builder.id names another workflow", func(f *SignerFacts) {
			f.Builder = "https://github.com/trusted/builder/.github/workflows/build.yml@refs/tags/v1"
		}, GradeUnknown, "contradiction"},
		{"builder.id names another ref", func(f *SignerFacts) { f.Builder = theirs + "@refs/tags/v2" }, GradeUnknown, "contradiction"},
		{"builder.id names no ref", func(f *SignerFacts) { f.Builder = theirs }, GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag"},
		{"builder.id is the platform's", func(f *SignerFacts) { f.Builder = runnerHosted }, GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag"},
		{"a delegator at a release", func(f *SignerFacts) {
			by(delegators[0], "refs/tags/v2.0.0")(f)
			f.Builder = theirs + "@refs/tags/v1"
		}, GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag builder-delegated"},
		{"a delegator at a branch", func(f *SignerFacts) {
			by(delegators[0], "refs/heads/main")(f)
			f.Builder = theirs + "@refs/tags/v1"
		}, GradeUnknown, "contradiction"},

		// How it was started.
		{"for a pull request", func(f *SignerFacts) {
			f.Certificate.BuildTrigger, f.Certificate.SourceRepositoryRef = "pull_request", "refs/pull/3/merge"
		}, GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag source-is-a-proposal"},
		{"for a pull request of a fork, with the base's rights", func(f *SignerFacts) {
			by(ours+"/.github/workflows/pr.yml", "refs/heads/main")(f)
			f.Certificate.BuildTrigger = "pull_request_target"
		}, GradeBuilder, "workflow-of-the-source source-is-a-proposal"},
		{"by hand on a branch", func(f *SignerFacts) {
			f.Certificate.BuildTrigger, f.Certificate.SourceRepositoryRef = "workflow_dispatch", "refs/heads/x"
		}, GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag started-by-hand"},
		{"for another source than it says", func(f *SignerFacts) { f.Source.Repository = "https://github.com/else/app" }, GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag statement-names-other-source"},

		// Other identities.
		{"an account", func(f *SignerFacts) {
			f.Certificate.SAN, f.Certificate.SANType = "me@example.com", "email"
		}, GradeUnknown, "identity-is-no-workflow"},
		{"another issuer that says it is GitHub's", func(f *SignerFacts) { f.Certificate.Issuer = GitHubIssuer + ".evil.example" }, GradeUnknown, "issuer-not-understood"},
		{"an issuer below GitHub's that is no enterprise", func(f *SignerFacts) { f.Certificate.Issuer = GitHubIssuer + "/a/b" }, GradeUnknown, "issuer-not-understood"},
		{"an enterprise's issuer", func(f *SignerFacts) { f.Certificate.Issuer = GitHubIssuer + "/ours" }, GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag"},
		{"a tenant's issuer, and workflows elsewhere", func(f *SignerFacts) { f.Certificate.Issuer = "https://token.actions.ours.ghe.com" }, GradeUnknown, "identity-not-understood"},
		{"GitLab's own project", func(f *SignerFacts) {
			*f.Certificate = Certificate{SAN: "https://gitlab.com/ours/app//.gitlab-ci.yml@refs/heads/main", SANType: "uri", Issuer: "https://gitlab.com", SourceRepositoryURI: "https://gitlab.com/ours/app"}
		}, GradeBuilder, "workflow-of-the-source"},
		{"GitLab, the pipeline of another project", func(f *SignerFacts) {
			*f.Certificate = Certificate{SAN: "https://gitlab.com/ours/ci//build.yml@refs/heads/main", SANType: "uri", Issuer: "https://gitlab.com", SourceRepositoryURI: "https://gitlab.com/ours/app"}
		}, GradeUnknown, "issuer-not-understood"},

		// Keys and bindings.
		{"a bare key", func(f *SignerFacts) { *f = SignerFacts{} }, GradeKeyHolder, "bare-key"},
		{"a bare key that says it is an observer's", func(f *SignerFacts) {
			*f = SignerFacts{Builder: "https://assay.dev/builder/v1/executed/user/factory-1"}
		}, GradeKeyHolder, "bare-key"},
		{"an observer", func(f *SignerFacts) {
			*f = SignerFacts{Observer: true, Builders: []string{"https://assay.dev/b"}, Builder: "https://assay.dev/b"}
		}, GradeObserver, "observer-bound"},
		{"an observer for all below", func(f *SignerFacts) {
			*f = SignerFacts{Observer: true, Builders: []string{"https://assay.dev/b/"}, Builder: "https://assay.dev/b/1"}
		}, GradeObserver, "observer-bound"},
		{"an observer whose builder climbs out", func(f *SignerFacts) {
			*f = SignerFacts{Observer: true, Builders: []string{"https://assay.dev/b/"}, Builder: "https://assay.dev/b/../evil"}
		}, GradeKeyHolder, "observer-other-builder bare-key"},
		{"an observer whose builder is escaped", func(f *SignerFacts) {
			*f = SignerFacts{Observer: true, Builders: []string{"https://assay.dev/b/"}, Builder: "https://assay.dev/b/%2e%2e/evil"}
		}, GradeKeyHolder, "observer-other-builder bare-key"},
		{"an observer for another builder", func(f *SignerFacts) {
			*f = SignerFacts{Observer: true, Builders: []string{"https://assay.dev/b"}, Builder: "https://assay.dev/bb"}
		}, GradeKeyHolder, "observer-other-builder bare-key"},
		{"an observer that names no builder", func(f *SignerFacts) {
			*f = SignerFacts{Observer: true, Builders: []string{"https://assay.dev/b"}}
		}, GradeKeyHolder, "observer-without-builder bare-key"},
		{"builders without a binding", func(f *SignerFacts) {
			*f = SignerFacts{Builders: []string{"https://assay.dev/b"}, Builder: "https://assay.dev/b"}
		}, GradeKeyHolder, "bare-key"},
		{"an identity bound as an observer", func(f *SignerFacts) {
			f.Observer, f.Builders, f.Builder = true, []string{"https://watch.example/"}, "https://watch.example/1"
		}, GradeObserver, "observer-bound"},
		{"an identity bound for another builder", func(f *SignerFacts) {
			f.Observer, f.Builders, f.Builder = true, []string{"https://watch.example/"}, "https://else.example/1"
		}, GradeIsolatedWorkflow, "workflow-in-another-repository ref-tag observer-other-builder"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := SignerFacts{Certificate: isolated()}
			tc.edit(&f)
			got := Independent(f)
			if got.Grade != tc.grade || codes(got) != tc.codes {
				t.Errorf("grade %q for %q; want %q for %q\n%s", got.Grade, codes(got), tc.grade, tc.codes, got.Reason())
			}
		})
	}
}

func codes(i Independence) string {
	var s []string
	for _, r := range i.Reasons {
		s = append(s, r.Code)
	}
	return strings.Join(s, " ")
}

// FuzzIndependent: no name of a signer or a source makes an isolated workflow of two
// spellings of one repository, whatever else there is in them.
func FuzzIndependent(f *testing.F) {
	f.Add(theirs+"@refs/tags/v1", ours)
	f.Add("https://github.com/a/b/.github/workflows/c.yml@refs/heads/x", "https://github.com/A/B")
	f.Add("https://github.com/a/b./.github/workflows/c.yml@refs/heads/x", "https://github.com/a/b")
	f.Fuzz(func(t *testing.T, signer, source string) {
		c := isolated()
		c.SAN, c.BuildSignerURI, c.BuildSignerDigest = signer, signer, ""
		c.SourceRepositoryURI, c.RunInvocationURI, c.SourceRepositoryOwnerURI = source, "", ""
		got := Independent(SignerFacts{Certificate: c})
		if len(got.Reasons) == 0 {
			t.Fatal("a grade without a reason")
		}
		if got.Grade != GradeIsolatedWorkflow {
			return
		}
		repository, _, _ := strings.Cut(signer, "/.github/")
		plain := func(s string) string { return strings.TrimSuffix(strings.TrimRight(strings.ToLower(s), "./"), ".git") }
		if plain(repository) == plain(source) {
			t.Errorf("%q is isolated from %q", signer, source)
		}
		for _, r := range signer[:strings.Index(signer, "@")] + source {
			if r > 0x7e && strings.ContainsRune(repository+source, r) {
				t.Errorf("%q or %q look like others and are isolated", signer, source)
			}
		}
	})
}

// TestIndependentOfRealBundles grades every certificate in the conformance data, by
// itself: nothing is verified here. The golden file says how many of each there are.
func TestIndependentOfRealBundles(t *testing.T) {
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	root = filepath.Join(root, "..", "..", "shared", "conformance")
	if _, err := os.Stat(root); err != nil {
		t.Skipf("no conformance data: %v", err)
	}
	count := map[string]int{}
	for _, folder := range []string{"sigstore/real-bundles", "slsa-verifier"} {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, f := range factsIn(data) {
				i := Independent(f.SignerFacts)
				name := f.Certificate.SAN
				if i.Workflow != nil {
					name = fmt.Sprintf("%s@%s for %s", i.Workflow.Repository, i.Workflow.RefKind, i.Workflow.Source)
				}
				count[fmt.Sprintf("%-17s  %s: %s", i.Grade, name, codes(i))]++
				if u := Unsaid(f.predicate, f.Certificate); f.Builder != "" && f.Certificate.Issuer == GitHubIssuer && len(u) < 4 {
					t.Errorf("%s: only %d things are not said: %v", path, len(u), u)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	for _, line := range sortedKeys(count) {
		fmt.Fprintf(&b, "%4d  %s\n", count[line], line)
	}
	const file = "testdata/independence.txt"
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("%s (-want +got), -update writes it:\n%s", file, diff)
	}
}

func sortedKeys(m map[string]int) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// facts are a signer's, with the predicate that he signed, if it is of a known shape.
type facts struct {
	SignerFacts
	predicate predicate.Predicate
}

// factsIn reads the certificates in a file of bundles or envelopes, a line each.
func factsIn(data []byte) []facts {
	var out []facts
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, 8<<20)
	lines := [][]byte{data}
	if !json.Valid(data) {
		lines = nil
		for sc.Scan() {
			lines = append(lines, slices.Clone(sc.Bytes()))
		}
	}
	for _, line := range lines {
		type envelope struct {
			Payload    []byte `json:"payload"`
			Signatures []struct {
				Cert string `json:"cert"`
			} `json:"signatures"`
		}
		type raw struct {
			RawBytes []byte `json:"rawBytes"`
		}
		var doc struct {
			envelope
			Material struct {
				Certificate raw `json:"certificate"`
				Chain       struct {
					Certificates []raw `json:"certificates"`
				} `json:"x509CertificateChain"`
			} `json:"verificationMaterial"`
			Envelope envelope `json:"dsseEnvelope"`
		}
		if json.Unmarshal(line, &doc) != nil {
			continue
		}
		der := doc.Material.Certificate.RawBytes
		if der == nil && len(doc.Material.Chain.Certificates) > 0 {
			der = doc.Material.Chain.Certificates[0].RawBytes
		}
		payload := doc.Envelope.Payload
		if len(doc.Signatures) > 0 && doc.Signatures[0].Cert != "" {
			payload = doc.Payload
			if block, _ := pem.Decode([]byte(doc.Signatures[0].Cert)); block != nil {
				der = block.Bytes
			}
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil {
			continue
		}
		c, err := readCertificate(leaf)
		if err != nil {
			continue
		}
		f := facts{SignerFacts: SignerFacts{Certificate: c}}
		if s, err := intoto.Parse(payload); err == nil {
			if p, err := predicate.Parse(s.PredicateType, s.Predicate); err == nil {
				f.predicate = p
				if p, ok := p.(predicate.Provenance); ok {
					f.Builder, f.Source = p.BuilderID(), p.Source()
				}
			}
		}
		out = append(out, f)
	}
	return out
}
