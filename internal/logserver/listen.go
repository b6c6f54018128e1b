package logserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// listenFlags say where to listen.
type listenFlags struct {
	listen, cert, key string
}

func (l *listenFlags) add(c *cobra.Command, def string) {
	f := c.Flags()
	f.StringVar(&l.listen, "listen", def, "address: HOST:PORT, or unix:///SOCKET")
	f.StringVar(&l.cert, "tls-cert", "", "certificate (PEM) to serve https with")
	f.StringVar(&l.key, "tls-key", "", "its private key")
}

// open listens, and says where in the form of a URL.
func (l *listenFlags) open(secret bool) (net.Listener, string, error) {
	if (l.cert == "") != (l.key == "") {
		return nil, "", usagef("--tls-cert and --tls-key belong together")
	}
	if path, ok := strings.CutPrefix(l.listen, "unix://"); ok {
		// A socket that a killed process left behind is in the way; a file is not ours.
		if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
			if conn, err := net.Dial("unix", path); err == nil {
				conn.Close()
				return nil, "", fmt.Errorf("listening on %s: somebody does already", path)
			}
			os.Remove(path)
		}
		ln, err := net.Listen("unix", path)
		if err != nil {
			return nil, "", fmt.Errorf("listening: %w", err)
		}
		return ln, l.listen, nil
	}
	host, _, err := net.SplitHostPort(l.listen)
	if err != nil {
		return nil, "", usagef("--listen %q: %v; want HOST:PORT or unix:///SOCKET", l.listen, err)
	}
	if ip := net.ParseIP(host); secret && l.cert == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, "", usagef("--listen %s: the token would cross the network in the clear; give --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy that does TLS", l.listen)
	}
	ln, err := net.Listen("tcp", l.listen)
	if err != nil {
		return nil, "", fmt.Errorf("listening: %w", err)
	}
	scheme := "http"
	if l.cert != "" {
		scheme = "https"
	}
	return ln, scheme + "://" + ln.Addr().String(), nil
}

// serve answers until ctx ends, then lets what is under way finish.
func (l *listenFlags) serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: h, ConnContext: PeerContext,
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 2 * addTimeout,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 32 << 10,
	}
	done := make(chan error, 1)
	go func() {
		if l.cert != "" {
			done <- srv.ServeTLS(ln, l.cert, l.key)
			return
		}
		done <- srv.Serve(ln)
	}()
	select {
	case err := <-done:
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), addTimeout)
	defer cancel()
	if err := srv.Shutdown(stop); err != nil {
		srv.Close()
	}
	<-done
	return nil
}
