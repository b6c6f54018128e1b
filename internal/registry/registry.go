package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"
	"golang.org/x/sys/unix"
)

// Role is what a peer on the Unix socket may write, a set: on a machine with a
// single uid a peer can have all of them. The zero value may write nothing.
type Role uint8

// Roles of peers.
const (
	Observer Role = 1 << iota // staging/*
	Releaser                  // released/*
	Operator                  // catalog/*
)

// RunSource is the observer's record of runs.
type RunSource interface {
	// Executor says who executes the run, and whether it is open. A run that
	// is not known is not open; an error is neither.
	Executor(ctx context.Context, run string) (uid uint32, open bool, err error)
}

// Config of a Server. Dir, Name, Runs and Roles are required.
type Config struct {
	// Dir is the registry's folder. It is made if it is not there.
	Dir string
	// Name is what references call this registry: api.DefaultRegistry.
	Name string
	// Runs tells open runs.
	Runs RunSource
	// Roles tells the role of the peer with a uid.
	Roles func(uid uint32) Role
	// Clock stamps uploads. Default: time.Now.
	Clock func() time.Time
	// ManifestBytes bounds a manifest. Default: 4 MiB.
	ManifestBytes int64
	// BlobBytes bounds what one request sends. Default: 16 GiB.
	BlobBytes int64
	// RunBytes bounds what all tokens of one run send. Default: 64 GiB.
	RunBytes int64
	// Log gets what an operator should know. Default: nothing.
	Log *slog.Logger
}

// Server is the process that all writes go through. New makes it, Close ends it.
type Server struct {
	conf    Config
	store   http.Handler
	lock    *os.File
	uploads *memory
	tokens  *tokens
	repos   sync.Mutex // held while a repository is made
	// manifests has a *sync.Mutex by repository, held while one is written.
	manifests sync.Map

	mu      sync.Mutex // guards what follows
	servers []*http.Server
	closed  bool
	busy    sync.WaitGroup // writes under way
}

// begin counts a write as under way. It says false once the server is closed.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.busy.Add(1)
	return true
}

// forever keeps olareg's garbage collector from removing anything: what a run
// put here is evidence until somebody removes the run's folder.
const forever = 100 * 365 * 24 * time.Hour

// New opens the registry's folder for writing. It fails if the configuration
// is incomplete, if another process has the folder, or if the memory of
// uploads in it is damaged.
func New(c Config) (*Server, error) {
	if c.Dir == "" || c.Name == "" || c.Runs == nil || c.Roles == nil {
		return nil, errors.New("opening registry: the configuration needs Dir, Name, Runs and Roles")
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	for bound, byDefault := range map[*int64]int64{&c.ManifestBytes: 4 << 20, &c.BlobBytes: 16 << 30, &c.RunBytes: 64 << 30} {
		if *bound < 0 {
			return nil, errors.New("opening registry: a bound is negative; 0 means the default")
		}
		if *bound == 0 {
			*bound = byDefault
		}
	}
	var err error
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return nil, fmt.Errorf("opening registry: %w", err)
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("opening registry: %w", err)
	}
	lock, err := lockDir(c.Dir)
	if err != nil {
		return nil, err
	}
	if err := tidy(c.Dir); err != nil {
		lock.Close()
		return nil, fmt.Errorf("opening registry: %w", err)
	}
	uploads, err := openMemory(c.Dir)
	if err != nil {
		lock.Close()
		return nil, err
	}
	yes, no := true, false
	o := olareg.New(config.Config{
		Storage: config.ConfigStorage{
			StoreType: config.StoreDir, RootDir: c.Dir, ReadOnly: &no,
			GC: config.ConfigGC{Frequency: -1, GracePeriod: forever, Untagged: &no, EmptyRepo: &no, ReferrersDangling: &no, ReferrersWithSubj: &no},
		},
		API: config.ConfigAPI{
			PushEnabled: &yes, DeleteEnabled: &no,
			Manifest: config.ConfigAPIManifest{Limit: c.ManifestBytes}, Referrer: config.ConfigAPIReferrer{Enabled: &yes},
		},
		Log: c.Log,
	})
	// olareg's own Close is never called: all it does for a folder is to collect
	// garbage and to remove unfinished uploads, which tidy does.
	return &Server{conf: c, store: o, lock: lock, uploads: uploads, tokens: newTokens()}, nil
}

// lockDir makes sure that there is one writer.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("opening registry: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("opening registry: another process writes to %s; use its socket, or stop it", dir)
		}
		return nil, fmt.Errorf("locking registry %s: %w", dir, err)
	}
	return f, nil
}

// tidy removes uploads that a killed process left unfinished and makes what it
// stored readable for all.
func tidy(dir string) error {
	return filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "_uploads", !d.IsDir() && strings.HasPrefix(d.Name(), "index.json."), !d.IsDir() && d.Name() == "oci-layout.new":
			if err := os.RemoveAll(p); err != nil {
				return err
			}
			if d.IsDir() {
				return filepath.SkipDir
			}
		case d.Type().IsRegular():
			return readable(p)
		}
		return nil
	})
}

// readable gives everyone the right to read a file. olareg makes files by
// os.CreateTemp, which are the owner's alone, while our other processes read
// the folder under users of their own.
func readable(p string) error {
	i, err := os.Stat(p)
	if err != nil {
		return err
	}
	if i.Mode().Perm()&0o044 == 0o044 {
		return nil
	}
	return os.Chmod(p, 0o644)
}

// Serve accepts connections on a Unix socket until Close. Peers have the role
// of their uid, and the control API. It returns nil after Close.
func (s *Server) Serve(l net.Listener) error {
	return s.serve(l, s, func(ctx context.Context, c net.Conn) context.Context {
		uid, err := peerUID(c)
		if err != nil {
			// Without credentials a peer is nobody: it may read.
			s.conf.Log.Error("reading peer credentials", "err", err)
			return ctx
		}
		return context.WithValue(ctx, peerKey{}, uid)
	})
}

// ServeTasks accepts connections on behalf of steps until Close: tokens count
// and nothing else does. Whoever dials for a task is its executor, whose rights
// (minting tokens, above all) must not pass to the steps behind it, so on this
// listener peers are nobody. It returns nil after Close.
func (s *Server) ServeTasks(l net.Listener) error { return s.serve(l, s, nil) }

// ServeReadOnly accepts connections of anyone, for instance on TCP, and lets
// them read, until Close. It returns nil after Close.
func (s *Server) ServeReadOnly(l net.Listener) error {
	return s.serve(l, readOnly(http.HandlerFunc(s.read)), nil)
}

func (s *Server) serve(l net.Listener, h http.Handler, cc func(context.Context, net.Conn) context.Context) error {
	srv := &http.Server{Handler: h, ConnContext: cc, ReadHeaderTimeout: 30 * time.Second, MaxHeaderBytes: 64 << 10}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errors.New("serving registry: it is closed")
	}
	s.servers = append(s.servers, srv)
	s.mu.Unlock()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving registry: %w", err)
	}
	return nil
}

// Close revokes all tokens, ends all connections and releases the folder. It
// may be called twice.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	servers := s.servers
	s.mu.Unlock()
	var errs []error
	for _, srv := range servers {
		errs = append(errs, srv.Close())
	}
	s.tokens.revoke(func(*token) bool { return true })
	s.busy.Wait()
	errs = append(errs, tidy(s.conf.Dir), s.uploads.close(), s.lock.Close())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("closing registry: %w", err)
	}
	return nil
}

// peerKey is the context key of a peer's uid.
type peerKey struct{}

func peerOf(ctx context.Context) (uid uint32, ok bool) {
	uid, ok = ctx.Value(peerKey{}).(uint32)
	return uid, ok
}

func peerUID(c net.Conn) (uint32, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return 0, fmt.Errorf("a connection by %s has no peer credentials", c.RemoteAddr().Network())
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if cerr != nil {
		return 0, cerr
	}
	return cred.Uid, nil
}
