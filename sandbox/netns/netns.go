// Package netns gives one task a network of its own and writes down what it was
// used for.
//
// The network is a Linux network namespace that belongs to the executor, so that
// nothing inside a step's user namespace has rights over it. It comes in three
// kinds:
//
//	none      loopback, nothing else
//	registry  loopback, with a listener for each thing forwarded on purpose
//	open      the same, and one interface whose other end is this process
//
// In an open network the packets of the task end in a TCP/IP stack inside the
// executor (gVisor's), which dials out on the task's behalf like any client. No
// address translation, no firewall rules, no bridge and no right on the host are
// needed, every flow passes one policy (Policy), and every flow is recorded.
// What the executor's own network can reach is what an open task can reach, less
// the machine itself: loopback, link-local addresses, metadata services and the
// machine's own addresses are refused, whatever name led there. Only TCP and UDP
// over IPv4 are carried.
//
//	step ─ eth0 ═veth═ gw0 ─ AF_PACKET ─ stack ─ policy ─ dial ─▶ world
//	     └ lo 127.0.0.1:5055 ─ listener of ours ─ Forward.Dial ─▶ registry's socket
//
// Nothing survives Close: the namespace is held only by descriptors of this
// process, so that even its sudden death removes interfaces and listeners.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"assay.dev/assay/observe"
	"assay.dev/assay/sandbox"
	"assay.dev/assay/sandbox/internal/osthread"
)

// Config describes a network.
type Config struct {
	Network string // none, registry, open
	Forward []sandbox.Forward
	// Policy decides what an open network may reach.
	Policy Policy
	// Nameservers answer an open network's questions; empty: the executor's own,
	// from /etc/resolv.conf.
	Nameservers []netip.AddrPort
	// MaxConnections bounds the record; 0 means 1024 entries.
	MaxConnections int
}

// Namespace is one task's network.
type Namespace struct {
	ns     *os.File // the namespace
	record *record
	link   *link // nil unless open

	cancel    context.CancelFunc
	ctx       context.Context
	wg        sync.WaitGroup // goroutines that serve connections
	slots     chan struct{}  // bounds them
	mu        sync.Mutex     // guards the two below
	closed    bool
	closers   map[closer]struct{} // listeners and connections to cut
	closeOnce sync.Once
	sealed    []observe.Connection
	dropped   int
	closeErr  error
}

type closer interface{ Close() error }

// maxFlows bounds the connections that one task may have open at a time.
const maxFlows = 1024

// New makes a network and starts serving it. The caller must Close it.
func New(cfg Config) (*Namespace, error) {
	switch cfg.Network {
	case "none":
		if len(cfg.Forward) > 0 {
			return nil, errors.New("making network: kind none forwards nothing; ask for registry or open")
		}
	case "registry", "open":
	default:
		return nil, fmt.Errorf("making network: unknown kind %q; known are none, registry, open", cfg.Network)
	}
	n := &Namespace{
		record:  newRecord(cfg.MaxConnections),
		slots:   make(chan struct{}, maxFlows),
		closers: map[closer]struct{}{},
	}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if err := n.setUp(cfg); err != nil {
		_ = n.Close()
		return nil, fmt.Errorf("making network: %w", err)
	}
	return n, nil
}

func (n *Namespace) setUp(cfg Config) error {
	if err := osthread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making network namespace: %w", err)
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return fmt.Errorf("holding network namespace: %w", err)
		}
		n.ns = f
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("finding loopback: %w", err)
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bringing up loopback: %w", err)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, f := range cfg.Forward {
		if err := n.forward(f); err != nil {
			return fmt.Errorf("forwarding %s: %w", f.Name, err)
		}
	}
	if cfg.Network != "open" {
		return nil
	}
	servers := cfg.Nameservers
	if len(servers) == 0 {
		var err error
		if servers, err = hostNameservers("/etc/resolv.conf"); err != nil {
			return err
		}
	}
	l, err := n.openLink(cfg.Policy, servers)
	n.link = l
	return err
}

// Do runs f on a thread that is in the namespace; sockets that f makes stay there.
func (n *Namespace) Do(f func() error) error {
	return osthread.Run(func() error {
		if err := unix.Setns(int(n.ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering network namespace: %w", err)
		}
		return f()
	})
}

// Path names the namespace for other processes of this user, while it is open.
func (n *Namespace) Path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.ns.Fd())
}

// Nameserver is the address that answers the task's questions for names, or "".
func (n *Namespace) Nameserver() string {
	if n.link == nil {
		return ""
	}
	return addrDNS.String()
}

// Interfaces lists the interfaces that are not loopback or carry an address
// beyond 127.0.0.0/8 and ::1, with the addresses in question.
func (n *Namespace) Interfaces() ([]string, error) {
	var out []string
	err := n.Do(func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, l := range links {
			addrs, err := l.Addrs()
			if err != nil {
				return err
			}
			var beyond []string
			for _, a := range addrs {
				if p, err := netip.ParsePrefix(a.String()); err != nil || !p.Addr().IsLoopback() {
					beyond = append(beyond, a.String())
				}
			}
			if l.Flags&net.FlagLoopback == 0 || len(beyond) > 0 {
				out = append(out, strings.TrimSpace(l.Name+" "+strings.Join(beyond, " ")))
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	slices.Sort(out)
	return out, nil
}

// Processes lists the processes, other than this one, that are in the namespace.
// No step can leave it, so an empty list says that none of them lives.
func (n *Namespace) Processes() ([]int, error) {
	info, err := n.ns.Stat()
	if err != nil {
		return nil, fmt.Errorf("looking for processes: %w", err)
	}
	want := "net:[" + strconv.FormatUint(info.Sys().(*syscall.Stat_t).Ino, 10) + "]"
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("looking for processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("looking for processes: %w", err)
	}
	var out []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() {
			continue
		}
		// A process that ended meanwhile, or a zombie, has no link to read.
		if got, err := os.Readlink("/proc/" + name + "/ns/net"); err == nil && got == want {
			out = append(out, pid)
		}
	}
	return out, nil
}

// Record is what the network was used for so far, and how many connections did
// not fit into the record. After Close it no longer changes.
func (n *Namespace) Record() ([]observe.Connection, int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return n.sealed, n.dropped
	}
	return n.record.list()
}

// Close cuts all connections, stops serving and gives up the namespace. It may
// be called twice.
func (n *Namespace) Close() error {
	n.closeOnce.Do(func() {
		n.mu.Lock()
		n.closed = true
		open := n.closers
		n.closers = nil
		n.mu.Unlock()
		n.cancel()
		for c := range open {
			_ = c.Close()
		}
		n.wg.Wait()
		if n.link != nil {
			n.closeErr = n.link.close()
		}
		if n.ns != nil {
			n.closeErr = errors.Join(n.closeErr, n.ns.Close())
		}
		list, dropped := n.record.list()
		n.mu.Lock()
		n.sealed, n.dropped = list, dropped
		n.mu.Unlock()
	})
	return n.closeErr
}

// track has Close close c. It reports false, and closes c, if that was already.
func (n *Namespace) track(c closer) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		_ = c.Close()
		return false
	}
	n.closers[c] = struct{}{}
	return true
}

func (n *Namespace) untrack(c closer) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.closers, c)
}

// serve runs f in a goroutine that Close waits for. It reports false if the
// network is closed or has too many connections.
func (n *Namespace) serve(f func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	select {
	case n.slots <- struct{}{}:
	default:
		return false
	}
	n.wg.Go(func() {
		defer func() { <-n.slots }()
		f()
	})
	return true
}
