package watch

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are Chains' counters under Chains' names, so that dashboards and
// alerts go on working, and what Chains has no numbers for: how long a run waits
// for its mark, how much is waiting, how old the oldest is, and what kind of
// trouble there is.
type metrics struct {
	created, uploaded, stored, marked kinds
	failures                          map[string]*prometheus.CounterVec

	latency  *prometheus.HistogramVec
	attempts *prometheus.HistogramVec
	faults   *prometheus.CounterVec
	refused  *prometheus.CounterVec
	requests *prometheus.CounterVec
	existing *prometheus.CounterVec
	foreign  prometheus.Counter
	deleted  prometheus.Counter
	badHints prometheus.Counter
	missing  prometheus.Counter
	settings *prometheus.GaugeVec
	buckets  prometheus.Gauge
	peer     prometheus.Gauge
}

// kinds is a counter per kind of run.
type kinds map[string]prometheus.Counter

// newMetrics registers everything. It panics if that was done before with the
// same registry, which is a mistake in the wiring.
func newMetrics(reg prometheus.Registerer, now func() time.Time, backlog func() stats) *metrics {
	perKind := func(name, help string) kinds {
		out := kinds{}
		for kind, prefix := range map[string]string{"TaskRun": "watcher_taskrun_", "PipelineRun": "watcher_pipelinerun_"} {
			c := prometheus.NewCounter(prometheus.CounterOpts{Name: prefix + name + "_total", Help: help})
			reg.MustRegister(c)
			out[kind] = c
		}
		return out
	}
	m := &metrics{
		created:  perKind("sign_created", "Total number of signed messages."),
		uploaded: perKind("payload_uploaded", "Total number of uploaded payloads."),
		stored:   perKind("payload_stored", "Total number of stored payloads."),
		marked:   perKind("marked_signed", "Total number of objects marked as signed."),
		failures: map[string]*prometheus.CounterVec{},
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "assay_run_latency_seconds",
			Help:    "Time from the end of a run to its mark.",
			Buckets: []float64{.05, .1, .2, .3, .5, .75, 1, 1.5, 2, 3, 5, 10, 30, 60, 300, 1800, 7200},
		}, []string{"kind"}),
		attempts: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "assay_run_attempts", Help: "Attempts that a run took until its mark.",
			Buckets: []float64{1, 2, 3, 5, 8, 13, 21, 34},
		}, []string{"kind"}),
		faults: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "assay_faults_total", Help: "Attempts that failed, by where and by class (transient, configuration, permanent).",
		}, []string{"where", "class"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "assay_runs_refused_total", Help: "Runs marked failed for good.",
		}, []string{"kind"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "assay_api_requests_total", Help: "Requests to the API server.",
		}, []string{"verb", "resource", "code"}),
		existing: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "assay_records_existing_total", Help: "Records that a back end had already.",
		}, []string{"where"}),
		foreign: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "assay_foreign_marks_total", Help: "Runs that somebody else marked while they were ours to work on.",
		}),
		deleted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "assay_runs_deleted_total", Help: "Runs deleted before they could be marked; what there was to store was stored.",
		}),
		badHints: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "assay_malformed_hints_total", Help: "Type hints that were malformed.",
		}),
		missing: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "assay_missing_children_total", Help: "Children that PipelineRuns list and nobody could state.",
		}),
		settings: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "assay_settings_valid", Help: "1 if the settings as they are now are in force; 0 if they are refused and older ones (or none) are.",
		}, []string{"source"}),
		buckets: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "assay_buckets_held", Help: "Buckets of work that this replica holds.",
		}),
		peer: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "assay_standing_back", Help: "1 while another signer is at work and this one stands back.",
		}),
	}
	for kind, prefix := range map[string]string{"TaskRun": "watcher_taskrun_", "PipelineRun": "watcher_pipelinerun_"} {
		m.failures[kind] = prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "signing_failures_total", Help: "Total number of signing failures.",
		}, []string{"error_type"})
		reg.MustRegister(m.failures[kind])
	}
	reg.MustRegister(m.latency, m.attempts, m.faults, m.refused, m.requests, m.existing, m.foreign, m.deleted,
		m.badHints, m.missing, m.settings, m.buckets, m.peer)
	gauge := func(name, help string, read func(stats) float64) {
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help},
			func() float64 { return read(backlog()) }))
	}
	gauge("assay_backlog", "Runs that have ended and are not marked yet.", func(s stats) float64 {
		return float64(s.ready + s.waiting + s.blocked + s.working)
	})
	gauge("assay_backlog_waiting", "Runs of the backlog that wait for their next attempt.", func(s stats) float64 { return float64(s.waiting) })
	gauge("assay_runs_unfinished", "Runs seen that have not ended.", func(s stats) float64 { return float64(s.unfinished) })
	gauge("assay_backlog_bytes", "Memory that waiting runs take, compressed.", func(s stats) float64 { return float64(s.held) })
	gauge("assay_oldest_pending_seconds", "How long ago the oldest run of the backlog ended.", func(s stats) float64 {
		if s.oldest.IsZero() {
			return 0
		}
		return max(0, now().Sub(s.oldest).Seconds())
	})
	return m
}

func (m *metrics) request(verb, resource string, code int) {
	m.requests.WithLabelValues(verb, resource, strconv.Itoa(code)).Inc()
}

func (m *metrics) fault(kind string, f fault) {
	m.faults.WithLabelValues(f.trouble, f.class().String()).Inc()
	m.failures[kind].WithLabelValues(f.metric).Inc()
}
