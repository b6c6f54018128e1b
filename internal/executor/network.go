package executor

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1/types"

	"assay.dev/assay/image"
)

// remote is what exporting needs of a registry client.
type remote interface {
	PushLayoutDir(ctx context.Context, dir *os.File, repo string) ([]string, error)
	PushBlob(ctx context.Context, repo, digest string, size int64, open func() (io.ReadCloser, error)) error
	PushManifest(ctx context.Context, ref string, mediaType v1.MediaType, raw []byte) (string, error)
	Close()
}

// authorized is a registry client that carries one token.
func (e *Executor) authorized(token string) (remote, error) {
	r, err := image.NewRemote(image.RemoteOptions{
		Transport: func(host string) http.RoundTripper {
			if host == e.cfg.RegistryName {
				return bearer{token, e.cfg.Transport}
			}
			return nil
		},
		Insecure: []string{e.cfg.RegistryName},
	})
	if err != nil {
		return nil, fmt.Errorf("wiring the registry: %w", err)
	}
	return r, nil
}

type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(req)
}

// outside is how the executor itself reaches a repository that a task named.
// The name is the tenant's: this machine's own services stay out of reach but
// for what is forwarded on purpose, as for the task.
func (e *Executor) outside() http.RoundTripper {
	d := &net.Dialer{Timeout: 15 * time.Second}
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSHandshakeTimeout: 15 * time.Second,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			p, _ := strconv.Atoi(port)
			for _, f := range e.cfg.Forwards {
				if f.Port == p && (host == "localhost" || host == "127.0.0.1" || host == "::1") {
					c, err := f.Dial(ctx)
					if err != nil {
						return nil, err
					}
					if nc, ok := c.(net.Conn); ok {
						return nc, nil
					}
					c.Close()
					return nil, fmt.Errorf("forward %s is no network connection", f.Name)
				}
			}
			ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
			if err != nil {
				return nil, err
			}
			for _, ip := range ips {
				if err := foreign(ip.Unmap()); err != nil {
					return nil, fmt.Errorf("connecting to %s: %w", addr, err)
				}
			}
			// Dial the address that was checked, not the name again.
			return d.DialContext(ctx, network, net.JoinHostPort(ips[0].Unmap().String(), port))
		},
	}
}

// foreign refuses this machine's own addresses.
func foreign(ip netip.Addr) error {
	if ip.IsLoopback() || ip.IsUnspecified() || ip.IsLinkLocalUnicast() || ip.IsMulticast() {
		return fmt.Errorf("%s is not reachable from a run: forward it with --forward if it should be", ip)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("listing this machine's addresses: %w", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(net.IP(ip.AsSlice())) {
			return fmt.Errorf("%s is this machine: forward it with --forward if it should be", ip)
		}
	}
	return nil
}

func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
}
