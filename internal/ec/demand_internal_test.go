package ec

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"assay.dev/assay/attest/tlog"
	"assay.dev/assay/internal/testrig/sigstore"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/policy/conforma"
	"assay.dev/assay/store"
	"assay.dev/assay/verify"
)

// TestAnywhere: an expression made to match a whole text matches it where the given
// one matches a part, and nowhere else.
func TestAnywhere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		expression := rapid.SampledFrom([]string{
			`octo`, `^https`, `main$`, `^https://github\.com/octo/app$`, `a|b`, `^a|b$`, `(?i)OCTO`, `.`, `^$`, `x*`, `(?m)^b$`, `\Aa\z`, `[^/]+/app`,
		}).Draw(t, "expression")
		text := rapid.SampledFrom([]string{"", "a", "b", "a\nb", "octo", "https://github.com/octo/app", "xhttps", "main", "main\n", "\n", "ab", "ba"}).Draw(t, "text")
		got, err := anywhere(expression)
		if err != nil {
			t.Fatal(err)
		}
		whole := regexp.MustCompile(`\A(?:` + got + `)\z`) // as package verify does
		if want := regexp.MustCompile(expression).MatchString(text); whole.MatchString(text) != want {
			t.Errorf("%q in %q: %v", expression, text, !want)
		}
	})
	for _, bad := range []string{`a)|(b`, `(`, `[`, `a)(`} {
		if got, err := anywhere(bad); err == nil {
			t.Errorf("%q became %q", bad, got)
		}
	}
}

// TestPrecedence: whose word counts about who has to have signed.
func TestPrecedence(t *testing.T) {
	identity := &conforma.Identity{Subject: "s", IssuerRegExp: "i"}
	inPolicy := builtin.SigstoreOptions{CertificateIdentity: "s", CertificateOIDCIssuerRegexp: "i"}
	inFlags := builtin.SigstoreOptions{CertificateIdentityRegexp: "S", CertificateOIDCIssuer: "I"}
	flags := signingFlags{identityRegexp: "S", issuer: "I"}
	with := func(o builtin.SigstoreOptions, key, url string, ignore bool) builtin.SigstoreOptions {
		o.PublicKey, o.RekorURL, o.IgnoreRekor = key, url, ignore
		return o
	}
	for name, tt := range map[string]struct {
		flags signingFlags
		spec  conforma.Spec
		want  builtin.SigstoreOptions
		key   string // of the spec, afterwards
	}{
		"nothing":              {signingFlags{}, conforma.Spec{}, builtin.SigstoreOptions{}, ""},
		"policy's key":         {signingFlags{}, conforma.Spec{PublicKey: "k", RekorURL: "u"}, with(builtin.SigstoreOptions{}, "k", "u", false), "k"},
		"policy's identity":    {signingFlags{}, conforma.Spec{Identity: identity}, inPolicy, ""},
		"policy's both":        {signingFlags{}, conforma.Spec{PublicKey: "k", Identity: identity}, with(builtin.SigstoreOptions{}, "k", "", false), "k"},
		"flags' key":           {signingFlags{key: "K"}, conforma.Spec{PublicKey: "k", Identity: identity}, with(builtin.SigstoreOptions{}, "K", "", false), "K"},
		"flags' identity":      {flags, conforma.Spec{Identity: identity}, inFlags, ""},
		"flags before the key": {flags, conforma.Spec{PublicKey: "k"}, inFlags, ""},
		"half in flags":        {signingFlags{identity: "x"}, conforma.Spec{Identity: identity}, builtin.SigstoreOptions{CertificateIdentity: "x"}, ""},
		"key and identity":     {signingFlags{key: "K", identity: "x"}, conforma.Spec{}, with(builtin.SigstoreOptions{}, "K", "", false), "K"},
		"Rekor":                {signingFlags{rekor: "U", ignoreRekor: true}, conforma.Spec{PublicKey: "k", RekorURL: "u"}, with(builtin.SigstoreOptions{}, "k", "U", true), "k"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tt.flags.apply(&tt.spec); got != tt.want || tt.spec.PublicKey != tt.key {
				t.Errorf("%+v, key %q; want %+v, %q", got, tt.spec.PublicKey, tt.want, tt.key)
			}
		})
	}
}

// TestEnvironment: files that the environment names are used or refused by name.
func TestEnvironment(t *testing.T) {
	d := sigstore.New(t)
	dir := t.TempDir()
	file := func(name string, raw []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := map[string]string{envRoots: file("roots", d.RootsPEM()), envCTLog: file("ct", d.CTLogPEM()), envRekor: file("rekor", d.RekorPEM()), envTSA: file("tsa", d.TSAPEM())}
	made := func(env map[string]string, keyless, ignoreRekor bool) ([]*verify.Instance, error) {
		r := &roots{getenv: func(k string) string { return env[k] }, warn: t.Logf}
		return r.instances(t.Context(), keyless, ignoreRekor, "")
	}
	for _, tt := range []struct {
		keyless, ignore bool
		want            verify.Thresholds
	}{
		{true, false, verify.Thresholds{SCTs: 1, LogEntries: 1, Timestamps: 1}},
		{true, true, verify.Thresholds{SCTs: 1, Current: true}},
		{false, false, verify.Thresholds{SCTs: 1, LogEntries: 1, Timestamps: 1}},
	} {
		in, err := made(good, tt.keyless, tt.ignore)
		if err != nil || len(in) != 1 || in[0].Thresholds() != tt.want {
			t.Errorf("%+v: %v, %v", tt, in, err)
		}
	}
	// A key's signatures need no authority, so nobody is asked for one.
	if in, err := made(map[string]string{envRekor: good[envRekor]}, false, false); err != nil || len(in) != 1 {
		t.Errorf("%v, %v", in, err)
	}
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")})
	for name, raw := range map[string][]byte{"empty": {}, "no PEM": []byte("x"), "a private key": private, "broken": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})} {
		for variable := range good {
			env := map[string]string{}
			for k, v := range good {
				env[k] = v
			}
			env[variable] = file("bad", raw)
			if _, err := made(env, true, false); err == nil || !strings.Contains(err.Error(), "reading "+variable) {
				t.Errorf("%s in %s: %v", name, variable, err)
			}
		}
	}
	env := map[string]string{envRoots: "/none", envCTLog: good[envCTLog], envRekor: good[envRekor]}
	if _, err := made(env, true, false); err == nil || !strings.Contains(err.Error(), "reading "+envRoots) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// FuzzChain: whatever comes with a signature is a chain that holds together, or an
// error.
func FuzzChain(f *testing.F) {
	d := sigstore.New(f)
	by := d.Issue(sigstore.Identity{SAN: "a@example.com", Issuer: "https://example.com"})
	f.Add(by.PEM(), d.RootsPEM(), false)
	f.Add(d.RootsPEM(), by.PEM(), false)
	f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"certificate":{"rawBytes":"AA=="}},"messageSignature":{}}`), []byte{}, true)
	f.Fuzz(func(t *testing.T, a, b []byte, bundled bool) {
		it := store.Item{Annotations: map[string]string{annotationCertificate: string(a), annotationChain: string(b)}}
		if bundled {
			it = store.Item{Format: store.FormatBundle, Content: a}
		}
		chain, err := chainOf(it)
		if err != nil && chain != nil || len(chain) > maxChain {
			t.Errorf("%d certificates, %v", len(chain), err)
		}
		for i := 1; i < len(chain); i++ {
			if chain[i-1].CheckSignatureFrom(chain[i]) != nil {
				t.Errorf("certificate %d did not sign the one before", i)
			}
		}
		if len(chain) > 0 {
			var s signature
			s.certify(chain)
			if s.Certificate == "" || len(s.Metadata) == 0 {
				t.Errorf("%+v", s)
			}
		}
	})
}

// TestAnnotation: an entry that was searched for reads back as the same.
func TestAnnotation(t *testing.T) {
	d := sigstore.New(t)
	by := d.Issue(sigstore.Identity{SAN: "a@example.com", Issuer: "https://example.com"})
	text := d.LogMessage([]byte("x"), by.Sign(t, []byte("x")), by.PEM(), d.Began).Annotation()
	e, err := tlog.ParseCosignBundle(text)
	if err != nil {
		t.Fatal(err)
	}
	back, err := tlog.ParseCosignBundle(annotation(e))
	if err != nil || back.String() != e.String() {
		t.Errorf("%v\n%v, %v", e, back, err)
	}
}
