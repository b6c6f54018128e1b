package gate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"assay.dev/assay/attest/predicate"
	"assay.dev/assay/policy"
	"assay.dev/assay/report"
	"assay.dev/assay/verify"
)

// Outcome counts what came of a run.
type Outcome struct {
	Passed, Refused, Unchecked int
}

// Stream judges every component of a snapshot, which must be Complete, and hands
// entries to emit in the snapshot's order, each index followed by its images. It
// fails only where emit does or the context ends; what cannot be checked is an
// entry. Emit is called by one goroutine at a time.
func (g *Gate) Stream(ctx context.Context, s *policy.Snapshot, emit func(report.Entry) error) (Outcome, error) {
	var out Outcome
	images, err := g.images(ctx, s)
	if err != nil {
		return out, err
	}
	whole := &policy.Snapshot{Application: s.Application, Artifacts: s.Artifacts}
	g.mu.Lock()
	for i := range images {
		whole.Components = append(whole.Components, images[i].component)
		if images[i].err == nil {
			g.evidence.expect(images[i].ref)
		}
	}
	g.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := 0
	err = inOrder(ctx, len(images), g.workers(), func(i int) report.Entry {
		e := g.judge(ctx, &images[i], whole)
		images[i] = image{}
		return e
	}, func(e report.Entry) error {
		switch {
		case e.Passed():
			out.Passed++
		case e.Unchecked():
			out.Unchecked++
		default:
			out.Refused++
		}
		if done++; g.Progress != nil {
			g.Progress(done, len(images))
		}
		return emit(e)
	})
	return out, err
}

// images expands all components, several at a time.
func (g *Gate) images(ctx context.Context, s *policy.Snapshot) ([]image, error) {
	lists := make([][]image, 0, len(s.Components))
	n := 0
	seen := new(resolved)
	err := inOrder(ctx, len(s.Components), g.workers(), func(i int) []image {
		list, err := g.expand(ctx, s.Components[i], seen)
		if err != nil {
			c := s.Components[i]
			list = []image{{component: c, ref: c.ContainerImage, err: err}}
		}
		return list
	}, func(list []image) error {
		lists = append(lists, list)
		if n += len(list); n > maxComponents {
			return fmt.Errorf("the snapshot has more than %d images with those of its indexes", maxComponents)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := make([]image, 0, n)
	for _, l := range lists {
		out = append(out, l...)
	}
	return out, nil
}

// inOrder runs work for 0 … n-1 with so many workers and gives the results to
// take in order. At most twice as many results as workers wait for their turn.
func inOrder[T any](ctx context.Context, n, workers int, work func(int) T, take func(T) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type job struct {
		i   int
		out chan T
	}
	jobs := make(chan job)
	turns := make(chan chan T, workers)
	var wg sync.WaitGroup
	for range min(workers, n) {
		wg.Go(func() {
			for j := range jobs {
				j.out <- work(j.i)
			}
		})
	}
	go func() {
		defer close(turns)
		defer close(jobs)
		for i := range n {
			out := make(chan T, 1)
			select {
			case turns <- out:
			case <-ctx.Done():
				return
			}
			select {
			case jobs <- job{i, out}:
			case <-ctx.Done():
				return
			}
		}
	}()
	taken := 0
	var err error
	for out := range turns {
		if err != nil {
			continue // until the producer has noticed
		}
		select {
		case v := <-out:
			// A worker finishes what it began; what it was told late is no result.
			if err = context.Cause(ctx); err == nil {
				err = take(v)
			}
			taken++
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if err != nil {
			cancel()
		}
	}
	wg.Wait()
	if err == nil && taken < n {
		err = context.Cause(ctx)
	}
	return err
}

// judge is one image's entry.
func (g *Gate) judge(ctx context.Context, m *image, whole *policy.Snapshot) report.Entry {
	e := report.Entry{Image: m.ref, Component: m.component.Name, Parent: m.parent, Aside: m.aside}
	if m.err != nil {
		e.Err = m.err
		return e
	}
	if g.accepted(ctx, m, whole, &e) {
		return e
	}
	got, err := g.found(ctx, m.ref)
	var none *verify.NoEvidenceError
	switch {
	case errors.As(err, &none):
		e.Rejected = none.Rejected
		e.Verdict, e.Err = g.refusal(m, none)
		return e
	case err != nil:
		e.Err = err
		return e
	}
	defer g.release(m.ref)
	e.Rejected, e.Signers = got.Rejected(), signers(got.Evidence)
	c, err := g.context(m, got, whole)
	if err != nil {
		e.Err = err
		return e
	}
	e.Verdict, e.Err = g.evaluate(ctx, got.Evidence, c)
	if g.Issue != nil && e.Passed() {
		if err := g.Issue(ctx, got.Evidence, e.Verdict, c); err != nil {
			e.Verdict, e.Err = nil, fmt.Errorf("%s passes, but the summary that says so could not be made: %w", m.ref, err)
		}
	}
	return e
}

// accepted says whether the entry is done: by an earlier verdict, or because looking
// for one failed.
func (g *Gate) accepted(ctx context.Context, m *image, whole *policy.Snapshot, e *report.Entry) bool {
	if g.Accept == nil {
		return false
	}
	c, err := g.context(m, &found{}, whole)
	if err == nil {
		e.Verdict, e.Accepted, err = g.Accept(ctx, m.ref, c)
	}
	if err != nil {
		e.Verdict, e.Err = nil, err
		return true
	}
	if e.Verdict == nil {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// Nobody will ask for its evidence on this component's account.
	if g.evidence.left[m.ref]--; g.evidence.left[m.ref] <= 0 {
		delete(g.evidence.left, m.ref)
	}
	return true
}

// context is what the policy is told beside the evidence.
func (g *Gate) context(m *image, f *found, whole *policy.Snapshot) (policy.Context, error) {
	c := g.Context
	c.Component, c.Parent, c.Digests = m.component.Name, m.parent, m.digests
	c.ImageConfig, c.ImageFiles, c.ImageSource = f.config, f.files, m.component.Source
	if whole != nil {
		c.Snapshot = whole
	}
	c.Logs = append(g.Log.Names(), c.Logs...)
	for _, w := range g.Log.Witnesses {
		c.Witnesses = append(c.Witnesses, w.Name)
	}
	if !g.AttestationTime {
		return c, nil
	}
	var err error
	c.EffectiveTime, err = finished(f.Evidence)
	return c, err
}

func (g *Gate) now(c policy.Context) time.Time {
	if c.Now.IsZero() {
		return time.Now()
	}
	return c.Now
}

// Codes of what is refused before any rule is asked, as Conforma calls them.
const (
	CodeSignature  = "builtin.image.signature_check"
	CodeProvenance = "builtin.attestation.signature_check"
)

// missingSignature is what package verify calls it.
const missingSignature = "image signature"

// refusal is the verdict on an image whose registry answered, and has nothing that
// verifies. No rule was asked.
func (g *Gate) refusal(m *image, none *verify.NoEvidenceError) (*policy.Verdict, error) {
	c := g.Context
	when := c.EffectiveTime
	if when.IsZero() || g.AttestationTime {
		when = g.now(c)
	}
	v := &policy.Verdict{
		Result: policy.Fail, Image: m.ref, Component: m.component.Name, EffectiveTime: when.UTC(),
		Policy:   policy.Identified{Name: g.Policy.Name(), Digest: g.Policy.Digest()},
		Warnings: []policy.Result{}, Successes: []policy.Result{},
		Digests: m.digests, Destination: c.Destination, Expiry: g.now(c),
		BackDated: when.Before(g.now(c)),
	}
	for _, what := range none.Missing {
		r := policy.Result{
			Code: CodeSignature, Title: "The image is signed by somebody who is trusted",
			Msg:      "No " + what + " verified with " + tried(none),
			Solution: "Sign the image with a trusted key, or trust the one that signed it.",
			Details:  map[string]any{"found": fmt.Sprintf("%d pieces of evidence", none.Found)},
		}
		if what != missingSignature {
			r.Code, r.Title = CodeProvenance, "The image has provenance by somebody who is trusted"
			r.Solution = "Have its builder attest the image, or trust the key or identity that attested it."
		}
		var why []any
		for i, x := range none.Rejected {
			if i == maxReasons {
				why = append(why, fmt.Sprintf("and %d more", len(none.Rejected)-i))
				break
			}
			why = append(why, fmt.Sprintf("%s %s: %s", x.Format, x.Digest, x.Reason))
		}
		switch {
		case len(why) > 0:
			r.Details["because"] = why
		case none.Found == 0:
			r.Details["because"] = "nothing is attached to this digest; was the image built elsewhere, rebuilt, or copied without its evidence?"
		}
		v.Violations = append(v.Violations, r)
	}
	if len(v.Violations) == 0 {
		return nil, none
	}
	for _, q := range policy.Questions() {
		v.Questions = append(v.Questions, policy.Answer{Question: q, Answer: policy.Unknown, Messages: []string{"There is no evidence that could answer it"}})
	}
	return v, nil
}

// maxReasons is how many rejected pieces a violation spells out.
const maxReasons = 10

func tried(none *verify.NoEvidenceError) string {
	list := func(names []string) string {
		if len(names) > 5 {
			names = append(names[:5:5], fmt.Sprintf("%d more", len(names)-5))
		}
		return strings.Join(names, ", ")
	}
	var out []string
	if len(none.Keys) > 0 {
		out = append(out, "the trusted keys ("+list(none.Keys)+")")
	}
	if len(none.Identities) > 0 {
		out = append(out, "the trusted identities ("+list(none.Identities)+")")
	}
	return strings.Join(out, " or ")
}

// signers lists whose word the verdict rests on, each once.
func signers(e *verify.Evidence) []report.Signer {
	var out []report.Signer
	seen := map[report.Signer]bool{}
	add := func(what string, id verify.Identity) {
		s := report.Signer{Of: what, Name: id.KeyName, Key: id.Key, Grade: string(id.Grade)}
		if c := id.Certificate; c != nil {
			// The key of a certificate signs once and says nothing.
			s.Name, s.Key, s.Identity, s.Issuer = id.TrustedAs, "", c.SAN, c.Issuer
		}
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	for _, s := range e.Signatures() {
		add("signature", s.Identity)
	}
	for _, s := range e.Statements() {
		add(s.PredicateType, s.Identity)
	}
	return out
}

// finished is when the last build ended that provenance tells of.
func finished(e *verify.Evidence) (time.Time, error) {
	var last time.Time
	for _, s := range e.Statements() {
		var t time.Time
		switch p := s.Typed.(type) {
		case *predicate.Provenance02:
			if p.Metadata != nil {
				t = p.Metadata.BuildFinishedOn
			}
		case *predicate.Provenance1:
			t = p.RunDetails.Metadata.FinishedOn
		case *predicate.Provenance01:
			if p.Metadata != nil {
				t = p.Metadata.BuildFinishedOn
			}
		}
		if t.After(last) {
			last = t
		}
	}
	if last.IsZero() {
		return last, fmt.Errorf("%s: no provenance says when its build ended, which the effective time is to be; give a time instead", e.Ref())
	}
	return last, nil
}
