package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"

	"assay.dev/assay/api"
	"assay.dev/assay/pipeline/bundle"
)

// maxJobBytes bounds a job.
const maxJobBytes = 4 << 20

// Job is what a launcher asks assay-planner to do.
type Job struct {
	// RunID is the run's id, a UUID; required: the launcher has named folders
	// and tokens by it.
	RunID string `json:"runId"`
	// Files are files and folders to load.
	Files []string `json:"files"`
	// Run picks one of several runs, by name.
	Run string `json:"run,omitempty"`
	// Params are NAME=VALUE.
	Params []string `json:"params,omitempty"`
	// Workspaces bind folders by the names that the executor was told.
	Workspaces []Workspace `json:"workspaces,omitempty"`
	// FeatureFlags are Tekton's, by the names in its ConfigMap.
	FeatureFlags map[string]string `json:"featureFlags,omitempty"`
	// RegistrySocket is the Unix socket on which api.DefaultRegistry answers by
	// plain http; empty: that name is an address like any other.
	RegistrySocket string `json:"registrySocket,omitempty"`
	// Parallel bounds how many tasks run at once; 0: the default.
	Parallel int `json:"parallel,omitempty"`
	// ExecutorIn and ExecutorOut are the descriptors of the pipes to and from
	// the executor. 0: the run is resolved and printed, not run.
	ExecutorIn  int `json:"executorIn,omitempty"`
	ExecutorOut int `json:"executorOut,omitempty"`
}

// ReadJob reads a job, strictly.
func ReadJob(r io.Reader) (*Job, error) {
	raw, err := io.ReadAll(io.LimitReader(r, maxJobBytes+1))
	if err != nil {
		return nil, fmt.Errorf("reading the job: %w", err)
	}
	if len(raw) > maxJobBytes {
		return nil, fmt.Errorf("reading the job: more than %d bytes", maxJobBytes)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	var j Job
	if err := d.Decode(&j); err != nil {
		return nil, fmt.Errorf("reading the job: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("reading the job: something follows it")
	}
	if j.RunID == "" || len(j.Files) == 0 {
		return nil, errors.New("reading the job: runId and files are required")
	}
	if (j.ExecutorIn == 0) != (j.ExecutorOut == 0) {
		return nil, errors.New("reading the job: executorIn and executorOut belong together")
	}
	return &j, nil
}

// EmbeddedTransport sends requests for api.DefaultRegistry to the Unix socket
// and all others to next.
func EmbeddedTransport(socket string, next http.RoundTripper) http.RoundTripper {
	if socket == "" {
		return next
	}
	return embedded{
		inside: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
		},
		outside: next,
	}
}

type embedded struct{ inside, outside http.RoundTripper }

func (e embedded) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host != api.DefaultRegistry {
		return e.outside.RoundTrip(r)
	}
	if r.URL.Scheme != "http" {
		// Plain http on a socket of our own; a client that tries TLS first is
		// told to go on.
		return nil, fmt.Errorf("registry %s speaks plain http", api.DefaultRegistry)
	}
	return e.inside.RoundTrip(r)
}

// Line is one line of what assay-planner prints. While the run goes on it is a
// Progress. The last line is of type resolved (a job without executor),
// finished or error.
type Line struct {
	Progress
	// Warnings come with type resolved and run.
	Warnings []string `json:"warnings,omitempty"`
	// Specification comes with type resolved and finished: whoever states what
	// was run compares its digest with the one that opened the run.
	Specification json.RawMessage `json:"specification,omitempty"`
	// Finished comes with type finished.
	Finished *Finished `json:"finished,omitempty"`
	// Error comes with type error, as for people. Input says that it is the
	// user's files or flags that are wrong.
	Error string `json:"error,omitempty"`
	Input bool   `json:"input,omitempty"`
}

// Types of a last line.
const (
	LineResolved ProgressType = "resolved"
	LineFinished ProgressType = "finished"
	LineError    ProgressType = "error"
)

// Do does the job: it loads, resolves and runs, tells lines to out as things
// happen, and returns whether the run succeeded. dial opens the executor's end
// of the job's descriptors. What goes wrong before the end is also the last
// line.
func (j *Job) Do(ctx context.Context, out io.Writer, dial func(in, out int) (Executor, error)) (succeeded bool, err error) {
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	defer func() {
		if err != nil {
			var in *InputError
			_ = lines.Encode(Line{Progress: Progress{Type: LineError}, Error: err.Error(), Input: errors.As(err, &in)})
		}
	}()
	objects, err := Load(j.Files...)
	if err != nil {
		return false, err
	}
	resolved, err := Resolve(ctx, objects, Options{
		RunID:        j.RunID,
		Run:          j.Run,
		Params:       j.Params,
		Workspaces:   j.Workspaces,
		FeatureFlags: j.FeatureFlags,
		Bundles: &bundle.Client{
			Transport: EmbeddedTransport(j.RegistrySocket, http.DefaultTransport),
			Keychain:  authn.DefaultKeychain,
		},
	})
	if err != nil {
		return false, err
	}
	if j.ExecutorIn == 0 {
		return true, lines.Encode(Line{
			Progress:      Progress{Type: LineResolved, Name: resolved.Name()},
			Warnings:      resolved.Warnings(),
			Specification: resolved.spec,
		})
	}
	ex, err := dial(j.ExecutorIn, j.ExecutorOut)
	if err != nil {
		return false, err
	}
	var broken error
	finished, err := Run(ctx, resolved, ex, RunOptions{
		Parallel: j.Parallel,
		Progress: func(p Progress) {
			l := Line{Progress: p}
			if p.Type == ProgressRun {
				l.Warnings = resolved.Warnings()
			}
			if err := lines.Encode(l); err != nil && broken == nil {
				broken = err
			}
		},
	})
	if err != nil {
		return false, err
	}
	if broken != nil {
		return false, fmt.Errorf("telling progress: %w", broken)
	}
	return finished.Succeeded, lines.Encode(Line{
		Progress:      Progress{Type: LineFinished, Name: resolved.Name(), Reason: finished.Reason, Message: finished.Message},
		Specification: resolved.spec,
		Finished:      finished,
	})
}
