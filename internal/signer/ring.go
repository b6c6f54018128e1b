package signer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// Bounds on drivers.
const (
	// maxDrivers is how many stay open: one for each kind and settings in use.
	maxDrivers = 16
	// openTimeout bounds opening one, for which whoever asked first may have
	// stopped waiting.
	openTimeout = 30 * time.Second
	// openPause keeps a driver that fails to open, or whose key was refused, from
	// being opened anew for every message.
	openPause = 2 * time.Second
)

// driverID is all that a driver is opened with; settings that differ in anything
// are another driver's.
type driverID struct {
	kind   signing.Kind
	fulcio signing.Fulcio
	kms    signing.KMSSettings
	pkcs11 signing.PKCS11Settings
}

// ring keeps drivers open, one client each however many messages there are, and
// opens them anew when what they were opened with changed, when their key was
// replaced, or when their credential was refused.
//
//	        ┌──────────── signs ───────────┐
//	opening ─▶ open ─▶ stale, or refused, ─▶ opening (the old one is closed
//	   └ fails: the error stands for          when its last message is done)
//	     openPause
type ring struct {
	open func(context.Context, driverID) (signing.Driver, error)
	log  *slog.Logger

	mu     sync.Mutex // guards what follows and the slots
	slots  map[driverID]*slot
	opens  uint64
	closed bool
}

// slot is one driver's place. Its fields are guarded by ring.mu but for what is
// closed with ready.
type slot struct {
	ready  chan struct{} // closed when driver or err is set
	driver signing.Driver
	err    error
	opened time.Time
	used   time.Time
	refs   int  // messages being signed
	gone   bool // taken out of the ring: close at refs 0
	// generation counts the drivers that were opened; not changed.
	generation uint64
}

func newRing(open func(context.Context, driverID) (signing.Driver, error), log *slog.Logger) *ring {
	return &ring{open: open, log: log, slots: map[driverID]*slot{}}
}

// sign signs and says by which generation of a driver, and does so once more with a driver opened anew if the first one's
// signature is not by the key that it names, as after a rotation in a key service,
// or its credential was refused, as when a login ran out.
func (r *ring) sign(ctx context.Context, id driverID, m signing.Message) (store.Signature, uint64, error) {
	for attempt := 0; ; attempt++ {
		s, err := r.take(ctx, id)
		if err != nil {
			return store.Signature{}, 0, err
		}
		sig, err := s.driver.Sign(ctx, m)
		bad := false
		if err == nil {
			if err = signing.Verify(m, sig); err == nil {
				r.release(s)
				return sig, s.generation, nil
			}
			bad = true
			err = fmt.Errorf("the key service gave a signature by another key than it says: %w", err)
		}
		again := attempt == 0 && ctx.Err() == nil && (bad || store.ClassOf(err) == store.Configuration || s.driver.Stale())
		if again {
			again = r.drop(id, s, bad)
		}
		r.release(s)
		if !again {
			return store.Signature{}, 0, err
		}
		r.log.Info("opening a key anew", "kind", id.kind, "because", err)
	}
}

// take returns a driver that is open, with a reference that release gives back.
func (r *ring) take(ctx context.Context, id driverID) (*slot, error) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, errors.New("the signer is stopping")
	}
	s := r.slots[id]
	if s != nil && r.outdated(s) {
		r.remove(id, s)
		s = nil
	}
	if s == nil {
		r.opens++
		s = &slot{ready: make(chan struct{}), generation: r.opens}
		r.makeRoom()
		r.slots[id] = s
		s.refs++ // the opener's
		go r.fill(id, s)
	}
	s.refs++
	s.used = time.Now()
	r.mu.Unlock()
	select {
	case <-s.ready:
	case <-ctx.Done():
		r.release(s)
		return nil, fmt.Errorf("waiting for the key to be opened: %w", ctx.Err())
	}
	if s.err != nil {
		r.release(s)
		return nil, s.err
	}
	return s, nil
}

// outdated says whether a slot should make way for a new one. Called with mu held.
func (r *ring) outdated(s *slot) bool {
	select {
	case <-s.ready:
	default:
		return false // being opened
	}
	if s.err != nil {
		// What must not be tried again, such as a wrong PIN, says so.
		var held interface{ Held() bool }
		return time.Since(s.opened) > openPause && !(errors.As(s.err, &held) && held.Held())
	}
	return s.driver.Stale()
}

func (r *ring) fill(id driverID, s *slot) {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	d, err := r.open(ctx, id)
	r.mu.Lock()
	s.driver, s.err, s.opened = d, err, time.Now()
	close(s.ready)
	r.mu.Unlock()
	r.release(s)
}

// makeRoom takes out the driver that was not used for longest. Called with mu held.
func (r *ring) makeRoom() {
	for len(r.slots) >= maxDrivers {
		var oldest driverID
		var at *slot
		for id, s := range r.slots {
			if at == nil || s.used.Before(at.used) {
				oldest, at = id, s
			}
		}
		r.remove(oldest, at)
	}
}

// drop takes a driver out of the ring and says whether another may be opened now:
// not while this one was opened a moment ago because of the same trouble.
func (r *ring) drop(id driverID, s *slot, always bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.slots[id] != s {
		return true // somebody else did
	}
	if !always && time.Since(s.opened) < openPause {
		return false
	}
	r.remove(id, s)
	return true
}

// remove takes a slot out; called with mu held.
func (r *ring) remove(id driverID, s *slot) {
	delete(r.slots, id)
	s.gone = true
	if s.refs == 0 {
		r.shut(s)
	}
}

func (r *ring) release(s *slot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.refs--; s.refs == 0 && s.gone {
		r.shut(s)
	}
}

// shut closes a driver that nobody uses; called with mu held.
func (r *ring) shut(s *slot) {
	if s.driver == nil {
		return
	}
	d := s.driver
	s.driver = nil
	go func() {
		if err := d.Close(); err != nil {
			r.log.Warn("closing a key", "error", err)
		}
	}()
}

// Close closes every driver, those in use after their last message.
func (r *ring) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for id, s := range r.slots {
		r.remove(id, s)
	}
	return nil
}
