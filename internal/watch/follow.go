package watch

import (
	"context"
	"errors"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"assay.dev/assay/internal/watch/kubeapi"
)

// follower reads the runs of one selection off the watch and files them.
type follower struct {
	o      *Observer
	plan   plan
	sel    kubeapi.Selection
	round  uint64
	synced bool
}

// followers are the watches that a plan needs: one per kind and namespace.
func (o *Observer) followers(p plan) []*follower {
	namespaces := o.cfg.Namespaces
	if len(namespaces) == 0 {
		namespaces = []string{""}
	}
	var out []*follower
	add := func(sel kubeapi.Selection) {
		f := &follower{o: o, plan: p, sel: sel}
		o.health.set(f.check(), "not synced yet", false)
		// Work begins when everything there is has been told: before, nobody knows
		// what is newest, nor which TaskRuns a PipelineRun must wait for.
		o.table.pause(f.check(), true)
		out = append(out, f)
	}
	o.health.clearPrefix("watch ")
	o.table.unpause("watch ")
	for _, ns := range namespaces {
		if p.pipelineRuns {
			add(kubeapi.Selection{Resource: kubeapi.PipelineRuns, Namespace: ns})
		}
		switch p.taskRuns {
		case allTaskRuns:
			add(kubeapi.Selection{Resource: kubeapi.TaskRuns, Namespace: ns})
		case standalone:
			add(kubeapi.Selection{Resource: kubeapi.TaskRuns, Namespace: ns, Label: "!" + labelPipelineRun})
		}
	}
	return out
}

func (f *follower) check() string { return "watch " + f.sel.String() }

// blocks says whether PipelineRuns wait for their TaskRuns.
func (f *follower) blocks() bool { return f.plan.taskRuns == allTaskRuns }

// Begin implements kubeapi.Handler.
func (f *follower) Begin() { f.round++ }

// Synced implements kubeapi.Handler.
func (f *follower) Synced() {
	f.synced = true
	f.o.table.sweep(f.sel.String(), f.round)
	f.o.table.pause(f.check(), false)
	f.o.health.clear(f.check())
}

// Trouble implements kubeapi.Handler.
func (f *follower) Trouble(err error) {
	if err == nil {
		if f.synced {
			f.o.health.clear(f.check())
		}
		return
	}
	f.o.log.Warn("the API server cannot be followed", "what", f.sel.String(), "error", err)
	f.o.health.set(f.check(), err.Error(), false)
	if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
		// One namespace closed to us must not keep the others waiting.
		f.o.table.pause(f.check(), false)
	}
}

// Object implements kubeapi.Handler.
func (f *follower) Object(object []byte) {
	h, err := readHead(f.sel.Resource.Kind, object)
	if err != nil {
		f.o.log.Error("reading an object off the watch", "error", err)
		return
	}
	o := f.o
	s := o.enter()
	cfg := s.cfg
	s.users.Done()
	started := o.startedAt()
	if o.table.knows(h.uid) {
		started = time.Time{} // seen before it ended: it is not old, whatever clocks say
	}
	switch decide(h, cfg, f.plan, started) {
	case ignore:
		// What was ours to work on may have become somebody else's to mark.
		if h.marked() {
			if o.table.unclaimed(h) {
				o.markedElsewhere(h)
			}
			o.table.see(h, nil, f.sel.String(), f.round, f.blocks())
		}
	case release:
		o.table.see(h, nil, f.sel.String(), f.round, f.blocks())
		o.chore(func(ctx context.Context) { o.release(ctx, h) })
	case observe:
		o.table.see(h, nil, f.sel.String(), f.round, f.blocks())
	case protect:
		o.table.see(h, nil, f.sel.String(), f.round, f.blocks())
		o.table.protectLater(h, o.cfg.ProtectAfter, func() {
			o.chore(func(ctx context.Context) { o.protect(ctx, h.uid) })
		})
	case process:
		o.table.see(h, object, f.sel.String(), f.round, f.blocks())
	}
}

// Gone implements kubeapi.Handler.
func (f *follower) Gone(object []byte) {
	h, err := readHead(f.sel.Resource.Kind, object)
	if err != nil {
		f.o.log.Error("reading a deleted object off the watch", "error", err)
		return
	}
	f.o.table.lost(h, object)
}

// protectLater calls do once the run has lived for a while, counted from its
// creation, unless a call is under way already.
func (t *table) protectLater(h head, after time.Duration, do func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.runs[h.uid]
	if e == nil || e.protect != nil {
		return
	}
	e.protects = true
	// A clock that was set must not keep it from being protected.
	lived := min(max(t.now().Sub(h.created), 0), after)
	e.protect = time.AfterFunc(after-lived, do)
}

// unprotected returns a run that still needs a finalizer. Should giving it one
// fail, protectLater may be called again.
func (t *table) unprotected(uid string) (head, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.runs[uid]
	if e == nil {
		return head{}, false
	}
	e.protect = nil
	return e.head, e.state == idle && !e.done && !e.deleting && !e.gone && len(e.finalizers) == 0 && t.opts.owns(e.group())
}

// protect gives a run our finalizer, so that it cannot vanish before what it did
// is stored.
func (o *Observer) protect(ctx context.Context, uid string) {
	h, ok := o.table.unprotected(uid)
	if !ok {
		return
	}
	later := func() {
		h.created = o.cfg.Now()
		o.table.protectLater(h, 15*time.Second, func() {
			o.chore(func(ctx context.Context) { o.protect(ctx, uid) })
		})
	}
	if o.table.standing() {
		later()
		return
	}
	// Tekton changes a running object all the time, and the finalizer goes well
	// with every version of it.
	h.version = ""
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := o.annotate(ctx, h, nil, nil, true)
	switch {
	case err == nil, errors.Is(err, errGone), errors.Is(err, errTaken):
	case apierrors.IsForbidden(err) && ctx.Err() == nil:
		// Such as: the namespace is being terminated. Signing does not depend on it.
		o.log.Warn("setting the finalizer", "run", h.String(), "error", err)
	case ctx.Err() == nil:
		o.log.Warn("setting the finalizer", "run", h.String(), "error", err)
		later()
	}
}

// rebalanced goes on with what has become this replica's.
func (o *Observer) rebalanced() {
	for _, uid := range o.table.rebalance() {
		o.chore(func(ctx context.Context) { o.protect(ctx, uid) })
	}
}

// release takes our finalizer off a run that is being deleted.
func (o *Observer) release(ctx context.Context, h head) {
	if o.table.standing() {
		time.AfterFunc(5*time.Second, func() { o.chore(func(ctx context.Context) { o.release(ctx, h) }) })
		return
	}
	if !o.table.opts.owns(h.group()) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := o.dropFinalizer(ctx, h); err != nil && ctx.Err() == nil {
		o.log.Warn("removing the finalizer", "run", h.String(), "error", err)
		time.AfterFunc(15*time.Second, func() { o.chore(func(ctx context.Context) { o.release(ctx, h) }) })
	}
}

// standing says whether work is held back.
func (t *table) standing() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.paused) > 0
}

// knows says whether a run is in the table.
func (t *table) knows(uid string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.runs[uid] != nil
}
