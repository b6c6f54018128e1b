// Package logserver runs transparency logs of our own and their witnesses: the
// program assay-log.
//
//	observer ──POST /add──▶ Server ──entries──▶ tiles on disk (tessera)
//	                          │  ▲
//	                checkpoint│  │cosignature
//	                          ▼  │
//	                        Witness ──▶ its own state
//
// The log's key signs checkpoints and nothing else. It is not the key that signs
// statements and lives in another process, so that neither a stolen signing key nor
// a broken-in log is enough: the thief has to log, and the log cannot sign. What a
// log keeps of a record is described at tlog.Leaf.
//
// A log whose operator cheats can show different people different trees. A Witness
// is what prevents it: it remembers the last checkpoint it saw of each log, on disk
// before it answers, and cosigns another only if a proof shows that it continues
// that one. It belongs on a machine, and into hands, that are not the log's.
//
// Both speak the field's formats: C2SP's tlog-tiles to read, tlog-checkpoint and
// signed-note with Ed25519, tlog-witness and cosignature/v1, tlog-proof.
package logserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"
	xtlog "golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sys/unix"

	"assay.dev/assay/attest/tlog"
)

// Bounds of a log.
const (
	// maxWaiting is how many additions may wait for a checkpoint at once.
	maxWaiting = 4096
	// maxRecent is how many of the newest entries are remembered, so that the same
	// entry again, after a lost answer or a crash, is not added twice.
	maxRecent = 1 << 16
	batchAge  = 20 * time.Millisecond
	pollEvery = 20 * time.Millisecond
	// firstTimeout is how long a new log waits for its first checkpoint.
	firstTimeout = 20 * time.Second
	// minInterval is the shortest time between two checkpoints.
	minInterval = 100 * time.Millisecond
)

// WitnessAt is a witness and where it takes checkpoints.
type WitnessAt struct {
	URL string
	Key tlog.WitnessKey
}

// Options say how to run a log. Without a key there is none.
type Options struct {
	// Dir holds the log; it is made if it is not there.
	Dir string
	// Key is the private key that signs checkpoints, as signed notes spell it. Its
	// name is the log's origin.
	Key string
	// Witnesses are asked to cosign each checkpoint, and Quorum (0: all) of them
	// must before it is published; additions wait for that.
	Witnesses []WitnessAt
	Quorum    int
	// Interval between checkpoints; 0: the shortest that there is, a tenth of a second.
	Interval time.Duration
	// Transport reaches the witnesses; nil: http.DefaultTransport.
	Transport http.RoundTripper
	Log       *slog.Logger
}

// Server is a log that takes entries. Make one with Open, and Close it.
type Server struct {
	dir       *os.Root
	lock      *os.File
	key       tlog.LogKey
	trust     tlog.Trust
	tiles     tlog.Tiles
	appender  *tessera.Appender
	shutdown  func(context.Context) error
	cancel    context.CancelFunc
	log       *slog.Logger
	slots     chan struct{}
	published *published
	recent    *recent
}

// Open opens a log, or makes it. It fails if the folder holds a log of another key,
// another process serves it, or what it holds does not fit together; and where there
// are witnesses and the log is new, if they cannot be reached.
func Open(ctx context.Context, o Options) (_ *Server, err error) {
	s, err := open(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("opening log %s: %w", o.Dir, err)
	}
	return s, nil
}

func open(ctx context.Context, o Options) (_ *Server, err error) {
	signer, key, err := logSigner(o.Key)
	if err != nil {
		return nil, err
	}
	if o.Interval == 0 {
		o.Interval = minInterval
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		key: key, log: o.Log, slots: make(chan struct{}, maxWaiting),
		trust: tlog.Trust{Logs: []tlog.LogKey{key}, Quorum: o.Quorum},
	}
	opts := tessera.NewAppendOptions().
		WithCheckpointSigner(signer).
		WithBatching(tessera.DefaultBatchMaxSize, batchAge).
		WithCheckpointInterval(o.Interval).
		WithCheckpointRepublishInterval(0)
	if len(o.Witnesses) > 0 {
		group, err := witnessGroup(o, &s.trust)
		if err != nil {
			return nil, err
		}
		opts = opts.WithWitnesses(group, &tessera.WitnessOptions{Timeout: 10 * time.Second})
	}
	if err := s.trust.Check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	if s.dir, err = os.OpenRoot(o.Dir); err != nil {
		return nil, err
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			s.release()
		}
	}()
	if s.lock, err = lockFile(filepath.Join(o.Dir, ".lock")); err != nil {
		return nil, err
	}
	s.tiles = tlog.Tiles{Fetch: DirFetch(s.dir)}
	// Before anything is written: whose log is this?
	if _, err := s.current(ctx); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the folder's checkpoint is not one of this log; is it another log's folder, or were witnesses added or taken away? %w", err)
	}
	driver, err := posix.New(ctx, posix.Config{Path: o.Dir, HTTPClient: &http.Client{Transport: boundedTransport{o.Transport}}})
	if err != nil {
		return nil, err
	}
	s.appender, s.shutdown, _, err = tessera.NewAppender(ctx, driver, opts)
	if err != nil {
		return nil, err
	}
	if err := s.first(ctx); err != nil {
		return nil, err
	}
	s.published = newPublished(ctx, s.current)
	if s.recent, err = s.remember(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Close stops taking entries and waits until those that were taken are under a
// checkpoint, or ctx ends. The log is kept as it is either way.
func (s *Server) Close(ctx context.Context) error {
	err := s.shutdown(ctx)
	s.release()
	if err != nil {
		return fmt.Errorf("closing log: %w", err)
	}
	return nil
}

func (s *Server) release() {
	s.cancel()
	if s.published != nil {
		<-s.published.done
	}
	if s.lock != nil {
		s.lock.Close()
	}
	s.dir.Close()
}

// Key is what verifiers of this log are given.
func (s *Server) Key() tlog.LogKey { return s.key }

// current is the published checkpoint, verified. A quorum is not asked of it: what
// was published before witnesses came stays published.
func (s *Server) current(ctx context.Context) (tlog.Checkpoint, error) {
	signed, err := s.tiles.Fetch(ctx, "checkpoint", tlog.MaxCheckpoint)
	if err != nil {
		return tlog.Checkpoint{}, err
	}
	return tlog.VerifyCheckpoint(signed, tlog.Trust{Logs: []tlog.LogKey{s.key}})
}

// errBusy says that too many additions wait already.
var errBusy = errors.New("too many additions wait for a checkpoint")

// Add puts a leaf into the log and returns the proof of inclusion, without extra,
// once a checkpoint over it is published. The same leaf again gives the same entry
// as long as it is remembered, whether or not the first addition was waited for.
func (s *Server) Add(ctx context.Context, leaf *tlog.Leaf) (tlog.Proof, error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return tlog.Proof{}, errBusy
	}
	text := leaf.Bytes()
	if _, err := tlog.ParseLeaf(text); err != nil {
		return tlog.Proof{}, err
	}
	index, err := s.recent.index(xtlog.RecordHash(text), func() tessera.IndexFuture {
		// The entry goes in even if whoever asked has gone.
		return s.appender.Add(context.WithoutCancel(ctx), tessera.NewEntry(text))
	})
	if err != nil {
		return tlog.Proof{}, fmt.Errorf("adding to the log: %w", err)
	}
	c, err := s.published.await(ctx, index)
	if err != nil {
		return tlog.Proof{}, fmt.Errorf("waiting for the checkpoint over entry %d: %w", index, err)
	}
	return s.prove(ctx, c, index)
}

// Entry is an entry with the proof that it is under the current checkpoint.
func (s *Server) Entry(ctx context.Context, index int64) (tlog.Proof, error) {
	c, err := s.current(ctx)
	if err != nil {
		return tlog.Proof{}, err
	}
	text, err := s.tiles.Entry(ctx, c.Tree, index)
	if err != nil {
		return tlog.Proof{}, err
	}
	p, err := s.prove(ctx, c, index)
	p.Extra = text
	return p, err
}

func (s *Server) prove(ctx context.Context, c tlog.Checkpoint, index int64) (tlog.Proof, error) {
	hashes, err := s.tiles.Inclusion(ctx, c.Tree, index)
	if err != nil {
		return tlog.Proof{}, err
	}
	return tlog.Proof{Index: index, Hashes: hashes, Checkpoint: c.Note}, nil
}

// first waits for a new log's first checkpoint, which witnesses may delay.
func (s *Server) first(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, firstTimeout)
	defer cancel()
	for {
		_, err := s.current(ctx)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.New("no checkpoint was published; are the witnesses there, and do they know this log's key?")
		case <-time.After(pollEvery):
		}
	}
}

// remember reads the newest entries' hashes.
func (s *Server) remember(ctx context.Context) (*recent, error) {
	r := newRecent(maxRecent)
	c, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	first := max(0, c.Size-maxRecent) / bundleWidth
	for n := first; n*bundleWidth < c.Size; n++ {
		entries, err := s.tiles.Bundle(ctx, c.Size, n)
		if err != nil {
			return nil, err
		}
		for i, e := range entries {
			r.put(xtlog.RecordHash(e), n*bundleWidth+int64(i))
		}
	}
	return r, nil
}

// published knows the newest checkpoint. It looks at the file only while somebody
// waits.
type published struct {
	read func(context.Context) (tlog.Checkpoint, error)
	done chan struct{}

	mu      sync.Mutex
	waiting int             // guarded by mu
	last    tlog.Checkpoint // guarded by mu
	changed chan struct{}   // guarded by mu; closed at each new checkpoint
	wake    chan struct{}
}

func newPublished(ctx context.Context, read func(context.Context) (tlog.Checkpoint, error)) *published {
	p := &published{read: read, done: make(chan struct{}), changed: make(chan struct{}), wake: make(chan struct{}, 1)}
	go p.watch(ctx)
	return p
}

func (p *published) watch(ctx context.Context) {
	defer close(p.done)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		p.mu.Lock()
		idle := p.waiting == 0
		p.mu.Unlock()
		if idle {
			select {
			case <-ctx.Done():
				return
			case <-p.wake:
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c, err := p.read(ctx)
		if err != nil {
			continue // whoever waits has a deadline
		}
		p.mu.Lock()
		if !bytes.Equal(c.Note, p.last.Note) {
			p.last = c
			close(p.changed)
			p.changed = make(chan struct{})
		}
		p.mu.Unlock()
	}
}

// await returns the newest checkpoint once it is over the entry.
func (p *published) await(ctx context.Context, index int64) (tlog.Checkpoint, error) {
	p.mu.Lock()
	p.waiting++
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.waiting--
		p.mu.Unlock()
	}()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	for {
		p.mu.Lock()
		c, changed := p.last, p.changed
		p.mu.Unlock()
		if c.Size > index {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return tlog.Checkpoint{}, ctx.Err()
		case <-p.done:
			return tlog.Checkpoint{}, errors.New("the log is closing")
		case <-changed:
		}
	}
}

// logSigner reads a log's private key.
func logSigner(skey string) (note.Signer, tlog.LogKey, error) {
	signer, err := note.NewSigner(skey)
	if err != nil {
		return nil, tlog.LogKey{}, fmt.Errorf("reading the log's private key: %w", err)
	}
	key, err := publicHalf(skey)
	return signer, key, err
}

func witnessGroup(o Options, trust *tlog.Trust) (tessera.WitnessGroup, error) {
	group := tessera.WitnessGroup{N: o.Quorum}
	if group.N == 0 {
		group.N = len(o.Witnesses)
	}
	for _, w := range o.Witnesses {
		u, err := url.Parse(w.URL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return group, fmt.Errorf("witness address %q: want http://HOST or https://HOST", w.URL)
		}
		at, err := tessera.NewWitness(w.Key.String(), u)
		if err != nil {
			return group, fmt.Errorf("witness %q: %w", w.Key.Name, err)
		}
		group.Components = append(group.Components, at)
		trust.Witnesses = append(trust.Witnesses, w.Key)
	}
	if group.N < 0 || group.N > len(o.Witnesses) {
		return group, fmt.Errorf("a quorum of %d of %d witnesses cannot be reached", group.N, len(o.Witnesses))
	}
	return group, nil
}

// lockFile takes a lock that ends with the process.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another process has it open: %w", err)
	}
	return f, nil
}
