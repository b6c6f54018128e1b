package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"assay.dev/assay/internal/gate"
	"assay.dev/assay/internal/gate/recording"
	"assay.dev/assay/policy"
	"assay.dev/assay/report"
	"assay.dev/assay/verify"
)

// gateCommandFlags are those of gate.
type gateCommandFlags struct {
	gateFlags
	vsa              vsaFlags
	snapshot, images string
	outputs          []string
	workers          int
	explain          string
	record, replay   string
	recordingDigest  string
	changed          func(string) bool
}

func (a *app) gateCommand() *cobra.Command {
	f := &gateCommandFlags{}
	c := &cobra.Command{
		Use:   "gate IMAGE…|--snapshot FILE|--images FILE --policy POLICY",
		Short: "Judge images by a policy, and explain the verdict",
		Long: `Verifies each image's evidence and judges it by the policy. An index is judged
with every image it lists. Says what passed, what did not and why, since when the
rule holds, what would make it pass and how to waive it; and answers: was it scanned,
did a trusted task build it, did anything touch the sources.

Images are named as arguments, or in a file or text: a Snapshot (the resource or its
spec, JSON or YAML), or one reference a line. Components with one image are judged each
by its own name.

Whom to believe is said by keys (--key, --observer-key), by identities in certificates
(--certificate-identity, --repo, …), by the trust file, and by the policy itself
(publicKey, identity, assay.signers).

Reports: --output FORMAT[=FILE], repeatable; FORMAT is text, json, yaml, sarif, junit,
markdown or github.

--record DIR keeps everything the verdict was made of; --replay DIR makes the same
verdict again from that alone, offline and years later.

Exit codes: 0 all pass, 1 something could not be checked, 2 usage, 3 something is
refused, by the policy or because nothing about it verifies.`,
		Example: `  assay gate $IMAGE --key $KEY --policy examples/policy/release
  assay gate --snapshot snapshot.yaml --key $KEY --policy $POLICY --output text --output sarif=gate.sarif
  assay gate $IMAGE --repo owner/name --without-signature --policy github.com/owner/policy//release
  assay gate $IMAGE --key $KEY --policy $POLICY --explain tasks.required_tasks_found
  assay gate $IMAGE --key $KEY --policy $POLICY --record verdict/ && assay gate --replay verdict/`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.changed = cmd.Flags().Changed
			return a.gate(cmd.Context(), f, args)
		},
	}
	f.add(c)
	f.vsa.add(c)
	fl := c.Flags()
	fl.StringVar(&f.snapshot, "snapshot", "", "Snapshot to judge: a file, its text, or k8s://[NAMESPACE/]NAME")
	fl.StringVar(&f.images, "images", "", "images to judge: a file or text with one reference a line, a list, or a Snapshot")
	fl.StringArrayVarP(&f.outputs, "output", "o", nil, "report to write, FORMAT[=FILE] (repeatable; default: text)")
	fl.IntVar(&f.workers, "workers", 0, "images judged at a time (default: two for each core, at most 8)")
	fl.StringVar(&f.explain, "explain", "", "show the text, data and trace of the rule with this code instead of a verdict")
	fl.StringVar(&f.record, "record", "", "folder to keep everything in that the verdict is made of")
	fl.StringVar(&f.replay, "replay", "", "recording to judge again, instead of images")
	fl.StringVar(&f.recordingDigest, "recording-digest", "", "digest that --record printed, which the recording must have")
	c.AddCommand(a.gateServeCommand())
	return c
}

// gate judges what the flags and arguments name, or what was recorded.
func (a *app) gate(ctx context.Context, f *gateCommandFlags, args []string) (err error) {
	if f.record != "" && f.replay != "" {
		return usagef("--record and --replay: give one of them")
	}
	if f.workers < 0 {
		return usagef("--workers %d: want one at least", f.workers)
	}
	if os.Getenv("GOGC") == "" {
		// An evaluation leaves many times of what it needs behind. Collecting twice as
		// often costs a fifth more time, and saves a third of the memory.
		debug.SetGCPercent(50)
	}
	out, err := a.outputs(f.outputs, f.successes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.abandon()) }()
	var (
		gt   *gate.Gate
		s    *policy.Snapshot
		rec  *recording.Recorder
		name string
	)
	switch {
	case f.replay != "":
		if err := f.onlyReplay(args); err != nil {
			return err
		}
		r, err := recording.Open(f.replay, f.recordingDigest)
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "assay-replay-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if gt, err = replayed(ctx, r, dir); err != nil {
			return err
		}
		c := r.Case()
		if s, name = c.Snapshot, f.replay; s == nil {
			return fmt.Errorf("the recording %s names no images", f.replay)
		}
	default:
		if f.recordingDigest != "" {
			return usagef("--recording-digest is of a recording: name it with --replay")
		}
		if s, err = f.named(args); err != nil {
			return err
		}
		load, tap := loader(policy.Load), gate.Tap(nil)
		if f.record != "" {
			if rec, err = recording.Create(f.record); err != nil {
				return err
			}
			load, tap = rec.Policy, rec.Tap
		}
		if gt, _, err = f.prepare(ctx, a, "", load, tap); err != nil {
			return err
		}
	}
	gt.Workers = f.workers
	if f.explain != "" {
		return a.explain(ctx, gt, s, f)
	}
	sums, err := a.summarize(ctx, gt, f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sums.Close()) }()
	run, err := gt.Report()
	if err != nil {
		return err
	}
	if run.Recording = name; name != "" {
		fmt.Fprintf(a.err, "assay: judging the recording %s, of %s\n", name, gt.Context.Now.Format("2006-01-02T15:04:05Z07:00"))
	}
	// What is recorded is what was asked for: Stream does not change it.
	got, err := a.stream(ctx, gt, s, run, out)
	if err != nil {
		return err
	}
	if rec != nil {
		if err := a.recorded(rec, gt, s, f.record); err != nil {
			return err
		}
	}
	switch {
	case got.Unchecked > 0 || got.Passed+got.Refused == 0:
		return &exit{code: exitFailed}
	case got.Refused > 0:
		return &exit{code: exitRefused}
	}
	return nil
}

// summarize hooks verification summaries into a gate; nil where none are wanted.
func (a *app) summarize(ctx context.Context, gt *gate.Gate, f *gateCommandFlags) (*summaries, error) {
	if !f.vsa.used() {
		return nil, f.vsa.check()
	}
	switch {
	case f.replay != "":
		return nil, usagef("--vsa-key and --accept-vsa are for judgements of today: a recording has its own verdict")
	case f.record != "" && len(f.vsa.accept) > 0:
		return nil, usagef("--record and --accept-vsa: an earlier verdict leaves nothing to record; judge anew")
	}
	s, err := f.vsa.open(ctx, a, gt, f.trust.kubeconfig)
	if err != nil {
		return nil, err
	}
	if len(f.vsa.accept) > 0 {
		gt.Accept = func(ctx context.Context, ref string, c policy.Context) (*policy.Verdict, *report.Accepted, error) {
			got, note, err := s.accept(ctx, ref, c)
			switch {
			case err != nil:
				return nil, nil, err
			case got == nil && note == "":
				return nil, nil, nil
			case got == nil:
				return nil, &report.Accepted{Note: note}, nil
			}
			v, by := entry(got)
			return v, by, nil
		}
	}
	if f.vsa.key != "" {
		gt.Issue = func(ctx context.Context, e *verify.Evidence, v *policy.Verdict, c policy.Context) error {
			_, err := s.issue(ctx, e, v, c)
			return err
		}
	}
	return s, nil
}

// stream judges and reports.
func (a *app) stream(ctx context.Context, gt *gate.Gate, s *policy.Snapshot, run report.Run, out *outputs) (gate.Outcome, error) {
	if err := out.Start(run); err != nil {
		return gate.Outcome{}, err
	}
	bar := newProgress(a.err)
	gt.Progress = bar.show
	defer bar.clear()
	got, err := gt.Stream(ctx, s, func(e report.Entry) error {
		bar.clear()
		return out.Verdict(e)
	})
	bar.clear()
	if err != nil {
		return got, err
	}
	return got, out.Close()
}

// recorded ends a recording.
func (a *app) recorded(rec *recording.Recorder, gt *gate.Gate, s *policy.Snapshot, dir string) error {
	t, err := gt.Trust()
	if err != nil {
		return err
	}
	d, err := rec.Close(recording.Case{
		Trust: *t, Snapshot: s, Embedded: gt.Embedded, Now: gt.Context.Now, EffectiveTime: gt.Context.EffectiveTime,
		AttestationTime: gt.AttestationTime, AllowPast: gt.Context.AllowPast, Destination: gt.Context.Destination,
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.err, "assay: recorded in %s, %s\nassay: keep that digest elsewhere, and hold the recording to it: assay gate --replay %s --recording-digest %s\n", dir, d, dir, d)
	return nil
}

// onlyReplay refuses what a recording says itself.
func (f *gateCommandFlags) onlyReplay(args []string) error {
	if len(args) > 0 {
		return usagef("%s and --replay: a recording says which images it is of", args[0])
	}
	for _, name := range []string{
		"snapshot", "images", "policy", "data", "lock", "key", "observer-key", "builder", "trust", "effective-time", "allow-past-effective-time", "at", "trusted-root",
		"certificate-identity", "certificate-identity-regexp", "certificate-oidc-issuer", "certificate-oidc-issuer-regexp", "observer-identity", "owner", "repo",
		"signer-workflow", "signer-repo", "source-ref", "source-digest", "without-signature", "without-provenance", "log-key", "rekor-key", "require-log", "witness-key",
		"deny-self-hosted-runners", "min-scts", "min-log-entries", "min-signed-timestamps", "min-timestamps", "witness-quorum",
	} {
		if f.changed(name) {
			return usagef("--%s and --replay: a recording says itself what was judged, by which policy, as of when and whom to believe", name)
		}
	}
	return nil
}

// explain prints how one rule came to what it says.
func (a *app) explain(ctx context.Context, gt *gate.Gate, s *policy.Snapshot, f *gateCommandFlags) error {
	form := "text"
	if len(f.outputs) > 0 {
		form = f.outputs[0]
	}
	if len(f.outputs) > 1 || form != "text" && form != "json" {
		return usagef("--explain prints text or json")
	}
	known := false
	for _, r := range gt.Policy.Rules(gt.Context.EffectiveTime) {
		known = known || r.Code == f.explain
	}
	if !known {
		return usagef("the policy has no rule %q; `assay policy show` lists them", f.explain)
	}
	failed := false
	err := gt.Explain(ctx, s, f.explain, func(e gate.Explained) error {
		failed = failed || e.Err != nil
		if form == "json" {
			out := struct {
				Image       string              `json:"image"`
				Component   string              `json:"component"`
				Explanation *policy.Explanation `json:"explanation,omitempty"`
				Error       string              `json:"error,omitempty"`
			}{Image: e.Image, Component: e.Component, Explanation: e.Explanation}
			if e.Err != nil {
				out.Error = e.Err.Error()
			}
			b, err := json.Marshal(out)
			if err == nil {
				_, err = fmt.Fprintf(a.out, "%s\n", b)
			}
			return err
		}
		return report.Explain(a.out, e.Image, e.Explanation, e.Err)
	})
	if err == nil && failed {
		return &exit{code: exitFailed}
	}
	return err
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
func (a *app) judged(gt *gate.Gate, list []*gate.Judgement, successes bool) error {
	h := report.Text(a.out, report.TextOptions{Successes: successes})
	if a.output == "json" {
		h = report.JSON(a.out)
	}
	run, err := gt.Report()
	if err == nil {
		err = h.Start(run)
	}
	if err != nil {
		return err
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

// reportForms are the reports, for messages.
func reportForms() string {
	return strings.Join([]string{"text", "json", "yaml", "sarif", "junit", "markdown", "github"}, ", ")
}
