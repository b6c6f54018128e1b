package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"k8s.io/client-go/rest"

	"assay.dev/assay/attest/signing"
	"assay.dev/assay/internal/watch/kubeapi"
	"assay.dev/assay/provenance"
	"assay.dev/assay/store"
)

// Config is what an observer is made of. Kube, Keepers and Signer are required;
// the zero value of everything else works.
type Config struct {
	// Kube says where the API server is and who we are there.
	Kube *rest.Config
	// Namespaces to watch, each with a watch of its own so that rights can be
	// given per namespace; none: all.
	Namespaces []string
	// SystemNamespace holds chains-config, our leases and, where it runs, Chains.
	// Default tekton-chains.
	SystemNamespace string
	// Settings that do not change, instead of those of ConfigMap chains-config.
	Settings *provenance.Config

	Keepers Keepers
	Logs    Logs // required where settings switch transparency on
	Signer  signing.Service
	// Hints says what is malformed about a run's type hints, a line each; nil:
	// nobody looks.
	Hints func(provenance.Input) []string

	// Identity of this replica; default the host's name and a random part.
	Identity string
	// Workers is how many runs are worked on at once; default 16.
	Workers int
	// QPS and Burst bound requests to the API server; 0: no bound.
	QPS   float32
	Burst int
	// Election shares the work with other replicas; nil: this is the only one.
	Election *Election
	// WatchPeer looks out for Tekton Chains and acts as assay.peer has it.
	WatchPeer bool
	// PeerInterval is how often it looks; default 15s.
	PeerInterval time.Duration
	// ProtectAfter is how long an unfinished run lives before it is given a
	// finalizer, so that what ends at once costs no request; default 2s.
	ProtectAfter time.Duration
	// MaxHeld bounds the memory for runs that wait, in bytes; default 48 MB.
	MaxHeld int

	// Now reads the wall's clock; default time.Now. It is compared with what others'
	// clocks wrote on runs and leases, and is in what we write; it may step. Whatever
	// lasts, such as pauses and leases, goes by the machine's own clock, which does
	// not.
	Now func() time.Time

	Log      *slog.Logger          // default: nowhere
	Registry prometheus.Registerer // default: one of its own
	Tracer   trace.TracerProvider  // default: none
	// Phase is called at each step of each run; tests use it to stop the process
	// there.
	Phase func(name string)
}

// Observer watches a Tekton and states, signs and stores what its runs did.
type Observer struct {
	cfg     Config
	api     *kubeapi.Client
	log     *slog.Logger
	tracer  trace.Tracer
	metrics *metrics
	signer  signing.Service
	events  *events
	table   *table
	started time.Time // by the wall's clock
	began   time.Time // by the machine's
	health  *health
	ballot  *ballot // nil: no election
	chores  chan func(context.Context)

	mu      sync.Mutex // guards session while it is exchanged
	session *session
	down    sync.Map // troubles there are, by name
	inWork  sync.Map // annotations of the runs in work, by uid

	foreign  atomic.Pointer[foreignMark] // the last mark of Chains' that was seen
	looking  atomic.Bool                 // at who left a mark
	peerNews chan struct{}               // wakes the look for Chains
}

// startedAt is when the observer began, by the wall's clock as it goes now or as
// it went then, whichever is earlier: a clock that was ahead when we began, or is
// now, must not make runs old that are not.
func (o *Observer) startedAt() time.Time {
	if now := o.cfg.Now().Add(-time.Since(o.began)); now.Before(o.started) {
		return now
	}
	return o.started
}

// New returns an observer. It fails where Config lacks something, and connects
// to nothing yet.
func New(cfg Config) (*Observer, error) {
	switch {
	case cfg.Kube == nil:
		return nil, errors.New("making an observer: no API server given")
	case cfg.Keepers == nil:
		return nil, errors.New("making an observer: no storage given")
	case cfg.Signer == nil:
		return nil, errors.New("making an observer: no signer given; nothing is ever marked without one")
	}
	if cfg.SystemNamespace == "" {
		cfg.SystemNamespace = "tekton-chains"
	}
	if cfg.Workers <= 0 {
		cfg.Workers = 16
	}
	if cfg.ProtectAfter <= 0 {
		cfg.ProtectAfter = 2 * time.Second
	}
	if cfg.PeerInterval <= 0 {
		cfg.PeerInterval = 15 * time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Registry == nil {
		cfg.Registry = prometheus.NewRegistry()
	}
	if cfg.Tracer == nil {
		cfg.Tracer = noop.NewTracerProvider()
	}
	if cfg.Identity == "" {
		cfg.Identity = identity()
	}
	o := &Observer{
		cfg: cfg, log: cfg.Log, signer: cfg.Signer, started: cfg.Now(), began: time.Now(),
		tracer: cfg.Tracer.Tracer("assay.dev/assay/internal/watch"),
		health: newHealth(), chores: make(chan func(context.Context), 10_000),
		peerNews: make(chan struct{}, 1),
	}
	o.metrics = newMetrics(cfg.Registry, cfg.Now, func() stats { return o.table.stats() })
	api, err := kubeapi.New(cfg.Kube, kubeapi.Options{QPS: cfg.QPS, Burst: cfg.Burst, Observe: o.metrics.request})
	if err != nil {
		return nil, fmt.Errorf("making an observer: %w", err)
	}
	o.api = api
	o.events = newEvents(api, cfg.Log, cfg.Now)
	opts := tableOptions{maxHeld: cfg.MaxHeld}
	if cfg.Election != nil {
		if o.ballot, err = newBallot(*cfg.Election, o); err != nil {
			return nil, err
		}
		opts.owns = o.ballot.owns
	}
	o.table = newTable(opts)
	o.table.now = cfg.Now
	return o, nil
}

// Run watches until ctx ends. Runs being worked on then are brought to an end of
// their step: what was stored is marked if that can be done in a moment, and
// found again by the next observer if not. It returns nil unless it could not
// begin at all.
func (o *Observer) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	background := func(f func(context.Context)) {
		wg.Add(1)
		go func() { defer wg.Done(); f(ctx) }()
	}
	o.table.pause("settings", true)
	background(o.events.run)
	if o.ballot != nil {
		o.health.set("leases", "no bucket held yet", true)
		background(o.ballot.run)
	}
	settings := make(chan provenance.Config, 1)
	if o.cfg.Settings != nil {
		settings <- *o.cfg.Settings
	} else {
		o.health.set("settings", "reading ConfigMap chains-config of namespace "+o.cfg.SystemNamespace, false)
		background(func(ctx context.Context) { o.followSettings(ctx, settings) })
	}
	if o.cfg.WatchPeer {
		// Nothing is signed before we know whether we are alone.
		o.table.pause("peer", true)
		background(o.watchPeer)
	}
	for range 4 {
		background(o.doChores)
	}
	for range o.cfg.Workers {
		background(o.work)
	}
	o.follow(ctx, settings)
	wg.Wait()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.session != nil {
		if err := o.session.close(); err != nil {
			o.log.Warn("closing storage", "error", err)
		}
	}
	o.api.CloseIdle()
	return nil
}

// follow keeps the watches that the settings of the day ask for.
func (o *Observer) follow(ctx context.Context, settings <-chan provenance.Config) {
	stop := func() {}
	var wg sync.WaitGroup
	defer func() { stop(); wg.Wait() }()
	var watched *plan
	var again <-chan time.Time
	var latest provenance.Config
	for {
		select {
		case <-ctx.Done():
			return
		case latest = <-settings:
		case <-again:
		}
		again = nil
		s, err := newSession(latest, o.cfg.Keepers, o.cfg.Logs)
		if err != nil {
			// Credentials, servers and files come and go: what cannot be had now
			// may be had in a moment, without a change of settings.
			o.settingsRefused(ctx, fmt.Errorf("putting settings in force: %w", err))
			again = time.After(15 * time.Second)
			continue
		}
		old := o.exchange(s)
		o.settingsAccepted(ctx)
		if old != nil {
			go func() {
				if err := old.close(); err != nil {
					o.log.Warn("closing former storage", "error", err)
				}
			}()
		}
		if watched == nil || *watched != s.plan {
			stop()
			wg.Wait()
			o.table.reset()
			followCtx, cancel := context.WithCancel(ctx)
			stop = cancel
			for _, f := range o.followers(s.plan) {
				wg.Add(1)
				go func() {
					defer wg.Done()
					_ = o.api.Follow(followCtx, f.sel, f)
				}()
			}
			plan := s.plan
			watched = &plan
			if !plan.pipelineRuns && plan.taskRuns == noTaskRuns {
				o.log.Warn("settings switch every artifact off: there is nothing to do")
				o.health.set("artifacts", "settings switch every artifact off", true)
			} else {
				o.health.clear("artifacts")
			}
		}
		o.table.pause("settings", false)
		// What failed under the old settings may do under the new.
		o.table.recovered("")
	}
}

// exchange puts a session in force and returns the former.
func (o *Observer) exchange(s *session) *session {
	o.mu.Lock()
	defer o.mu.Unlock()
	old := o.session
	o.session = s
	return old
}

// enter returns the session in force, held until its users are done.
func (o *Observer) enter() *session {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.session.users.Add(1)
	return o.session
}

func (o *Observer) work(ctx context.Context) {
	for {
		j, err := o.table.next(ctx)
		if err != nil {
			return
		}
		o.process(ctx, j)
	}
}

func (o *Observer) doChores(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case do := <-o.chores:
			do(ctx)
		}
	}
}

func (o *Observer) chore(do func(context.Context)) {
	select {
	case o.chores <- do:
	default:
		// So many wait that the watch must slow down.
		go func() { o.chores <- do }()
	}
}

func (o *Observer) phase(name string) {
	if o.cfg.Phase != nil {
		o.cfg.Phase(name)
	}
}

// well notes that a back end, the signer or the log works, and wakes what waits
// for it alone.
func (o *Observer) well(trouble string) {
	if _, was := o.down.LoadAndDelete(trouble); was {
		o.log.Info("works again", "where", trouble)
		o.table.recovered(trouble)
	}
}

// finished counts and logs a run that carries its mark.
func (o *Observer) finished(j *job, a *attempt) {
	o.metrics.attempts.WithLabelValues(j.kind).Observe(float64(j.attempts + 1))
	latency := max(0, o.cfg.Now().Sub(o.startOf(j)))
	o.metrics.latency.WithLabelValues(j.kind).Observe(latency.Seconds())
	refused := a.refused()
	if len(refused) == 0 {
		o.metrics.marked[j.kind].Inc()
		o.log.Info("signed", "run", j.head.String(), "uid", j.uid, "records", len(a.memo.records), "latency", latency.Round(time.Millisecond))
		return
	}
	o.metrics.refused.WithLabelValues(j.kind).Inc()
	for _, r := range refused {
		o.metrics.failures[j.kind].WithLabelValues(r.what).Inc()
	}
	why := a.why()
	o.log.Error("refused for good", "run", j.head.String(), "uid", j.uid, "reason", why)
	o.events.warn(j.object(), reasonRefused, why)
}

// retry files a run whose attempt left faults, and tells its owner why it waits:
// once for each reason, not once for each attempt.
func (o *Observer) retry(ctx context.Context, j *job, a *attempt) {
	var asked time.Duration
	worst := a.faults[0]
	var troubles []string
	for _, f := range a.faults {
		o.metrics.fault(j.kind, f)
		asked = max(asked, f.asked())
		if f.class() > worst.class() {
			worst = f
		}
		if !slices.Contains(troubles, f.trouble) {
			troubles = append(troubles, f.trouble)
		}
		if ctx.Err() == nil {
			o.down.Store(f.trouble, true)
		}
	}
	if ctx.Err() != nil {
		// We are being stopped: that is no fault of anybody's.
		o.table.retry(j.uid, time.Hour, a.memo, troubles, j.raw, false)
		return
	}
	rest := pause(j.attempts+1, a.s.cfg.Own.MaxBackoff, asked)
	reason := fmt.Sprintf("%s: %s", worst.class(), textOf(worst.err.Error()))
	o.log.Warn("not signed yet", "run", j.head.String(), "uid", j.uid, "attempt", j.attempts+1,
		"class", worst.class().String(), "error", worst.err, "again", rest.Round(time.Millisecond))
	// Messages carry ports and times: what counts is whether the kind of trouble
	// is news. Trouble that passes by itself is told when it has come twice.
	kind := worst.class().String() + " " + worst.trouble
	if worst.trouble != "api" && a.memo.told != kind && (j.attempts > 0 || worst.class() == store.Configuration) {
		a.memo.told = kind
		o.events.warn(j.object(), reasonError, reason)
		if !j.gone {
			set := map[string]string{annotationReason: reason, annotationRetries: strconv.Itoa(j.attempts + 1)}
			maps.Copy(set, a.notes)
			wctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			if err := o.annotate(wctx, j.head, a.have, set, true); err != nil && !errors.Is(err, errGone) && !errors.Is(err, errTaken) {
				o.log.Warn("writing the reason", "run", j.head.String(), "error", err)
			}
			cancel()
		}
	}
	o.table.retry(j.uid, rest, a.memo, troubles, j.raw, true)
}

// waitPause is how long a PipelineRun rests whose children are not ready.
func (o *Observer) waitPause(j *job) time.Duration {
	return pause(min(j.attempts+1, 6), time.Minute, 0) / 4
}

// Handler serves /healthz, /readyz and, where the registry can be read, /metrics.
func (o *Observer) Handler() http.Handler { return o.handler() }
