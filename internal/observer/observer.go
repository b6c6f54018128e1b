// Package observer is the neutral witness: it opens runs, records what their
// executors report while it happens, and when a run has ended states what was
// built from what, signs that and stores it.
//
// It never executes anything. It runs as a user of its own, is the only process
// that can read the signing keys, and trusts each peer for no more than the
// kernel says about it: the launcher may open runs and hand in objects, the one
// user admitted for a run may report its facts, everybody may ask who executes
// what. What the objects say is signed only where the facts agree (package
// observer, agree.go).
package observer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"assay.dev/assay/api"
	"assay.dev/assay/internal/channel"
	"assay.dev/assay/ledger"
	"assay.dev/assay/observe"
)

// Statements makes, signs and stores the statements about a recorded run.
type Statements interface {
	State(ctx context.Context, rec *ledger.Record, s channel.State) (*channel.Stated, error)
}

// Config wires an Observer.
type Config struct {
	Ledger *ledger.Ledger
	// Launcher is the user that may open runs and hand in finished objects.
	Launcher uint32
	// Separation is what keeps executors from the key. With
	// api.SeparationUser a run is refused whose executor has our own user.
	Separation api.KeySeparation
	// Self is the observer's own user.
	Self       uint32
	Statements Statements
	Log        *slog.Logger
}

// Observer serves the channel.
type Observer struct {
	cfg Config

	mu        sync.Mutex
	streaming map[string]bool // guarded by mu; runs whose executor has connected
	stating   map[string]bool // guarded by mu; runs about which statements are being made
}

// New returns an Observer; an incomplete Config is an error.
func New(cfg Config) (*Observer, error) {
	if cfg.Ledger == nil || cfg.Statements == nil || cfg.Log == nil {
		return nil, errors.New("observer: ledger, statements and log are needed")
	}
	switch cfg.Separation {
	case api.SeparationUser, api.SeparationNone:
	default:
		return nil, fmt.Errorf("observer: unknown key separation %q", cfg.Separation)
	}
	return &Observer{cfg: cfg, streaming: map[string]bool{}, stating: map[string]bool{}}, nil
}

// Serve answers connections until ctx ends or the listener fails.
func (o *Observer) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accepting: %w", err)
		}
		wg.Go(func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			if err := o.serve(ctx, c); err != nil && !errors.Is(err, io.EOF) {
				o.cfg.Log.Warn("connection", "error", err)
			}
		})
	}
}

func (o *Observer) serve(ctx context.Context, nc net.Conn) error {
	uid, _, err := channel.Peer(nc)
	if err != nil {
		return err
	}
	c := channel.NewConn(nc)
	// A peer that connects and says nothing must not hold a goroutine for ever.
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	var req channel.Request
	if err := c.Read(&req); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	refuse := func(err error) error {
		o.cfg.Log.Warn("refused", "uid", uid, "error", err)
		return c.WriteError(err)
	}
	launcher := func() error {
		if uid != o.cfg.Launcher {
			return fmt.Errorf("user %d may not do this; only the launcher (user %d) may", uid, o.cfg.Launcher)
		}
		return nil
	}
	switch {
	case req.Admit != nil:
		if err := launcher(); err != nil {
			return refuse(err)
		}
		a, err := o.admit(*req.Admit)
		if err != nil {
			return refuse(err)
		}
		return c.Write(a)
	case req.Facts != nil:
		return o.facts(c, uid, *req.Facts, refuse)
	case req.Executor != nil:
		e := channel.Executing{}
		if r, err := o.cfg.Ledger.Live(req.Executor.Run); err == nil {
			e = channel.Executing{UID: r.Admission().ExecutorUID, Open: true}
		}
		return c.Write(e)
	case req.Abandon != nil:
		if err := launcher(); err != nil {
			return refuse(err)
		}
		r, err := o.cfg.Ledger.Live(req.Abandon.Run)
		if err != nil {
			return refuse(err)
		}
		if err := r.End(ledger.Lost, req.Abandon.Reason); err != nil {
			return refuse(err)
		}
		return c.Write(channel.Accepted{Head: r.Head()})
	case req.State != nil:
		if err := launcher(); err != nil {
			return refuse(err)
		}
		s, err := o.state(ctx, *req.State)
		if err != nil {
			return refuse(err)
		}
		return c.Write(s)
	}
	return refuse(errors.New("empty request"))
}

func (o *Observer) admit(a channel.Admit) (*channel.Admitted, error) {
	if o.cfg.Separation == api.SeparationUser && (a.ExecutorUID == o.cfg.Self || a.ExecutorUID == 0) {
		return nil, fmt.Errorf("admitting %s: an executor of user %d could read the key", a.Run, a.ExecutorUID)
	}
	var n [32]byte
	if _, err := rand.Read(n[:]); err != nil {
		return nil, fmt.Errorf("making a nonce: %w", err)
	}
	nonce := hex.EncodeToString(n[:])
	if _, err := o.cfg.Ledger.Admit(ledger.Admission{
		Run: a.Run, Nonce: nonceDigest(nonce), ExecutorUID: a.ExecutorUID, KeySeparation: string(o.cfg.Separation),
	}); err != nil {
		return nil, err
	}
	return &channel.Admitted{Nonce: nonce, KeySeparation: string(o.cfg.Separation)}, nil
}

// facts takes a run's facts until its executor closes the run or is gone.
func (o *Observer) facts(c *channel.Conn, uid uint32, f channel.Facts, refuse func(error) error) error {
	r, err := o.cfg.Ledger.Live(f.Run)
	if err != nil {
		return refuse(err)
	}
	a := r.Admission()
	if uid != a.ExecutorUID {
		return refuse(fmt.Errorf("run %s was admitted for user %d, not %d", f.Run, a.ExecutorUID, uid))
	}
	if subtle.ConstantTimeCompare([]byte(nonceDigest(f.Nonce)), []byte(a.Nonce)) != 1 {
		return refuse(fmt.Errorf("run %s: wrong nonce", f.Run))
	}
	o.mu.Lock()
	taken := o.streaming[f.Run]
	o.streaming[f.Run] = true
	o.mu.Unlock()
	if taken {
		return refuse(fmt.Errorf("run %s: its executor has connected already", f.Run))
	}
	lost := "the executor went away before it closed the run"
	defer func() {
		// Ended runs answer ErrEnded, which is what we want to hear.
		if err := r.End(ledger.Lost, lost); err == nil {
			o.cfg.Log.Warn("run lost", "run", f.Run, "reason", lost)
		}
		o.mu.Lock()
		delete(o.streaming, f.Run)
		o.mu.Unlock()
	}()
	if err := c.Write(channel.Accepted{Head: r.Head(), KeySeparation: a.KeySeparation}); err != nil {
		return err
	}
	order := newOrder(f.Run, f.Nonce, a.KeySeparation)
	for {
		var fact observe.Fact
		if err := c.Read(&fact); err != nil {
			if !order.opened {
				lost = "refused or given up before its first step"
			}
			return err
		}
		if err := order.check(fact); err != nil {
			lost = "the executor broke the protocol: " + err.Error()
			return refuse(err)
		}
		head, err := r.Append(fact)
		if err != nil {
			lost = err.Error()
			return refuse(err)
		}
		if fact.Type == observe.RunClosed {
			if err := r.End(order.outcome, order.reason); err != nil {
				return refuse(err)
			}
			return c.Write(channel.Accepted{Head: r.Head()})
		}
		if err := c.Write(channel.Accepted{Head: head}); err != nil {
			return err
		}
	}
}

func (o *Observer) state(ctx context.Context, s channel.State) (*channel.Stated, error) {
	// Two requests at once would both find the run unsigned.
	o.mu.Lock()
	busy := o.stating[s.Run]
	o.stating[s.Run] = true
	o.mu.Unlock()
	if busy {
		return nil, fmt.Errorf("run %s is being stated already", s.Run)
	}
	defer func() {
		o.mu.Lock()
		delete(o.stating, s.Run)
		o.mu.Unlock()
	}()
	rec, err := o.cfg.Ledger.Signable(s.Run)
	if err != nil {
		return nil, err
	}
	stated, err := o.cfg.Statements.State(ctx, rec, s)
	if err != nil {
		return nil, err
	}
	if len(stated.Payloads) == 0 {
		return stated, nil // there was nothing to sign
	}
	// Success last: only now is the run signed, and only once.
	if err := o.cfg.Ledger.Sign(s.Run, ledger.Signing{Payloads: stated.Payloads, Subjects: stated.Subjects}); err != nil {
		return nil, err
	}
	return stated, nil
}

// nonceDigest is what the world-readable ledger holds of a nonce.
func nonceDigest(nonce string) string { return digest([]byte("assay nonce " + nonce)) }

// order is the grammar of a run's facts: opened once and first, steps and ends
// only of attempts that started, nothing after an attempt's end, every attempt
// ended before the run closes. An executor that breaks it loses the run.
type order struct {
	run, nonce, separation string
	opened                 bool
	live                   map[observe.Attempt]bool
	done                   map[observe.Attempt]bool
	failed                 bool
	outcome, reason        string
}

func newOrder(run, nonce, separation string) *order {
	return &order{run: run, nonce: nonce, separation: separation, live: map[observe.Attempt]bool{}, done: map[observe.Attempt]bool{}}
}

func (o *order) check(f observe.Fact) error {
	if !o.opened && f.Type != observe.RunOpened {
		return fmt.Errorf("fact %s before the run was opened", f.Type)
	}
	switch f.Type {
	case observe.RunOpened:
		var b observe.RunOpenedBody
		if err := strict(f.Body, &b); err != nil {
			return err
		}
		switch {
		case o.opened:
			return errors.New("the run is open already")
		case b.Run != o.run || b.Nonce != nonceDigest(o.nonce):
			return errors.New("the opening names another run or nonce")
		case b.Executor.KeySeparation != o.separation:
			return fmt.Errorf("the opening claims key separation %q, this run has %q", b.Executor.KeySeparation, o.separation)
		}
		o.opened = true
	case observe.TaskStarted:
		var b observe.TaskStartedBody
		if err := strict(f.Body, &b); err != nil {
			return err
		}
		if o.live[b.Attempt] || o.done[b.Attempt] {
			return fmt.Errorf("attempt %d of %s started twice", b.Attempt.Attempt, b.Task)
		}
		o.live[b.Attempt] = true
	case observe.StepFinished:
		var b observe.StepFinishedBody
		if err := strict(f.Body, &b); err != nil {
			return err
		}
		if !o.live[b.Attempt] {
			return fmt.Errorf("step %s of %s, which is not running", b.Step, b.Task)
		}
	case observe.TaskFinished:
		var b observe.TaskFinishedBody
		if err := strict(f.Body, &b); err != nil {
			return err
		}
		if !o.live[b.Attempt] {
			return fmt.Errorf("end of %s, which is not running", b.Task)
		}
		delete(o.live, b.Attempt)
		o.done[b.Attempt] = true
	case observe.SourceSeen:
		var b observe.SourceRefBody
		if err := strict(f.Body, &b); err != nil {
			return err
		}
		if !o.live[b.Attempt] {
			return fmt.Errorf("source of %s, which is not running", b.Task)
		}
	case observe.RunClosed:
		var b observe.RunClosedBody
		if err := strict(f.Body, &b); err != nil {
			return err
		}
		if len(o.live) > 0 {
			return fmt.Errorf("%d task attempts are still running", len(o.live))
		}
		if b.Outcome != ledger.Succeeded && b.Outcome != ledger.Failed {
			return fmt.Errorf("outcome %q", b.Outcome)
		}
		o.outcome, o.reason = b.Outcome, b.Reason
	default:
		return fmt.Errorf("unknown fact %q", f.Type)
	}
	return nil
}

func strict(raw json.RawMessage, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("decoding a fact: %w", err)
	}
	return nil
}
