package netns_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"assay.dev/assay/observe"
	"assay.dev/assay/sandbox"
	"assay.dev/assay/sandbox/netns"
)

func open(t *testing.T, cfg netns.Config) *netns.Namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, or root in a user namespace, to make network namespaces")
	}
	n, err := netns.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// dial connects from inside the namespace.
func dial(n *netns.Namespace, network, addr string) (c net.Conn, err error) {
	err = errors.Join(n.Do(func() error {
		d := net.Dialer{Timeout: 20 * time.Second}
		// One address, so no second attempt from another thread.
		c, err = d.Dial(network, addr)
		return err
	}))
	return c, err
}

func echo(t *testing.T, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
				_ = c.(*net.TCPConn).CloseWrite()
			}()
		}
	}()
	return l
}

// hostAddr is an address of this machine that is not loopback.
func hostAddr(t *testing.T) netip.Addr {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			return p.Addr()
		}
	}
	t.Skip("this machine has no address beyond loopback")
	return netip.Addr{}
}

func TestNone(t *testing.T) {
	n := open(t, netns.Config{Network: "none"})
	ifs, err := n.Interfaces()
	if err != nil || len(ifs) != 0 {
		t.Errorf("interfaces %v, %v; want none", ifs, err)
	}
	if _, err := dial(n, "tcp", "192.0.2.1:80"); !errors.Is(err, syscall.ENETUNREACH) {
		t.Errorf("dialling out: %v, want network unreachable", err)
	}
	if procs, err := n.Processes(); err != nil || len(procs) != 0 {
		t.Errorf("processes %v, %v", procs, err)
	}
}

func TestConfigRefused(t *testing.T) {
	f := []sandbox.Forward{{Port: 80, Name: "x", Dial: func(context.Context) (io.ReadWriteCloser, error) { return nil, nil }}}
	for name, cfg := range map[string]netns.Config{
		"no kind":           {},
		"unknown kind":      {Network: "host"},
		"none with forward": {Network: "none", Forward: f},
		"no way to dial":    {Network: "registry", Forward: []sandbox.Forward{{Port: 80}}},
		"port out of range": {Network: "registry", Forward: []sandbox.Forward{{Port: 1 << 16, Dial: f[0].Dial}}},
	} {
		if n, err := netns.New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
			n.Close()
		}
	}
}

func TestRegistry(t *testing.T) {
	l := echo(t, "127.0.0.1:0")
	n := open(t, netns.Config{Network: "registry", Forward: []sandbox.Forward{{
		Port: 5055, Name: "registry",
		Dial: func(context.Context) (io.ReadWriteCloser, error) { return net.Dial("tcp", l.Addr().String()) },
	}, {
		Port: 5056, Name: "broken",
		Dial: func(context.Context) (io.ReadWriteCloser, error) { return nil, errors.New("no") },
	}}})
	for _, addr := range []string{"127.0.0.1:5055", "[::1]:5055"} {
		c, err := dial(n, "tcp", addr)
		if err != nil {
			if strings.HasPrefix(addr, "[") {
				continue // a machine without IPv6
			}
			t.Fatal(err)
		}
		roundTrip(t, c, 100<<10)
	}
	c, err := dial(n, "tcp", "127.0.0.1:5056")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("read from a forward that cannot be dialled")
	}
	if _, err := dial(n, "tcp", l.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the host's loopback: %v, want refused", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	rec, dropped := n.Record()
	want := []observe.Connection{
		{Protocol: "tcp", To: "broken", Result: "error", Count: 1},
		{Protocol: "tcp", To: "registry", Result: "ok", Count: 2, Sent: 200 << 10, Received: 200 << 10},
	}
	if d := cmp.Diff(want, rec); d != "" || dropped != 0 {
		t.Errorf("record, %d dropped (-want +got):\n%s", dropped, d)
	}
}

// roundTrip sends bytes to an echo, closes its side, and reads the same back.
func roundTrip(t *testing.T, c net.Conn, size int) {
	t.Helper()
	defer c.Close()
	data := make([]byte, size)
	_, _ = rand.Read(data)
	go func() {
		_, _ = c.Write(data)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes back (%x), want %d (%x): %v", len(got), sha256.Sum256(got), size, sha256.Sum256(data), err)
	}
}

func TestOpen(t *testing.T) {
	host := hostAddr(t)
	l := echo(t, net.JoinHostPort(host.String(), "0"))
	server := l.Addr().(*net.TCPAddr).AddrPort()
	u, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(host, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	go func() {
		buf := make([]byte, 65535)
		for {
			m, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(buf[:m], from)
		}
	}()
	before := runtime.NumGoroutine()
	// The only destination that surely exists is this machine, which is refused
	// unless allowed.
	n := open(t, netns.Config{Network: "open", Policy: netns.Policy{Allow: []netip.Prefix{netip.PrefixFrom(host, 32)}}})
	ifs, err := n.Interfaces()
	if d := cmp.Diff([]string{"eth0 10.0.2.100/24"}, ifs); d != "" || err != nil {
		t.Errorf("interfaces: %v (-want +got):\n%s", err, d)
	}
	c, err := dial(n, "tcp", server.String())
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c, 8<<20)

	uc, err := dial(n, "udp", u.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = uc.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = uc.Write([]byte("ping"))
	buf := make([]byte, 10)
	if m, err := uc.Read(buf); err != nil || string(buf[:m]) != "ping" {
		t.Errorf("udp: %q, %v", buf[:m], err)
	}
	uc.Close()

	l.Close()
	for _, addr := range []string{server.String(), "127.0.0.2:80", "169.254.169.254:80", "10.0.2.2:22"} {
		c, err := dial(n, "tcp", addr)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: %v, want refused", addr, err)
		}
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	rec, _ := n.Record()
	want := []observe.Connection{
		{Protocol: "tcp", To: "10.0.2.2:22", Result: "denied", Count: 1},
		{Protocol: "tcp", To: "169.254.169.254:80", Result: "denied", Count: 1},
		{Protocol: "tcp", To: server.String(), Result: "ok", Count: 1, Sent: 8 << 20, Received: 8 << 20},
		{Protocol: "tcp", To: server.String(), Result: "refused", Count: 1},
		{Protocol: "udp", To: u.LocalAddr().String(), Result: "ok", Count: 1, Sent: 4, Received: 4},
	}
	if d := cmp.Diff(want, rec); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}
	// Goroutines end a moment after what they waited for.
	for i := 0; runtime.NumGoroutine() > before && i < 200; i++ {
		time.Sleep(10 * time.Millisecond)
	}
	if now := runtime.NumGoroutine(); now > before {
		b := make([]byte, 1<<16)
		t.Errorf("%d goroutines before, %d after:\n%s", before, now, b[:runtime.Stack(b, true)])
	}
}

// A connection that is open when the network closes is cut and still recorded.
func TestCloseCuts(t *testing.T) {
	host := hostAddr(t)
	l := echo(t, net.JoinHostPort(host.String(), "0"))
	n := open(t, netns.Config{Network: "open", Policy: netns.Policy{Allow: []netip.Prefix{netip.PrefixFrom(host, 32)}}})
	c, err := dial(n, "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	want := []observe.Connection{{Protocol: "tcp", To: l.Addr().String(), Result: "ok", Count: 1, Sent: 1, Received: 1}}
	if rec, _ := n.Record(); cmp.Diff(want, rec) != "" {
		t.Errorf("record %+v", rec)
	}
}

func TestHostDenied(t *testing.T) {
	host := hostAddr(t)
	l := echo(t, net.JoinHostPort(host.String(), "0"))
	n := open(t, netns.Config{Network: "open"})
	if _, err := dial(n, "tcp", l.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the machine's own address: %v, want refused", err)
	}
	if rec, _ := n.Record(); len(rec) != 1 || rec[0].Result != "denied" {
		t.Errorf("record %+v", rec)
	}
}

func TestNames(t *testing.T) {
	// A nameserver of our own, on loopback: the executor's business, not the task's.
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	go func() {
		buf := make([]byte, 4096)
		for {
			m, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var msg dnsmessage.Message
			if msg.Unpack(buf[:m]) != nil {
				continue
			}
			msg.Response = true
			msg.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: msg.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET},
				Body:   &dnsmessage.AResource{A: [4]byte{198, 51, 100, 7}},
			}}
			b, _ := msg.Pack()
			_, _ = pc.WriteTo(b, from)
		}
	}()
	n := open(t, netns.Config{Network: "open", Nameservers: []netip.AddrPort{pc.LocalAddr().(*net.UDPAddr).AddrPort()}})
	if n.Nameserver() != "10.0.2.3" {
		t.Fatalf("nameserver %q", n.Nameserver())
	}
	r := net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return dial(n, "udp", n.Nameserver()+":53")
	}}
	ips, err := r.LookupIP(t.Context(), "ip4", "Example.test.")
	if err != nil || len(ips) != 1 || ips[0].String() != "198.51.100.7" {
		t.Errorf("looked up %v, %v", ips, err)
	}
	c, err := dial(n, "udp", "10.0.2.3:53")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("not a question, but a way out?"))
	_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if m, err := c.Read(make([]byte, 512)); err == nil {
		t.Errorf("%d bytes of answer to what is no question", m)
	}
	c.Close()
	n.Close()
	rec, _ := n.Record()
	if len(rec) != 2 || rec[0].Result != "denied" || rec[1].To != "example.test" || rec[1].Result != "ok" {
		t.Errorf("record %+v", rec)
	}
}

func TestPolicy(t *testing.T) {
	for _, tt := range []struct {
		policy netns.Policy
		addr   string
		ok     bool
	}{
		{addr: "198.51.100.1", ok: true},
		{addr: "203.0.113.9", ok: true},
		{addr: "192.168.7.7", ok: true},
		{addr: "2001:db8::1", ok: true},
		{addr: "127.0.0.1"},
		{addr: "127.9.9.9"},
		{addr: "0.0.0.0"},
		{addr: "::1"},
		{addr: "::ffff:127.0.0.1"},
		{addr: "::ffff:169.254.169.254"},
		{addr: "169.254.169.254"},
		{addr: "100.100.100.200"},
		{addr: "fd00:ec2::254"},
		{addr: "fe80::1%eth0"},
		{addr: "224.0.0.1"},
		{addr: "255.255.255.255"},
		{addr: "64:ff9b::7f00:1"},
		{addr: "192.168.7.7", policy: netns.Policy{DenyPrivate: true}},
		{addr: "198.51.100.1", policy: netns.Policy{Deny: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}},
		{addr: "127.0.0.1", ok: true, policy: netns.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}},
	} {
		if err := tt.policy.Check(netip.MustParseAddr(tt.addr)); (err == nil) != tt.ok {
			t.Errorf("%s with %+v: %v, want ok %v", tt.addr, tt.policy, err, tt.ok)
		}
	}
	if (netns.Policy{}).Check(netip.Addr{}) == nil {
		t.Error("the zero address passes")
	}
}

func TestProxyEnv(t *testing.T) {
	env, fwd, err := netns.ProxyEnv([]string{
		"PATH=/bin", "HTTP_PROXY=http://user:pw@proxy.example:3128", "https_proxy=localhost:8080",
		"ALL_PROXY=socks5://127.0.0.1:8080", "NO_PROXY=.example", "http_proxy=",
	})
	want := []string{"HTTP_PROXY=http://user:pw@proxy.example:3128", "https_proxy=http://127.0.0.1:8080",
		"ALL_PROXY=socks5://127.0.0.1:8080", "NO_PROXY=.example"}
	if d := cmp.Diff(want, env); d != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
	if len(fwd) != 1 || fwd[0].Port != 8080 {
		t.Errorf("forwards %+v, want one for 8080", fwd)
	}
	if _, _, err := netns.ProxyEnv([]string{"HTTP_PROXY=http://user:secret@:port"}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("malformed proxy: %v", err)
	}
}
