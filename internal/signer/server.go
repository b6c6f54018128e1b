package signer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"assay.dev/assay/attest/signing"
	"assay.dev/assay/internal/channel"
	"assay.dev/assay/store"
)

// Bounds on what peers may occupy.
const (
	maxConns    = 256
	maxInFlight = 128
	// maxBytes bounds the messages in memory, all together.
	maxBytes = 4 * signing.MaxMessage
	// maxSets is how many settings are known by digest.
	maxSets = 64
)

// Server serves a Signer on a socket.
type Server struct {
	signer *Signer
	uids   []uint32
	log    *slog.Logger
	slots  *semaphore.Weighted
	bytes  *semaphore.Weighted

	mu    sync.Mutex // guards what follows
	sets  map[string]signing.Settings
	order []string // digests in sets, oldest first
}

// NewServer makes a server that answers peers of the given users. None is an
// error: a signer that answers nobody, or everybody, is a mistake.
func NewServer(s *Signer, uids []uint32, log *slog.Logger) (*Server, error) {
	if len(uids) == 0 {
		return nil, errors.New("making a server: no user may ask it")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		signer: s, uids: uids, log: log, sets: map[string]signing.Settings{},
		slots: semaphore.NewWeighted(maxInFlight), bytes: semaphore.NewWeighted(maxBytes),
	}, nil
}

// Listen makes the socket, for this user and group only. It replaces one that a
// killed predecessor left and nothing else: a file that is no socket, and a socket
// that somebody answers, are errors. Where it takes a predecessor's place nobody
// ever finds a socket that is open to others.
func Listen(path string) (net.Listener, error) {
	l, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("listening at %s: %w", path, err)
	}
	return l, nil
}

func listen(path string) (net.Listener, error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err != nil:
		return nil, err
	case info.Mode().Type() != os.ModeSocket:
		return nil, errors.New("there is something that is no socket; remove it or choose another path")
	default:
		if c, err := net.Dial("unix", path); err == nil {
			return nil, errors.Join(errors.New("another process answers there already"), c.Close())
		}
	}
	temp := path + "." + strconv.Itoa(os.Getpid())
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(temp, 0o660); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(temp))
	}
	own, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return &socket{l, path, own}, nil
}

// socket removes its own name, and no successor's, when it is closed.
type socket struct {
	*net.UnixListener
	path string
	own  os.FileInfo
}

// Close implements net.Listener.
func (s *socket) Close() error {
	if now, err := os.Lstat(s.path); err == nil && os.SameFile(now, s.own) {
		return errors.Join(s.UnixListener.Close(), os.Remove(s.path))
	}
	return s.UnixListener.Close()
}

type peerKey struct{}

// Serve answers until ctx ends, then lets requests under way finish. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	srv := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       time.Minute,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, c)
		},
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(&peerListener{l, make(chan struct{}, maxConns)}) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return errors.Join(srv.Shutdown(stop), ignoreClosed(<-failed))
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// peerListener asks the kernel who connected, once for each connection, and holds
// connections to maxConns.
type peerListener struct {
	net.Listener
	free chan struct{}
}

// Accept implements net.Listener.
func (l *peerListener) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	p := &peerConn{Conn: c, release: sync.OnceFunc(func() { <-l.free })}
	p.uid, _, p.err = channel.Peer(c)
	return p, nil
}

type peerConn struct {
	net.Conn
	uid     uint32
	err     error // why uid is not known
	release func()
}

// Close implements net.Conn.
func (c *peerConn) Close() error {
	c.release()
	return c.Conn.Close()
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+signing.PathSign, s.sign)
	mux.HandleFunc("PUT "+signing.PathSettings, s.settings)
	mux.HandleFunc("GET "+signing.PathKeys, s.keys)
	mux.HandleFunc("GET "+signing.PathHealth, s.health)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, ok := r.Context().Value(peerKey{}).(*peerConn)
		switch {
		case !ok:
			fail(w, http.StatusForbidden, store.As(store.Configuration, errors.New("this connection is no Unix socket's")))
		case p.err != nil:
			fail(w, http.StatusForbidden, store.As(store.Configuration, p.err))
		case !slices.Contains(s.uids, p.uid):
			s.log.Warn("refusing a peer", "uid", p.uid)
			fail(w, http.StatusForbidden, store.As(store.Configuration, fmt.Errorf("user %d may not ask this signer; start it with --allow-uid %d", p.uid, p.uid)))
		default:
			mux.ServeHTTP(w, r)
		}
	})
}

func (s *Server) sign(w http.ResponseWriter, r *http.Request) {
	set, ok := s.set(r.Header.Get(signing.HeaderSettings))
	if !ok {
		// The client sends them and asks again.
		fail(w, http.StatusPreconditionRequired, errors.New("settings are not known here"))
		return
	}
	n := r.ContentLength
	if n < 0 || n > signing.MaxMessage {
		fail(w, http.StatusRequestEntityTooLarge, store.As(store.Permanent, fmt.Errorf("a message needs a length of at most %d bytes", signing.MaxMessage)))
		return
	}
	for _, take := range []struct {
		of *semaphore.Weighted
		n  int64
	}{{s.slots, 1}, {s.bytes, max(n, 1)}} {
		if err := take.of.Acquire(r.Context(), take.n); err != nil {
			return // nobody waits for the answer
		}
		defer take.of.Release(take.n)
	}
	message := make([]byte, n)
	if _, err := io.ReadFull(r.Body, message); err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("reading the message: %w", err))
		return
	}
	sigs, err := s.signer.SignFor(r.Context(), r.Context().Value(peerKey{}).(*peerConn).uid, set, message)
	if err != nil {
		fail(w, status(err), err)
		return
	}
	b, err := signing.EncodeSignatures(sigs)
	answer(w, b, err)
}

// status is the HTTP status of a class of errors; the class itself is in the body.
func status(err error) int {
	switch store.ClassOf(err) {
	case store.Configuration:
		return http.StatusFailedDependency
	case store.Permanent:
		return http.StatusUnprocessableEntity
	}
	return http.StatusServiceUnavailable
}

func (s *Server) set(digest string) (signing.Settings, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set, ok := s.sets[digest]
	return set, ok
}

func (s *Server) settings(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(io.LimitReader(r.Body, signing.MaxSettings+1))
	if err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("reading settings: %w", err))
		return
	}
	set, digest, err := signing.DecodeSettings(data)
	if err != nil {
		fail(w, status(err), err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, known := s.sets[digest]; !known {
		if len(s.order) == maxSets {
			delete(s.sets, s.order[0])
			s.order = s.order[1:]
		}
		s.sets[digest] = set
		s.order = append(s.order, digest)
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) keys(w http.ResponseWriter, r *http.Request) {
	keys, err := s.signer.Keys(r.Context())
	if err != nil {
		fail(w, status(err), err)
		return
	}
	b, err := signing.EncodeKeys(keys)
	answer(w, b, err)
}

func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	b, err := json.Marshal(s.signer.Health())
	answer(w, b, err)
}

func answer(w http.ResponseWriter, b []byte, err error) {
	if err != nil {
		fail(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(b) //nolint:errcheck // the peer may be gone
}

func fail(w http.ResponseWriter, status int, err error) {
	b, merr := json.Marshal(signing.NewFailure(err))
	if merr != nil {
		status, b = http.StatusInternalServerError, []byte(`{"class":"transient","message":"encoding an error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b) //nolint:errcheck // the peer may be gone
}
