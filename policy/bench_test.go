package policy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"

	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/verify"
)

// redhat is a policy of the size that upstream's users have: the collection @redhat
// of the public policies, as measured in docs/log.md. ASSAY_CONFORMA_POLICY names
// their checkout.
func redhat(tb testing.TB) *Policy {
	tb.Helper()
	checkout := os.Getenv("ASSAY_CONFORMA_POLICY")
	if checkout == "" {
		tb.Skip("set ASSAY_CONFORMA_POLICY to a checkout of the public policies")
	}
	set, err := builtin.New(builtin.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	config := fmt.Sprintf(`{"sources": [{"policy": [%q, %q], "data": [%q], "config": {"include": ["@redhat"], "exclude": ["source_image"]}}], "assay": {"builtinErrors": ["json.unmarshal"]}}`,
		filepath.Join(checkout, "policy", "lib"), filepath.Join(checkout, "policy", "release"), filepath.Join(checkout, "example", "data"))
	p, err := Load(tb.Context(), config, Options{Builtins: set})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// recorded is a real build with 22 tasks as evidence, of image n.
func recorded(tb testing.TB, n int) (*fakeEvidence, Context) {
	tb.Helper()
	raw, err := os.ReadFile(filepath.Join(sharedConformance(tb), "conforma", "attestations", "policy-inputs", "ubi10.json"))
	if err != nil {
		tb.Skip(err)
	}
	var in struct {
		Attestations []struct {
			Statement json.RawMessage `json:"statement"`
		} `json:"attestations"`
		Image struct {
			Ref    string          `json:"ref"`
			Config json.RawMessage `json:"config"`
		} `json:"image"`
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		tb.Fatal(err)
	}
	ref, err := name.NewDigest(in.Image.Ref)
	if err != nil {
		tb.Fatal(err)
	}
	e := &fakeEvidence{ref: ref.Context().Name() + "@" + ref.DigestStr(), manifest: []byte(`{}`)}
	for _, a := range in.Attestations {
		e.statements = append(e.statements, verify.Statement{Payload: a.Statement, PredicateType: "https://slsa.dev/provenance/v0.2"})
	}
	return e, Context{Now: time.Date(2025, 10, 1, 0, 0, 0, 0, time.UTC), ImageConfig: in.Image.Config, Component: fmt.Sprintf("c%d", n)}
}

// BenchmarkEvaluate is what one image costs beyond the first: rules alone, no
// registry.
func BenchmarkEvaluate(b *testing.B) {
	e, c := recorded(b, 0)
	start := cpu(b)
	p := redhat(b)
	judge := func() {
		if _, err := p.evaluate(b.Context(), e, c); err != nil {
			b.Fatal(err)
		}
	}
	judge()
	first := cpu(b) - start
	b.ReportAllocs()
	start = cpu(b)
	for b.Loop() {
		judge()
	}
	b.ReportMetric(first.Seconds(), "cpu-s/first")
	b.ReportMetric((cpu(b)-start).Seconds()/float64(b.N), "cpu-s/op")
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestPublicPolicies: upstream's release rules run over recorded inputs without an
// error of the engine. Nothing is reached, so that no input can pass.
func TestPublicPolicies(t *testing.T) {
	p := redhat(t)
	var files []string
	for _, pattern := range []string{"policy-inputs/*.json", "conforma-policy/policy-input*.json"} {
		more, err := filepath.Glob(filepath.Join(sharedConformance(t), "conforma", "attestations", filepath.FromSlash(pattern)))
		if err != nil || len(more) == 0 {
			t.Fatalf("no inputs: %v", err)
		}
		files = append(files, more...)
	}
	for _, file := range files {
		docs := caseDocuments(t, file)
		when := time.Date(2025, 10, 1, 0, 0, 0, 0, time.UTC)
		o, err := p.judge(t.Context(), testSession(p, when), docs, target{when: when})
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(file), err)
			continue
		}
		if len(o.violations) == 0 {
			t.Errorf("%s passes", filepath.Base(file))
		}
	}
}
