package policy

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/open-policy-agent/opa/v1/topdown"
)

// Limits bound one evaluation, of one image by all sources. Zero values mean the
// defaults; a rule that reaches a limit is an error that names it, and no verdict.
//
// Memory is measured as growth of the heap that survives garbage collection, and
// the heap is the whole program's. Where several evaluations run at once and it
// grows beyond the limit, each of them is stopped and evaluated again by itself, so
// that the one at fault is named and the others have their verdicts.
type Limits struct {
	// Time is for all sources and runs together. Default: DefaultTime.
	Time time.Duration
	// Memory is by how much the heap may grow, in bytes. Default: DefaultMemory.
	Memory int64
}

// Defaults of Limits. Upstream's release rules take a fraction of a second and some
// 60 MiB for a build of twenty tasks.
const (
	DefaultTime   = 5 * time.Minute
	DefaultMemory = 1 << 30
)

func (l Limits) withDefaults() Limits {
	if l.Time <= 0 {
		l.Time = DefaultTime
	}
	if l.Memory <= 0 {
		l.Memory = DefaultMemory
	}
	return l
}

var (
	errTime   = errors.New("the rules did not end")
	errMemory = errors.New("the rules allocate without end")
	// errCrowd stops an evaluation because of growth that may be another's.
	errCrowd = errors.New("evaluations that run at once allocate too much")
)

// every is how often the heap is looked at. A processor allocates a few hundred MiB
// in that time.
const every = 50 * time.Millisecond

// meter watches the heap for the evaluations of one policy.
type meter struct {
	// alone is held for reading by evaluations, and for writing by one that has to
	// have the program for itself.
	alone sync.RWMutex

	mu      sync.Mutex // guards what follows
	running int
	started int
}

func newMeter() *meter { return new(meter) }

// begin notes an evaluation. It returns what says, at any time until end, whether
// that one has had the program for itself.
func (m *meter) begin() (single func() bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running++
	m.started++
	first, nth := m.running == 1, m.started
	return func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return first && m.started == nth
	}
}

func (m *meter) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running--
}

// live is the heap that the last garbage collection left.
func live() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return int64(s[0].Value.Uint64())
}

// grace is how long rules may take to stop. A function of OPA's that does not look
// whether it should is left behind then.
const grace = 10 * time.Second

// bounded calls f with a context and a cancel that end when a limit is reached, and
// says which; where adds the place to an error if f does not come back to say it. It
// calls f again by itself if the limit may have been reached by others.
func bounded[T any](ctx context.Context, m *meter, l Limits, where func(error) error, f func(ctx context.Context, c topdown.Cancel) (T, error)) (T, error) {
	v, err := once(ctx, m, l, false, where, f)
	if !errors.Is(err, errCrowd) {
		return v, err
	}
	return once(ctx, m, l, true, where, f)
}

func once[T any](ctx context.Context, m *meter, l Limits, alone bool, where func(error) error, f func(ctx context.Context, c topdown.Cancel) (T, error)) (T, error) {
	if alone {
		m.alone.Lock()
		defer m.alone.Unlock()
	} else {
		m.alone.RLock()
		defer m.alone.RUnlock()
	}
	single := m.begin()
	defer m.end()
	if alone {
		// What the others left is not this one's.
		runtime.GC()
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ctx, end := context.WithTimeoutCause(ctx, l.Time, fmt.Errorf("%w within %s", errTime, l.Time))
	defer end()
	cancel := topdown.NewCancel()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	done := make(chan struct{})
	defer close(done)
	go watch(done, l.Memory, single, stop)

	type result struct {
		v   T
		err error
	}
	results := make(chan result, 1)
	go func() {
		v, err := f(ctx, cancel)
		results <- result{v, err}
	}()
	var r result
	select {
	case r = <-results:
	case <-ctx.Done():
		select {
		case r = <-results:
		case <-time.After(grace):
			r.err = where(fmt.Errorf("%w, and do not stop either", context.Cause(ctx)))
		}
	}
	if cause := context.Cause(ctx); r.err != nil && cause != nil && !errors.Is(r.err, cause) {
		// What rules say when they are stopped is no cause.
		r.err = cause
	}
	return r.v, r.err
}

// watch stops an evaluation when the heap has grown by more than limit.
func watch(done <-chan struct{}, limit int64, single func() bool, stop func(error)) {
	base := live()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		now := live()
		// A collection may have freed what was there before.
		base = min(base, now)
		if now-base <= limit {
			continue
		}
		if single() {
			stop(fmt.Errorf("%w: the heap grew by more than %d MiB", errMemory, limit>>20))
		} else {
			stop(errCrowd)
		}
		return
	}
}
