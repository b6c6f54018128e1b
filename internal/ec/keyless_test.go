package ec_test

// The deployment in these tests is internal/testrig/sigstore: an authority, logs and a
// timestamp authority on this machine.

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/internal/testrig/sigstore"
	"assay.dev/assay/store/storetest"
)

const (
	workflow = "https://github.com/octo/app/.github/workflows/build.yml@refs/heads/main"
	github   = "https://token.actions.githubusercontent.com"
	sha      = "0123456789012345678901234567890123456789"
)

const onePolicy = `{"sources":[{"policy":["rules"]}]}`

// validate runs `ec validate image` of a shelf with a rule that all pass.
func (s *shelf) validate(args ...string) (code int, report map[string]any, stderr string) {
	s.t.Helper()
	dir := s.t.TempDir()
	write(s.t, dir, "rules/main.rego", oneRule)
	all := append([]string{"validate", "image", "-i", s.tag.Name(), "--output", "json", "--retry-max-retry", "0", "--show-successes"}, args...)
	if !slices.Contains(args, "-p") {
		all = append(all, "-p", onePolicy)
	}
	code, stdout, stderr := run(s.t, dir, all)
	report, _ = parseReport(s.t, stdout).(map[string]any)
	return code, report, stderr
}

func (s *shelf) issued(d *sigstore.Deployment) *sigstore.Signer {
	return d.Issue(sigstore.Identity{SAN: workflow, Issuer: github, Extensions: map[int]string{
		9: workflow, 10: sha, 11: "github-hosted", 12: "https://github.com/octo/app", 13: sha, 14: "refs/heads/main",
		16: "https://github.com/octo", 18: workflow, 19: sha, 20: "push", 21: "https://github.com/octo/app/actions/runs/1/attempts/1",
	}})
}

var byIdentity = []string{"--certificate-identity", workflow, "--certificate-oidc-issuer", github}

// TestKeyless: who has to have signed, said in flags and in the policy, and what
// comes of images that he, somebody else or nobody signed.
func TestKeyless(t *testing.T) {
	const sig, att = "builtin.image.signature_check", "builtin.attestation.signature_check"
	d, stranger := sigstore.New(t), sigstore.New(t)
	environment(t, d)
	tags := func(by *sigstore.Signer, h how) func(*shelf) {
		return func(s *shelf) {
			h.by = by
			s.signTag(d, h)
			s.attestTag(d, h)
		}
	}
	bundle := func(by *sigstore.Signer, h how) func(*shelf) {
		return func(s *shelf) { h.by = by; s.attestBundle(d, h) }
	}
	good := (*shelf)(nil).issued(d)
	fresh := func(id sigstore.Identity) *sigstore.Signer { return d.Issue(id) }
	inPolicy := func(identity string) []string {
		return []string{"-p", `{"sources":[{"policy":["rules"]}],"identity":` + identity + `}`}
	}
	key := storetest.NewKey(t)
	keyPolicy := `{"sources":[{"policy":["rules"]}],"publicKey":` + quote(string(key.PublicPEM())) + `}`
	for name, tt := range map[string]struct {
		put        func(*shelf)
		args       []string
		violations []string // nil: it passes
		says       string
	}{
		"tags":                              {tags(good, how{}), byIdentity, nil, ""},
		"bundle":                            {bundle(good, how{}), byIdentity, nil, ""},
		"bundle, stamped":                   {bundle(good, how{stamped: true}), byIdentity, nil, ""},
		"expressions":                       {tags(good, how{}), []string{"--certificate-identity-regexp", `octo/app`, "--certificate-oidc-issuer-regexp", "githubusercontent"}, nil, ""},
		"anchored":                          {tags(good, how{}), []string{"--certificate-identity-regexp", `^https://github\.com/octo/.*main$`, "--certificate-oidc-issuer-regexp", "^https"}, nil, ""},
		"expression first":                  {tags(good, how{}), []string{"--certificate-identity", "x", "--certificate-identity-regexp", `octo`, "--certificate-oidc-issuer", github}, nil, ""},
		"policy":                            {tags(good, how{}), inPolicy(`{"subject":"` + workflow + `","issuer":"` + github + `"}`), nil, ""},
		"policy, expressions":               {bundle(good, how{}), inPolicy(`{"subjectRegExp":"octo","issuerRegExp":"github"}`), nil, ""},
		"flags before the policy's":         {tags(good, how{}), append(inPolicy(`{"subject":"x","issuer":"y"}`), byIdentity...), nil, ""},
		"flags before the policy's key":     {tags(good, how{}), append([]string{"-p", keyPolicy}, byIdentity...), nil, ""},
		"another name":                      {tags(good, how{}), []string{"--certificate-identity", "https://github.com/evil/app", "--certificate-oidc-issuer", github}, []string{att, sig}, "is none of those that are trusted"},
		"a part of the name":                {tags(good, how{}), []string{"--certificate-identity", "https://github.com/octo/app", "--certificate-oidc-issuer", github}, []string{att, sig}, ""},
		"another issuer":                    {bundle(good, how{}), []string{"--certificate-identity", workflow, "--certificate-oidc-issuer", "https://accounts.example.com"}, []string{att, sig}, "issuer"},
		"expression of others":              {tags(good, how{}), []string{"--certificate-identity-regexp", `^octo`, "--certificate-oidc-issuer", github}, []string{att, sig}, ""},
		"policy of others":                  {tags(good, how{}), inPolicy(`{"subject":"x","issuer":"y"}`), []string{att, sig}, ""},
		"another authority":                 {tags(stranger.Issue(sigstore.Identity{SAN: workflow, Issuer: github}), how{}), byIdentity, []string{att, sig}, "authority"},
		"expired when signed":               {tags(good, how{at: d.Began.Add(time.Hour)}), byIdentity, []string{att, sig}, ""},
		"no promise of the certificate log": {tags(fresh(sigstore.Identity{SAN: workflow, Issuer: github, NoSCT: true}), how{}), byIdentity, []string{att, sig}, ""},
		"no log entry":                      {bundle(good, how{unlogged: true, stamped: true}), byIdentity, []string{att, sig}, "log entries"},
		"unsigned":                          {func(*shelf) {}, byIdentity, []string{att, sig}, "no signatures found"},
		"by a key":                          {func(s *shelf) { s.signTag(d, how{key: key}); s.attestTag(d, how{key: key}) }, byIdentity, []string{att, sig}, ""},
		"a key in flags counts before an identity": {tags(good, how{}), append([]string{"-k", string(key.PublicPEM())}, byIdentity...), []string{att, sig}, ""},
		"ignoring Rekor, expired":                  {tags(good, how{}), append([]string{"--ignore-rekor"}, byIdentity...), []string{att, sig}, "not valid at the instant"},
		"ignoring Rekor, valid":                    {tags(fresh(sigstore.Identity{SAN: workflow, Issuer: github, At: time.Now().Add(-time.Minute), Lives: time.Hour}), how{unlogged: true, hidden: true}), append([]string{"--ignore-rekor"}, byIdentity...), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			tt.put(s)
			code, report, stderr := s.validate(tt.args...)
			got := codes(report, "violations")
			if !slices.Equal(got, tt.violations) || (code == 0) != (tt.violations == nil) {
				t.Fatalf("exit %d, violations %q, want %q\n%s\n%v", code, got, tt.violations, stderr, report)
			}
			text := fmt.Sprint(report)
			if !strings.Contains(text, tt.says) {
				t.Errorf("the report does not say %q: %s", tt.says, text)
			}
			if strings.Contains(text, "public key. Verify") && !slices.Contains(tt.args, "-k") {
				t.Errorf("the report speaks of a key: %s", text)
			}
		})
	}
}

func quote(s string) string { b, _ := json.Marshal(s); return string(b) }

// TestIdentityMissing: without a key an identity has to be said, both halves.
func TestIdentityMissing(t *testing.T) {
	s := newShelf(t)
	for name, tt := range map[string]struct {
		args []string
		want []string
	}{
		"nothing":     {nil, []string{"certificate OIDC issuer must be provided for keyless workflow", "certificate identity must be provided for keyless workflow"}},
		"no issuer":   {[]string{"--certificate-identity", "x"}, []string{"certificate OIDC issuer must be provided"}},
		"no name":     {[]string{"--certificate-oidc-issuer-regexp", "x"}, []string{"certificate identity must be provided"}},
		"halves":      {[]string{"--certificate-identity", "x", "-p", `{"sources":[{"policy":["rules"]}],"identity":{"subject":"a","issuer":"b"}}`}, []string{"certificate OIDC issuer must be provided"}},
		"parenthesis": {[]string{"--certificate-identity-regexp", "a)|(b", "--certificate-oidc-issuer", "x", "--ignore-rekor"}, []string{"malformed subject in identity"}},
	} {
		t.Run(name, func(t *testing.T) {
			environment(t, sigstore.New(t))
			code, report, stderr := s.validate(tt.args...)
			for _, want := range tt.want {
				if code != 1 || report != nil || !strings.Contains(stderr, want) {
					t.Errorf("exit %d, %v, %q; want %q", code, report, stderr, want)
				}
			}
		})
	}
}

// TestKeylessInput: what rules and reports see of certificates, in Conforma's words.
func TestKeylessInput(t *testing.T) {
	d := sigstore.New(t)
	environment(t, d)
	s := newShelf(t)
	by := s.issued(d)
	s.signTag(d, how{by: by})
	s.attestTag(d, how{by: by})
	code, report, stderr := s.validate(byIdentity...)
	if code != 0 {
		t.Fatalf("exit %d: %s %v", code, stderr, report)
	}
	c := by.Certificate
	want := map[string]any{
		"Subject Alternative Name": "URIs:" + workflow, "Issuer": "CN=test authority", "Serial Number": c.SerialNumber.Text(16),
		"Not Before": c.NotBefore.Format(time.RFC3339), "Not After": c.NotAfter.Format(time.RFC3339),
		"Fulcio Issuer": github, "Fulcio Issuer (V2)": github, "Fulcio Build Signer URI": workflow, "Fulcio Build Signer Digest": sha,
		"Fulcio Runner Environment": "github-hosted", "Fulcio Source Repository URI": "https://github.com/octo/app",
		"Fulcio Source Repository Digest": sha, "Fulcio Source Repository Ref": "refs/heads/main",
		"Fulcio Source Repository Owner URI": "https://github.com/octo", "Fulcio Build Config URI": workflow, "Fulcio Build Config Digest": sha,
		"Fulcio Build Trigger": "push", "Fulcio Run Invocation URI": "https://github.com/octo/app/actions/runs/1/attempts/1",
	}
	component := report["components"].([]any)[0].(map[string]any)
	for what, list := range map[string]any{
		"image": component["signatures"], "attestation": component["attestations"].([]any)[0].(map[string]any)["signatures"],
	} {
		got := list.([]any)[0].(map[string]any)
		if !maps.Equal(got["metadata"].(map[string]any), want) {
			t.Errorf("%s: metadata %v\nwant %v", what, got["metadata"], want)
		}
		if got["keyid"] != hex.EncodeToString(c.SubjectKeyId) || got["certificate"] != string(by.PEM()) || len(got["chain"].([]any)) != 1 || got["sig"] == "" {
			t.Errorf("%s: %v", what, got)
		}
	}
	if report["key"] != "" {
		t.Errorf("key: %v", report["key"])
	}
	add := report["assay"].(map[string]any)
	if id := add["signer"].(map[string]any)["identity"].(map[string]any); id["subject"] != workflow || id["issuer"] != github {
		t.Errorf("signer: %v", add["signer"])
	}
	for image, list := range add["signedBy"].(map[string]any) {
		for _, x := range list.([]any) {
			m := x.(map[string]any)
			if m["identity"] != workflow || m["issuer"] != github || m["instance"] != "environment" || m["log"] == nil || m["times"] == nil {
				t.Errorf("%s: signed by %v", image, m)
			}
		}
		if len(list.([]any)) != 2 {
			t.Errorf("signed by %v", list)
		}
	}
	// A certificate beside a key's signature was verified by nobody and is not shown.
	s2, key := newShelf(t), storetest.NewKey(t)
	claim := s2.claim()
	sig, _ := s2.sign(how{key: key}, claim)
	s2.hang("sig", "application/vnd.dev.cosign.simplesigning.v1+json", claim, map[string]string{
		"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(sig), "dev.sigstore.cosign/certificate": string(by.PEM()),
	})
	s2.attestTag(nil, how{key: key})
	if code, report, stderr := s2.validate("-k", string(key.PublicPEM()), "--ignore-rekor"); code != 0 || strings.Contains(fmt.Sprint(report), "CERTIFICATE") {
		t.Errorf("exit %d: %s %v", code, stderr, report)
	}
}

// TestGitHubStyle: an instance without logs, whose timestamps alone say when.
func TestGitHubStyle(t *testing.T) {
	d := sigstore.New(t)
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CACHE_HOME", filepath.Join(home, "cache"))
	url, root := tufRepository(t, d.Root("ca", "tsa"))
	t.Setenv("TUF_ROOT", filepath.Join(home, "tuf"))
	write(t, home, "root.json", string(root))
	if code, out, stderr := run(t, home, []string{"sigstore", "initialize", "--mirror", url, "--root", "root.json"}); code != 0 {
		t.Fatalf("exit %d: %s %s", code, out, stderr)
	}
	s := newShelf(t)
	s.attestBundle(d, how{by: s.issued(d), unlogged: true, stamped: true})
	if code, report, stderr := s.validate(byIdentity...); code != 0 {
		t.Errorf("exit %d: %s %v", code, stderr, report)
	}
	for name, h := range map[string]how{
		"no timestamp":    {by: s.issued(d), unlogged: true},
		"timestamp after": {by: s.issued(d), unlogged: true, stamped: true, at: d.Began.Add(time.Hour)},
	} {
		s := newShelf(t)
		s.attestBundle(d, h)
		if code, report, _ := s.validate(byIdentity...); code != 1 || len(codes(report, "violations")) == 0 {
			t.Errorf("%s: exit %d, %v", name, code, report)
		}
	}
}

// TestRekor: a key's signatures and the log.
func TestRekor(t *testing.T) {
	const sig, att = "builtin.image.signature_check", "builtin.attestation.signature_check"
	d, stranger := sigstore.New(t), sigstore.New(t)
	environment(t, d)
	key := storetest.NewKey(t)
	url, asked := d.Rekor()
	other, _ := stranger.Rekor()
	both := func(d *sigstore.Deployment, h how) func(*shelf) {
		return func(s *shelf) { h.key = key; s.signTag(d, h); s.attestTag(d, h) }
	}
	for name, tt := range map[string]struct {
		put        func(*shelf)
		args       []string
		violations []string
		asked      int32
		says       string
	}{
		"tags":                    {both(d, how{}), nil, nil, 0, ""},
		"bundle":                  {func(s *shelf) { s.attestBundle(d, how{key: key}) }, nil, nil, 0, ""},
		"bundle without":          {func(s *shelf) { s.attestBundle(d, how{key: key, unlogged: true}) }, []string{"-r", url}, []string{att, sig}, 0, "no trusted log"},
		"bundle without, ignored": {func(s *shelf) { s.attestBundle(d, how{key: key, unlogged: true}) }, []string{"--ignore-rekor"}, nil, 0, ""},
		"online":                  {both(d, how{unlogged: true}), []string{"-r", url}, nil, 2, "logsAsked"},
		"online by the policy":    {both(d, how{unlogged: true}), []string{"-p", `{"sources":[{"policy":["rules"]}],"rekorUrl":"` + url + `"}`}, nil, 2, ""},
		"nobody to ask":           {both(d, how{unlogged: true}), nil, []string{att, sig}, 0, "rekor client not provided for online verification"},
		"not in the log":          {both(d, how{unlogged: true, hidden: true}), []string{"-r", url}, []string{att, sig}, 2, "holds no entry"},
		"ignored":                 {both(d, how{unlogged: true, hidden: true}), []string{"--ignore-rekor"}, nil, 0, "ignoredRekor"},
		"another log":             {both(stranger, how{}), nil, []string{att, sig}, 0, "none of the trusted Rekor keys"},
		"another log, asked":      {both(stranger, how{unlogged: true}), []string{"-r", other}, []string{att, sig}, 0, ""},
		"log that is not there":   {both(d, how{unlogged: true}), []string{"-r", "http://127.0.0.1:1"}, []string{att, sig}, 0, "looking for log entries"},
		"another key's, not asked about": {func(s *shelf) {
			s.signTag(d, how{key: storetest.NewKey(t), unlogged: true})
			s.attestTag(d, how{key: storetest.NewKey(t), unlogged: true})
		}, []string{"-r", url}, []string{att, sig}, 0, ""},
		"keyless, online": {func(s *shelf) {
			by := s.issued(d)
			s.signTag(d, how{by: by, unlogged: true})
			s.attestTag(d, how{by: by, unlogged: true})
		}, append([]string{"-r", url, "-k", ""}, byIdentity...), nil, 2, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			tt.put(s)
			asked.Store(0)
			args := tt.args
			if !slices.Contains(args, "-k") {
				args = append([]string{"-k", string(key.PublicPEM())}, args...)
			}
			code, report, stderr := s.validate(args...)
			if got := codes(report, "violations"); !slices.Equal(got, tt.violations) || (code == 0) != (tt.violations == nil) || asked.Load() != tt.asked {
				t.Errorf("exit %d, violations %q, %d searches; want %q, %d\n%s\n%v", code, got, asked.Load(), tt.violations, tt.asked, stderr, report)
			}
			if text := fmt.Sprint(report); !strings.Contains(text, tt.says) {
				t.Errorf("the report does not say %q: %s", tt.says, text)
			}
		})
	}
}

// TestVerifyBuiltins: the same by rules, with options of their own.
func TestVerifyBuiltins(t *testing.T) {
	d, stranger := sigstore.New(t), sigstore.New(t)
	environment(t, stranger)
	key := storetest.NewKey(t)
	url, _ := d.Rekor()
	s := newShelf(t)
	s.signTag(d, how{key: key})
	s.attestTag(d, how{key: key})
	unlogged := newShelf(t)
	unlogged.signTag(d, how{key: key, unlogged: true})
	by := s.issued(d)
	keyless := newShelf(t)
	keyless.signTag(d, how{by: by})
	keyless.attestTag(d, how{by: by})
	dir := t.TempDir()
	write(t, dir, "rules/main.rego", `package main
deny contains {"code": "main.told", "msg": json.marshal(r)} if {
	some f in [ec.sigstore.verify_image(input.ref, input.opts), ec.sigstore.verify_attestation(input.ref, input.opts)]
	r := object.remove(f, ["attestations"])
}
`)
	write(t, dir, "key.pub", string(key.PublicPEM()))
	for name, tt := range map[string]struct {
		s       *shelf
		opts    map[string]any
		success bool
		says    string
	}{
		"key":                      {s, map[string]any{"public_key": string(key.PublicPEM()), "ignore_rekor": true}, true, ""},
		"key in a file":            {s, map[string]any{"public_key": "key.pub", "ignore_rekor": true}, true, ""},
		"key, another log trusted": {s, map[string]any{"public_key": string(key.PublicPEM()), "ignore_rekor": false}, false, "trusted Rekor keys"},
		"key and log":              {s, map[string]any{"public_key": string(key.PublicPEM()), "ignore_rekor": false, "rekor_public_key": string(d.RekorPEM())}, true, ""},
		"online":                   {unlogged, map[string]any{"public_key": string(key.PublicPEM()), "ignore_rekor": false, "rekor_public_key": string(d.RekorPEM()), "rekor_url": url}, true, ""},
		"bad log key":              {s, map[string]any{"public_key": string(key.PublicPEM()), "ignore_rekor": false, "rekor_public_key": "x"}, false, "adding rekor public key"},
		"no identity":              {s, map[string]any{"ignore_rekor": true}, false, "certificate identity must be provided for keyless workflow"},
		"another authority":        {keyless, map[string]any{"certificate_identity": workflow, "certificate_oidc_issuer": github, "ignore_rekor": false}, false, "no matching"},
	} {
		t.Run(name, func(t *testing.T) {
			in, err := json.Marshal(map[string]any{"ref": tt.s.tag.Context().Name() + "@" + tt.s.digest.String(), "opts": tt.opts})
			must(t, err)
			_, stdout, stderr := run(t, dir, []string{"validate", "input", string(in), "-p", onePolicy, "-o", "json", "--retry-max-retry", "0"})
			told := messages(parseReport(t, stdout), "violations")
			if len(told) == 0 {
				t.Fatalf("%s %s", stdout, stderr)
			}
			yes := slices.ContainsFunc(told, func(m string) bool { return strings.Contains(m, `"success":true`) })
			if yes != tt.success || !strings.Contains(strings.Join(told, ""), tt.says) {
				t.Errorf("%q; want success %v, %q", told, tt.success, tt.says)
			}
		})
	}
	// With its own authority the metadata is there, under the names of input.
	environment(t, d)
	in, _ := json.Marshal(map[string]any{"ref": keyless.tag.Context().Name() + "@" + keyless.digest.String(), "opts": map[string]any{"certificate_identity_regexp": "octo", "certificate_oidc_issuer": github, "ignore_rekor": false}})
	_, stdout, stderr := run(t, dir, []string{"validate", "input", string(in), "-p", onePolicy, "-o", "json", "--retry-max-retry", "0"})
	if told := strings.Join(messages(parseReport(t, stdout), "violations"), ""); !strings.Contains(told, `"Fulcio Build Trigger":"push"`) || !strings.Contains(told, `"chain":["-----BEGIN`) {
		t.Errorf("%s %s", told, stderr)
	}
}

func serveFiles(t *testing.T, files map[string][]byte) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Write(b) //nolint:errcheck // the client will notice
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}
