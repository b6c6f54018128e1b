package assayd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"assay.dev/assay/internal/launch"
)

// Pauses before a signer that died is started again.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 30 * time.Second
	// A signer that lived this long starts with the first pause again.
	livedWell = time.Minute
)

// socketPrefix is the name of the folders that signers' sockets are in.
const socketPrefix = "assayd-signer-"

// child is assay-observer signer as a process of ours: started for a folder of
// keys, started again when it dies, ended with us however we end.
type child struct {
	program, secrets string
	dir, socket      string
	lock             *os.File // held while dir is in use
	stderr           io.Writer
	log              *slog.Logger

	ctx   context.Context // ends when it is to stop
	end   context.CancelFunc
	ended chan struct{} // nothing runs any more and nothing will

	mu   sync.Mutex // guards the below
	down string     // why there is no signer now; empty: there is one
}

// startSigner starts a signer and returns once it serves. It fails where the
// program or the folder is missing, or the first start does.
func startSigner(ctx context.Context, secrets string, stderr io.Writer, log *slog.Logger) (_ *child, err error) {
	if st, err := os.Stat(secrets); err != nil {
		return nil, fmt.Errorf("finding the signing secrets: %w", err)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("--secrets %s is no folder; name the folder that x509.pem or cosign.key is in", secrets)
	}
	c := &child{secrets: secrets, stderr: stderr, log: log, ended: make(chan struct{})}
	c.ctx, c.end = context.WithCancel(context.WithoutCancel(ctx))
	if c.program, err = launch.Binary("assay-observer"); err != nil {
		return nil, err
	}
	if err := c.makeDir(); err != nil {
		return nil, fmt.Errorf("making a place for the signer's socket: %w", err)
	}
	p, err := c.start(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the signer: %w", err), c.removeDir())
	}
	go c.keep(p)
	return c, nil
}

// keep waits for the signer's end and starts it again, later after each failure.
func (c *child) keep(p *process) {
	defer close(c.ended)
	pause := firstPause
	for {
		var why error
		began := time.Now()
		if p != nil {
			select {
			case <-p.done:
				why = fmt.Errorf("its process ended: %w", p.err)
			case <-c.ctx.Done():
				p.stop()
				return
			}
		}
		if time.Since(began) > livedWell {
			pause = firstPause
		}
		for p = nil; p == nil; pause = min(2*pause, maxPause) {
			c.say(fmt.Sprintf("the signer is away (%v); it is started again in %s", why, pause))
			c.log.Error("the signer is away", "error", why, "again", pause)
			select {
			case <-time.After(pause):
			case <-c.ctx.Done():
				return
			}
			p, why = c.start(c.ctx)
		}
		c.say("")
		c.log.Info("started the signer again", "pid", p.cmd.Process.Pid)
	}
}

func (c *child) say(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = why
}

// away says why there is no signer now; empty: there is one.
func (c *child) away() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

// stop ends the signer for good.
func (c *child) stop() error {
	c.end()
	<-c.ended
	return c.removeDir()
}

// process is one start of the signer.
type process struct {
	cmd      *exec.Cmd
	lifeline io.Closer
	done     chan struct{}
	err      error // valid when done is closed
}

// start starts the signer once and waits until it serves.
func (c *child) start(ctx context.Context) (*process, error) {
	cmd := exec.Command(c.program, "signer", "--socket", c.socket, "--secrets", c.secrets, "--lifeline")
	cmd.Stderr = c.stderr
	// A group of its own: an interrupt at the terminal ends us, and we it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, lifeline: lifeline, done: make(chan struct{})}
	ready := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(out).ReadString('\n')
		ready <- err
		if p.err = cmd.Wait(); p.err == nil {
			p.err = errors.New("exit status 0")
		}
		close(p.done)
	}()
	select {
	case err = <-ready:
		if errors.Is(err, io.EOF) {
			<-p.done
			err = fmt.Errorf("it ended at once (%w); it says why above", p.err)
		}
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(30 * time.Second):
		err = errors.New("it does not answer")
	}
	if err != nil {
		p.stop()
		return nil, err
	}
	return p, nil
}

// stop ends the process and waits for it.
func (p *process) stop() {
	_ = p.lifeline.Close()
	kill := time.AfterFunc(10*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer kill.Stop()
	<-p.done
}

// makeDir makes a folder for the socket, and removes those that killed processes
// left: nobody holds their lock any more.
func (c *child) makeDir() (err error) {
	left, err := filepath.Glob(filepath.Join(os.TempDir(), socketPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range left {
		if f, err := tryLock(dir); err == nil {
			_ = os.RemoveAll(dir) // somebody else's folder of that name stays
			_ = f.Close()
		}
	}
	// It gets its name when the lock is held, so that nobody else removes it.
	dir, err := os.MkdirTemp("", "assayd-new-")
	if err != nil {
		return err
	}
	if err = os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600); err == nil {
		c.lock, err = tryLock(dir)
	}
	if err == nil {
		c.dir = filepath.Join(filepath.Dir(dir), socketPrefix+filepath.Base(dir)[len("assayd-new-"):])
		err = os.Rename(dir, c.dir)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	c.socket = filepath.Join(c.dir, "signer.sock")
	return nil
}

// tryLock takes the lock in a folder, unless somebody has it.
func tryLock(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (c *child) removeDir() error {
	return errors.Join(os.RemoveAll(c.dir), c.lock.Close())
}
