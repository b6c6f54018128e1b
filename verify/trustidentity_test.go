package verify_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/verify"
)

// An identity that the trust file binds as an observer is one, and only for what it
// is bound for.
func TestTrustIdentity(t *testing.T) {
	s, stranger := newSigstore(t), newSigstore(t)
	dir := t.TempDir()
	for name, data := range map[string][]byte{"root.json": s.root(), "other.json": stranger.root()} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const (
		who      = `"name":"witness","san":"` + testSAN + `","issuer":"` + testIssuer + `"`
		observer = `,"role":"observer","builders":["https://example.com/builder"]`
		ours     = `"instances":[{"name":"ours","trustedRoot":"root.json"}]`
	)
	artifact := []byte("artifact")
	bundle := s.bundle(signing{subject: artifact})
	for _, tc := range []struct {
		name, doc string
		grade     verify.Grade
		says      string // the refusal
	}{
		{"an observer", `{"identities":[{` + who + observer + `}],` + ours + `}`, verify.GradeObserver, ""},
		{"no role", `{"identities":[{` + who + `}],` + ours + `}`, verify.GradeUnknown, ""},
		{"another builder", `{"identities":[{` + who + `,"role":"observer","builders":["https://example.com/b"]}],` + ours + `}`, verify.GradeUnknown, ""},
		{"by expression", `{"identities":[{"name":"w","sanRegexp":"https://github.com/octo/app/.*","issuerRegexp":"https://token\\..*"` + observer + `}],` + ours + `}`, verify.GradeObserver, ""},
		{"another identity", `{"identities":[{"name":"w","san":"https://github.com/octo/ap","issuer":"` + testIssuer + `"` + observer + `}],` + ours + `}`, "", "identity is"},
		{"another issuer", `{"identities":[{"name":"w","san":"` + testSAN + `","issuer":"https://example.com"` + observer + `}],` + ours + `}`, "", "issuer is"},
		{"a source that it does not name", `{"identities":[{` + who + `,"sourceRepository":"https://github.com/octo/app"` + observer + `}],` + ours + `}`, "", "names no source repository"},
		{"another instance", `{"identities":[{` + who + observer + `}],"instances":[{"name":"other","trustedRoot":"other.json"}]}`, "", "authority of none of the trusted instances (other)"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := filepath.Join(dir, "trust.json")
			if err := os.WriteFile(p, []byte(tc.doc), 0o644); err != nil {
				t.Fatal(err)
			}
			trust, err := verify.LoadTrust(p)
			if err != nil {
				t.Fatal(err)
			}
			// The test's log promises no certificate.
			e, err := verify.Files(file(t, artifact), pieces(t, bundle), verify.Options{
				Identities: trust.Identities, Instances: trust.Instances, At: time.Now(), WithoutSignature: true,
			})
			if tc.says != "" {
				if err == nil || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("%v; want %q", err, tc.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := e.Statements()
			if len(got) != 1 || got[0].Grade != tc.grade {
				t.Errorf("%+v; want %s", got, tc.grade)
			}
		})
	}
}

func TestParseTrustIdentities(t *testing.T) {
	root := newSigstore(t).root()
	read := func(name string) ([]byte, error) {
		if name != "root.json" {
			return nil, os.ErrNotExist
		}
		return root, nil
	}
	const good = `{"identities":[{"name":"w","san":"a","issuer":"i","sourceRepository":"https://github.com/o/n","sourceOwner":"https://github.com/o","sourceRef":"r","sourceDigest":"d","trigger":"push","hostedOnly":true,"role":"observer","builders":["b/"]},{"name":"two","sanRegexp":"a.*","issuerRegexp":"i.*"}],` +
		`"instances":[{"name":"ours","trustedRoot":"root.json","thresholds":{"timestamps":1,"logEntries":0}},{"name":"public-good"},{"name":"github"}]}`
	trust, err := verify.ParseTrust([]byte(good), read)
	if err != nil {
		t.Fatal(err)
	}
	want := []verify.CertificateIdentity{{
		Name: "w", SAN: "a", Issuer: "i", SourceRepository: "https://github.com/o/n", SourceOwner: "https://github.com/o",
		SourceRef: "r", SourceDigest: "d", Trigger: "push", HostedOnly: true, Observer: true, Builders: []string{"b/"},
	}, {Name: "two", SANRegexp: "a.*", IssuerRegexp: "i.*"}}
	if d := cmp.Diff(want, trust.Identities); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	var names []string
	for _, in := range trust.Instances {
		names = append(names, in.Name())
	}
	if d := cmp.Diff([]string{"ours", "public-good", "github"}, names); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(verify.Thresholds{Timestamps: 1}, trust.Instances[0].Thresholds()); d != "" {
		t.Error(d)
	}
	change := func(from, to string) string {
		if !strings.Contains(good, from) {
			t.Fatalf("no %s to change", from)
		}
		return strings.Replace(good, from, to, 1)
	}
	for _, tc := range []struct{ name, doc, says string }{
		{"nobody", `{"identities":[]}`, "nobody is trusted"},
		{"instances for nobody", `{"instances":[{"name":"github"}],"keys":[]}`, "nobody is trusted"},
		{"no list", `{"identities":{}}`, "reading identities"},
		{"unknown member", change(`"trigger"`, `"Trigger"`), `"Trigger"`},
		{"observer is said by a role", change(`"role":"observer"`, `"observer":true`), `"observer"`},
		{"unknown role", change(`"role":"observer"`, `"role":"witness"`), `"witness"`},
		{"a role without builders", change(`,"builders":["b/"]`, ``), "needs the builder.id values"},
		{"builders without a role", change(`"role":"observer",`, ``), "needs the builder.id values"},
		{"every builder", change(`"b/"`, `"/"`), "needs the builder.id values"},
		{"no name", change(`"name":"w",`, ``), "no name"},
		{"empty", change(`"sourceRef":"r"`, `"sourceRef":""`), "empty"},
		{"null", change(`"sourceRef":"r"`, `"sourceRef":null`), "sourceRef"},
		{"no identity", change(`"san":"a",`, ``), "san and sanRegexp"},
		{"two", change(`"san":"a"`, `"san":"a","sanRegexp":"a"`), "san and sanRegexp"},
		{"no issuer", change(`"issuer":"i",`, ``), "issuer and issuerRegexp"},
		{"a bad expression", change(`"a.*"`, `"a("`), "regular expression"},
		{"a group that ends early", change(`"a.*"`, `"a)|(b"`), "regular expression"},
		{"a word for a flag", change(`"hostedOnly":true`, `"hostedOnly":"true"`), "hostedOnly"},
		{"two names alike", change(`"name":"two"`, `"name":"w"`), "second key or identity"},
		{"duplicate", change(`"name":"two"`, `"name":"x","name":"two"`), "duplicate"},
		{"another root of a shipped one", change(`{"name":"github"}`, `{"name":"github","trustedRoot":"root.json"}`), "root is shipped"},
		{"an instance without root", change(`{"name":"github"}`, `{"name":"mine"}`), "no trustedRoot"},
		{"two instances alike", change(`{"name":"github"}`, `{"name":"ours","trustedRoot":"root.json"}`), "second one named"},
		{"no file", change(`root.json`, `none.json`), "none.json"},
		{"no source of time", change(`"timestamps":1`, `"timestamps":0`), "no source of time"},
		{"what no root can meet", change(`"timestamps":1`, `"timestamps":9`), "9 sources of time"},
		{"an unknown threshold", change(`"timestamps":1`, `"timestamp":1`), `"timestamp"`},
		{"half a threshold", change(`"timestamps":1`, `"timestamps":1.5`), "want a number"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := verify.ParseTrust([]byte(tc.doc), read); err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v; want %q", err, tc.says)
			}
		})
	}
	if _, err := verify.ParseTrust([]byte(good), nil); err == nil || !strings.Contains(err.Error(), "cannot refer to files") {
		t.Errorf("files without reader: %v", err)
	}
}
