package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
)

// measure runs all parts through one side.
func measure(ctx context.Context, o options, s side) (_ []result, err error) {
	fmt.Fprintf(os.Stderr, "bench/observer: starting a cluster for %s\n", s.name)
	c, err := newCluster(ctx, settings(o))
	if err != nil {
		return nil, err
	}
	defer c.close()
	m := &meter{cluster: c, side: s.name, o: o, signed: map[string]time.Time{}, changed: make(chan struct{}, 1)}
	fmt.Fprintf(os.Stderr, "bench/observer: loading %d runs\n", o.runs)
	backlog, err := c.load(ctx, 0, o.runs, o.script)
	if err != nil {
		return nil, err
	}
	for _, l := range backlog {
		if err := c.finish(ctx, l); err != nil {
			return nil, err
		}
	}
	wctx, stopWatch := context.WithCancel(ctx)
	defer stopWatch()
	if err := m.watch(wctx); err != nil {
		return nil, err
	}
	began := time.Now()
	before, err := m.account(ctx, 0)
	if err != nil {
		return nil, err
	}
	cmd, tidy, err := s.start(ctx, c)
	if err != nil {
		return nil, err
	}
	defer tidy()
	defer stop(cmd)
	defer func() {
		if err != nil {
			keep(c, s.name)
		}
	}()
	m.pid = cmd.Process.Pid
	if err := m.wait(ctx, backlog); err != nil {
		return nil, fmt.Errorf("backlog: %w", err)
	}
	var out []result
	// Parts take minutes: what is known of one is not lost if a later one is given up.
	done := func(r result) {
		out = append(out, r)
		fmt.Fprintf(os.Stderr, "bench/observer: %s %s: %.1f runs/s, %.1f ms of CPU, %.1f API and %.1f registry requests each, peak %.0f MB, half within %.2f s\n",
			r.Side, r.Part, r.PerSecond, r.CPU["controller"], r.APIRequests, r.RegistryRequests, r.PeakMB["controller"], r.Latency.P50)
	}
	r, err := m.result(ctx, "backlog", began, before, backlog, func(*loaded) time.Time { return began })
	if err != nil {
		return nil, err
	}
	done(r)
	if o.rate > 0 {
		r, err := m.arriving(ctx)
		if err != nil {
			return nil, fmt.Errorf("arriving: %w", err)
		}
		done(r)
	}
	if o.passing > 0 {
		r, err := m.passing(ctx, backlog)
		if err != nil {
			return nil, fmt.Errorf("passing: %w", err)
		}
		done(r)
	}
	return out, nil
}

// keep leaves the controller's log where it can be read.
func keep(c *cluster, name string) {
	b, err := os.ReadFile(filepath.Join(c.dir, name+".log"))
	if err != nil {
		return
	}
	to := filepath.Join(os.TempDir(), "bench-observer-"+name+".log")
	if os.WriteFile(to, b, 0o600) == nil {
		fmt.Fprintln(os.Stderr, "bench/observer: its log is in", to)
	}
}

// meter watches what becomes signed.
type meter struct {
	*cluster
	side string
	o    options
	pid  int // of the controller
	next int // number of the next run to load

	mu      sync.Mutex
	signed  map[string]time.Time // run → when it was seen marked
	failed  int
	changed chan struct{}
}

// watch notes when runs are marked, by one watch of their metadata.
func (m *meter) watch(ctx context.Context) error {
	client, err := metadata.NewForConfig(m.plane.RESTConfig())
	if err != nil {
		return err
	}
	w, err := client.Resource(pipelineRuns).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	go func() {
		defer w.Stop()
		for e := range w.ResultChan() {
			if e.Type != watch.Modified {
				continue
			}
			o, ok := e.Object.(*metav1.PartialObjectMetadata)
			if !ok {
				continue
			}
			mark := o.Annotations["chains.tekton.dev/signed"]
			if mark == "" {
				continue
			}
			m.mu.Lock()
			if _, seen := m.signed[o.Name]; !seen {
				m.signed[o.Name] = time.Now()
				if mark != "true" {
					m.failed++
				}
			}
			m.mu.Unlock()
			select {
			case m.changed <- struct{}{}:
			default:
			}
		}
	}()
	return nil
}

func (m *meter) when(name string) (time.Time, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.signed[name]
	return t, ok
}

// wait waits until all runs are marked.
func (m *meter) wait(ctx context.Context, runs []*loaded) error {
	limit := time.After(m.o.limit)
	for left := runs; ; {
		left = slices.DeleteFunc(slices.Clone(left), func(l *loaded) bool { _, ok := m.when(l.name); return ok })
		if len(left) == 0 {
			return nil
		}
		select {
		case <-m.changed:
		case <-time.After(time.Second):
			if _, err := used(m.pid); err != nil {
				return errors.New("the controller is gone")
			}
		case <-limit:
			return fmt.Errorf("%d of %d runs are not signed after %s", len(left), len(runs), m.o.limit)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// account is what everybody has used so far.
type account struct {
	use      map[string]usage
	api      float64
	registry int
}

func (m *meter) account(ctx context.Context, controller int) (account, error) {
	a := account{use: map[string]usage{}}
	etcd, apiserver := m.plane.Pids()
	var err error
	for name, pid := range map[string]int{"etcd": etcd, "kube-apiserver": apiserver, "registry": m.cluster.registry.Process.Pid} {
		if a.use[name], err = used(pid); err != nil {
			return a, err
		}
	}
	if controller != 0 {
		if a.use["controller"], err = usedByAll(controller); err != nil {
			return a, err
		}
	}
	if a.api, err = m.apiRequests(ctx); err != nil {
		return a, err
	}
	a.registry, err = requests(m.addr)
	return a, err
}

// result is what a part took since before. Latencies are from since to the mark.
func (m *meter) result(ctx context.Context, part string, began time.Time, before account, runs []*loaded, since func(*loaded) time.Time) (result, error) {
	after, err := m.account(ctx, m.pid)
	if err != nil {
		return result{}, err
	}
	n := float64(len(runs))
	r := result{Side: m.side, Part: part, Runs: len(runs), CPU: map[string]float64{}, PeakMB: map[string]float64{}}
	var last time.Time
	var latencies []float64
	for _, l := range runs {
		t, ok := m.when(l.name)
		if !ok {
			continue
		}
		if t.After(last) {
			last = t
		}
		latencies = append(latencies, t.Sub(since(l)).Seconds())
	}
	slices.Sort(latencies)
	at := func(q float64) float64 { return latencies[min(len(latencies)-1, int(q*float64(len(latencies))))] }
	r.Latency.P50, r.Latency.P90, r.Latency.Max = at(.5), at(.9), at(1)
	r.Seconds = last.Sub(began).Seconds()
	r.PerSecond = n / r.Seconds
	for name, u := range after.use {
		r.CPU[name] = float64((u.cpu - before.use[name].cpu).Microseconds()) / 1000 / n
		r.PeakMB[name] = u.peak
	}
	r.APIRequests = (after.api - before.api) / n
	r.RegistryRequests = float64(after.registry-before.registry) / n
	m.mu.Lock()
	r.Failed = m.failed
	m.failed = 0
	m.mu.Unlock()
	return r, nil
}

// arriving lets runs end at a steady rate for half a minute.
func (m *meter) arriving(ctx context.Context) (result, error) {
	n := int(m.o.rate * 30)
	fmt.Fprintf(os.Stderr, "bench/observer: %d runs that will end at %g a second\n", n, m.o.rate)
	runs, err := m.load(ctx, 100000, n, m.o.script)
	if err != nil {
		return result{}, err
	}
	time.Sleep(5 * time.Second) // what it does on first sight is done
	before, err := m.account(ctx, m.pid)
	if err != nil {
		return result{}, err
	}
	ended := map[string]time.Time{}
	began := time.Now()
	tick := time.NewTicker(time.Duration(float64(time.Second) / m.o.rate))
	defer tick.Stop()
	for _, l := range runs {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return result{}, ctx.Err()
		}
		if err := m.finish(ctx, l); err != nil {
			return result{}, err
		}
		ended[l.name] = time.Now()
	}
	if err := m.wait(ctx, runs); err != nil {
		return result{}, err
	}
	r, err := m.result(ctx, "arriving", began, before, runs, func(l *loaded) time.Time { return ended[l.name] })
	r.APIRequests-- // the one that ended it is ours
	return r, err
}

// passing lets many runs pass through, deleting what is signed.
func (m *meter) passing(ctx context.Context, present []*loaded) (result, error) {
	fmt.Fprintf(os.Stderr, "bench/observer: %d runs passing through\n", m.o.passing)
	const batch = 100
	before, err := m.account(ctx, m.pid)
	if err != nil {
		return result{}, err
	}
	began := time.Now()
	ended := map[string]time.Time{}
	var all []*loaded
	for len(all) < m.o.passing {
		if n := min(len(present)+batch-1000, len(present)); n > 0 {
			if err := m.remove(ctx, present[:n]); err != nil {
				return result{}, err
			}
			present = present[n:]
		}
		runs, err := m.load(ctx, 200000+len(all), batch, m.o.script)
		if err != nil {
			return result{}, err
		}
		for _, l := range runs {
			if err := m.finish(ctx, l); err != nil {
				return result{}, err
			}
			ended[l.name] = time.Now()
		}
		if err := m.wait(ctx, runs); err != nil {
			return result{}, err
		}
		present, all = append(present, runs...), append(all, runs...)
		if len(all)%1000 == 0 {
			if u, err := usedByAll(m.pid); err == nil {
				fmt.Fprintf(os.Stderr, "bench/observer: %d passed; peak %.0f MB, %.1f ms of CPU each\n", len(all), u.peak,
					float64((u.cpu-before.use["controller"].cpu).Microseconds())/1000/float64(len(all)))
			}
		}
	}
	r, err := m.result(ctx, "passing", began, before, all, func(l *loaded) time.Time { return ended[l.name] })
	r.APIRequests = 0 // most are the loader's
	return r, err
}

// remove deletes runs with their children, by name: a collection by label would have
// the API server look through all that is there.
func (m *meter) remove(ctx context.Context, runs []*loaded) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for _, l := range runs {
		g.Go(func() error {
			for _, name := range l.children {
				if err := m.dynamic.Resource(taskRuns).Namespace(l.namespace).Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
					return fmt.Errorf("removing %s: %w", name, err)
				}
			}
			if err := m.dynamic.Resource(pipelineRuns).Namespace(l.namespace).Delete(ctx, l.name, metav1.DeleteOptions{}); err != nil {
				return fmt.Errorf("removing %s: %w", l.name, err)
			}
			return nil
		})
	}
	return g.Wait()
}
