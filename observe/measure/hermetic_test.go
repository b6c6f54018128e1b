package measure_test

import (
	"strings"
	"testing"

	"assay.dev/assay/observe"
	"assay.dev/assay/observe/measure"
)

func TestHermeticConclusion(t *testing.T) {
	d := "sha256:" + strings.Repeat("0", 64)
	type facts struct {
		started  observe.TaskStartedBody
		finished observe.TaskFinishedBody
		steps    []observe.StepFinishedBody
	}
	for _, c := range []struct {
		name  string
		spoil func(*facts)
		says  string // empty: hermetic
	}{
		{"hermetic", func(*facts) {}, ""},
		{"empty input", func(f *facts) { f.started.Inputs = nil }, ""},
		{"files from the run's specification", func(f *facts) { f.started.Volumes = []observe.Volume{{Name: "v", Kind: "files", ReadOnly: true}} }, ""},
		{"no facts at all", func(f *facts) { *f = facts{} }, "different task attempts"},
		{"network open", func(f *facts) { f.started.Network = "open" }, `network was "open"`},
		{"network registry", func(f *facts) { f.started.Network = "registry" }, `network was "registry"`},
		{"network not said", func(f *facts) { f.started.Network = "" }, `network was ""`},
		{"interface at start", func(f *facts) { f.started.Interfaces = []string{"eth0"} }, "before the first step its network namespace had more than loopback: eth0"},
		{"interface at end", func(f *facts) { f.finished.Interfaces = []string{"tun0"} }, "after the last step its network namespace had more than loopback: tun0"},
		{"a connection", func(f *facts) { f.finished.Network = []observe.Connection{{}} }, "1 connections"},
		{"dropped connections", func(f *facts) { f.finished.Dropped = 3 }, "3 connections"},
		{"input by tag", func(f *facts) { f.started.Inputs[0].URI = "oci:r:latest" }, `"SOURCE_ARTIFACT" is not named by digest`},
		{"input not measured", func(f *facts) { f.started.Inputs[0].Digest = "" }, `"SOURCE_ARTIFACT" has no tree digest`},
		{"shared volume", func(f *facts) { f.started.Volumes[0].Shared = true }, `"work" is writable and shared`},
		{"shared volume, read only", func(f *facts) { f.started.Volumes[0].Shared, f.started.Volumes[0].ReadOnly = true, true }, `"work" could be written by others`},
		{"host folder", func(f *facts) { f.started.Volumes[0].Kind, f.started.Volumes[0].ReadOnly = "host", true }, `"work" is a folder of the host`},
		{"unknown volume", func(f *facts) { f.started.Volumes[0].Kind = "nfs" }, `unknown kind "nfs"`},
		{"token", func(f *facts) { f.finished.Token = true }, "registry token"},
		{"no steps", func(f *facts) { f.steps = nil }, "no fact of a step"},
		{"no seccomp", func(f *facts) { f.steps[0].Seccomp = "" }, `step "build" ran without a seccomp profile`},
		{"image by tag", func(f *facts) { f.steps[0].ImageDigest = "latest" }, `step "build" has no digest`},
		{"step of another attempt", func(f *facts) { f.steps[0].Attempt.Attempt = 1 }, "another task attempt"},
		{"end of another task", func(f *facts) { f.finished.Task = "x" }, "different task attempts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := observe.Attempt{Task: "build"}
			f := facts{
				started: observe.TaskStartedBody{Attempt: a, Network: "none",
					Inputs:  []observe.Tree{{Name: "SOURCE_ARTIFACT", URI: "oci:localhost:5055/staging/r@" + d, Digest: d}},
					Volumes: []observe.Volume{{Name: "work", Kind: "empty"}}},
				finished: observe.TaskFinishedBody{Attempt: a, Hermetic: observe.Hermetic{Enforced: true}},
				steps:    []observe.StepFinishedBody{{Attempt: a, Step: "build", ImageDigest: d, Seccomp: d}},
			}
			c.spoil(&f)
			got := measure.HermeticConclusion(f.started, f.finished, f.steps)
			if got.Enforced != (c.says == "") || got.Enforced != (len(got.Reasons) == 0) || !strings.Contains(strings.Join(got.Reasons, "\n"), c.says) {
				t.Errorf("got %+v, want %q", got, c.says)
			}
		})
	}
}
