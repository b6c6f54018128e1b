package gateserver

import (
	"context"
	"errors"
	"sync"
	"time"

	"assay.dev/assay/policy"
)

// Bounds of what is kept for admission.
const (
	maxVerdicts = 4096
	// keptRefusal is how long a refusal is kept: whoever signs the image now should not
	// wait long, and a thousand Pods of one image should not ask a thousand times.
	keptRefusal = 15 * time.Second
)

// question is what a verdict answers.
type question struct {
	image  string // repo@sha256:…
	policy string
	trust  string
}

// answer is what admission has to know of a verdict.
type answer struct {
	image   string
	outcome policy.Outcome
	reasons []string // rules and messages, or causes
	warn    []string
	until   time.Time // kept until
}

// verdicts keeps answers, and has each question asked once at a time.
type verdicts struct {
	now     func() time.Time
	maxTime time.Duration
	slots   slots
	maxWait int // questions under way or waiting
	ctx     context.Context
	stop    context.CancelFunc

	mu      sync.Mutex // guards the below
	kept    map[question]answer
	order   []question // of kept, the oldest first
	flights map[question]*flight
}

// flight is a question that is being asked.
type flight struct {
	done   chan struct{}
	answer answer // once done is closed
}

func newVerdicts(concurrent int, maxTime time.Duration, now func() time.Time) *verdicts {
	v := &verdicts{now: now, maxTime: maxTime, slots: make(slots, concurrent), maxWait: maxAtOnce * concurrent, kept: map[question]answer{}, flights: map[question]*flight{}}
	v.ctx, v.stop = context.WithCancel(context.Background())
	return v
}

// Errors that are no verdict.
var (
	errBusy    = errors.New("too many images are being judged; try again")
	errWaiting = errors.New("the judgement is not over yet, and goes on; try again")
)

// get is the answer to a question, from before or by judge, and where it is from. Judge
// goes on when ctx ends, for maxTime at most, so that the next who asks need not begin
// anew. It fails when ctx ends, and where there is too much to do.
func (v *verdicts) get(ctx context.Context, q question, judge func(context.Context) answer) (a answer, from string, err error) {
	v.mu.Lock()
	if a, ok := v.kept[q]; ok {
		if v.now().Before(a.until) {
			v.mu.Unlock()
			return a, "kept", nil
		}
		v.forget(q)
	}
	f := v.flights[q]
	from = "shared"
	if f == nil {
		if len(v.flights) >= v.maxWait {
			v.mu.Unlock()
			return a, "", errBusy
		}
		from = "judged"
		f = &flight{done: make(chan struct{})}
		v.flights[q] = f
		go v.fly(q, f, judge)
	}
	v.mu.Unlock()
	select {
	case <-f.done:
		return f.answer, from, nil
	case <-ctx.Done():
		return a, "", errWaiting
	}
}

func (v *verdicts) fly(q question, f *flight, judge func(context.Context) answer) {
	ctx, cancel := context.WithTimeout(v.ctx, v.maxTime)
	defer cancel()
	f.answer = answer{image: q.image, outcome: policy.Unchecked, reasons: []string{errBusy.Error()}}
	defer func() {
		if p := recover(); p != nil {
			f.answer = answer{image: q.image, outcome: policy.Unchecked, reasons: []string{"the judgement broke off"}}
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		delete(v.flights, q)
		if f.answer.outcome != policy.Unchecked && v.now().Before(f.answer.until) {
			v.keep(q, f.answer)
		}
		close(f.done)
	}()
	select {
	case v.slots <- struct{}{}:
		defer func() { <-v.slots }()
	case <-ctx.Done():
		return
	}
	f.answer = judge(ctx)
}

func (v *verdicts) keep(q question, a answer) {
	if _, ok := v.kept[q]; !ok {
		if len(v.order) >= maxVerdicts {
			v.forget(v.order[0])
		}
		v.order = append(v.order, q)
	}
	v.kept[q] = a
}

func (v *verdicts) forget(q question) {
	delete(v.kept, q)
	for i, o := range v.order {
		if o == q {
			v.order = append(v.order[:i], v.order[i+1:]...)
			return
		}
	}
}
