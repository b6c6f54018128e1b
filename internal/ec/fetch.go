package ec

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"assay.dev/assay/policy/source"
)

func fetchCommand(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "fetch", Short: "Fetch policies", Args: cobra.ArbitraryArgs, RunE: onlyCommands}
	c.AddCommand(fetchPolicyCommand(g))
	return c
}

func fetchPolicyCommand(g *globals) *cobra.Command {
	var (
		policy, data []string
		dest         string
		work         bool
	)
	c := &cobra.Command{
		Use: "policy", Short: "Fetch rules and data into a folder", Args: cobra.NoArgs,
		Long: `Fetches sources of rules (--source) and of data (--data-source), each into a folder
of its own below policy or data in the destination. Judging needs no fetching before:
this is for looking at what there is. To take a policy to where there is no network,
see assay policy vendor.`,
		Example: "  ec fetch policy --dest fetched --source github.com/conforma/policy//policy/release --data-source git::https://github.com/conforma/policy//example/data",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if work {
				var err error
				if dest, err = os.MkdirTemp("", "ec-work-"); err != nil {
					return err
				}
			}
			ctx, cancel := g.within(cmd.Context())
			defer cancel()
			said := map[string]bool{}
			for _, list := range []struct {
				folder  string
				sources []string
			}{{"policy", policy}, {"data", data}} {
				for _, address := range list.sources {
					at := filepath.Join(dest, list.folder, folderOf(address))
					if !said[address] {
						said[address] = true
						fmt.Fprintf(cmd.OutOrStdout(), "Downloading %s to %s\n", address, at)
					}
					t, err := g.policies().Fetch(ctx, address)
					if err != nil {
						return err
					}
					if err := copyTree(ctx, t, at); err != nil {
						return fmt.Errorf("writing source %q: %w", address, err)
					}
				}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringArrayVarP(&policy, "source", "s", nil, "address of rules (repeatable; required)")
	f.StringArrayVar(&data, "data-source", nil, "address of data (repeatable)")
	f.StringVarP(&dest, "dest", "d", ".", "folder to write to; of no meaning with --work-dir")
	f.BoolVarP(&work, "work-dir", "w", false, "write to a new folder for temporary files")
	_ = c.MarkFlagRequired("source")
	return c
}

// folderOf is what a source's folder is called, as Conforma has it.
func folderOf(address string) string {
	h := sha256.Sum224([]byte(address))
	return hex.EncodeToString(h[:])[:9]
}

// copyTree copies a source's files, with those that no rule would see, into a folder.
// Links to files become files, and others are left out.
func copyTree(ctx context.Context, t *source.Tree, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(to)
	if err != nil {
		return err
	}
	defer root.Close()
	from, err := filepath.EvalSymlinks(t.Path)
	if err != nil {
		return err
	}
	if info, err := os.Stat(from); err != nil {
		return err
	} else if !info.IsDir() {
		return copyFile(root, from, filepath.Base(t.Path))
	}
	into, err := filepath.Abs(to)
	if err != nil {
		return err
	}
	files := 0
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if p != from && source.Skip(d.Name()) || p == into {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := os.Stat(p)
		if err != nil || !info.Mode().IsRegular() {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // a link to nowhere
			}
			return err
		}
		if files++; files > source.MaxFiles {
			return fmt.Errorf("more than %d files; is the path right?", source.MaxFiles)
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		return copyFile(root, p, rel)
	})
}

func copyFile(root *os.Root, from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := root.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := root.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
