package kubetest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"
)

// Process is a program that runs beside the cluster and dies with the test binary.
type Process struct {
	// PID is its id, Log the file with its output.
	PID       int
	Log       string
	binary    string
	args, env []string
	done      chan struct{}
}

// Done is closed when the process is gone.
func (p *Process) Done() <-chan struct{} { return p.done }

// Stop ends the process, at first politely, and waits until it is gone.
func (p *Process) Stop() {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-p.done:
			return
		default:
		}
		_ = syscall.Kill(p.PID, s) // gone in between, or it works
		select {
		case <-p.done:
			return
		case <-time.After(15 * time.Second):
		}
	}
	<-p.done
}

// Kill ends the process at once and waits until it is gone.
func (p *Process) Kill() {
	select {
	case <-p.done:
		return
	default:
	}
	_ = syscall.Kill(p.PID, syscall.SIGKILL) // gone in between, or it works
	<-p.done
}

// Run starts a program whose output goes to a file of the cluster's folder. The
// kernel kills it when this process ends.
func (c *Cluster) Run(name, binary string, args, env []string) (*Process, error) {
	p := &Process{Log: filepath.Join(c.Dir, name+".log"), binary: binary, args: args, env: env, done: make(chan struct{})}
	log, err := os.OpenFile(p.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(binary, args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.Dir}, env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = c.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // what Pdeathsig watches is the thread
		if err := cmd.Start(); err != nil {
			started <- fmt.Errorf("starting %s: %w", name, err)
			return
		}
		p.PID = cmd.Process.Pid
		started <- nil
		_ = cmd.Wait() // its end is what counts; the log says why
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// once starts a process that all tests share: again if it is gone, anew if the
// arguments are others.
func (c *Cluster) once(name, binary string, args, env []string) (*Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.procs[name]; p != nil {
		if !slices.Equal(p.args, args) {
			p.Kill()
		}
		select {
		case <-p.done:
		default:
			return p, nil
		}
	}
	p, err := c.Run(name, binary, args, env)
	if err == nil {
		c.procs[name] = p
	}
	return p, err
}

// without runs f while a shared process, if there is one, does not run.
func (c *Cluster) without(name string, f func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.procs[name]
	if p == nil {
		return f()
	}
	select {
	case <-p.done:
		return f()
	default:
	}
	p.Kill()
	err := f()
	again, rerr := c.Run(name, p.binary, p.args, p.env)
	if rerr == nil {
		c.procs[name] = again
	}
	return errors.Join(err, rerr)
}

// Exclusive takes a part of the cluster that only one test may have at a time,
// such as the running of pods, until the test ends. It fails the test if another
// has it.
func (c *Cluster) Exclusive(t testing.TB, part string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if by := c.taken[part]; by != "" {
		t.Fatalf("kubetest: %s is taken by %s: tests that need it do not run in parallel", part, by)
	}
	c.taken[part] = t.Name()
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.taken, part)
	})
}

func (c *Cluster) stopProcesses() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.procs {
		p.Kill()
	}
}

// FreePort returns a loopback port that nobody listens on now.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
