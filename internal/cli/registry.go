package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/channel"
	"assay.dev/assay/internal/confine"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/internal/service"
)

func (a *app) registryCommand() *cobra.Command {
	c := &cobra.Command{Use: "registry", Short: "The embedded registry"}
	var listen string
	serve := &cobra.Command{
		Use:   "serve",
		Short: "Let cosign, oras, skopeo and docker read the embedded registry",
		Long: `Serves the embedded registry's folder over http, read-only, until interrupted.
References name it as it is named here, so its usual address is its name.
Our own commands need no such server: they open the folder.`,
		Example: "  assay registry serve &\n  cosign verify --key $KEY --insecure-ignore-tlog --allow-insecure-registry $IMAGE",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h, cfg, err := findHome()
			if err != nil {
				return err
			}
			if listen == "" {
				listen = cfg.Registry
			}
			handler, err := registry.OpenReadOnly(h.Registry())
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("there is no registry in %s yet; `assay run` makes one, %s names another folder", h.Dir, home.Env)
			}
			if err != nil {
				return err
			}
			l, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("listening: %w", err)
			}
			fmt.Fprintf(a.err, "assay: serving %s read-only on http://%s\n", h.Registry(), l.Addr())
			return serveHTTP(cmd.Context(), l, handler)
		},
	}
	serve.Flags().StringVar(&listen, "listen", "", "address to listen on (default: the registry's name)")
	run := &cobra.Command{
		Use:    "run",
		Short:  "The registry's process; started by the launcher",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return runRegistry(cmd.Context()) },
	}
	c.AddCommand(serve, run)
	return c
}

func serveHTTP(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// runRegistry is the one process that writes the registry's folder.
func runRegistry(ctx context.Context) error {
	var c service.Config
	if err := confine.Input(&c); err != nil {
		return err
	}
	ctx, cancel := service.Lifeline(ctx)
	defer cancel()
	h := &home.Home{Dir: c.Home, Root: c.Root}
	roles := map[uint32]registry.Role{}
	roles[h.User(home.UIDObserver)] |= registry.Observer
	roles[h.User(home.UIDReleaser)] |= registry.Releaser
	roles[c.Launcher] |= registry.Operator
	srv, err := registry.New(registry.Config{
		Dir: h.Registry(), Name: c.Registry,
		Runs:  &channel.Client{Socket: h.ObserverSocket()},
		Roles: func(uid uint32) registry.Role { return roles[uid] },
		Log:   slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	defer srv.Close()
	l, err := service.Listen(h.RegistrySocket())
	if err != nil {
		return err
	}
	// What executors forward into tasks comes in at a door of its own, where the
	// executor's user gives no rights.
	tasks, err := service.Listen(h.TasksSocket())
	if err != nil {
		return errors.Join(err, l.Close())
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	go srv.ServeTasks(tasks) //nolint:errcheck // it ends with Serve, whose error is returned
	service.Ready()
	return srv.Serve(l)
}

// embedded reaches the embedded registry: through its folder, read-only, and
// everything else over the network.
func embedded(h *home.Home, cfg home.Config) (http.RoundTripper, error) {
	handler, err := registry.OpenReadOnly(h.Registry())
	if errors.Is(err, fs.ErrNotExist) {
		// Nothing was ever pushed here; a reference to it says so in its error.
		handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, fmt.Sprintf("there is no registry in %s; %s names another folder", h.Dir, home.Env), http.StatusNotFound)
		})
	} else if err != nil {
		return nil, err
	}
	return registry.Route(cfg.Registry, registry.InProcess(handler), http.DefaultTransport), nil
}
