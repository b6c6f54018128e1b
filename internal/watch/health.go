package watch

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// health is what /readyz says: one line for each thing worth knowing, and not
// ready while one of them keeps runs from being signed.
type health struct {
	mu    sync.Mutex
	lines map[string]line
}

type line struct {
	detail string
	ready  bool // worth knowing, but no reason to call us not ready
}

func newHealth() *health { return &health{lines: map[string]line{}} }

func (h *health) set(name, detail string, ready bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines[name] = line{detail, ready}
}

func (h *health) clear(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.lines, name)
}

func (h *health) clearPrefix(prefix string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name := range h.lines {
		if strings.HasPrefix(name, prefix) {
			delete(h.lines, name)
		}
	}
}

// text lists what there is to know, and whether we are ready.
func (h *health) text() (string, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ready := true
	var out []string
	for name, l := range h.lines {
		mark := "[+]"
		if !l.ready {
			mark, ready = "[-]", false
		}
		out = append(out, fmt.Sprintf("%s %s: %s\n", mark, name, l.detail))
	}
	slices.Sort(out)
	if ready {
		out = append(out, "ready\n")
	} else {
		out = append(out, "not ready\n")
	}
	return strings.Join(out, ""), ready
}

// Report puts a line about something outside the observer, such as its signer,
// into /readyz; ready is whether runs are signed all the same. An empty detail
// takes the line away.
func (o *Observer) Report(name, detail string, ready bool) {
	if detail == "" {
		o.health.clear(name)
		return
	}
	o.health.set(name, detail, ready)
}

func (o *Observer) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		text, ready := o.health.text()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if !ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprint(w, text)
	})
	if g, ok := o.cfg.Registry.(prometheus.Gatherer); ok {
		mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{}))
	}
	return mux
}
