package gateserver

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"

	"assay.dev/assay/policy/source"
)

// maxCredential bounds files of tokens and certificates.
const maxCredential = 1 << 20

// watched is what is in some files, read again when they change. What cannot be read
// then leaves the old in force: a file that is half written is no reason to let nobody
// in, nor to let anybody in.
type watched[T any] struct {
	files  []string
	parse  func([][]byte) (T, error)
	log    *slog.Logger
	failed func()

	mu    sync.Mutex // guards the below
	seen  string
	value T
}

// watch reads the files for the first time. It fails where they cannot be read or
// understood.
func watch[T any](log *slog.Logger, failed func(), parse func([][]byte) (T, error), files ...string) (*watched[T], error) {
	w := &watched[T]{files: files, parse: parse, log: log, failed: failed}
	var err error
	if w.seen, err = w.state(); err != nil {
		return nil, err
	}
	w.value, err = w.read()
	return w, err
}

// state is something that changes when the files do.
func (w *watched[T]) state() (string, error) {
	var b strings.Builder
	for _, f := range w.files {
		i, err := os.Stat(f)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%d %d\n", i.ModTime().UnixNano(), i.Size())
	}
	return b.String(), nil
}

func (w *watched[T]) read() (T, error) {
	var zero T
	var list [][]byte
	for _, f := range w.files {
		b, err := source.ReadFile(f, maxCredential)
		if err != nil {
			return zero, err
		}
		list = append(list, b)
	}
	v, err := w.parse(list)
	if err != nil {
		return zero, fmt.Errorf("reading %s: %w", strings.Join(w.files, ", "), err)
	}
	return v, nil
}

// get is what the files say by now.
func (w *watched[T]) get() T {
	w.mu.Lock()
	defer w.mu.Unlock()
	state, err := w.state()
	if err == nil && state == w.seen {
		return w.value
	}
	if err != nil {
		// Gone, perhaps for the moment of its replacement. Said once.
		state = err.Error()
		if state == w.seen {
			return w.value
		}
	}
	w.seen = state
	var v T
	if err == nil {
		v, err = w.read()
	}
	if err != nil {
		w.failed()
		w.log.Error("files that changed cannot be read, what they said before holds", "error", errors.Join(err).Error())
		return w.value
	}
	w.log.Info("files that changed are read", "files", strings.Join(w.files, ", "))
	w.value = v
	return v
}
