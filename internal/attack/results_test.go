package attack_test

import (
	"os"
	"strings"
	"testing"

	"assay.dev/assay/ledger"
	"assay.dev/assay/observe"
)

// TestResults: what a task hands over, while it runs and after its end.
func TestResults(t *testing.T) {
	r := newRig(t)

	t.Run("result of 100 MB", func(t *testing.T) {
		for _, args := range [][]string{nil, {"--max-result-bytes", "1Ki"}} {
			o := r.run(t, task{results: []string{"big"}, steps: []string{`head -c 104857600 /dev/zero >$(results.big.path)`}}, args...)
			o.ended(ledger.Failed)
			o.unsigned()
			if f := o.finished("attack"); f.Reason != "TaskRunResultLargerThanAllowedLimit" || len(f.Results) != 0 {
				t.Errorf("%s, %d results", f.Reason, len(f.Results))
			}
		}
		// Many that are each within the bound and together are not.
		var names []string
		var script strings.Builder
		for i := range 20 {
			n := "r" + string(rune('a'+i))
			names = append(names, n)
			script.WriteString("head -c 100000 /dev/zero | tr '\\0' x >/tekton/results/" + n + "\n")
		}
		o := r.run(t, task{results: names, steps: []string{script.String()}})
		o.ended(ledger.Failed)
		if f := o.finished("attack"); f.Reason != "TaskRunResultLargerThanAllowedLimit" {
			t.Errorf("%s", f.Reason)
		}
	})

	t.Run("result altered after its step or task ended", func(t *testing.T) {
		o := r.run(t, task{results: []string{"out"}, steps: []string{`
			# Detached in every way there is: own session, orphaned twice, signals ignored.
			cat >/workspace/daemon <<-'EOF'
				#!/bin/sh
				trap '' HUP INT TERM PIPE
				while :; do echo forged >/tekton/results/out; echo alive >>/workspace/alive; done
			EOF
			chmod +x /workspace/daemon
			(setsid /workspace/daemon >/dev/null 2>&1 </dev/null &)
			( ( /workspace/daemon >/dev/null 2>&1 & ) & )
			nohup /workspace/daemon >/dev/null 2>&1 &
			sleep 0.3; head -n 1 /workspace/alive`,
			`rm /workspace/alive; printf honest >$(results.out.path); sleep 0.5
			 ls /workspace | grep -x alive && echo GOT a process that outlived its step
			 ls -d /proc/[0-9]* | wc -l | sed 's/^/processes /'; cat $(results.out.path)`,
		}})
		o.ended(ledger.Succeeded)
		o.has(`^alive$`)
		o.none(`GOT`)
		if got := o.result("attack", "out"); got != "honest" {
			t.Errorf("result %q", got)
		}
		// In the last step: what is read is what is there when all is dead, and the
		// status says the same as the ledger.
		o = r.run(t, task{results: []string{"out"}, steps: []string{`
			i=0; (setsid sh -c 'i=0; while :; do i=$((i+1)); printf %08d $i >/tekton/results/tmp; mv /tekton/results/tmp /tekton/results/out; done' >/dev/null 2>&1 &)
			sleep 0.3; exit 0`}})
		o.ended(ledger.Succeeded)
		if got := o.result("attack", "out"); !strings.Contains(string(o.TaskRuns[0]), `"value":"`+got+`"`) && !strings.Contains(string(o.TaskRuns[0]), `"value": "`+got+`"`) {
			t.Errorf("the ledger has %q, the status %s", got, o.TaskRuns[0])
		}
		r.clean(t)
	})

	t.Run("result that is a link or no file", func(t *testing.T) {
		for name, script := range map[string]string{
			"host file":        `ln -s /etc/passwd $(results.out.path)`,
			"host file, up":    `ln -s ../../../../../../../../../../../etc/hostname $(results.out.path)`,
			"proc":             `ln -s /proc/self/environ $(results.out.path)`,
			"another volume":   `echo stolen >/tekton/home/x; ln -s /tekton/home/x $(results.out.path)`,
			"same volume":      `echo stolen >/tekton/results/x; ln -s x $(results.out.path)`,
			"executor's own":   `ln -s ../home/.docker/config.json $(results.out.path)`,
			"fifo":             `mkfifo $(results.out.path)`,
			"folder":           `mkdir $(results.out.path)`,
			"socket":           `(attack serve $(results.out.path) >/dev/null &); sleep 0.2`,
			"not to be opened": `echo x >$(results.out.path); chmod 0 $(results.out.path)`,
		} {
			o := r.run(t, task{results: []string{"out"}, steps: []string{script}})
			if o.rec == nil || o.rec.Ending == nil || o.rec.Ending.Outcome == ledger.Lost {
				t.Errorf("%s: %+v\n%s", name, o.rec, o.Stderr)
				continue
			}
			if got := o.result("attack", "out"); got != "" && name != "not to be opened" {
				t.Errorf("%s: result %q", name, got)
			}
		}
	})

	t.Run("output that is a link or no folder", func(t *testing.T) {
		for name, script := range map[string]string{
			"host folder":    `ln -s /etc /workspace/out`,
			"other volume":   `mkdir /tekton/home/x; ln -s /tekton/home/x /workspace/out`,
			"same volume":    `mkdir /workspace/x; ln -s x /workspace/out`,
			"file":           `echo x >/workspace/out`,
			"missing":        `true`,
			"fifo in it":     `mkdir /workspace/out; mkfifo /workspace/out/fifo`,
			"swapped at end": `mkdir /workspace/out; (setsid sh -c 'while :; do mv /workspace/out /workspace/o2; ln -s /etc /workspace/out; rm /workspace/out; mv /workspace/o2 /workspace/out; done' >/dev/null 2>&1 &); sleep 0.1; rm -rf /workspace/out; ln -sfn /etc /workspace/out`,
		} {
			o := r.run(t, task{results: []string{"OUT_ARTIFACT"}, outputs: "artifact OUT_ARTIFACT=/workspace/out", steps: []string{script}})
			f := o.finished("attack")
			if name == "swapped at end" && f.Reason == "" && len(f.Outputs) == 1 && f.Outputs[0].Files == 0 {
				continue // killed while the empty folder was in its place
			}
			if f.Reason == "" || len(f.Outputs) != 0 {
				t.Errorf("%s: exported %+v\n%s", name, f.Outputs, o.Stderr)
			}
			o.ended(ledger.Failed)
			o.unsigned()
		}
		// Below another folder that is a link.
		o := r.run(t, task{results: []string{"OUT_ARTIFACT"}, outputs: "artifact OUT_ARTIFACT=/workspace/a/b", steps: []string{`mkdir -p /workspace/x/b; ln -s x /workspace/a`}})
		o.ended(ledger.Failed)
	})

	t.Run("links inside an output", func(t *testing.T) {
		// They go along as links, never as what they point at on this machine.
		o := r.pipeline(t, []link{
			{name: "giver", task: task{results: []string{"OUT_ARTIFACT"}, outputs: "artifact OUT_ARTIFACT=/workspace/out", steps: []string{
				`mkdir /workspace/out; ln -s /etc/passwd /workspace/out/passwd; ln -s ../../../../../../../etc/shadow /workspace/out/shadow; ln -s /proc/1/environ /workspace/out/environ`}}},
			{name: "taker", params: map[string]string{"SRC": "$(tasks.giver.results.OUT_ARTIFACT)"}, task: task{params: []string{"SRC"}, inputs: "SRC=/workspace/in", steps: []string{
				`ls -l /workspace/in; cat /workspace/in/passwd /workspace/in/shadow 2>/dev/null | sed 's/^/GOT /'; echo done`}}},
		}, nil)
		o.ended(ledger.Succeeded)
		o.has(`^done$`)
		o.has(`passwd -> /etc/passwd`)
		o.none(`GOT (root|daemon)`)
	})

	t.Run("image output with links and false digests", func(t *testing.T) {
		layout := `
			mkdir -p /workspace/img/blobs/sha256; cd /workspace/img
			echo '{"imageLayoutVersion":"1.0.0"}' >oci-layout
			printf '{}' >c; C=$(sha256sum c | cut -d' ' -f1); mv c blobs/sha256/$C
			printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":2},"layers":[]}' $C >m
			M=$(sha256sum m | cut -d' ' -f1); S=$(wc -c <m); mv m blobs/sha256/$M
			printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%d}]}' $M $S >index.json
		`
		k := func(script string) task {
			return task{results: []string{"IMAGE_URL", "IMAGE_DIGEST", "IMAGE_REF"}, outputs: "image IMAGE=/workspace/img", steps: []string{layout + script}}
		}
		honest := r.run(t, k(``))
		honest.ended(ledger.Succeeded)
		if honest.Stated == nil || len(honest.Stated.Subjects) != 1 {
			t.Fatalf("the honest one: %+v\n%s", honest.Stated, honest.Stderr)
		}
		for name, script := range map[string]string{
			"blob is a link":      `rm blobs/sha256/$C; ln -s /etc/hostname blobs/sha256/$C`,
			"manifest is a link":  `mv blobs/sha256/$M /tekton/home/m; ln -s /tekton/home/m blobs/sha256/$M`,
			"index is a link":     `rm index.json; ln -s /etc/passwd index.json`,
			"folder is a link":    `mv blobs /tekton/home/; ln -s /tekton/home/blobs blobs`,
			"false digest":        `printf '[]' >blobs/sha256/$C`,
			"false manifest":      `printf ' ' >>blobs/sha256/$M`,
			"blob is a fifo":      `rm blobs/sha256/$C; mkfifo blobs/sha256/$C`,
			"digest leads away":   `sed -i "s|sha256:$M|sha256:../../../../../etc/passwd|" index.json`,
			"result says another": `echo sha256:1111111111111111111111111111111111111111111111111111111111111111 >/tekton/results/IMAGE_DIGEST`,
		} {
			o := r.run(t, k(script))
			if name == "result says another" {
				o.ended(ledger.Succeeded)
				if got := o.result("attack", "IMAGE_DIGEST"); got != honest.result("attack", "IMAGE_DIGEST") {
					t.Errorf("%s: %s", name, got)
				}
				continue
			}
			o.ended(ledger.Failed)
			o.unsigned()
		}
	})

	t.Run("links in the way of exit codes and step results", func(t *testing.T) {
		for _, p := range []string{"/etc/exitCode", "/root/exitCode"} {
			if _, err := os.Lstat(p); err == nil {
				t.Fatalf("%s is there already", p)
			}
		}
		steps := func(first string) task {
			k := task{}
			k.spec = map[string]any{"steps": []any{
				map[string]any{"name": "s0", "image": r.image, "script": "#!/bin/sh\n" + first + "\nexit 0\n"},
				map[string]any{"name": "s1", "image": r.image, "onError": "continue", "script": "#!/bin/sh\nexit 3\n"},
				map[string]any{"name": "s2", "image": r.image, "script": "#!/bin/sh\ncat /tekton/steps/*/exitCode 2>/dev/null; echo done\n"},
			}}
			return k
		}
		for name, first := range map[string]string{
			"folder to host":   `ls /tekton/steps; cd /tekton/steps; for d in *; do rm -rf $d; ln -s /etc $d; done`,
			"folder to root":   `cd /tekton/steps; for d in *; do rm -rf $d; ln -s ../../../../../../../../root $d; done`,
			"file to host":     `cd /tekton/steps; for d in *; do ln -s /etc/exitCode $d/exitCode; done`,
			"file to a script": `cd /tekton/steps; for d in *; do ln -s /tekton/scripts/script-2 $d/exitCode; done`,
			"file is a fifo":   `cd /tekton/steps; for d in *; do mkfifo $d/exitCode; done`,
			"folder is gone":   `rm -rf /tekton/steps/*`,
		} {
			o := r.run(t, steps(first))
			if o.rec == nil || o.rec.Ending == nil || o.rec.Ending.Outcome == ledger.Lost {
				t.Errorf("%s: %s", name, o.Stderr)
			}
			for _, p := range []string{"/etc/exitCode", "/root/exitCode"} {
				if _, err := os.Lstat(p); err == nil {
					os.Remove(p)
					t.Errorf("%s: the executor wrote %s", name, p)
				}
			}
			if o.rec != nil {
				for _, s := range facts[observe.StepFinishedBody](o, observe.StepFinished) {
					if s.Step == "s1" && s.ExitCode != 3 {
						t.Errorf("%s: s1's exit code is recorded as %d", name, s.ExitCode)
					}
				}
			}
		}
		k := task{}
		k.spec = map[string]any{"steps": []any{
			map[string]any{"name": "s0", "image": r.image, "results": []any{map[string]any{"name": "leak"}}, "script": "#!/bin/sh\nrm -f $(step.results.leak.path); ln -s /etc/passwd $(step.results.leak.path)\n"},
			map[string]any{"name": "s1", "image": r.image, "args": []any{"$(steps.s0.results.leak)"}, "script": "#!/bin/sh\necho \"GOT $1\"\n"},
		}}
		o := r.run(t, k)
		o.none(`GOT root`)
		for _, s := range facts[observe.StepFinishedBody](o, observe.StepFinished) {
			if len(s.Results) != 0 {
				t.Errorf("step result %+v", s.Results)
			}
		}
	})

	t.Run("a step alters what later steps run", func(t *testing.T) {
		o := r.run(t, task{steps: []string{
			`cp /bin/attack /bin/evil 2>/dev/null; rm -f /bin/sh /bin/sleep; printf '#!/bin/busybox sh\necho GOT evil\n' >/bin/echo2; cat /bin/echo2 >/bin/busybox 2>/dev/null; mv /bin/echo2 /bin/ls
			 echo 'echo GOT evil' >/tekton/scripts/script-1; rm -f /tekton/scripts/script-1; true`,
			`ls / >/dev/null; echo honest`}})
		o.ended(ledger.Succeeded)
		o.has(`^honest$`)
		o.none(`GOT`)
		// And not what other runs of the same image run.
		o = r.run(t, task{steps: []string{`ls / >/dev/null; test -e /bin/evil && echo GOT evil; echo honest`}})
		o.has(`^honest$`)
		o.none(`GOT`)
	})
	r.clean(t)
}

func facts[T any](o *outcome, typ observe.FactType) []T {
	o.t.Helper()
	list, err := ledger.Facts[T](o.rec, typ)
	must(o.t, err)
	return list
}
