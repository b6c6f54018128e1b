package cli_test

// cosign signs here with certificates of Fulcio, whose certificate log is the test's,
// and entries of Rekor: the real programs, built from their modules (tools/peers). The
// registry is a real one on loopback. These tests run with ASSAY_SLOW=1.

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"assay.dev/assay/internal/testrig/sigstore"
)

// TestKeyless: what cosign signs and attests without a key, as tags, as bundles that
// refer to the image, and over a file, verifies by the name that signed, its issuer
// and the deployment's root, and by no other.
func TestKeyless(t *testing.T) {
	const email = "builder@factory.test"
	s := sigstore.Start(t, email)
	home := t.TempDir()
	for _, v := range []string{"SIGSTORE_CT_LOG_PUBLIC_KEY_FILE", "SIGSTORE_TSA_CERTIFICATE_FILE", "TUF_MIRROR", "TUF_ROOT_JSON", "TUF_ROOT", "SIGSTORE_ROOT_FILE", "SIGSTORE_REKOR_PUBLIC_KEY"} {
		t.Setenv(v, "")
	}
	r := newGateRig(t)
	root := r.write("root.json", string(s.TrustedRoot()))
	stranger := r.write("other.json", string(sigstore.New(t).Root()))
	predicate := r.write("predicate.json", `{"buildDefinition":{"buildType":"https://example.com/b","externalParameters":{}},"runDetails":{"builder":{"id":"https://example.com/builder"}}}`)
	byMail := []string{"--certificate-identity", email, "--certificate-oidc-issuer", s.Issuer}
	cases := []struct {
		name, root string
		flags      []string
		code       int
		says       string
	}{
		{"its name", root, byMail, 0, email},
		{"expressions", root, []string{"--certificate-identity-regexp", `.*@factory\.test`, "--certificate-oidc-issuer-regexp", `http://127\.0\.0\.1:\d+`}, 0, email},
		{"an expression that matches a part", root, []string{"--certificate-identity-regexp", `@factory\.test`, "--certificate-oidc-issuer", s.Issuer}, 3, email},
		{"another name", root, []string{"--certificate-identity", "other@factory.test", "--certificate-oidc-issuer", s.Issuer}, 3, `"other@factory.test"`},
		{"another issuer", root, []string{"--certificate-identity", email, "--certificate-oidc-issuer", "https://accounts.example.com"}, 3, s.Issuer},
		{"another root", stranger, byMail, 3, "an authority of none of the trusted instances"},
		{"the public root", "", append([]string{"--offline"}, byMail...), 3, "an authority of none of the trusted instances"},
		{"before it was signed", root, append([]string{"--at", "2020-01-01T00:00:00Z"}, byMail...), 3, "after the instant of verification"},
		{"two logs", root, append([]string{"--min-log-entries", "2"}, byMail...), 2, "the root names 1"},
	}
	common := []string{"--use-signing-config=false", "--rekor-url", s.Rekor}
	sign := func(t *testing.T, args ...string) {
		t.Helper()
		s.Cosign(t, home, slices.Concat(args[:1], common, s.Keyless(t, home), args[1:])...)
	}
	for form, bundle := range map[string]string{"tags": "false", "bundles": "true"} {
		image := r.image("keyless/"+form, false)
		sign(t, "sign", "--allow-insecure-registry=true", "--new-bundle-format="+bundle, image.Ref())
		sign(t, "attest", "--allow-insecure-registry=true", "--new-bundle-format="+bundle, "--type", "slsaprovenance1", "--predicate", predicate, image.Ref())
		for _, tc := range cases {
			t.Run(form+"/"+tc.name, func(t *testing.T) {
				flags := slices.Clone(tc.flags)
				if tc.root != "" {
					flags = append(flags, "--trusted-root", tc.root)
				}
				code, out, errout := r.bare(append([]string{"verify", image.Ref()}, flags...)...)
				if code != tc.code || !strings.Contains(out+errout, tc.says) {
					t.Errorf("verify: exit %d, want %d and %q\n%s%s", code, tc.code, tc.says, out, errout)
				}
				if both := strings.Contains(out, "signature    by "+email) && strings.Contains(out, "attestation  https://slsa.dev/provenance/v1 by "+email); both != (tc.code == 0) {
					t.Errorf("verify: what is said to be by %s is not what is true\n%s", email, out)
				}
				code, out, errout = r.bare(append([]string{"gate", image.Ref(), "--policy", r.policy, "--retries", "0"}, flags...)...)
				if code != tc.code || tc.code == 0 && !strings.Contains(out, email) {
					t.Errorf("gate: exit %d, want %d\n%s%s", code, tc.code, out, errout)
				}
			})
		}
	}
	t.Run("file", func(t *testing.T) {
		blob := r.write("blob", "some bytes")
		bundle := blob + ".sigstore.json"
		sign(t, "sign-blob", "--new-bundle-format=true", "--bundle", bundle, blob)
		for _, tc := range cases {
			flags := slices.Clone(tc.flags)
			if tc.root != "" {
				flags = append(flags, "--trusted-root", tc.root)
			}
			if code, out, errout := r.bare(append([]string{"verify", blob}, flags...)...); code != tc.code || !strings.Contains(out+errout, tc.says) {
				t.Errorf("%s: exit %d, want %d and %q\n%s%s", tc.name, code, tc.code, tc.says, out, errout)
			}
		}
		if err := os.WriteFile(filepath.Clean(blob), []byte("other bytes"), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, out, errout := r.bare(append([]string{"verify", blob, "--trusted-root", root}, byMail...)...); code != 3 {
			t.Errorf("other bytes: exit %d\n%s%s", code, out, errout)
		}
	})
}
