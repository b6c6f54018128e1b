package e2e_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// forgedArtifact: results that name artifacts no export of the task made.
func forgedArtifact(t *testing.T, r *rig, other *built) {
	t.Run("another artifact of the run", func(t *testing.T) {
		// A step writes the name of the dependencies where the source's is expected.
		k := task{name: "forge", declared: []string{"OTHER"}, results: []string{"SOURCE_ARTIFACT"},
			script: `printf '%s' "$(params.OTHER)" > "$(results.SOURCE_ARTIFACT.path)"`,
			params: map[string]any{"OTHER": "$(tasks.prefetch-dependencies.results.CACHI2_ARTIFACT)"}}
		source := map[string]any{"SOURCE_ARTIFACT": "$(tasks.forge.results.SOURCE_ARTIFACT)"}
		b := r.run(imageResults, cloneTask(), prefetchTask(), k, buildTask().with(source)).attested(t)
		r.refuses(t, b.image, r.policy(t, "prototype", nil), "source.untouched")
	})
	t.Run("another run's", func(t *testing.T) {
		var theirs string
		for _, raw := range other.TaskRuns {
			var tr struct {
				Status struct {
					Results []struct {
						Name  string
						Value any
					}
				}
			}
			must(t, json.Unmarshal(raw, &tr))
			for _, v := range tr.Status.Results {
				if v.Name == "CACHI2_ARTIFACT" {
					theirs, _ = v.Value.(string)
				}
			}
		}
		if theirs == "" {
			t.Fatal("the other run has no artifact")
		}
		k := task{name: "forge", declared: []string{"OTHER"}, results: []string{"SOURCE_ARTIFACT"},
			script: `printf '%s' "$(params.OTHER)" > "$(results.SOURCE_ARTIFACT.path)"`,
			params: map[string]any{"OTHER": theirs}}
		source := map[string]any{"SOURCE_ARTIFACT": "$(tasks.forge.results.SOURCE_ARTIFACT)"}
		b := r.run(imageResults, cloneTask(), prefetchTask(), k, buildTask().with(source)).attested(t)
		v := r.gate(t, b.image, r.policy(t, "prototype", nil))
		if v.code != 3 || !slices.Contains(v.codes(), "source.chain_complete") {
			t.Errorf("exit %d, %v: want chain_complete to refuse\n%s", v.code, v.codes(), v.text)
		}
	})
	t.Run("one that does not exist", func(t *testing.T) {
		bad := "oci:" + stagingRepo + "@sha256:" + strings.Repeat("ab", 32)
		b := r.run(imageResults, cloneTask(), prefetchTask(), buildTask().with(map[string]any{"SOURCE_ARTIFACT": bad}))
		if b.Code != 1 || b.Succeeded || b.Stated != nil {
			t.Errorf("exit %d, succeeded %t, stated %+v", b.Code, b.Succeeded, b.Stated)
		}
		if !strings.Contains(b.Stderr+b.Message, "SOURCE_ARTIFACT") {
			t.Errorf("it does not name the input: %s\n%s", b.Message, b.Stderr)
		}
	})
}

// claimTask is a task that says it made an image.
func claimTask(url, digest string) task {
	return task{name: "claim", declared: []string{"URL", "DIGEST"}, results: []string{"IMAGE_URL", "IMAGE_DIGEST"},
		script: `printf '%s' "$(params.URL)" > "$(results.IMAGE_URL.path)"; printf '%s' "$(params.DIGEST)" > "$(results.IMAGE_DIGEST.path)"`,
		params: map[string]any{"URL": url, "DIGEST": digest}}
}

func othersImage(t *testing.T, r *rig, other *built) {
	repo, digest, _ := strings.Cut(other.image, "@")
	before := r.listing(t, strings.TrimPrefix(repo, registryName+"/"))
	for name, url := range map[string]string{"where it is": repo, "as if it were ours": stagingRepo} {
		t.Run("somebody else's, "+name, func(t *testing.T) {
			// Beside an honest build: its image is attested, the claim is not.
			b := r.run(imageResults, cloneTask(), prefetchTask(), editTask("tidy", "edit-source"),
				buildTask().with(map[string]any{"SOURCE_ARTIFACT": "$(tasks.tidy.results.SOURCE_ARTIFACT)"}), claimTask(url, digest)).attested(t)
			if status, reason := b.claim(t, "IMAGE", "@"+digest); status != "failed" {
				t.Errorf("the claim is %s: %s", status, reason)
			}
			for _, s := range b.Stated.Subjects {
				if digestOf(s) == digest {
					t.Errorf("somebody else's image is a subject: %v", b.Stated.Subjects)
				}
			}
			// Alone: there is nothing left to sign, and that is said.
			b = r.run(nil, claimTask(url, digest))
			if b.Code != 1 || b.Stated != nil && len(b.Stated.Subjects) > 0 {
				t.Errorf("exit %d, stated %+v", b.Code, b.Stated)
			}
			if !strings.Contains(b.Stderr, "IMAGE") || !strings.Contains(b.Stderr, "claim") {
				t.Errorf("it does not say which claim failed: %s", b.Stderr)
			}
		})
	}
	if after := r.listing(t, strings.TrimPrefix(repo, registryName+"/")); len(after) != len(before) {
		t.Errorf("the other run's repository changed: %d files, now %d", len(before), len(after))
	}
	v := r.passes(t, other.image, r.policy(t, "release", nil))
	if got := v.Components[0].Assay; got.Run != other.Run || len(got.Runs) != 1 {
		t.Errorf("the image is now judged on %+v", got)
	}

	t.Run("another task's", func(t *testing.T) {
		// The build's results are no hints, so the claim is all there is.
		quiet := strings.NewReplacer("image IMAGE=", "image BUILT=", "IMAGE_URL", "BUILT_URL", "IMAGE_DIGEST", "BUILT_DIGEST", "IMAGE_REF", "BUILT_REF").
			Replace(r.file("testdata/tasks/build-shell.yaml"))
		r.bundle("quiet", quiet)
		build := buildTask()
		build.bundle, build.as = "quiet", "build-shell"
		b := r.run(nil, cloneTask(), prefetchTask(), build, claimTask("$(tasks.build.results.BUILT_URL)", "$(tasks.build.results.BUILT_DIGEST)"))
		if b.Code != 1 || b.Stated != nil && len(b.Stated.Subjects) > 0 {
			t.Errorf("exit %d, stated %+v\n%s", b.Code, b.Stated, b.Stderr)
		}
		// Beside an honest claim of the same image, the liar's is listed and no more.
		b = r.run(imageResults, cloneTask(), prefetchTask(), buildTask(), claimTask("$(tasks.build.results.IMAGE_URL)", "$(tasks.build.results.IMAGE_DIGEST)")).attested(t)
		found := false
		for _, c := range b.Stated.Claims {
			if strings.HasSuffix(c.TaskRun, "-claim") && c.Field == "IMAGE" {
				found = true
				if c.Status == "checked" {
					t.Errorf("the liar's claim is checked: %s", c.Reason)
				}
			}
		}
		if !found {
			t.Errorf("the liar's claim is not listed: %+v", b.Stated.Claims)
		}
	})
}

// fakeClone makes a commit object of its own and says it is from app.git.
const fakeClone = `
apiVersion: tekton.dev/v1
kind: Task
metadata:
  name: git-clone-oci-ta
  annotations:
    assay.dev/network: none
    assay.dev/outputs: |
      source SOURCE_ARTIFACT=/var/workdir/source
      commit COMMIT_OBJECT=/var/workdir/commit
spec:
  params:
  - name: url
    type: string
  - name: revision
    type: string
  results:
  - name: SOURCE_ARTIFACT
  - name: COMMIT_OBJECT
  - name: CHAINS-GIT_URL
  - name: CHAINS-GIT_COMMIT
  volumes:
  - name: workdir
    emptyDir: {}
  steps:
  - name: fabricate
    image: assay.dev/image/task
    volumeMounts:
    - name: workdir
      mountPath: /var/workdir
    script: |
      #!/bin/sh
      set -eu
      mkdir /var/workdir/source
      cd /var/workdir/source
      printf 'package main\n' > main.go
      # git's ids by hand: blob, tree, commit.
      blob=$( (printf 'blob %d\0' "$(wc -c < main.go)"; cat main.go) | sha1sum | cut -c1-40)
      (printf '100644 main.go\0'; printf "$(echo "$blob" | sed 's/../\\x&/g')") > /var/workdir/tree
      tree=$( (printf 'tree %d\0' "$(wc -c < /var/workdir/tree)"; cat /var/workdir/tree) | sha1sum | cut -c1-40)
      printf 'tree %s\nauthor Somebody <somebody@example.com> 1700000000 +0000\ncommitter Somebody <somebody@example.com> 1700000000 +0000\n\nnever pushed\n' "$tree" > /var/workdir/commit
      commit=$( (printf 'commit %d\0' "$(wc -c < /var/workdir/commit)"; cat /var/workdir/commit) | sha1sum | cut -c1-40)
      printf '%s' "$(params.url)" > "$(results.CHAINS-GIT_URL.path)"
      printf '%s' "${CLAIM:-$commit}" > "$(results.CHAINS-GIT_COMMIT.path)"
`

func fabricated(t *testing.T, r *rig) {
	k := cloneTask()
	k.bundle, k.as = "fake-clone", "git-clone-oci-ta"

	t.Run("one that hashes right", func(t *testing.T) {
		ref := r.bundle("fake-clone", fakeClone)
		b := r.run(imageResults, k, prefetchTask(), buildTask()).attested(t)
		status, reason := "", ""
		for _, c := range b.Stated.Claims {
			if c.Field == "CHAINS-GIT" {
				status, reason = c.Status, c.Reason
			}
		}
		if status != "claimed" {
			t.Errorf("the commit of app.git is %q (%s), want claimed: nobody pushed it there", status, reason)
		}
		// Whoever trusts the task: the repository does not know the commit.
		r.refuses(t, b.image, r.policy(t, "release", nil, trusted{ref, longAgo}), "repository.checked")
		r.refuses(t, b.image, r.policy(t, "release", nil), "repository.checked", "trusted_task.chain")
	})
	t.Run("the repository's own, with another tree", func(t *testing.T) {
		ref := r.bundle("fake-clone", strings.Replace(fakeClone, "set -eu\n", "set -eu\n      CLAIM="+r.commit+"\n", 1))
		b := r.run(imageResults, k, prefetchTask(), buildTask()).attested(t)
		if status, reason := b.claim(t, "CHAINS-GIT", "@"+r.commit); status != "failed" {
			t.Errorf("the commit is %s: %s", status, reason)
		}
		r.refuses(t, b.image, r.policy(t, "release", nil, trusted{ref, longAgo}), "repository.checked")
	})
}
