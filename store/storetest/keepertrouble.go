package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
)

// Keepers of several processes, each with a run of its own, all about one image.
func concurrentKeepers(t *testing.T, k place) {
	const writers = 5
	if k.OneWriter {
		t.Skip("this place cannot keep writers apart")
	}
	var (
		wg    sync.WaitGroup
		image = k.Image(t, "shared")
		all   [writers][]store.Record
		out   [writers][]store.Outcome
	)
	for i := range writers {
		all[i] = k.records(t, NewRun("PipelineRun"), fmt.Sprint("writer ", i), image, NewRecordSigner(t))
	}
	for i := range writers {
		keeper := k.open(t)
		wg.Go(func() { out[i] = keeper.Keep(context.WithoutCancel(t.Context()), all[i]) })
	}
	wg.Wait()
	for i := range writers {
		for j, o := range out[i] {
			if o.Err != nil {
				t.Errorf("writer %d, record %d: %v", i, j, o.Err)
			} else if len(o.Annotations) > 0 {
				k.Apply(t, all[i][j].Run, o.Annotations)
			}
		}
		k.check(t, 1, all[i]...)
	}
}

// Two observers by mistake: the same record at once. One at least must be there,
// whole; places that know names hold one.
func concurrentRepeats(t *testing.T, k place) {
	const writers = 4
	if k.OneWriter {
		t.Skip("this place cannot keep writers apart")
	}
	var (
		wg    sync.WaitGroup
		s     = NewRecordSigner(t)
		run   = NewRun("TaskRun")
		image = k.Image(t, "raced")
		all   [writers][]store.Record
		out   [writers][]store.Outcome
	)
	for i := range writers {
		all[i] = k.records(t, run, "raced", image, s)
	}
	for i := range writers {
		keeper := k.open(t)
		wg.Go(func() { out[i] = keeper.Keep(context.WithoutCancel(t.Context()), all[i]) })
	}
	wg.Wait()
	for i := range writers {
		for j, o := range out[i] {
			if o.Err != nil {
				t.Errorf("writer %d, record %d: %v", i, j, o.Err)
			} else if len(o.Annotations) > 0 {
				k.Apply(t, all[i][j].Run, o.Annotations)
			}
		}
	}
	for j, r := range all[0] {
		kept, ok := k.find(t, r)
		if !ok {
			continue
		}
		whole := 0
		for _, f := range kept {
			for i := range writers {
				whole += len(k.match(t, all[i][j], f))
			}
		}
		if whole != len(kept) || whole == 0 {
			t.Errorf("%s: %d kept, %d of them a writer's; want all, and one at least", r.Key, len(kept), whole)
		}
	}
}

func cancelled(t *testing.T, k place) {
	records := k.records(t, NewRun("TaskRun"), "cancelled", k.Image(t, "cancelled"), NewRecordSigner(t))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for i, o := range k.open(t).Keep(ctx, records) {
		if !errors.Is(o.Err, context.Canceled) || store.ClassOf(o.Err) != store.Transient {
			t.Errorf("record %d: %+v; want a transient error of the context", i, o)
		}
	}
	k.mustKeep(t, k.open(t), records...)
	k.check(t, 1, records...)
}

func down(t *testing.T, k place) {
	if k.Down == nil {
		t.Skip("this place is never down")
	}
	outage(t, k, k.Down, store.Transient)
}

func denied(t *testing.T, k place) {
	if k.Deny == nil {
		t.Skip("this place knows no refusal")
	}
	outage(t, k, k.Deny, store.Configuration)
}

// outage begins once before the keeper's first word with the place and once
// after, and ends.
func outage(t *testing.T, k place, outage func(on bool), want store.Class) {
	s := NewRecordSigner(t)
	used := k.open(t)
	k.mustKeep(t, used, k.records(t, NewRun("TaskRun"), "before", k.Image(t, "before"), s)...)
	records := k.records(t, NewRun("PipelineRun"), "during", k.Image(t, "during"), s)
	outage(true)
	for name, keeper := range map[string]func() store.Keeper{
		"used": func() store.Keeper { return used }, "fresh": func() store.Keeper { return k.open(t) },
	} {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		for i, o := range keeper().Keep(ctx, records) {
			if o.Err == nil || store.ClassOf(o.Err) != want {
				t.Errorf("%s keeper, record %d: %+v (%s); want a %s error", name, i, o, store.ClassOf(o.Err), want)
			}
		}
		cancel()
	}
	outage(false)
	k.mustKeep(t, used, records...)
	often := 1
	if k.Repeats {
		often = 3
	}
	k.check(t, often, records...)
}

func tooLarge(t *testing.T, k place) {
	if k.TooLarge == 0 {
		t.Skip("nothing is too large for this place")
	}
	s := NewRecordSigner(t)
	run, image := NewRun("PipelineRun"), k.Image(t, "large")
	records := k.records(t, run, "small", image, s)
	large := StatementRecord(t, run, strings.Repeat("x", k.TooLarge), []intoto.Subject{ImageSubject(image)}, s)
	large.Key += "-large"
	out := k.keep(t, k.open(t), append([]store.Record{large}, records...)...)
	if o := out[0]; o.Err == nil || store.ClassOf(o.Err) != store.Permanent {
		t.Errorf("%d bytes: %+v (%s); want a permanent error", k.TooLarge, o, store.ClassOf(o.Err))
	}
	for i, o := range out[1:] {
		if o.Err != nil {
			t.Errorf("small record %d beside the large one: %v", i, o.Err)
		}
	}
	k.check(t, 1, records...)
}
