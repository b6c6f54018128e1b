package executor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"assay.dev/assay/image"
	"assay.dev/assay/internal/channel"
	"assay.dev/assay/internal/confine"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/internal/service"
	"assay.dev/assay/sandbox/netns"
	"assay.dev/assay/sandbox/oci"
)

// MainRun is `assay-executor run`: wired from descriptor 3, commands on
// standard input, events on standard output.
func MainRun(ctx context.Context) error {
	var c service.Executor
	if err := confine.Input(&c); err != nil {
		return err
	}
	if err := confine.Inside(); err != nil {
		return err
	}
	h := &home.Home{Dir: c.Service.Home, Root: c.Service.Root}
	groups, err := confine.Cgroup()
	if err != nil {
		return err
	}
	idBase, idSize := uint32(home.StepsInside), uint32(home.StepsSize)
	if !h.Root {
		idBase, idSize = 0, 1
	}
	proxies, proxyForwards, err := netns.ProxyEnv(os.Environ())
	if err != nil {
		return err
	}
	state := filepath.Join(c.Scratch, "sandbox")
	if err := os.Mkdir(state, 0o711); err != nil {
		return fmt.Errorf("making the sandbox's folder: %w", err)
	}
	driver, err := oci.New(oci.Options{
		Runtime: confine.Opened(), Name: runtimeName(c.Runtime), StateDir: state,
		IDBase: idBase, IDSize: idSize, Cgroup: groups, Limits: c.Limits,
		OpenEnv: proxies, OpenForward: proxyForwards,
	})
	if err != nil {
		return err
	}
	defer driver.Close()
	spool := filepath.Join(c.Scratch, "spool")
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return fmt.Errorf("making the spool: %w", err)
	}
	_, port, err := net.SplitHostPort(c.Service.Registry)
	if err != nil {
		return fmt.Errorf("the registry's name %q: %w", c.Service.Registry, err)
	}
	registryPort, err := strconv.Atoi(port)
	if err != nil {
		return fmt.Errorf("the registry's name %q: %w", c.Service.Registry, err)
	}
	forwards, err := parseForwards(c.Forward)
	if err != nil {
		return err
	}
	tokens := registry.NewClient(h.RegistrySocket(), c.Service.Registry)
	defer tokens.Close()
	hosts := map[string]HostFolder{}
	for name, f := range c.Hosts {
		hosts[name] = HostFolder{Path: f.Path, ReadOnly: f.ReadOnly}
	}
	host := driver.Host()
	host.Version = version()
	if host.Digest, err = selfDigest(); err != nil {
		return err
	}
	return Run(ctx, Config{
		Run: c.Run, Nonce: c.Nonce, Driver: driver,
		Images: &image.Client{Socket: h.ImagesSocket()}, Tokens: tokens,
		Transport: tokens.HTTPTransport(), RegistryName: c.Service.Registry, RegistryPort: registryPort,
		RegistryDial: dialer("unix", h.TasksSocket()),
		Forwards:     forwards, Hosts: hosts,
		Observer: &channel.Client{Socket: h.ObserverSocket()},
		Scratch:  spool, IDBase: int(idBase), Limits: c.Limits, Host: host,
		Platform: image.HostPlatform(),
	}, os.Stdin, os.Stdout)
}

func dialer(network, addr string) func(context.Context) (io.ReadWriteCloser, error) {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
}

// parseForwards reads [port=]host:port: what tasks reach as localhost:port, and
// the address on this machine's network that it stands for.
func parseForwards(list []string) ([]Forward, error) {
	var out []Forward
	for _, s := range list {
		p, addr, ok := strings.Cut(s, "=")
		if !ok {
			p, addr = "", s
		}
		_, ap, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, fmt.Errorf("forward %q: want host:port or port=host:port", s)
		}
		if p == "" {
			p = ap
		}
		port, err := strconv.Atoi(p)
		if err != nil || port < 1 || port > 65535 {
			return nil, fmt.Errorf("forward %q: %q is no port", s, p)
		}
		out = append(out, Forward{Port: port, Name: "localhost:" + p, Dial: dialer("tcp", addr)})
	}
	return out, nil
}

// selfDigest identifies this program: releases are told apart by it, whatever
// version they call themselves.
func selfDigest() (string, error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("reading myself: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("reading myself: %w", err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// runtimeName is what a runtime is called by its file: runsc, runsc-1234abcd.
func runtimeName(path string) string {
	name, _, _ := strings.Cut(filepath.Base(path), "-")
	return name
}

// MainImages is `assay-executor images`: the image store as a service.
func MainImages(ctx context.Context) error {
	var c service.Config
	if err := confine.Input(&c); err != nil {
		return err
	}
	if err := confine.Inside(); err != nil {
		return err
	}
	ctx, cancel := service.Lifeline(ctx)
	defer cancel()
	h := &home.Home{Dir: c.Home, Root: c.Root}
	shift := home.StepsInside
	if !h.Root {
		shift = 0
	}
	embedded := registry.NewClient(h.RegistrySocket(), c.Registry)
	defer embedded.Close()
	store, err := image.Open(image.Options{
		Dir: h.Cache(), IDShift: shift,
		Remote: image.RemoteOptions{
			Transport: func(host string) http.RoundTripper {
				if host == c.Registry {
					return embedded.HTTPTransport()
				}
				return nil
			},
			Insecure: append([]string{c.Registry}, c.Insecure...),
			Mirrors:  c.Mirrors,
		},
		Log: func(line string) { fmt.Fprintln(os.Stderr, "images:", strings.TrimSpace(line)) },
	})
	if err != nil {
		return err
	}
	defer store.Close()
	l, err := service.Listen(h.ImagesSocket())
	if err != nil {
		return err
	}
	service.Ready()
	if err := image.Serve(ctx, l, store); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func version() string {
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "unknown"
}
