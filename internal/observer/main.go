package observer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"assay.dev/assay/api"
	"assay.dev/assay/attest"
	"assay.dev/assay/image"
	"assay.dev/assay/internal/confine"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/internal/service"
	"assay.dev/assay/ledger"
	"assay.dev/assay/pipeline/bundle"
	"assay.dev/assay/store"
	"assay.dev/assay/store/oci"
)

// MainServe is `assay-observer serve`.
func MainServe(ctx context.Context) error {
	var c service.Config
	if err := confine.Input(&c); err != nil {
		return err
	}
	// Nobody of our user may trace us or read our memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbidding traces: %w", err)
	}
	ctx, cancel := service.Lifeline(ctx)
	defer cancel()
	h := &home.Home{Dir: c.Home, Root: c.Root}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	signer, err := EnsureKey(h, api.Executed)
	if err != nil {
		return err
	}
	logbook, err := openLog(h, c.Log)
	if err != nil {
		return err
	}
	led, err := ledger.Open(h.Ledger(), time.Now)
	if err != nil {
		return err
	}
	defer led.Close()
	transport := registry.NewClient(h.RegistrySocket(), c.Registry)
	defer transport.Close()
	route := registry.Route(c.Registry, transport.HTTPTransport(), http.DefaultTransport)
	remote, err := image.NewRemote(image.RemoteOptions{
		Transport: func(string) http.RoundTripper { return route },
		Insecure:  []string{c.Registry},
	})
	if err != nil {
		return err
	}
	defer remote.Close()
	o, err := New(Config{
		Ledger: led, Launcher: c.Launcher, Self: uint32(os.Geteuid()), Separation: h.Separation(), Log: log,
		Statements: &Notary{
			Signer: signer, PublicKey: h.PublicKey(api.Executed), Instance: c.Instance, RegistryName: c.Registry,
			Bundles: &bundle.Client{Transport: route},
			Uploads: func(run string) ([]registry.Upload, error) { return registry.ReadUploads(h.Registry(), run) },
			Head:    func(ctx context.Context, ref string) (v1.Descriptor, error) { return remote.Head(ctx, ref) },
			Store: func(repo string) (store.Store, error) {
				r, err := name.NewRepository(repo, name.Insecure)
				if err != nil {
					return nil, err
				}
				return oci.New(r, route, oci.Options{}), nil
			},
			Logbook: logbook,
			Log:     log,
		},
	})
	if err != nil {
		return err
	}
	l, err := service.Listen(h.ObserverSocket())
	if err != nil {
		return err
	}
	service.Ready()
	if err := o.Serve(ctx, l); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// EnsureKey loads the observer's key for an origin; the first time it makes one
// and publishes its public half.
func EnsureKey(h *home.Home, o api.Origin) (attest.Signer, error) {
	path := h.PrivateKey(o)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		k, err := attest.GenerateKey(attest.ECDSAP256)
		if err != nil {
			return nil, err
		}
		private, err := k.PrivatePEM(nil)
		if err != nil {
			return nil, err
		}
		if err := writeFile(path, private, 0o600); err != nil {
			return nil, err
		}
	}
	s, err := attest.LoadSigner(path, nil)
	if err != nil {
		return nil, err
	}
	// The public half is written anew each time: it follows from the key.
	if err := writeFile(h.PublicKey(o), s.PublicPEM(), 0o644); err != nil {
		return nil, err
	}
	return s, nil
}

// writeFile writes a file whole or not at all.
func writeFile(path string, b []byte, mode os.FileMode) error {
	tmp := path + ".tmp"
	if err := os.WriteFile(tmp, b, mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Chmod(tmp, mode); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
