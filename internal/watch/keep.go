package watch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"golang.org/x/sync/errgroup"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/intoto"
	"assay.dev/assay/store"
)

// Time limits of one step of one attempt. A store that hangs must not hold a
// worker for ever; what it was given and has not confirmed is given again.
const (
	signLimit = time.Minute
	logLimit  = 2 * time.Minute
	keepLimit = 5 * time.Minute
	// signers is how many records of one run are signed, or logged, at once: key
	// services answer in tens of milliseconds.
	signers = 8
)

// encodingBundle is the word of storage.oci.encoding-format for Sigstore bundles.
const encodingBundle = "sigstore-bundle"

// sign signs every record that is not signed yet.
func (a *attempt) sign(ctx context.Context) {
	ctx, span := a.o.tracer.Start(ctx, "sign")
	defer span.End()
	ctx, cancel := context.WithTimeout(ctx, signLimit)
	defer cancel()
	err := a.each(func(m *made) error {
		if len(m.record.Signatures) > 0 && (m.record.Signatures[0].Statement != nil || !a.bundled(m)) {
			return nil
		}
		sigs, err := a.signatures(ctx, m)
		switch {
		case err != nil && store.ClassOf(err) == store.Permanent:
			err = fmt.Errorf("signing %s: %w", m.record.Key, err)
			m.fatal = &refusal{"signing", err.Error()}
			a.o.metrics.fault(a.job.kind, fault{trouble: "signer", metric: "signing", err: err})
			return nil
		case err != nil:
			return fmt.Errorf("signing %s: %w", m.record.Key, err)
		case len(sigs) == 0:
			return store.As(store.Configuration, fmt.Errorf("signing %s: the signer gave no signature", m.record.Key))
		}
		m.record.Signatures = sigs
		a.o.metrics.created[a.job.kind].Inc()
		return nil
	})
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
		a.fail("signer", "signing", err)
	} else {
		a.o.well("signer")
	}
}

// bundled says whether a record is an image's that is kept as a Sigstore bundle,
// which holds a statement about the image and not a simple signing document.
func (a *attempt) bundled(m *made) bool {
	return m.record.Image != "" && a.s.cfg.Storage.OCIEncoding == encodingBundle && slices.Contains(m.artifact.Storage, "oci")
}

// signatures asks the signer for a record's.
func (a *attempt) signatures(ctx context.Context, m *made) ([]store.Signature, error) {
	set := signingSettings(a.s.cfg, m.artifact)
	sigs, err := a.o.signer.Sign(ctx, set, m.message())
	if err != nil || !a.bundled(m) {
		return sigs, err
	}
	_, digest, _ := strings.Cut(m.record.Image, "@")
	statement, err := intoto.ImageSignature(digest)
	if err != nil {
		return nil, store.As(store.Permanent, err)
	}
	second, err := a.o.signer.Sign(ctx, set, dsse.PAE(store.PayloadType, statement))
	if err != nil {
		return nil, err
	}
	for i := range sigs {
		// A key may have been replaced in between: both are then made anew.
		if i >= len(second) || second[i].KeyID != sigs[i].KeyID || !bytes.Equal(second[i].Cert, sigs[i].Cert) {
			return nil, errors.New("the key changed between the two signatures of the image")
		}
		sigs[i].Statement = second[i].Sig
	}
	return sigs, nil
}

// logs says whether this run's records go to the transparency log.
func (a *attempt) logs() bool {
	t := a.s.cfg.Transparency
	switch {
	case !t.Enabled || a.s.log == nil:
		return false
	case t.Manual:
		return a.have[annotationUpload] == "true" && a.have[annotationTransparency] == ""
	}
	return true
}

// log enters every signed record once.
func (a *attempt) log(ctx context.Context) {
	if !a.logs() {
		return
	}
	ctx, span := a.o.tracer.Start(ctx, "log")
	defer span.End()
	ctx, cancel := context.WithTimeout(ctx, logLimit)
	defer cancel()
	err := a.each(func(m *made) error {
		if m.logged || m.unlogged != nil || len(m.record.Signatures) == 0 {
			return nil
		}
		entries, err := a.s.log.Upload(ctx, m.record)
		if err != nil {
			err = fmt.Errorf("entering %s into the transparency log: %w", m.record.Key, err)
			if store.ClassOf(err) != store.Permanent {
				return err
			}
			m.unlogged = &refusal{"tlog", err.Error()}
			a.o.metrics.fault(a.job.kind, fault{trouble: "log", metric: "tlog", err: err})
			return nil
		}
		m.record.Log, m.logged = entries, true
		a.o.metrics.uploaded[a.job.kind].Inc()
		return nil
	})
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
		a.fail("log", "tlog", err)
	} else {
		a.o.well("log")
	}
}

// each calls do for every record, several at a time, and returns the worst of
// the errors: one that only people can mend tells more than one that passes.
func (a *attempt) each(do func(*made) error) error {
	var mu sync.Mutex
	var worst error
	var g errgroup.Group
	g.SetLimit(signers)
	for _, m := range a.memo.records {
		if m.fatal != nil {
			continue
		}
		g.Go(func() error {
			if err := do(m); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if worst == nil || store.ClassOf(err) > store.ClassOf(worst) {
					worst = err
				}
			}
			return nil
		})
	}
	_ = g.Wait()
	return worst
}

// keep hands the records to every back end that has not confirmed them, all back
// ends at once. A record that is to be logged goes to none before it is.
func (a *attempt) keep(ctx context.Context) {
	ctx, span := a.o.tracer.Start(ctx, "keep")
	defer span.End()
	due := map[string][]*made{}
	var order []string
	for _, m := range a.memo.records {
		if m.fatal != nil || len(m.record.Signatures) == 0 || a.logs() && !m.logged && m.unlogged == nil {
			continue
		}
		for _, name := range m.artifact.Storage {
			if m.has(name) {
				continue
			}
			if due[name] == nil {
				order = append(order, name)
			}
			due[name] = append(due[name], m)
		}
	}
	outcomes := make([][]store.Outcome, len(order))
	var g errgroup.Group
	for i, name := range order {
		g.Go(func() error {
			outcomes[i] = a.keepIn(ctx, name, due[name])
			return nil
		})
	}
	_ = g.Wait()
	for i, name := range order {
		a.file(name, due[name], outcomes[i])
		a.o.phase("kept:" + name)
	}
}

// keepIn hands records to one back end.
func (a *attempt) keepIn(ctx context.Context, name string, records []*made) (out []store.Outcome) {
	ctx, span := a.o.tracer.Start(ctx, "keep "+name)
	defer span.End()
	span.SetAttributes(attribute.Int("assay.records", len(records)))
	ctx, cancel := context.WithTimeout(ctx, keepLimit)
	defer cancel()
	// A back end that panics has confirmed nothing.
	defer func() {
		if p := recover(); p != nil {
			out = make([]store.Outcome, len(records))
			for i := range out {
				out[i].Err = fmt.Errorf("storage %s panicked: %v", name, p)
			}
		}
	}()
	// Registry credentials are those of a service account, and TaskRuns of one
	// PipelineRun may have several.
	out = make([]store.Outcome, len(records))
	done := make([]bool, len(records))
	for i, m := range records {
		if done[i] {
			continue
		}
		var list []store.Record
		var at []int
		for k := i; k < len(records); k++ {
			if !done[k] && records[k].record.Run.ServiceAccount == m.record.Run.ServiceAccount {
				done[k] = true
				list, at = append(list, records[k].record), append(at, k)
			}
		}
		got := a.s.keepers[name].Keep(ctx, list)
		for k, to := range at {
			if k < len(got) {
				out[to] = got[k]
			} else {
				out[to].Err = errors.New("the back end said nothing about this record")
			}
		}
	}
	return out
}

// file notes what one back end made of its records.
func (a *attempt) file(name string, records []*made, outcomes []store.Outcome) {
	well := true
	for i, m := range records {
		out := outcomes[i]
		if err := out.Err; err != nil {
			err = fmt.Errorf("storing %s in %s: %w", m.record.Key, name, err)
			f := fault{trouble: name, metric: "storage", err: err}
			switch {
			case f.class() != store.Permanent:
				well = false
				a.faults = append(a.faults, f)
			case name == "tekton":
				a.o.metrics.fault(a.job.kind, f)
				m.confirmed = append(m.confirmed, name)
				a.tooLarge(m, err.Error())
			default:
				a.o.metrics.fault(a.job.kind, f)
				a.refuse(m, "storage", err.Error())
			}
			continue
		}
		m.confirmed = append(m.confirmed, name)
		if len(out.Annotations) > 0 {
			m.annotations = out.Annotations
		}
		m.skipped = append(m.skipped, out.Skipped...)
		a.o.metrics.stored[a.job.kind].Inc()
		if out.Existing {
			a.o.metrics.existing.WithLabelValues(name).Inc()
		}
	}
	if well && len(records) > 0 {
		a.o.well(name)
	}
}
