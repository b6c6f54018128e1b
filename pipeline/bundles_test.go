package pipeline_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	tektonbundle "github.com/tektoncd/pipeline/pkg/resolution/resolver/bundle"

	"assay.dev/assay/api"
	"assay.dev/assay/pipeline"
	"assay.dev/assay/pipeline/bundle"
	"assay.dev/assay/plan"
)

func handler() http.Handler { return registry.New(registry.Logger(log.New(io.Discard, "", 0))) }

// embeddedRegistry answers for api.DefaultRegistry on a Unix socket.
func embeddedRegistry(t *testing.T) (socket string) {
	t.Helper()
	// Not t.TempDir: a socket's path may have no more than 107 bytes.
	dir, err := os.MkdirTemp("", "r")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: handler()}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
	return socket
}

func push(t *testing.T, c *bundle.Client, ref string, docs ...string) string {
	t.Helper()
	var objects []*bundle.Object
	for _, d := range docs {
		o, err := bundle.Parse([]byte(d))
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	digest, err := c.Push(context.Background(), ref, objects...)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func bundleParams(bundle, kind, name string) string {
	return "{resolver: bundles, params: [{name: bundle, value: '" + bundle + "'}, {name: kind, value: " + kind + "}, {name: name, value: " + name + "}]}"
}

const bundledAction = "apiVersion: tekton.dev/v1beta1\nkind: StepAction\nmetadata: {name: act}\nspec: {image: alpine, script: 'true'}\n"

func bundledTask(action string) string {
	return "apiVersion: tekton.dev/v1\nkind: Task\nmetadata: {name: t, labels: {of: task}, annotations: {assay.dev/network: none}}\nspec:\n  params: [{name: p, default: d}]\n  steps: [{name: s, ref: " + action + "}]\n"
}

// A pipeline, its tasks and their StepActions, all by bundle from the embedded
// registry: what comes from a tag is pinned to the digest that was read.
func TestBundles(t *testing.T) {
	socket := embeddedRegistry(t)
	c := &bundle.Client{Transport: pipeline.EmbeddedTransport(socket, http.DefaultTransport)}
	repo := api.DefaultRegistry + "/" + api.CatalogPrefix + "tasks"
	actions := push(t, c, repo+":actions", bundledAction)
	taskDigest := push(t, c, repo+":1", bundledTask(bundleParams(repo+"@"+actions, "stepaction", "act")))
	pipelineDigest := push(t, c, repo+":pipeline", "apiVersion: tekton.dev/v1\nkind: Pipeline\nmetadata: {name: line}\nspec:\n  params: [{name: b}]\n  tasks:\n  - {name: a, taskRef: "+bundleParams("$(params.b)", "task", "t")+"}\n")

	file := filepath.Join(t.TempDir(), "run.yaml")
	if err := os.WriteFile(file, []byte(run("  pipelineRef: "+bundleParams(repo+":pipeline@"+pipelineDigest, "pipeline", "line")+"\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	job, err := pipeline.ReadJob(strings.NewReader(`{"runId":"` + runID + `","files":["` + file + `"],"params":["b=` + repo + `:1"],"registrySocket":"` + socket + `","executorIn":4,"executorOut":5}`))
	if err != nil {
		t.Fatal(err)
	}
	ex := newScripted()
	var out bytes.Buffer
	ok, err := job.Do(context.Background(), &out, func(in, out int) (pipeline.Executor, error) { return ex, nil })
	if err != nil || !ok {
		t.Fatalf("%v %v\n%s", ok, err, out.String())
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var types []string
	var last pipeline.Line
	for _, l := range lines {
		last = pipeline.Line{}
		if err := json.Unmarshal([]byte(l), &last); err != nil {
			t.Fatal(err)
		}
		types = append(types, string(last.Type))
	}
	if d := cmp.Diff([]string{"run", "task", "task", "log", "step", "task", "finished"}, types); d != "" {
		t.Errorf("lines (-want +got)\n%s", d)
	}
	source := func(digest, name string) *v1.RefSource {
		return &v1.RefSource{URI: repo, Digest: map[string]string{"sha256": strings.TrimPrefix(digest, "sha256:")}, EntryPoint: name}
	}
	tr := last.Finished.TaskRuns[0]
	for what, pair := range map[string][2]*v1.RefSource{
		"pipeline": {source(pipelineDigest, "line"), last.Finished.PipelineRun.Status.Provenance.RefSource},
		"task":     {source(taskDigest, "t"), tr.Status.Provenance.RefSource},
		"step":     {source(actions, "act"), tr.Status.Steps[0].Provenance.RefSource},
	} {
		if d := cmp.Diff(pair[0], pair[1]); d != "" {
			t.Errorf("refSource of the %s (-want +got)\n%s", what, d)
		}
	}
	started := ex.started[0]
	if want := repo + "@" + taskDigest; started.Bundle != want || started.Task != "t" || started.Network != plan.NetworkNone {
		t.Errorf("started %+v, want bundle %s", started, want)
	}
	if tr.Labels["tekton.dev/task"] != "t" || tr.Labels["of"] != "task" || tr.Labels["tekton.dev/pipeline"] != "line" {
		t.Errorf("labels %v", tr.Labels)
	}
}

// A bundle is held to the same rules as a file.
func TestBundleRefused(t *testing.T) {
	s := httptest.NewServer(handler())
	defer s.Close()
	repo := strings.TrimPrefix(s.URL, "http://") + "/tasks"
	c := &bundle.Client{}
	push(t, c, repo+":bad", strings.Replace(aTask, "steps:", "sidecars: [{name: x, image: z}]\n  steps:", 1))
	for name, tc := range map[string][2]string{
		"what is in it": {bundleParams(repo+":bad", "task", "t"), "Task t: spec.sidecars: field sidecars is not supported"},
		"another name":  {bundleParams(repo+":bad", "task", "u"), "not in the bundle"},
		"another kind":  {bundleParams(repo+":bad", "pipeline", "t"), `kind of the bundles resolver is "pipeline"`},
		"no such tag":   {bundleParams(repo+":none", "task", "t"), "fetching bundle"},
		"late name":     {"{resolver: bundles, params: [{name: bundle, value: x}, {name: name, value: $(tasks.a.results.r)}]}", "known before the run starts"},
	} {
		o := pipeline.NewObjects()
		if err := o.Add("f", []byte(tasks("    - {name: a, taskSpec: {results: [{name: r}], steps: [{name: s, image: i}]}}\n    - {name: b, taskRef: "+tc[0]+"}\n"))); err != nil {
			t.Fatal(err)
		}
		_, err := pipeline.Resolve(context.Background(), o, pipeline.Options{RunID: runID, Bundles: c})
		if err == nil || !strings.Contains(err.Error(), tc[1]) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Tekton's own resolver reads what we push, and finds the same.
func TestBundleAsTektonReadsIt(t *testing.T) {
	s := httptest.NewServer(handler())
	defer s.Close()
	repo := strings.TrimPrefix(s.URL, "http://") + "/tasks"
	c := &bundle.Client{}
	digest := push(t, c, repo+":1", aTask, bundledAction)
	for kind, name := range map[string]string{"task": "t", "stepaction": "act"} {
		theirs, err := tektonbundle.GetEntry(context.Background(), authn.DefaultKeychain, tektonbundle.RequestOptions{Bundle: repo + ":1", Kind: kind, EntryName: name})
		if err != nil {
			t.Fatal(err)
		}
		ours, err := c.Fetch(context.Background(), repo+":1", kind, name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(theirs.Data(), ours.Object) {
			t.Errorf("%s: they read %q, we %q", kind, theirs.Data(), ours.Object)
		}
		want := &v1.RefSource{URI: ours.Repository, Digest: map[string]string{"sha256": strings.TrimPrefix(digest, "sha256:")}, EntryPoint: name}
		if d := cmp.Diff(want, theirs.RefSource()); d != "" {
			t.Error(d)
		}
	}
}

func TestReadJobRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"empty":         "",
		"no run id":     `{"files":["x"]}`,
		"no file":       `{"runId":"x"}`,
		"unknown field": `{"runId":"x","files":["x"],"file":"y"}`,
		"half a pair":   `{"runId":"x","files":["x"],"executorIn":4}`,
		"two jobs":      `{"runId":"x","files":["x"]}{}`,
		"too long":      `{"runId":"` + strings.Repeat("x", 5<<20) + `"}`,
	} {
		if _, err := pipeline.ReadJob(strings.NewReader(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A job that cannot be done says so in its last line.
func TestJobError(t *testing.T) {
	job, err := pipeline.ReadJob(strings.NewReader(`{"runId":"` + runID + `","files":["/nowhere.yaml"]}`))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if ok, err := job.Do(context.Background(), &out, nil); ok || err == nil {
		t.Errorf("%v %v", ok, err)
	}
	var l pipeline.Line
	if err := json.Unmarshal(out.Bytes(), &l); err != nil || l.Type != pipeline.LineError || !strings.Contains(l.Error, "/nowhere.yaml") {
		t.Errorf("%v %+v", err, l)
	}
}

func TestStream(t *testing.T) {
	fromExecutor, executorOut := io.Pipe()
	executorIn, toExecutor := io.Pipe()
	s := pipeline.NewStream(fromExecutor, toExecutor)
	go func() {
		var c plan.Command
		if err := json.NewDecoder(executorIn).Decode(&c); err != nil || c.Finish == nil {
			t.Errorf("the executor read %+v, %v", c, err)
		}
		_, _ = io.WriteString(executorOut, `{"log":{"task":"t","step":"s","data":"aGk="}}`+"\n\n"+`{"closed":{"head":"h"},"error":"both"}`+"\n"+`{"closed":{"head":"h"}}`+"\n")
		executorOut.Close()
	}()
	if err := s.Send(plan.Command{Finish: &plan.Finish{Outcome: "failed"}}); err != nil {
		t.Fatal(err)
	}
	ev := <-s.Events()
	if ev.Log == nil || string(ev.Log.Data) != "hi" {
		t.Errorf("first %+v", ev)
	}
	if ev = <-s.Events(); !strings.Contains(ev.Error, "2 fields") {
		t.Errorf("second %+v", ev)
	}
	if ev, ok := <-s.Events(); ok {
		t.Errorf("after the bad line came %+v", ev)
	}
	executorIn.Close()
	if err := s.Send(plan.Command{}); err == nil {
		t.Error("sent to nobody")
	}
}

func FuzzStream(f *testing.F) {
	f.Add([]byte(`{"ready":{"run":"x"}}` + "\n" + `{"done":{"task":"t","attempt":0,"started":"2025-01-01T00:00:00Z"}}`))
	f.Add([]byte("{}\n"))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := pipeline.NewStream(bytes.NewReader(data), io.Discard)
		for {
			select {
			case _, ok := <-s.Events():
				if !ok {
					return
				}
			case <-time.After(time.Minute):
				t.Fatal("it never ends")
			}
		}
	})
}
