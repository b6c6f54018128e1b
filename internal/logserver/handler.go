package logserver

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/transparency-dev/tessera"
	"golang.org/x/sys/unix"

	"assay.dev/assay/attest/tlog"
)

// addTimeout is how long an addition waits for its checkpoint before the caller is
// asked to come again.
const addTimeout = 30 * time.Second

// Admission says who may add entries. Its zero value admits nobody; reading a log is
// free to all.
type Admission struct {
	// TokenFile holds a secret that callers send as bearer token. Read anew for each
	// request, so that it can be changed.
	TokenFile string
	// UIDs are users whose processes may add over a Unix socket.
	UIDs []uint32
}

// Handler answers reads, as C2SP's tlog-tiles has them, additions (POST /add, a
// leaf's text; the answer is a tlog-proof) and GET /entry/N (a tlog-proof with the
// leaf as extra). The http.Server must have ConnContext set to PeerContext for
// callers on a Unix socket to be known.
func (s *Server) Handler(a Admission) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /checkpoint", s.resource)
	mux.HandleFunc("GET /tile/", s.resource)
	mux.HandleFunc("GET /entry/{index}", s.entry)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("POST /add", func(w http.ResponseWriter, r *http.Request) {
		if err := a.admit(r); err != nil {
			s.log.Warn("addition refused", "from", r.RemoteAddr, "reason", err)
			http.Error(w, err.Error(), http.StatusUnauthorized)
			return
		}
		s.add(w, r)
	})
	return mux
}

func (s *Server) resource(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/")
	data, err := s.tiles.Fetch(r.Context(), path, bundleWidth*(2+1<<16))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		http.Error(w, "the log has no such thing", http.StatusNotFound)
		return
	case err != nil:
		s.log.Error("reading the log", "path", path, "error", err)
		http.Error(w, "the log cannot be read", http.StatusInternalServerError)
		return
	}
	if path == "checkpoint" {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-cache")
	} else {
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	w.Write(data)
}

func (s *Server) entry(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.PathValue("index"), 10, 64)
	if err != nil || n < 0 {
		http.Error(w, "an entry's index is a number", http.StatusBadRequest)
		return
	}
	c, err := s.current(r.Context())
	if err == nil && n >= c.Size {
		http.Error(w, fmt.Sprintf("the log has %d entries", c.Size), http.StatusNotFound)
		return
	}
	var p tlog.Proof
	if err == nil {
		p, err = s.Entry(r.Context(), n)
	}
	if err != nil {
		s.log.Error("reading an entry", "index", n, "error", err)
		http.Error(w, "the log cannot be read", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(p.Bytes())
}

func (s *Server) add(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, tlog.MaxLeaf))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		http.Error(w, fmt.Sprintf("an entry has at most %d bytes", tlog.MaxLeaf), http.StatusRequestEntityTooLarge)
		return
	case err != nil:
		http.Error(w, "the entry was cut short", http.StatusBadRequest)
		return
	}
	leaf, err := tlog.ParseLeaf(text)
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnprocessableEntity)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), addTimeout)
	defer cancel()
	p, err := s.Add(ctx, leaf)
	if err != nil {
		s.log.Error("adding an entry", "error", err)
		again := "5"
		if errors.Is(err, errBusy) || errors.Is(err, tessera.ErrPushback) {
			again = "1"
		}
		w.Header().Set("Retry-After", again)
		http.Error(w, "the entry is not under a checkpoint yet (no witness, or too much to do); the same again adds nothing twice", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Write(p.Bytes())
}

type peerKey struct{}

// PeerContext is for http.Server.ConnContext: it notes which user's process is at
// the other end of a Unix socket.
func PeerContext(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); e != nil || err != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred.Uid)
}

// admit is nil if the caller may add.
func (a Admission) admit(r *http.Request) error {
	if uid, ok := r.Context().Value(peerKey{}).(uint32); ok && slices.Contains(a.UIDs, uid) {
		return nil
	}
	if a.TokenFile == "" {
		return errors.New("you are not among the users who may add to this log")
	}
	want, err := os.ReadFile(a.TokenFile)
	if err != nil {
		return errors.New("the log cannot read its token")
	}
	secret := strings.TrimSpace(string(want))
	if len(secret) < minToken {
		return errors.New("the log's token is too short to be one")
	}
	got, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	// Of equal length whatever was sent, so that the time tells nothing.
	x, y := sha256.Sum256([]byte(got)), sha256.Sum256([]byte(secret))
	if !ok || subtle.ConstantTimeCompare(x[:], y[:]) != 1 {
		return errors.New("adding to this log needs its token")
	}
	return nil
}

const minToken = 20
