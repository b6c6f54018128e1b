package provenance_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"assay.dev/assay/provenance"
	"assay.dev/assay/provenance/provenancetest"
)

// owned is a TaskRun under the control of the PipelineRun with that uid.
func owned(name, uid, owner string) *v1.TaskRun {
	tr := taskRun(name)
	tr.Namespace, tr.UID = "team-a", types.UID(uid)
	if owner != "" {
		yes := true
		tr.OwnerReferences = []metav1.OwnerReference{{Kind: "PipelineRun", Name: "run", UID: types.UID(owner), Controller: &yes}}
	}
	return tr
}

func TestOfPipelineRunByOwner(t *testing.T) {
	refs := func(names ...string) (out []v1.ChildStatusReference) {
		for _, n := range names {
			name, kind, _ := strings.Cut(n, "/")
			out = append(out, v1.ChildStatusReference{TypeMeta: runtime.TypeMeta{Kind: kind}, Name: name, PipelineTaskName: "task-" + name})
		}
		return out
	}
	elsewhere := owned("a", "1", "run-uid")
	elsewhere.Namespace = "team-b"
	notController := owned("a", "1", "run-uid")
	notController.OwnerReferences[0].Controller = nil
	otherKind := owned("a", "1", "run-uid")
	otherKind.OwnerReferences[0].Kind = "CustomRun"

	tests := []struct {
		name       string
		refs       []v1.ChildStatusReference
		candidates []*v1.TaskRun
		want       []string // uids
		absent     []string // name: part of the reason
		wantErr    string
	}{
		{name: "in the order of the references", refs: refs("b", "a/TaskRun"), candidates: []*v1.TaskRun{owned("a", "1", "run-uid"), owned("b", "2", "run-uid")}, want: []string{"2", "1"}},
		{name: "what is not referenced is no child", refs: refs("a"), candidates: []*v1.TaskRun{owned("a", "1", "run-uid"), owned("x", "2", "run-uid")}, want: []string{"1"}},
		{name: "no references, no children", candidates: []*v1.TaskRun{owned("a", "1", "run-uid")}},
		{name: "of another run by that name", refs: refs("a"), candidates: []*v1.TaskRun{owned("a", "1", "older-uid")}, absent: []string{"a: older-uid"}},
		{name: "made by hand", refs: refs("a"), candidates: []*v1.TaskRun{owned("a", "1", "")}, absent: []string{"a: nothing owns it"}},
		{name: "ours beside one made by hand", refs: refs("a"), candidates: []*v1.TaskRun{owned("a", "1", ""), owned("a", "2", "run-uid")}, want: []string{"2"}},
		{name: "in another namespace", refs: refs("a"), candidates: []*v1.TaskRun{elsewhere}, absent: []string{"a: is gone"}},
		{name: "owner, but no controller", refs: refs("a"), candidates: []*v1.TaskRun{notController}, absent: []string{"a: nothing owns it"}},
		{name: "owner of another kind", refs: refs("a"), candidates: []*v1.TaskRun{otherKind}, absent: []string{"a: CustomRun run"}},
		{name: "what is no TaskRun", refs: refs("a/CustomRun", "b/PipelineRun", "c/TaskRun"), absent: []string{"a: is a CustomRun", "b: is a PipelineRun", "c: is gone"}},
		{name: "seen twice", refs: refs("a"), candidates: []*v1.TaskRun{owned("a", "1", "run-uid"), owned("a", "1", "run-uid")}, want: []string{"1"}},
		{name: "two of one name", refs: refs("a"), candidates: []*v1.TaskRun{owned("a", "1", "run-uid"), owned("a", "2", "run-uid")}, wantErr: "uids 1 and 2"},
		{name: "nil", refs: refs("a"), candidates: []*v1.TaskRun{nil}, wantErr: "nil"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pr := &v1.PipelineRun{ObjectMeta: metav1.ObjectMeta{Name: "run", Namespace: "team-a", UID: "run-uid"}}
			pr.Status.ChildReferences = tt.refs
			in, absent, err := provenance.OfPipelineRunByOwner(pr, tt.candidates)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Fatalf("error %v lacks %q", err, tt.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, tr := range in.Children {
				got = append(got, string(tr.UID))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("children (-want +got):\n%s", diff)
			}
			if len(absent) != len(tt.absent) || len(in.Missing) != len(absent) {
				t.Fatalf("absent %+v, missing %q; want %q", absent, in.Missing, tt.absent)
			}
			for i, a := range absent {
				name, reason, _ := strings.Cut(tt.absent[i], ": ")
				if a.Name != name || in.Missing[i] != name || a.PipelineTask != "task-"+name || !strings.Contains(a.Reason, reason) {
					t.Errorf("absent %+v, want %s", a, tt.absent[i])
				}
			}
		})
	}
	if _, _, err := provenance.OfPipelineRunByOwner(&v1.PipelineRun{}, nil); err == nil {
		t.Error("accepted a run without uid")
	}
}

// TestByOwnerAgrees: where names tell the truth, both ways of choosing agree.
func TestByOwnerAgrees(t *testing.T) {
	pr, trs := provenancetest.PipelineRun("team-a", "build-1", provenancetest.SmallScript)
	byName, err := provenance.OfPipelineRun(pr, trs)
	if err != nil {
		t.Fatal(err)
	}
	byOwner, absent, err := provenance.OfPipelineRunByOwner(pr, trs)
	if err != nil || len(absent) > 0 {
		t.Fatal(err, absent)
	}
	if diff := cmp.Diff(byName, byOwner); diff != "" {
		t.Errorf("(-name +owner):\n%s", diff)
	}
}
