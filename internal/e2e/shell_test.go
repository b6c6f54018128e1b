package e2e_test

import (
	"strings"
	"testing"
	"time"
)

// TestControls runs every control that needs no compiler on one home.
func TestControls(t *testing.T) {
	r := newRig(t)
	good := r.run(imageResults, cloneTask(), prefetchTask(), buildTask()).attested(t)

	t.Run("the untouched build passes both policies", func(t *testing.T) {
		r.passes(t, good.image, r.policy(t, "prototype", nil))
		v := r.passes(t, good.image, r.policy(t, "release", nil))
		answers := map[string]string{}
		for _, q := range v.Components[0].Assay.Questions {
			answers[q.Question] = q.Answer
		}
		if answers["scanned"] != "no" || answers["trusted_build"] != "yes" || answers["untouched_source"] != "yes" {
			t.Errorf("the three questions: %v", answers)
		}
		if w := v.Components[0].Warnings; len(w) != 1 || w[0].Metadata.Code != "scan.found" {
			t.Errorf("warnings: %+v, want the missing scan alone", w)
		}
	})
	t.Run("a second build is seen as its own run's", func(t *testing.T) { secondBuild(t, r, good) })
	t.Run("a task that only reads, and whom it takes to trust it", func(t *testing.T) { story(t, r) })
	t.Run("an edited source", func(t *testing.T) { editedSource(t, r) })
	t.Run("edited and restored", func(t *testing.T) { restored(t, r) })
	t.Run("edited inside a task of the right name", func(t *testing.T) { insideTask(t, r) })
	t.Run("edited dependencies", func(t *testing.T) { dependencies(t, r) })
	t.Run("flags for the compiler", func(t *testing.T) { flags(t, r) })
	t.Run("a forged artifact", func(t *testing.T) { forgedArtifact(t, r, good) })
	t.Run("an image that is not the task's", func(t *testing.T) { othersImage(t, r, good) })
	t.Run("a fabricated commit", func(t *testing.T) { fabricated(t, r) })
	t.Run("release", func(t *testing.T) { released(t, r, good) })
	t.Run("what users ask of an attestation", func(t *testing.T) { queries(t, r, good) })
	t.Run("evidence that was tampered with", func(t *testing.T) { tamperedEvidence(t, r) })
	leftovers(t, r)
}

func secondBuild(t *testing.T, r *rig, good *built) {
	again := r.run(imageResults, cloneTask(), prefetchTask(), buildTask()).attested(t)
	if digestOf(again.image) != digestOf(good.image) {
		t.Errorf("two builds of one commit: %s and %s", good.image, again.image)
	}
	if again.image == good.image {
		t.Errorf("both runs wrote to one repository: %s", good.image)
	}
	for _, b := range []*built{good, again} {
		v := r.passes(t, b.image, r.policy(t, "release", nil))
		if got := v.Components[0].Assay; got.Run != b.Run || len(got.Runs) != 1 {
			t.Errorf("%s was judged on run %s of %+v, want its own %s", b.image, got.Run, got.Runs, b.Run)
		}
	}
}

// readTask is the harmless extra task.
func readTask() task {
	return task{name: "count-files", bundle: "read-source", params: map[string]any{"SOURCE_ARTIFACT": "$(tasks.clone-repository.results.SOURCE_ARTIFACT)"}}
}

func story(t *testing.T, r *rig) {
	build := buildTask()
	build.after = []string{"count-files"}
	b := r.run(imageResults, cloneTask(), readTask(), prefetchTask(), build).attested(t)
	v := r.passes(t, b.image, r.policy(t, "prototype", nil))
	if !strings.Contains(v.text, "source.between") || !strings.Contains(v.text, "count-files") {
		t.Errorf("the report does not say that count-files ran in between:\n%s", v.text)
	}
	v = r.refuses(t, b.image, r.policy(t, "release", nil), "trusted_task.run")
	if x := v.violation(t, "trusted_task.run"); x.Metadata.Term != "count-files" || !strings.Contains(x.Msg, r.refs["bundle/read-source"]) {
		t.Errorf("the violation names %v: %s", x.Metadata.Term, x.Msg)
	}
	now := time.Now()
	ref := r.refs["bundle/read-source"]
	r.passes(t, b.image, r.policy(t, "release", nil, trusted{ref, now.Add(-time.Minute)}))
	// Not yet: the same list, as of two times.
	next := r.policy(t, "release", nil, trusted{ref, now.Add(48 * time.Hour)})
	v = r.refuses(t, b.image, next, "trusted_task.run")
	if x := v.violation(t, "trusted_task.run"); !strings.Contains(x.Msg, "trusted from") {
		t.Errorf("it does not say from when: %s", x.Msg)
	}
	r.passes(t, b.image, next, "--effective-time", now.Add(72*time.Hour).UTC().Format(time.RFC3339))
	// Another digest of the same repository is another task.
	other := strings.Split(ref, "@")[0] + "@" + digestOf(r.refs["bundle/build-shell"])
	r.refuses(t, b.image, r.policy(t, "release", nil, trusted{other, longAgo}), "trusted_task.run")
}

// editTask takes the source and hands on another; name is what it calls itself.
func editTask(name, bundle string) task {
	return task{name: name, bundle: bundle, params: map[string]any{
		"SOURCE_ARTIFACT": "$(tasks.clone-repository.results.SOURCE_ARTIFACT)", "FILE": "main.go", "TEXT": "// slipped in",
	}}
}

func editedSource(t *testing.T, r *rig) {
	source := map[string]any{"SOURCE_ARTIFACT": "$(tasks.tidy.results.SOURCE_ARTIFACT)"}
	b := r.run(imageResults, cloneTask(), editTask("tidy", "edit-source"), prefetchTask(), buildTask().with(source)).attested(t)
	if out, errout, code := r.Run("verify", b.image, "--key", r.key()); code != 0 {
		t.Errorf("verify: exit %d; the observer told the truth\n%s%s", code, out, errout)
	}
	v := r.refuses(t, b.image, r.policy(t, "prototype", nil), "source.untouched")
	x := v.violation(t, "source.untouched")
	if !strings.Contains(x.Metadata.Task, "tidy") || len(x.Metadata.Digests) != 2 || x.Metadata.Digests[0] == x.Metadata.Digests[1] {
		t.Errorf("it names task %q and trees %v, want tidy's and two trees", x.Metadata.Task, x.Metadata.Digests)
	}
	for _, d := range x.Metadata.Digests {
		if !strings.Contains(x.Msg, d) {
			t.Errorf("%s is not in the message: %s", d, x.Msg)
		}
	}
	// The tree rule refused it, and nothing else did: not the task's name, not
	// that it is there. Without the rule it passes, and with all tasks trusted
	// the rule still refuses.
	r.passes(t, b.image, r.policy(t, "prototype", []string{"source.untouched"}))
	edit := trusted{r.refs["bundle/edit-source"], longAgo}
	r.refuses(t, b.image, r.policy(t, "release", nil, edit), "source.untouched")
	r.passes(t, b.image, r.policy(t, "release", []string{"source.untouched"}, edit))
}

func restored(t *testing.T, r *rig) {
	k := editTask("tidy", "restore-source")
	delete(k.params, "TEXT")
	source := map[string]any{"SOURCE_ARTIFACT": "$(tasks.tidy.results.SOURCE_ARTIFACT)"}
	b := r.run(imageResults, cloneTask(), k, prefetchTask(), buildTask().with(source)).attested(t)
	v := r.passes(t, b.image, r.policy(t, "prototype", nil))
	notes := v.Components[0].Assay.Notes
	said := false
	for _, n := range notes {
		said = said || n.Metadata.Code == "source.between" && strings.Contains(n.Msg, "tidy") && strings.Contains(n.Msg, "no effect")
	}
	if !said {
		t.Errorf("the report does not say that tidy had no effect: %+v", notes)
	}
	r.passes(t, b.image, r.policy(t, "release", nil, trusted{r.refs["bundle/restore-source"], longAgo}))
	// What it handed on is the very blob that the clone made first, so it is not
	// on the chain; it ran, though, and nobody trusts it yet.
	r.refuses(t, b.image, r.policy(t, "release", nil), "trusted_task.run")
}

// insideTask: what happens within a task is the task's doing, so it takes a
// trusted task, by digest, and a name does not help.
func insideTask(t *testing.T, r *rig) {
	build := r.file("testdata/tasks/build-shell.yaml")
	for name, text := range map[string]string{
		"in the build's own step": strings.Replace(build, "mkdir -p /var/workdir/image", "echo '// slipped in' >> /var/workdir/source/main.go\n      mkdir -p /var/workdir/image", 1),
		"in an earlier step of the build": strings.Replace(build, "  steps:\n", `  steps:
  - name: tidy
    image: assay.dev/image/task
    script: |
      #!/bin/sh
      echo '// slipped in' >> /var/workdir/source/main.go
`, 1),
		"by the environment of the build": strings.Replace(build, "  stepTemplate:\n", "  stepTemplate:\n    env:\n    - name: GOFLAGS\n      value: -toolexec=/var/workdir/source/evil\n", 1),
	} {
		t.Run(name, func(t *testing.T) {
			if text == build {
				t.Fatal("the Task was not altered")
			}
			r.bundle("altered", text)
			k := buildTask()
			k.bundle, k.as = "altered", "build-shell"
			b := r.run(imageResults, cloneTask(), prefetchTask(), k).attested(t)
			// To prototype a build may do what it likes.
			r.passes(t, b.image, r.policy(t, "prototype", nil))
			v := r.refuses(t, b.image, r.policy(t, "release", nil), "trusted_task.chain")
			if x := v.violation(t, "trusted_task.chain"); x.Metadata.Term != "build" || !strings.Contains(x.Msg, digestOf(r.refs["bundle/altered"])) {
				t.Errorf("it names %v: %s", x.Metadata.Term, x.Msg)
			}
		})
	}
	t.Run("in the clone", func(t *testing.T) {
		text := r.file("../../catalog/tasks/git-clone-oci-ta.yaml") + `  - name: tidy
    image: assay.dev/image/task
    script: |
      #!/bin/sh
      echo '// slipped in' >> /var/workdir/source/main.go
`
		ref := r.bundle("altered-clone", text)
		k := cloneTask()
		k.bundle, k.as = "altered-clone", "git-clone-oci-ta"
		b := r.run(imageResults, k, prefetchTask(), buildTask()).attested(t)
		// The tree is not the commit's, whoever trusts the task.
		r.refuses(t, b.image, r.policy(t, "prototype", nil), "source.commit_checked")
		r.refuses(t, b.image, r.policy(t, "release", nil, trusted{ref, longAgo}), "source.commit_checked")
		if status, reason := b.claim(t, "CHAINS-GIT", "@"+r.commit); status != "failed" {
			t.Errorf("the commit is %s: %s", status, reason)
		}
	})
	t.Run("a build written into the run", func(t *testing.T) {
		var k task
		k = buildTask()
		k.bundle = ""
		k.declared = []string{"IMAGE", "SOURCE_ARTIFACT", "CACHI2_ARTIFACT"}
		k.inputs, k.outputs = "SOURCE_ARTIFACT=/var/workdir/source\nCACHI2_ARTIFACT=/var/workdir/cachi2\n", "image IMAGE=/var/workdir/image\n"
		k.results = []string{"IMAGE_URL", "IMAGE_DIGEST"}
		_, script, _ := strings.Cut(build, "      set -eu\n")
		k.script = "export GOFLAGS=-toolexec=/evil\n" + strings.ReplaceAll(script, "\n      ", "\n")
		b := r.run(imageResults, cloneTask(), prefetchTask(), k).attested(t)
		r.refuses(t, b.image, r.policy(t, "release", nil), "build.params", "tasks.required", "trusted_task.chain")
	})
}

func dependencies(t *testing.T, r *rig) {
	k := task{name: "tidy", bundle: "edit-prefetch", params: map[string]any{"CACHI2_ARTIFACT": "$(tasks.prefetch-dependencies.results.CACHI2_ARTIFACT)"}}
	deps := map[string]any{"CACHI2_ARTIFACT": "$(tasks.tidy.results.CACHI2_ARTIFACT)"}
	b := r.run(imageResults, cloneTask(), prefetchTask(), k, buildTask().with(deps)).attested(t)
	v := r.refuses(t, b.image, r.policy(t, "prototype", nil), "source.dependencies_untouched")
	if x := v.violation(t, "source.dependencies_untouched"); !strings.Contains(x.Msg, "tidy") || len(x.Metadata.Digests) == 0 {
		t.Errorf("it names neither task nor tree: %+v", x)
	}
	r.refuses(t, b.image, r.policy(t, "release", nil, trusted{r.refs["bundle/edit-prefetch"], longAgo}), "source.dependencies_untouched")
	r.passes(t, b.image, r.policy(t, "prototype", []string{"source.dependencies_untouched"}))
}

func flags(t *testing.T, r *rig) {
	for name, params := range map[string]map[string]any{
		"in a value":        {"PACKAGE": "-toolexec=/var/workdir/source/evil"},
		"as a parameter":    {"GOFLAGS": "-mod=mod"},
		"in another's name": {"PACKAGE": "GOFLAGS=-toolexec=/evil ."},
	} {
		t.Run(name, func(t *testing.T) {
			b := r.run(imageResults, cloneTask(), prefetchTask(), buildTask().with(params)).attested(t)
			r.refuses(t, b.image, r.policy(t, "release", nil), "build.params")
		})
	}
	// A pod template's environment would be in no Task: it must not be ignored,
	// and not be followed either.
	t.Run("in a pod template", func(t *testing.T) {
		b := r.pipelineRun(map[string]any{
			"taskRunTemplate": map[string]any{"podTemplate": map[string]any{"env": []any{map[string]any{"name": "GOFLAGS", "value": "-toolexec=/evil"}}}},
			"pipelineSpec":    map[string]any{"tasks": []any{r.object(cloneTask())}},
		})
		if b.Code != 2 || !strings.Contains(b.Stderr, "podTemplate") {
			t.Errorf("exit %d, want 2 and the field's name: %s", b.Code, b.Stderr)
		}
	})
}
