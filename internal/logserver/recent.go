package logserver

import (
	"sync"

	"github.com/transparency-dev/tessera"
	xtlog "golang.org/x/mod/sumdb/tlog"
)

// recent remembers the newest entries by hash.
type recent struct {
	mu    sync.Mutex
	max   int
	at    map[xtlog.Hash]tessera.IndexFuture // guarded by mu
	order []xtlog.Hash                       // guarded by mu; oldest first
}

func newRecent(max int) *recent {
	return &recent{max: max, at: map[xtlog.Hash]tessera.IndexFuture{}}
}

// index is that of the entry with this hash: the one that is remembered, or the one
// that add makes. Two who ask at once get one entry.
func (r *recent) index(h xtlog.Hash, add func() tessera.IndexFuture) (int64, error) {
	r.mu.Lock()
	future, ok := r.at[h]
	if !ok {
		future = sync.OnceValues(add())
		r.keep(h, future)
	}
	r.mu.Unlock()
	i, err := future()
	if err != nil {
		// It was not added; the next one may try again.
		r.mu.Lock()
		delete(r.at, h)
		r.mu.Unlock()
		return 0, err
	}
	return int64(i.Index), nil
}

func (r *recent) put(h xtlog.Hash, index int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.at[h]; !ok {
		r.keep(h, func() (tessera.Index, error) { return tessera.Index{Index: uint64(index)}, nil })
	}
}

// keep adds an entry and forgets the oldest ones. The caller holds mu.
func (r *recent) keep(h xtlog.Hash, future tessera.IndexFuture) {
	r.at[h] = future
	r.order = append(r.order, h)
	if len(r.order) >= 2*r.max {
		for _, old := range r.order[:len(r.order)-r.max] {
			delete(r.at, old)
		}
		r.order = append([]xtlog.Hash(nil), r.order[len(r.order)-r.max:]...)
	}
}
