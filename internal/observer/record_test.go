package observer

import (
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"assay.dev/assay/internal/channel"
	"assay.dev/assay/internal/registry"
	"assay.dev/assay/internal/testrig"
	"assay.dev/assay/ledger"
	"assay.dev/assay/pipeline/bundle"
)

var update = flag.Bool("update", false, "record testdata/run.json anew by really running a pipeline; needs root")

// recording is a run as it really was: what the planner handed in, what the
// executor's facts were, what the registry remembers and what the bundles hold.
type recording struct {
	State   channel.State
	Ledger  string // the run's file up to its end, before it was signed
	Uploads []registry.Upload
	Bundles map[string]string // ref kind name → object
}

func load(t *testing.T) *recording {
	t.Helper()
	if *update {
		record(t)
	}
	b, err := os.ReadFile("testdata/run.json")
	if err != nil {
		t.Fatal(err)
	}
	var r recording
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

func (r *recording) record(t *testing.T) *ledger.Record {
	t.Helper()
	rec, err := ledger.Decode(r.State.Run, strings.NewReader(r.Ledger))
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// record runs testdata/pipeline.yaml and keeps everything.
func record(t *testing.T) {
	rig := testrig.New(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// The specification passes from planner to launcher and is not kept: listen in.
	bin := filepath.Join(filepath.Dir(rig.Home), "bin")
	must(exec.Command("cp", "-r", rig.Bin, bin).Run())
	must(os.Rename(filepath.Join(bin, "assay-planner"), filepath.Join(bin, "planner")))
	out := filepath.Join(filepath.Dir(rig.Home), "lines")
	must(os.WriteFile(out, nil, 0o666))
	must(os.Chmod(out, 0o666))
	must(os.WriteFile(filepath.Join(bin, "assay-planner"), []byte("#!/bin/sh\n"+bin+"/planner \"$@\" | tee "+out+"\n"), 0o755))
	rig.Bin = bin

	refs := map[string]string{}
	push := func(name string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join("testdata", name+".yaml"))
		must(err)
		text := string(b)
		for n, ref := range refs {
			text = strings.ReplaceAll(text, "BUNDLE/"+n, ref)
		}
		text = strings.ReplaceAll(text, "assay.dev/image/task", rig.Catalog.Images["task"])
		file := rig.Write(name+".yaml", text)
		stdout, stderr, code := rig.Run("bundle", "push", "localhost:5055/catalog/"+name+":1", file)
		if code != 0 {
			t.Fatalf("pushing %s: %s", name, stderr)
		}
		refs[name] = strings.TrimSpace(stdout)
	}
	push("make")
	push("build")
	push("pipeline")
	b, err := os.ReadFile("testdata/pipelinerun.yaml")
	must(err)
	res := rig.RunFile(rig.Write("run.yaml", strings.ReplaceAll(string(b), "BUNDLE/pipeline", refs["pipeline"])))
	if res.Code != 0 || res.Stated == nil || len(res.Stated.Subjects) == 0 {
		t.Fatalf("exit %d, stated %+v: %s", res.Code, res.Stated, res.Stderr)
	}
	lines, err := os.ReadFile(out)
	must(err)
	all := strings.Split(strings.TrimSpace(string(lines)), "\n")
	var last struct{ Specification json.RawMessage }
	must(json.Unmarshal([]byte(all[len(all)-1]), &last))
	r := recording{State: channel.State{Run: res.Run, Object: res.PipelineRun, Children: res.TaskRuns, Spec: last.Specification}, Bundles: map[string]string{}}
	b, err = os.ReadFile(filepath.Join(rig.Home, "ledger/runs", res.Run+".jsonl"))
	must(err)
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, `"type":"signed"`) {
			r.Ledger += line
		}
	}
	r.Uploads, err = registry.ReadUploads(filepath.Join(rig.Home, "registry"), res.Run)
	must(err)
	h, err := registry.OpenReadOnly(filepath.Join(rig.Home, "registry"))
	must(err)
	c := &bundle.Client{Transport: registry.InProcess(h)}
	for name, kind := range map[string]string{"make": "task", "build": "task", "pipeline": "pipeline"} {
		f, err := c.Fetch(t.Context(), refs[name], kind, name)
		must(err)
		r.Bundles[refs[name]+" "+kind+" "+name] = string(f.Object)
	}
	// The specification's digest is over its exact bytes: no indentation.
	b, err = json.Marshal(r)
	must(err)
	must(os.WriteFile("testdata/run.json", append(b, '\n'), 0o644))
}

// bundles serves the recorded ones.
type bundles map[string]string

func (b bundles) Fetch(_ context.Context, ref, kind, name string) (*bundle.Fetched, error) {
	o, ok := b[ref+" "+kind+" "+name]
	if !ok {
		return nil, bundle.ErrNotFound
	}
	repo, d, _ := strings.Cut(ref, "@")
	return &bundle.Fetched{Object: []byte(o), Repository: repo, Digest: d}, nil
}
