package verify_test

// These tests read shared/conformance beside the repository: real bundles and
// provenance with what the reference says of each. They are skipped where it is not
// there.

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/semver"

	"assay.dev/assay/store"
	"assay.dev/assay/verify"
)

// shared finds a folder of the conformance data.
func shared(t testing.TB, name string) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above this package")
		}
		dir = filepath.Dir(dir)
	}
	path := filepath.Join(dir, "..", "shared", "conformance", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no conformance data: %v", err)
	}
	return path
}

// table reads a file of tab-separated values with names in its first line.
func table(t testing.TB, path string) []map[string]string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	var rows []map[string]string
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.TrimRight(line, "\r\n"), "\t")
		if names == nil {
			names = cells
			continue
		}
		row := map[string]string{}
		for i, c := range cells {
			row[names[i]] = c
		}
		rows = append(rows, row)
	}
	return rows
}

func instances(t testing.TB) []*verify.Instance {
	t.Helper()
	good, err := verify.PublicGood()
	if err != nil {
		t.Fatal(err)
	}
	gh, err := verify.GitHub()
	if err != nil {
		t.Fatal(err)
	}
	return []*verify.Instance{good, gh}
}

// anybody is every identity: the baselines ask for no policy.
var anybody = []verify.CertificateIdentity{{Name: "anybody", SANRegexp: ".*", IssuerRegexp: ".*"}}

func read(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// about makes an artifact of the first digest of a list.
func about(t testing.TB, digests string) *verify.Artifact {
	t.Helper()
	first, _, _ := strings.Cut(digests, ",")
	a, err := verify.DigestArtifact(first)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// counts are how many cases of a class came out how, printed for the reader.
type counts map[string]int

func (c counts) print(t testing.TB) {
	t.Helper()
	var keys []string
	for k := range c {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		t.Logf("%4d  %s", c[k], k)
	}
}

// TestRealBundles: bundles of other projects' tests against the public-good root.
func TestRealBundles(t *testing.T) {
	dir := filepath.Join(shared(t, "sigstore"), "real-bundles")
	n := counts{}
	defer n.print(t)
	for _, row := range table(t, filepath.Join(dir, "cases.tsv")) {
		if row["form"] != "bundle" {
			continue
		}
		file := filepath.Join(dir, filepath.FromSlash(strings.Replace(row["file"], "/", string(filepath.Separator), 1)))
		items, err := verify.ReadFile(read(t, file))
		if err != nil {
			t.Errorf("%s: %v", row["file"], err)
			continue
		}
		digests := row["subjects"]
		if digests == "" {
			digests = messageDigest(t, items[0])
		}
		if digests == "" {
			digests = "sha256:" + zeros
		}
		_, err = verify.Files(about(t, digests), items[:1], verify.Options{
			Instances: instances(t)[:1], Identities: anybody, At: time.Now(), WithoutSignature: true, WithoutProvenance: true,
		})
		got := "REJECT"
		if err == nil {
			got = "ACCEPT"
		}
		want := strings.Replace(row["baseline_verdict"], "BAD_BUNDLE", "REJECT", 1)
		n[want+" and we "+got]++
		if got != want {
			t.Errorf("%s: %s, the baseline says %s: %v", row["file"], got, row["baseline_verdict"], err)
		}
	}
}

// messageDigest is the digest that a message signature's bundle claims.
func messageDigest(t testing.TB, it store.Item) string {
	var b struct {
		MessageSignature struct {
			MessageDigest struct {
				Digest []byte `json:"digest"`
			} `json:"messageDigest"`
		} `json:"messageSignature"`
	}
	if json.Unmarshal(it.Content, &b) != nil || len(b.MessageSignature.MessageDigest.Digest) != 32 {
		return ""
	}
	return fmt.Sprintf("sha256:%x", b.MessageSignature.MessageDigest.Digest)
}

// TestGitHubInstance: the bundle of GitHub's own instance verifies with its root and
// a signed timestamp, and not with the public one.
func TestGitHubInstance(t *testing.T) {
	dir := filepath.Join(shared(t, "sigstore"), "real-bundles")
	var row map[string]string
	for _, r := range table(t, filepath.Join(dir, "cases.tsv")) {
		if strings.HasSuffix(r["file"], "github_provenance_demo-0.0.12-py3-none-any-bundle.jsonl") {
			row = r
		}
	}
	items, err := verify.ReadFile(read(t, filepath.Join(dir, row["file"])))
	if err != nil {
		t.Fatal(err)
	}
	opts := verify.Options{
		Instances: instances(t), At: time.Now(), WithoutSignature: true,
		Identities: []verify.CertificateIdentity{{SANRegexp: `https://github\.com/actions/.*`, Issuer: verify.GitHubIssuer, SourceOwner: "https://github.com/actions"}},
	}
	digest := row["subjects"]
	if digest == "" {
		digest = subjectOf(t, items[0])
	}
	e, err := verify.Files(about(t, digest), items, opts)
	if err != nil {
		t.Fatal(err)
	}
	s := e.Statements()[0]
	if s.Certificate == nil || s.Certificate.Instance != verify.InstanceGitHub || len(s.Times) != 1 || s.Times[0].Kind != verify.TimeAuthority || len(s.Log) != 0 {
		t.Errorf("signed by %+v at %+v, log %+v", s.Certificate, s.Times, s.Log)
	}
	opts.Instances = opts.Instances[:1]
	if _, err := verify.Files(about(t, digest), items, opts); err == nil || !strings.Contains(err.Error(), "authority of none of the trusted instances") {
		t.Errorf("with the public root: %v", err)
	}
	opts.Instances = instances(t)
	opts.At = s.Times[0].Time.Add(-time.Second)
	if _, err := verify.Files(about(t, digest), items, opts); err == nil || !strings.Contains(err.Error(), "after the instant of verification") {
		t.Errorf("an instant before it was signed: %v", err)
	}
}

func subjectOf(t testing.TB, it store.Item) string {
	t.Helper()
	var b struct {
		DSSE struct {
			Payload []byte `json:"payload"`
		} `json:"dsseEnvelope"`
	}
	var s struct {
		Subject []struct {
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
	}
	if json.Unmarshal(it.Content, &b) != nil || json.Unmarshal(b.DSSE.Payload, &s) != nil || len(s.Subject) == 0 {
		return "sha256:" + zeros
	}
	for _, a := range []string{"sha256", "sha512"} {
		if d := s.Subject[0].Digest[a]; d != "" {
			return a + ":" + d
		}
	}
	return "sha256:" + zeros
}

// TestSLSAVerifierBundles: every bundle and envelope of slsa-verifier's tests.
func TestSLSAVerifierBundles(t *testing.T) {
	dir := shared(t, "slsa-verifier")
	npm, err := verify.NPMKeys()
	if err != nil {
		t.Fatal(err)
	}
	n := counts{}
	defer n.print(t)
	for _, row := range table(t, filepath.Join(dir, "cases.tsv")) {
		if row["form"] != "bundle" && row["form"] != "dsse" {
			continue
		}
		items, err := verify.ReadFile(read(t, filepath.Join(dir, row["file"])))
		if err != nil {
			t.Errorf("%s: %v", row["file"], err)
			continue
		}
		var entry int
		fmt.Sscan(row["entry"], &entry)
		it := items[entry]
		digest := row["artifact_digest"]
		if digest == "" {
			digest = row["subjects"]
		}
		if digest == "" || !strings.HasPrefix(digest, "sha") {
			digest = subjectOf(t, it)
		}
		e, err := verify.Files(about(t, digest), []store.Item{it}, verify.Options{
			Keys: npm, KeysLogged: true, Instances: instances(t)[:1], Identities: anybody, At: time.Now(),
			WithoutSignature: true, WithoutProvenance: true,
		})
		name := fmt.Sprintf("%s %s", row["file"], row["entry"])
		want := row["baseline_verdict"]
		got := "REJECT"
		if err == nil {
			got = "ACCEPT"
		}
		n[fmt.Sprintf("%s: %s and we %s", row["form"], want, got)]++
		var none *verify.NoEvidenceError
		switch {
		case want == "ACCEPT" && err != nil, want == "REJECT" && err == nil:
			t.Errorf("%s: %s, the baseline says %s: %v", name, got, want, err)
		case want == "ACCEPT":
			s := e.Statements()[0]
			if row["predicate_type"] != "" && !strings.HasPrefix(row["predicate_type"], "(") && s.PredicateType != row["predicate_type"] {
				t.Errorf("%s: predicate %s; want %s", name, s.PredicateType, row["predicate_type"])
			}
			if row["signer_identity"] != "" && (s.Certificate == nil || s.Certificate.SAN != row["signer_identity"]) {
				t.Errorf("%s: signed by %+v; want %s", name, s.Certificate, row["signer_identity"])
			}
		case want == "DSSE_SIG_OK_NO_TLOG":
			if !errors.As(err, &none) || none.Rejected[0].Kind != verify.KindNotLogged ||
				!strings.Contains(err.Error(), "the signature verifies with the certificate of \""+row["signer_identity"]+"\"") {
				t.Errorf("%s: %v; want it refused for its missing log entry, and the signature's own result", name, err)
			}
		case want == "DSSE_NO_CERT":
			if !errors.As(err, &none) || none.Rejected[0].Kind != verify.KindInvalidSignature {
				t.Errorf("%s: %v; want its signature refused", name, err)
			}
		}
	}
}

// kinds maps upstream's names of errors to ours.
var kinds = map[string][]verify.Kind{
	"ErrorUntrustedReusableWorkflow": {verify.KindUntrustedIdentity},
	"ErrorMismatchSource":            {verify.KindMismatchSource},
	"ErrorMismatchBranch":            {verify.KindMismatchBranch},
	"ErrorMismatchTag":               {verify.KindMismatchTag},
	"ErrorMismatchVersionedTag":      {verify.KindMismatchVersionedTag},
	"ErrorInvalidRef":                {verify.KindInvalidRef},
	"ErrorMismatchHash":              {verify.KindOtherArtifact},
	"ErrorMismatchWorkflowInputs":    {verify.KindMismatchInputs},
	"ErrorMismatchBuilderID":         {verify.KindMismatchBuilder},
	"ErrorInvalidBuilderID":          {verify.KindInvalidBuilder},
	"ErrorNotSupported":              {verify.KindUnsupportedBuilder},
	"ErrorVerifierNotSupported":      {verify.KindUnsupportedBuilder},
	"ErrorMismatchPackageName":       {verify.KindMismatchPackageName},
	"ErrorMismatchPackageVersion":    {verify.KindMismatchPackageVersion},
	"ErrorInvalidSignature":          {verify.KindInvalidSignature, verify.KindNotLogged},
	"ErrorNoValidSignature":          {verify.KindInvalidSignature, verify.KindMalformed},
	"ErrorInvalidDssePayload":        {verify.KindMalformed},
	"ErrorInvalidFormat":             {verify.KindMalformed},
	"ErrorMismatchIntoto":            {verify.KindMismatchText},
}

// expectation is one row of upstream's tables.
type expectation struct {
	Table, Name, Artifact, Source, Provenance, Err string
	Artifacts                                      []string
	PBuilderID, BuilderID, PTag, PVersionTag       string
	PBranch, PkgName, PkgVersion, MinVersion       string
	NoVersion, Remote                              bool
	Inputs                                         map[string]string
	Builders                                       []string
}

var pointer = regexp.MustCompile(`^\?pointerTo\("(.*)"\)$`)

func plain(s string) string {
	if m := pointer.FindStringSubmatch(s); m != nil {
		return m[1]
	}
	return s
}

func expectations(t testing.TB, dir string) []expectation {
	t.Helper()
	var rows []map[string]any
	if err := json.Unmarshal(read(t, filepath.Join(dir, "expectations.json")), &rows); err != nil {
		t.Fatal(err)
	}
	var out []expectation
	for _, r := range rows {
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var e expectation
		if r["table"] == "VSA" {
			continue // by key and other flags
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatalf("%s: %v", raw, err)
		}
		out = append(out, e)
	}
	return out
}

// trwBuilder is what gha_delegator's provenance names: an example that nobody trusts
// without naming it.
const trwBuilder = "https://github.com/slsa-framework/example-trw/.github/workflows/builder_high-perms_slsa3.yml"

// TestSLSAVerifierExpectations: the rows of upstream's tables whose provenance is a
// bundle.
func TestSLSAVerifierExpectations(t *testing.T) {
	dir := shared(t, "slsa-verifier")
	npm, err := verify.NPMKeys()
	if err != nil {
		t.Fatal(err)
	}
	in := instances(t)[:1]
	digests := map[string]string{}
	for _, row := range table(t, filepath.Join(dir, "cases.tsv")) {
		if row["form"] == "bundle" {
			digests[row["file"]] = row["artifact_digest"]
		}
	}
	n := counts{}
	defer n.print(t)
	for _, x := range expectations(t, dir) {
		for file, digest := range digests {
			ok, class := x.runs(file)
			if !ok {
				continue
			}
			data := read(t, filepath.Join(dir, file))
			items, err := verify.ReadFile(data)
			if err != nil {
				t.Fatal(err)
			}
			if digest == "" {
				digest = subjectOf(t, items[len(items)-1])
			}
			builder := plain(x.PBuilderID + x.BuilderID)
			if class == "gha_delegator" && builder == "" {
				builder = trwBuilder
			}
			opts := verify.Options{
				Instances: in, Identities: []verify.CertificateIdentity{verify.GitHubWorkflows()}, At: time.Now(), WithoutSignature: true,
				Expect: &verify.Expectation{
					SourceURI: x.Source, SourceTag: x.PTag, SourceVersionedTag: x.PVersionTag, SourceBranch: x.PBranch,
					BuilderID: builder, Inputs: x.Inputs, PackageName: plain(x.PkgName), PackageVersion: plain(x.PkgVersion),
				},
			}
			if verify.IsNPM(data) {
				opts.Keys, opts.KeysLogged, opts.All = npm, true, true
			}
			_, err = verify.Files(about(t, digest), items, opts)
			name := fmt.Sprintf("%s %q %s", x.Table, x.Name, file)
			want := x.Err
			if want == "" {
				want = "pass"
			}
			n[class+": "+want]++
			if x.Err == "" {
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
				continue
			}
			var none *verify.NoEvidenceError
			if !errors.As(err, &none) || !slices.ContainsFunc(none.Kinds(), func(k verify.Kind) bool { return slices.Contains(kinds[x.Err], k) }) {
				t.Errorf("%s: %v; want %s", name, err, x.Err)
			}
		}
	}
}

// runs says whether a row is about a bundle, and of what class that is.
func (x expectation) runs(file string) (bool, string) {
	parts := strings.Split(file, "/")
	switch {
	case x.Table == "NpmPackage":
		return file == "npm/gha/"+x.Artifact+".json", "npm"
	case x.Table == "GithubAttestation":
		return file == "bcr/"+x.Artifact+".intoto.jsonl", "bcr"
	case len(parts) != 3 || x.NoVersion:
		return false, ""
	}
	class, version, base := parts[0], parts[1], parts[2]
	tables := map[string]string{"gha_container-based": "GHAContainerBased", "gha_delegator": "GHAArtifactPath", "gha_gradle": "GHAArtifactPath", "gha_maven": "GHAArtifactPath"}
	if tables[class] != x.Table || x.MinVersion != "" && semver.Compare(version, x.MinVersion) < 0 || len(x.Artifacts) != 1 {
		return false, ""
	}
	for _, suffix := range []string{".build.slsa", ".intoto.build.slsa", ".intoto.sigstore", ".intoto.jsonl"} {
		if base == x.Artifacts[0]+suffix {
			return true, class
		}
	}
	return false, ""
}
