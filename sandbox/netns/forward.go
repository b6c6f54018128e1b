package netns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"syscall"

	"assay.dev/assay/sandbox"
)

// forward listens on the task's loopback for one Forward. IPv6 is served where
// the machine has it.
func (n *Namespace) forward(f sandbox.Forward) error {
	if f.Port < 1 || f.Port > 65535 || f.Dial == nil {
		return fmt.Errorf("port %d: not a port with a way to dial it", f.Port)
	}
	port := strconv.Itoa(f.Port)
	for _, host := range []string{"127.0.0.1", "::1"} {
		var l net.Listener
		err := n.Do(func() (err error) {
			l, err = net.Listen("tcp", net.JoinHostPort(host, port))
			return err
		})
		if err != nil {
			if host == "::1" && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) {
				continue
			}
			return err
		}
		if !n.track(l) {
			return net.ErrClosed
		}
		n.wg.Go(func() {
			for {
				c, err := l.Accept()
				if errors.Is(err, net.ErrClosed) || n.ctx.Err() != nil {
					return
				}
				if err != nil {
					continue // out of descriptors, or the peer has gone: the next one may work
				}
				if !n.serve(func() { n.connect(c, f) }) {
					n.record.add("tcp", f.Name, resultRefused, 0, 0)
					_ = c.Close()
				}
			}
		})
	}
	return nil
}

// connect joins one accepted connection to what it is forwarded to.
func (n *Namespace) connect(c net.Conn, f sandbox.Forward) {
	out, err := f.Dial(n.ctx)
	if err != nil {
		n.record.add("tcp", f.Name, resultError, 0, 0)
		_ = c.Close()
		return
	}
	sent, received := n.splice(c, out)
	n.record.add("tcp", f.Name, resultOK, sent, received)
}

// splice copies both ways until both are at their end or the network closes, and
// closes both. It returns the bytes from a to b and from b to a.
func (n *Namespace) splice(a, b io.ReadWriteCloser) (sent, received int64) {
	defer a.Close()
	defer b.Close()
	if !n.track(a) {
		return 0, 0
	}
	defer n.untrack(a)
	if !n.track(b) {
		return 0, 0
	}
	defer n.untrack(b)
	var wg sync.WaitGroup
	wg.Go(func() {
		sent, _ = io.Copy(b, a)
		closeWrite(b)
	})
	received, _ = io.Copy(a, b)
	closeWrite(a)
	wg.Wait()
	return sent, received
}

// closeWrite says "no more" to the other side; where that cannot be said alone,
// the whole connection ends.
func closeWrite(c io.Closer) {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
		return
	}
	_ = c.Close()
}
