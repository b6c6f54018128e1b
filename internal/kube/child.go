package kube

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// child is one of the two processes.
type child struct {
	name string
	log  string
	pid  int
	// done is closed when the process is gone; err is written before.
	done chan struct{}
	err  error
}

// startChild starts a program that dies with us. Its output goes to a file of
// the folder; the one of the start before is kept as .1.
func (f folder) startChild(name, binary string, args, env []string, lock *os.File) (*child, error) {
	c := &child{name: name, log: f.path("logs", name+".log"), done: make(chan struct{})}
	if err := os.Rename(c.log, c.log+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("keeping the last log of %s: %w", name, err)
	}
	log, err := os.OpenFile(c.log, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(binary, args...)
	cmd.Args[0] = name
	cmd.Dir = "/"
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{lock}
	// A group of its own: an interrupt typed at us is not typed at them.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if f.uid >= 0 {
		if passable(binary) != nil {
			// Through a descriptor: a checkout below /root works as well.
			exe, err := os.Open(binary)
			if err != nil {
				return nil, fmt.Errorf("opening %s: %w", name, err)
			}
			defer exe.Close()
			cmd.ExtraFiles = append(cmd.ExtraFiles, exe)
			cmd.Path = "/proc/self/fd/4"
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(f.uid), Gid: uint32(f.uid)}
	}
	started := make(chan error, 1)
	go func() {
		// The kernel's "parent" is the thread: keep it for the child's whole life.
		// It is not unlocked, so it ends with this goroutine.
		runtime.LockOSThread()
		if err := cmd.Start(); err != nil {
			started <- fmt.Errorf("starting %s: %w", name, err)
			return
		}
		c.pid = cmd.Process.Pid
		started <- nil
		c.err = cmd.Wait()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// stop asks the process to end, and after the patience makes it.
func (c *child) stop(patience time.Duration) error {
	if c == nil {
		return nil
	}
	signal := func(s syscall.Signal) error {
		select {
		case <-c.done:
			return nil
		default:
		}
		if err := syscall.Kill(c.pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("ending %s: %w", c.name, err)
		}
		return nil
	}
	if err := signal(syscall.SIGTERM); err != nil {
		return err
	}
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-c.done:
		return nil
	case <-t.C:
	}
	if err := signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-c.done
	return fmt.Errorf("%s did not end within %s and was killed", c.name, patience)
}

// died describes the end of a process that nobody asked to end.
func (c *child) died() error {
	how := "it ended"
	if c.err != nil {
		how = c.err.Error()
	}
	err := fmt.Errorf("%s: %s; its log is %s", c.name, how, c.log)
	if last := tail(c.log, 600); last != "" {
		err = fmt.Errorf("%w and ends with:\n%s", err, last)
	}
	return err
}

// tail is the last lines of a file, at most n bytes of them.
func tail(path string, n int64) string {
	f, err := os.Open(filepath.Clean(path))
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	from := max(0, st.Size()-n)
	b, err := io.ReadAll(io.NewSectionReader(f, from, n))
	if err != nil {
		return ""
	}
	s := string(b)
	if from > 0 {
		if _, rest, ok := strings.Cut(s, "\n"); ok {
			s = rest
		}
	}
	return strings.TrimSpace(s)
}

// kill ends a process at once.
func (c *child) kill() {
	if c == nil {
		return
	}
	select {
	case <-c.done:
		return
	default:
	}
	// Between the check and this the process may have ended, but nobody has
	// reaped its number for another yet, or Kill says ESRCH.
	_ = syscall.Kill(c.pid, syscall.SIGKILL)
	<-c.done
}
