package signer

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/attest/signing"
)

// maxKeys is how many keys are remembered; the oldest former ones go first.
const maxKeys = 256

// history remembers which public keys signed when, so that whoever publishes keys
// to verifiers does not take away one whose signatures are still about.
type history struct {
	path string // empty: not kept

	mu      sync.Mutex // guards what follows
	entries []entry
	current map[string]current // by source
}

// current is the key that signs for a source. Generation counts how often the
// source was opened: a message that was under way with an older one says nothing
// about now, nor does one that still has the key from before a rotation within it.
type current struct {
	generation  uint64
	fingerprint string
	before      map[string]bool // fingerprints of this generation's earlier keys
}

type entry struct {
	signing.Key
	// Source is where the key is; one key of it is current.
	Source string `json:"source"`
}

// openHistory reads FILE.keys beside a journal, or begins with nothing.
func openHistory(journal string) (*history, error) {
	h := &history{current: map[string]current{}}
	if journal == "" {
		return h, nil
	}
	h.path = journal + ".keys"
	data, err := os.ReadFile(h.path)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &h.entries)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the keys that signed (%s): %w; mend or remove it", h.path, err)
	}
	for _, e := range h.entries {
		key, err := dsse.ParsePublicKey([]byte(e.PEM))
		if err != nil {
			return nil, fmt.Errorf("reading the keys that signed (%s): %w; mend or remove it", h.path, err)
		}
		if e.Until == nil {
			h.current[e.Source] = current{fingerprint: key.Fingerprint()}
		}
	}
	return h, nil
}

// used notes that a key signs for a source. It fails if that cannot be written
// down; the key must not sign then.
func (h *history) used(kind signing.Kind, source string, generation uint64, key dsse.PublicKey, now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	have, fp := h.current[source], key.Fingerprint()
	next := current{generation: generation, fingerprint: fp}
	switch {
	case have.fingerprint == "":
	case generation < have.generation:
		return nil
	case have.fingerprint == fp:
		have.generation = generation
		h.current[source] = have
		return nil
	case generation == have.generation:
		if have.before[fp] {
			return nil
		}
		next.before = map[string]bool{have.fingerprint: true}
		for old := range have.before {
			next.before[old] = true
		}
	}
	entries := slices.Clone(h.entries)
	for i, e := range entries {
		if e.Source == source && e.Until == nil {
			entries[i].Until = &now
		}
	}
	entries = append(entries, entry{signing.Key{Kind: kind, KeyID: key.KeyID(), PEM: string(key.PEM()), Since: now}, source})
	for len(entries) > maxKeys {
		i := slices.IndexFunc(entries, func(e entry) bool { return e.Until != nil })
		entries = slices.Delete(entries, max(i, 0), max(i, 0)+1)
	}
	if err := h.write(entries); err != nil {
		return fmt.Errorf("noting a new key in %s: %w", h.path, err)
	}
	h.entries, h.current[source] = entries, next
	return nil
}

func (h *history) write(entries []entry) error {
	if h.path == "" {
		return nil
	}
	data, err := json.MarshalIndent(entries, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(h.path), ".keys-*")
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), h.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// list is every key, current ones first, then by when they began, newest first.
func (h *history) list() []signing.Key {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]signing.Key, 0, len(h.entries))
	for _, e := range h.entries {
		out = append(out, e.Key)
	}
	slices.SortStableFunc(out, func(a, b signing.Key) int {
		if (a.Until == nil) != (b.Until == nil) {
			if a.Until == nil {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.Since.UnixNano(), a.Since.UnixNano())
	})
	return out
}
