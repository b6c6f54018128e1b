// Package sandbox is the contract for running one task's steps in isolation.
//
// A Driver opens a Space per task attempt: its own network namespace, a bounded
// file system for everything the task writes, and the standard folders. Steps
// run in the space one after the other, each in its own root (an overlay of
// its image's layers), process, ipc and user namespace. Seal kills whatever
// still lives and measures; only then may results and outputs be read. Close
// removes everything, mounts included.
//
//	Open ─▶ Run ─▶ Run ─▶ … ─▶ Seal ─▶ read Dir() ─▶ Close
//
// Every implementation passes the suite in sandboxtest.
package sandbox

import (
	"context"
	"io"
	"time"

	"assay.dev/assay/observe"
)

// Driver makes spaces. It is safe for concurrent use.
type Driver interface {
	// Name is the runtime's: runc, runsc.
	Name() string
	// Host says what this driver enforces on this machine.
	Host() observe.Host
	// Open prepares a space. The caller must Close it.
	Open(ctx context.Context, s SpaceSpec) (Space, error)
}

// SpaceSpec describes a task attempt's space.
type SpaceSpec struct {
	ID         string // unique on this executor; letters, digits, - and .
	Network    string // none, registry, open
	WriteBytes int64  // bound on everything the task writes; 0: the driver's default
	Volumes    []Volume
	// Forward lists what is reachable on the task's own loopback on purpose:
	// port → how to dial it. Not used with network none.
	Forward []Forward
	Limits  observe.Limits
}

// Forward is one listener on the loopback of the task's network namespace.
type Forward struct {
	Port int
	Name string // as recorded: registry, localhost:8080
	Dial func(context.Context) (io.ReadWriteCloser, error)
}

// Volume is a folder that steps mount.
type Volume struct {
	Name string
	// Host is an existing folder to bind; empty: a fresh folder in the space.
	// What a step writes there is not bounded by WriteBytes.
	Host     string
	ReadOnly bool
}

// Space is one task attempt. Run is called by one goroutine at a time.
type Space interface {
	// Dir is the path, in the executor's view, of a volume's folder. The
	// volumes "results", "steps", "scripts", "home" and "workspace" always
	// exist; the last is mounted at /workspace, the others below /tekton.
	Dir(volume string) string
	// Chown gives a path below Dir to the steps' root user, as files that the
	// executor writes for steps need.
	Chown(path string) error
	// Interfaces lists the network namespace's interfaces that are not
	// loopback or that have an address beyond 127.0.0.0/8 and ::1.
	Interfaces() ([]string, error)
	// Run runs one step to its end. An error means the step could not be run
	// (or killed), a *StartError where that is the step's own fault; a step that
	// ran and failed is a Result with its exit code. When ctx ends the step is
	// killed, and the Result's Killed is set. When Run returns, no process that
	// the step started lives.
	Run(ctx context.Context, s StepSpec, stdout, stderr io.Writer) (*Result, error)
	// Seal kills all processes of the space and waits for them, then closes
	// the network. After it, Run fails and nothing changes below Dir but by the
	// caller. It waits for a step that runs: end that step's context first.
	Seal(ctx context.Context) (*Sealed, error)
	// Close removes everything. It implies Seal and may be called twice.
	Close() error
}

// StartError says that a step's command could not be started: it is not in the
// image, not executable, or its working folder cannot be entered. Kubernetes
// reports such a container as StartError with exit code 128.
type StartError struct {
	Step   string
	Reason string // the runtime's words
}

func (e *StartError) Error() string {
	return "starting step " + e.Step + ": " + e.Reason
}

// StepSpec is one step with its image ready on this machine.
type StepSpec struct {
	Name string
	// Layers are unpacked layer folders, lowest first, owned by the steps' ids.
	Layers       []string
	Argv         []string
	Env          []string // NAME=value; see Result.Env
	WorkingDir   string   // default /
	UID, GID     uint32   // inside the sandbox
	Mounts       []Mount
	ReadOnlyRoot bool
	MemoryBytes  int64
	// Hermetic asks for what a hermetic step needs from a driver: only unix and
	// inet sockets. A driver may enforce that for every step.
	Hermetic bool
}

// Mount puts a volume, or a folder below it, into a step.
type Mount struct {
	Volume   string
	SubPath  string // below the volume; resolved without following links out of it
	Path     string // absolute, in the step
	ReadOnly bool
}

// Result is what one step did.
type Result struct {
	Started, Finished time.Time
	ExitCode          int
	Killed            bool // by ctx
	OOMKilled         bool
	// CPU and MaxRSS are what the kernel accounts to the runtime's process and
	// all that it waited for: the step's processes, and the runtime's own start,
	// some 20 ms and 30 MB. MaxRSS is the largest single process, in bytes.
	CPU    time.Duration
	MaxRSS int64
	Argv   []string
	// Env is StepSpec.Env and what the driver added where the step did not say:
	// PATH, and in an open network proxies and the file of certificates.
	Env          []string
	Capabilities []string
	Seccomp      string   // sha256:… of the profile in force
	Mounts       []string // destination (ro|rw)
}

// Sealed is what was measured when the last process was dead.
type Sealed struct {
	Interfaces []string
	Network    []observe.Connection
	Dropped    int
}
