package sandboxtest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"assay.dev/assay/observe"
	"assay.dev/assay/sandbox"
)

// echo answers each connection with what it got, in capitals.
func echo(t *testing.T, addr string) (net.Listener, netip.AddrPort) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b, _ := io.ReadAll(io.LimitReader(c, 1<<20))
			_, _ = io.WriteString(c, strings.ToUpper(string(b)))
			_ = c.Close()
		}
	}()
	return l, l.Addr().(*net.TCPAddr).AddrPort()
}

func (c *suite) network(t *testing.T) {
	_, lo := echo(t, "127.0.0.1:0")
	forward := []sandbox.Forward{{Port: 5055, Name: "registry", Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", lo.String())
	}}}
	send := func(b *box, to string) string {
		return b.run(sandbox.StepSpec{Argv: []string{"probe", "send", to, "hello"}, Hermetic: true}).Stdout
	}
	t.Run("none", func(t *testing.T) {
		b := c.open(t, sandbox.SpaceSpec{Network: "none"})
		if !c.Emulated {
			if got := b.sh("ls /proc/sys/net/ipv4/conf; cat /proc/net/route | wc -l"); got != "all\ndefault\nlo\n1\n" {
				t.Errorf("interfaces and routes: %q", got)
			}
		}
		for _, to := range []string{lo.String(), "127.0.0.1:5055", "198.51.100.1:80", "10.0.2.2:80"} {
			if got := send(b, to); !strings.HasPrefix(got, "dial ") {
				t.Errorf("%s: %q", to, got)
			}
		}
		if ifs, err := b.Interfaces(); err != nil || len(ifs) != 0 {
			t.Errorf("interfaces %v, %v", ifs, err)
		}
		if s, err := b.Seal(t.Context()); err != nil || len(s.Network) != 0 || len(s.Interfaces) != 0 {
			t.Errorf("sealed %+v, %v", s, err)
		}
		if _, err := c.d.Open(t.Context(), sandbox.SpaceSpec{ID: "x", Network: "none", Forward: forward}); err == nil {
			t.Error("a forward into no network was accepted")
		}
	})
	t.Run("registry", func(t *testing.T) {
		b := c.open(t, sandbox.SpaceSpec{Network: "registry", Forward: forward})
		for _, to := range []string{"127.0.0.1:5055", "localhost:5055"} {
			if got := send(b, to); got != "HELLO" {
				t.Errorf("%s: %q", to, got)
			}
		}
		for _, to := range []string{lo.String(), "198.51.100.1:80"} {
			if got := send(b, to); !strings.HasPrefix(got, "dial ") {
				t.Errorf("%s: %q", to, got)
			}
		}
		if got := b.sh("nslookup example.test 2>&1 >/dev/null && echo yes || echo no"); !strings.HasSuffix(got, "no\n") {
			t.Errorf("looked up a name: %q", got)
		}
		s, err := b.Seal(t.Context())
		must(t, err)
		want := []observe.Connection{{Protocol: "tcp", To: "registry", Result: "ok", Count: 2, Sent: 10, Received: 10}}
		if d := cmp.Diff(want, s.Network); d != "" || len(s.Interfaces) != 0 {
			t.Errorf("sealed, interfaces %v (-want +got):\n%s", s.Interfaces, d)
		}
	})
	t.Run("open", func(t *testing.T) { c.openNetwork(t, lo, forward) })
}

func (c *suite) openNetwork(t *testing.T, lo netip.AddrPort, forward []sandbox.Forward) {
	var host netip.Addr
	addrs, err := net.InterfaceAddrs()
	must(t, err)
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			host = p.Addr()
		}
	}
	if !host.IsValid() {
		t.Skip("this machine has no address beyond loopback")
	}
	_, there := echo(t, net.JoinHostPort(host.String(), "0"))
	closed, err := net.Listen("tcp", net.JoinHostPort(host.String(), "0"))
	must(t, err)
	nobody := closed.Addr().String()
	_ = closed.Close()
	send := func(b *box, to string) string {
		return b.run(sandbox.StepSpec{Argv: []string{"probe", "send", to, "hello"}}).Stdout
	}
	b := c.open(t, sandbox.SpaceSpec{Network: "open", Forward: forward})
	for to, want := range map[string]string{
		"127.0.0.1:5055":     "HELLO",
		there.String():       "refused", // the machine itself is not the world
		lo.String():          "refused",
		"169.254.169.254:80": "refused",
	} {
		if got := send(b, to); got != want && !(want == "refused" && strings.Contains(got, "connection refused")) {
			t.Errorf("%s: %q, want %s", to, got, want)
		}
	}
	if ifs, err := b.Interfaces(); err != nil || len(ifs) != 1 {
		t.Errorf("interfaces %v, %v", ifs, err)
	}
	o := b.run(sandbox.StepSpec{Argv: []string{"/bin/sh", "-c", "echo $SSL_CERT_FILE; test ! -n \"$SSL_CERT_FILE\" || head -c 1 $SSL_CERT_FILE | wc -c; echo x >> /etc/ssl/assay-ca.crt"}})
	if !strings.HasPrefix(o.Stdout, "\n") && !strings.HasPrefix(o.Stdout, "/etc/ssl/assay-ca.crt\n1\n") || o.ExitCode == 0 {
		t.Errorf("certificates: %q, exit code %d", o.Stdout, o.ExitCode)
	}
	s, err := b.Seal(t.Context())
	must(t, err)
	want := []observe.Connection{
		{Protocol: "tcp", To: "169.254.169.254:80", Result: "denied", Count: 1},
		{Protocol: "tcp", To: there.String(), Result: "denied", Count: 1},
		{Protocol: "tcp", To: "registry", Result: "ok", Count: 1, Sent: 5, Received: 5},
	}
	if d := cmp.Diff(want, s.Network); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}

	// A driver that allows the machine's address stands for the world here.
	d := c.New(t, Options{Allow: []netip.Prefix{netip.PrefixFrom(host, 32)}, Nameservers: []netip.AddrPort{names(t, host)}})
	defer func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}()
	space, err := d.Open(t.Context(), sandbox.SpaceSpec{ID: "world", Network: "open"})
	must(t, err)
	w := &box{Space: space, t: t, layers: c.layers}
	defer space.Close()
	if got := send(w, there.String()); got != "HELLO" {
		t.Errorf("%s, allowed: %q", there, got)
	}
	if got := send(w, nobody); !strings.Contains(got, "connection refused") {
		t.Errorf("%s, where nobody listens: %q", nobody, got)
	}
	byName := fmt.Sprintf("here.test:%d", there.Port())
	if got := send(w, byName); got != "HELLO" {
		t.Errorf("%s: %q", byName, got)
	}
	s, err = space.Seal(t.Context())
	must(t, err)
	questions := s.Network[:0:0]
	s.Network = slices.DeleteFunc(s.Network, func(c observe.Connection) bool {
		if c.Protocol == "dns" {
			questions = append(questions, c)
		}
		return c.Protocol == "dns"
	})
	if len(questions) != 1 || questions[0].To != "here.test" || questions[0].Result != "ok" {
		t.Errorf("questions on record: %+v", questions)
	}
	want = []observe.Connection{
		{Protocol: "tcp", To: there.String(), Result: "ok", Count: 2, Sent: 10, Received: 10},
		{Protocol: "tcp", To: nobody, Result: "refused", Count: 1},
	}
	if there.String() > nobody {
		want[0], want[1] = want[1], want[0]
	}
	if d := cmp.Diff(want, s.Network); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}
}

// names is a nameserver that knows every name, and the one address.
func names(t *testing.T, addr netip.Addr) netip.AddrPort {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = pc.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			m.Response, m.Additionals = true, nil
			if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class},
					Body:   &dnsmessage.AResource{A: addr.As4()},
				}}
			}
			if b, err := m.Pack(); err == nil {
				_, _ = pc.WriteTo(b, from)
			}
		}
	}()
	return pc.LocalAddr().(*net.UDPAddr).AddrPort()
}
