package attack_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// background is a run that is under way while the test does something else.
type background struct {
	r    *rig
	cmd  *exec.Cmd
	out  bytes.Buffer
	err  lockedBuffer
	id   string
	done chan error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// start begins a run and returns when its step has printed "running".
func (r *rig) start(t *testing.T, k task, args ...string) *background {
	t.Helper()
	spec, annotations := k.object(r.image)
	b, err := json.Marshal(map[string]any{
		"apiVersion": "tekton.dev/v1", "kind": "TaskRun",
		"metadata": map[string]any{"generateName": "attack-", "annotations": annotations},
		"spec":     map[string]any{"taskSpec": spec},
	})
	must(t, err)
	file := r.Write("background.json", string(b))
	before := r.runs(t)
	bg := &background{r: r, done: make(chan error, 1)}
	bg.cmd = r.Command(context.Background(), append([]string{"run", "-f", file, "--output", "json"}, args...)...)
	bg.cmd.Stdout, bg.cmd.Stderr = &bg.out, &bg.err
	bg.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, bg.cmd.Start())
	go func() { bg.done <- bg.cmd.Wait() }()
	t.Cleanup(func() { bg.stop() })
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(bg.err.String(), "running"); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the run does not start: %s", bg.err.String())
		}
	}
	for id := range r.runs(t) {
		if !before[id] {
			bg.id = id
		}
	}
	if bg.id == "" {
		t.Fatalf("the run is not in the ledger: %s", bg.err.String())
	}
	return bg
}

// stop interrupts the run and waits for its end.
func (b *background) stop() {
	if b.cmd.ProcessState != nil {
		return
	}
	_ = b.cmd.Process.Signal(os.Interrupt)
	select {
	case <-b.done:
	case <-time.After(30 * time.Second):
		_ = b.cmd.Process.Kill()
		<-b.done
	}
}

// process finds the process of one of the roles.
func (r *rig) process(t *testing.T, role string) process {
	t.Helper()
	for _, p := range r.processes() {
		arg := func(i int) string {
			if i < len(p.args) {
				return p.args[i]
			}
			return ""
		}
		var is bool
		switch role {
		case "observer":
			is = p.uid == firstUser+1
		case "registry":
			is = p.uid == firstUser+2
		case "planner":
			is = p.uid == firstUser+3
		case "images":
			is = p.uid == firstUser+5
		case "executor":
			is = p.uid >= firstUser+1000 && p.uid < firstUser+65536 && arg(1) == "run"
		case "step":
			is = p.uid >= firstUser+65536 && arg(0) == "sleep"
		case "confine":
			is = p.uid == 0 && arg(1) == "confine" && r.parentOf(p, "executor")
		case "launcher":
			is = p.uid == 0 && arg(1) == "run"
		}
		if is {
			return p
		}
	}
	t.Fatalf("no %s among %v", role, r.processes())
	return process{}
}

// parentOf tells whether p is the parent of the process of a role.
func (r *rig) parentOf(p process, role string) bool {
	for _, c := range r.processes() {
		if c.parent == p.pid && role == "executor" && c.uid >= firstUser+1000 && c.uid < firstUser+65536 {
			return true
		}
	}
	return false
}

// as calls f on a thread of another user, without any capability; the thread
// ends with it.
func as(uid int, f func()) {
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and never unlock
		for _, nr := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
			if _, _, e := syscall.RawSyscall(nr, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				panic(e)
			}
		}
		f()
	})
	wg.Wait()
}
