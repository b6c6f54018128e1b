package cli_test

// The evidence in these tests is real, from shared/conformance beside the repository;
// they are skipped where it is not there.

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"assay.dev/assay/internal/testrig/conformance"
)

func TestVerifyFiles(t *testing.T) {
	slsa, sig := conformance.Dir(t, "slsa-verifier"), conformance.Dir(t, "sigstore")
	digests := map[string]string{}
	for _, row := range rows(t, filepath.Join(slsa, "cases.tsv")) {
		if row["artifact_digest"] != "" {
			digests[row["file"]] = row["artifact_digest"]
		}
	}
	in := func(file string) []string {
		return []string{"verify", "--offline", "--bundle", filepath.Join(slsa, file), "--artifact-digest", digests[file]}
	}
	const (
		container = "gha_container-based/v1.8.0/binary-linux-amd64-push-v14.2.intoto.jsonl"
		bcr       = "bcr/rules_lint-v1.3.1.tar.gz.intoto.jsonl"
		npm       = "npm/gha/gundam-visor-cli-v1-tag.tgz.json"
		npmBad    = "npm/gha/gundam-visor-cli-v1-tag-invalidsigpub.tgz.json"
		bare      = "annotated-tag.intoto.jsonl"
		gcb       = "gcb_container/v0.3/gcloud-container-github.json"
		source    = "github.com/slsa-framework/example-package"
	)
	builder := "https://github.com/bazel-contrib/.github/.github/workflows/release_ruleset.yaml"
	runner := "https://github.com/actions/runner/github-hosted"
	digests[gcb] = "sha256:f472ca4b68898c951ac3b476cba919d0d56fca4ced631fabcead51e4b2b690e7"
	var reusable map[string]string
	for _, row := range rows(t, filepath.Join(sig, "real-bundles", "cases.tsv")) {
		if strings.HasSuffix(row["file"], "reusable-workflow-attestation.sigstore.json") {
			reusable = row
		}
	}
	gh := []string{"verify", "--offline", "--bundle", filepath.Join(sig, "real-bundles", reusable["file"]), "--artifact-digest", strings.SplitN(reusable["subjects"], ",", 2)[0]}
	san := reusable["signer_identity"]
	workflow, _, _ := strings.Cut(strings.TrimPrefix(san, "https://github.com/"), "@")
	for _, tc := range []struct {
		name string
		args []string
		code int
		kind string // of the refusal
		says string // in either output
	}{
		{"a trusted builder", append(in(container), "--source-uri", source), 0, "", "verified"},
		{"its tag", append(in(container), "--source-uri", source, "--source-tag", "v14.2"), 0, "", "verified"},
		{"another tag", append(in(container), "--source-uri", source, "--source-tag", "v14.1"), 3, "mismatch-tag", "v14.2"},
		{"a version", append(in(container), "--source-uri", source, "--source-versioned-tag", "v14"), 0, "", "verified"},
		{"a branch", append(in(container), "--source-uri", source, "--source-branch", "main"), 3, "invalid-ref", "no branch"},
		{"another source", append(in(container), "--source-uri", source+"A"), 3, "mismatch-source", ""},
		{"another artifact", append(in(container)[:4], "--artifact-digest", "sha256:"+strings.Repeat("0", 64), "--source-uri", source), 3, "other-artifact", ""},
		{"a builder that is named", append(in(bcr), "--source-uri", "github.com/aspect-build/rules_lint", "--builder-id", builder), 0, "", builder},
		{"a builder that is not", append(in(bcr), "--source-uri", "github.com/aspect-build/rules_lint"), 3, "untrusted-identity", "--builder-id"},
		{"npm", append(in(npm), "--source-uri", "github.com/ramonpetgrave64/gundam-visor", "--builder-id", runner, "--package-name", "gundam-visor", "--package-version", "1.0.1"), 0, "", "npm registry"},
		{"npm, another version", append(in(npm), "--source-uri", "github.com/ramonpetgrave64/gundam-visor", "--builder-id", runner, "--package-version", "1.0.2"), 3, "mismatch-package-version", ""},
		{"npm, the registry's word altered", append(in(npmBad), "--source-uri", "github.com/ramonpetgrave64/gundam-visor", "--builder-id", runner), 3, "invalid-signature", ""},
		{"a certificate and no log", append(in(bare), "--source-uri", "github.com/asraa/slsa-on-github-test"), 3, "not-logged", "the signature verifies with the certificate"},
		{"Google Cloud Build", append(in(gcb), "--format", "gcb", "--key", filepath.Join(slsa, "gcb-keys"), "--source-uri", "github.com/laurentsimon/gcb-tests"), 0, "", "GoogleHostedWorker"},
		{"Google Cloud Build by another key", append(in(gcb), "--format", "gcb", "--key", filepath.Join(slsa, "gcb-keys", "us-east1.key"), "--source-uri", "github.com/laurentsimon/gcb-tests"), 3, "invalid-signature", ""},
		{"exact identity", append(slices.Clone(gh), "--certificate-identity", san, "--certificate-oidc-issuer", "https://token.actions.githubusercontent.com"), 0, "", san},
		{"expression", append(slices.Clone(gh), "--certificate-identity-regexp", `https://github\.com/.*`, "--certificate-oidc-issuer-regexp", `https://token\..*`), 0, "", san},
		{"expression that matches a part", append(slices.Clone(gh), "--certificate-identity-regexp", `github\.com`, "--certificate-oidc-issuer-regexp", `.*`), 3, "untrusted-identity", ""},
		{"signer's workflow", append(slices.Clone(gh), "--repo", "malancas/attest-demo", "--signer-workflow", workflow), 0, "", san},
		{"type", append(slices.Clone(gh), "--repo", "malancas/attest-demo", "--signer-workflow", workflow, "--type", "slsaprovenance1"), 0, "", san},
		{"another type", append(slices.Clone(gh), "--repo", "malancas/attest-demo", "--signer-workflow", workflow, "--predicate-type", "https://spdx.dev/Document"), 3, "", "no statement of type"},
		{"a workflow alone", append(slices.Clone(gh), "--signer-workflow", workflow), 2, "", "signs for everybody"},
		{"source ref and nobody", append(slices.Clone(gh), "--source-ref", "refs/heads/main", "--key", "x"), 2, "", "name one with"},
		{"source commit", append(slices.Clone(gh), "--owner", "malancas", "--signer-repo", "github/artifact-attestations-workflows", "--source-digest", "95baf27389e83e6a5c48f42e190d48d7abcea19e"), 0, "", san},
		{"another source commit", append(slices.Clone(gh), "--owner", "malancas", "--signer-repo", "github/artifact-attestations-workflows", "--source-digest", "0"), 3, "untrusted-identity", ""},
		{"no such owner", append(slices.Clone(gh), "--owner", "nobody"), 3, "untrusted-identity", ""},
		{"before it was signed", append(slices.Clone(gh), "--repo", "malancas/attest-demo", "--signer-workflow", workflow, "--at", "2020-01-01T00:00:00Z"), 3, "", "after the instant of verification"},
		{"thresholds", append(slices.Clone(gh), "--repo", "malancas/attest-demo", "--signer-workflow", workflow, "--min-log-entries", "2"), 3, "", "not enough verified log entries"},
		{"thresholds out of reach", append(slices.Clone(gh), "--repo", "malancas/attest-demo", "--signer-workflow", workflow, "--min-log-entries", "9"), 2, "", "the root names"},
		{"only an issuer", append(slices.Clone(gh), "--certificate-oidc-issuer", "https://x"), 2, "", "an issuer alone is everybody"},
		{"only a name", append(slices.Clone(gh), "--certificate-identity", "me"), 2, "", "whoever any issuer gives that name to"},
		{"nobody", gh, 2, "", "no key given"},
		{"tag without source", append(slices.Clone(gh), "--source-tag", "v1"), 2, "", "--source-uri is missing"},
		{"no evidence", []string{"verify", "--offline", "--artifact-digest", "sha256:" + strings.Repeat("0", 64), "--owner", "x"}, 2, "", "--bundle"},
		{"no digest", []string{"verify", "--offline", "--artifact-digest", "sha256:x", "--bundle", "x"}, 2, "", "64 lower-case hex digits"},
		{"inspect", []string{"inspect", "--offline", filepath.Join(slsa, npm)}, 0, "", "NOT VERIFIED"},
		{"inspect what is signed", []string{"inspect", "--offline", filepath.Join(slsa, bcr)}, 0, "", "verified      Sigstore bundle"},
		{"inspect with an identity", []string{"inspect", "--offline", filepath.Join(slsa, bcr), "--owner", "nobody"}, 3, "", "NOT VERIFIED"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, out, errout := assay(t, tc.args...)
			if code != tc.code || !strings.Contains(out+errout, tc.says) {
				t.Fatalf("exit %d, want %d and %q\n%s%s", code, tc.code, tc.says, out, errout)
			}
			if code != 0 && tc.args[0] == "verify" && strings.Contains(out, "verified") {
				t.Errorf("it says verified: %s", out)
			}
			if tc.kind == "" {
				return
			}
			_, out, _ = assay(t, append(slices.Clone(tc.args), "--output", "json")...)
			var refusal struct{ Kinds []string }
			if err := json.Unmarshal([]byte(out), &refusal); err != nil || !slices.Contains(refusal.Kinds, tc.kind) {
				t.Errorf("kinds %v (%v); want %q", refusal.Kinds, err, tc.kind)
			}
		})
	}
}

// TestVerifyFile: an artifact with its evidence beside it.
func TestVerifyFile(t *testing.T) {
	suite := filepath.Join(conformance.Dir(t, "sigstore"), "bundle-verify")
	dir := t.TempDir()
	for from, to := range map[string]string{"a.txt": "a.txt", "happy-path-v0.2/bundle.sigstore.json": "a.txt.sigstore.json"} {
		data, err := os.ReadFile(filepath.Join(suite, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	artifact := filepath.Join(dir, "a.txt")
	args := []string{"verify", "--offline", artifact, "--certificate-oidc-issuer", "https://token.actions.githubusercontent.com",
		"--certificate-identity", "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main"}
	if code, out, errout := assay(t, args...); code != 0 || !strings.Contains(out, "verified  "+artifact) {
		t.Errorf("exit %d\n%s%s", code, out, errout)
	}
	if err := os.WriteFile(artifact, []byte("another"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, out, errout := assay(t, args...); code != 3 || strings.Contains(out, "verified") {
		t.Errorf("altered: exit %d\n%s%s", code, out, errout)
	}
}

// TestOffline verifies where there is no network at all: an empty network namespace.
func TestOffline(t *testing.T) {
	slsa := conformance.Dir(t, "slsa-verifier")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const file = "bcr/rules_lint-v1.3.1.tar.gz.intoto.jsonl"
	cmd := exec.CommandContext(t.Context(), exe, "verify", "--offline", "--bundle", filepath.Join(slsa, file),
		"--artifact-digest", "sha256:1636f443b01c9ee310ee5834956d0dce374c3d3bf8d4cebc9f6b86f8304b4982",
		"--source-uri", "github.com/aspect-build/rules_lint", "--builder-id", "https://github.com/bazel-contrib/.github/.github/workflows/release_ruleset.yaml")
	cmd.Args[0] = "assay" // which TestMain makes this program be
	cmd.Env = append(os.Environ(), "ASSAY_HOME="+t.TempDir(), "HOME="+t.TempDir())
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
	}
	cmd.SysProcAttr = attr
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Skipf("no network namespace can be made here: %v", err)
	}
	if err := cmd.Wait(); err != nil || strings.Contains(out.String(), "TUF") {
		t.Errorf("%v\n%s", err, out.String())
	}
}
