package cli_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/testrig/conformance"
)

// TestObserverIdentity: an identity of a certificate is an observer where the command
// line or the trust file says so, for the builders that they name.
func TestObserverIdentity(t *testing.T) {
	const (
		san     = "https://github.com/github/artifact-attestations-workflows/.github/workflows/attest.yml@09b495c3f12c7881b3cc17209a327792065c1a1d"
		issuer  = "https://token.actions.githubusercontent.com"
		builder = "https://github.com/actions/runner/github-hosted"
		digest  = "sha256:49a3aa6075e0f49f82843e74b5baa614ad2a588e6675612bf108a0a008c5ac25"
	)
	file := conformance.Dir(t, "sigstore", "real-bundles", "cli__cli", "pkg", "cmd", "attestation", "test", "data", "reusable-workflow-attestation.sigstore.json")
	write := func(doc string) string {
		p := filepath.Join(t.TempDir(), "trust.json")
		if err := os.WriteFile(p, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	identity := `"name":"witness","san":"` + san + `","issuer":"` + issuer + `"`
	bound := write(`{"identities":[{` + identity + `,"role":"observer","builders":["` + builder + `"]}]}`)
	for _, tc := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"by a flag", []string{"--observer-identity", san, "--certificate-oidc-issuer", issuer, "--builder", builder}, 0, "(observer)"},
		{"by an expression", []string{"--observer-identity", "/https://github.com/github/.+/", "--certificate-oidc-issuer-regexp", "https://token.+", "--builder", builder}, 0, "(observer)"},
		{"another builder", []string{"--observer-identity", san, "--certificate-oidc-issuer", issuer, "--builder", "https://example.com/"}, 0, "is none of those for which the trust binds it"},
		{"another identity", []string{"--observer-identity", san + "0", "--certificate-oidc-issuer", issuer, "--builder", builder}, 3, "none of those that are trusted"},
		{"no issuer", []string{"--observer-identity", san, "--builder", builder}, 2, "needs --certificate-oidc-issuer"},
		{"no builder", []string{"--observer-identity", san, "--certificate-oidc-issuer", issuer}, 2, "needs --builder"},
		{"an empty expression", []string{"--observer-identity", "", "--certificate-oidc-issuer", issuer, "--builder", builder}, 2, "is empty"},
		{"a builder of nobody", []string{"--certificate-identity", san, "--certificate-oidc-issuer", issuer, "--builder", builder}, 2, "name one with --observer-key"},
		{"by the trust file", []string{"--trust", bound}, 0, "(observer)"},
		{"by the trust file, named on the command line", []string{"--trust", bound, "--certificate-identity", san, "--certificate-oidc-issuer", issuer}, 0, "(observer)"},
		{"another one named on the command line", []string{"--trust", bound, "--certificate-identity-regexp", ".*", "--certificate-oidc-issuer", issuer}, 0, "(isolated workflow)"},
		{"no role in the trust file", []string{"--trust", write(`{"identities":[{` + identity + `}]}`)}, 0, "(isolated workflow)"},
		{"an instance that did not vouch", []string{"--trust", write(`{"identities":[{` + identity + `}],"instances":[{"name":"github"}]}`)}, 3, "none of the trusted instances"},
		{"the instance that did", []string{"--trust", write(`{"identities":[{` + identity + `}],"instances":[{"name":"public-good"}]}`)}, 0, "(isolated workflow)"},
		{"more than the instance has seen", []string{"--trust", write(`{"identities":[{` + identity + `}],"instances":[{"name":"public-good","thresholds":{"logEntries":2}}]}`)}, 3, "not enough"},
		{"a trusted root is believed alone", []string{"--trust", bound, "--trusted-root", filepath.Join("..", "..", "verify", "roots", "github.json")}, 3, "none of the trusted instances"},
		{"no trust file", []string{"--trust", "/none.json"}, 1, "docs/verify.md"},
		{"a key that is not there", []string{"--key", "/none.pub"}, 1, "want a PEM file, or one of k8s://"},
		{"a key of an unknown place", []string{"--key", "gitlab://p"}, 1, "scheme gitlab:// is not known"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			code, out, errout := assay(t, append([]string{"verify", "--offline", "--bundle", file, "--artifact-digest", digest}, tc.args...)...)
			if code != tc.code || !strings.Contains(out+errout, tc.says) {
				t.Errorf("exit %d, want %d and %q\n%s%s", code, tc.code, tc.says, out, errout)
			}
		})
	}
}
