package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

// How long each process may take to end by itself. The API server waits for
// requests in flight; nothing that it confirmed is lost if it is killed.
const (
	patienceAPIServer = 10 * time.Second
	patienceEtcd      = 30 * time.Second
)

// Options configure a control plane. Dir must be set.
type Options struct {
	// Dir is its data folder; it is made if it does not exist.
	Dir string
	// Etcd and APIServer are the binaries; empty: what Find finds.
	Etcd, APIServer string
	// Port is the API server's; 0: as at the last start, at first a free one.
	Port int
	// UID is the user that the children run as, where we are root; 0: our own.
	UID uint32
	// Env is added to the children's environment (GOMEMLIMIT=…), which is empty
	// but for PATH otherwise.
	Env []string
	// Ephemeral does not wait for the disk: for tests and measurements, where a
	// power cut may lose everything. The death of a process loses nothing.
	Ephemeral bool
	// Log gets a line for what matters; nil: none.
	Log *slog.Logger
}

// Plane is a control plane that runs. Its methods are safe for concurrent use.
type Plane struct {
	folder  folder
	log     *slog.Logger
	lock    *os.File
	rest    *rest.Config
	config  []byte
	etcd    *child
	api     *child
	state   State
	keeping context.CancelFunc
	kept    chan struct{}

	done chan struct{} // closed when both processes are gone

	mu       sync.Mutex // guards the two below
	err      error      // why done, if nobody asked for it
	stopping bool
}

// Start brings a control plane up and returns when it answers: /readyz is well,
// the namespaces default and kube-system exist. ctx bounds the start, not the
// life; end that with Stop. On any error nothing is left running. ErrRunning says
// that one runs on the folder already, ErrNoBinaries that a program is missing; a
// process that died while starting is quoted with the end of its log.
func Start(ctx context.Context, o Options) (_ *Plane, err error) {
	began := time.Now()
	defer func() {
		if err != nil {
			err = fmt.Errorf("starting the control plane: %w", err)
		}
	}()
	if o.Dir == "" {
		return nil, errors.New("no data folder given")
	}
	if o.UID != 0 && os.Geteuid() != 0 {
		return nil, fmt.Errorf("running it as user %d needs root", o.UID)
	}
	if o.Etcd == "" || o.APIServer == "" {
		b, err := Find()
		if err != nil {
			return nil, err
		}
		if o.Etcd == "" {
			o.Etcd = b.Etcd
		}
		if o.APIServer == "" {
			o.APIServer = b.APIServer
		}
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	p := &Plane{
		folder: folder{dir: o.Dir, uid: -1}, log: o.Log,
		done: make(chan struct{}), kept: make(chan struct{}),
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if o.UID != 0 {
		p.folder.uid = int(o.UID)
	}
	if err := p.folder.make(); err != nil {
		return nil, err
	}
	if p.lock, err = p.folder.lock(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.abandon())
		}
	}()
	if err := p.bringUp(ctx, o); err != nil {
		return nil, err
	}
	p.state = State{
		Server: p.rest.Host, PID: os.Getpid(), Etcd: p.etcd.pid, APIServer: p.api.pid,
		Started: began.UTC().Truncate(time.Second), ReadySeconds: time.Since(began).Seconds(),
	}
	if err := p.announce(); err != nil {
		return nil, err
	}
	keep, cancel := context.WithCancel(context.Background())
	p.keeping = cancel
	keeper, err := newKeeper(p.rest, p.log)
	if err != nil {
		cancel()
		return nil, err
	}
	go func() {
		defer close(p.kept)
		keeper.run(keep)
	}()
	go p.watch()
	p.log.Info("control plane ready", "server", p.state.Server, "seconds", p.state.ReadySeconds)
	return p, nil
}

// bringUp starts both processes and waits until they answer.
func (p *Plane) bringUp(ctx context.Context, o Options) error {
	f := p.folder
	if err := os.Remove(f.path("state.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("clearing the last state: %w", err)
	}
	if err := (pki{dir: f.path("pki"), uid: f.uid, now: time.Now}).ensure(); err != nil {
		return err
	}
	at, err := f.ports(o.Port)
	if err != nil {
		return err
	}
	if p.rest, err = f.restConfig(at); err != nil {
		return err
	}
	if p.config, err = Kubeconfig(p.rest); err != nil {
		return err
	}
	if p.etcd, err = f.startChild("etcd", o.Etcd, f.etcdFlags(at, o.Ephemeral), o.Env, p.lock); err != nil {
		return err
	}
	// Both at once: the API server takes seconds before it needs etcd.
	if p.api, err = f.startChild("kube-apiserver", o.APIServer, f.apiServerFlags(at), o.Env, p.lock); err != nil {
		return err
	}
	return p.ready(ctx)
}

// announce writes what others of this machine look for.
func (p *Plane) announce() error {
	if err := writeFile(KubeconfigFile(p.folder.dir), p.config, 0o600, -1); err != nil {
		return err
	}
	b, err := json.MarshalIndent(p.state, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(p.folder.path("state.json"), append(b, '\n'), 0o600, -1)
}

// ready waits until the API server answers or one of the processes is gone.
func (p *Plane) ready(ctx context.Context) error {
	c := rest.CopyConfig(p.rest)
	c.Timeout = 5 * time.Second
	client, err := rest.HTTPClientFor(c)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	defer client.CloseIdleConnections()
	last := errors.New("it has not been asked")
	for {
		if last = p.answers(ctx, client); last == nil {
			return nil
		}
		t := time.NewTimer(50 * time.Millisecond)
		select {
		case <-p.etcd.done:
			t.Stop()
			return p.etcd.died()
		case <-p.api.done:
			t.Stop()
			return p.api.died()
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("waiting until it answers: %w (%w); its logs are in %s", context.Cause(ctx), last, p.folder.path("logs"))
		case <-t.C:
		}
	}
}

// answers asks for health, then for what a client needs first.
func (p *Plane) answers(ctx context.Context, client *http.Client) error {
	for _, path := range []string{"/readyz", "/api/v1/namespaces/default", "/api/v1/namespaces/kube-system"} {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.rest.Host+path, nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(io.LimitReader(res.Body, 4<<10))
		res.Body.Close()
		if err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s: %.200s", path, res.Status, b)
		}
	}
	return nil
}

// watch waits for the end of either process. If nobody asked for it, the other
// one goes too: half a control plane only confuses.
func (p *Plane) watch() {
	var dead *child
	select {
	case <-p.etcd.done:
		dead = p.etcd
	case <-p.api.done:
		dead = p.api
	}
	p.mu.Lock()
	asked := p.stopping
	if !asked {
		p.err = dead.died()
	}
	p.mu.Unlock()
	if asked {
		return // Stop does the rest
	}
	p.log.Error("control plane died", "error", p.err)
	if err := p.end(); err != nil {
		p.log.Error("ending what is left of it", "error", err)
	}
	close(p.done)
}

// end stops what runs and gives up the folder.
func (p *Plane) end() error {
	if p.keeping != nil {
		p.keeping()
		<-p.kept
	}
	var errs []error
	select {
	case <-p.etcd.done:
		p.api.kill() // without etcd it would only wait for it
	default:
		if err := p.api.stop(patienceAPIServer); err != nil {
			p.log.Warn("ending kube-apiserver", "error", err)
		}
	}
	errs = append(errs, p.etcd.stop(patienceEtcd))
	if err := os.Remove(p.folder.path("state.json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, p.lock.Close())...)
}

// abandon undoes a start that failed.
func (p *Plane) abandon() error {
	p.api.kill()
	p.etcd.kill()
	return p.lock.Close()
}

// Stop ends the API server, then etcd, and returns when both are gone and the
// folder is free. It may be called twice. An error says that etcd had to be
// killed, which loses nothing that was confirmed, or that the folder could not be
// tidied.
func (p *Plane) Stop() error {
	p.mu.Lock()
	first := !p.stopping && p.err == nil
	p.stopping = true
	p.mu.Unlock()
	if !first {
		<-p.done
		return nil
	}
	defer close(p.done)
	if err := p.end(); err != nil {
		return fmt.Errorf("stopping the control plane: %w", err)
	}
	return nil
}

// Done is closed when both processes are gone, asked or not.
func (p *Plane) Done() <-chan struct{} { return p.done }

// Err says after Done why the control plane is gone; nil after Stop.
func (p *Plane) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// RESTConfig is the administrator's (group system:masters), without a limit on
// the client's side. It is the caller's to change.
func (p *Plane) RESTConfig() *rest.Config { return rest.CopyConfig(p.rest) }

// Kubeconfig is the same for kubectl, with the key inside: keep it closed. The
// folder holds it as a file too (KubeconfigFile).
func (p *Plane) Kubeconfig() []byte { return slices.Clone(p.config) }

// Pids are the processes' ids: of etcd and of the API server.
func (p *Plane) Pids() (etcd, apiserver int) { return p.etcd.pid, p.api.pid }

// State is what Running tells other processes of this control plane.
func (p *Plane) State() State { return p.state }
