package provenance_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/provenance"
	"assay.dev/assay/provenance/provenancetest"
)

var formats = []provenance.Format{
	provenance.InToto, provenance.SLSAv1, provenance.SLSAv2alpha3, provenance.SLSAv2alpha4,
}

// TestConformance compares with what Tekton Chains printed for the same input,
// by the rules of the cases' README.
func TestConformance(t *testing.T) {
	for _, c := range provenancetest.Cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			in, cfg := loadCase(t, c)
			for _, format := range formats {
				got, err := provenance.Statement(in, cfg, format, provenance.Options{})
				c.Compare(t, string(format), got, err)

				again, _ := provenance.Statement(in, cfg, format, provenance.Options{})
				if !bytes.Equal(got, again) {
					t.Errorf("%s: two statements of one input differ", format)
				}
			}
			images, err := provenance.SimpleSigning(in, provenance.Options{})
			got, _ := json.Marshal(images)
			c.Compare(t, "simplesigning", got, err)
			compareChildren(t, c, in)
		})
	}
}

// compareChildren checks the choice and order of children where upstream's
// reconciler got as far as choosing them.
func compareChildren(t *testing.T, c provenancetest.Case, in provenance.Input) {
	t.Helper()
	outcome, children := c.Reconcile(t)
	if in.PipelineRun == nil || len(in.PipelineRun.Status.ChildReferences) == 0 || outcome != "sign" {
		return
	}
	var got []string
	for _, tr := range in.Children {
		got = append(got, tr.Name)
	}
	if diff := cmp.Diff(children, got); diff != "" {
		t.Errorf("children (-want +got):\n%s", diff)
	}
	if len(in.Missing) > 0 {
		t.Errorf("missing children %q in a run that upstream signs", in.Missing)
	}
}

func loadCase(t testing.TB, c provenancetest.Case) (provenance.Input, provenance.Config) {
	t.Helper()
	run, raw := c.Input(t)
	var children [][]byte
	for _, child := range raw {
		children = append(children, child)
	}
	in, err := provenance.Load(run, children...)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := provenance.ParseConfig(c.Config(t))
	if err != nil {
		t.Fatal(err)
	}
	return in, cfg
}

func decodeFile(t testing.TB, file string, into any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", file, err))
	}
}
