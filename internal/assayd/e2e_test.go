package assayd_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"assay.dev/assay/internal/testrig/kubelet"
	"assay.dev/assay/internal/testrig/kubetest"
	"assay.dev/assay/internal/testrig/peer"
	"assay.dev/assay/internal/watch/watchtest"
)

// build is a PipelineRun as people have it: a task that says which commit it took,
// one that makes an image and pushes it, one that always runs.
func build(k *kubelet.Kubelet, ns, name, repo string) string {
	_, port, _ := net.SplitHostPort(k.Registry)
	return `
apiVersion: tekton.dev/v1
kind: PipelineRun
metadata:
  name: ` + name + `
  namespace: ` + ns + `
  annotations: {example.com/ticket: "42"}
spec:
  params: [{name: url, value: "https://git.example.com/team/app"}]
  pipelineSpec:
    params: [{name: url}]
    results:
    - {name: IMAGE_URL, value: $(tasks.build.results.IMAGE_URL)}
    - {name: IMAGE_DIGEST, value: $(tasks.build.results.IMAGE_DIGEST)}
    - {name: CHAINS-GIT_URL, value: $(tasks.clone.results.url)}
    - {name: CHAINS-GIT_COMMIT, value: $(tasks.clone.results.commit)}
    tasks:
    - name: clone
      params: [{name: url, value: $(params.url)}]
      taskSpec:
        params: [{name: url}]
        results: [{name: url}, {name: commit}, {name: CHAINS-GIT_URL}, {name: CHAINS-GIT_COMMIT}]
        steps:
        - name: clone
          image: ` + k.Shell + `
          script: |
            #!/bin/sh
            set -e
            commit=$(echo "$(params.url)" | sha256sum | cut -c1-40)
            printf %s "$(params.url)" | tee $(results.url.path) > $(results.CHAINS-GIT_URL.path)
            printf %s "$commit" | tee $(results.commit.path) > $(results.CHAINS-GIT_COMMIT.path)
    - name: build
      params: [{name: commit, value: $(tasks.clone.results.commit)}]
      taskSpec:
        params: [{name: commit}]
        results: [{name: IMAGE_URL}, {name: IMAGE_DIGEST}]
        steps:
        - name: push
          image: ` + k.Shell + `
          env: [{name: NAME, value: "` + name + `"}]
          script: |
            #!/bin/sh
            set -e
            cd /tmp
            send() { # method, path, content type, file
              { printf '%s %s HTTP/1.1\r\nHost: ` + k.Registry + `\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n' "$1" "$2" "$3" "$(wc -c < $4)"
                cat $4; sleep 0.5; } | nc 127.0.0.1 ` + port + ` > answer
              head -n 1 answer
              grep -q '^HTTP/1.1 20[12]' answer
            }
            blob() {
              send POST /v2/` + repo + `/blobs/uploads/ application/octet-stream /dev/null
              at=$(sed -n 's/^Location: *//p' answer | tr -d '\r')
              case $at in *\?*) at="$at&" ;; *) at="$at?" ;; esac
              send PUT "${at}digest=sha256:$(sha $1)" application/octet-stream $1
            }
            sha() { sha256sum < $1 | cut -c1-64; }
            echo "$NAME $(params.commit)" > app; tar -cf layer app
            printf '{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"config":{}}' $(sha layer) > config
            blob layer
            blob config
            printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%d},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%d}]}' $(sha config) $(wc -c < config) $(sha layer) $(wc -c < layer) > manifest
            send PUT /v2/` + repo + `/manifests/latest application/vnd.oci.image.manifest.v1+json manifest
            printf '` + k.Registry + "/" + repo + `:latest' > $(results.IMAGE_URL.path)
            printf sha256:%s $(sha manifest) > $(results.IMAGE_DIGEST.path)
    finally:
    - name: tell
      taskSpec:
        steps: [{name: tell, image: "` + k.Shell + `", script: "#!/bin/sh\necho done\n"}]
`
}

// build carries out a build through real Tekton and returns the image.
func (r *rig) build(k *kubelet.Kubelet, name string) (image string) {
	r.t.Helper()
	r.c.Apply(r.t, build(k, r.ns, name, "team/"+name))
	run := r.c.Finished(r.t, kubetest.PipelineRuns, r.ns, name)
	if status, reason, message := kubetest.Succeeded(run); status != "True" {
		pods, _ := r.c.Client.CoreV1().Pods(r.ns).List(r.t.Context(), listAll)
		for _, p := range pods.Items {
			for _, c := range p.Spec.Containers {
				if log, err := k.Log(r.ns, p.Name, c.Name); err == nil {
					r.t.Logf("%s %s:\n%s", p.Name, c.Name, log)
				}
			}
		}
		r.t.Fatalf("%s: %s", reason, message)
	}
	got := results(run)
	return strings.TrimSuffix(got["IMAGE_URL"], ":latest") + "@" + got["IMAGE_DIGEST"]
}

func results(run *unstructured.Unstructured) map[string]string {
	out := map[string]string{}
	for _, res := range kubetest.Results(run) {
		if s, ok := res.Value.(string); ok {
			out[res.Name] = s
		}
	}
	return out
}

// attested is what `assay attest` prints about a run whose objects kubectl gets.
func (r *rig) attested(kind, name string) any {
	r.t.Helper()
	file := func(called, text string) string {
		p := filepath.Join(r.t.TempDir(), called)
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			r.t.Fatal(err)
		}
		return p
	}
	config := file("chains-config.yaml", r.c.Kubectl(r.t, "-n", r.ns, "get", "configmap", "chains-config", "-o", "yaml"))
	args := []string{"attest", "--config", config, "-f", file("run.yaml", r.c.Kubectl(r.t, "-n", r.ns, "get", kind, name, "-o", "yaml"))}
	if kind == "pipelinerun" {
		args = append(args, "--children", file("children.yaml", r.c.Kubectl(r.t, "-n", r.ns, "get", "taskruns", "-l", "tekton.dev/pipelineRun="+name, "-o", "yaml")))
	}
	return decoded(r.t, []byte(r.must("assay", args...)))
}

func decoded(t *testing.T, b []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("decoding %.200q: %v", b, err)
	}
	return v
}

// builder is the builder.id of a statement, of either predicate.
func builder(statement any) string {
	m, _ := statement.(map[string]any)
	p, _ := m["predicate"].(map[string]any)
	if d, ok := p["runDetails"].(map[string]any); ok {
		p = d
	}
	b, _ := p["builder"].(map[string]any)
	id, _ := b["id"].(string)
	return id
}

// TestEndToEnd: real PipelineRuns, through real Tekton and the observer as its
// users start it, into a real registry, and out of it by the tools of verifiers.
func TestEndToEnd(t *testing.T) {
	// Its own: Tekton would carry out the finished runs that other tests load.
	c := kubetest.StartOwn(t)
	k := kubelet.Start(t, c)
	k.StartTekton(t)
	with := func(t *testing.T) *rig { return rigOn(t, c) }

	// verified has both tools verify an image, and neither with another key.
	verified := func(r *rig, image, predicate string, flags ...string) {
		r.t.Helper()
		out := r.must("assay", append([]string{"verify", image, "--key", r.pub, "--output", "json"}, flags...)...)
		var found struct{ Signatures, Statements, Rejected []any }
		if err := json.Unmarshal([]byte(out), &found); err != nil {
			r.t.Fatal(err)
		}
		if len(found.Signatures) != 1 || len(found.Statements) != 1 || len(found.Rejected) != 0 {
			r.t.Errorf("assay verify finds %d signatures, %d statements and %d that it rejects; want 1, 1 and 0:\n%s",
				len(found.Signatures), len(found.Statements), len(found.Rejected), out)
		}
		r.cosign("verify", "--key", r.pub, image)
		r.cosign("verify-attestation", "--key", r.pub, "--type", predicate, image)
		other := r.key(r.t.TempDir(), "other")
		if _, _, code := r.tool("assay", "verify", image, "--key", other); code != 3 {
			r.t.Errorf("assay verify with another key: exit %d, want 3", code)
		}
	}

	t.Run("as Konflux has it", func(t *testing.T) {
		r := with(t)
		r.settings(konflux())
		o := r.observe()
		image := r.build(k, "konflux")
		run := r.signed(watchtest.PipelineRuns, "konflux")
		verified(r, image, "slsaprovenance")
		atts, sigs := r.layers(image, ".att"), r.layers(image, ".sig")
		if len(atts) != 1 || len(sigs) != 1 {
			t.Fatalf("%d statements and %d signatures; want one of each", len(atts), len(sigs))
		}
		got := decoded(t, atts[0].payload)
		if diff := cmp.Diff(r.attested("pipelinerun", "konflux"), got); diff != "" {
			t.Errorf("the statement is not that of `assay attest` (-attest +stored):\n%s", diff)
		}
		if id := builder(got); id != "https://tekton.example.com/chains/v2" {
			t.Errorf("builder.id is %q; want that of chains-config", id)
		}
		for _, want := range []string{"https://git.example.com/team/app", `"example.com/ticket":"42"`} {
			if !bytes.Contains(atts[0].payload, []byte(want)) {
				t.Errorf("the statement does not say %q", want)
			}
		}
		// TaskRun statements are off: nothing is written on TaskRuns.
		trs, err := c.Dynamic.Resource(watchtest.TaskRuns).Namespace(r.ns).List(t.Context(), listAll)
		if err != nil || len(trs.Items) != 3 {
			t.Fatalf("%d TaskRuns, %v", len(trs.Items), err)
		}
		for _, tr := range trs.Items {
			for key := range tr.GetAnnotations() {
				if strings.HasPrefix(key, "chains.tekton.dev/") || strings.HasPrefix(key, "assay.dev/") {
					t.Errorf("TaskRun %s carries %s", tr.GetName(), key)
				}
			}
		}
		for key := range run.GetAnnotations() {
			if strings.HasPrefix(key, "assay.dev/") {
				t.Errorf("a run without trouble carries %s", key)
			}
		}
		// What is stated of files gets another key and another builder.id.
		stated := r.must("assay", "attest", "--sign", "-f", r.object("pipelinerun", "konflux"))
		payload, keyid := open(t, []byte(stated))
		if keyid == atts[0].keyid || builder(decoded(t, payload)) == builder(got) {
			t.Errorf("a stated run is signed as a watched one: key %s, builder %s", keyid, builder(decoded(t, payload)))
		}
		if n := o.metric("watcher_pipelinerun_marked_signed_total"); n != 1 {
			t.Errorf("%g runs counted as marked", n)
		}
	})

	t.Run("default settings", func(t *testing.T) {
		r := with(t)
		r.settings(map[string]string{"builder.id": "https://tekton.example.com/chains/v2"})
		r.observe()
		image := r.build(k, "defaults")
		r.signed(watchtest.PipelineRuns, "defaults")
		trs, err := c.Dynamic.Resource(watchtest.TaskRuns).Namespace(r.ns).List(t.Context(), listAll)
		if err != nil || len(trs.Items) != 3 {
			t.Fatalf("%d TaskRuns, %v", len(trs.Items), err)
		}
		for _, tr := range trs.Items {
			u := r.signed(watchtest.TaskRuns, tr.GetName())
			payload, _ := onObject(t, u, "taskrun")
			if diff := cmp.Diff(r.attested("taskrun", tr.GetName()), decoded(t, payload)); diff != "" {
				t.Errorf("the statement of %s is not that of `assay attest` (-attest +stored):\n%s", tr.GetName(), diff)
			}
		}
		payload, _ := onObject(t, r.get(watchtest.PipelineRuns, "defaults"), "pipelinerun")
		if diff := cmp.Diff(r.attested("pipelinerun", "defaults"), decoded(t, payload)); diff != "" {
			t.Errorf("the statement is not that of `assay attest` (-attest +stored):\n%s", diff)
		}
		// Images are signed beside themselves, statements are not there.
		r.cosign("verify", "--key", r.pub, image)
		if n := len(r.layers(image, ".att")); n != 0 {
			t.Errorf("%d statements in the registry, which settings do not name", n)
		}
	})

	t.Run("SLSA v1.0", func(t *testing.T) {
		r := with(t)
		r.settings(konflux("artifacts.pipelinerun.format", "slsa/v2alpha4"))
		r.observe()
		image := r.build(k, "alpha4")
		r.signed(watchtest.PipelineRuns, "alpha4")
		verified(r, image, "slsaprovenance1")
		atts := r.layers(image, ".att")
		if len(atts) != 1 {
			t.Fatalf("%d statements", len(atts))
		}
		if diff := cmp.Diff(r.attested("pipelinerun", "alpha4"), decoded(t, atts[0].payload)); diff != "" {
			t.Errorf("the statement is not that of `assay attest` (-attest +stored):\n%s", diff)
		}
	})

	t.Run("Sigstore bundles", func(t *testing.T) {
		r := with(t)
		r.settings(konflux("storage.oci.encoding-format", "sigstore-bundle"))
		r.observe()
		image := r.build(k, "bundles")
		r.signed(watchtest.PipelineRuns, "bundles")
		verified(r, image, "slsaprovenance", "--require-log=false")
		if a, s := r.layers(image, ".att"), r.layers(image, ".sig"); len(a)+len(s) != 0 {
			t.Errorf("%d statements and %d signatures under tags; want bundles alone", len(a), len(s))
		}
	})

	t.Run("a log of our own", func(t *testing.T) {
		r := with(t)
		key, vkey := r.log()
		r.settings(konflux("transparency.enabled", "true", "assay.transparency.log.url", "http://"+key, "assay.transparency.log.key", vkey,
			"assay.transparency.log.token-path", filepath.Join(r.dir, "log.token")))
		r.observe()
		image := r.build(k, "logged")
		run := r.signed(watchtest.PipelineRuns, "logged")
		verified(r, image, "slsaprovenance", "--require-log", "--log-key", vkey)
		if got := run.GetAnnotations()["chains.tekton.dev/transparency"]; !strings.Contains(got, key) {
			t.Errorf("chains.tekton.dev/transparency is %q", got)
		}
		// A log that has never seen it proves nothing.
		stranger := strings.TrimSpace(r.must("assay", "log", "init", "--key", filepath.Join(r.dir, "stranger.key"), "--name", "example.com/stranger"))
		if out, _, code := r.tool("assay", "verify", image, "--key", r.pub, "--require-log", "--log-key", stranger); code != 3 {
			t.Errorf("a stranger's log proves it: exit %d\n%s", code, out)
		}
		r.must("assay", "log", "verify", "--log", "http://"+key, "--log-key", vkey)
	})
}

// log starts a transparency log and returns its address and verifier key.
func (r *rig) log() (address, vkey string) {
	r.t.Helper()
	key := filepath.Join(r.dir, "log.key")
	vkey = strings.TrimSpace(r.must("assay", "log", "init", "--key", key, "--name", "example.com/log", "--token-file", filepath.Join(r.dir, "log.token")))
	_, _, address = peer.Address(r.t)
	peer.Start(r.t, address, nil, filepath.Join(r.bin, "assay"), "log", "serve", "--dir", filepath.Join(r.dir, "log"), "--key", key,
		"--listen", address, "--token-file", filepath.Join(r.dir, "log.token"))
	return address, vkey
}

// object is a file with a run as kubectl gets it.
func (r *rig) object(kind, name string) string {
	r.t.Helper()
	p := filepath.Join(r.t.TempDir(), name+".yaml")
	if err := os.WriteFile(p, []byte(r.c.Kubectl(r.t, "-n", r.ns, "get", kind, name, "-o", "yaml")), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return p
}

// onObject is the statement and its envelope in the annotations of a run, as
// Chains' own back end writes them.
func onObject(t *testing.T, u *unstructured.Unstructured, kind string) (statement, envelope []byte) {
	t.Helper()
	get := func(what string) []byte {
		v := u.GetAnnotations()[fmt.Sprintf("chains.tekton.dev/%s-%s-%s", what, kind, u.GetUID())]
		b, err := base64.StdEncoding.DecodeString(v)
		if err != nil || len(b) == 0 {
			t.Fatalf("%s %s: annotation %s is %.100q: %v", kind, u.GetName(), what, v, err)
		}
		return b
	}
	envelope = get("signature")
	statement, _ = open(t, envelope)
	if payload := get("payload"); !bytes.Equal(payload, statement) {
		t.Errorf("%s %s: payload and envelope differ", kind, u.GetName())
	}
	return statement, envelope
}
