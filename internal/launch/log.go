package launch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"assay.dev/assay/internal/confine"
	"assay.dev/assay/internal/home"
)

// OwnLog is a home's own transparency log, running, with the witness beside it: two
// processes, each with a user and a key of its own, neither of them the observer's.
// A session has it while it lasts, unless `assay log serve` serves it already.
type OwnLog struct {
	// Said is what each printed when it was ready, the log's line last.
	Said      []string
	processes []*logProcess
}

// StartLog starts a home's own log and its witness; both answer when it returns. It
// fails if the home has none, and if one is served there already: ServesLog.
func StartLog(ctx context.Context, h *home.Home, cfg home.Config, messages io.Writer) (_ *OwnLog, err error) {
	own, err := h.OwnLog()
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil || cfg.Log.URL != "" {
		return nil, fmt.Errorf("%s names no log of this home's own", h.Path("config.json"))
	}
	if err := h.MakeLog(); err != nil {
		return nil, err
	}
	l := &OwnLog{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	witnesses := own.Witnesses
	if own.Witness != "" {
		at, err := l.start(ctx, h, "witness", home.UIDWitness, messages,
			"witness", "--key", h.WitnessKey(), "--state", h.WitnessState(), "--log-key", cfg.Log.Key, "--listen", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		witnesses = append([]string{at + "=" + own.Witness}, witnesses...)
	}
	args := []string{"serve", "--dir", h.LogTiles(), "--key", h.LogKey(), "--listen", "unix://" + h.LogSocket(),
		"--allow-uid", strconv.Itoa(int(h.User(home.UIDObserver))), "--allow-uid", strconv.Itoa(os.Geteuid())}
	for _, w := range witnesses {
		args = append(args, "--witness", w)
	}
	if own.Quorum > 0 {
		args = append(args, "--quorum", strconv.Itoa(own.Quorum))
	}
	if _, err := l.start(ctx, h, "log", home.UIDLog, messages, args...); err != nil {
		return nil, err
	}
	return l, nil
}

// ServesLog says whether somebody answers at the socket of the home's own log.
func ServesLog(h *home.Home) bool {
	c, err := net.Dial("unix", h.LogSocket())
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// logProcess is a log or witness.
type logProcess struct {
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid when done is closed
}

// start starts one of the two and waits for its address.
func (l *OwnLog) start(ctx context.Context, h *home.Home, name string, uid uint32, messages io.Writer, args ...string) (at string, err error) {
	cmd, done, err := logCommand(h, uid, args...)
	if err != nil {
		return "", err
	}
	defer done()
	// When the launcher is killed it goes too, in order.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	var tail lockedTail
	cmd.Stderr = io.MultiWriter(&tail, messages)
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("starting the %s: %w", name, err)
	}
	p := &logProcess{name: name, cmd: cmd, done: make(chan struct{})}
	l.processes = append(l.processes, p)
	said := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n') //nolint:errcheck // no line is not ready
		said <- line
		io.Copy(io.Discard, out) //nolint:errcheck // until it ends
		p.err = cmd.Wait()
		close(p.done)
	}()
	select {
	case line := <-said:
		_, address, ok := strings.Cut(strings.TrimSpace(line), " at ")
		if !ok {
			<-p.done
			return "", fmt.Errorf("starting the %s: it ended (%v): %s", name, p.err, tail.String())
		}
		l.Said = append(l.Said, strings.TrimSpace(line))
		return address, nil
	case <-time.After(time.Minute):
		return "", fmt.Errorf("starting the %s: not ready after a minute: %s", name, tail.String())
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Wait returns when one of the processes has ended by itself, with the reason, or
// when ctx has.
func (l *OwnLog) Wait(ctx context.Context) error {
	ended := make(chan *logProcess, len(l.processes))
	for _, p := range l.processes {
		go func() {
			<-p.done
			ended <- p
		}()
	}
	select {
	case p := <-ended:
		return fmt.Errorf("the %s ended: %v", p.name, p.err)
	case <-ctx.Done():
		return nil
	}
}

// Close stops the log, which finishes what it took, and then the witness.
func (l *OwnLog) Close() error {
	var errs []error
	for i := len(l.processes) - 1; i >= 0; i-- {
		p := l.processes[i]
		p.cmd.Process.Signal(os.Interrupt) //nolint:errcheck // it may be gone
		select {
		case <-p.done:
		case <-time.After(time.Minute):
			p.cmd.Process.Kill() //nolint:errcheck // Wait tells
			<-p.done
			errs = append(errs, fmt.Errorf("the %s did not stop by itself", p.name))
		}
	}
	l.processes = nil
	return errors.Join(errs...)
}

// logCommand is assay-log as a process of one of the home's users. The returned
// function is called after it was started.
func logCommand(h *home.Home, uid uint32, args ...string) (*exec.Cmd, func(), error) {
	path, err := Binary("assay-log")
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "GOMAXPROCS=" + os.Getenv("GOMAXPROCS")}
	for _, k := range []string{"SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v := os.Getenv(k); v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if h.Root {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	}
	exe, err := confine.Through(cmd, path)
	if err != nil {
		return nil, nil, err
	}
	return cmd, func() { exe.Close() }, nil
}

// NewLog says what a home's own log is to be.
type NewLog struct {
	// Name is the log's origin.
	Name string
	// Witness is the name of a witness on this machine; empty: none.
	Witness string
	// Witnesses are others, each URL=VERIFIER-KEY.
	Witnesses []string
	// Quorum is how many of all of them must cosign; 0: all.
	Quorum int
}

// InitLog makes a home's own log: keys, each made by the process' own user and
// readable by it alone, their public halves, the member log of config.json, and the
// logs of the home's trust file. It fails, and replaces nothing, if config.json
// names a log already. Trusted is false where the trust file, which stays as it is,
// names other logs.
func InitLog(ctx context.Context, h *home.Home, n NewLog) (l home.Log, trusted bool, err error) {
	cfg, err := h.Config()
	if err != nil {
		return l, false, err
	}
	if cfg.Log != nil {
		return l, false, fmt.Errorf("%s names a log already; a home has one", h.Path("config.json"))
	}
	if err := h.Make(); err != nil {
		return l, false, err
	}
	if err := h.MakeLog(); err != nil {
		return l, false, err
	}
	own := home.OwnLog{Witnesses: n.Witnesses, Quorum: n.Quorum}
	if l.Key, err = makeKey(ctx, h, home.UIDLog, "log", h.LogKey(), n.Name); err != nil {
		return l, false, err
	}
	if n.Witness != "" {
		if own.Witness, err = makeKey(ctx, h, home.UIDWitness, "witness", h.WitnessKey(), n.Witness, "--witness"); err != nil {
			return l, false, err
		}
		l.Witnesses = append(l.Witnesses, own.Witness)
	}
	for _, w := range n.Witnesses {
		_, vkey, _ := strings.Cut(w, "=")
		l.Witnesses = append(l.Witnesses, vkey)
	}
	// Verifiers want as many as the log waits for.
	if l.Quorum = n.Quorum; l.Quorum == 0 {
		l.Quorum = len(l.Witnesses)
	}
	if trusted, err = trustLog(h, l); err != nil {
		return l, false, err
	}
	return l, trusted, h.SetLog(l, own)
}

// makeKey makes a key as its user and publishes its public half.
func makeKey(ctx context.Context, h *home.Home, uid uint32, what, path, name string, more ...string) (string, error) {
	public := h.Path("public", what+".pub")
	if _, err := os.Stat(path); err == nil {
		// Made before, by a call that was cut short: a key is never replaced.
		b, err := os.ReadFile(public)
		if err != nil {
			return "", fmt.Errorf("%s is there and its public half is not: %w; move the key away", path, err)
		}
		return strings.TrimSpace(string(b)), nil
	}
	cmd, done, err := logCommand(h, uid, append([]string{"init", "--key", path, "--name", name}, more...)...)
	if err != nil {
		return "", err
	}
	defer done()
	var out strings.Builder
	var tail lockedTail
	cmd.Stdout, cmd.Stderr = &out, &tail
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("making the %s's key: %w: %s", what, err, tail.String())
	}
	if err := os.WriteFile(public, []byte(out.String()), 0o644); err != nil {
		return "", fmt.Errorf("publishing the %s's key: %w", what, err)
	}
	return strings.TrimSpace(out.String()), ctx.Err()
}

// logTrust are the members of a trust file that are about a home's log.
func logTrust(l home.Log) map[string]any {
	type named struct {
		Name string `json:"name"`
		Key  string `json:"key"`
	}
	of := func(vkey string) named {
		name, _, _ := strings.Cut(vkey, "+")
		return named{name, vkey}
	}
	m := map[string]any{"logs": []named{of(l.Key)}}
	var witnesses []named
	for _, w := range l.Witnesses {
		witnesses = append(witnesses, of(w))
	}
	if witnesses != nil {
		m["witnesses"] = witnesses
	}
	if l.Quorum > 0 {
		m["quorum"] = l.Quorum
	}
	return m
}

// trustLog adds a home's log to its trust file, if there is one that names no log.
// Where there is none yet, the first session writes it.
func trustLog(h *home.Home, l home.Log) (trusted bool, err error) {
	path := h.Path("trust.json")
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	members := map[string]json.RawMessage{}
	if err == nil {
		err = json.Unmarshal(b, &members)
	}
	if err != nil {
		return false, fmt.Errorf("reading the trust file: %w", err)
	}
	if members["logs"] != nil || members["witnesses"] != nil {
		return false, nil
	}
	for k, v := range logTrust(l) {
		if members[k], err = json.Marshal(v); err != nil {
			return false, err
		}
	}
	return true, writeTrust(path, members)
}

func writeTrust(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the trust file: %w", err)
	}
	return os.Rename(path+".tmp", path)
}
