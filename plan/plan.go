// Package plan is the language between the planner and the executor: what to
// run, and what came of it. It knows neither Tekton nor containers, so that the
// executor, which is believed, need not link what reads tenants' input.
//
// The planner writes Commands and reads Events, each one JSON value a line, on
// the executor's standard input and output. The executor trusts nothing in a
// Command to be true; it does what the command says inside the sandbox, and
// tells the observer what it did.
//
//	planner                      executor
//	  run   ─────────────────────▶  opens the run at the observer
//	        ◀───────────────────── ready
//	  start ─────────────────────▶  task attempt (many at once)
//	        ◀───────────────────── step, log, done
//	  cancel ────────────────────▶
//	  finish ────────────────────▶  closes the run, exits
//	        ◀───────────────────── closed
package plan

import (
	"encoding/json"
	"time"
)

// Command is one request of the planner; exactly one field is set.
type Command struct {
	Run    *Run    `json:"run,omitempty"`
	Start  *Task   `json:"start,omitempty"`
	Cancel *Cancel `json:"cancel,omitempty"`
	Finish *Finish `json:"finish,omitempty"`
}

// Run opens the run. It comes first and once.
type Run struct {
	// ID is the PipelineRun's (or bare TaskRun's) uid.
	ID string `json:"id"`
	// Spec is the resolved specification as canonical JSON: the run, the
	// pipeline and every task with their references' digests. Its SHA-256 opens
	// the run at the observer.
	Spec json.RawMessage `json:"spec"`
}

// Network is what a task's steps can reach.
type Network string

const (
	NetworkNone     Network = "none"     // loopback only
	NetworkRegistry Network = "registry" // loopback, and the registry forwarded on it
	NetworkOpen     Network = "open"     // the world, by a network stack of the executor's
)

// Task is one attempt of one TaskRun, with nothing left to resolve or
// substitute but $(steps.<name>.results.<result>), which only exist once it runs.
type Task struct {
	Name         string        `json:"name"`                   // TaskRun name, unique in the run
	PipelineTask string        `json:"pipelineTask,omitempty"` // name in the pipeline; empty for a bare TaskRun
	Task         string        `json:"task,omitempty"`         // name of the Task definition
	Bundle       string        `json:"bundle,omitempty"`       // repo@digest it came from; a claim, the observer checks it
	Attempt      int           `json:"attempt"`                // 0 first, +1 a retry
	Steps        []Step        `json:"steps"`
	Volumes      []Volume      `json:"volumes,omitempty"`
	Inputs       []Input       `json:"inputs,omitempty"`
	Outputs      []Output      `json:"outputs,omitempty"`
	Results      []string      `json:"results,omitempty"` // declared names; others are not read
	Network      Network       `json:"network"`
	Timeout      time.Duration `json:"timeout,omitempty"` // 0: none
}

// Step is one container.
type Step struct {
	Name         string        `json:"name"` // as status.steps[].name; "unnamed-0" and so on
	Image        string        `json:"image"`
	Command      []string      `json:"command,omitempty"` // empty: the image's entrypoint
	Args         []string      `json:"args,omitempty"`
	Script       string        `json:"script,omitempty"` // instead of Command; run as a file, Args follow it
	Env          []Env         `json:"env,omitempty"`
	WorkingDir   string        `json:"workingDir,omitempty"`
	Mounts       []Mount       `json:"mounts,omitempty"`
	User         *int64        `json:"user,omitempty"`    // securityContext.runAsUser
	Group        *int64        `json:"group,omitempty"`   // securityContext.runAsGroup
	Results      []string      `json:"results,omitempty"` // declared by its StepAction
	Timeout      time.Duration `json:"timeout,omitempty"`
	Continue     bool          `json:"continue,omitempty"` // onError: continue
	ReadOnlyRoot bool          `json:"readOnlyRoot,omitempty"`
	Memory       int64         `json:"memory,omitempty"` // bytes; 0: the executor's default
}

// Env is one variable. Secret values are redacted from every record.
type Env struct {
	Name   string `json:"name"`
	Value  string `json:"value"`
	Secret bool   `json:"secret,omitempty"`
}

// VolumeKind says where a volume's files come from.
type VolumeKind string

const (
	VolumeEmpty VolumeKind = "empty" // fresh, gone with the task
	VolumeHost  VolumeKind = "host"  // a folder the user gave to `assay run`
	VolumeFiles VolumeKind = "files" // from a ConfigMap or Secret, read-only
)

// Volume is a folder that several steps of one task may mount.
type Volume struct {
	Name     string            `json:"name"`
	Kind     VolumeKind        `json:"kind"`
	Host     string            `json:"host,omitempty"`  // kind host: the name the launcher gave the folder
	Files    map[string][]byte `json:"files,omitempty"` // kind files: path → content
	Secret   bool              `json:"secret,omitempty"`
	Memory   bool              `json:"memory,omitempty"`
	ReadOnly bool              `json:"readOnly,omitempty"`
	// Workspace is the name of the workspace that it backs, if any.
	Workspace string `json:"workspace,omitempty"`
}

// Mount puts a volume into one step.
type Mount struct {
	Volume   string `json:"volume"`
	Path     string `json:"path"`
	SubPath  string `json:"subPath,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Input is an artifact to unpack before the first step.
type Input struct {
	Param string `json:"param"`
	URI   string `json:"uri"`  // oci:<repo>@sha256:<blob>; empty: nothing
	Path  string `json:"path"` // absolute, as steps see it
}

// OutputKind says how an output is exported; see api.AnnotationOutputs.
type OutputKind string

const (
	OutputArtifact OutputKind = "artifact"
	OutputSource   OutputKind = "source"
	OutputCommit   OutputKind = "commit"
	OutputImage    OutputKind = "image"
)

// Output is a folder (or file) to export once the task is dead.
type Output struct {
	Kind OutputKind `json:"kind"`
	Name string     `json:"name"` // result name or prefix
	Path string     `json:"path"`
}

// Cancel stops a task; its name empty: every task.
type Cancel struct {
	Task   string `json:"task,omitempty"`
	Reason string `json:"reason"` // TaskRunCancelled, TaskRunTimeout …
}

// Finish closes the run.
type Finish struct {
	Outcome string `json:"outcome"` // succeeded or failed
	Reason  string `json:"reason,omitempty"`
}

// Event is one message of the executor; exactly one field is set.
type Event struct {
	Ready  *Ready     `json:"ready,omitempty"`
	Step   *StepState `json:"step,omitempty"`
	Log    *Log       `json:"log,omitempty"`
	Done   *Done      `json:"done,omitempty"`
	Closed *Closed    `json:"closed,omitempty"`
	// Error is a failure of the executor itself; the run is lost.
	Error string `json:"error,omitempty"`
}

// Ready says that the run is open at the observer.
type Ready struct {
	Run string `json:"run"`
	// KeySeparation as recorded.
	KeySeparation string `json:"keySeparation"`
}

// StepState is a change of one step.
type StepState struct {
	Task     string    `json:"task"`
	Attempt  int       `json:"attempt"`
	Name     string    `json:"name"`
	Image    string    `json:"image,omitempty"` // reference with digest as run: repo@sha256:…
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"` // zero while it runs
	ExitCode int       `json:"exitCode"`
	Reason   string    `json:"reason,omitempty"` // Completed, Error, OOMKilled, TimeoutExceeded, Skipped …
	Results  []Result  `json:"results,omitempty"`
}

// Result is a file below /tekton/results (or a step's results), as read after
// the task's last process was dead. The planner interprets it by its type.
type Result struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Log is output of a step, in pieces as it comes.
type Log struct {
	Task string `json:"task"`
	Step string `json:"step"`
	Data []byte `json:"data"`
}

// Done ends a task attempt.
type Done struct {
	Task     string    `json:"task"`
	Attempt  int       `json:"attempt"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	// Reason is empty on success, else a Tekton reason: Failed, TaskRunCancelled,
	// TaskRunTimeout, TaskRunImagePullFailed, TaskRunResultLargerThanAllowedLimit …
	Reason  string   `json:"reason,omitempty"`
	Message string   `json:"message,omitempty"`
	Results []Result `json:"results,omitempty"`
}

// Closed is the last event.
type Closed struct {
	Head string `json:"head"` // digest of the ledger's last fact
}
