package oci

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// watcher follows one run of the runtime: it takes the runtime out of the step's
// control group once the step's own process is there, and kills when the context
// ends.
type watcher struct {
	stop   chan struct{}
	wg     sync.WaitGroup
	killed bool // written by the goroutine, read after end
}

func (b *bundle) watch(ctx context.Context, cmd *exec.Cmd) *watcher {
	w := &watcher{stop: make(chan struct{})}
	w.wg.Go(func() {
		if b.s.d.runtime != nil && b.started(ctx.Done(), w.stop) {
			// Now that the step runs, its fork bomb must not keep the runtime
			// from noticing its end. Best effort: at worst it shares the bound.
			_ = b.s.d.runtime.Add(cmd.Process.Pid)
		}
		select {
		case <-w.stop:
		case <-ctx.Done():
			w.killed = true
			b.kill(cmd, w.stop)
		}
	})
	return w
}

// end is called when the runtime has been waited for. A context that ends at the
// same moment may or may not count as having killed it.
func (w *watcher) end() {
	close(w.stop)
	w.wg.Wait()
}

// started waits until the runtime has written its pid file. It reports false if
// either channel closes first.
func (b *bundle) started(a, c <-chan struct{}) bool {
	for wait := 2 * time.Millisecond; ; wait = min(wait*3/2, 50*time.Millisecond) {
		if _, err := os.Stat(b.dir("pid")); err == nil {
			return true
		}
		select {
		case <-a:
			return false
		case <-c:
			return false
		case <-time.After(wait):
		}
	}
}

// kill ends the step and returns when the runtime has ended, which stop tells.
// Each round is ruder than the last.
func (b *bundle) kill(cmd *exec.Cmd, stop <-chan struct{}) {
	for round := 0; ; round++ {
		switch {
		case round < 200 && !b.hasPID():
			// Starting: its half-made process would outlive a killed runtime.
		case b.killInit(cmd.Process.Pid) == nil:
		default:
			// Another runtime's pid file may name a process that is not its child.
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			_ = b.s.d.command(ctx, b.s.path("state"), "kill", b.id, "KILL").Run()
			cancel()
		}
		if round >= 200 {
			_ = cmd.Process.Kill()
			_ = b.s.group.Kill()
		}
		select {
		case <-stop:
			return
		case <-time.After(10 * time.Millisecond * time.Duration(1+round/20)):
		}
	}
}

func (b *bundle) hasPID() bool {
	_, err := os.Stat(b.dir("pid"))
	return err == nil
}

// killInit kills the step's first process, and with it the whole process
// namespace. The number may have been given to another process meanwhile, so
// only a child of the runtime is killed, through a descriptor that was opened
// before looking.
func (b *bundle) killInit(runtime int) error {
	text, err := os.ReadFile(b.dir("pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return err
	}
	// After the name in parentheses come the state and the parent.
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(f) < 2 || f[1] != strconv.Itoa(runtime) {
		return errors.New("not a child of the runtime")
	}
	return unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}
