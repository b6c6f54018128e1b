package testrig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// Rig is an Assay home of its own with the real binaries.
type Rig struct {
	T    testing.TB
	Home string
	Bin  string
	// Catalog are the references that `assay catalog push` printed.
	Catalog struct {
		Images, Tasks, Pipelines map[string]string
	}
}

// Root is the repository's root.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(filepath.Dir(filepath.Dir(file)))
}

var build struct {
	sync.Once
	err error
}

// Binaries returns the folder with the programs: ASSAY_BIN, or bin/ after a
// `make build`, which is quick when nothing changed.
func Binaries(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("ASSAY_BIN"); dir != "" {
		return dir
	}
	build.Do(func() {
		c := exec.Command("make", "--silent", "-C", Root(), "build")
		out, err := c.CombinedOutput()
		if err != nil {
			build.err = errors.New("make build: " + string(out))
		}
	})
	if build.err != nil {
		t.Fatal(build.err)
	}
	return filepath.Join(Root(), "bin")
}

// New makes a home in a temporary folder and pushes the catalog into it. It
// skips the test without root: runs are isolated by user ids and user
// namespaces, and what is tested is that.
func New(t testing.TB) *Rig {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: processes get users of their own; `make test-all` as root, or CI, runs it")
	}
	r := &Rig{T: t, Bin: Binaries(t)}
	// Not t.TempDir: the processes' users must be able to pass through.
	dir, err := os.MkdirTemp("", "assay-test-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r.Home = filepath.Join(dir, "home")
	out, errout, code := r.Run("catalog", "push", "--output", "json")
	if code != 0 {
		t.Fatalf("pushing the catalog: exit %d\n%s", code, errout)
	}
	if err := json.Unmarshal([]byte(out), &r.Catalog); err != nil {
		t.Fatal(err)
	}
	return r
}

// Command prepares one call of assay in this home.
func (r *Rig) Command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, filepath.Join(r.Bin, "assay"), args...)
	c.Env = append(os.Environ(), "ASSAY_HOME="+r.Home)
	c.WaitDelay = 10 * time.Second
	return c
}

// Run calls assay and returns what it printed and its exit code.
func (r *Rig) Run(args ...string) (stdout, stderr string, code int) {
	r.T.Helper()
	c := r.Command(r.T.Context(), args...)
	var out, errb bytes.Buffer
	c.Stdout, c.Stderr = &out, &errb
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.T.Fatal(err)
	}
	return out.String(), errb.String(), c.ProcessState.ExitCode()
}

// Write puts a file into the rig's folder and returns its path. Placeholders
// assay.dev/image/… and assay.dev/bundle/… are filled in by `assay run`.
func (r *Rig) Write(name, content string) string {
	r.T.Helper()
	p := filepath.Join(filepath.Dir(r.Home), "files", name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		r.T.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(strings.TrimLeft(content, "\n")), 0o644); err != nil {
		r.T.Fatal(err)
	}
	return p
}

// Result is what `assay run --output json` prints.
type Result struct {
	Run         string
	Succeeded   bool
	Reason      string
	Message     string
	Unsigned    string
	PipelineRun json.RawMessage
	TaskRuns    []json.RawMessage
	Stated      *struct {
		Subjects []string
		Builder  string
		Key      string
		Claims   []struct{ TaskRun, Field, Value, Status, Reason string }
	}
	// Stderr and Code are of the command.
	Stderr string
	Code   int
}

// RunFile runs objects and returns how it went, whatever the exit code.
func (r *Rig) RunFile(file string, args ...string) *Result {
	r.T.Helper()
	out, errout, code := r.Run(append([]string{"run", "-f", file, "--output", "json"}, args...)...)
	res := &Result{}
	if strings.HasPrefix(out, "{") {
		if err := json.Unmarshal([]byte(out), res); err != nil {
			r.T.Fatalf("decoding the run: %v\n%s", err, out)
		}
	}
	res.Stderr, res.Code = errout, code
	return res
}
