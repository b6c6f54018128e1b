// Package executor runs one run's task attempts in sandboxes, measures them and
// reports each fact to the observer as it happens. One process per run, fresh
// and then gone; it holds no key and knows neither Tekton nor policy.
//
// What a task attempt goes through:
//
//	images verified ─▶ space opened ─▶ inputs unpacked ─▶ started (fact)
//	  ─▶ steps, each reported ─▶ sealed: nothing lives any more
//	  ─▶ token revoked ─▶ results read ─▶ outputs exported ─▶ finished (fact) ─▶ done
//
// A fact that the observer does not take ends the run: what was not witnessed
// did not happen.
package executor

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"assay.dev/assay/image"
	"assay.dev/assay/internal/channel"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/observe"
	"assay.dev/assay/plan"
	"assay.dev/assay/sandbox"
)

// Images makes an image ready on this machine; *image.Client and *image.Store.
type Images interface {
	Ensure(ctx context.Context, ref string, p image.Platform) (*image.Image, error)
	// Recheck is Ensure that replaces unpacked layers which were altered.
	Recheck(ctx context.Context, ref string, p image.Platform) (*image.Image, error)
}

// Tokens mints and revokes registry tokens; *registry.Client.
type Tokens interface {
	Mint(ctx context.Context, r registry.TokenRequest) (token string, err error)
	Revoke(ctx context.Context, token string) error
}

// Forward is a port on a task's loopback that reaches something on purpose.
type Forward struct {
	Port int
	Name string
	Dial func(context.Context) (io.ReadWriteCloser, error)
}

// Config wires an executor.
type Config struct {
	Run, Nonce string
	Driver     sandbox.Driver
	Images     Images
	Tokens     Tokens
	// Transport reaches the embedded registry; RegistryName is its name in
	// references, RegistryPort where tasks find it on their loopback.
	Transport    http.RoundTripper
	RegistryName string
	RegistryPort int
	RegistryDial func(context.Context) (io.ReadWriteCloser, error)
	// Forwards are reachable from tasks with network open.
	Forwards []Forward
	// Hosts maps the names of plan.Volume.Host to folders.
	Hosts map[string]HostFolder
	// Observer is where facts go.
	Observer *channel.Client
	// Scratch is a folder of the executor's own for spooling.
	Scratch string
	// IDBase is the steps' root user in the executor's view; layers and
	// unpacked inputs belong to it.
	IDBase int
	Limits observe.Limits
	// Host is what opens the run: version, runtime, kernel, cgroups.
	Host     observe.Host
	Platform image.Platform
	Now      func() time.Time
}

// HostFolder is a folder the user shared with the run.
type HostFolder struct {
	Path     string
	ReadOnly bool
}

// Executor runs one run.
type Executor struct {
	cfg    Config
	facts  *channel.Sender
	remote *image.Remote

	out   chan plan.Event
	tasks sync.WaitGroup

	mu      sync.Mutex
	running map[string]context.CancelCauseFunc // guarded by mu; by task name
	broken  error                              // guarded by mu; the first fact that was not taken
	layers  map[string]*layerCheck             // guarded by mu; by diff id
}

// layerCheck is what came of verifying a layer.
type layerCheck struct {
	mu   sync.Mutex
	done bool
	dir  string
	err  error
}

// reason is why a task was stopped; it becomes the TaskRun's reason.
type reason struct{ name, message string }

func (r *reason) Error() string { return r.name + ": " + r.message }

// Run reads commands until finish or the end of in, and writes events to out.
// It returns an error when the run could not be carried out or witnessed; the
// observer then records it as lost.
func Run(ctx context.Context, cfg Config, in io.Reader, out io.Writer) error {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	remote, err := image.NewRemote(image.RemoteOptions{
		Transport: func(host string) http.RoundTripper {
			if host == cfg.RegistryName {
				return cfg.Transport
			}
			return nil
		},
		Insecure: []string{cfg.RegistryName},
	})
	if err != nil {
		return fmt.Errorf("wiring the registry: %w", err)
	}
	defer remote.Close()
	facts, err := cfg.Observer.Send(ctx, channel.Facts{Run: cfg.Run, Nonce: cfg.Nonce})
	if err != nil {
		return fmt.Errorf("opening run %s at the observer: %w", cfg.Run, err)
	}
	defer facts.Close()
	e := &Executor{
		cfg: cfg, facts: facts, remote: remote,
		out:     make(chan plan.Event, 64),
		running: map[string]context.CancelCauseFunc{},
		layers:  map[string]*layerCheck{},
	}
	written := make(chan error, 1)
	go func() { written <- writeEvents(out, e.out) }()
	err = e.commands(ctx, in)
	e.stop(&reason{"TaskRunCancelled", "the run was stopped"})
	e.tasks.Wait()
	if err == nil {
		err = e.failure()
	}
	if err != nil {
		e.out <- plan.Event{Error: err.Error()}
	}
	close(e.out)
	if werr := <-written; err == nil {
		err = werr
	}
	return err
}

func writeEvents(w io.Writer, events <-chan plan.Event) error {
	enc := json.NewEncoder(w)
	var err error
	for ev := range events {
		if err == nil {
			err = enc.Encode(ev) // afterwards only drain, so that no task blocks
		}
	}
	if err != nil {
		return fmt.Errorf("writing events: %w", err)
	}
	return nil
}

// commands carries out the planner's commands. The planner reads tenants'
// input: a command out of order or beyond a bound ends the run.
func (e *Executor) commands(ctx context.Context, in io.Reader) error {
	r := bufio.NewReaderSize(in, 64<<10)
	opened := false
	for {
		line, err := channel.ReadLine(r, channel.MaxLine)
		if errors.Is(err, io.EOF) {
			return errors.New("the planner went away before it finished the run")
		}
		if err != nil {
			return fmt.Errorf("reading a command: %w", err)
		}
		var c plan.Command
		if err := json.Unmarshal(line, &c); err != nil {
			return fmt.Errorf("decoding a command: %w", err)
		}
		if !opened && c.Run == nil {
			return errors.New("a command came before run")
		}
		switch {
		case c.Run != nil:
			if opened || c.Run.ID != e.cfg.Run {
				return fmt.Errorf("the planner opened run %q, this executor is for %q once", c.Run.ID, e.cfg.Run)
			}
			if err := e.open(c.Run.Spec); err != nil {
				return err
			}
			opened = true
		case c.Start != nil:
			if err := e.start(ctx, *c.Start); err != nil {
				return err
			}
		case c.Cancel != nil:
			why := &reason{c.Cancel.Reason, "stopped by the planner"}
			if c.Cancel.Task == "" {
				e.stop(why)
				continue
			}
			e.mu.Lock()
			if cancel := e.running[c.Cancel.Task]; cancel != nil {
				cancel(why)
			}
			e.mu.Unlock()
		case c.Finish != nil:
			e.tasks.Wait()
			if err := e.failure(); err != nil {
				return err
			}
			if err := e.facts.Fact(observe.RunClosed, observe.RunClosedBody{
				Outcome: c.Finish.Outcome, Reason: c.Finish.Reason, Closed: e.now(),
			}); err != nil {
				return err
			}
			e.out <- plan.Event{Closed: &plan.Closed{Head: e.facts.Head()}}
			return nil
		default:
			return errors.New("an empty command")
		}
	}
}

func (e *Executor) now() time.Time { return e.cfg.Now().UTC() }

func (e *Executor) open(spec json.RawMessage) error {
	host := e.cfg.Host
	host.KeySeparation = e.facts.KeySeparation()
	host.Limits = e.cfg.Limits
	if err := e.facts.Fact(observe.RunOpened, observe.RunOpenedBody{
		Run: e.cfg.Run, Nonce: digest([]byte("assay nonce " + e.cfg.Nonce)), SpecDigest: digest(spec), Executor: host,
	}); err != nil {
		return err
	}
	e.out <- plan.Event{Ready: &plan.Ready{Run: e.cfg.Run, KeySeparation: host.KeySeparation}}
	return nil
}

func (e *Executor) start(ctx context.Context, t plan.Task) error {
	ctx, cancel := context.WithCancelCause(ctx)
	e.mu.Lock()
	if _, twice := e.running[t.Name]; twice {
		e.mu.Unlock()
		cancel(nil)
		return fmt.Errorf("task %s is running already", t.Name)
	}
	e.running[t.Name] = cancel
	e.mu.Unlock()
	e.tasks.Go(func() {
		defer cancel(nil)
		done := e.attempt(ctx, t)
		e.mu.Lock()
		delete(e.running, t.Name)
		e.mu.Unlock()
		e.out <- plan.Event{Done: done}
	})
	return nil
}

func (e *Executor) stop(why *reason) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, cancel := range e.running {
		cancel(why)
	}
}

// fact reports to the observer. The first failure breaks the run: every task is
// stopped, and Run returns it.
func (e *Executor) fact(t observe.FactType, body any) error {
	err := e.facts.Fact(t, body)
	if err == nil {
		return nil
	}
	e.mu.Lock()
	if e.broken == nil {
		e.broken = err
	}
	e.mu.Unlock()
	e.stop(&reason{"TaskRunCancelled", "the observer does not take facts any more"})
	return err
}

func (e *Executor) failure() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.broken
}

// layerDirs verifies each layer the first time this run uses it. One that was
// altered on disk is unpacked again, once; if that does not mend it the image is
// not run.
func (e *Executor) layerDirs(ctx context.Context, img *image.Image) ([]string, error) {
	var dirs []string
	for _, l := range img.Layers {
		e.mu.Lock()
		c := e.layers[l.DiffID]
		if c == nil {
			c = &layerCheck{}
			e.layers[l.DiffID] = c
		}
		e.mu.Unlock()
		dir, err := c.verify(ctx, l, func() (*image.Image, error) {
			return e.cfg.Images.Recheck(ctx, img.Pinned(), e.cfg.Platform)
		})
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// verify is done once a run, unless the task that asked was cancelled meanwhile:
// the next one asks again.
func (c *layerCheck) verify(ctx context.Context, l image.Layer, repair func() (*image.Image, error)) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done {
		return c.dir, c.err
	}
	dir, err := verified(ctx, l, repair)
	if err != nil && ctx.Err() != nil {
		return "", err
	}
	c.done, c.dir, c.err = true, dir, err
	return dir, err
}

func verified(ctx context.Context, l image.Layer, repair func() (*image.Image, error)) (string, error) {
	damage := image.VerifyLayer(ctx, l)
	if damage == nil {
		return l.Dir, nil
	}
	if ctx.Err() != nil {
		return "", damage
	}
	img, err := repair()
	if err != nil {
		return "", fmt.Errorf("%w; unpacking it again: %w", damage, err)
	}
	for _, again := range img.Layers {
		if again.DiffID == l.DiffID {
			if err := image.VerifyLayer(ctx, again); err != nil {
				return "", fmt.Errorf("unpacked again: %w; is something writing to the cache?", err)
			}
			return again.Dir, nil
		}
	}
	return "", fmt.Errorf("%w; the image has no such layer any more", damage)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
