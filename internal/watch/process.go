package watch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/s2"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"assay.dev/assay/internal/watch/kubeapi"
	"assay.dev/assay/internal/watch/scan"
	"assay.dev/assay/provenance"
)

// attempt is one go at a run, from its object to its mark:
//
//	read ─▶ children ─▶ state ─▶ sign ─▶ log ─▶ keep ─▶ mark
//
// Each step that fails leaves a fault, and the others go on with what they have:
// a store that is down does not keep the others from having the record. The mark
// is written only when there is no fault.
type attempt struct {
	o    *Observer
	s    *session
	job  *job
	memo *memo

	have     map[string]string // the run's annotations
	refusals []refusal         // of parts of the run; see refused
	faults   []fault
	notes    map[string]string // annotations to set with the mark
}

// verdict is how an attempt ended.
type verdict int

const (
	marked  verdict = iota // the run carries its mark
	dropped                // nothing to mark: gone, or marked by somebody else
	again                  // there are faults that time or people can mend
	wait                   // children are not ready
)

// process makes one attempt and files the run accordingly.
func (o *Observer) process(ctx context.Context, j *job) {
	s := o.enter()
	defer s.users.Done()
	ctx, span := o.tracer.Start(ctx, "run", trace.WithTimestamp(o.startOf(j)), trace.WithAttributes(
		attribute.String("assay.run.kind", j.kind), attribute.String("k8s.namespace.name", j.namespace),
		attribute.String("assay.run.name", j.name), attribute.String("assay.run.uid", j.uid),
		attribute.Int("assay.attempt", j.attempts+1),
	))
	defer span.End()
	if !j.ended.IsZero() {
		_, waited := o.tracer.Start(ctx, "queued", trace.WithTimestamp(o.startOf(j)))
		waited.End()
	}
	a := &attempt{o: o, s: s, job: j, memo: j.memo, notes: map[string]string{}}
	if a.memo == nil {
		a.memo = &memo{}
	}
	v := a.run(ctx)
	if len(a.faults) > 0 {
		span.SetStatus(codes.Error, a.faults[0].err.Error())
	}
	switch v {
	case marked:
		o.finished(j, a)
		o.table.done(j.uid, true)
	case dropped:
		o.table.done(j.uid, false)
	case wait:
		o.table.retry(j.uid, o.waitPause(j), a.memo, nil, j.raw, true)
	case again:
		o.retry(ctx, j, a)
	}
}

// startOf is when a run ended; now, where nobody says or a clock went wrong.
func (o *Observer) startOf(j *job) time.Time {
	if now := o.cfg.Now(); j.ended.IsZero() || j.ended.After(now) {
		return now
	}
	return j.ended
}

// run makes the attempt.
func (a *attempt) run(ctx context.Context) verdict {
	if v, ok := a.prepare(ctx); !ok {
		return v
	}
	a.o.inWork.Store(a.job.uid, a.have)
	defer a.o.inWork.Delete(a.job.uid)
	a.sign(ctx)
	a.o.phase("signed")
	a.log(ctx)
	a.o.phase("logged")
	a.keep(ctx)
	a.o.phase("kept")
	if len(a.faults) > 0 {
		return again
	}
	if a.job.gone {
		a.o.metrics.deleted.Inc()
		a.o.log.Info("run was deleted before it could be marked; what it made is stored", "run", a.job.head.String(), "uid", a.job.uid)
		return dropped
	}
	return a.mark(ctx)
}

// prepare comes by the records: those of the attempt before, or new ones of the
// run. Not ok: the verdict is final for this attempt.
func (a *attempt) prepare(ctx context.Context) (verdict, bool) {
	if a.memo.whole && a.memo.session == a.s {
		return a.resume(ctx)
	}
	session := a.s
	in, v, ok := a.gather(ctx)
	if !ok {
		return v, false
	}
	a.o.phase("gathered")
	a.hints(in)
	wants, refused := recordsOf(in, a.s.cfg, a.s.plan)
	a.refusals = append(a.refusals, refused...)
	// What is left of an earlier attempt and no longer asked for goes.
	records := make([]*made, 0, len(wants))
	for _, w := range wants {
		records = append(records, a.memo.take(w))
	}
	told := a.memo.told
	*a.memo = memo{records: records, session: session, refusals: a.refusals, notes: maps.Clone(a.notes), whole: true, told: told}
	a.o.phase("stated")
	return 0, true
}

// resume goes on with the records of the attempt before. Of the run only its
// annotations are read again. Should it be gone by now, its records are not.
func (a *attempt) resume(ctx context.Context) (verdict, bool) {
	a.refusals, a.notes = a.memo.refusals, maps.Clone(a.memo.notes)
	object, err := a.object(ctx)
	if err == nil {
		var h head
		if h, err = readHead(a.job.kind, object); err == nil {
			a.job.version = h.version
			a.have, err = readAnnotations(object)
		}
	}
	switch {
	case errors.Is(err, errGone):
		a.job.gone = true
	case err != nil:
		a.fail("api", "payload_creation", apiClass(err))
		return again, false
	}
	return 0, true
}

// refused are all reasons for which the run cannot be marked as signed.
func (a *attempt) refused() []refusal {
	out := slices.Clone(a.refusals)
	for _, m := range a.memo.records {
		for _, r := range []*refusal{m.fatal, m.unlogged} {
			if r != nil {
				out = append(out, *r)
			}
		}
	}
	return out
}

// gather decodes the run and fetches its children. Not ok: the verdict is final
// for this attempt.
func (a *attempt) gather(ctx context.Context) (in provenance.Input, v verdict, ok bool) {
	ctx, span := a.o.tracer.Start(ctx, "gather")
	defer span.End()
	object, err := a.object(ctx)
	switch {
	case errors.Is(err, errGone):
		a.o.metrics.deleted.Inc()
		a.o.log.Warn("run was deleted before it was looked at", "run", a.job.head.String(), "uid", a.job.uid)
		return in, dropped, false
	case err != nil:
		a.fail("api", "payload_creation", apiClass(err))
		return in, again, false
	}
	if a.job.kind == "TaskRun" {
		tr := &v1.TaskRun{}
		if err := decode(object, tr); err != nil {
			return a.unreadable(in, err)
		}
		tr.APIVersion, tr.Kind = "tekton.dev/v1", "TaskRun"
		a.have, a.job.version = maps.Clone(tr.Annotations), tr.ResourceVersion
		forgetOurs(&tr.ObjectMeta, true)
		return provenance.OfTaskRun(tr), 0, true
	}
	pr := &v1.PipelineRun{}
	if err := decode(object, pr); err != nil {
		return a.unreadable(in, err)
	}
	pr.APIVersion, pr.Kind = "tekton.dev/v1", "PipelineRun"
	// Should the run have changed since, the mark conflicts and is written anew.
	a.have, a.job.version = maps.Clone(pr.Annotations), pr.ResourceVersion
	forgetOurs(&pr.ObjectMeta, true)
	c, err := a.children(ctx, pr)
	switch {
	case err != nil:
		a.fail("api", "payload_creation", apiClass(err))
		return in, again, false
	case len(c.waiting) > 0 || len(c.unmarked) > 0:
		a.o.log.Debug("waiting for children", "run", a.job.head.String(), "unfinished", c.waiting, "unmarked", c.unmarked)
		return in, wait, false
	}
	if len(c.missing) > 0 {
		a.notes[annotationMissing] = listing(c.missing)
		if a.job.attempts == 0 {
			a.o.metrics.missing.Add(float64(len(c.missing)))
		}
		a.o.log.Warn("children are missing from the statement", "run", a.job.head.String(), "uid", a.job.uid, "missing", listing(c.missing))
		a.o.events.warn(a.job.object(), reasonMissing, "children that no statement speaks of: "+listing(c.missing))
	}
	if why, refuse := c.refuses(a.s.cfg); refuse {
		a.refusals = append(a.refusals, refusal{"payload_creation", why})
		a.s = a.s.withoutPipelineRuns()
	}
	return c.input, 0, true
}

// unreadable refuses a run whose object Tekton's own types cannot read.
func (a *attempt) unreadable(in provenance.Input, err error) (provenance.Input, verdict, bool) {
	a.refusals = append(a.refusals, refusal{"payload_creation", "the run cannot be read as Tekton's types have it: " + err.Error()})
	if a.job.gone {
		return in, dropped, false
	}
	return in, a.mark(context.WithoutCancel(context.Background())), false
}

// object is the run's JSON as it ended.
func (a *attempt) object(ctx context.Context) ([]byte, error) {
	if a.job.raw != nil {
		object, err := s2.Decode(nil, a.job.raw)
		if err != nil {
			return nil, fmt.Errorf("unpacking %s: %w", a.job.head, err)
		}
		return object, nil
	}
	if a.job.gone {
		return nil, errGone
	}
	var object []byte
	err := a.o.api.Get(ctx, a.job.resource(), a.job.namespace, a.job.name, func(body []byte) error {
		object = bytes.Clone(body)
		h, err := readHead(a.job.kind, body)
		if err == nil && h.uid != a.job.uid {
			return errGone
		}
		if err == nil {
			a.job.head = h
		}
		return err
	})
	if apierrors.IsNotFound(err) {
		err = errGone
	}
	return object, err
}

// decode reads an object into Tekton's types, whose own decoding is written for
// what passed admission and may panic on the rest.
func decode(data []byte, into any) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("decoding panicked: %v", p)
		}
	}()
	return json.Unmarshal(data, into)
}

// forgetOurs takes from an object of our own what we ourselves wrote on it: a
// statement about the same run must have the same bytes however often it was
// tried, or every attempt would be another statement. itself: it is the run that
// is stated, not a child.
func forgetOurs(m *metav1.ObjectMeta, itself bool) {
	m.ManagedFields = nil
	maps.DeleteFunc(m.Annotations, func(key, _ string) bool {
		return strings.HasPrefix(key, ownPrefix) || itself && key == annotationRetries
	})
	if itself {
		m.Finalizers, m.ResourceVersion = nil, ""
	}
}

// maxFetched bounds how many children without the usual label are fetched one by
// one.
const maxFetched = 1000

// children fetches the PipelineRun's TaskRuns: in one list by label, from the
// API server's cache, which is good enough since what ended no longer changes.
// Only what that does not answer is asked for again, in full consistency, and
// then by name.
func (a *attempt) children(ctx context.Context, pr *v1.PipelineRun) (children, error) {
	unmarked := func(tr *v1.TaskRun) bool {
		signed := tr.Annotations[annotationSigned]
		return signed != "true" && signed != "failed" && !a.job.marked[tr.Name]
	}
	if a.s.plan.taskRuns != allTaskRuns {
		unmarked = nil
	}
	if len(pr.Status.ChildReferences) == 0 {
		return chooseChildren(pr, nil, nil, unmarked), nil
	}
	var found []*v1.TaskRun
	var c children
	labelled := len(validation.IsValidLabelValue(pr.Name)) == 0
	for _, version := range []string{"0", ""} {
		if !labelled {
			c = chooseChildren(pr, nil, nil, unmarked)
			break
		}
		q := url.Values{"labelSelector": {labelPipelineRun + "=" + pr.Name}}
		if version != "" {
			q.Set("resourceVersion", version)
		}
		found = found[:0]
		err := a.o.api.List(ctx, kubeapi.TaskRuns, pr.Namespace, q, func(body []byte) (err error) {
			found, err = decodeChildren(body, string(pr.UID), found)
			return err
		})
		if err != nil {
			return children{}, fmt.Errorf("listing the TaskRuns of %s: %w", a.job.head, err)
		}
		c = chooseChildren(pr, found, nil, unmarked)
		if len(c.absent) == 0 && len(c.waiting) == 0 {
			return c, nil // where some are not marked, the watch will tell
		}
	}
	gone := map[string]string{}
	for i, name := range c.absent {
		if i >= maxFetched {
			gone[name] = "not looked for: more than " + strconv.Itoa(maxFetched) + " children without label " + labelPipelineRun
			continue
		}
		tr := &v1.TaskRun{}
		err := a.o.api.Get(ctx, kubeapi.TaskRuns, pr.Namespace, name, func(body []byte) error { return decode(body, tr) })
		switch {
		case apierrors.IsNotFound(err):
			gone[name] = "deleted"
		case err != nil:
			return children{}, fmt.Errorf("reading child %s of %s: %w", name, a.job.head, err)
		case !controlledBy(tr, pr):
			gone[name] = "the TaskRun of that name belongs to somebody else"
		default:
			tr.APIVersion, tr.Kind = "tekton.dev/v1", "TaskRun"
			forgetOurs(&tr.ObjectMeta, false)
			found = append(found, tr)
		}
	}
	return chooseChildren(pr, found, gone, unmarked), nil
}

// decodeChildren reads the items of a list that the PipelineRun controls. Those
// of others, left by an earlier run of its name, are not even decoded.
func decodeChildren(list []byte, owner string, into []*v1.TaskRun) ([]*v1.TaskRun, error) {
	c := scan.New(list)
	err := c.Object(func(key []byte) error {
		if string(key) != "items" {
			return c.Skip()
		}
		return c.Array(func() error {
			raw, err := c.Raw()
			if err != nil {
				return err
			}
			if !bytes.Contains(raw, []byte(owner)) {
				return nil
			}
			tr := &v1.TaskRun{}
			if err := decode(raw, tr); err != nil {
				return err
			}
			tr.APIVersion, tr.Kind = "tekton.dev/v1", "TaskRun"
			forgetOurs(&tr.ObjectMeta, false)
			into = append(into, tr)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("reading a list of TaskRuns: %w", err)
	}
	return into, nil
}

// hints reports malformed type hints to the run's owner.
func (a *attempt) hints(in provenance.Input) {
	if a.o.cfg.Hints == nil {
		return
	}
	bad := a.o.cfg.Hints(in)
	if len(bad) == 0 {
		return
	}
	text := make([]text, len(bad))
	for i, b := range bad {
		text[i] = textOf(b)
	}
	all := listing(text)
	a.notes[annotationHints] = all
	if a.job.attempts == 0 {
		a.o.metrics.badHints.Add(float64(len(bad)))
		a.o.log.Warn("type hints are malformed", "run", a.job.head.String(), "uid", a.job.uid, "hints", all)
	}
	a.o.events.warn(a.job.object(), reasonHints, "type hints that nobody can read: "+all)
}

type text string

func (t text) String() string { return string(t) }

// textOf is one line of bounded length.
func textOf(s string) text {
	s = strings.ToValidUTF8(strings.Join(strings.Fields(s), " "), "?")
	const most = 800
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return text(s)
}

func (a *attempt) fail(trouble, metric string, err error) {
	a.faults = append(a.faults, fault{trouble: trouble, metric: metric, err: err})
}

// refuse notes that a record can never be kept.
func (a *attempt) refuse(m *made, metric, why string) {
	m.fatal = &refusal{metric, why}
}

// withoutPipelineRuns is the session without statements about PipelineRuns:
// images of a run that is refused are signed all the same.
func (s *session) withoutPipelineRuns() *session {
	cfg := s.cfg
	cfg.PipelineRuns.Storage = nil
	return &session{cfg: cfg, plan: s.plan, keepers: s.keepers, log: s.log}
}

// mark writes the run's mark. Whoever reads it may rely on everything else.
func (a *attempt) mark(ctx context.Context) verdict {
	ctx, span := a.o.tracer.Start(ctx, "mark")
	defer span.End()
	// Begun, the mark is written even if we are asked to stop.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	set := maps.Clone(a.notes)
	for _, m := range a.memo.records {
		maps.Copy(set, m.annotations)
		for _, e := range m.record.Log {
			if e.URL != "" {
				set[annotationTransparency] = e.URL
			}
		}
		if len(m.skipped) > 0 {
			a.skippedSubjects(set)
		}
	}
	a.fit(set)
	set[annotationSigned] = "true"
	if len(a.refused()) > 0 {
		set[annotationSigned] = "failed"
		set[annotationReason] = a.why()
	}
	a.o.phase("marking")
	err := a.o.annotate(ctx, a.job.head, a.have, set, false)
	switch {
	case errors.Is(err, errGone):
		a.o.metrics.deleted.Inc()
		a.o.log.Info("run was deleted before it could be marked; what it made is stored", "run", a.job.head.String(), "uid", a.job.uid)
		return dropped
	case errors.Is(err, errTaken):
		a.o.markedElsewhere(a.job.head)
		a.o.log.Warn("somebody else marked the run while we worked on it", "run", a.job.head.String(), "uid", a.job.uid)
		a.o.events.warn(a.job.object(), reasonTaken, "somebody else, Tekton Chains perhaps, marked this run while the observer worked on it; what the observer made of it is stored, and the mark is left as it is")
		return dropped
	case err != nil:
		a.fail("api", "marking", apiClass(err))
		return again
	}
	a.o.phase("marked")
	return marked
}

func (a *attempt) skippedSubjects(set map[string]string) {
	var all []text
	for _, m := range a.memo.records {
		for _, s := range m.skipped {
			if t := textOf(s); !slices.Contains(all, t) {
				all = append(all, t)
			}
		}
	}
	if set[annotationSkipped] = listing(all); set[annotationSkipped] == a.have[annotationSkipped] {
		return
	}
	a.o.log.Info("subjects without a place in storage", "run", a.job.head.String(), "uid", a.job.uid, "skipped", set[annotationSkipped])
	a.o.events.warn(a.job.object(), reasonSkipped, "subjects that a back end has no place for: "+set[annotationSkipped])
}

// why is the reason of a refusal, for annotation and event.
func (a *attempt) why() string {
	var all []text
	for _, r := range a.refused() {
		if t := textOf(r.why); !slices.Contains(all, t) {
			all = append(all, t)
		}
	}
	return listing(all)
}

// fit makes the annotations fit Kubernetes' limit. A record too large for them
// is left to the other back ends that keep it; one without any is refused, as
// nobody can make the limit larger.
func (a *attempt) fit(set map[string]string) {
	size := func() int {
		all := maps.Clone(a.have)
		if all == nil {
			all = map[string]string{}
		}
		maps.Copy(all, set)
		// Room for what is written beside: the mark, its reason.
		return annotationSize(all) + 2048
	}
	for size() > maxAnnotations {
		var largest *made
		for _, m := range a.memo.records {
			if len(m.annotations) > 0 && (largest == nil || annotationSize(m.annotations) > annotationSize(largest.annotations)) {
				largest = m
			}
		}
		if largest == nil {
			return // the run's own annotations; the API server decides
		}
		for k := range largest.annotations {
			delete(set, k)
		}
		a.tooLarge(largest, fmt.Sprintf("%s needs %d bytes of annotations, and an object has room for %d in all",
			largest.record.Key, annotationSize(largest.annotations), maxAnnotations))
		largest.annotations = nil
	}
}

// tooLarge deals with a record that has no room on the object.
func (a *attempt) tooLarge(m *made, why string) {
	var others []string
	for _, name := range m.artifact.Storage {
		if name != "tekton" {
			others = append(others, name)
		}
	}
	if len(others) == 0 {
		a.refuse(m, "storage", why+"; configure another storage beside or instead of tekton (artifacts.*.storage: oci, for example)")
		return
	}
	m.elsewhere = why
	message := fmt.Sprintf("%s: it is kept by %s only", why, strings.Join(others, ", "))
	a.o.log.Info("record too large for annotations", "run", a.job.head.String(), "key", m.record.Key, "kept", others)
	a.o.events.warn(a.job.object(), reasonElsewhere, message)
}
