package report_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"assay.dev/assay/policy"
	"assay.dev/assay/policy/builtin"
	"assay.dev/assay/report"
	"assay.dev/assay/verify"
)

var update = flag.Bool("update", false, "write the golden files")

func digest(c string) string { return "sha256:" + strings.Repeat(c, 64) }

// entries are an image that passes, one that is refused for several reasons,
// and one that could not be checked.
func entries() []report.Entry {
	when := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	id := policy.Identified{Name: "release", Digest: digest("9")}
	scanned := policy.Result{
		Code: "scan.found", Msg: "No task of the run scanned the image for CVEs", Title: "The image was scanned for CVEs",
		Solution: "Add a task to the pipeline that scans the image.", Question: policy.Scanned,
	}
	success := policy.Result{Code: "source.untouched", Msg: "Pass", Title: "Nothing touched the source between clone and build", Question: policy.UntouchedSource}
	note := policy.Result{Code: "source.between", Msg: "Tasks between clone and build: lint; they left no effect", Question: policy.UntouchedSource}
	return []report.Entry{
		{Image: "good", Verdict: &policy.Verdict{
			Result: policy.Pass, Image: "localhost:5055/staging/run-1@" + digest("1"), Component: "run-1", Policy: id, EffectiveTime: when,
			Run: "run-1", Runs: []policy.RunVerdict{{ID: "run-1", Result: policy.Pass}, {ID: "run-2", Result: policy.Fail, Codes: []string{"evidence.run_succeeded"}}},
			Violations: []policy.Result{}, Warnings: []policy.Result{scanned}, Successes: []policy.Result{success}, Notes: []policy.Result{note},
			Questions: []policy.Answer{
				{Question: policy.Scanned, Answer: policy.No, Messages: []string{scanned.Msg}, Codes: []string{"scan.found"}},
				{Question: policy.TrustedBuild, Answer: policy.Yes, Codes: []string{"trusted_task.chain"}},
				{Question: policy.UntouchedSource, Answer: policy.Yes, Messages: []string{note.Msg}, Codes: []string{"source.between", "source.untouched"}},
			},
			Digests: []string{digest("1"), digest("2")}, Destination: "localhost:5055/released/yq", Expiry: when.Add(24 * time.Hour),
		}},
		{Image: "tampered", Verdict: &policy.Verdict{
			Result: policy.Fail, Image: "localhost:5055/staging/run-3@" + digest("3"), Component: "run-3", Policy: id, EffectiveTime: when, Run: "run-3",
			Runs: []policy.RunVerdict{{ID: "run-3", Result: policy.Fail, Codes: []string{"source.untouched"}}},
			Violations: []policy.Result{
				{
					Code: "source.untouched", Msg: "Task tweak\x1b[2J changed the source: clone exported tree " + digest("a") + ", but build was given tree " + digest("f"),
					Terms: []string{"tweak"}, Title: "Nothing touched the source between clone and build", Solution: "Remove the task.",
					Question: policy.UntouchedSource, Details: map[string]any{"task": "run-3-tweak", "digests": []any{digest("a"), digest("f")}},
				},
				{Msg: "a plain string"},
			},
			Warnings:  []policy.Result{{Code: "later.rule", Msg: "Later. This will become a failure starting on 2026-12-01", Title: "Later", EffectiveOn: "2026-12-01"}},
			Successes: []policy.Result{},
			Questions: []policy.Answer{
				{Question: policy.Scanned, Answer: policy.Unknown, Messages: []string{"No rule of this policy that was evaluated answers it"}},
				{Question: policy.TrustedBuild, Answer: policy.Unknown},
				{Question: policy.UntouchedSource, Answer: policy.No, Messages: []string{"Task tweak changed the source"}},
			},
			Digests: []string{digest("3")}, Expiry: when.Add(time.Hour),
		}},
		{Image: "localhost:5055/staging/half@" + digest("5"), Component: "half-" + digest("5") + "-amd64", Parent: "half", Verdict: &policy.Verdict{
			Result: policy.Unchecked, Image: "localhost:5055/staging/half@" + digest("5"), Component: "half", Policy: id,
			EffectiveTime: when.AddDate(-1, 0, 0), BackDated: true, Expiry: when.Add(time.Hour), Digests: []string{digest("5")},
			Violations: []policy.Result{{
				Code: "slsa.pinned", Msg: "Task |build| is <b>not</b> pinned: see https://evil.example @team\n::error::injected", Title: "Tasks are pinned", Description: "Every task has a digest.",
				Since: "2026-01-01", Collections: []string{"slsa3"}, Terms: []string{"build:1"}, Details: map[string]any{"where": map[string]any{"attestation": json.Number("0"), "task": "build"}},
			}},
			Warnings: []policy.Result{}, Successes: []policy.Result{},
			Failures: []builtin.Failure{{Function: "ec.oci.image_manifest", Ref: "other.example/base@" + digest("6"), Cause: "registry other.example answered 503"}},
			NotFound: []builtin.Failure{{Function: "ec.oci.blob", Ref: "other.example/base@" + digest("7"), Cause: "404", NotFound: true}},
			Hosts:    []string{"other.example"},
		}, Signers: []report.Signer{
			{Of: "signature", Name: "cosign.pub", Key: "aa", Grade: "key holder"},
			{Of: "https://slsa.dev/provenance/v1", Name: "ci", Identity: "https://github.com/o/r/.github/workflows/b.yml@refs/heads/main", Issuer: "https://token.actions.githubusercontent.com", Grade: "isolated workflow"},
			{Of: "https://spdx.dev/Document", Name: "cosign.pub", Key: "aa", Grade: "key holder"},
		}, Rejected: []verify.Rejected{{Format: "cosign-tag", Digest: digest("8"), Reason: "signed by another key"}},
			Aside: []report.Aside{{Digest: digest("b"), Reason: "BuildKit's attestations"}}},
		{Image: "localhost:5055/staging/old@" + digest("6"), Component: "old", Accepted: &report.Accepted{By: "gate.pub", Digest: digest("c"), When: when}, Verdict: &policy.Verdict{
			Result: policy.Pass, Image: "localhost:5055/staging/old@" + digest("6"), Component: "old", Policy: id, EffectiveTime: when, Expiry: when.Add(time.Hour),
		}},
		{Image: "localhost:5055/staging/gone@" + digest("4"), Component: "gone", Err: errors.New("reading manifest: connection refused; is the registry running?")},
	}
}

func started() report.Run {
	when := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	return report.Run{
		Policy: policy.Identified{Name: "release", Digest: digest("9")}, EffectiveTime: when, At: when,
		Sources: []report.Source{{Address: "github.com/o/policy", Pinned: "git::https://github.com/o/policy?ref=abc", Digest: digest("d")}},
		Trusted: []report.Trusted{{Kind: "key", Name: "cosign.pub", ID: "aa"}, {Kind: "identity", Name: "ci", ID: "b.yml by GitHub", For: "provenance"}},
		Skipped: []string{"image signature"},
	}
}

func TestGolden(t *testing.T) {
	text := func(b *bytes.Buffer) report.Handler { return report.Text(b, report.TextOptions{}) }
	forms := map[string]func(*bytes.Buffer) report.Handler{
		"txt": text, "json": func(b *bytes.Buffer) report.Handler { return report.JSON(b) }, "yaml": func(b *bytes.Buffer) report.Handler { return report.YAML(b) },
		"sarif": func(b *bytes.Buffer) report.Handler { return report.SARIF(b) }, "xml": func(b *bytes.Buffer) report.Handler { return report.JUnit(b) },
		"md": func(b *bytes.Buffer) report.Handler { return report.Markdown(b) }, "github": func(b *bytes.Buffer) report.Handler { return report.GitHub(b) },
	}
	type golden struct {
		make    func(*bytes.Buffer) report.Handler
		entries []report.Entry
	}
	cases := map[string]golden{
		"all-full.txt": {func(b *bytes.Buffer) report.Handler {
			return report.Text(b, report.TextOptions{Successes: true, Color: true})
		}, entries()},
		"no-result.txt": {text, []report.Entry{{Verdict: &policy.Verdict{}}}},
	}
	for form, f := range forms {
		cases["all."+form] = golden{f, entries()}
		cases["one."+form] = golden{f, entries()[:1]}
		cases["none."+form] = golden{f, nil}
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			h := tc.make(&b)
			if err := h.Start(started()); err != nil {
				t.Fatal(err)
			}
			for _, e := range tc.entries {
				if err := h.Verdict(e); err != nil {
					t.Fatal(err)
				}
			}
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), b.String()); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

// handlers are one of each form, and several at once.
func handlers(w io.Writer) []report.Handler {
	return []report.Handler{
		report.Text(w, report.TextOptions{}), report.JSON(w), report.YAML(w), report.SARIF(w), report.JUnit(w), report.Markdown(w), report.GitHub(w),
		report.All(report.JSON(w), report.Text(w, report.TextOptions{})),
	}
}

func TestEntryWithoutContentIsAnError(t *testing.T) {
	for name, e := range map[string]report.Entry{
		"neither": {Image: "x"},
		"both":    {Verdict: &policy.Verdict{}, Err: errors.New("x")},
	} {
		for _, h := range handlers(new(bytes.Buffer)) {
			if h.Verdict(e) == nil || h.Close() == nil {
				t.Errorf("%s: no error", name)
			}
		}
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestWriteErrorsAreReported(t *testing.T) {
	for _, h := range handlers(brokenPipe{}) {
		err := h.Verdict(entries()[0])
		if cerr := h.Close(); err == nil && cerr == nil {
			t.Error("a report that nobody got was a success")
		}
	}
}
