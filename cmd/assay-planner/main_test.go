package main

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"assay.dev/assay/pipeline"
	"assay.dev/assay/plan"
)

// The test binary is the planner when it is told so.
func TestMain(m *testing.M) {
	if os.Getenv("ASSAY_TEST_PLANNER") == "1" {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

const taskRun = `apiVersion: tekton.dev/v1
kind: TaskRun
metadata: {name: bare}
spec: {taskSpec: {steps: [{name: s, image: alpine, script: "true"}]}}
`

// planner starts the planner with a job on descriptor 3, as a launcher does,
// and returns the executor's end of its pipes.
func planner(t *testing.T, doc string) (cmd *exec.Cmd, stdout *bufio.Reader, commands *json.Decoder, events io.WriteCloser) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "run.yaml")
	if err := os.WriteFile(file, []byte(doc), 0o644); err != nil {
		t.Fatal(err)
	}
	job, err := json.Marshal(pipeline.Job{RunID: "6f1c7a52-6a0e-4a53-9a38-0a1f3c7d9e11", Files: []string{file}, ExecutorIn: 4, ExecutorOut: 5})
	if err != nil {
		t.Fatal(err)
	}
	pipe := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		return r, w
	}
	jobR, jobW := pipe()
	inR, inW := pipe()
	outR, outW := pipe()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(exe)
	cmd.Env = append(os.Environ(), "ASSAY_TEST_PLANNER=1")
	cmd.ExtraFiles = []*os.File{jobR, inW, outR}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for _, f := range []*os.File{jobR, inW, outR} {
		f.Close()
	}
	if _, err := jobW.Write(job); err != nil {
		t.Fatal(err)
	}
	jobW.Close()
	return cmd, bufio.NewReader(out), json.NewDecoder(inR), outW
}

func next(t *testing.T, commands *json.Decoder) plan.Command {
	t.Helper()
	var c plan.Command
	if err := commands.Decode(&c); err != nil {
		t.Fatal(err)
	}
	return c
}

func say(t *testing.T, events io.Writer, ev plan.Event) {
	t.Helper()
	if err := json.NewEncoder(events).Encode(ev); err != nil {
		t.Fatal(err)
	}
}

func lastLine(t *testing.T, out *bufio.Reader) (l pipeline.Line) {
	t.Helper()
	all, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(all)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &l); err != nil {
		t.Fatalf("%v in %s", err, all)
	}
	return l
}

func TestInterrupt(t *testing.T) {
	cmd, out, commands, events := planner(t, taskRun)
	opened := next(t, commands)
	say(t, events, plan.Event{Ready: &plan.Ready{Run: opened.Run.ID}})
	started := next(t, commands).Start
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	cancel := next(t, commands).Cancel
	if cancel == nil || cancel.Task != started.Name {
		t.Fatalf("after the interrupt came %+v", cancel)
	}
	say(t, events, plan.Event{Done: &plan.Done{Task: started.Name, Started: time.Now(), Finished: time.Now(), Reason: cancel.Reason}})
	if f := next(t, commands).Finish; f == nil || f.Outcome != "failed" || f.Reason != "TaskRunCancelled" {
		t.Errorf("closed with %+v", f)
	}
	say(t, events, plan.Event{Closed: &plan.Closed{Head: "sha256:head"}})
	if l := lastLine(t, out); l.Type != pipeline.LineFinished || l.Finished.Reason != "TaskRunCancelled" || l.Finished.Head != "sha256:head" {
		t.Errorf("last line %+v", l)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("exit: %v", err)
	}
}

func TestExecutorDies(t *testing.T) {
	cmd, out, commands, events := planner(t, taskRun)
	say(t, events, plan.Event{Ready: &plan.Ready{Run: next(t, commands).Run.ID}})
	next(t, commands)
	events.Close()
	if l := lastLine(t, out); l.Type != pipeline.LineError || !strings.Contains(l.Error, "executor lost") {
		t.Errorf("last line %+v", l)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("exit: %v", err)
	}
}

func TestWrongInput(t *testing.T) {
	cmd, out, _, _ := planner(t, "kind: [")
	if l := lastLine(t, out); l.Type != pipeline.LineError || !l.Input || !strings.Contains(l.Error, "run.yaml: document 1") {
		t.Errorf("last line %+v", l)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 2 {
		t.Errorf("exit: %v", err)
	}
}
