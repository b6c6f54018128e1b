package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"assay.dev/assay/sandbox/internal/osthread"
)

// The task's link. It is private to the namespace, so every task has the same.
var (
	addrTask    = netip.MustParseAddr("10.0.2.100")
	addrGateway = netip.MustParseAddr("10.0.2.2")
	addrDNS     = netip.MustParseAddr("10.0.2.3")
	macTask     = net.HardwareAddr{0x02, 0x61, 0x73, 0x73, 0x61, 0x79}
	macGateway  = net.HardwareAddr{0x02, 0x67, 0x61, 0x74, 0x65, 0x77}
)

// linkMTU is the largest that veth takes: packets never leave this machine, and
// fewer of them cost less.
const linkMTU = 65520

// wire makes the task's interface and returns a packet socket on its other end.
// That end lies in a second namespace, which the socket alone keeps alive: the
// task cannot see it, and neither it nor the host has a route through it.
func (n *Namespace) wire() (*os.File, error) {
	var sock int
	err := osthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making gateway namespace: %w", err)
		}
		quiet("all")
		quiet("default")
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.TxQLen = "gw0", linkMTU, macGateway, 1000
		if err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: macTask, PeerMTU: linkMTU,
			PeerNamespace: netlink.NsFd(n.ns.Fd()),
		}); err != nil {
			return fmt.Errorf("making veth pair (the kernel needs CONFIG_VETH): %w", err)
		}
		gw, err := netlink.LinkByName("gw0")
		if err != nil {
			return fmt.Errorf("finding gateway end: %w", err)
		}
		// Up first: a packet socket bound to an interface that is down starts
		// with an error that ends its reader.
		if err := netlink.LinkSetUp(gw); err != nil {
			return fmt.Errorf("bringing up gateway end: %w", err)
		}
		all := int(htons(unix.ETH_P_ALL))
		sock, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		if err != nil {
			return fmt.Errorf("opening packet socket (the kernel needs CONFIG_PACKET): %w", err)
		}
		if err := unix.Bind(sock, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: gw.Attrs().Index}); err != nil {
			return fmt.Errorf("binding packet socket: %w", err)
		}
		_ = unix.SetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20) // best effort: the host's rmem_max decides
		_ = unix.SetsockoptInt(sock, unix.SOL_SOCKET, unix.SO_SNDBUF, 4<<20)
		return nil
	})
	var f *os.File
	if sock > 0 {
		f = os.NewFile(uintptr(sock), "packet")
	}
	if err == nil {
		err = n.Do(address)
	}
	if err != nil && f != nil {
		_ = f.Close()
		f = nil
	}
	return f, err
}

// address configures the task's end.
func address() error {
	quiet("eth0")
	eth, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("finding task's end: %w", err)
	}
	if err := netlink.AddrAdd(eth, &netlink.Addr{IPNet: &net.IPNet{IP: addrTask.AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
		return fmt.Errorf("setting address: %w", err)
	}
	if err := netlink.LinkSetUp(eth); err != nil {
		return fmt.Errorf("bringing up eth0: %w", err)
	}
	// Fixed neighbours: nobody has to answer ARP.
	for _, a := range []netip.Addr{addrGateway, addrDNS} {
		if err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex: eth.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: macGateway,
		}); err != nil {
			return fmt.Errorf("setting neighbour %s: %w", a, err)
		}
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: addrGateway.AsSlice()}); err != nil {
		return fmt.Errorf("setting default route: %w", err)
	}
	// The kernel notices the carrier a moment later and drops what is sent before.
	for i := 0; i < 200; i++ {
		if eth, err = netlink.LinkByName("eth0"); err != nil {
			return fmt.Errorf("finding task's end: %w", err)
		}
		if eth.Attrs().RawFlags&unix.IFF_RUNNING != 0 {
			return nil
		}
		time.Sleep(time.Millisecond)
	}
	return errors.New("bringing up eth0: it has no carrier")
}

// quiet turns IPv6 off on an interface of the current namespace, where nobody
// would answer its solicitations. A kernel without IPv6 has no such file.
func quiet(name string) {
	_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }
