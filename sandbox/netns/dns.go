package netns

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	dnsTimeout = 5 * time.Second
	dnsIdle    = 10 * time.Second
)

// hostNameservers reads the nameserver lines of resolv.conf(5).
func hostNameservers(path string) ([]netip.AddrPort, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading nameservers: %w", err)
	}
	defer f.Close()
	var out []netip.AddrPort
	for s := bufio.NewScanner(io.LimitReader(f, 64<<10)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	if len(out) == 0 {
		out = append(out, netip.MustParseAddrPort("127.0.0.1:53")) // resolv.conf(5)'s default
	}
	return out, nil
}

// question returns the name asked; an error if the message is not one question.
func question(msg []byte) (string, error) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil {
		return "", fmt.Errorf("parsing question: %w", err)
	}
	if h.Response {
		return "", errors.New("parsing question: it is an answer")
	}
	q, err := p.Question()
	if err != nil {
		return "", fmt.Errorf("parsing question: %w", err)
	}
	return strings.ToLower(strings.TrimSuffix(q.Name.String(), ".")), nil
}

// resolve passes a question on and returns the answer as it came. What is not a
// question is dropped: the port is for names, not a way out for other bytes.
func (l *link) resolve(network string, msg []byte) ([]byte, error) {
	name, err := question(msg)
	if err != nil {
		l.n.record.add("dns", "", resultDenied, int64(len(msg)), 0)
		return nil, err
	}
	var last error
	for _, server := range l.servers {
		answer, err := l.ask(network, server, msg)
		if err == nil {
			l.n.record.add("dns", name, resultOK, int64(len(msg)), int64(len(answer)))
			return answer, nil
		}
		last = err
	}
	l.n.record.add("dns", name, resultError, int64(len(msg)), 0)
	return nil, last
}

func (l *link) ask(network string, server netip.AddrPort, msg []byte) ([]byte, error) {
	c, err := l.dialer.DialContext(l.n.ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if !l.n.track(c) {
		return nil, net.ErrClosed
	}
	defer l.n.untrack(c)
	_ = c.SetDeadline(time.Now().Add(dnsTimeout))
	if network == "tcp" {
		if err := writeFrame(c, msg); err != nil {
			return nil, err
		}
		return readFrame(c)
	}
	if _, err := c.Write(msg); err != nil {
		return nil, err
	}
	buf := make([]byte, 65535)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if n >= 12 && buf[0] == msg[0] && buf[1] == msg[1] { // the answer to this question
			return buf[:n], nil
		}
	}
}

func (l *link) dnsUDP(in net.Conn) {
	defer in.Close()
	if !l.n.track(in) {
		return
	}
	defer l.n.untrack(in)
	buf := make([]byte, 4096)
	for {
		_ = in.SetReadDeadline(time.Now().Add(dnsIdle))
		n, err := in.Read(buf)
		if err != nil {
			return
		}
		if answer, err := l.resolve("udp", buf[:n]); err == nil {
			_, _ = in.Write(answer)
		}
	}
}

func (l *link) dnsTCP(in net.Conn) {
	defer in.Close()
	if !l.n.track(in) {
		return
	}
	defer l.n.untrack(in)
	for {
		_ = in.SetDeadline(time.Now().Add(dnsIdle))
		msg, err := readFrame(in)
		if err != nil {
			return
		}
		answer, err := l.resolve("tcp", msg)
		if err != nil || writeFrame(in, answer) != nil {
			return
		}
	}
}

// readFrame and writeFrame speak RFC 1035 section 4.2.2.
func readFrame(r io.Reader) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeFrame(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}
