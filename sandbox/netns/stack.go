package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	nic         = tcpip.NICID(1)
	dialTimeout = 30 * time.Second
	udpIdle     = 60 * time.Second
)

// link is the far end of an open network.
type link struct {
	n       *Namespace
	policy  Policy
	servers []netip.AddrPort
	socket  *os.File
	frames  *frames // owns socket
	stack   *stack.Stack
	dialer  net.Dialer
}

func (n *Namespace) openLink(policy Policy, servers []netip.AddrPort) (*link, error) {
	socket, err := n.wire()
	if err != nil {
		return nil, err
	}
	l := &link{n: n, policy: policy, servers: servers, socket: socket, dialer: net.Dialer{Timeout: dialTimeout}}
	l.stack = stack.New(stack.Options{
		// ARP only because fixed neighbours are kept by it.
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})
	if err := l.configure(); err != nil {
		return nil, errors.Join(err, l.close())
	}
	return l, nil
}

func (l *link) configure() error {
	var ep stack.LinkEndpoint
	l.frames, ep = newFrames(l.socket)
	s := l.stack
	sack, moderate := tcpip.TCPSACKEnabled(true), tcpip.TCPModerateReceiveBufferOption(true)
	fwd := tcp.NewForwarder(s, 0, 256, l.tcp)
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, fwd.HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, l.udp).HandlePacket)
	for _, err := range []tcpip.Error{
		s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack),
		s.SetTransportProtocolOption(tcp.ProtocolNumber, &moderate),
		s.CreateNIC(nic, ep),
		// The stack answers for every address in the world.
		s.SetPromiscuousMode(nic, true),
		s.SetSpoofing(nic, true),
		s.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol:          ipv4.ProtocolNumber,
			AddressWithPrefix: tcpip.AddrFrom4(addrGateway.As4()).WithPrefix(),
		}, stack.AddressProperties{}),
		s.AddStaticNeighbor(nic, ipv4.ProtocolNumber, tcpip.AddrFrom4(addrTask.As4()), tcpip.LinkAddress(macTask)),
	} {
		if err != nil {
			return fmt.Errorf("configuring network stack: %s", err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}})
	return nil
}

func (l *link) close() error {
	// First the packets, so that nothing new begins while the stack is ended.
	err := l.frames.close()
	l.stack.Destroy()
	return err
}

// target is where the task wants to go.
func target(id stack.TransportEndpointID) netip.AddrPort {
	a, _ := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	return netip.AddrPortFrom(a, id.LocalPort)
}

// tcp handles one connection attempt, in a goroutine of the forwarder. We dial
// first and only then accept, so that the task sees a refusal as a refusal.
func (l *link) tcp(r *tcp.ForwarderRequest) {
	to := target(r.ID())
	if !l.n.serve(func() { l.flow(r, to) }) {
		l.n.record.add("tcp", to.String(), resultRefused, 0, 0)
		r.Complete(true)
	}
}

func (l *link) flow(r *tcp.ForwarderRequest, to netip.AddrPort) {
	fail := func(result string) {
		l.n.record.add("tcp", to.String(), result, 0, 0)
		r.Complete(true)
	}
	dns := to == netip.AddrPortFrom(addrDNS, 53)
	var out net.Conn
	if !dns {
		if l.policy.Check(to.Addr()) != nil {
			fail(resultDenied)
			return
		}
		var err error
		if out, err = l.dialer.DialContext(l.n.ctx, "tcp", to.String()); err != nil {
			if errors.Is(err, syscall.ECONNREFUSED) {
				fail(resultRefused)
				return
			}
			fail(resultError)
			return
		}
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		if out != nil {
			_ = out.Close()
		}
		fail(resultError)
		return
	}
	r.Complete(false)
	in := gonet.NewTCPConn(&wq, ep)
	if dns {
		l.dnsTCP(in)
		return
	}
	sent, received := l.n.splice(in, out)
	l.n.record.add("tcp", to.String(), resultOK, sent, received)
}

// udp handles the first packet of a flow. Returning false has the stack answer
// that nobody listens.
func (l *link) udp(r *udp.ForwarderRequest) bool {
	to := target(r.ID())
	dns := to == netip.AddrPortFrom(addrDNS, 53)
	if !dns && l.policy.Check(to.Addr()) != nil {
		l.n.record.add("udp", to.String(), resultDenied, 0, 0)
		return false
	}
	var wq waiter.Queue
	ep, terr := r.CreateEndpoint(&wq)
	if terr != nil {
		l.n.record.add("udp", to.String(), resultError, 0, 0)
		return false
	}
	in := gonet.NewUDPConn(&wq, ep)
	if l.n.serve(func() {
		if dns {
			l.dnsUDP(in)
			return
		}
		l.datagrams(in, to)
	}) {
		return true
	}
	l.n.record.add("udp", to.String(), resultRefused, 0, 0)
	_ = in.Close()
	return true
}

// datagrams carries a UDP flow until it is silent for a while.
func (l *link) datagrams(in net.Conn, to netip.AddrPort) {
	defer in.Close()
	out, err := l.dialer.DialContext(l.n.ctx, "udp", to.String())
	if err != nil {
		l.n.record.add("udp", to.String(), resultError, 0, 0)
		return
	}
	defer out.Close()
	if !l.n.track(in) || !l.n.track(out) {
		return
	}
	defer l.n.untrack(in)
	defer l.n.untrack(out)
	ctx, stop := context.WithCancel(l.n.ctx)
	defer stop()
	idle := time.AfterFunc(udpIdle, stop)
	defer idle.Stop()
	context.AfterFunc(ctx, func() { _ = in.Close(); _ = out.Close() })
	pump := func(dst io.Writer, src io.Reader) (total int64) {
		buf := make([]byte, 65535)
		for {
			m, err := src.Read(buf)
			if errors.Is(err, syscall.ECONNREFUSED) {
				continue // an earlier packet found nobody; the next may
			}
			if err != nil {
				return total
			}
			idle.Reset(udpIdle)
			if _, err := dst.Write(buf[:m]); err == nil {
				total += int64(m)
			}
		}
	}
	back := make(chan int64, 1)
	go func() {
		back <- pump(in, out)
		stop()
	}()
	sent := pump(out, in)
	stop()
	l.n.record.add("udp", to.String(), resultOK, sent, <-back)
}
