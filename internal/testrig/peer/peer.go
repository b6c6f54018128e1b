// Package peer starts other people's servers for tests, as tools/peers builds
// them, on loopback and for the time of one test, and puts gates before them:
// proxies that can be told to be down or to refuse.
package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Need is the value of a variable that tools/peers sets. Without it, or without
// ASSAY_SLOW=1, the test is skipped.
func Need(t testing.TB, variable string) string {
	t.Helper()
	if os.Getenv("ASSAY_SLOW") == "" {
		t.Skip("runs another program: set ASSAY_SLOW=1; make test-all does")
	}
	path := os.Getenv(variable)
	if path == "" {
		t.Skipf(`needs %s: eval "$(tools/peers)"; make test-all does`, variable)
	}
	return path
}

// Node is the command line of a program of Node.js that tools/peers installed.
func Node(t testing.TB, variable string) []string {
	t.Helper()
	path := Need(t, variable)
	node, err := exec.LookPath("node")
	if err != nil {
		t.Skip("needs Node.js: apt-get install nodejs")
	}
	return []string{node, path}
}

// Address is a free one on loopback.
func Address(t testing.TB) (host, port, address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	host, port, err = net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return host, port, l.Addr().String()
}

// Start runs a server until the test ends, in an empty folder of its own and with
// the variables given in addition, and returns when its address answers. What it
// said is in the test's log if it never does.
func Start(t testing.TB, address string, env []string, command ...string) {
	t.Helper()
	said := new(output)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Errorf("%s does not end", command[0])
		}
	})
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("%s ended: %v\n%s", command[0], err, said)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen on %s\n%s", command[0], address, said)
		}
	}
}

type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.buf.Len() < 1<<20 {
		o.buf.Write(p)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Gate is a proxy before a server.
type Gate struct {
	// Address is where it listens.
	Address string
	status  atomic.Int32
	cut     atomic.Bool
	mu      sync.Mutex
	conns   map[net.Conn]bool // guarded by mu
}

// Answer makes an HTTP gate answer everything with this status itself; 0: no more.
func (g *Gate) Answer(status int) { g.status.Store(int32(status)) }

// Switch is Answer as storetest.Keepers wants it.
func (g *Gate) Switch(status int) func(on bool) {
	return func(on bool) {
		if on {
			g.Answer(status)
		} else {
			g.Answer(0)
		}
	}
}

// HTTP puts a gate before the server at an address. Requests keep their Host,
// since signatures cover it.
func HTTP(t testing.TB, address string) *Gate {
	t.Helper()
	g := new(Gate)
	to := &url.URL{Scheme: "http", Host: address}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status := g.status.Load(); status != 0 {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(int(status))
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	g.Address = s.Listener.Addr().String()
	return g
}

// Cut makes a TCP gate close its connections and every new one; false: no more.
func (g *Gate) Cut(on bool) {
	g.cut.Store(on)
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		if on {
			c.Close()
		}
	}
}

// TCP puts a gate before the server at an address that passes on bytes.
func TCP(t testing.TB, address string) *Gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &Gate{Address: l.Addr().String(), conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				wg.Go(func() { g.pass(c, address) })
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.Cut(true)
		wg.Wait()
	})
	return g
}

func (g *Gate) pass(c net.Conn, address string) {
	defer c.Close()
	if g.cut.Load() {
		return
	}
	d, err := new(net.Dialer).DialContext(context.Background(), "tcp", address)
	if err != nil {
		return
	}
	defer d.Close()
	g.mu.Lock()
	g.conns[c], g.conns[d] = true, true
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.conns, c)
		delete(g.conns, d)
	}()
	if g.cut.Load() {
		return
	}
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, d}, {d, c}} {
		wg.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			way[0].Close()
			way[1].Close()
		})
	}
	wg.Wait()
}

// String names the gate in messages.
func (g *Gate) String() string { return fmt.Sprintf("gate at %s", g.Address) }
