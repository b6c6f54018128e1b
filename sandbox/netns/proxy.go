package netns

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"assay.dev/assay/sandbox"
)

// ProxyEnv takes the proxy settings out of an environment (NAME=value each) and
// returns what a task in an open network is given: the same settings, and what
// has to be forwarded for them. A proxy on this machine, which a task cannot
// reach, becomes a forward on the task's own loopback. A malformed proxy address
// is an error that names the variable, but not its value, which may hold a
// password.
func ProxyEnv(environ []string) (env []string, forward []sandbox.Forward, err error) {
	ports := map[int]bool{}
	for _, kv := range environ {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || value == "" {
			continue
		}
		switch strings.ToUpper(name) {
		case "NO_PROXY":
			env = append(env, kv)
			continue
		case "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY":
		default:
			continue
		}
		u, addr, err := parseProxy(value)
		if err != nil {
			return nil, nil, fmt.Errorf("reading %s: %w", name, err)
		}
		if port := addr.Port(); addr.IsValid() && onThisMachine(addr.Addr()) {
			u.Host = net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
			if !ports[int(port)] {
				ports[int(port)] = true
				forward = append(forward, sandbox.Forward{
					Port: int(port), Name: "proxy " + addr.String(),
					Dial: func(ctx context.Context) (io.ReadWriteCloser, error) {
						var d net.Dialer
						return d.DialContext(ctx, "tcp", addr.String())
					},
				})
			}
		}
		env = append(env, name+"="+u.String())
	}
	return env, forward, nil
}

// parseProxy reads a proxy address as clients do, scheme optional. addr is valid
// only if the host is a number or localhost.
func parseProxy(value string) (u *url.URL, addr netip.AddrPort, err error) {
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	u, err = url.Parse(value)
	if err != nil || u.Hostname() == "" {
		return nil, addr, fmt.Errorf("not the address of a proxy; want http://host:port")
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
		if port == "" {
			port = "80"
		}
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil || p == 0 {
		return nil, addr, fmt.Errorf("not a port")
	}
	host := u.Hostname()
	if strings.EqualFold(host, "localhost") {
		host = "127.0.0.1"
	}
	if a, err := netip.ParseAddr(host); err == nil {
		addr = netip.AddrPortFrom(a.Unmap(), uint16(p))
	}
	return u, addr, nil
}

func onThisMachine(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, o := range own {
		if p, err := netip.ParsePrefix(o.String()); err == nil && p.Addr() == a {
			return true
		}
	}
	return false
}
