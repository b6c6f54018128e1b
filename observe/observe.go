// Package observe says what happened in a run: the facts an executor sends to
// the observer while it runs, and the observation that the observer makes of
// them once it is over. It only describes; measuring is observe/measure's, and
// only the executor links that.
//
//	executor ──facts──▶ ledger ──▶ Observation ──▶ statement (signed)
//
// docs/observation.md explains every field, how it is measured and what it
// cannot know.
package observe

import (
	"encoding/json"
	"time"
)

// FactType names what a fact is about and so the type of its body.
type FactType string

const (
	RunOpened    FactType = "run.opened"    // RunOpened
	TaskStarted  FactType = "task.started"  // TaskStarted
	StepFinished FactType = "step.finished" // StepFinished
	TaskFinished FactType = "task.finished" // TaskFinished
	SourceSeen   FactType = "source.seen"   // SourceRef
	RunClosed    FactType = "run.closed"    // RunClosed
)

// Fact is one entry as the executor sends it. The observer chains it: see
// package ledger.
type Fact struct {
	Type FactType        `json:"type"`
	Body json.RawMessage `json:"body"`
}

// Attempt names one attempt of one TaskRun; every task fact carries it.
type Attempt struct {
	Task    string `json:"task"` // TaskRun name
	Attempt int    `json:"attempt"`
}

// RunOpenedBody is the first fact of a run.
type RunOpenedBody struct {
	Run        string `json:"run"`
	Nonce      string `json:"nonce"`
	SpecDigest string `json:"specDigest"` // sha256:… of plan.Run.Spec
	Executor   Host   `json:"executor"`
}

// Host describes the executor and what its machine lets it enforce.
type Host struct {
	Version       string `json:"version"`
	Digest        string `json:"digest"`        // sha256:… of the executor's own binary
	Runtime       string `json:"runtime"`       // runc, runsc …
	RuntimeDigest string `json:"runtimeDigest"` // sha256:… of its binary
	Kernel        string `json:"kernel"`
	Arch          string `json:"arch"`
	Cgroups       string `json:"cgroups"` // v1, hybrid, v2, none
	Limits        Limits `json:"limits"`
	KeySeparation string `json:"keySeparation"` // api.KeySeparation, as the observer decided it
}

// Limits are the bounds in force; 0 means none and is said so.
type Limits struct {
	Pids        int64 `json:"pids"`
	MemoryBytes int64 `json:"memoryBytes"`
	WriteBytes  int64 `json:"writeBytes"` // upper layers, volumes and results of one task
	ResultBytes int64 `json:"resultBytes"`
}

// TaskStartedBody is sent before a task attempt's first step.
type TaskStartedBody struct {
	Attempt
	PipelineTask string    `json:"pipelineTask,omitempty"`
	TaskName     string    `json:"taskName,omitempty"`
	Bundle       string    `json:"bundle,omitempty"` // claimed by the planner
	Started      time.Time `json:"started"`
	Network      string    `json:"network"`    // none, registry, open
	Interfaces   []string  `json:"interfaces"` // in the task's network namespace, before the first step
	Inputs       []Tree    `json:"inputs,omitempty"`
	Volumes      []Volume  `json:"volumes,omitempty"`
}

// Tree is an artifact going in or out of a task.
type Tree struct {
	Name string `json:"name"` // parameter or result
	Kind string `json:"kind"` // plan.OutputKind; inputs are "artifact"
	Path string `json:"path"` // as steps see it
	// URI is oci:<repo>@sha256:<blob> (artifacts), <repo>@sha256:… (images).
	URI string `json:"uri,omitempty"`
	// Digest is the assay-tree/v1 digest of the unpacked tree.
	Digest string `json:"digest,omitempty"`
	// GitTree is the git tree id (sha1 hex) of the same tree, for kind source.
	GitTree string `json:"gitTree,omitempty"`
	// Commit is the raw commit object, for kind commit; its id is CommitID.
	Commit   []byte `json:"commit,omitempty"`
	CommitID string `json:"commitId,omitempty"`
	// Files and Bytes size the tree.
	Files int64 `json:"files,omitempty"`
	Bytes int64 `json:"bytes,omitempty"`
	// Manifests are the digests that the export of an image put into the
	// registry, the image itself first, then referrers such as its SBOM.
	Manifests []string `json:"manifests,omitempty"`
}

// Volume is a folder steps could write or read.
type Volume struct {
	Name      string `json:"name"`
	Kind      string `json:"kind"` // plan.VolumeKind
	Workspace string `json:"workspace,omitempty"`
	ReadOnly  bool   `json:"readOnly,omitempty"`
	// Shared: something outside this task attempt can write it while it runs.
	Shared bool `json:"shared,omitempty"`
}

// StepFinishedBody is what one step really was.
type StepFinishedBody struct {
	Attempt
	Step         string        `json:"step"`
	Image        string        `json:"image"`            // reference asked for
	ImageDigest  string        `json:"imageDigest"`      // manifest digest of the platform that ran
	Argv         []string      `json:"argv"`             // as executed, secrets replaced by «secret:NAME»
	Script       string        `json:"script,omitempty"` // sha256:… of the script file
	Env          []EnvVar      `json:"env"`
	User         string        `json:"user"` // uid:gid inside the sandbox
	Capabilities []string      `json:"capabilities"`
	Seccomp      string        `json:"seccomp"` // sha256:… of the filter profile
	Mounts       []string      `json:"mounts"`  // destination (ro|rw)
	Started      time.Time     `json:"started"`
	Finished     time.Time     `json:"finished"`
	ExitCode     int           `json:"exitCode"`
	Reason       string        `json:"reason,omitempty"`
	CPU          time.Duration `json:"cpu"`
	MaxRSS       int64         `json:"maxRss"` // bytes
	Results      []Value       `json:"results,omitempty"`
}

// EnvVar is a variable; Digest is the sha256 of its value, left out for secrets.
type EnvVar struct {
	Name   string `json:"name"`
	Digest string `json:"digest,omitempty"`
}

// Value is a result as read from its file.
type Value struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Connection is one entry of the network record.
type Connection struct {
	Protocol string `json:"protocol"` // tcp, udp, dns
	To       string `json:"to"`       // host:port or, for dns, the name asked
	Result   string `json:"result"`   // ok, refused, denied, error
	Count    int    `json:"count"`
	Sent     int64  `json:"sent,omitempty"`
	Received int64  `json:"received,omitempty"`
}

// TaskFinishedBody is sent when nothing of the task lives any more and its
// outputs are exported.
type TaskFinishedBody struct {
	Attempt
	Finished   time.Time    `json:"finished"`
	Reason     string       `json:"reason,omitempty"` // as plan.Done
	Interfaces []string     `json:"interfaces"`       // in its network namespace, after the last step
	Network    []Connection `json:"networkRecord,omitempty"`
	Dropped    int          `json:"networkDropped,omitempty"` // connections beyond the record's bound
	Outputs    []Tree       `json:"outputs,omitempty"`
	Results    []Value      `json:"results,omitempty"`
	// Token says that the task held a registry token.
	Token bool `json:"token"`
	// Hermetic is concluded from the facts above; Reasons say what speaks
	// against it, none when enforced.
	Hermetic Hermetic `json:"hermetic"`
}

// Hermetic is a conclusion, never a parameter.
type Hermetic struct {
	Enforced bool     `json:"enforced"`
	Reasons  []string `json:"reasons,omitempty"`
}

// SourceRefBody says whether the executor itself found a commit in a
// repository over a connection of its own.
type SourceRefBody struct {
	Attempt
	Repository string `json:"repository"`
	CommitID   string `json:"commitId"`
	Ref        string `json:"ref,omitempty"` // a ref that points at it
	Found      bool   `json:"found"`
	Reason     string `json:"reason,omitempty"`
}

// RunClosedBody is the last fact of a run.
type RunClosedBody struct {
	Outcome string    `json:"outcome"` // succeeded, failed
	Reason  string    `json:"reason,omitempty"`
	Closed  time.Time `json:"closed"`
}

// Knowledge says how something is known.
type Knowledge string

const (
	Observed Knowledge = "observed" // we did it or measured it
	Checked  Knowledge = "checked"  // claimed, then verified against bytes we fetched ourselves
	Claimed  Knowledge = "claimed"  // claimed and not verifiable
	Failed   Knowledge = "failed"   // claimed and found untrue
)

// Observation is the predicate api.PredicateObservation. It is published once
// per run and names the provenance payload that it belongs to.
type Observation struct {
	Run        RunRecord    `json:"run"`
	Provenance []Payload    `json:"provenance"` // digests of the payloads signed for this run
	Source     *Source      `json:"source,omitempty"`
	Tasks      []TaskRecord `json:"tasks"`
	Claims     []Claim      `json:"claims"`
	Builder    string       `json:"builder"` // builder.id of the provenance
}

// Payload names a signed statement.
type Payload struct {
	PredicateType string `json:"predicateType"`
	Digest        string `json:"digest"` // sha256:… of the DSSE payload
}

// RunRecord is the run as the ledger has it.
type RunRecord struct {
	ID         string    `json:"id"`
	Name       string    `json:"name"` // of the PipelineRun or TaskRun
	SpecDigest string    `json:"specDigest"`
	Opened     time.Time `json:"opened"`
	Closed     time.Time `json:"closed"`
	Outcome    string    `json:"outcome"` // succeeded, failed
	Executor   Host      `json:"executor"`
	LedgerHead string    `json:"ledgerHead"` // sha256:… of the last fact
	Pipeline   *Ref      `json:"pipeline,omitempty"`
}

// Ref is where a Task or Pipeline came from.
type Ref struct {
	Name   string    `json:"name,omitempty"`
	Bundle string    `json:"bundle,omitempty"` // repo@sha256:…; empty: written into the run
	Status Knowledge `json:"status"`           // checked: fetched by us and equal to what ran
	Reason string    `json:"reason,omitempty"`
}

// Source is the commit behind the run, as far as it could be checked.
type Source struct {
	Task             string    `json:"task"` // TaskRun that cloned it
	Repository       string    `json:"repository"`
	RepositoryStatus Knowledge `json:"repositoryStatus"` // checked: we found the commit there under Ref
	Ref              string    `json:"ref,omitempty"`
	Commit           string    `json:"commit"`
	CommitStatus     Knowledge `json:"commitStatus"` // checked: commit object hashes to it and its tree is the exported one
	GitTree          string    `json:"gitTree,omitempty"`
	Tree             string    `json:"tree,omitempty"`     // assay-tree/v1 of the exported source
	Artifact         string    `json:"artifact,omitempty"` // its URI
	Reason           string    `json:"reason,omitempty"`
}

// TaskRecord is one task attempt.
type TaskRecord struct {
	TaskRun      string             `json:"taskRun"`
	PipelineTask string             `json:"pipelineTask,omitempty"`
	Attempt      int                `json:"attempt"`
	Ref          Ref                `json:"ref"`
	Started      time.Time          `json:"started"`
	Finished     time.Time          `json:"finished"`
	Outcome      string             `json:"outcome"` // succeeded, or plan.Done.Reason
	Network      string             `json:"network"`
	Connections  []Connection       `json:"networkRecord,omitempty"`
	Hermetic     Hermetic           `json:"hermetic"`
	Token        bool               `json:"token"`
	Params       json.RawMessage    `json:"params,omitempty"` // name → value, as the TaskRun has them
	Inputs       []Tree             `json:"inputs,omitempty"`
	Outputs      []Tree             `json:"outputs,omitempty"`
	Uploads      []string           `json:"uploads,omitempty"` // manifest digests pushed with its token
	Volumes      []Volume           `json:"volumes,omitempty"`
	Steps        []StepFinishedBody `json:"steps"`
	Results      []Value            `json:"results,omitempty"`
}

// Claim is one type hint and what became of it.
type Claim struct {
	TaskRun string    `json:"taskRun,omitempty"` // empty: a result of the pipeline
	Field   string    `json:"field"`             // result name or prefix: IMAGE, IMAGES, CHAINS-GIT …
	Value   string    `json:"value"`             // repo@sha256:…, url@commit
	Status  Knowledge `json:"status"`
	Reason  string    `json:"reason,omitempty"`
}
