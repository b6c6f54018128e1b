package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"assay.dev/assay/api"
	"assay.dev/assay/catalog"
	"assay.dev/assay/image"
	"assay.dev/assay/internal/launch"
	"assay.dev/assay/pipeline/bundle"
)

// pushedCatalog is what `assay catalog push` prints: names to references.
type pushedCatalog struct {
	Images    map[string]string `json:"images"`
	Tasks     map[string]string `json:"tasks"`
	Pipelines map[string]string `json:"pipelines"`
}

func (a *app) catalogCommand() *cobra.Command {
	c := &cobra.Command{Use: "catalog", Short: "The built-in Tasks and Pipelines"}
	var busybox, goroot string
	push := &cobra.Command{
		Use:   "push",
		Short: "Pack the task images and push the catalog as Tekton bundles",
		Long: `Packs the images that the built-in tasks run in out of files of this machine
(busybox, assay-task, the Go toolchain), pushes them to the embedded registry,
and pushes each built-in Task and Pipeline as a bundle that names its images and
tasks by digest. The same files give the same digests.

Prints every reference, and writes them to catalog.json in the home.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			out, err := a.pushCatalog(cmd.Context(), busybox, goroot)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(out)
			}
			for _, m := range []map[string]string{out.Images, out.Tasks, out.Pipelines} {
				for _, ref := range sortedValues(m) {
					fmt.Fprintln(a.out, ref)
				}
			}
			return nil
		},
	}
	push.Flags().StringVar(&busybox, "busybox", "/bin/busybox", "a static busybox (Debian: busybox-static)")
	push.Flags().StringVar(&goroot, "goroot", "", "the Go toolchain (default: what `go env GOROOT` says)")
	c.AddCommand(push)
	return c
}

func (a *app) pushCatalog(ctx context.Context, busybox, goroot string) (*pushedCatalog, error) {
	if _, err := os.Stat(busybox); err != nil {
		return nil, fmt.Errorf("finding busybox: %w; install busybox-static or say where it is with --busybox", err)
	}
	if goroot == "" {
		b, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
		if err != nil {
			return nil, fmt.Errorf("finding the Go toolchain: %w; say where it is with --goroot", err)
		}
		goroot = strings.TrimSpace(string(b))
	}
	taskBinary, err := launch.Binary("assay-task")
	if err != nil {
		return nil, err
	}
	h, cfg, err := findHome()
	if err != nil {
		return nil, err
	}
	prefix := cfg.Registry + "/" + api.CatalogPrefix
	p, err := a.pusher(ctx, h, cfg, prefix)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	out := &pushedCatalog{Images: map[string]string{}, Tasks: map[string]string{}, Pipelines: map[string]string{}}

	root, err := taskRoot(ctx, busybox, taskBinary)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(root)
	task := image.PackOptions{Folders: []image.Folder{{Host: root, Path: "/"}}}
	images := map[string]image.PackOptions{"task": task}
	toolchain := task
	gofiles, err := image.GoRoot(goroot, "/usr/local/go", image.HostPlatform())
	if err != nil {
		return nil, err
	}
	toolchain.Folders = append(gofiles, task.Folders...)
	images["go"] = toolchain
	for _, name := range []string{"task", "go"} {
		d, err := packPush(ctx, p.remote, prefix+name+":latest", images[name])
		if err != nil {
			return nil, fmt.Errorf("making image %s: %w", name, err)
		}
		out.Images[name] = prefix + name + "@" + d
	}
	tasks, err := catalog.Tasks(out.Images)
	if err != nil {
		return nil, err
	}
	if err := pushObjects(ctx, p.bundles, prefix+"task-", tasks, out.Tasks); err != nil {
		return nil, err
	}
	pipelines, err := catalog.Pipelines(out.Tasks)
	if err != nil {
		return nil, err
	}
	if err := pushObjects(ctx, p.bundles, prefix+"pipeline-", pipelines, out.Pipelines); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return nil, err
	}
	file := h.Path("catalog.json")
	if err := os.WriteFile(file+".tmp", append(b, '\n'), 0o644); err != nil {
		return nil, fmt.Errorf("writing %s: %w", filepath.Base(file), err)
	}
	return out, os.Rename(file+".tmp", file)
}

// taskRoot lays out the root file system of the task image: busybox under all
// its names, assay-task, and a root user.
func taskRoot(ctx context.Context, busybox, task string) (_ string, err error) {
	root, err := os.MkdirTemp("", "assay-task-image-")
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(root)
		}
	}()
	for _, d := range []string{"bin", "usr/bin", "etc", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	for to, from := range map[string]string{"bin/busybox": busybox, "usr/bin/assay-task": task} {
		b, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(root, to), b, 0o755); err != nil {
			return "", err
		}
	}
	applets, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return "", fmt.Errorf("asking busybox for its names: %w", err)
	}
	for _, name := range strings.Fields(string(applets)) {
		if name == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(root, "bin", filepath.Base(name))); err != nil {
			return "", err
		}
	}
	return root, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"), 0o644)
}

// pushObjects pushes each object as a bundle of its own.
func pushObjects(ctx context.Context, c *bundle.Client, prefix string, objects []catalog.Object, refs map[string]string) error {
	for _, o := range objects {
		b, err := bundle.Parse(o.YAML)
		if err != nil {
			return err
		}
		d, err := c.Push(ctx, prefix+o.Name+":latest", b)
		if err != nil {
			return fmt.Errorf("pushing %s %s: %w", o.Kind, o.Name, err)
		}
		refs[o.Name] = prefix + o.Name + "@" + d
	}
	return nil
}

func sortedValues(m map[string]string) []string {
	var out []string
	for _, k := range sortedKeys(m) {
		out = append(out, m[k])
	}
	return out
}
