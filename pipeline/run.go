package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/clock"

	"assay.dev/assay/plan"
)

// Executor is the other side of package plan's protocol.
type Executor interface {
	// Send hands over one command. An error means that the executor is gone.
	Send(plan.Command) error
	// Events delivers what the executor says, in order, and is closed when it
	// is gone. It is the same channel at every call.
	Events() <-chan plan.Event
}

// RunOptions say how to run. The zero value is ready for use.
type RunOptions struct {
	// Parallel bounds how many task attempts run at once; 0 means 4.
	Parallel int
	// Clock times the pipeline's own timeouts; nil means the real one.
	Clock clock.Clock
	// Progress is told what happens, by one goroutine; nil: nobody is.
	Progress func(Progress)
}

// Finished is a run that has ended, well or not.
type Finished struct {
	// PipelineRun is nil for a bare TaskRun.
	PipelineRun *v1.PipelineRun `json:"pipelineRun,omitempty"`
	// TaskRuns are in the order in which they were made.
	TaskRuns []*v1.TaskRun `json:"taskRuns"`
	// Succeeded says whether the run's condition is true.
	Succeeded bool `json:"succeeded"`
	// Reason and Message are the condition's.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	// Head is the digest of the ledger's last fact, as the executor told.
	Head string `json:"head"`
}

// ErrLost is returned, wrapped, when the executor failed or went away before
// the run was closed. What the run did is in the ledger, not with us.
var ErrLost = errors.New("executor lost")

// Run drives a resolved run to its end and returns it with the status that a
// Tekton controller would have written. A run that fails is a Finished, not an
// error. When ctx ends the run is cancelled: what is running is stopped, and
// the Finished says Cancelled; Run returns once the executor has closed the run.
func Run(ctx context.Context, r *Resolved, ex Executor, opts RunOptions) (*Finished, error) {
	if opts.Parallel <= 0 {
		opts.Parallel = 4
	}
	if opts.Clock == nil {
		opts.Clock = clock.RealClock{}
	}
	if opts.Progress == nil {
		opts.Progress = func(Progress) {}
	}
	x := &runner{
		ctx:      tektonContext(context.WithoutCancel(ctx), r.flags),
		r:        r,
		ex:       ex,
		clock:    opts.Clock,
		parallel: opts.Parallel,
		progress: opts.Progress,
		runs:     map[string]*taskRun{},
	}
	if err := x.open(); err != nil {
		return nil, err
	}
	if err := x.loop(ctx); err != nil {
		return nil, err
	}
	return x.close()
}

// runner is one run under way. All of it belongs to the goroutine of Run.
type runner struct {
	ctx      context.Context // with Tekton's configuration; never ends
	r        *Resolved
	ex       Executor
	clock    clock.Clock
	parallel int
	progress func(Progress)

	pr    *v1.PipelineRun     // nil for a bare TaskRun
	runs  map[string]*taskRun // by name
	order []*taskRun          // as made
	seen  time.Time           // when reconcile last looked at the clock
}

// open sends the specification and waits until the observer has it.
func (x *runner) open() error {
	opening := x.r.Plan()
	if err := x.ex.Send(plan.Command{Run: &opening}); err != nil {
		return fmt.Errorf("opening the run: %w: %w", ErrLost, err)
	}
	ev, ok := <-x.ex.Events()
	switch {
	case !ok:
		return fmt.Errorf("opening the run: %w", ErrLost)
	case ev.Error != "":
		return fmt.Errorf("opening the run: %w: %s", ErrLost, ev.Error)
	case ev.Ready == nil || ev.Ready.Run != x.r.id:
		return fmt.Errorf("opening the run: %w: it did not answer for run %s", ErrLost, x.r.id)
	}
	now := metav1.Time{Time: x.clock.Now()}
	if x.r.pipelineRun != nil {
		x.pr = x.r.pipelineRun.DeepCopy()
		x.pr.CreationTimestamp = now
		x.pr.Status.InitializeConditions(x.clock)
	} else {
		tr := x.r.taskRun.DeepCopy()
		tr.CreationTimestamp = now
		x.add(tr, x.r.task, "")
	}
	x.tell(Progress{Type: ProgressRun, Name: x.r.Name(), KeySeparation: ev.Ready.KeySeparation})
	return nil
}

func (x *runner) loop(ctx context.Context) error {
	interrupted := ctx.Done()
	for {
		if err := x.advance(); err != nil {
			return err
		}
		if x.ended() {
			return nil
		}
		// Only these change what can happen next; logs and steps do not.
		for again := false; !again; {
			timer, stop := x.deadline()
			select {
			case ev, ok := <-x.ex.Events():
				if !ok {
					stop()
					return fmt.Errorf("running %s: %w", x.r.Name(), ErrLost)
				}
				var err error
				if again, err = x.handle(ev); err != nil {
					stop()
					return err
				}
			case <-timer:
				again = true
			case <-interrupted:
				interrupted = nil
				if err := x.cancelRun(); err != nil {
					stop()
					return err
				}
				again = true
			}
			stop()
		}
	}
}

// advance makes the TaskRuns that are due and starts what there is room for,
// until nothing more happens by itself. A TaskRun can end without having
// started, when it turns out to be invalid.
func (x *runner) advance() error {
	for {
		if x.pr != nil && !x.pr.IsDone() {
			if err := x.reconcile(); err != nil {
				return err
			}
		}
		changed, err := x.startQueued()
		if err != nil {
			return err
		}
		if !changed {
			return nil
		}
	}
}

// ended: the run has its outcome and nothing of it is left to wait for.
func (x *runner) ended() bool {
	for _, t := range x.order {
		if !t.tr.IsDone() {
			return false
		}
	}
	return x.pr == nil || x.pr.IsDone()
}

// deadline is the next moment at which the pipeline times out.
func (x *runner) deadline() (<-chan time.Time, func()) {
	next, ok := x.nextTimeout()
	if !ok {
		return nil, func() {}
	}
	// Upstream wants it to have passed, not only to be reached.
	t := x.clock.NewTimer(max(next, 0) + time.Millisecond)
	return t.C(), func() { t.Stop() }
}

func (x *runner) nextTimeout() (time.Duration, bool) {
	if x.pr == nil || x.pr.IsDone() || x.pr.Status.StartTime == nil {
		return 0, false
	}
	var next time.Duration
	found := false
	consider := func(limit time.Duration, since time.Time) {
		if limit <= 0 || since.Add(limit).Before(x.seen) {
			return // none, or acted upon already
		}
		if left := limit - x.clock.Since(since); !found || left < next {
			next, found = left, true
		}
	}
	start := x.pr.Status.StartTime.Time
	consider(x.pr.PipelineTimeout(x.ctx), start)
	if t := x.pr.TasksTimeout(); t != nil {
		consider(t.Duration, start)
	}
	if t, began := x.pr.FinallyTimeout(), x.pr.Status.FinallyStartTime; t != nil && began != nil {
		consider(t.Duration, began.Time)
	}
	return next, found
}

// handle takes one event and says whether it may let something else start.
func (x *runner) handle(ev plan.Event) (again bool, err error) {
	switch {
	case ev.Error != "":
		return false, fmt.Errorf("running %s: %w: %s", x.r.Name(), ErrLost, ev.Error)
	case ev.Log != nil:
		x.tell(Progress{Type: ProgressLog, TaskRun: ev.Log.Task, Step: ev.Log.Step, Data: ev.Log.Data})
		return false, nil
	case ev.Step != nil:
		t, err := x.attempt(ev.Step.Task, ev.Step.Attempt)
		if err != nil {
			return false, err
		}
		return false, x.stepChanged(t, ev.Step)
	case ev.Done != nil:
		t, err := x.attempt(ev.Done.Task, ev.Done.Attempt)
		if err != nil {
			return false, err
		}
		return true, x.attemptDone(t, ev.Done)
	}
	return false, fmt.Errorf("running %s: %w: it sent an event that has no place here", x.r.Name(), ErrLost)
}

// attempt finds what an event is about. An executor that speaks of what it was
// not told to run is not one to go on with.
func (x *runner) attempt(name string, attempt int) (*taskRun, error) {
	t := x.runs[name]
	if t == nil || !t.running || t.attempt() != attempt {
		return nil, fmt.Errorf("running %s: %w: it speaks of attempt %d of %q, which it is not running", x.r.Name(), ErrLost, attempt, name)
	}
	return t, nil
}

// close ends the run at the executor and puts the result together.
func (x *runner) close() (*Finished, error) {
	f := &Finished{PipelineRun: x.pr}
	for _, t := range x.order {
		f.TaskRuns = append(f.TaskRuns, t.tr)
	}
	c := x.condition()
	f.Succeeded, f.Reason, f.Message = c.IsTrue(), c.Reason, c.Message
	outcome := "failed"
	if f.Succeeded {
		outcome = "succeeded"
	}
	if err := x.ex.Send(plan.Command{Finish: &plan.Finish{Outcome: outcome, Reason: f.Reason}}); err != nil {
		return nil, fmt.Errorf("closing the run: %w: %w", ErrLost, err)
	}
	for ev := range x.ex.Events() {
		switch {
		case ev.Closed != nil:
			f.Head = ev.Closed.Head
			return f, nil
		case ev.Error != "":
			return nil, fmt.Errorf("closing the run: %w: %s", ErrLost, ev.Error)
		case ev.Log != nil:
			_, _ = x.handle(ev)
		default:
			return nil, fmt.Errorf("closing the run: %w: it sent an event that has no place here", ErrLost)
		}
	}
	return nil, fmt.Errorf("closing the run: %w", ErrLost)
}
