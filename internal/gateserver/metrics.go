package gateserver

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	busy     *prometheus.CounterVec
	denied   prometheus.Counter
	images   *prometheus.CounterVec
	admitted *prometheus.CounterVec
	cached   *prometheus.CounterVec
	reloads  *prometheus.CounterVec
	files    prometheus.Counter
	valid    prometheus.Gauge
	since    prometheus.Gauge
	info     *prometheus.GaugeVec
}

// newMetrics registers everything. It panics if that was done before with the same
// registry, which is a mistake in the wiring.
func newMetrics(reg prometheus.Registerer, s *Server) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &metrics{
		requests: counter("assay_gate_requests_total", "Requests, by endpoint and status.", "endpoint", "code"),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "assay_gate_request_seconds", Help: "Time that requests took.",
			Buckets: []float64{.005, .02, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 90},
		}, []string{"endpoint"}),
		busy:     counter("assay_gate_busy_total", "Requests turned away because too many were under way.", "pool"),
		denied:   prometheus.NewCounter(prometheus.CounterOpts{Name: "assay_gate_unauthenticated_total", Help: "Requests by callers who did not say who they are."}),
		images:   counter("assay_gate_images_total", "Images judged, by endpoint and result (pass, fail, unchecked).", "endpoint", "result"),
		admitted: counter("assay_gate_admissions_total", "Admissions answered: allowed, refused, or unchecked.", "result"),
		cached:   counter("assay_gate_verdicts_total", "Verdicts for admission: judged anew, or kept from before.", "from"),
		reloads:  counter("assay_gate_policy_reloads_total", "Times that policy and trust were loaded: same, moved, or failed.", "result"),
		files:    prometheus.NewCounter(prometheus.CounterOpts{Name: "assay_gate_credential_reloads_failed_total", Help: "Times that changed tokens or certificates could not be read."}),
		valid: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "assay_gate_policy_valid", Help: "1 if policy and trust as they are now serve; 0 if they cannot be loaded and older ones (or none) do.",
		}),
		since: prometheus.NewGauge(prometheus.GaugeOpts{Name: "assay_gate_policy_since_seconds", Help: "When the policy that serves came, in seconds since 1970."}),
		info:  prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "assay_gate_policy_info", Help: "1 for the policy that serves."}, []string{"name", "digest"}),
	}
	flight := func(pool string, of slots) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "assay_gate_in_flight", Help: "Requests that are being judged.", ConstLabels: prometheus.Labels{"pool": pool},
		}, func() float64 { return float64(len(of)) })
	}
	reg.MustRegister(m.requests, m.seconds, m.busy, m.denied, m.images, m.admitted, m.cached, m.reloads, m.files, m.valid, m.since, m.info,
		flight("validate", s.validate), flight("admit", s.admit),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}
