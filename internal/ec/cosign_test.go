package ec_test

// cosign signs here, with a certificate of Fulcio and entries of Rekor: the real
// programs, built from their modules (tools/peers). The issuer of the identity token
// is the test's. The test runs with ASSAY_SLOW=1.

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"assay.dev/assay/internal/testrig/sigstore"
)

// TestCosign: what cosign signs and attests, with a key and without, with entries
// that come with the signatures and with ones that must be looked for.
func TestCosign(t *testing.T) {
	const email = "builder@factory.test"
	d := sigstore.Start(t, email)
	issuer, rekor := d.Issuer, d.Rekor
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	for _, v := range []string{"SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", "SIGSTORE_TSA_CERTIFICATE_FILE", "TUF_MIRROR", "TUF_ROOT_JSON", "TUF_ROOT", "SIGSTORE_ROOT_FILE", "SIGSTORE_REKOR_PUBLIC_KEY"} {
		t.Setenv(v, "")
	}
	// The deployment's trusted root, by TUF.
	mirror, first := tufRepository(t, d.TrustedRoot())
	if code, out, stderr := run(t, home, []string{"sigstore", "initialize", "--mirror", mirror, "--root", write(t, home, "root.json", string(first))}); code != 0 {
		t.Fatalf("exit %d: %s %s", code, out, stderr)
	}
	d.Cosign(t, home, "generate-key-pair")
	predicate := write(t, home, "predicate.json", `{"buildDefinition":{"buildType":"https://example.com/b","externalParameters":{}},"runDetails":{"builder":{"id":"https://example.com/builder"}}}`)
	common := []string{"--allow-insecure-registry=true", "--use-signing-config=false", "--rekor-url", rekor}
	keyed := func() []string { return []string{"--key", "cosign.key"} }
	keyless := func() []string { return d.Keyless(t, home) }
	pub := filepath.Join(home, "cosign.pub")
	byMail := []string{"--certificate-identity", email, "--certificate-oidc-issuer", issuer}
	for name, tt := range map[string]struct {
		with   func() []string
		args   []string
		ok     bool
		bundle string
	}{
		"key":                    {keyed, []string{"-k", pub}, true, "false"},
		"key, Rekor named":       {keyed, []string{"-k", pub, "-r", rekor}, true, "false"},
		"keyless":                {keyless, byMail, true, "false"},
		"keyless, by expression": {keyless, []string{"--certificate-identity-regexp", "@factory", "--certificate-oidc-issuer-regexp", "127.0.0.1"}, true, "false"},
		"keyless, somebody else": {keyless, []string{"--certificate-identity", "other@factory.test", "--certificate-oidc-issuer", issuer}, false, "false"},
		"keyless, wrong issuer":  {keyless, []string{"--certificate-identity", email, "--certificate-oidc-issuer", "https://accounts.example.com"}, false, "false"},
		"key, bundle":            {keyed, []string{"-k", pub}, true, "true"},
		"keyless, bundle":        {keyless, byMail, true, "true"},
		"keyless, bundle, else":  {keyless, []string{"--certificate-identity", "other@factory.test", "--certificate-oidc-issuer", issuer}, false, "true"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			ref := s.tag.Context().Name() + "@" + s.digest.String()
			d.Cosign(t, home, slices.Concat([]string{"sign", "--new-bundle-format=" + tt.bundle}, common, tt.with(), []string{ref})...)
			d.Cosign(t, home, slices.Concat([]string{"attest", "--new-bundle-format=" + tt.bundle, "--type", "slsaprovenance1", "--predicate", predicate}, common, tt.with(), []string{ref})...)
			code, report, stderr := s.validate(tt.args...)
			if (code == 0) != tt.ok {
				t.Errorf("exit %d: %s %v", code, stderr, report)
			}
			if tt.ok && !strings.Contains(fmt.Sprint(report), "kind:rekor") {
				t.Errorf("no log is named: %v", report)
			}
		})
	}
}
