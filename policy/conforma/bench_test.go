package conforma

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"assay.dev/assay/policy/builtin"
)

// BenchmarkEvaluate is what one image costs beyond the first, of a real build with
// 22 tasks by the collection @redhat of the public policies: rules alone, no
// registry. ASSAY_CONFORMA_POLICY names their checkout.
func BenchmarkEvaluate(b *testing.B) {
	policy, in := os.Getenv("ASSAY_CONFORMA_POLICY"), ubi10()
	if policy == "" || in == "" {
		b.Skip("set ASSAY_CONFORMA_POLICY, and put the conformance material beside the repository")
	}
	raw, err := os.ReadFile(in)
	if err != nil {
		b.Fatal(err)
	}
	set, err := builtin.New(builtin.Options{})
	if err != nil {
		b.Fatal(err)
	}
	spec := &Spec{Sources: []Source{{
		Policy: []string{filepath.Join(policy, "policy", "lib"), filepath.Join(policy, "policy", "release")},
		Data:   []string{filepath.Join(policy, "example", "data")},
		Config: &Config{Include: []string{"@redhat"}, Exclude: []string{"source_image"}},
	}}}
	start := cpu(b)
	p, err := Load(b.Context(), spec, Options{When: time.Date(2025, 10, 1, 0, 0, 0, 0, time.UTC), Builtins: set})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := p.Evaluate(b.Context(), input(b, string(raw)), Target{}); err != nil {
		b.Fatal(err)
	}
	first := cpu(b) - start
	b.ReportAllocs()
	start = cpu(b)
	for b.Loop() {
		if _, err := p.Evaluate(b.Context(), input(b, string(raw)), Target{}); err != nil {
			b.Fatal(err)
		}
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

// ubi10 finds the recorded input; "" without.
func ubi10() string {
	p := filepath.Join("..", "..", "..", "shared", "conformance", "conforma", "attestations", "policy-inputs", "ubi10.json")
	if _, err := os.Stat(p); err != nil {
		return ""
	}
	return p
}
