// Package launch starts the processes that a run needs, each with no more than
// it needs, and ends them.
//
//	observer   own user, keys; first, so that nothing later can get before it
//	registry   own user, the only writer of its folder
//	images     user namespace, the only writer of the cache
//	executor   user namespace of its own, one per run
//	planner    own user, nothing else
//	log        own user, own key: the home's own log, where there is one
//	witness    own user, own key
//
// The launcher itself is root (or the one user there is): it is the operator's
// hand, believed as the operator is. It lends each service a lifeline, the read
// end of a pipe as standard input: when the launcher is gone, however it went,
// the service reads the end of it and stops.
package launch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"assay.dev/assay/api"
	"assay.dev/assay/internal/channel"
	"assay.dev/assay/internal/confine"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/internal/service"
)

// Session is a home with its services running. One at a time per home.
type Session struct {
	Home   *home.Home
	Config home.Config
	Log    io.Writer // services' messages

	lock     *os.File
	services []*process
	log      *OwnLog
	noLog    error // why there is none
}

type process struct {
	name string
	cmd  *exec.Cmd
	line *os.File // the lifeline's write end
	done chan struct{}
	err  error // valid when done is closed
}

// Options choose what to start.
type Options struct {
	// Runs starts the observer and the image store too; without, there is the
	// registry to push to and nothing else.
	Runs bool
	Log  io.Writer
	// Wait says how long to wait for another session of this home to end.
	Wait time.Duration
}

// Start makes the home, takes its lock and starts the services; each is ready
// to answer when Start returns. Close the session.
func Start(ctx context.Context, h *home.Home, o Options) (_ *Session, err error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	cfg, err := h.Config()
	if err != nil {
		return nil, err
	}
	if err := h.Make(); err != nil {
		return nil, err
	}
	s := &Session{Home: h, Config: cfg, Log: o.Log}
	if s.lock, err = takeLock(ctx, h.Path("run", "lock"), o.Wait); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	s.sweep()
	sc := service.Config{Home: h.Dir, Root: h.Root, Launcher: uint32(os.Geteuid()), Instance: cfg.Instance, Registry: cfg.Registry, Mirrors: cfg.Mirrors, Insecure: cfg.Insecure}
	if o.Runs {
		sc.Log = cfg.Log
		defer s.startLog(ctx)()
		ready, err := s.start("observer", "assay-observer", []string{"serve"}, home.UIDObserver, sc)
		if err == nil {
			err = ready(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := s.trust(); err != nil {
		return nil, err
	}
	// Neither needs the other to start.
	ready, err := s.start("registry", "assay", []string{"registry", "run"}, home.UIDRegistry, sc)
	if err != nil {
		return nil, err
	}
	if o.Runs {
		images, err := s.startImages(ctx, sc)
		if err == nil {
			err = images(ctx)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := ready(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// trust writes the home's trust file, once: this machine's operator, whose hand
// the launcher is, binds the observer's key as an observer's. Verifiers here
// then know it as one; elsewhere it is a key until somebody says more.
func (s *Session) trust() error {
	path := s.Home.Path("trust.json")
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(s.Home.PublicKey(api.Executed)); err != nil {
		return nil // no observer has run here yet
	}
	trust := map[string]any{"keys": []any{map[string]any{
		"name": "observer", "file": filepath.Join("public", "executed.pub"), "role": "observer",
		"builders": []string{api.BuilderID(api.Executed, s.Home.Separation(), s.Config.Instance)},
	}}}
	if s.Config.Log != nil {
		maps.Copy(trust, logTrust(*s.Config.Log))
	}
	return writeTrust(path, trust)
}

// startLog starts the home's own log beside the other services, unless it is served
// already; the returned function waits until it answers. That it does not keeps no
// run from being carried out: the run is attested later.
func (s *Session) startLog(ctx context.Context) (ready func()) {
	if s.Config.Log == nil || s.Config.Log.URL != "" || ServesLog(s.Home) {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.log, s.noLog = StartLog(ctx, s.Home, s.Config, s.Log)
	}()
	return func() { <-done }
}

// takeLock waits for the home's lock: services of two sessions would not find
// each other's sockets.
func takeLock(ctx context.Context, path string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the home: %w", err)
	}
	deadline := time.Now().Add(wait)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("locking the home: %w", err), f.Close())
		}
		if time.Now().After(deadline) {
			holder, _ := os.ReadFile(path) //nolint:errcheck // only for the message
			f.Close()
			return nil, fmt.Errorf("another assay (pid %s) is at work in %s: wait for it, or use another folder with %s", bytes.TrimSpace(holder), filepath.Dir(filepath.Dir(path)), home.Env)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := fmt.Fprintf(f, "%d\n", os.Getpid()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Binary finds a sibling of the running program.
func Binary(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("finding myself: %w", err)
	}
	p := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(p); err != nil {
		return "", fmt.Errorf("finding %s beside %s: %w; build it with `make build`", name, self, err)
	}
	return p, nil
}

func (s *Session) start(name, binary string, args []string, uid uint32, cfg service.Config) (ready func(context.Context) error, err error) {
	path, err := Binary(binary)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, args...)
	input, err := memfile(cfg)
	if err != nil {
		return nil, err
	}
	defer input.Close()
	cmd.ExtraFiles = []*os.File{input}
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "GOMAXPROCS=" + os.Getenv("GOMAXPROCS")}
	for _, k := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v := os.Getenv(k); v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if s.Home.Root {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	}
	exe, err := confine.Through(cmd, path)
	if err != nil {
		return nil, err
	}
	defer exe.Close()
	return s.run(name, cmd)
}

func (s *Session) startImages(ctx context.Context, cfg service.Config) (ready func(context.Context) error, err error) {
	path, err := Binary("assay-executor")
	if err != nil {
		return nil, err
	}
	input, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	cmd, err := confine.Command(context.WithoutCancel(ctx), path, confine.Spec{
		Args: []string{"images"}, UID: s.Home.User(home.UIDImages), Steps: s.steps(), Input: input,
	})
	if err != nil {
		return nil, err
	}
	docker, err := s.dockerConfig()
	if err != nil {
		return nil, err
	}
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+docker)
	return s.run("images", cmd)
}

// dockerConfig gives the operator's registry credentials to the image store and
// to nobody else: a copy of docker's configuration that its user alone can read.
// Credential helpers are programs of the operator's and stay outside.
func (s *Session) dockerConfig() (dir string, err error) {
	from := os.Getenv("DOCKER_CONFIG")
	if from == "" {
		u, err := os.UserHomeDir()
		if err != nil {
			return "", nil // nobody's home, no credentials
		}
		from = filepath.Join(u, ".docker")
	}
	dir = s.Home.Path("run", "images", "docker")
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("replacing registry credentials: %w", err)
	}
	b, err := os.ReadFile(filepath.Join(from, "config.json"))
	if errors.Is(err, os.ErrNotExist) {
		return dir, nil
	}
	if err != nil {
		return "", fmt.Errorf("reading registry credentials: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("handing over registry credentials: %w", err)
	}
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, b, 0o400); err != nil {
		return "", fmt.Errorf("handing over registry credentials: %w", err)
	}
	if s.Home.Root {
		for _, p := range []string{dir, file} {
			if err := os.Chown(p, home.UIDImages, home.UIDImages); err != nil {
				return "", fmt.Errorf("handing over registry credentials: %w", err)
			}
		}
	}
	return dir, nil
}

func (s *Session) steps() uint32 {
	if !s.Home.Root {
		return 0
	}
	return home.UIDSteps
}

// run starts a service. The returned function waits until it says "ready" on its
// standard output.
func (s *Session) run(name string, cmd *exec.Cmd) (ready func(context.Context) error, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting the %s: %w", name, err)
	}
	defer r.Close()
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	var tail lockedTail
	cmd.Stderr = io.MultiWriter(&tail, s.Log)
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("starting the %s: %w", name, err), w.Close())
	}
	sv := &process{name: name, cmd: cmd, line: w, done: make(chan struct{})}
	s.services = append(s.services, sv)
	said := make(chan bool, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n') //nolint:errcheck // no line is not ready
		said <- line == "ready\n"
		io.Copy(io.Discard, out) //nolint:errcheck // until it ends
		sv.err = cmd.Wait()
		close(sv.done)
	}()
	return func(ctx context.Context) error {
		select {
		case ok := <-said:
			if ok {
				return nil
			}
			<-sv.done
			return fmt.Errorf("starting the %s: it ended (%v): %s", name, sv.err, tail.String())
		case <-time.After(30 * time.Second):
			return fmt.Errorf("starting the %s: not ready after 30 s: %s", name, tail.String())
		case <-ctx.Done():
			return ctx.Err()
		}
	}, nil
}

// Observer is the client of this session's observer.
func (s *Session) Observer() *channel.Client {
	return &channel.Client{Socket: s.Home.ObserverSocket()}
}

// RegistryClient is the client of this session's registry.
func (s *Session) RegistryClient() *registry.Client {
	return registry.NewClient(s.Home.RegistrySocket(), s.Config.Registry)
}

// Close stops the services in the reverse order of their start and releases the
// home.
func (s *Session) Close() error {
	var errs []error
	for i := len(s.services) - 1; i >= 0; i-- {
		sv := s.services[i]
		sv.line.Close()
		select {
		case <-sv.done:
		case <-time.After(10 * time.Second):
			sv.cmd.Process.Kill() //nolint:errcheck // Wait tells
			<-sv.done
			errs = append(errs, fmt.Errorf("the %s did not stop by itself", sv.name))
		}
	}
	s.services = nil
	if s.log != nil {
		errs = append(errs, s.log.Close())
		s.log = nil
	}
	if s.lock != nil {
		errs = append(errs, os.RemoveAll(s.Home.Path("run", "images", "docker")))
		errs = append(errs, s.lock.Close())
		s.lock = nil
	}
	return errors.Join(errs...)
}

func memfile(v any) (*os.File, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return confine.File(b)
}

// lockedTail keeps the last kilobytes of what a service says.
type lockedTail struct {
	mu sync.Mutex
	b  []byte
}

func (t *lockedTail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 8<<10 {
		t.b = t.b[len(t.b)-8<<10:]
	}
	return len(p), nil
}

func (t *lockedTail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}
