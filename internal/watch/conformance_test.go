package watch

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"assay.dev/assay/internal/testrig/conformance"
	"assay.dev/assay/provenance"
)

// reconcile is what upstream's reconciler decides.
type reconcile struct {
	Outcome  string   `json:"outcome"`
	Children []string `json:"children"`
}

// TestDecisions compares what the observer decides with what Tekton Chains'
// reconciler does for the same objects. Where children cannot be had, upstream
// silently skips the PipelineRun for good; ours is stated, and names them.
func TestDecisions(t *testing.T) {
	root := conformance.Dir(t, "chains")
	inputs, err := filepath.Glob(filepath.Join(root, "*", "input.json"))
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no cases below %s (%v)", root, err)
	}
	stated := 0
	for _, file := range inputs {
		dir := filepath.Dir(file)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			var want reconcile
			readJSON(t, filepath.Join(dir, "expected-reconcile.json"), &want)
			got, gone := decideCase(t, dir)
			if gone > 0 {
				stated++
				want.Outcome, want.Children = "sign", got.Children
			}
			if len(want.Children) == 0 {
				want.Children = nil
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-upstream +assay):\n%s", diff)
			}
		})
	}
	if stated == 0 {
		t.Error("no case with children that cannot be had: the comparison checks less than it says")
	}
}

// decideCase decides as the observer does, with the case's objects as the whole
// cluster, and counts the children that cannot be had.
func decideCase(t *testing.T, dir string) (got reconcile, gone int) {
	t.Helper()
	var in struct {
		Run      json.RawMessage
		Children []json.RawMessage
	}
	readJSON(t, filepath.Join(dir, "input.json"), &in)
	var data map[string]string
	readJSON(t, filepath.Join(dir, "config.json"), &data)
	cfg, err := provenance.ParseConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	raw := make([][]byte, len(in.Children))
	for i, c := range in.Children {
		raw[i] = c
	}
	run, err := provenance.Load(in.Run, raw...)
	if err != nil {
		t.Fatal(err)
	}
	// Objects of files may lack what every object on a cluster has.
	kind := "TaskRun"
	var object any = run.TaskRun
	if pr := run.PipelineRun; pr != nil {
		kind, object = "PipelineRun", pr
		admit(&pr.ObjectMeta)
	} else {
		admit(&run.TaskRun.ObjectMeta)
	}
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	h, err := readHead(kind, text)
	if err != nil {
		t.Fatal(err)
	}
	p := planFor(cfg)
	if decide(h, cfg, p, time.Now()) != process {
		return reconcile{Outcome: "skip"}, 0
	}
	if run.PipelineRun == nil {
		return reconcile{Outcome: "sign"}, 0
	}
	var candidates []*v1.TaskRun
	for _, raw := range in.Children {
		child, err := provenance.Load(raw)
		if err != nil {
			t.Fatal(err)
		}
		yes := true
		child.TaskRun.OwnerReferences = []metav1.OwnerReference{{Kind: "PipelineRun", UID: run.PipelineRun.UID, Controller: &yes}}
		candidates = append(candidates, child.TaskRun)
	}
	unmarked := func(tr *v1.TaskRun) bool {
		return !slices.Contains([]string{"true", "failed"}, tr.Annotations[annotationSigned])
	}
	c := chooseChildren(run.PipelineRun, candidates, nil, unmarked)
	nobody := map[string]string{}
	for _, name := range c.absent {
		nobody[name] = "deleted"
	}
	c = chooseChildren(run.PipelineRun, candidates, nobody, unmarked)
	if len(c.waiting) > 0 || len(c.unmarked) > 0 {
		return reconcile{Outcome: "skip"}, 0
	}
	got.Outcome = "sign"
	for _, tr := range c.input.Children {
		got.Children = append(got.Children, tr.Name)
	}
	return got, len(c.missing)
}

func admit(m *metav1.ObjectMeta) {
	if m.Name == "" {
		m.Name = "run"
	}
	if m.UID == "" {
		m.UID = types.UID("uid-of-" + m.Name)
	}
	if m.Namespace == "" {
		m.Namespace = "default"
	}
}

func readJSON(t *testing.T, file string, into any) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatalf("reading %s: %v", file, err)
	}
}
