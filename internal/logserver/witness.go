package logserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"
	xtlog "golang.org/x/mod/sumdb/tlog"

	"assay.dev/assay/attest/tlog"
)

// maxAddCheckpoint bounds a request to a witness: a proof and a checkpoint.
const maxAddCheckpoint = 32 << 10

// WitnessOptions say whom a witness watches and where it remembers.
type WitnessOptions struct {
	// Key makes the cosignatures.
	Key *tlog.Cosigner
	// Logs are the keys of the logs that it watches; one at least.
	Logs []tlog.LogKey
	// State is the folder in which it remembers; made if it is not there. One
	// process at a time. Who loses it loses the witness' memory: whoever can roll it
	// back can make the witness cosign a fork.
	State string
	Log   *slog.Logger
}

// Witness cosigns checkpoints that continue what it saw before. Make one with
// NewWitness, and Close it.
type Witness struct {
	key   *tlog.Cosigner
	trust tlog.Trust
	state string
	lock  *os.File
	log   *slog.Logger

	mu   sync.Mutex
	seen map[string]tlog.Tree // guarded by mu; by origin, as on disk
}

// NewWitness opens a witness. It fails if another process has its state open, or if
// what is remembered there does not verify with the logs' keys and its own.
func NewWitness(o WitnessOptions) (*Witness, error) {
	w, err := newWitness(o)
	if err != nil {
		return nil, fmt.Errorf("opening witness: %w", err)
	}
	return w, nil
}

func newWitness(o WitnessOptions) (*Witness, error) {
	if o.Key == nil || len(o.Logs) == 0 || o.State == "" {
		return nil, errors.New("a witness needs a key, the key of a log, and a folder to remember in")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	w := &Witness{
		key: o.Key, state: o.State, log: o.Log, seen: map[string]tlog.Tree{},
		trust: tlog.Trust{Logs: o.Logs, Witnesses: []tlog.WitnessKey{o.Key.Public()}},
	}
	if err := w.trust.Check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.State, 0o700); err != nil {
		return nil, err
	}
	var err error
	if w.lock, err = lockFile(filepath.Join(o.State, ".lock")); err != nil {
		return nil, err
	}
	for _, l := range o.Logs {
		if err := w.recall(l.Origin()); err != nil {
			w.lock.Close()
			return nil, err
		}
	}
	return w, nil
}

// recall reads what the witness remembers of a log.
func (w *Witness) recall(origin string) error {
	signed, err := os.ReadFile(w.file(origin))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading what is remembered of log %q: %w", origin, err)
	}
	c, err := tlog.VerifyCheckpoint(signed, w.trust)
	if err == nil && c.Origin != origin {
		err = fmt.Errorf("it is of log %q", c.Origin)
	}
	if err != nil {
		return fmt.Errorf("reading what is remembered of log %q, in %s: %w", origin, w.file(origin), err)
	}
	w.seen[origin] = c.Tree
	return nil
}

// Close gives the state free.
func (w *Witness) Close() error { return w.lock.Close() }

// Key is what verifiers and logs are given.
func (w *Witness) Key() tlog.WitnessKey { return w.key.Public() }

// Seen is the tree last cosigned of a log; false if there was none.
func (w *Witness) Seen(origin string) (tlog.Tree, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t, ok := w.seen[origin]
	return t, ok
}

// Refusal is why a witness does not cosign, in the words of C2SP's tlog-witness.
type Refusal struct {
	Status int   // of HTTP
	Size   int64 // of the tree last cosigned; given where the caller can mend it
	Err    error
}

// Error implements error.
func (r *Refusal) Error() string { return "not cosigned: " + r.Err.Error() }

// Unwrap implements errors.Unwrap.
func (r *Refusal) Unwrap() error { return r.Err }

// AddCheckpoint cosigns a checkpoint of one of the logs and returns the cosignature,
// one line of a signed note. Old is the size that the caller thinks was cosigned
// last, and the proof shows that the checkpoint continues that tree. The witness
// remembers before it answers. An error is a *Refusal, or says that nothing could be
// remembered; then nothing was cosigned.
func (w *Witness) AddCheckpoint(old int64, proof []xtlog.Hash, signed []byte) ([]byte, error) {
	tree, err := tlog.ParseTree(signed)
	if err != nil {
		return nil, &Refusal{Status: http.StatusBadRequest, Err: err}
	}
	known := false
	for _, l := range w.trust.Logs {
		known = known || l.Origin() == tree.Origin
	}
	if !known {
		return nil, &Refusal{Status: http.StatusNotFound, Err: fmt.Errorf("log %.80q is not watched here", tree.Origin)}
	}
	c, err := tlog.VerifyCheckpoint(signed, tlog.Trust{Logs: w.trust.Logs})
	if err != nil {
		return nil, &Refusal{Status: http.StatusForbidden, Err: err}
	}
	if old > c.Size {
		return nil, &Refusal{Status: http.StatusBadRequest, Err: fmt.Errorf("a tree of %d cannot continue one of %d", c.Size, old)}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	last, ok := w.seen[c.Origin]
	if !ok {
		last = tlog.Tree{Origin: c.Origin}
	}
	if last.Size != old {
		return nil, &Refusal{Status: http.StatusConflict, Size: last.Size, Err: fmt.Errorf("the tree last cosigned has %d entries, not %d", last.Size, old)}
	}
	if ok || len(proof) > 0 { // of what was never seen, anything is a continuation
		if err := tlog.CheckConsistency(proof, last, c.Tree); err != nil {
			status := http.StatusUnprocessableEntity
			if last.Size == c.Size && last.Root != c.Root {
				status = http.StatusConflict
				w.keepEvidence(signed)
			}
			w.log.Error("NOT cosigned", "log", c.Origin, "size", c.Size, "cosigned", last.Size, "reason", err)
			return nil, &Refusal{Status: status, Err: err}
		}
	}
	// Only the log's own signature is kept and signed over; what else the note had
	// was not checked.
	n, err := note.Open(signed, w.verifiers(c.Origin))
	if err != nil {
		return nil, &Refusal{Status: http.StatusForbidden, Err: err}
	}
	n.UnverifiedSigs = nil
	cosigned, err := note.Sign(n, w.key)
	if err != nil {
		return nil, fmt.Errorf("cosigning: %w", err)
	}
	if _, err := tlog.VerifyCheckpoint(cosigned, w.trust); err != nil {
		return nil, fmt.Errorf("cosigning: %w", err)
	}
	if err := replaceFile(w.file(c.Origin), cosigned, 0o600); err != nil {
		return nil, fmt.Errorf("remembering the checkpoint of log %q: %w", c.Origin, err)
	}
	w.seen[c.Origin] = c.Tree
	w.log.Info("cosigned", "log", c.Origin, "size", c.Size)
	lines := bytes.SplitAfter(bytes.TrimSuffix(cosigned, []byte("\n")), []byte("\n"))
	return append(bytes.Clone(lines[len(lines)-1]), '\n'), nil
}

// verifiers is the log's key alone.
func (w *Witness) verifiers(origin string) note.Verifiers {
	var list []note.Verifier
	for _, l := range w.trust.Logs {
		if l.Origin() == origin {
			list = append(list, l.Verifier())
		}
	}
	return note.VerifierList(list...)
}

// keepEvidence keeps the first checkpoint that contradicts what was cosigned: the
// two together prove that the log cheats.
func (w *Witness) keepEvidence(signed []byte) {
	tree, err := tlog.ParseTree(signed)
	if err != nil {
		return
	}
	if err := newFile(w.file(tree.Origin)+".fork", signed, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		w.log.Error("keeping the forked checkpoint", "error", err)
	}
}

// file is where a log's last checkpoint is kept. An origin can hold anything.
func (w *Witness) file(origin string) string {
	sum := sha256.Sum256([]byte(origin))
	return filepath.Join(w.state, hex.EncodeToString(sum[:8]))
}

// Once reads a log's checkpoint, checks with its tiles that it continues what the
// witness saw before, remembers and cosigns it: for who watches a log that does not
// ask. It returns the cosigned checkpoint.
func (w *Witness) Once(ctx context.Context, fetch tlog.Fetch) ([]byte, error) {
	signed, err := fetch(ctx, "checkpoint", tlog.MaxCheckpoint)
	if err != nil {
		return nil, fmt.Errorf("reading checkpoint: %w", err)
	}
	c, err := tlog.VerifyCheckpoint(signed, tlog.Trust{Logs: w.trust.Logs})
	if err != nil {
		return nil, err
	}
	last, _ := w.Seen(c.Origin)
	if c.Size < last.Size {
		return nil, fmt.Errorf("%w: log %q had %d entries and has %d", tlog.ErrFork, c.Origin, last.Size, c.Size)
	}
	proof, err := tlog.Tiles{Fetch: fetch}.Consistency(ctx, c.Tree, last.Size)
	if err != nil {
		return nil, err
	}
	line, err := w.AddCheckpoint(last.Size, proof, signed)
	var no *Refusal
	if errors.As(err, &no) && no.Status == http.StatusUnprocessableEntity {
		// The proof is the tiles' own, so it is the tree that differs.
		return nil, fmt.Errorf("%w: %w", tlog.ErrFork, err)
	}
	if err != nil {
		return nil, err
	}
	return append(bytes.Clone(signed), line...), nil
}

// Handler answers POST /add-checkpoint as C2SP's tlog-witness has it, and GET /seen,
// which lists what was cosigned last.
func (w *Witness) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /add-checkpoint", w.addCheckpoint)
	mux.HandleFunc("GET /healthz", func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprintln(rw, "ok") })
	mux.HandleFunc("GET /seen", func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		for _, l := range w.trust.Logs {
			t, _ := w.Seen(l.Origin())
			fmt.Fprintf(rw, "%s %d %v\n", l.Origin(), t.Size, t.Root)
		}
	})
	return mux
}

func (w *Witness) addCheckpoint(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxAddCheckpoint))
	if err != nil {
		http.Error(rw, "a request has at most 32 KiB", http.StatusBadRequest)
		return
	}
	old, proof, signed, err := parseAddCheckpoint(body)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	line, err := w.AddCheckpoint(old, proof, signed)
	var no *Refusal
	switch {
	case errors.As(err, &no) && no.Status == http.StatusConflict && !errors.Is(err, tlog.ErrFork):
		rw.Header().Set("Content-Type", "text/x.tlog.size")
		rw.WriteHeader(no.Status)
		fmt.Fprintf(rw, "%d\n", no.Size)
	case errors.As(err, &no):
		http.Error(rw, no.Error(), no.Status)
	case err != nil:
		w.log.Error("cosigning", "error", err)
		http.Error(rw, "the witness cannot remember the checkpoint, so it does not cosign it", http.StatusInternalServerError)
	default:
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		rw.Write(line)
	}
}

// parseAddCheckpoint takes a request apart: old SIZE, hashes, an empty line, the
// checkpoint.
func parseAddCheckpoint(body []byte) (old int64, proof []xtlog.Hash, signed []byte, err error) {
	head, signed, ok := bytes.Cut(body, []byte("\n\n"))
	if !ok {
		return 0, nil, nil, errors.New("reading request: no empty line before the checkpoint")
	}
	lines := strings.Split(string(head), "\n")
	n, ok := strings.CutPrefix(lines[0], "old ")
	if old, err = strconv.ParseInt(n, 10, 64); !ok || err != nil || old < 0 || strconv.FormatInt(old, 10) != n {
		return 0, nil, nil, errors.New("reading request: the first line is not old SIZE")
	}
	if proof, err = tlog.ParseConsistency(lines[1:]); err != nil {
		return 0, nil, nil, err
	}
	return old, proof, signed, nil
}
