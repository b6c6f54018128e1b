package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning says that a control plane runs on the folder already.
var ErrRunning = errors.New("a control plane runs on this folder already")

// ErrNotRunning says that none runs on the folder.
var ErrNotRunning = errors.New("no control plane runs on this folder: start one with `assayd up`")

// folder is a data folder; the package's documentation draws it.
type folder struct {
	dir string
	// uid is the children's user, -1 our own.
	uid int
}

func (f folder) path(elem ...string) string {
	return filepath.Join(append([]string{f.dir}, elem...)...)
}

// ours are the names that a folder of ours may hold at its top.
var ours = map[string]bool{"lock": true, "state.json": true, "ports.json": true, "kubeconfig": true, "pki": true, "etcd": true, "logs": true}

// make creates the folder and closes it, and refuses one that is not ours.
func (f folder) make() error {
	mode, inner := os.FileMode(0o700), os.FileMode(0o700)
	if f.uid >= 0 {
		mode, inner = 0o711, 0o711
	}
	if err := os.MkdirAll(f.dir, mode); err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	st, err := os.Stat(f.dir)
	if err != nil {
		return fmt.Errorf("making the data folder: %w", err)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d: choose a folder of your own with --data, or start as that user", f.dir, sys.Uid)
	}
	entries, err := os.ReadDir(f.dir)
	if err != nil {
		return fmt.Errorf("reading the data folder: %w", err)
	}
	for _, e := range entries {
		if !ours[e.Name()] && !strings.HasPrefix(e.Name(), ".new-") {
			return fmt.Errorf("%s holds %q, so it is no control plane's folder: choose an empty one, or one that does not exist", f.dir, e.Name())
		}
	}
	if err := os.Chmod(f.dir, mode); err != nil {
		return fmt.Errorf("closing the data folder: %w", err)
	}
	for name, m := range map[string]os.FileMode{"pki": inner, "etcd": 0o700, "logs": 0o700} {
		p := f.path(name)
		if err := os.Mkdir(p, m); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making the data folder: %w", err)
		}
		if err := os.Chmod(p, m); err != nil {
			return fmt.Errorf("making the data folder: %w", err)
		}
		if name == "etcd" && f.uid >= 0 {
			if err := f.give(p); err != nil {
				return err
			}
		}
	}
	return f.reachable()
}

// give makes a tree the children's: an earlier start may have had another user.
func (f folder) give(dir string) error {
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, f.uid, f.uid)
	})
	if err != nil {
		return fmt.Errorf("giving etcd its folder: %w", err)
	}
	return nil
}

// reachable checks that the children's user can pass to the folder; etcd's own
// words for it would be a bare "permission denied".
func (f folder) reachable() error {
	if f.uid < 0 {
		return nil
	}
	if err := passable(f.dir); err != nil {
		return fmt.Errorf("%w, and etcd and kube-apiserver run as user %d: choose a data folder that they can reach", err, f.uid)
	}
	return nil
}

// passable says whether every user can pass through the folders above a path.
func passable(path string) error {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			return fmt.Errorf("checking the way to %s: %w", path, err)
		}
		if st.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("%s is closed to others (mode %04o)", dir, st.Mode().Perm())
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// lock takes the folder for us. The returned file is also given to the children,
// so the lock is free only when the last of us is gone. A holder whose process is
// alive is ErrRunning at once; children of one that died are waited for.
func (f folder) lock() (*os.File, error) {
	file, err := os.OpenFile(f.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the data folder: %w", err)
	}
	deadline := time.Now().Add(15 * time.Second)
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("locking the data folder: %w", err), file.Close())
		}
		pid := holder(file)
		alive := pid > 0 && !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
		if alive || time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("%w: %s, process %d: stop it with `assayd down`", ErrRunning, f.dir, pid), file.Close())
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := errors.Join(file.Truncate(0), writeAt(file, strconv.Itoa(os.Getpid())+"\n")); err != nil {
		return nil, errors.Join(fmt.Errorf("locking the data folder: %w", err), file.Close())
	}
	return file, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

// holder is the process id in a lock file, 0 if there is none yet.
func holder(f *os.File) int {
	b := make([]byte, 32)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil || pid < 1 {
		return 0
	}
	return pid
}

// holding returns the process that holds the folder, or ErrNotRunning.
func (f folder) holding() (int, error) {
	file, err := os.OpenFile(f.path("lock"), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("%s: %w", f.dir, ErrNotRunning)
	}
	if err != nil {
		return 0, fmt.Errorf("asking who runs on %s: %w", f.dir, err)
	}
	defer file.Close()
	err = unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return 0, fmt.Errorf("%s: %w", f.dir, ErrNotRunning)
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, fmt.Errorf("asking who runs on %s: %w", f.dir, err)
	}
	pid := holder(file)
	if pid == 0 {
		return 0, fmt.Errorf("%s is locked, but not by a control plane that says its process", f.dir)
	}
	return pid, nil
}

// ports are remembered over restarts.
type ports struct {
	// API is the port that kubeconfigs name.
	API    int `json:"api"`
	Client int `json:"etcdClient"`
	Peer   int `json:"etcdPeer"`
}

// ports decides where to listen: want (0: as before, or a free one) for the API
// server. A port of the API server that is taken is an error, since kubeconfigs
// name it; etcd's are nobody else's business and move.
func (f folder) ports(want int) (ports, error) {
	var p ports
	b, err := os.ReadFile(f.path("ports.json"))
	switch {
	case err == nil:
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&p); err != nil {
			return p, fmt.Errorf("parsing %s: %w; remove it to have new ports chosen", f.path("ports.json"), err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return p, fmt.Errorf("reading the remembered ports: %w", err)
	}
	if want != 0 {
		p.API = want
	}
	taken := map[int]bool{}
	for _, q := range []struct {
		name  string
		port  *int
		fixed bool
	}{{"the API server", &p.API, true}, {"etcd", &p.Client, false}, {"etcd's peer", &p.Peer, false}} {
		if *q.port < 0 || *q.port > 65535 {
			return p, fmt.Errorf("%d is no port", *q.port)
		}
		if *q.port != 0 && !taken[*q.port] {
			err := free(*q.port)
			if err == nil {
				taken[*q.port] = true
				continue
			}
			if q.fixed {
				return p, fmt.Errorf("port %d for %s is taken: %w: end what uses it, or choose another with --port", *q.port, q.name, err)
			}
		}
		if *q.port, err = choose(taken); err != nil {
			return p, fmt.Errorf("choosing a port for %s: %w", q.name, err)
		}
	}
	b, err = json.Marshal(p)
	if err != nil {
		return p, err
	}
	return p, writeFile(f.path("ports.json"), append(b, '\n'), 0o600, -1)
}

// free says whether a loopback port can be listened on. A predecessor's
// connections may still linger, which listening with SO_REUSEADDR, as Go and the
// children do, does not mind.
func free(port int) error {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return l.Close()
}

func choose(taken map[int]bool) (int, error) {
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := l.Addr().(*net.TCPAddr).Port
		if err := l.Close(); err != nil {
			return 0, err
		}
		if !taken[port] {
			taken[port] = true
			return port, nil
		}
	}
	return 0, errors.New("no free port found")
}

// State is what a running control plane says of itself in its folder.
type State struct {
	Server    string    `json:"server"`
	PID       int       `json:"pid"`
	Etcd      int       `json:"etcdPid"`
	APIServer int       `json:"kubeApiserverPid"`
	Started   time.Time `json:"started"`
	// ReadySeconds is how long it took to answer.
	ReadySeconds float64 `json:"readySeconds"`
}

// Running reads the state of the control plane that runs on a folder. It fails
// with ErrNotRunning where none does, also where one was killed; while one is
// starting the error says so.
func Running(dir string) (*State, error) {
	f := folder{dir: dir, uid: -1}
	pid, err := f.holding()
	if err != nil {
		return nil, err
	}
	if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotRunning) // the last of its children is dying
	}
	b, err := os.ReadFile(f.path("state.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the control plane's state: %w", err)
	}
	s := &State{}
	if err == nil {
		if err := json.Unmarshal(b, s); err != nil {
			return nil, fmt.Errorf("parsing the control plane's state: %w", err)
		}
	}
	if s.PID != pid {
		return nil, fmt.Errorf("%s: process %d is starting or stopping a control plane: try again in some seconds, or read the logs in %s", dir, pid, f.path("logs"))
	}
	return s, nil
}

// KubeconfigFile is where a data folder keeps its administrator's kubeconfig.
func KubeconfigFile(dir string) string { return filepath.Join(dir, "kubeconfig") }
