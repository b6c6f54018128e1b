package watch_test

import (
	"os"
	"strconv"
	"testing"
	"time"

	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/watch/watchtest"
)

// TestMeasure prints what a backlog costs: run it with ASSAY_MEASURE=1000 (runs).
// It asserts the targets that do not depend on how busy the machine is.
func TestMeasure(t *testing.T) {
	n, _ := strconv.Atoi(os.Getenv("ASSAY_MEASURE"))
	if n == 0 {
		t.Skip("set ASSAY_MEASURE to a number of runs, and ASSAY_SLOW=1")
	}
	for name, data := range map[string]map[string]string{
		"pipeline level": pipelineLevel(),
		"with TaskRuns": pipelineLevel("assay.artifacts.taskrun.storage", "folder",
			"artifacts.taskrun.format", "slsa/v1"),
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			const batch = 50
			for i := 0; i < n; i += batch {
				var runs []watchtest.Run
				for k := i; k < min(n, i+batch); k++ {
					runs = append(runs, watchtest.Generate(k, watchtest.Options{Namespace: r.ns, End: time.Now()}))
				}
				r.load(runs...)
			}
			etcd, api := r.c.Plane.Pids()
			etcdBefore, _ := cost(t, etcd)
			apiBefore, _ := cost(t, api)
			h := helper{Kubeconfig: r.c.Kubeconfig, Namespaces: []string{r.ns}, System: r.ns, Settings: data, Dir: r.dir}
			if dir := os.Getenv("ASSAY_MEASURE_PROFILE"); dir != "" {
				h.Profile = dir + "/" + strconv.Itoa(len(data)) + ".pprof"
			}
			began := time.Now()
			p := startProcess(t, h)
			kubetest.Eventually(t, "all to be marked", func() (bool, error) {
				time.Sleep(100 * time.Millisecond)
				return p.metric("watcher_pipelinerun_marked_signed_total") >= float64(n), nil
			})
			took := time.Since(began)
			cpu, peak := p.cost()
			etcdAfter, _ := cost(t, etcd)
			apiAfter, apiPeak := cost(t, api)
			per := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 / float64(n) }
			requests := (p.metric("assay_api_requests_total")) / float64(n)
			t.Logf("%d PipelineRuns: %.1f/s; CPU per run: observer %.1f ms, API server %.1f ms, etcd %.1f ms; %.2f API requests per run; peak %d MB (API server %d MB)",
				n, float64(n)/took.Seconds(), per(cpu), per(apiAfter-apiBefore), per(etcdAfter-etcdBefore), requests, peak>>20, apiPeak>>20)
			if peak > 200<<20 {
				t.Errorf("peak memory is %d MB; want less than 200", peak>>20)
			}
			p.stop()
		})
	}
}
