package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/confine"
	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/gate/recording"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/launch"
	"assay.dev/assay/internal/releaser"
	"assay.dev/assay/release"
)

func (a *app) releaseCommand() *cobra.Command {
	var g gateFlags
	var to string
	var tags []string
	c := &cobra.Command{
		Use:   "release IMAGE --to DESTINATION",
		Short: "Judge an image and, if it passes, copy exactly what was judged",
		Long: `Judges the image as gate does. If it passes, the releaser, the only process that
has destination credentials, judges it again, copies exactly the judged digests
with their evidence, reads them back, and sets the tags last.

The embedded registry takes releases below released/. Credentials for other
registries are a docker config.json in the home's releaser/ folder, which only
the releaser can read.

Exit codes: 0 released, 1 could not be checked or copied, 2 usage, 3 the policy
says no; then nothing was written.`,
		Example: "  assay release $IMAGE --key $KEY --policy $POLICY --to localhost:5055/released/yq --tag v4.47.2",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			if to == "" {
				return usagef("no destination given: use --to REPOSITORY[:TAG]")
			}
			repo, tag, err := releaser.Repository(to)
			if err != nil {
				return usagef("%v", err)
			}
			if tag != "" {
				tags = append([]string{tag}, tags...)
			}
			// The releaser judges by a copy of what was read here, so that it needs no
			// network for the policy and nobody changes it in between.
			dir, err := os.MkdirTemp("", "assay-release-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(dir)
			rec, err := recording.Create(dir)
			if err != nil {
				return err
			}
			gt, v, err := g.prepare(cmd.Context(), a, repo, rec.Policy, nil)
			if err != nil {
				return err
			}
			list := judgeAll(cmd.Context(), gt, args)
			if !list[0].Passed() {
				return a.judged(gt, list, g.successes)
			}
			done, err := a.release(cmd.Context(), gt, v, list[0], rec, dir, repo, tags)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return a.json(done)
			}
			fmt.Fprintf(a.out, "released %s\n", done.Image)
			for _, t := range done.Tags {
				fmt.Fprintf(a.out, "  tag       %s:%s\n", repo, t)
			}
			for _, d := range done.Digests {
				fmt.Fprintf(a.out, "  judged    %s\n", d)
			}
			fmt.Fprintf(a.out, "  evidence  %d manifests\n", len(done.Evidence))
			return nil
		},
	}
	g.add(c)
	c.Flags().StringVar(&to, "to", "", "destination repository, with or without a tag")
	c.Flags().StringArrayVar(&tags, "tag", nil, "tag to set (repeatable)")
	return c
}

// release hands a passing judgement to the releaser's process.
func (a *app) release(ctx context.Context, g *gate.Gate, v *verifier, j *gate.Judgement, rec *recording.Recorder, dir, repo string, tags []string) (*release.Released, error) {
	if len(j.Rejected) > 0 {
		r := j.Rejected[0]
		return nil, fmt.Errorf("evidence that does not verify hangs on %s (%s: %s); releasing would publish it", j.Ref, r.Digest, r.Reason)
	}
	path, err := launch.Binary("assay-releaser")
	if err != nil {
		return nil, err
	}
	if strings.HasPrefix(repo, v.config.Registry+"/") || strings.HasPrefix(j.Ref, v.config.Registry+"/") {
		s, err := launch.Start(ctx, v.home, launch.Options{Log: a.err, Wait: time.Minute})
		if err != nil {
			return nil, err
		}
		defer s.Close()
	}
	// The destination's credential is for the releaser's user alone.
	if cred := v.home.Path("releaser", "config.json"); v.home.Root {
		if err := os.Chown(cred, home.UIDReleaser, home.UIDReleaser); err == nil {
			err = os.Chmod(cred, 0o400)
			if err != nil {
				return nil, fmt.Errorf("closing the destination's credential: %w", err)
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("giving the destination's credential to the releaser: %w", err)
		}
	}
	trust, err := g.Trust()
	if err != nil {
		return nil, err
	}
	digest, err := rec.Close(recording.Case{Trust: *trust, Embedded: g.Embedded, Now: g.Context.Now})
	if err != nil {
		return nil, err
	}
	order := releaser.Order{
		Home: v.home.Dir, Root: v.home.Root, Registry: v.config.Registry,
		Image: j.Ref, Destination: repo, Tags: tags,
		Policy: dir, PolicyRecording: digest, PolicyDigest: g.Policy.Digest(), Trust: *trust,
	}
	for _, e := range j.Entries {
		order.Verdicts = append(order.Verdicts, e.Verdict)
	}
	raw, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	in, err := confine.File(raw)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	cmd := exec.CommandContext(ctx, path)
	cmd.ExtraFiles = []*os.File{in}
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	if err := cmd.Run(); err != nil {
		return nil, errors.New(strings.TrimSpace(strings.TrimPrefix(errb.String(), "assay-releaser: ")))
	}
	done := new(release.Released)
	if err := json.Unmarshal(out.Bytes(), done); err != nil {
		return nil, fmt.Errorf("reading the releaser: %w", err)
	}
	return done, nil
}
