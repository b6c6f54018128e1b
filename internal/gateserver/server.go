package gateserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	ecserver "assay.dev/assay/internal/ec/server"
)

// Defaults of Options.
const (
	DefaultConcurrent = 16
	DefaultImages     = 1000
	DefaultKept       = 10 * time.Minute
)

// Options are what a Server is made of.
type Options struct {
	// Load loads policy and trust. Required.
	Load func(context.Context) (*Standing, error)
	// Reload is how often. Default: once only.
	Reload time.Duration
	// Access says who may ask. The zero value lets nobody.
	Access Access
	// MaxBody, MaxTime, MaxConcurrent and MaxImages bound requests. Defaults: 80 MiB and
	// 90 seconds, as Conforma's server has; DefaultConcurrent, DefaultImages.
	MaxBody       int64
	MaxTime       time.Duration
	MaxConcurrent int
	MaxImages     int
	// Kept is how long a pass is kept for admission. Default: DefaultKept.
	Kept time.Duration
	// AllowTags admits images that are named by tag, if what the tag names passes.
	AllowTags bool
	// Drain is how long Serve goes on after it was told to stop, not ready, so that who
	// finds the server by its readiness has looked elsewhere by then. Default: not at all.
	Drain time.Duration
	// Version is told in reports of inputs.
	Version string
	// Log gets a line for each request, failure and change. Default: none.
	Log *slog.Logger
	// Registry takes the metrics. Default: one of its own.
	Registry *prometheus.Registry
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Server is the service. Make one with New; it is safe for concurrent use.
type Server struct {
	o        Options
	log      *slog.Logger
	now      func() time.Time
	m        *metrics
	current  atomic.Pointer[serving]
	verdicts *verdicts
	validate slots
	admit    slots
	leaving  atomic.Bool // told to stop
}

// New makes a Server that is not ready: Keep or Reload makes it so. It fails without
// Options.Load, and where the tokens cannot be read.
func New(o Options) (*Server, error) {
	if o.Load == nil {
		return nil, errors.New("making the gate's server: nothing loads its policy")
	}
	if o.MaxBody <= 0 {
		o.MaxBody = ecserver.MaxBody
	}
	if o.MaxTime <= 0 {
		o.MaxTime = ecserver.MaxTime
	}
	if o.MaxConcurrent <= 0 {
		o.MaxConcurrent = DefaultConcurrent
	}
	if o.MaxImages <= 0 {
		o.MaxImages = DefaultImages
	}
	if o.Kept <= 0 {
		o.Kept = DefaultKept
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Registry == nil {
		o.Registry = prometheus.NewRegistry()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{o: o, log: o.Log, now: o.Now, validate: make(slots, o.MaxConcurrent), admit: make(slots, o.MaxConcurrent)}
	s.m = newMetrics(o.Registry, s)
	s.verdicts = newVerdicts(o.MaxConcurrent, o.MaxTime, o.Now)
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("making the gate's server: %w", err)
	}
	return s, nil
}

// Handler serves everything.
func (s *Server) Handler() http.Handler {
	judging := func(header string, judges map[string]ecserver.Judge) http.Handler {
		return ecserver.Handler(judges, ecserver.Options{
			MaxBody: s.o.MaxBody, MaxTime: s.o.MaxTime, Header: header, Ready: func() bool { return s.Ready() && !s.leaving.Load() }, Log: s.log,
		})
	}
	conforma := judging("X-Conforma-Result", map[string]ecserver.Judge{"/v1/validate/input": s.judgeInput})
	ours := judging("X-Assay-Result", map[string]ecserver.Judge{
		"/v1/validate/image": s.judgeImages,
		"/v1/admit":          s.judgeAdmission,
	})
	mux := http.NewServeMux()
	add := func(pattern, endpoint string, h http.Handler) {
		mux.Handle(pattern, s.measured(endpoint, h))
	}
	add("/live", "live", conforma)
	add("/ready", "ready", conforma)
	add("/v1/validate/input", "input", s.allowed(false, s.limited("validate", s.validate, conforma)))
	add("/v1/validate/image", "image", s.allowed(false, s.limited("validate", s.validate, ours)))
	add("/v1/admit", "admit", s.allowed(true, s.limited("admit", s.admit, within(ours))))
	add("GET /v1/policy", "policy", s.allowed(false, http.HandlerFunc(s.policy)))
	add("GET /metrics", "metrics", s.allowed(false, promhttp.HandlerFor(s.o.Registry, promhttp.HandlerOpts{})))
	// A browser that another site drives is nobody that was let in.
	return http.NewCrossOriginProtection().Handler(mux)
}

// Bounds of connections.
const (
	maxHeader  = 64 << 10
	headerTime = 10 * time.Second
	readTime   = 30 * time.Second
	idleTime   = 2 * time.Minute
)

// Serve serves on l until ctx ends, drains, and then lets what is being judged come to
// its end, as long as one judgement may take. With a configuration it speaks TLS. It closes l.
// It fails where l does, or where somebody takes longer.
func (s *Server) Serve(ctx context.Context, l net.Listener, t *tls.Config) error {
	srv := &http.Server{
		Handler: s.Handler(), TLSConfig: t, MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: headerTime, ReadTimeout: readTime, WriteTimeout: readTime + s.o.MaxTime, IdleTimeout: idleTime,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() {
		if t != nil {
			ended <- srv.ServeTLS(l, "", "")
			return
		}
		ended <- srv.Serve(l)
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("serving on %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	if s.leaving.Store(true); s.o.Drain > 0 {
		select {
		case err := <-ended:
			return fmt.Errorf("serving on %s: %w", l.Addr(), err)
		case <-time.After(s.o.Drain):
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.MaxTime+5*time.Second)
	defer cancel()
	err := srv.Shutdown(last)
	s.verdicts.stop()
	if err != nil {
		return fmt.Errorf("stopping the server: %w", errors.Join(err, srv.Close()))
	}
	return nil
}
