package attack_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/api"
	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/ledger"
	"assay.dev/assay/observe"
)

const ones = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// claimed finds what became of a claim that names text.
func (o *outcome) claimed(task, text string) (observe.Knowledge, string) {
	o.t.Helper()
	if o.Stated == nil {
		return "", ""
	}
	for _, c := range o.Stated.Claims {
		if strings.Contains(c.TaskRun, task) && (task != "" || c.TaskRun == "") && strings.Contains(c.Value, text) {
			return observe.Knowledge(c.Status), c.Reason
		}
	}
	return "", ""
}

// statements are the payloads that hang in the run's repository.
func (r *rig) statements(t *testing.T, o *outcome) (out []statement) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(r.Home, "registry/staging", o.Run, "blobs/sha256/*"))
	seen := map[string]bool{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		must(t, err)
		var v struct {
			Payload      string `json:"payload"`
			DSSEEnvelope struct {
				Payload string `json:"payload"`
			} `json:"dsseEnvelope"`
		}
		if json.Unmarshal(b, &v) != nil {
			continue
		}
		raw, err := base64.StdEncoding.DecodeString(v.Payload + v.DSSEEnvelope.Payload)
		var s statement
		if err != nil || len(raw) == 0 || seen[string(raw)] || json.Unmarshal(raw, &s) != nil || s.PredicateType == "" {
			continue
		}
		seen[string(raw)] = true
		s.raw = string(raw)
		out = append(out, s)
	}
	return out
}

type statement struct {
	PredicateType string
	Subject       []struct {
		Name   string
		Digest map[string]string
	}
	Predicate json.RawMessage
	raw       string
}

func (r *rig) observation(t *testing.T, o *outcome) *observe.Observation {
	t.Helper()
	for _, s := range r.statements(t, o) {
		if s.PredicateType == api.PredicateObservation {
			obs := &observe.Observation{}
			must(t, json.Unmarshal(s.Predicate, obs))
			return obs
		}
	}
	t.Fatalf("run %s has no observation: %s", o.Run, o.Stderr)
	return nil
}

// nothing asserts that the run left no signature of any kind and an error that
// says why.
func (r *rig) nothing(t *testing.T, o *outcome, why string) {
	t.Helper()
	o.unsigned()
	if got := r.statements(t, o); len(got) != 0 {
		t.Errorf("%d statements hang in its repository", len(got))
	}
	if o.Code != 1 || !strings.Contains(o.Stderr, "no claimed artifact is this run's own") || !strings.Contains(o.Stderr, why) {
		t.Errorf("exit %d, the error should say %q:\n%s", o.Code, why, o.Stderr)
	}
}

// push is a shell function: puts an image into the run's repository and prints
// its digest.
const push = token + `push() { attack push localhost:5055 "staging/$1" "$2" "$(token)" | sed -n 's/^pushed //p'; }
`

// TestLiarImage: a task lies about its image.
func TestLiarImage(t *testing.T) {
	r := newRig(t)
	say := func(url, digest string) string {
		return `printf '` + url + `' >/tekton/results/IMAGE_URL; printf '` + digest + `' >/tekton/results/IMAGE_DIGEST` + "\n"
	}
	image := []string{"IMAGE_URL", "IMAGE_DIGEST"}
	own := `localhost:5055/staging/$(context.taskRun.uid)`

	t.Run("fabricated digest", func(t *testing.T) {
		o := r.run(t, task{results: image, steps: []string{say(own, ones)}})
		o.ended(ledger.Succeeded)
		r.nothing(t, o, "this run put no such artifact into the registry")
	})

	t.Run("somebody else's image", func(t *testing.T) {
		repo, digest, _ := strings.Cut(r.image, "@")
		o := r.run(t, task{results: image, steps: []string{say(repo, digest)}})
		o.ended(ledger.Succeeded)
		r.nothing(t, o, "is not this run's repository")

		// The image of an earlier run, under its own name and under this run's.
		earlier := r.run(t, task{network: "registry", results: image, steps: []string{push + `D=$(push $(context.taskRun.uid) mine); ` + say(own, "%s")[:len(say(own, "%s"))-len("%s' >/tekton/results/IMAGE_DIGEST\n")] + `'"$D" >/tekton/results/IMAGE_DIGEST`}})
		if earlier.Stated == nil || len(earlier.Stated.Subjects) != 1 {
			t.Fatalf("the honest one: %+v\n%s", earlier.Stated, earlier.Stderr)
		}
		repo, digest, _ = strings.Cut(earlier.Stated.Subjects[0], "@")
		o = r.run(t, task{results: image, steps: []string{say(repo, digest)}})
		r.nothing(t, o, "is not this run's repository")
		o = r.run(t, task{results: image, steps: []string{say(own, digest)}})
		r.nothing(t, o, "this run put no such artifact into the registry")
	})

	t.Run("other spellings of the repository", func(t *testing.T) {
		for _, url := range []string{"LOCALHOST:5055/staging/$(context.taskRun.uid)", "127.0.0.1:5055/staging/$(context.taskRun.uid)", "localhost:5055//staging/$(context.taskRun.uid)", "docker://" + own, own + ":tag", "localhost:5055/staging/x/../$(context.taskRun.uid)"} {
			o := r.run(t, task{network: "registry", results: image, steps: []string{push + `D=$(push $(context.taskRun.uid) x); printf "` + url + `" >/tekton/results/IMAGE_URL; printf "$D" >/tekton/results/IMAGE_DIGEST`}})
			o.ended(ledger.Succeeded)
			for _, s := range r.statements(t, o) {
				for _, sub := range s.Subject {
					// Cosign's signatures name the digest only.
					if sub.Name != "" && sub.Name != "localhost:5055/staging/"+o.Run {
						t.Errorf("%s became subject %s", url, sub.Name)
					}
				}
			}
		}
	})

	pusher := func(claims string) link {
		return link{name: "pusher", params: map[string]string{"run": "$(context.pipelineRun.uid)"}, task: task{
			network: "registry", results: append([]string{"digest"}, image...), params: []string{"run"},
			steps: []string{push + `D=$(push $(params.run) theirs); printf $D >/tekton/results/digest; ` + claims}}}
	}
	liar := func() link {
		return link{name: "liar", params: map[string]string{"run": "$(context.pipelineRun.uid)", "digest": "$(tasks.pusher.results.digest)"}, task: task{
			results: image, params: []string{"run", "digest"}, steps: []string{say("localhost:5055/staging/$(params.run)", "$(params.digest)")}}}
	}

	t.Run("image that another task pushed", func(t *testing.T) {
		o := r.pipeline(t, []link{pusher(""), liar()}, nil)
		o.ended(ledger.Succeeded)
		r.nothing(t, o, "no claimed artifact")
		// The pusher names it too: it is the pusher's, and the liar's claim stays one.
		o = r.pipeline(t, []link{pusher(`printf 'localhost:5055/staging/$(params.run)' >/tekton/results/IMAGE_URL; printf $D >/tekton/results/IMAGE_DIGEST`), liar()}, nil)
		o.ended(ledger.Succeeded)
		if o.Stated == nil || len(o.Stated.Subjects) != 1 {
			t.Fatalf("%+v\n%s", o.Stated, o.Stderr)
		}
		if got, _ := o.claimed("pusher", "sha256:"); got != observe.Checked {
			t.Errorf("the pusher's claim is %q", got)
		}
		if got, _ := o.claimed("liar", "sha256:"); got == observe.Checked || got == "" {
			t.Errorf("the liar's claim is %q", got)
		}
	})

	t.Run("image that another task pushed, as result of the pipeline", func(t *testing.T) {
		// The pusher never said that this is what it built: the pipeline's result
		// is the liar's word.
		quiet := pusher("printf unrelated >/tekton/results/digest; echo $D")
		l := liar()
		l.params = map[string]string{"run": "$(context.pipelineRun.uid)"}
		l.after = []string{"pusher"}
		// What the push gives is known to who wrote both tasks.
		l.task.params = []string{"run"}
		l.task.steps = []string{say("localhost:5055/staging/$(params.run)", known("theirs"))}
		o := r.pipeline(t, []link{quiet, l}, map[string]string{"IMAGE_URL": "$(tasks.liar.results.IMAGE_URL)", "IMAGE_DIGEST": "$(tasks.liar.results.IMAGE_DIGEST)"})
		o.ended(ledger.Succeeded)
		o.has(known("theirs"))
		r.nothing(t, o, "no claimed artifact")
	})

	t.Run("one true and one false", func(t *testing.T) {
		o := r.pipeline(t, []link{
			pusher(`printf 'localhost:5055/staging/$(params.run)' >/tekton/results/IMAGE_URL; printf $D >/tekton/results/IMAGE_DIGEST`),
			{name: "liar", params: map[string]string{"run": "$(context.pipelineRun.uid)"}, task: task{results: image, params: []string{"run"}, steps: []string{say("localhost:5055/staging/$(params.run)", ones)}}},
		}, nil)
		o.ended(ledger.Succeeded)
		if o.Stated == nil || len(o.Stated.Subjects) != 1 || strings.Contains(o.Stated.Subjects[0], ones) {
			t.Fatalf("%+v\n%s", o.Stated, o.Stderr)
		}
		if got, _ := o.claimed("liar", ones); got != observe.Failed {
			t.Errorf("the false claim is %q", got)
		}
		for _, s := range r.statements(t, o) {
			for _, sub := range s.Subject {
				if sub.Digest["sha256"] == strings.TrimPrefix(ones, "sha256:") {
					t.Errorf("%s has the false digest as subject", s.PredicateType)
				}
			}
		}
		found := false
		for _, c := range r.observation(t, o).Claims {
			found = found || c.Status == observe.Failed && strings.Contains(c.Value, ones)
		}
		if !found {
			t.Error("the observation does not list the failed claim")
		}
	})

	t.Run("hermeticity by parameter", func(t *testing.T) {
		spec, annotations := task{network: "open", results: image, params: []string{"HERMETIC"}, steps: []string{push + `D=$(push $(context.taskRun.uid) x); printf '` + own + `' >/tekton/results/IMAGE_URL; printf "$D" >/tekton/results/IMAGE_DIGEST`}}.object(r.image)
		annotations["assay.dev/hermetic"], annotations["build.appstudio.redhat.com/hermetic"] = "true", "true"
		o := r.object(t, map[string]any{
			"apiVersion": "tekton.dev/v1", "kind": "TaskRun", "metadata": map[string]any{"generateName": "attack-", "annotations": annotations},
			"spec": map[string]any{"params": []any{map[string]any{"name": "HERMETIC", "value": "true"}}, "taskSpec": spec},
		})
		o.ended(ledger.Succeeded)
		task := r.observation(t, o).Tasks[0]
		if task.Hermetic.Enforced || task.Network != "open" || !task.Token {
			t.Errorf("the observation says hermetic %+v, network %s", task.Hermetic, task.Network)
		}
	})

	t.Run("forged result of a declared output", func(t *testing.T) {
		o := r.run(t, task{results: []string{"SRC_ARTIFACT", "IMAGE_URL", "IMAGE_DIGEST"}, outputs: "artifact SRC_ARTIFACT=/workspace/out", steps: []string{
			`mkdir /workspace/out; echo true >/workspace/out/f; printf 'oci:localhost:5055/staging/x@` + ones + `' >/tekton/results/SRC_ARTIFACT`}})
		o.ended(ledger.Succeeded)
		got := o.result("attack", "SRC_ARTIFACT")
		f := o.finished("attack")
		if strings.Contains(got, ones) || len(f.Outputs) != 1 || got != f.Outputs[0].URI {
			t.Errorf("result %q, exported %+v", got, f.Outputs)
		}
		if strings.Contains(string(o.TaskRuns[0]), "value\": \"oci:localhost:5055/staging/x@") {
			t.Errorf("the status has the forged result: %s", o.TaskRuns[0])
		}
	})

	t.Run("forged artifact as input of another task", func(t *testing.T) {
		other := r.run(t, task{results: []string{"SRC_ARTIFACT"}, outputs: "artifact SRC_ARTIFACT=/workspace/out", steps: []string{`mkdir /workspace/out; echo evil >/workspace/out/f`}})
		evil := other.result("attack", "SRC_ARTIFACT")
		o := r.pipeline(t, []link{
			{name: "liar", task: task{results: []string{"SRC_ARTIFACT"}, steps: []string{`printf '` + evil + `' >/tekton/results/SRC_ARTIFACT`}}},
			{name: "build", params: map[string]string{"run": "$(context.pipelineRun.uid)", "SRC": "$(tasks.liar.results.SRC_ARTIFACT)"}, task: task{
				network: "registry", params: []string{"run", "SRC"}, inputs: "SRC=/workspace/in", results: image,
				steps: []string{push + `cat /workspace/in/f; D=$(push $(params.run) "$(cat /workspace/in/f)"); printf 'localhost:5055/staging/$(params.run)' >/tekton/results/IMAGE_URL; printf $D >/tekton/results/IMAGE_DIGEST`}}},
		}, nil)
		o.ended(ledger.Succeeded)
		o.has(`^evil$`) // content of a foreign run: not refused, but told
		obs := r.observation(t, o)
		exported := map[string]bool{}
		var in *observe.Tree
		for _, task := range obs.Tasks {
			for _, out := range task.Outputs {
				exported[out.URI], exported[out.Digest] = true, true
			}
			if task.PipelineTask == "build" && len(task.Inputs) == 1 {
				in = &task.Inputs[0]
			}
		}
		if in == nil || in.URI != evil || in.Digest == "" || exported[in.URI] || exported[in.Digest] {
			t.Errorf("the observation hides where the input came from: %+v, exported %v", in, exported)
		}
		// Names that are no digest are refused.
		for _, uri := range []string{"oci:localhost:5055/staging/x:latest", "http://localhost/x", "oci:localhost:5055/staging/x@" + ones, "oci:localhost:5055/staging/../catalog/task@" + ones, evil + "0", strings.Replace(evil, "oci:", "oci://", 1)} {
			o := r.run(t, task{inputs: "SRC=/workspace/in", params: []string{"SRC"}, steps: []string{`echo GOT; cat /workspace/in/f`}, spec: map[string]any{"params": []any{map[string]any{"name": "SRC", "type": "string", "default": uri}}}})
			if o.rec.Ending == nil || o.rec.Ending.Outcome == ledger.Succeeded {
				t.Errorf("%s: the run ended as %+v", uri, o.rec.Ending)
			}
			o.unsigned()
			o.none(`GOT`)
		}
	})
	r.clean(t)
}

// known is the digest of the image that `attack push` makes of content.
func known(content string) string {
	out, err := exec.Command("sh", "-c", `printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%d},"layers":[]}' "$(printf '`+content+`' | sha256sum | cut -d' ' -f1)" `+itoa(len(content))+` | sha256sum | cut -d' ' -f1`).Output()
	if err != nil {
		return err.Error()
	}
	return "sha256:" + strings.TrimSpace(string(out))
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// TestLiarCommit: a task lies about its commit.
func TestLiarCommit(t *testing.T) {
	r := newRig(t)
	dir := t.TempDir()
	victim, evil := filepath.Join(dir, "victim"), filepath.Join(dir, "evil")
	for d, content := range map[string]string{victim: "good\n", evil: "evil\n"} {
		must(t, os.MkdirAll(d, 0o755))
		must(t, os.WriteFile(filepath.Join(d, "f"), []byte(content), 0o644))
	}
	repos := filepath.Join(dir, "repos")
	must(t, os.MkdirAll(repos, 0o755))
	private := filepath.Join(dir, "private")
	must(t, os.MkdirAll(private, 0o755))
	good, err := testrig.GitRepository(t.Context(), repos, "app", victim)
	must(t, err)
	bad, err := testrig.GitRepository(t.Context(), private, "evil", evil)
	must(t, err)
	object := func(root, name, id string) string {
		out, err := exec.Command("git", "--git-dir", filepath.Join(root, name+".git"), "cat-file", "commit", id).Output()
		must(t, err)
		return base64.StdEncoding.EncodeToString(out)
	}
	addr, err := testrig.GitServer(t.Context(), repos)
	must(t, err)
	_, port, _ := strings.Cut(addr, ":")
	url := "http://localhost:" + port + "/app.git"

	// clone is a task that says what it likes of where its source came from, and
	// builds an image, so that there is provenance.
	clone := func(content, commit, url, id string) task {
		return task{network: "registry", outputs: "source SRC=/workspace/src\ncommit COMMIT=/workspace/commit",
			results: []string{"SRC", "COMMIT", "CHAINS-GIT_URL", "CHAINS-GIT_COMMIT", "IMAGE_URL", "IMAGE_DIGEST"},
			steps: []string{push + `mkdir /workspace/src; echo ` + content + ` >/workspace/src/f; chmod 644 /workspace/src/f; echo ` + commit + ` | base64 -d >/workspace/commit
				printf ` + url + ` >/tekton/results/CHAINS-GIT_URL; printf ` + id + ` >/tekton/results/CHAINS-GIT_COMMIT
				D=$(push $(context.taskRun.uid) x); printf 'localhost:5055/staging/$(context.taskRun.uid)' >/tekton/results/IMAGE_URL; printf "$D" >/tekton/results/IMAGE_DIGEST`}}
	}
	fwd := "--forward=" + addr
	materials := func(o *outcome) string {
		for _, s := range r.statements(t, o) {
			if s.PredicateType == api.PredicateSLSAv02 {
				return s.raw
			}
		}
		t.Fatalf("no provenance: %s", o.Stderr)
		return ""
	}

	t.Run("the truth", func(t *testing.T) {
		o := r.run(t, clone("good", object(repos, "app", good), url, good), fwd)
		o.ended(ledger.Succeeded)
		if got, why := o.claimed("", good); got != "" {
			t.Errorf("pipeline claim %s %s", got, why)
		}
		if got, why := o.claimed("attack", good); got != observe.Checked {
			t.Errorf("the claim is %q: %s\n%s", got, why, o.Stderr)
		}
		s := r.observation(t, o).Source
		if s == nil || s.CommitStatus != observe.Checked || s.RepositoryStatus != observe.Checked {
			t.Errorf("source %+v", s)
		}
		if !strings.Contains(materials(o), good) {
			t.Error("the commit is no material")
		}
	})

	t.Run("fabricated commit without source", func(t *testing.T) {
		k := clone("x", "", url, strings.Repeat("ab", 20))
		k.outputs = ""
		o := r.run(t, k, fwd)
		o.ended(ledger.Succeeded)
		if got, why := o.claimed("attack", strings.Repeat("ab", 20)); got != observe.Failed {
			t.Errorf("the claim is %q: %s", got, why)
		}
		for _, s := range r.statements(t, o) {
			if s.PredicateType == api.PredicateSLSAv02 && strings.Contains(part(t, s, "materials"), strings.Repeat("ab", 20)) {
				t.Error("the fabricated commit is a material")
			}
		}
	})

	t.Run("true commit, other tree", func(t *testing.T) {
		o := r.run(t, clone("evil", object(repos, "app", good), url, good), fwd)
		o.ended(ledger.Succeeded)
		if got, why := o.claimed("attack", good); got != observe.Failed {
			t.Errorf("the claim is %q: %s", got, why)
		}
		if s := r.observation(t, o).Source; s == nil || s.CommitStatus != observe.Failed {
			t.Errorf("source %+v", s)
		}
		for _, s := range r.statements(t, o) {
			if s.PredicateType == api.PredicateSLSAv02 && strings.Contains(part(t, s, "materials"), good) {
				t.Error("the commit is a material")
			}
		}
	})

	t.Run("commit of its own making names somebody else's repository", func(t *testing.T) {
		o := r.run(t, clone("evil", object(private, "evil", bad), url, bad), fwd)
		o.ended(ledger.Succeeded)
		if got, why := o.claimed("attack", bad); got == observe.Checked || got == "" {
			t.Errorf("the claim is %q: %s", got, why)
		}
		if s := r.observation(t, o).Source; s == nil || s.CommitStatus != observe.Checked || s.RepositoryStatus == observe.Checked || s.Ref != "" {
			t.Errorf("source %+v", s)
		}
	})

	t.Run("exports one commit and claims another", func(t *testing.T) {
		o := r.run(t, clone("evil", object(private, "evil", bad), url, good), fwd)
		o.ended(ledger.Succeeded)
		if got, why := o.claimed("attack", good); got != observe.Failed {
			t.Errorf("the claim is %q: %s", got, why)
		}
		if s := r.observation(t, o).Source; s != nil && s.RepositoryStatus == observe.Checked {
			t.Errorf("source %+v", s)
		}
	})

	t.Run("names a repository on this machine", func(t *testing.T) {
		// Not forwarded: the executor must not ask there for it either.
		o := r.run(t, clone("good", object(repos, "app", good), url, good))
		o.ended(ledger.Succeeded)
		if got, why := o.claimed("attack", good); got == observe.Checked {
			t.Errorf("the claim is %q: %s", got, why)
		}
		for _, u := range []string{"file://" + repos + "/app.git", repos + "/app.git", "http://127.1:" + port + "/app.git", "http://[::1]:" + port + "/app.git", "http://0x7f000001:" + port + "/app.git", "unix://" + r.Home + "/run/observer/sock", "http://user:pass@localhost:" + port + "/app.git"} {
			o := r.run(t, clone("good", object(repos, "app", good), u, good))
			if s := r.observation(t, o).Source; s != nil && s.RepositoryStatus == observe.Checked {
				t.Errorf("%s: source %+v", u, s)
			}
		}
	})
	r.clean(t)
}

// part is a field of a predicate as JSON.
func part(t *testing.T, s statement, field string) string {
	t.Helper()
	var m map[string]json.RawMessage
	must(t, json.Unmarshal(s.Predicate, &m))
	return string(m[field])
}
