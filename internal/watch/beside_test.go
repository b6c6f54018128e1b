package watch_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch"
	"assay.dev/assay/internal/watch/watchtest"
	"assay.dev/assay/store"
)

// Tekton Chains beside us, told by its traces alone, in a real API server.

// standsBack waits until the observer says so, and why.
func standsBack(t *testing.T, o *watch.Observer, why string) {
	t.Helper()
	kubetest.Eventually(t, "us to stand back for "+why, func() (bool, error) {
		code, text := ask(o.Handler(), "/readyz")
		return code == 503 && strings.Contains(text, why) && strings.Contains(text, "standing back"), nil
	})
}

// goesOn waits until nothing holds the observer back.
func goesOn(t *testing.T, o *watch.Observer) {
	t.Helper()
	kubetest.Eventually(t, "us to be at work", func() (bool, error) {
		code, _ := ask(o.Handler(), "/readyz")
		return code == 200, nil
	})
}

// TestChainsLease: Chains has no Deployment where we look, and its leases have the
// names that its own ConfigMap of leader election gives them.
func TestChainsLease(t *testing.T) {
	r := newRig(t)
	r.c.Apply(t, fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"tekton-chains-config-leader-election","namespace":%q},
		"data":{"buckets":"2","map-lease-prefix.watcher.github.com-tektoncd-chains-pkg-reconciler-pipelinerun.Reconciler":"signers.PipelineRuns"}}`, r.ns))
	lease := func(name string) {
		r.c.Apply(t, fmt.Sprintf(`{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":%q,"namespace":%q},
			"spec":{"holderIdentity":"chains-0_1","leaseDurationSeconds":60,"renewTime":%q}}`, name, r.ns, time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")))
	}
	lease("somebody.else.00-of-02")
	r.configMap(pipelineLevel())
	r.cfg.WatchPeer, r.cfg.PeerInterval = true, 200*time.Millisecond
	o, _ := r.start(r.cfg)
	run := r.runs(1, watchtest.Options{})[0]
	r.load(run)
	r.signedOnce(run.PipelineRun.Name, 7)

	lease("signers.pipelineruns.01-of-02")
	standsBack(t, o, "Lease "+r.ns+"/signers.pipelineruns.01-of-02 is being renewed by chains-0_1")
	r.event("chains-config", "StandingBack")
	second, third := watchtest.Generate(2, watchtest.Options{Namespace: r.ns}), watchtest.Generate(3, watchtest.Options{Namespace: r.ns})
	r.load(second)
	// Its owner learns why nothing happens.
	if got := r.event(second.PipelineRun.Name, "StandingBack"); !strings.Contains(got, "signers.pipelineruns.01-of-02") {
		t.Errorf("event %q", got)
	}
	if got := r.get(watchtest.PipelineRuns, second.PipelineRun.Name).GetAnnotations()["chains.tekton.dev/signed"]; got != "" {
		t.Errorf("signed is %q although Chains is at work", got)
	}
	r.configMap(pipelineLevel("assay.peer", "take-over"))
	r.signedOnce(second.PipelineRun.Name, 7)
	r.event("chains-config", "TakingOver")

	r.configMap(pipelineLevel())
	standsBack(t, o, "is being renewed")
	r.load(third)
	r.c.Kubectl(t, "-n", r.ns, "delete", "lease", "signers.pipelineruns.01-of-02")
	r.signedOnce(third.PipelineRun.Name, 7)

	// As Tekton's operator installs it where replicas share work by their ordinals:
	// no Deployment, and no leases at all.
	set := func(replicas int) {
		r.c.Apply(t, fmt.Sprintf(`{"apiVersion":"apps/v1","kind":"StatefulSet","metadata":{"name":"tekton-chains-controller","namespace":%q},
			"spec":{"replicas":%d,"serviceName":"c","selector":{"matchLabels":{"app":"c"}},"template":{"metadata":{"labels":{"app":"c"}},"spec":{"containers":[
				{"name":"c","image":"c","env":[{"name":"CONFIG_LEADERELECTION_NAME","value":"of-its-own"}]}]}}}}`, r.ns, replicas))
	}
	set(1)
	standsBack(t, o, "StatefulSet "+r.ns+"/tekton-chains-controller has replicas")
	// Scaled to 0, and its ConfigMap of another name says how leases are called.
	r.c.Apply(t, fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"of-its-own","namespace":%q},"data":{"map-lease-prefix.watcher.x":"otherwise"}}`, r.ns))
	set(0)
	goesOn(t, o)
	lease("otherwise.00-of-01")
	standsBack(t, o, "otherwise.00-of-01 is being renewed")
}

// markAs puts a mark on a run as somebody: the field manager of the mark, and
// that of the finalizer, if there is one.
func (r *rig) markAs(name, manager, finalizer string) {
	r.t.Helper()
	apply := func(manager, metadata string) {
		body := fmt.Sprintf(`{"apiVersion":"tekton.dev/v1","kind":"PipelineRun","metadata":{"name":%q,%s}}`, name, metadata)
		_, err := r.dynamic().Resource(watchtest.PipelineRuns).Namespace(r.ns).Patch(r.t.Context(), name, types.ApplyPatchType, []byte(body),
			metav1.PatchOptions{FieldManager: manager, Force: new(true)})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	if finalizer != "" {
		apply(finalizer, `"finalizers":["chains.tekton.dev/pipelinerun"]`)
	}
	apply(manager, `"annotations":{"chains.tekton.dev/signed":"true"}`)
}

// TestForeignMarks: marks appear on runs that wait for us, between two attempts.
// Chains' make us stand back; a person's and another observer's do not.
func TestForeignMarks(t *testing.T) {
	r := newRig(t)
	r.configMap(pipelineLevel())
	r.cfg.WatchPeer, r.cfg.PeerInterval = true, 200*time.Millisecond
	r.keepers.set(func([]store.Record) error { return store.As(store.Transient, errors.New("the folder is away")) })
	runs := r.runs(5, watchtest.Options{})
	name := func(i int) string { return runs[i].PipelineRun.Name }
	r.load(runs...)
	o, _ := r.start(r.cfg)
	for i := range runs {
		r.waitAnnotation(watchtest.PipelineRuns, name(i), "assay.dev/reason")
	}
	foreign := func(want float64) {
		t.Helper()
		kubetest.Eventually(t, fmt.Sprintf("%g foreign marks", want), func() (bool, error) {
			return r.metric("assay_foreign_marks_total") == want, nil
		})
	}
	r.markAs(name(0), "kubectl-annotate", "tekton-chains-controller/finalizers")
	foreign(1)
	// Another observer: the mark, and no finalizer any more.
	r.markAs(name(1), "tekton-chains-controller", "")
	foreign(2)
	time.Sleep(3 * r.cfg.PeerInterval) // for what must not happen: it has had its looks
	if code, text := ask(o.Handler(), "/readyz"); strings.Contains(text, "peer") {
		t.Fatalf("%d %s: stands back for a person or for another observer", code, text)
	}
	r.markAs(name(2), "tekton-chains-controller", "tekton-chains-controller/finalizers")
	standsBack(t, o, "PipelineRun "+r.ns+"/"+name(2)+" was marked by it")
	r.keepers.set(nil)
	if got := r.event(name(3), "StandingBack"); !strings.Contains(got, "Tekton Chains") {
		t.Errorf("event %q", got)
	}
	if n := len(r.keepers.counts()); n != 0 {
		t.Errorf("%d records were stored while we stood back", n)
	}
	r.configMap(pipelineLevel("assay.peer", "take-over"))
	r.signedOnce(name(3), 7)
	r.signedOnce(name(4), 7)
	for key := range r.keepers.counts() {
		if run, _, _ := strings.Cut(key, " "); run != name(3) && run != name(4) {
			t.Errorf("%s was stored, of a run that somebody else had marked", key)
		}
	}
}

// metric sums a metric of the observer's over its labels.
func (r *rig) metric(name string) float64 {
	r.t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + m.GetHistogram().GetSampleSum()
		}
	}
	return sum
}

// steppingClock is a wall's clock that is set, back and forth, by whole days.
type steppingClock struct {
	mu   sync.Mutex
	step time.Duration
}

func (c *steppingClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Without the machine's own reading: only what the wall shows.
	return time.Now().Round(0).Add(c.step)
}

func (c *steppingClock) set(step time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.step = step
}

// TestClockSteps drives the whole controller with a clock that is two days ahead
// when it begins and is then set every few milliseconds, two days back and forth:
// while leases are held, runs are protected, fail, wait and are tried again, and
// settings say to leave old runs alone.
func TestClockSteps(t *testing.T) {
	r := newRig(t)
	clock := &steppingClock{step: 48 * time.Hour}
	r.cfg.Now = clock.now
	r.cfg.WatchPeer, r.cfg.PeerInterval = true, 100*time.Millisecond
	r.cfg.Election = &watch.Election{Duration: 6 * time.Second}
	r.cfg.ProtectAfter = 50 * time.Millisecond
	r.configMap(pipelineLevel("assay.start.since", "1h", "assay.retry.max-backoff", "1s"))
	o, stop := r.start(r.cfg)
	goesOn(t, o)

	// Seen before it ended, under the first clock: not old, and it was protected.
	early := watchtest.Generate(9, watchtest.Options{Namespace: r.ns})
	finish, err := watchtest.Create(t.Context(), r.dynamic(), early)
	if err != nil {
		t.Fatal(err)
	}
	kubetest.Eventually(t, "the finalizer", func() (bool, error) {
		return len(r.get(watchtest.PipelineRuns, early.PipelineRun.Name).GetFinalizers()) > 0, nil
	})
	if err := finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.signedOnce(early.PipelineRun.Name, 7)

	clock.set(0)
	var steps sync.WaitGroup
	ended := make(chan struct{})
	steps.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-ended:
				return
			case <-time.After(15 * time.Millisecond):
				clock.set([]time.Duration{-48 * time.Hour, 0, 48 * time.Hour, time.Hour}[i%4])
			}
		}
	})
	r.keepers.set(func([]store.Record) error { return store.As(store.Transient, errors.New("the folder is away")) })
	runs := r.runs(6, watchtest.Options{})
	r.load(runs...)
	for _, run := range runs {
		r.waitAnnotation(watchtest.PipelineRuns, run.PipelineRun.Name, "assay.dev/reason")
	}
	r.keepers.set(nil)
	for _, run := range runs {
		r.signedOnce(run.PipelineRun.Name, 7)
	}
	close(ended)
	steps.Wait()
	if got := r.metric("assay_buckets_held"); got != 1 {
		t.Errorf("%g buckets are held; want the one", got)
	}
	if got := r.metric("assay_oldest_pending_seconds"); got != 0 {
		t.Errorf("the oldest pending run ended %g s ago; there is none", got)
	}
	if code, text := ask(o.Handler(), "/readyz"); code != 200 {
		t.Errorf("%d %s", code, text)
	}
	stop()
}
