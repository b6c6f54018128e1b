package ec

import (
	"container/list"
	"sync"
)

// recent remembers what was made last, at most max bytes of it as size says, so that
// a run over many images keeps the evidence of those under way and not of all. What
// is asked for again after that is made again. It is safe for concurrent use, and
// those who ask at one time for one thing wait for one making of it. Errors are
// remembered as well.
type recent[V any] struct {
	max  int64
	size func(V) int64

	mu    sync.Mutex // guards what follows
	byKey map[string]*list.Element
	order *list.List // of *made[V], the last asked for first
	total int64
}

type made[V any] struct {
	key  string
	get  func() (V, error)
	size int64 // 0 until it is there
}

// recentOverhead is about what remembering one thing takes beside its size.
const recentOverhead = 512

func newRecent[V any](most int64, size func(V) int64) *recent[V] {
	return &recent[V]{max: most, size: size, byKey: map[string]*list.Element{}, order: list.New()}
}

// get returns what belongs to a key. The context of whoever asks first must not end
// what others wait for: that is make's to see to.
func (r *recent[V]) get(key string, make func() (V, error)) (V, error) {
	r.mu.Lock()
	e := r.byKey[key]
	if e == nil {
		e = r.order.PushFront(&made[V]{key: key, get: sync.OnceValues(make)})
		r.byKey[key] = e
	} else {
		r.order.MoveToFront(e)
	}
	m := e.Value.(*made[V])
	r.mu.Unlock()
	v, err := m.get()
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.size == 0 {
		m.size = recentOverhead
		if err == nil {
			m.size += r.size(v)
		}
		r.total += m.size
	}
	for e := r.order.Back(); e != nil && r.total > r.max; {
		old, before := e.Value.(*made[V]), e.Prev()
		if old.size > 0 { // one that is being made is waited for
			r.order.Remove(e)
			delete(r.byKey, old.key)
			r.total -= old.size
		}
		e = before
	}
	return v, err
}
