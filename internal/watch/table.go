package watch

import (
	"container/heap"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/s2"
)

// table is all that is kept about runs: a few words for each run that is not
// marked yet, and the run itself, compressed, while it waits to be worked on.
// Marked runs are forgotten at once.
//
//	  seen, not ended       seen, ended
//	     │                      │
//	     ▼         ended        ▼       next       done        the watch shows it
//	   idle ────────────────▶ ready ◀──────▶ working ──▶ settled ──▶ forgotten
//	                          ▲   │             │
//	its TaskRuns are done with│   ▼             │ back off
//	                        blocked          waiting ──▶ ready
//
// Work is given out group by group, a PipelineRun with its TaskRuns being one:
// first what belongs to a group already begun, then the group that ended last.
// So under backlog whole PipelineRuns come out at the pace of the machine, and
// the newest first.
type table struct {
	opts tableOptions

	mu      sync.Mutex
	runs    map[string]*entry // by uid
	groups  map[string]*group // by group uid
	order   groupHeap         // groups with something ready
	held    int               // bytes of raw kept
	made    int               // bytes of payload kept between attempts
	working int
	paused  map[string]bool  // reasons to give out nothing
	wake    chan struct{}    // closed and replaced when something may be ready
	now     func() time.Time // the wall's, for what others' clocks wrote
}

type tableOptions struct {
	// maxHeld bounds the bytes of waiting runs kept; beyond, runs are fetched
	// when their turn comes.
	maxHeld int
	// maxMade bounds the bytes of statements kept between attempts; beyond, they
	// are made again.
	maxMade int
	// owns says whether a group is this replica's to work on.
	owns func(group string) bool
}

// state is where an entry is in the drawing above.
type state int

const (
	idle state = iota
	ready
	blocked
	waiting
	working
	settled // finished with; kept until the watch has caught up
	forgotten
)

// entry is a run that is not finished with.
type entry struct {
	head
	state  state
	raw    []byte // s2; nil: fetch it
	gone   bool   // deleted at the API server
	scope  string // the selection that tells of it
	seen   uint64 // the scope's round in which it was last told
	noted  time.Time
	change chan struct{} // closed at the next change; nil while nobody waits
	left   bool          // its group no longer waits for it
	told   bool          // its owner knows why it rests

	attempts int
	memo     *memo
	troubles []string // what the last attempt failed at: names of back ends
	timer    *time.Timer
	protect  *time.Timer
	protects bool // gets a finalizer, as settings have it
	blocks   bool // must wait for the TaskRuns of its group
}

// group is a PipelineRun and its TaskRuns, or a TaskRun alone.
type group struct {
	uid     string
	begun   bool
	ended   time.Time
	ready   []*entry
	members int // TaskRuns of a PipelineRun that are not finished with
	parent  *entry
	marked  map[string]bool // names of TaskRuns that we marked, while the PipelineRun is not
	index   int             // in order; -1: not there
	entries int
}

func newTable(opts tableOptions) *table {
	if opts.maxHeld == 0 {
		opts.maxHeld = 48 << 20
	}
	if opts.maxMade == 0 {
		opts.maxMade = 32 << 20
	}
	if opts.owns == nil {
		opts.owns = func(string) bool { return true }
	}
	return &table{
		opts: opts, runs: map[string]*entry{}, groups: map[string]*group{},
		paused: map[string]bool{}, wake: make(chan struct{}), now: time.Now,
	}
}

// see takes note of a run as it is now. blocks says whether a PipelineRun must
// wait for the TaskRuns of its group.
func (t *table) see(h head, object []byte, scope string, round uint64, blocks bool) *entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.runs[h.uid]
	if h.marked() {
		if e != nil && e.state != working {
			t.forget(e)
		} else if e != nil {
			t.renew(e, h)
		}
		return nil
	}
	if e == nil {
		e = &entry{head: h, scope: scope, noted: time.Now()}
		t.runs[h.uid] = e
		g := t.group(h)
		g.entries++
		if h.kind == "PipelineRun" {
			g.parent = e
		} else if h.ownerUID != "" {
			g.members++
		}
	}
	e.seen = round
	t.renew(e, h)
	if h.done && e.state != settled {
		g := t.group(h)
		if h.ended.After(g.ended) {
			g.ended = h.ended
			t.fix(g)
		}
		t.hold(e, object)
		e.blocks = blocks
		if e.state == idle {
			e.noted = time.Now()
			t.offer(e)
		}
	}
	return e
}

// renew updates what is known of e and tells who waits for it.
func (t *table) renew(e *entry, h head) {
	e.head = h
	if e.change != nil {
		close(e.change)
		e.change = nil
	}
}

// offer makes e ready, or blocked while TaskRuns of its group are unfinished.
func (t *table) offer(e *entry) {
	g := t.group(e.head)
	if e.waits(g) {
		e.state = blocked
		return
	}
	e.state = ready
	g.ready = append(g.ready, e)
	t.fix(g)
	t.signal()
}

// waits says whether a PipelineRun must wait for TaskRuns of its group.
func (e *entry) waits(g *group) bool {
	return e.blocks && e.kind == "PipelineRun" && g.members > 0
}

func (t *table) signal() {
	close(t.wake)
	t.wake = make(chan struct{})
}

// hold keeps the run itself until its turn comes.
func (t *table) hold(e *entry, object []byte) {
	t.drop(e)
	// What is another replica's is fetched should it become ours.
	if object == nil || !e.gone && (t.held >= t.opts.maxHeld || !t.opts.owns(e.group())) {
		return
	}
	e.raw = s2.Encode(nil, object)
	// Encode reserves for the worst case.
	e.raw = slices.Clip(append([]byte(nil), e.raw...))
	t.held += len(e.raw)
}

func (t *table) drop(e *entry) {
	t.held -= len(e.raw)
	e.raw = nil
}

// lost takes note of a deletion. A run that ended is worked on all the same:
// what it made is out in the world.
func (t *table) lost(h head, object []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.runs[h.uid]
	if e == nil {
		return
	}
	e.gone = true
	t.renew(e, h)
	switch {
	case !h.done || h.marked():
		if e.state != working {
			t.forget(e)
		}
	default:
		if e.state != settled {
			t.hold(e, object)
		}
		if e.state == idle {
			t.offer(e)
		}
	}
}

// sweep forgets what a scope told in earlier rounds and not in this one: it was
// deleted while nobody listened. What is still in hand is worked on.
func (t *table) sweep(scope string, round uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.runs {
		if e.scope != scope || e.seen >= round || e.gone {
			continue
		}
		e.gone = true
		if e.state != working && (!e.done || e.raw == nil) {
			t.forget(e)
		}
	}
}

// forget drops everything about e, and lets its PipelineRun go on where it was
// the last that it waited for.
func (t *table) forget(e *entry) {
	if e.state == forgotten {
		return
	}
	g := t.group(e.head)
	if e.state == ready {
		if i := slices.Index(g.ready, e); i >= 0 {
			g.ready = slices.Delete(g.ready, i, i+1)
		}
	}
	t.drop(e)
	t.made -= e.memo.size()
	e.state, e.memo = forgotten, nil
	for _, timer := range []*time.Timer{e.timer, e.protect} {
		if timer != nil {
			timer.Stop()
		}
	}
	delete(t.runs, e.uid)
	t.leave(e, g)
	t.fix(g)
	if g.entries--; g.entries == 0 && len(g.ready) == 0 {
		delete(t.groups, g.uid)
	}
}

// leave lets e's group go on without it.
func (t *table) leave(e *entry, g *group) {
	if e.left {
		return
	}
	e.left = true
	if e.kind == "PipelineRun" {
		g.parent = nil
	} else if e.ownerUID != "" {
		if g.members--; g.members == 0 && g.parent != nil && g.parent.state == blocked {
			t.offer(g.parent)
		}
	}
}

func (t *table) group(h head) *group {
	g := t.groups[h.group()]
	if g == nil {
		g = &group{uid: h.group(), index: -1}
		t.groups[g.uid] = g
	}
	return g
}

// fix puts g where it belongs in the order.
func (t *table) fix(g *group) {
	switch {
	case len(g.ready) > 0 && g.index < 0:
		heap.Push(&t.order, g)
	case len(g.ready) == 0 && g.index >= 0:
		heap.Remove(&t.order, g.index)
	case g.index >= 0:
		heap.Fix(&t.order, g.index)
	}
}

// job is a run given out to be worked on.
type job struct {
	head
	raw   []byte // s2
	gone  bool
	noted time.Time
	// marked are TaskRuns of the group that we know to be marked, whatever a
	// cache of the API server still says.
	marked   map[string]bool
	attempts int
	memo     *memo
}

// next waits for a run to work on. It fails when ctx ends.
func (t *table) next(ctx context.Context) (*job, error) {
	for {
		t.mu.Lock()
		j := t.pop()
		wake := t.wake
		t.mu.Unlock()
		if j != nil {
			return j, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-wake:
		}
	}
}

func (t *table) pop() *job {
	if len(t.paused) > 0 {
		return nil
	}
	for len(t.order) > 0 {
		g := t.order[0]
		e := g.ready[0]
		g.ready = g.ready[1:]
		if e.waits(g) {
			// Its TaskRuns were told after it.
			e.state = blocked
			t.fix(g)
			continue
		}
		g.begun = true
		if !t.opts.owns(g.uid) {
			// Somebody else's now; should it come back, see rebalance.
			e.state = idle
			t.drop(e)
			t.fix(g)
			continue
		}
		t.fix(g)
		e.state = working
		t.working++
		t.made -= e.memo.size()
		j := &job{head: e.head, raw: e.raw, gone: e.gone, noted: e.noted,
			attempts: e.attempts, memo: e.memo, marked: g.marked}
		e.memo = nil
		// A deleted run cannot be fetched again.
		if !e.gone {
			t.drop(e)
		}
		return j
	}
	return nil
}

// current is what is known of a run now, and a channel that is closed when it
// changes. Not ok: it is finished with.
func (t *table) current(uid string) (h head, gone bool, change <-chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.runs[uid]
	if e == nil {
		return head{}, false, nil, false
	}
	if e.change == nil {
		e.change = make(chan struct{})
	}
	return e.head, e.gone, e.change, true
}

// learn updates what is known of a run by an answer of the API server.
func (t *table) learn(uid, version string, finalizers []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.runs[uid]; e != nil {
		e.version, e.finalizers = version, finalizers
	}
}

// done says that a run is finished with. marked: it carries its mark.
func (t *table) done(uid string, marked bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.runs[uid]
	if e == nil {
		return
	}
	t.working--
	g := t.group(e.head)
	if marked && e.ownerUID != "" {
		if g.marked == nil {
			g.marked = map[string]bool{}
		} else {
			// Jobs may be reading the old one.
			fresh := make(map[string]bool, len(g.marked)+1)
			for k := range g.marked {
				fresh[k] = true
			}
			g.marked = fresh
		}
		g.marked[e.name] = true
	}
	if !marked || e.gone || e.marked() {
		t.forget(e)
	} else {
		// The watch may be behind: an older state of the run that it tells next
		// must not be taken for news.
		t.drop(e)
		e.state, e.memo = settled, nil
		t.leave(e, g)
	}
	t.signal()
}

// retry gives a run back to be worked on after a pause, or when one of the
// troubles is known to be over.
func (t *table) retry(uid string, after time.Duration, m *memo, troubles []string, raw []byte, counts bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.runs[uid]
	if e == nil {
		return
	}
	t.working--
	e.memo, e.troubles = m, troubles
	// A deleted run's statement cannot be made again: its TaskRuns are gone too.
	if m != nil && !e.gone && t.made+m.size() > t.opts.maxMade {
		m.lighten()
	}
	t.made += m.size()
	if counts {
		e.attempts++
	}
	e.state = waiting
	if e.raw == nil && (t.held < t.opts.maxHeld || e.gone) {
		e.raw = raw
		t.held += len(raw)
	}
	e.timer = time.AfterFunc(after, func() { t.awake(uid) })
	t.signal()
}

func (t *table) awake(uid string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.runs[uid]; e != nil && e.state == waiting {
		e.timer.Stop()
		t.offer(e)
	}
}

// recovered makes ready what waits because of a trouble that is over; "": all.
func (t *table) recovered(trouble string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.runs {
		if e.state == waiting && (trouble == "" || slices.Equal(e.troubles, []string{trouble})) {
			e.timer.Stop()
			t.offer(e)
		}
	}
}

// pause stops giving out work for a reason, or lifts the reason.
func (t *table) pause(reason string, on bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if on {
		t.paused[reason] = true
	} else {
		delete(t.paused, reason)
	}
	t.signal()
}

// unpause lifts all reasons with a prefix.
func (t *table) unpause(prefix string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for reason := range t.paused {
		if strings.HasPrefix(reason, prefix) {
			delete(t.paused, reason)
		}
	}
	t.signal()
}

// rebalance offers what has become ours, and returns the uids of those unfinished
// runs that are ours now and have no finalizer, nor a timer to get one.
func (t *table) rebalance() (unprotected []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.runs {
		switch {
		case e.state != idle || !t.opts.owns(e.group()):
		case e.done:
			t.offer(e)
		case e.protects && e.protect == nil && len(e.finalizers) == 0:
			unprotected = append(unprotected, e.uid)
		}
	}
	t.signal()
	return unprotected
}

// busy says whether a run of the groups that match is being worked on.
func (t *table) busy(match func(group string) bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.runs {
		if e.state == working && match(e.group()) {
			return true
		}
	}
	return false
}

// reset forgets everything that is not being worked on.
func (t *table) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.runs {
		if e.state != working {
			t.forget(e)
		}
	}
}

// stats are numbers for metrics.
type stats struct {
	unfinished, ready, waiting, blocked, working int
	held                                         int
	oldest                                       time.Time // end of the oldest run not finished with
}

func (t *table) stats() stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := stats{held: t.held}
	for _, e := range t.runs {
		if e.state == settled {
			continue
		}
		if !e.done {
			s.unfinished++
			continue
		}
		if s.oldest.IsZero() || e.ended.Before(s.oldest) {
			s.oldest = e.ended
		}
		switch e.state {
		case ready:
			s.ready++
		case waiting:
			s.waiting++
		case blocked:
			s.blocked++
		case working:
			s.working++
		}
	}
	return s
}

// groupHeap puts groups already begun first, then those that ended last.
type groupHeap []*group

func (h groupHeap) Len() int { return len(h) }

func (h groupHeap) Less(i, j int) bool {
	a, b := h[i], h[j]
	if a.begun != b.begun {
		return a.begun
	}
	return a.ended.After(b.ended)
}

func (h groupHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *groupHeap) Push(x any) {
	g := x.(*group)
	g.index = len(*h)
	*h = append(*h, g)
}

// Pop implements heap.Interface.
func (h *groupHeap) Pop() any {
	old := *h
	g := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	g.index = -1
	return g
}
