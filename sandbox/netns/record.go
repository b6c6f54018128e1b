package netns

import (
	"cmp"
	"slices"
	"sync"

	"assay.dev/assay/observe"
)

// Results of a connection, as the run's record has them.
const (
	resultOK      = "ok"
	resultRefused = "refused" // the other side, or our bound on open connections
	resultDenied  = "denied"  // by policy
	resultError   = "error"
)

// record counts connections by protocol, destination and result.
type record struct {
	mu      sync.Mutex // guards all below
	max     int
	entries map[observe.Connection]*observe.Connection // by protocol, to and result
	dropped int
}

func newRecord(limit int) *record {
	if limit <= 0 {
		limit = 1024
	}
	return &record{max: limit, entries: map[observe.Connection]*observe.Connection{}}
}

// add counts one connection. A destination is a stranger's choice, so its length
// is bounded as the number of entries is.
func (r *record) add(protocol, to, result string, sent, received int64) {
	if len(to) > 255 {
		to = to[:255]
	}
	key := observe.Connection{Protocol: protocol, To: to, Result: result}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[key]
	if e == nil {
		if len(r.entries) >= r.max {
			r.dropped++
			return
		}
		c := key
		e = &c
		r.entries[key] = e
	}
	e.Count++
	e.Sent += sent
	e.Received += received
}

// list returns a copy in a fixed order.
func (r *record) list() ([]observe.Connection, int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]observe.Connection, 0, len(r.entries))
	for _, e := range r.entries {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b observe.Connection) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.To, b.To), cmp.Compare(a.Result, b.Result))
	})
	return out, r.dropped
}
