package watch

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestLeaseNames: which leases are those of Chains' controllers, given Chains' own
// ConfigMap of leader election.
func TestLeaseNames(t *testing.T) {
	mapped := namesOf(map[string]string{
		"lease-duration": "5m", "buckets": "3", "_example": "x",
		"map-lease-prefix.watcher.github.com-tektoncd-chains-pkg-reconciler-taskrun.Reconciler": "Chains-TaskRuns",
		"map-lease-prefix.":         "nothing",
		"map-lease-prefix.watcher.": "",
	})
	if diff := cmp.Diff(leaseNames{prefixes: []string{"chains-taskruns"}, duration: 5 * time.Minute}, mapped, cmp.AllowUnexported(leaseNames{})); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	if got := namesOf(map[string]string{"lease-duration": "soon", "leaseDuration": "-1s"}); got.duration != 0 {
		t.Errorf("duration %s of nonsense", got.duration)
	}
	for name, want := range map[string][2]bool{
		"watcher.github.com-tektoncd-chains-pkg-reconciler-taskrun.reconciler.00-of-01":                      {true, true},
		"tekton-chains-controller.github.com.tektoncd.chains.pkg.reconciler.pipelinerun.reconciler.00-of-01": {true, true},
		"chains-taskruns.02-of-03":  {false, true},
		"chains-taskruns.02-of-":    {false, false},
		"chains-taskruns.mine":      {false, false},
		"chains-taskruns-2.0-of-1":  {false, false},
		"assay-observer.00-of-01":   {false, false},
		"tekton-pipelines.00-of-01": {false, false},
	} {
		if got := [2]bool{leaseNames{}.chains(name), mapped.chains(name)}; got != want {
			t.Errorf("%s: %v without and with the ConfigMap, want %v", name, got, want)
		}
	}
}

// TestLeaseLife: a lease counts while it keeps changing, whatever its times say,
// and one left behind does not.
func TestLeaseLife(t *testing.T) {
	make := func(version, holder string, renewed time.Time) lease {
		var l lease
		l.Metadata.Namespace, l.Metadata.Name, l.Metadata.ResourceVersion = "ns", manager+".00-of-01", version
		l.Spec.HolderIdentity, l.Spec.RenewTime = holder, renewed.UTC().Format(time.RFC3339Nano)
		return l
	}
	now := time.Now()
	for _, tc := range []struct {
		name  string
		looks []lease
		want  bool
	}{
		{"in use", []lease{make("1", "a", now)}, true},
		{"left behind", []lease{make("1", "a", now.Add(-time.Hour))}, false},
		{"left behind, looked at twice", []lease{make("1", "a", now.Add(-time.Hour)), make("1", "a", now.Add(-time.Hour))}, false},
		{"its clock is slow", []lease{make("1", "a", now.Add(-time.Hour)), make("2", "a", now.Add(-time.Hour))}, true},
		{"given up", []lease{make("1", "a", now), make("2", "", now)}, false},
	} {
		p := &peer{renewed: map[string]sighting{}}
		sign := ""
		for _, l := range tc.looks {
			sign = p.lease([]lease{l}, now)
		}
		if (sign != "") != tc.want {
			t.Errorf("%s: %q", tc.name, sign)
		}
	}
	p := &peer{renewed: map[string]sighting{}}
	p.lease([]lease{make("1", "a", now)}, now)
	if p.lease(nil, now) != "" || len(p.renewed) != 0 {
		t.Error("a lease that is gone is remembered")
	}
}

func TestMarkedBy(t *testing.T) {
	for object, want := range map[string]string{
		`{}`: "",
		`{"metadata":{"managedFields":[{"manager":"a","fieldsV1":{"f:metadata":{"f:annotations":{"f:x":{}}}}},
			{"manager":"b","fieldsV1":{"f:metadata":{"f:annotations":{".":{},"f:chains.tekton.dev/signed":{}}}}}]}}`: "b",
	} {
		if got, err := markedBy([]byte(object)); err != nil || got != want {
			t.Errorf("%s: %q, %v", object, got, err)
		}
	}
	if _, err := markedBy([]byte(`[]`)); err == nil {
		t.Error("a list was read as a run")
	}
}
