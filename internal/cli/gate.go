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
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"assay.dev/assay/attest/dsse"
	"assay.dev/assay/internal/confine"
	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/home"
	"assay.dev/assay/internal/launch"
	"assay.dev/assay/internal/releaser"
	"assay.dev/assay/policy"
	"assay.dev/assay/release"
	"assay.dev/assay/report"
)

// gateFlags are those of gate and release.
type gateFlags struct {
	trust     trustFlags
	policy    string
	data      []string
	effective string
	past      bool
	successes bool
}

func (g *gateFlags) add(c *cobra.Command) {
	g.trust.add(c)
	f := c.Flags()
	f.StringVarP(&g.policy, "policy", "p", "", "policy: a file, or a folder with policy.yaml or *.rego (required)")
	f.StringArrayVar(&g.data, "data", nil, "data file for the policy, such as trusted tasks (repeatable)")
	f.StringVar(&g.effective, "effective-time", "", "judge as of this time: RFC 3339 or YYYY-MM-DD (default: now)")
	f.BoolVar(&g.past, "allow-past-effective-time", false, "accept an --effective-time in the past, where later rules are not in force")
	f.BoolVar(&g.successes, "show-successes", false, "list the rules that passed")
}

// open loads policy and trust.
func (g *gateFlags) open(ctx context.Context, destination string) (*gate.Gate, *verifier, error) {
	if g.policy == "" {
		return nil, nil, usagef("no policy given: use --policy FOLDER, for example examples/policy/release")
	}
	pc := policy.Context{Destination: destination, AllowPast: g.past}
	if g.effective != "" {
		for _, layout := range []string{time.RFC3339, time.DateOnly} {
			if t, err := time.Parse(layout, g.effective); err == nil {
				pc.EffectiveTime = t
			}
		}
		if pc.EffectiveTime.IsZero() {
			return nil, nil, usagef("--effective-time %q: want RFC 3339 or YYYY-MM-DD", g.effective)
		}
	}
	v, err := g.trust.verifier()
	if err != nil {
		return nil, nil, err
	}
	p, err := policy.Load(ctx, g.policy, policy.Options{Data: g.data})
	if err != nil {
		return nil, nil, err
	}
	return &gate.Gate{Keys: v.keys, Log: v.log, Policy: p, Transport: v.transport, Embedded: v.config.Registry, Context: pc}, v, nil
}

func (a *app) gateCommand() *cobra.Command {
	var g gateFlags
	c := &cobra.Command{
		Use:   "gate IMAGE…",
		Short: "Judge images by a policy, and explain the verdict",
		Long: `Verifies each image's evidence and judges it by the policy. An index is judged
with every image it lists. Says what passed, what did not and why, and answers:
was it scanned, did a trusted task build it, did anything touch the sources.

Exit codes: 0 all pass, 1 something could not be checked, 2 usage, 3 the policy
says no.`,
		Example: "  assay gate $IMAGE --key $KEY --policy examples/policy/release\n  assay gate $IMAGE --key $KEY --policy $POLICY --output json",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.outputIs("text", "json"); err != nil {
				return err
			}
			gt, _, err := g.open(cmd.Context(), "")
			if err != nil {
				return err
			}
			return a.judged(judgeAll(cmd.Context(), gt, args), g.successes)
		},
	}
	g.add(c)
	return c
}

// judgeAll judges each image; what cannot be checked is an entry with its error.
func judgeAll(ctx context.Context, g *gate.Gate, refs []string) []*gate.Judgement {
	out := make([]*gate.Judgement, len(refs))
	for i, ref := range refs {
		j, err := g.Judge(ctx, ref)
		if err != nil {
			j = &gate.Judgement{Ref: ref, Entries: []report.Entry{{Image: ref, Err: err}}}
		}
		out[i] = j
	}
	return out
}

// judged reports, and turns the outcome into an exit code.
func (a *app) judged(list []*gate.Judgement, successes bool) error {
	h := report.Text(a.out, report.TextOptions{Successes: successes})
	if a.output == "json" {
		h = report.JSON(a.out)
	}
	passed, unchecked := true, false
	for _, j := range list {
		for _, e := range j.Entries {
			if err := h.Verdict(e); err != nil {
				return err
			}
		}
		passed = passed && j.Passed()
		unchecked = unchecked || j.Unchecked()
	}
	if err := h.Close(); err != nil {
		return err
	}
	switch {
	case unchecked:
		return &exit{code: exitFailed}
	case !passed:
		return &exit{code: exitRefused}
	}
	return nil
}

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
			gt, v, err := g.open(cmd.Context(), repo)
			if err != nil {
				return err
			}
			list := judgeAll(cmd.Context(), gt, args)
			if !list[0].Passed() {
				return a.judged(list, g.successes)
			}
			done, err := a.release(cmd.Context(), gt, v, list[0], &g, repo, tags)
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
func (a *app) release(ctx context.Context, g *gate.Gate, v *verifier, j *gate.Judgement, f *gateFlags, repo string, tags []string) (*release.Released, error) {
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
	order := releaser.Order{
		Home: v.home.Dir, Root: v.home.Root, Registry: v.config.Registry,
		Image: j.Ref, Destination: repo, Tags: tags, PolicyDigest: g.Policy.Digest(), Log: v.log,
	}
	if order.Policy, err = filepath.Abs(f.policy); err != nil {
		return nil, err
	}
	for _, d := range f.data {
		abs, err := filepath.Abs(d)
		if err != nil {
			return nil, err
		}
		order.Data = append(order.Data, abs)
	}
	for _, k := range v.keys {
		pub, err := dsse.NewPublicKey(k.Public)
		if err != nil {
			return nil, err
		}
		order.Keys = append(order.Keys, releaser.Key{Name: k.Name, PEM: string(pub.PEM()), Observer: k.Observer, Builders: k.Builders})
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
