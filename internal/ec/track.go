package ec

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/spf13/cobra"

	"assay.dev/assay/internal/ec/track"
)

func trackCommand(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "track", Short: "Keep the list of trusted tasks", Args: cobra.ArbitraryArgs, RunE: onlyCommands}
	var (
		bundles, gits  []string
		input, output  string
		prune, replace bool
		freshen        bool
		days           int
	)
	bundle := &cobra.Command{
		Use: "bundle", Aliases: []string{"tekton-task"}, Short: "Add Tekton bundles and tasks in git to the list of trusted tasks",
		Long: `Adds references to the list of trusted tasks: YAML in a file or, as oci:IMAGE, in a
registry. What was the newest reference of a task expires --in-effect-days after a
newer one comes in. Bundles without a Task are left out.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := g.within(cmd.Context())
			defer cancel()
			r, err := newRunner(g, cmd.ErrOrStderr(), 1)
			if err != nil {
				return err
			}
			registry := &track.Registry{Transport: r.cache, Keychain: authn.DefaultKeychain}
			var list []byte
			image, remote := strings.CutPrefix(input, "oci:")
			switch {
			case remote:
				list, err = registry.Pull(ctx, image)
			case input != "":
				list, err = readFile(input)
			}
			if err != nil {
				return err
			}
			out, err := registry.Update(ctx, list, track.Options{
				Add: slices.Concat(bundles, gits), Prune: prune, Freshen: freshen, InEffectDays: days, Now: time.Now(), Warn: g.warn,
			})
			if err != nil {
				return err
			}
			write := func(to string) error {
				if image, ok := strings.CutPrefix(to, "oci:"); ok {
					return registry.Push(ctx, image, out, strings.Join(os.Args, " "))
				}
				return os.WriteFile(to, out, 0o666)
			}
			if output == "" {
				_, err = cmd.OutOrStdout().Write(out)
			} else {
				err = write(output)
			}
			if err == nil && replace && input != "" {
				if err = write(input); err != nil && !remote {
					err = fmt.Errorf("replacing the list: %w", err)
				}
			}
			return err
		},
	}
	f := bundle.Flags()
	f.StringVarP(&input, "input", "i", "", "the list as it is: a file, or oci:IMAGE")
	f.StringSliceVarP(&bundles, "bundle", "b", nil, "a Tekton bundle, with its registry and a tag or a digest (repeatable)")
	f.StringSliceVarP(&gits, "git", "g", nil, "a task in git: git+https://HOST/REPOSITORY//PATH@REVISION (repeatable)")
	f.BoolVarP(&prune, "prune", "p", true, "drop references that are expired")
	f.BoolVarP(&replace, "replace", "r", false, "write the list to --input")
	f.StringVarP(&output, "output", "o", "", "write the list here instead of standard output: a file, or oci:IMAGE")
	f.BoolVar(&freshen, "freshen", false, "add what the tags and default branches of the list's tasks are now")
	f.IntVar(&days, "in-effect-days", 60, "days for which a reference may be used after there is a newer one")
	bundle.MarkFlagsOneRequired("bundle", "git", "input")
	c.AddCommand(bundle)
	return c
}
