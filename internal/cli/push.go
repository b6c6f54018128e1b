package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/spf13/cobra"

	"assay.dev/assay/api"
	"assay.dev/assay/catalog"
	"assay.dev/assay/image"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/launch"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/pipeline/bundle"
)

// pusher writes to registries: to the embedded one as its operator, through its
// process, to others with the user's docker credentials.
type pusher struct {
	remote  *image.Remote
	bundles *bundle.Client
	close   []func()
}

// pusher starts the embedded registry's process when a reference is in it.
func (a *app) pusher(ctx context.Context, h *home.Home, cfg home.Config, refs ...string) (*pusher, error) {
	p := &pusher{}
	route := http.RoundTripper(http.DefaultTransport)
	for _, ref := range refs {
		if !strings.HasPrefix(ref, cfg.Registry+"/") {
			continue
		}
		if !strings.HasPrefix(ref, cfg.Registry+"/"+api.CatalogPrefix) {
			return nil, usagef("%s: in the embedded registry you may push to %s/%s… only; runs write staging, the releaser released", ref, cfg.Registry, api.CatalogPrefix)
		}
		s, err := launch.Start(ctx, h, launch.Options{Log: a.err, Wait: 30 * time.Second})
		if err != nil {
			return nil, err
		}
		c := s.RegistryClient()
		p.close = append(p.close, c.Close, func() {
			if err := s.Close(); err != nil {
				fmt.Fprintf(a.err, "assay: %v\n", err)
			}
		})
		route = registry.Route(cfg.Registry, c.HTTPTransport(), http.DefaultTransport)
		break
	}
	remote, err := image.NewRemote(image.RemoteOptions{
		Transport: func(host string) http.RoundTripper {
			if host == cfg.Registry {
				return route
			}
			return nil
		},
		Insecure: []string{cfg.Registry},
	})
	if err != nil {
		p.Close()
		return nil, err
	}
	p.remote = remote
	p.close = append([]func(){remote.Close}, p.close...)
	p.bundles = &bundle.Client{Transport: route, Keychain: authn.DefaultKeychain}
	return p, nil
}

func (p *pusher) Close() {
	for _, f := range p.close {
		f()
	}
}

func (a *app) bundleCommand() *cobra.Command {
	c := &cobra.Command{Use: "bundle", Short: "Tekton bundles"}
	c.AddCommand(&cobra.Command{
		Use:   "push REF FILE…",
		Short: "Push Tasks, Pipelines and StepActions as one Tekton bundle",
		Long: `Packs the Tekton objects of the files into one bundle, in Tekton's own layout, and
pushes it. Prints the reference by digest, which is what a PipelineRun should
name. The same objects give the same digest.`,
		Example: "  assay bundle push localhost:5055/catalog/task-scan:1.0 task.yaml",
		Args:    cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			var objects []*bundle.Object
			for _, f := range args[1:] {
				b, err := os.ReadFile(f)
				if err != nil {
					return fmt.Errorf("reading a file: %w", err)
				}
				docs, err := catalog.Parse(b)
				if err != nil {
					return fmt.Errorf("%s: %w", f, err)
				}
				for _, d := range docs {
					o, err := bundle.Parse(d.YAML)
					if err != nil {
						return fmt.Errorf("%s: %w", f, err)
					}
					objects = append(objects, o)
				}
			}
			h, cfg, err := findHome()
			if err != nil {
				return err
			}
			p, err := a.pusher(cmd.Context(), h, cfg, args[0])
			if err != nil {
				return err
			}
			defer p.Close()
			digest, err := p.bundles.Push(cmd.Context(), args[0], objects...)
			if err != nil {
				return err
			}
			return a.pushed(args[0], digest)
		},
	})
	return c
}

// pushed prints what was pushed, by digest.
func (a *app) pushed(ref, digest string) error {
	if a.output == "json" {
		return a.json(map[string]string{"ref": repositoryOf(ref) + "@" + digest, "digest": digest})
	}
	fmt.Fprintf(a.out, "%s@%s\n", repositoryOf(ref), digest)
	return nil
}

// repositoryOf drops tag and digest of a reference.
func repositoryOf(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndex(ref, ":"); i > strings.LastIndex(ref, "/") {
		return ref[:i]
	}
	return ref
}

func (a *app) imageCommand() *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Images to run steps in"}
	var folders, files, goroots, env, entrypoint []string
	var workdir, compression string
	pack := &cobra.Command{
		Use:   "pack REF",
		Short: "Make a pinned image of folders and files of this machine, and push it",
		Long: `Packs folders and files of this machine into an image, a layer each, and pushes
it. Owners, times and order are fixed, so the same content gives the same digest
wherever and whenever it is packed. Prints the reference by digest.`,
		Example: `  assay image pack localhost:5055/catalog/busybox:1 --file /bin/busybox=/bin/busybox
  assay image pack localhost:5055/catalog/go:1.26 --go $(go env GOROOT)=/usr/local/go`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			o := image.PackOptions{Env: env, Entrypoint: entrypoint, WorkingDir: workdir, Compression: compression}
			for _, f := range folders {
				host, path, ok := strings.Cut(f, "=")
				if !ok {
					return usagef("--folder %q: want FOLDER=/PATH/IN/IMAGE", f)
				}
				o.Folders = append(o.Folders, image.Folder{Host: host, Path: path})
			}
			for _, g := range goroots {
				host, path, ok := strings.Cut(g, "=")
				if !ok {
					return usagef("--go %q: want GOROOT=/PATH/IN/IMAGE", g)
				}
				fs, err := image.GoRoot(host, path, image.HostPlatform())
				if err != nil {
					return err
				}
				o.Folders = append(o.Folders, fs...)
			}
			for _, f := range files {
				path, host, ok := strings.Cut(f, "=")
				if !ok {
					return usagef("--file %q: want /PATH/IN/IMAGE=FILE", f)
				}
				o.Files = append(o.Files, image.File{Path: path, Host: host})
			}
			if len(o.Folders)+len(o.Files) == 0 {
				return usagef("nothing to pack: use --folder, --file or --go")
			}
			h, cfg, err := findHome()
			if err != nil {
				return err
			}
			p, err := a.pusher(cmd.Context(), h, cfg, args[0])
			if err != nil {
				return err
			}
			defer p.Close()
			digest, err := packPush(cmd.Context(), p.remote, args[0], o)
			if err != nil {
				return err
			}
			return a.pushed(args[0], digest)
		},
	}
	f := pack.Flags()
	f.StringArrayVar(&folders, "folder", nil, "a folder, FOLDER=/PATH/IN/IMAGE (repeatable)")
	f.StringArrayVar(&files, "file", nil, "a file, /PATH/IN/IMAGE=FILE (repeatable)")
	f.StringArrayVar(&goroots, "go", nil, "what a build needs of a Go toolchain, GOROOT=/PATH/IN/IMAGE")
	f.StringArrayVar(&env, "env", nil, "a variable, NAME=VALUE (repeatable)")
	f.StringArrayVar(&entrypoint, "entrypoint", nil, "the entrypoint, one word a flag")
	f.StringVar(&workdir, "workdir", "", "the working directory")
	f.StringVar(&compression, "compression", "zstd", "zstd or gzip")
	c.AddCommand(pack)
	return c
}

func packPush(ctx context.Context, r *image.Remote, ref string, o image.PackOptions) (string, error) {
	packed, err := image.Pack(ctx, o)
	if err != nil {
		return "", err
	}
	digest, err := r.PushImage(ctx, ref, packed)
	return digest, errors.Join(err, packed.Close())
}
