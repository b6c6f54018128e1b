package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a Store.
type Options struct {
	// Dir holds the cache; it is made if it does not exist. Required. Who runs
	// images needs to read it, so it is made with mode 0755.
	Dir string
	// IDShift is added to every owner in a layer: 65536 under the launcher,
	// where ids 65536 to 131071 belong to the steps, 0 rootless. A process that
	// may not give files away (no CAP_CHOWN) leaves them with its own user, as
	// it does with ids that its user namespace has not got, and says so in the
	// log. Changing it makes layers be unpacked again.
	IDShift int
	// KeepSetuid keeps the set-user-id and set-group-id bits of files. A step
	// cannot use them (no new privileges), so by default they are cleared; the
	// package documentation says why.
	KeepSetuid bool
	// Remote says how registries are reached.
	Remote RemoteOptions
	// Bounds on images; they replace those of Remote.
	Bounds Bounds
	// Log is told of what a user may want to know: downloads, repairs, what was
	// left out of a layer. One line, no newline. nil: nobody. It may be called
	// by several goroutines.
	Log func(string)
}

// Store is the cache of blobs and unpacked layers. It is safe for concurrent
// use, by several processes too.
//
//	blobs/<hex>           manifests, configurations and compressed layers
//	layers/<hex>/fs       the unpacked layer, by diffID
//	layers/<hex>/layer.json   its record, made with it
//	locks/<hex>           held while an entry is made
//	tmp/                  entries in the making
type Store struct {
	opts   Options
	remote *Remote
	owners owners
}

// ids is how many owners a sandbox has: what is mapped to its steps.
const ids = 65536

// Open opens or makes the store in Options.Dir and removes what processes that
// died left half made. It fails where the folder cannot be made or written.
func Open(o Options) (*Store, error) {
	if o.Dir == "" {
		return nil, errors.New("opening image store: no folder given")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening image store: %w", err)
	}
	o.Dir = dir
	if o.Bounds, err = o.Bounds.withDefaults(); err != nil {
		return nil, err
	}
	if o.IDShift < 0 {
		return nil, fmt.Errorf("opening image store: id shift %d is negative", o.IDShift)
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	o.Remote.Bounds = o.Bounds
	remote, err := NewRemote(o.Remote)
	if err != nil {
		return nil, err
	}
	for _, sub := range []string{"", "blobs", "layers", "locks", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, fmt.Errorf("opening image store: %w", err)
		}
	}
	s := &Store{opts: o, remote: remote}
	if s.owners, err = newOwners(o.IDShift); err != nil {
		return nil, fmt.Errorf("opening image store: %w", err)
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("opening image store: %w", err)
	}
	return s, nil
}

// Remote is the store's connection to registries.
func (s *Store) Remote() *Remote { return s.remote }

// Close drops connections. The cache stays.
func (s *Store) Close() { s.remote.Close() }

func (s *Store) path(kind, digest string) string {
	return filepath.Join(s.opts.Dir, kind, hexOf(digest))
}

// lock takes the exclusive lock of one entry. Each call opens the file anew,
// so that goroutines exclude each other as processes do. Lock files stay: to
// remove one that somebody waits for would let two in.
func (s *Store) lock(ctx context.Context, kind, digest string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.opts.Dir, "locks", kind+"-"+hexOf(digest)), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, asLocal(err)
	}
	// A blocking flock could not be called off, so ask again and again.
	wait := 2 * time.Millisecond
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, asLocal(fmt.Errorf("locking %s: %w", f.Name(), err))
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(wait):
			wait = min(2*wait, 200*time.Millisecond)
		}
	}
}

// temp makes a folder for an entry in the making. The lock on it says that its
// owner lives; done removes it, or what is left of it.
func (s *Store) temp() (dir string, done func(), err error) {
	// The sweep of a process that is just starting may take the folder between
	// its making and its locking; then there is another.
	for range 100 {
		dir, err = os.MkdirTemp(filepath.Join(s.opts.Dir, "tmp"), "t")
		if err != nil {
			return "", nil, asLocal(err)
		}
		f, err := os.Open(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, asLocal(err)
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			if _, err := os.Lstat(dir); err == nil {
				return dir, func() { removeAll(dir); f.Close() }, nil
			}
		}
		f.Close()
	}
	return "", nil, asLocal(fmt.Errorf("making a folder in %s: others keep removing it", filepath.Join(s.opts.Dir, "tmp")))
}

// sweep removes temporary folders whose owners are gone.
func (s *Store) sweep() error {
	tmp := filepath.Join(s.opts.Dir, "tmp")
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := filepath.Join(tmp, e.Name())
		f, err := os.Open(p)
		if err != nil {
			continue // gone, or somebody else's
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			removeAll(p)
		}
		f.Close()
	}
	return nil
}

// removeAll removes a tree also where folders are not writable to us, as
// images have them and rootless stores meet them. What stays is swept later.
func removeAll(dir string) {
	if os.RemoveAll(dir) == nil {
		return
	}
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	_ = os.RemoveAll(dir)
}

// onceLog logs each distinct line once.
type onceLog struct {
	mu   sync.Mutex
	seen map[string]bool // guarded by mu
	log  func(string)
}

func (o *onceLog) printf(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	o.mu.Lock()
	again := o.seen[line]
	if o.seen == nil {
		o.seen = map[string]bool{}
	}
	o.seen[line] = true
	o.mu.Unlock()
	if !again {
		o.log(line)
	}
}
