package grafeas_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	converter "github.com/grafeas/grafeas/go/utils/intoto"
	"github.com/in-toto/in-toto-golang/in_toto"
	"google.golang.org/protobuf/testing/protocmp"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/internal/testrig/conformance"
	"assay.dev/assay/store"
	"assay.dev/assay/store/grafeas"
	"assay.dev/assay/store/storetest"
)

// TestUpstreamsConverter: for SLSA v0.2 the details are those that Grafeas' own
// converter, which upstream uses, makes of the same statement.
func TestUpstreamsConverter(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(conformance.Dir(t, "chains"), "*", "expected-slsa-v1.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no statements: %v", err)
	}
	key := fixedSigner(t)
	compared := 0
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := intoto.Parse(data); err != nil {
			continue
		}
		var st in_toto.ProvenanceStatement
		if err := json.Unmarshal(data, &st); err != nil {
			t.Fatal(err)
		}
		want, err := converter.ToProto(&st)
		if err != nil {
			t.Fatal(err)
		}
		s := start(t)
		out := open(t, grafeas.Options{Endpoint: s.endpoint}).Keep(t.Context(), []store.Record{key.statement(t, storetest.NewRun("TaskRun"), data)})
		if out[0].Err != nil {
			t.Fatal(out[0].Err)
		}
		_, occurrences := s.storage.all()
		if diff := cmp.Diff(want, occurrences[0].GetBuild().GetIntotoStatement(), protocmp.Transform()); diff != "" {
			t.Errorf("%s (-upstream +ours):\n%s", file, diff)
		}
		compared++
	}
	t.Logf("%d statements compared", compared)
}
