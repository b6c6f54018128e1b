package cli

// The signer is the real one, in a process of its own: this test's program, started
// again under the name assay-observer (see TestMain). The registry is olareg.

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/spf13/cobra"

	"assay.dev/assay/attest"
	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/vsa"
	"assay.dev/assay/policy"
	"assay.dev/assay/store/oci"
	"assay.dev/assay/store/storetest"
	"assay.dev/assay/verify"
)

func TestVSAFlagsCheck(t *testing.T) {
	for name, tt := range map[string]struct{ args, want string }{
		"none":              {"", ""},
		"made":              {"--vsa-key k", ""},
		"taken":             {"--accept-vsa k --vsa-max-age 7d", ""},
		"output alone":      {"--vsa-output d", "no key for verification summaries is named"},
		"level alone":       {"--vsa-level a=SLSA_BUILD_LEVEL_1", "no key for verification summaries is named"},
		"kept nowhere":      {"--vsa-key k --vsa-store none", "kept nowhere"},
		"kept in a file":    {"--vsa-key k --vsa-store none --vsa-output d", ""},
		"an unknown store":  {"--vsa-key k --vsa-store moon", "is no form"},
		"no age":            {"--accept-vsa k", "needs --vsa-max-age"},
		"an age of nothing": {"--vsa-max-age 1h", "none is accepted"},
		"any age":           {"--accept-vsa k --vsa-max-age 0", "want a time"},
		"a bad age":         {"--accept-vsa k --vsa-max-age soon", "want a time"},
		"a bad level":       {"--vsa-key k --vsa-level observer=high", "is no level"},
	} {
		t.Run(name, func(t *testing.T) {
			var v vsaFlags
			c := &cobra.Command{}
			v.add(c)
			if err := c.ParseFlags(strings.Fields(tt.args)); err != nil {
				t.Fatal(err)
			}
			err := v.check()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v; want %q", err, tt.want)
			}
		})
	}
}

// TestVSASummaries: what one gate makes another one takes, for the same question only.
func TestVSASummaries(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(filepath.Dir(self), "assay-observer")); err != nil && !os.IsExist(err) {
		t.Fatal(err)
	}
	srv := httptest.NewServer(storetest.Registry(t, true))
	t.Cleanup(srv.Close)
	builder, signer := storetest.NewKey(t), storetest.NewKey(t)
	subject := storetest.PushImage(t, http.DefaultTransport, strings.TrimPrefix(srv.URL, "http://"), "team/app", "one")
	repo, err := name.NewRepository(subject.Repo, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oci.New(repo, http.DefaultTransport, oci.Options{}).Put(t.Context(), subject, storetest.Signature(t, builder, subject), storetest.Provenance(t, builder, subject, "one")); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(path, text string) string {
		p := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	raw, err := signer.PrivatePEM(nil)
	if err != nil {
		t.Fatal(err)
	}
	key, pub := file("gate.key", string(raw)), file("gate.pub", string(signer.PublicPEM()))
	const rule = "package main\n\nimport rego.v1\n\n# METADATA\n# title: Attested\n# custom:\n#   short_name: attested\ndeny contains result if {\n\tcount(input.attestations) == 0\n\tresult := {\"code\": \"main.attested\", \"msg\": \"no provenance\"}\n}\n"
	file("policy/policy.yaml", "sources:\n- policy: [./rules]\n")
	rules := file("policy/rules/main.rego", rule)
	open := func(t *testing.T, args string, keys ...*attest.Key) (*gate.Gate, *summaries) {
		t.Helper()
		p, err := policy.Load(t.Context(), filepath.Join(dir, "policy"), policy.Options{})
		if err != nil {
			t.Fatal(err)
		}
		g := &gate.Gate{Policy: p, Transport: http.DefaultTransport}
		for _, k := range append(keys, builder) {
			g.Keys = append(g.Keys, verify.Key{Name: "key", Public: k.Public()})
		}
		var v vsaFlags
		c := &cobra.Command{}
		v.add(c)
		if err := c.ParseFlags(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		s, err := v.open(t.Context(), &app{err: new(bytes.Buffer)}, g, "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		return g, s
	}
	in := policy.Context{Component: "app"}
	g, s := open(t, "--vsa-key "+key+" --vsa-output "+filepath.Join(dir, "out")+" --accept-vsa "+pub+" --vsa-max-age 1h")
	if a, why, err := s.accept(t.Context(), subject.Ref(), in); a != nil || err != nil || !strings.Contains(why, "there is none") {
		t.Fatalf("%+v, %q, %v", a, why, err)
	}
	e, err := g.Verify(t.Context(), subject.Ref())
	if err != nil {
		t.Fatal(err)
	}
	v, err := g.Policy.Evaluate(t.Context(), e, in)
	if err != nil || v.Result != policy.Pass {
		t.Fatalf("%+v, %v", v, err)
	}
	out, err := s.issue(t.Context(), e, v, in)
	if err != nil || out.Referrer == "" || out.Tag == "" || out.File == "" {
		t.Fatalf("%+v, %v", out, err)
	}
	_, later := open(t, "--accept-vsa "+pub+" --vsa-max-age 1h")
	a, why, err := later.accept(t.Context(), subject.Ref(), in)
	if err != nil || a == nil {
		t.Fatalf("%q, %v", why, err)
	}
	if v, by := entry(a); v.Result != policy.Pass || v.Image != subject.Ref() || len(v.Successes) != 0 || by.By == "" || by.Digest != out.Payload || v.Expiry.After(time.Now().Add(time.Hour)) {
		t.Errorf("%+v, %+v", v, by)
	}
	refused := func(name, want string, s *summaries, in policy.Context) {
		t.Helper()
		if a, why, err := s.accept(t.Context(), subject.Ref(), in); a != nil || err != nil || !strings.Contains(why, want) {
			t.Errorf("%s: %+v, %q, %v", name, a, why, err)
		}
	}
	refused("another component", "component", later, policy.Context{Component: "web"})
	refused("another snapshot", "another snapshot", later, policy.Context{Component: "app", Snapshot: &policy.Snapshot{Application: "x"}})
	_, other := open(t, "--accept-vsa "+pub+" --vsa-max-age 1h", storetest.NewKey(t))
	refused("another trust", "another trust", other, in)
	_, other = open(t, "--accept-vsa "+pub+" --vsa-max-age 1h --vsa-verifier https://example.com/other")
	refused("another verifier", "is believed", other, in)
	_, other = open(t, "--accept-vsa "+file("other.pub", string(storetest.NewKey(t).PublicPEM()))+" --vsa-max-age 1h")
	refused("another key", "there is none", other, in)
	if err := os.WriteFile(rules, []byte(rule+"\n# changed\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, other = open(t, "--accept-vsa "+pub+" --vsa-max-age 1h")
	refused("another rule's text", "another policy", other, in)
	// A verdict that is no pass makes none.
	v.Result = policy.Fail
	if out, err := s.issue(t.Context(), e, v, in); out != nil || err != nil {
		t.Errorf("%+v, %v", out, err)
	}
	_, err = vsa.Envelope(out.File)
	if err != nil {
		t.Error(err)
	}
}
