package attack_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/registry"
	"assay.dev/assay/ledger"
)

// token is a shell function: the task's registry token.
const token = `token() { sed 's/.*"auth":"\([^"]*\)".*/\1/' $DOCKER_CONFIG/config.json | base64 -d | cut -d: -f2; }
`

// TestRegistry: who may write what, with whose token, and until when.
func TestRegistry(t *testing.T) {
	r := newRig(t)
	uploads := func(o *outcome) []registry.Upload {
		t.Helper()
		list, err := registry.ReadUploads(filepath.Join(r.Home, "registry"), o.Run)
		must(t, err)
		return list
	}

	t.Run("without network", func(t *testing.T) {
		o := r.run(t, task{network: "none", steps: []string{`
			attack dial tcp:127.0.0.1:5055 tcp:[::1]:5055 tcp:localhost:5055 udp:127.0.0.1:5055
			attack push localhost:5055 staging/x image
			ls -la /tekton/home; env | grep -i docker
			echo done`}})
		o.ended(ledger.Succeeded)
		o.has(`^done$`)
		o.none(` ok$|^pushed|\.docker|DOCKER`)
		if f := o.finished("attack"); f.Token || !f.Hermetic.Enforced {
			t.Errorf("token %v, hermetic %+v", f.Token, f.Hermetic)
		}
	})

	t.Run("without a token", func(t *testing.T) {
		for _, network := range []string{"registry", "open"} {
			o := r.run(t, task{network: network, steps: []string{token + `
				run='$(context.taskRun.uid)'
				for repo in staging/$run staging/other released/app catalog/task; do
					echo "to $repo"; attack push localhost:5055 $repo image
					echo "to $repo"; attack push localhost:5055 $repo image wrong
				done
				echo done`}})
			o.ended(ledger.Succeeded)
			o.has(`^done$`)
			o.none(`^pushed|^(blob|manifest) 2`)
			if got := uploads(o); len(got) != 0 {
				t.Errorf("network %s: uploads %+v", network, got)
			}
			if f := o.finished("attack"); !f.Token || f.Hermetic.Enforced {
				t.Errorf("token %v, hermetic %+v", f.Token, f.Hermetic)
			}
		}
	})

	t.Run("mints tokens of its own", func(t *testing.T) {
		// What is forwarded into the task must not carry the executor's rights.
		for _, network := range []string{"registry", "open"} {
			o := r.run(t, task{network: network, steps: []string{`
				run='$(context.taskRun.uid)'
				attack mint localhost:5055 $run other-task task
				attack mint localhost:5055 $run other-task export
				attack mint localhost:5055 $run '$(context.taskRun.name)' export
				echo done`}})
			o.ended(ledger.Succeeded)
			o.has(`^done$`)
			o.none(`^mint 2|assay_`)
			if got := uploads(o); len(got) != 0 {
				t.Errorf("network %s: uploads %+v", network, got)
			}
		}
	})

	t.Run("pushes elsewhere with its token", func(t *testing.T) {
		o := r.run(t, task{network: "registry", steps: []string{token + `
			for repo in staging/other staging/$(context.taskRun.uid)/below staging released/app catalog/task catalog/probe x; do
				attack push localhost:5055 $repo elsewhere "$(token)" | sed "s|^|$repo: |"
			done
			attack push localhost:5055 staging/$(context.taskRun.uid)/../../catalog/probe elsewhere "$(token)" | sed "s|^|up: |"
			echo own; attack push localhost:5055 staging/$(context.taskRun.uid) own "$(token)"`}})
		o.ended(ledger.Succeeded)
		o.none(`: (pushed|blob 2|manifest 2)`)
		o.has(`^pushed sha256:`) // its own repository
		for _, u := range uploads(o) {
			if u.Repo != "staging/"+o.Run || u.Task == "" {
				t.Errorf("upload %+v", u)
			}
		}
		for _, dir := range []string{"staging/other", "released", "x"} {
			if _, err := os.Stat(filepath.Join(r.Home, "registry", dir)); err == nil {
				t.Errorf("%s was made", dir)
			}
		}
	})

	t.Run("uses a token after its task ended", func(t *testing.T) {
		// Handed on as a result while the run is still open.
		o := r.pipeline(t, []link{
			{name: "giver", params: map[string]string{"run": "$(context.pipelineRun.uid)"}, task: task{network: "registry", results: []string{"token"}, steps: []string{token + `token | tr -d '\n' >$(results.token.path); attack push localhost:5055 staging/$(params.run) during "$(token)"`}}.inPipeline()},
			{name: "taker", params: map[string]string{"run": "$(context.pipelineRun.uid)", "stolen": "$(tasks.giver.results.token)"}, task: task{network: "registry", params: []string{"stolen"}, steps: []string{`
				echo "stolen: $(params.stolen)" | cut -c1-14
				attack push localhost:5055 staging/$(params.run) after "$(params.stolen)" | sed 's/^/after: /'`}}.inPipeline()},
		}, nil)
		o.ended(ledger.Succeeded)
		o.has(`^pushed sha256:`)
		o.has(`^stolen: assay_`)
		o.has(`^after: .*403`)
		o.none(`^after: (pushed|blob 2|manifest 2)`)
		for _, u := range uploads(o) {
			if strings.Contains(u.Task, "taker") {
				t.Errorf("upload %+v", u)
			}
		}
	})

	t.Run("uses a token that a background process kept", func(t *testing.T) {
		o := r.run(t, task{network: "registry", results: []string{"x"}, steps: []string{token + `
			T=$(token); echo x >$(results.x.path)
			(setsid sh -c "for i in 1 2 3 4 5 6 7 8; do sleep 0.1; attack push localhost:5055 staging/$(context.taskRun.uid) late \$i $T; done" >/dev/null 2>&1 &)
			exit 0`}})
		o.ended(ledger.Succeeded)
		for _, u := range uploads(o) {
			if u.Time.After(o.finished("attack").Finished) {
				t.Errorf("an upload after the task's end: %+v", u)
			}
		}
	})

	t.Run("removes or moves what is there", func(t *testing.T) {
		o := r.run(t, task{network: "registry", steps: []string{token + `
			T="task:$(token)"
			attack push localhost:5055 staging/$(context.taskRun.uid) own "$(token)"
			req() { (printf '%s %s HTTP/1.1\r\nHost: localhost:5055\r\nAuthorization: Basic %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' "$1" "$2" "$(printf %s "$T" | base64 | tr -d '\n')"; sleep 0.3) | nc localhost 5055 | head -1 | sed "s|^|$1 |"; }
			D=$(attack push localhost:5055 staging/$(context.taskRun.uid) own "$(token)" | sed -n 's/^pushed //p')
			req DELETE /v2/staging/$(context.taskRun.uid)/manifests/$D
			req DELETE /v2/staging/$(context.taskRun.uid)/blobs/$D
			req POST "/v2/staging/$(context.taskRun.uid)/blobs/uploads/?mount=` + digestOf(r.image) + `&from=catalog/probe"
			req DELETE "/assay/v1/tokens?run=$(context.taskRun.uid)"
			echo done`}})
		o.ended(ledger.Succeeded)
		o.has(`^done$`)
		o.none(`^(DELETE|POST) HTTP/1.1 20[014]`)
	})
	r.clean(t)
}

func digestOf(ref string) string { _, d, _ := strings.Cut(ref, "@"); return d }

// inPipeline gives a task the parameter run, the PipelineRun's uid.
func (k task) inPipeline() task {
	k.params = append([]string{"run"}, k.params...)
	return k
}
