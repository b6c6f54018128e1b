package blob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"assay.dev/assay/store"
)

// writer puts one set into a bucket; see Order in the package's essay.
type writer struct {
	b        bucket
	s        *set
	patience time.Duration
	missing  string // an object that was acknowledged and was not there, last
}

// errTaken says that names belong to another record: of another payload, or one
// that none of our signers has signed.
var errTaken = errors.New("another record has these names")

// write returns the name under which the set is in the bucket now, and whether
// it was there before.
func (w *writer) write(ctx context.Context) (name string, existing bool, err error) {
	for _, name := range []string{w.s.base, w.s.second()} {
		existing, err := w.at(ctx, name)
		if errors.Is(err, errTaken) {
			continue
		}
		return name, existing, err
	}
	// The second names have the payload's digest in them.
	return "", false, store.As(store.Configuration, fmt.Errorf("both %s and %s are there already, and no signer of this record has signed them; "+
		"find out who writes to this bucket, and remove what is wrong", w.s.base, w.s.second()))
}

// at brings the set under a name, whatever others do there. The loop ends since
// each turn needs another writer that was half-way in the turn before.
func (w *writer) at(ctx context.Context, name string) (existing bool, err error) {
	for range 8 {
		done, existing, err := w.turn(ctx, name)
		if done || err != nil {
			return existing, err
		}
		if err := sleep(ctx, 20*time.Millisecond+rand.N(80*time.Millisecond)); err != nil {
			return false, err
		}
	}
	return false, w.conflict(name)
}

// conflict is why the turns ran out.
func (w *writer) conflict(name string) error {
	if w.missing != "" {
		return store.As(store.Transient, fmt.Errorf("writing %s: %s was acknowledged and is not there as it was written", name, w.missing))
	}
	return store.As(store.Transient, fmt.Errorf("writing %s: %w", name, store.ErrConflict))
}

// turn is done when the set is there whole, and not when another writer came
// between.
func (w *writer) turn(ctx context.Context, name string) (done, existing bool, err error) {
	there, err := w.whole(ctx, name)
	if err != nil || there {
		return there, there, err
	}
	created, err := w.b.create(ctx, name+".signature", w.s.signature)
	if err != nil {
		return false, false, err
	}
	signature := w.s.signature
	if !created {
		left, err := w.b.get(ctx, name+".signature")
		switch {
		case errors.Is(err, errAbsent):
			return false, false, nil // somebody removed it just now
		case err != nil:
			return false, false, err
		case !bytes.Equal(left, signature):
			whose := w.s.kinOf(left)
			alone, err := w.alone(ctx, name)
			switch {
			case err != nil:
				return false, false, err
			case whose == twin && alone && len(w.s.cert) == 0:
				signature = left // as good as ours
			case whose == stranger && w.s.record.Statement != nil && name == w.s.base:
				return false, false, errTaken
			default:
				return w.abandoned(ctx, name, whose)
			}
		}
	}
	if lost, err := w.certificates(ctx, name); err != nil || lost {
		return false, false, err
	}
	return w.finish(ctx, name, signature)
}

// whole says whether the record is there already: its payload, and a signature.
func (w *writer) whole(ctx context.Context, name string) (bool, error) {
	payload, err := w.b.get(ctx, name+".payload")
	switch {
	// Credentials that may only create are enough: create tells the rest.
	case errors.Is(err, errAbsent), errors.Is(err, ErrDenied):
		return false, nil
	case err != nil:
		return false, err
	case !bytes.Equal(payload, w.s.record.Payload):
		return false, errTaken
	}
	signature, err := w.b.get(ctx, name+".signature")
	if errors.Is(err, errAbsent) {
		return false, nil // Chains may have lost it and not noticed
	}
	if err != nil {
		return false, err
	}
	found := store.Kept{Payload: payload, Signature: signature}
	if w.s.record.Same(found) {
		return true, nil
	}
	found.Cert, err = w.b.get(ctx, name+".cert")
	if err = ignore(err, errAbsent); err != nil {
		return false, err
	}
	if !w.s.record.Same(found) {
		return false, errTaken
	}
	return true, nil
}

// alone says whether there are no certificates beside a signature.
func (w *writer) alone(ctx context.Context, name string) (bool, error) {
	cert, err := w.b.get(ctx, name+".cert")
	if errors.Is(err, errAbsent) {
		return true, nil
	}
	return err == nil && len(cert) == 0, err
}

// certificates creates what belongs beside our signature. It is lost when another
// writer has replaced the signature since.
func (w *writer) certificates(ctx context.Context, name string) (lost bool, err error) {
	for _, part := range w.parts(name, w.s.empties) {
		created, err := w.b.create(ctx, part.name, part.data)
		if err != nil {
			return false, err
		}
		if created {
			continue
		}
		left, err := w.b.get(ctx, part.name)
		if err != nil {
			return errors.Is(err, errAbsent), ignore(err, errAbsent)
		}
		if bytes.Equal(left, part.data) {
			continue
		}
		now, err := w.b.get(ctx, name+".signature")
		if err != nil {
			return errors.Is(err, errAbsent), ignore(err, errAbsent)
		}
		if len(w.s.cert) > 0 && !bytes.Equal(now, w.s.signature) {
			return true, nil
		}
		// The signature is ours, so these are leftovers.
		if err := w.b.put(ctx, part.name, part.data); err != nil {
			return false, err
		}
	}
	return false, nil
}

type part struct {
	name string
	data []byte
}

// parts are the objects between signature and payload, empty ones too or not.
func (w *writer) parts(name string, empties bool) []part {
	var out []part
	for _, p := range []part{{name + ".cert", w.s.cert}, {name + ".chain", w.s.chain}} {
		if len(p.data) > 0 || empties {
			out = append(out, p)
		}
	}
	return out
}

// finish reads back what was written and marks it whole with the payload.
func (w *writer) finish(ctx context.Context, name string, signature []byte) (done, existing bool, err error) {
	if ok, err := w.confirm(ctx, append(w.parts(name, w.s.empties), part{name + ".signature", signature})...); err != nil || !ok {
		return false, false, err
	}
	created, err := w.b.create(ctx, name+".payload", w.s.record.Payload)
	if err != nil {
		return false, false, err
	}
	if !created {
		// Another writer of the same payload was quicker, or a stranger was.
		return false, false, nil
	}
	ok, err := w.confirm(ctx, part{name + ".payload", w.s.record.Payload})
	return ok, false, err
}

// abandoned gives another writer time to finish, and then takes the names over
// if its record can be no other than ours.
func (w *writer) abandoned(ctx context.Context, name string, whose kin) (done, existing bool, err error) {
	deadline := time.Now().Add(w.patience)
	for pause := 20 * time.Millisecond; time.Now().Before(deadline); pause = min(2*pause, 500*time.Millisecond) {
		if err := sleep(ctx, pause); err != nil {
			return false, false, err
		}
		if there, err := w.whole(ctx, name); err != nil || there {
			return there, there, err
		}
	}
	if whose == stranger && name == w.s.base {
		return false, false, errTaken
	}
	// From here on only a confirmed set of our own ends this: parts of two
	// writers must not stay beside each other, so empty ones replace theirs.
	for range 8 {
		mine := append([]part{{name + ".signature", w.s.signature}}, w.parts(name, true)...)
		for _, p := range mine {
			if err := w.b.put(ctx, p.name, p.data); err != nil {
				return false, false, err
			}
		}
		ok, err := w.confirm(ctx, mine...)
		if err != nil {
			return false, false, err
		}
		if ok {
			created, err := w.b.create(ctx, name+".payload", w.s.record.Payload)
			if err != nil || created {
				return created, false, err
			}
			payload, err := w.b.get(ctx, name+".payload")
			if err == nil && !bytes.Equal(payload, w.s.record.Payload) {
				err = errTaken
			}
			return err == nil, true, err
		}
		if err := sleep(ctx, 50*time.Millisecond+rand.N(200*time.Millisecond)); err != nil {
			return false, false, err
		}
	}
	return false, false, w.conflict(name)
}

// confirm says whether the bucket has these objects with these contents.
func (w *writer) confirm(ctx context.Context, parts ...part) (bool, error) {
	for _, p := range parts {
		ok, err := w.b.holds(ctx, p.name, p.data)
		if errors.Is(err, ErrDenied) {
			continue // credentials that may only create: the acknowledgement must do
		}
		if err != nil || !ok {
			w.missing = p.name
			return false, err
		}
	}
	w.missing = ""
	return true, nil
}

func ignore(err, which error) error {
	if errors.Is(err, which) {
		return nil
	}
	return err
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
