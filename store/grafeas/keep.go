package grafeas

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	pb "github.com/grafeas/grafeas/proto/v1/grafeas_go_proto"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"assay.dev/assay/store"
)

const (
	// pageSize is how many occurrences a server is asked for at once.
	pageSize = 100
	// maxListed is how many occurrences of one note are looked at.
	maxListed = 10_000
	// uriBatch is how many resource URIs one filter names.
	uriBatch = 20
	// parallel is how many occurrences of one call of Keep are made at a time.
	parallel = 4
)

// Keep makes a note where there is none, looks for what is there already, and
// makes the missing occurrences. Missing rights, credentials and projects are
// Configuration faults, what the server refuses as invalid or too large is
// Permanent, and the rest Transient.
func (k *Keeper) Keep(ctx context.Context, records []store.Record) []store.Outcome {
	outcomes := make([]store.Outcome, len(records))
	if len(records) == 0 {
		return outcomes
	}
	client, err := k.client(ctx)
	if err != nil {
		for i := range outcomes {
			outcomes[i].Err = fmt.Errorf("connecting to Grafeas: %w", err)
		}
		return outcomes
	}
	// Records of one note share a search.
	plans := make([]plan, len(records))
	byNote := map[string][]int{}
	for i, r := range records {
		err := r.Check()
		if err == nil {
			plans[i], err = k.plan(r)
		}
		if err != nil {
			outcomes[i].Err = store.As(store.Permanent, fmt.Errorf("keeping record %s: %w", r.Key, err))
			continue
		}
		outcomes[i].Skipped = plans[i].skipped
		if len(plans[i].occurrences) > 0 {
			byNote[plans[i].noteID] = append(byNote[plans[i].noteID], i)
		}
	}
	limit := make(chan struct{}, parallel)
	var group sync.WaitGroup
	for noteID, of := range byNote {
		group.Go(func() {
			there, err := k.prepare(ctx, client, noteID, plans[of[0]].note, of, plans)
			for _, i := range of {
				if err != nil {
					outcomes[i].Err = fmt.Errorf("keeping record %s: %w", records[i].Key, err)
					continue
				}
				group.Go(func() { k.create(ctx, client, limit, records[i], plans[i], there, &outcomes[i]) })
			}
		})
	}
	group.Wait()
	return outcomes
}

// prepare makes sure of the note and returns its occurrences for the planned
// resource URIs.
func (k *Keeper) prepare(ctx context.Context, client pb.GrafeasClient, noteID string, note *pb.Note, of []int, plans []plan) ([]*pb.Occurrence, error) {
	if err := k.ensureNote(ctx, client, noteID, note); err != nil {
		return nil, err
	}
	var filters []string
	for _, i := range of {
		for _, o := range plans[i].occurrences {
			if f := fmt.Sprintf("resourceUrl=%q", o.GetResourceUri()); !slices.Contains(filters, f) {
				filters = append(filters, f)
			}
		}
	}
	var there []*pb.Occurrence
	for batch := range slices.Chunk(filters, uriBatch) {
		page, err := k.list(ctx, client, noteID, strings.Join(batch, " OR "))
		if status.Code(err) == codes.NotFound {
			// Somebody removed the note since, and its occurrences with it.
			k.notes.Delete(noteID)
			return nil, k.ensureNote(ctx, client, noteID, note)
		}
		switch {
		case errors.Is(err, store.ErrTooMuch), status.Code(err) == codes.PermissionDenied, status.Code(err) == codes.Unimplemented:
			// Whether it is there cannot be known; a second time does less harm
			// than none.
			return there, nil
		case err != nil:
			return nil, fmt.Errorf("listing occurrences of note %s: %w", noteID, fault(ctx, err))
		}
		there = append(there, page...)
	}
	return there, nil
}

// ensureNote makes the note, once in this process.
func (k *Keeper) ensureNote(ctx context.Context, client pb.GrafeasClient, id string, note *pb.Note) error {
	if _, known := k.notes.Load(id); known {
		return nil
	}
	_, err := client.CreateNote(ctx, &pb.CreateNoteRequest{Parent: "projects/" + k.o.Project, NoteId: id, Note: note})
	if err != nil && status.Code(err) != codes.AlreadyExists {
		return fmt.Errorf("creating note %s: %w", id, fault(ctx, err))
	}
	k.notes.Store(id, true)
	return nil
}

// create makes those of a record's occurrences that are not there.
func (k *Keeper) create(ctx context.Context, client pb.GrafeasClient, limit chan struct{}, r store.Record, p plan, there []*pb.Occurrence, out *store.Outcome) {
	where := make([]string, len(p.occurrences))
	errs := make([]error, len(p.occurrences))
	existing := 0
	var group sync.WaitGroup
	for i, o := range p.occurrences {
		if j := slices.IndexFunc(there, func(t *pb.Occurrence) bool { return covers(t, o, r) }); j >= 0 {
			where[i] = there[j].GetName()
			existing++
			continue
		}
		group.Go(func() {
			limit <- struct{}{}
			defer func() { <-limit }()
			made, err := client.CreateOccurrence(ctx, &pb.CreateOccurrenceRequest{Parent: "projects/" + k.o.Project, Occurrence: o})
			if status.Code(err) == codes.NotFound {
				// Somebody removed the note since.
				k.notes.Delete(p.noteID)
				if err = k.ensureNote(ctx, client, p.noteID, p.note); err == nil {
					made, err = client.CreateOccurrence(ctx, &pb.CreateOccurrenceRequest{Parent: "projects/" + k.o.Project, Occurrence: o})
				}
			}
			switch {
			case err != nil:
				errs[i] = fmt.Errorf("creating the occurrence for %s (%d bytes): %w", o.GetResourceUri(), size(o), fault(ctx, err))
			case made.GetName() == "" || !bytes.Equal(made.GetEnvelope().GetPayload(), o.GetEnvelope().GetPayload()):
				errs[i] = store.As(store.Transient, fmt.Errorf("creating the occurrence for %s: the server answered with another one", o.GetResourceUri()))
			default:
				where[i] = made.GetName()
			}
		})
	}
	group.Wait()
	if err := worst(errs); err != nil {
		out.Err = fmt.Errorf("keeping record %s: %w", r.Key, err)
		return
	}
	out.Where, out.Existing = where, existing == len(where)
}

// worst joins the errors so that the class is that of the one that another
// attempt helps most: what cannot be kept for good must not hide what can.
func worst(errs []error) error {
	errs = slices.DeleteFunc(slices.Clone(errs), func(err error) bool { return err == nil })
	if len(errs) == 0 {
		return nil
	}
	slices.SortStableFunc(errs, func(a, b error) int { return int(store.ClassOf(a)) - int(store.ClassOf(b)) })
	return errors.Join(errs...)
}

// Find returns what the run's note holds under the key, one for each signature,
// without looking twice at what several subjects share. Occurrences that upstream
// wrote do not name their run and are not found. store.ErrTooMuch says that the
// note has more occurrences than are read.
func (k *Keeper) Find(ctx context.Context, run store.Run, key string) ([]store.Kept, error) {
	client, err := k.client(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting to Grafeas: %w", err)
	}
	statement := key == strings.ToLower(run.Kind)+"-"+run.UID
	id := k.noteID(run, !statement)
	list, err := k.list(ctx, client, id, "")
	if status.Code(err) == codes.NotFound {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing occurrences of note %s: %w", id, fault(ctx, err))
	}
	var out []store.Kept
	for _, o := range list {
		if m := uidForm.FindStringSubmatch(o.GetRemediation()); m == nil || m[1] != run.UID {
			continue
		}
		if !statement && !strings.Contains(o.GetResourceUri(), "@sha256:"+key) {
			continue
		}
		for _, one := range kept(o) {
			if !slices.ContainsFunc(out, func(k store.Kept) bool {
				return bytes.Equal(k.Payload, one.Payload) && bytes.Equal(k.Signature, one.Signature)
			}) {
				out = append(out, one)
			}
		}
	}
	return out, nil
}

// list reads all pages of a note's occurrences.
func (k *Keeper) list(ctx context.Context, client pb.GrafeasClient, noteID, filter string) ([]*pb.Occurrence, error) {
	var out []*pb.Occurrence
	req := &pb.ListNoteOccurrencesRequest{Name: k.noteName(noteID), Filter: filter, PageSize: pageSize}
	for {
		page, err := client.ListNoteOccurrences(ctx, req)
		if err != nil {
			return nil, err
		}
		if out = append(out, page.GetOccurrences()...); len(out) > maxListed {
			return nil, fmt.Errorf("%w: note %s has more than %d occurrences", store.ErrTooMuch, noteID, maxListed)
		}
		if page.GetNextPageToken() == "" {
			return out, nil
		}
		req.PageToken = page.GetNextPageToken()
	}
}

// fault classifies an error of a call, once.
func fault(ctx context.Context, err error) error {
	var f *store.Fault
	if errors.As(err, &f) || errors.Is(err, store.ErrTooMuch) {
		return err
	}
	if cause := ctx.Err(); cause != nil {
		return store.As(store.Transient, fmt.Errorf("%w: %w", cause, err))
	}
	s, _ := status.FromError(err)
	f = &store.Fault{Class: store.Transient, Err: err}
	for _, d := range s.Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			f.RetryAfter = retry.GetRetryDelay().AsDuration()
		}
	}
	switch s.Code() {
	case codes.Unauthenticated, codes.PermissionDenied, codes.NotFound, codes.FailedPrecondition, codes.Unimplemented:
		f.Class = store.Configuration
	case codes.InvalidArgument, codes.OutOfRange:
		f.Class = store.Permanent
	case codes.ResourceExhausted:
		// Quotas recover; sizes do not.
		if strings.Contains(s.Message(), "larger than max") {
			f.Class = store.Permanent
			f.Err = fmt.Errorf("%w: raise the server's limit for messages, or store large statements elsewhere", err)
		}
	case codes.Unavailable:
		if m := s.Message(); strings.Contains(m, "x509:") || strings.Contains(m, "no such host") || strings.Contains(m, "produced zero addresses") {
			f.Class = store.Configuration
		}
	}
	return f
}
