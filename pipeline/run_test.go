package pipeline_test

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/pipeline"
	"assay.dev/assay/pipeline/render"
	"assay.dev/assay/plan"
)

func resolve(t testing.TB, file string, opts pipeline.Options) *pipeline.Resolved {
	t.Helper()
	objects, err := pipeline.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if opts.RunID == "" {
		opts.RunID = runID
	}
	r, err := pipeline.Resolve(context.Background(), objects, opts)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Each file below testdata/runs runs against the scripted executor; its golden
// file has the finished objects and, after them, what the executor was told.
func TestRuns(t *testing.T) {
	files, err := filepath.Glob("testdata/runs/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no runs: %v", err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, ".golden.yaml") {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			r := resolve(t, file, pipeline.Options{Workspaces: workspacesFor(file)})
			ex := newScripted()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ex.onHang = func(s *scripted) {
				if strings.Contains(file, "cancel") {
					cancel()
					return
				}
				// Let the run's own timeout pass once it waits for it.
				go func() {
					for !s.clock.HasWaiters() {
						time.Sleep(time.Millisecond)
					}
					s.clock.Step(2 * time.Hour)
					// The run may have been between two timers, and then waits for a
					// moment more: too short a one to show in its times.
					for range 100 {
						if ctx.Err() != nil {
							return
						}
						time.Sleep(5 * time.Millisecond)
						s.clock.Step(2 * time.Millisecond)
					}
				}()
			}
			finished, err := pipeline.Run(ctx, r, ex, pipeline.RunOptions{Clock: ex.clock, Parallel: 2})
			if err != nil {
				t.Fatal(err)
			}
			if want := map[bool]string{true: "succeeded", false: "failed"}[finished.Succeeded]; ex.finish == nil || ex.finish.Outcome != want {
				t.Errorf("the executor was told %+v", ex.finish)
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden.yaml", told(t, finished, ex))
			renderedAgain(t, r, finished, ex)
		})
	}
}

func workspacesFor(file string) []pipeline.Workspace {
	if strings.Contains(file, "workspaces") {
		return []pipeline.Workspace{{Name: "shared", Host: "folder-1"}}
	}
	return nil
}

func told(t *testing.T, finished *pipeline.Finished, ex *scripted) []byte {
	out, err := yaml.Marshal(finished)
	if err != nil {
		t.Fatal(err)
	}
	commands, err := yaml.Marshal(ex.started)
	if err != nil {
		t.Fatal(err)
	}
	return append(append(out, "---\n"...), commands...)
}

// What the observer does: from the specification that opened the run, and the
// finished TaskRun, derive the steps again.
func renderedAgain(t *testing.T, r *pipeline.Resolved, finished *pipeline.Finished, ex *scripted) {
	t.Helper()
	spec, err := render.ParseSpecification(r.Plan())
	if err != nil {
		t.Fatal(err)
	}
	for _, started := range ex.started {
		for _, tr := range finished.TaskRuns {
			if tr.Name != started.Name {
				continue
			}
			tr = tr.DeepCopy()
			tr.Status.RetriesStatus = tr.Status.RetriesStatus[:started.Attempt]
			for _, task := range spec.Tasks {
				if task.Name != started.PipelineTask {
					continue
				}
				got, err := render.Task(task.Input(tr, render.Sources{
					ConfigMap: func(name string) (map[string][]byte, bool) { d, ok := spec.ConfigMaps[name]; return d, ok },
					Host:      func(string) (string, bool) { return "folder-1", true },
					Opaque:    true,
				}))
				if err != nil {
					t.Errorf("%s: rendering again: %v", tr.Name, err)
					continue
				}
				want := started.Steps
				for i := range want {
					for j := range want[i].Env {
						if e := &want[i].Env[j]; e.Secret {
							e.Value = "«secret:" + e.Name + "»"
						}
					}
				}
				if d := cmp.Diff(want, got.Steps); d != "" {
					t.Errorf("%s: rendered again it differs (-sent +again)\n%s", tr.Name, d)
				}
			}
		}
	}
}

// The same input makes the same specification, byte by byte.
func TestSpecificationIsCanonical(t *testing.T) {
	one := resolve(t, "testdata/runs/pipeline.yaml", pipeline.Options{}).Plan()
	two := resolve(t, "testdata/runs/pipeline.yaml", pipeline.Options{}).Plan()
	if string(one.Spec) != string(two.Spec) {
		t.Error("two specifications of one run differ")
	}
	var any map[string]any
	if err := json.Unmarshal(one.Spec, &any); err != nil {
		t.Error(err)
	}
	if strings.Contains(string(one.Spec), "hush") {
		t.Error("a secret's value is in the specification")
	}
}

// An executor that breaks the protocol or goes away is an error, never a
// finished run.
func TestLostExecutor(t *testing.T) {
	for name, events := range map[string][]plan.Event{
		"gone before it answers":  nil,
		"another run":             {{Ready: &plan.Ready{Run: "other"}}},
		"an error":                {{Ready: &plan.Ready{Run: runID}}, {Error: "disk full"}},
		"gone midway":             {{Ready: &plan.Ready{Run: runID}}},
		"a task nobody started":   {{Ready: &plan.Ready{Run: runID}}, {Done: &plan.Done{Task: "other"}}},
		"an attempt of the past":  {{Ready: &plan.Ready{Run: runID}}, {Done: &plan.Done{Task: "bare", Attempt: 1}}},
		"a step that is not":      {{Ready: &plan.Ready{Run: runID}}, {Step: &plan.StepState{Task: "bare", Name: "other"}}},
		"success without steps":   {{Ready: &plan.Ready{Run: runID}}, {Done: &plan.Done{Task: "bare"}}},
		"closed before the end":   {{Ready: &plan.Ready{Run: runID}}, {Closed: &plan.Closed{}}},
		"ready a second time":     {{Ready: &plan.Ready{Run: runID}}, {Ready: &plan.Ready{Run: runID}}},
		"an event without fields": {{Ready: &plan.Ready{Run: runID}}, {}},
	} {
		ex := silent{events: make(chan plan.Event, len(events))}
		for _, e := range events {
			ex.events <- e
		}
		close(ex.events)
		f, err := pipeline.Run(context.Background(), resolve(t, "testdata/runs/taskrun.yaml", pipeline.Options{}), ex, pipeline.RunOptions{})
		if !errors.Is(err, pipeline.ErrLost) || f != nil {
			t.Errorf("%s: %v, %v", name, f, err)
		}
	}
}

// silent says what it was given and does nothing.
type silent struct{ events chan plan.Event }

func (s silent) Send(plan.Command) error   { return nil }
func (s silent) Events() <-chan plan.Event { return s.events }
