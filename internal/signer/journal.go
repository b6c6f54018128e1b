package signer

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"assay.dev/assay/attest/signing"
	"assay.dev/assay/store"
)

// line is what the journal says of one message.
type line struct {
	Time          time.Time           `json:"time"`
	Kind          signing.MessageKind `json:"kind"`
	SHA256        string              `json:"sha256"` // of what was signed: the PAE of a statement
	PredicateType string              `json:"predicateType,omitempty"`
	Subjects      int                 `json:"subjects"`
	KeyIDs        []string            `json:"keyids"`
	UID           uint32              `json:"uid"` // who asked
}

// journal is a file to which lines are only ever added. A line is written before
// its signatures leave the process, so a kill loses none; it is brought to disk
// within a second, which a loss of power may.
type journal struct {
	path string
	log  *slog.Logger
	stop chan struct{}
	done sync.WaitGroup

	mu    sync.Mutex // guards what follows
	file  *os.File   // nil: no journal is kept
	dirty bool
}

// openJournal opens or makes the journal; an empty path keeps none.
func openJournal(path string, log *slog.Logger) (*journal, error) {
	j := &journal{path: path, log: log, stop: make(chan struct{})}
	if path == "" {
		return j, nil
	}
	if err := j.open(); err != nil {
		return nil, fmt.Errorf("opening the journal %s: %w", path, err)
	}
	j.done.Go(j.sync)
	return j, nil
}

func (j *journal) open() error {
	f, err := os.OpenFile(j.path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	// A line torn by a crash is ended, so that it costs only itself.
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, info.Size()-1); err != nil {
			return errors.Join(err, f.Close())
		}
		if last[0] != '\n' {
			if _, err := f.WriteString("\n"); err != nil {
				return errors.Join(err, f.Close())
			}
		}
	}
	j.file = f
	return nil
}

// add writes a line. On an error nothing that it speaks of may be handed out.
func (j *journal) add(uid uint32, m signing.Message, sigs []store.Signature) error {
	if j.path == "" {
		return nil
	}
	l := line{
		Time: time.Now().UTC(), Kind: m.Kind, SHA256: hex.EncodeToString(m.SHA256[:]),
		PredicateType: m.PredicateType, Subjects: m.Subjects, UID: uid,
	}
	for _, s := range sigs {
		l.KeyIDs = append(l.KeyIDs, s.KeyID)
	}
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file == nil {
		return errors.New("writing the journal: it is closed")
	}
	if _, err := j.file.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("writing the journal %s, without which nothing is signed: %w", j.path, err)
	}
	j.dirty = true
	return nil
}

// sync brings lines to disk, and follows when somebody moves the file away.
func (j *journal) sync() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-j.stop:
			return
		}
		j.mu.Lock()
		if j.dirty {
			if err := j.file.Sync(); err != nil {
				j.log.Error("bringing the journal to disk", "error", err)
			}
			j.dirty = false
		}
		if err := j.follow(); err != nil {
			j.log.Error("opening the journal again after it was moved", "error", err)
		}
		j.mu.Unlock()
	}
}

// follow opens the journal anew if its name stands for another file or none.
func (j *journal) follow() error {
	have, err := j.file.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(j.path); err == nil && os.SameFile(have, now) {
		return nil
	}
	old := j.file
	if err := j.open(); err != nil {
		return err // the old one goes on
	}
	return old.Close()
}

// Close brings the journal to disk and ends it.
func (j *journal) Close() error {
	if j.path == "" {
		return nil
	}
	close(j.stop)
	j.done.Wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	err := errors.Join(j.file.Sync(), j.file.Close())
	j.file = nil
	return err
}
