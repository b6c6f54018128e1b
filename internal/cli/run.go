package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	"assay.dev/assay/internal/launch"
	"assay.dev/assay/observe"
)

func (a *app) runCommand() *cobra.Command {
	var j launch.Job
	var workspaces []string
	var writeBytes, memory, results string
	var quiet bool
	var pids int64
	c := &cobra.Command{
		Use:   "run -f FILE…",
		Short: "Run a Tekton PipelineRun or TaskRun here, witnessed",
		Long: `Runs the PipelineRun or TaskRun in the files, each step in a sandbox, and has the
observer record what really happened. A run that succeeds and names images it
made is attested: provenance, signature and observation are stored beside them
in the embedded registry.

Refers to Pipelines, Tasks, StepActions, ConfigMaps and Secrets by name in the
files, or by Tekton bundle. What of Tekton's API is not supported is refused by
name before anything runs.

On a terminal it shows progress; --output json or yaml prints the finished
objects as a Tekton controller would have left them.`,
		Example: `  assay run -f examples/run/hello.yaml
  assay run -f pipelinerun.yaml -f tasks/ --param revision=main --workspace src=./src:ro
  assay run -f run.yaml --forward localhost:8080 --output json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.outputIs("text", "json", "yaml"); err != nil {
				return err
			}
			if len(j.Files) == 0 {
				return usagef("no file given: use -f FILE, a YAML file or folder with a PipelineRun or TaskRun")
			}
			j.Workspaces = map[string]string{}
			for _, w := range workspaces {
				name, dir, _ := strings.Cut(w, "=")
				if name == "" {
					return usagef("--workspace %q: want NAME=FOLDER, NAME=FOLDER:ro, or NAME= for an empty one", w)
				}
				j.Workspaces[name] = dir
			}
			j.Limits = observe.Limits{Pids: pids}
			for _, l := range []struct {
				flag, value string
				to          *int64
			}{{"max-write", writeBytes, &j.Limits.WriteBytes}, {"max-memory", memory, &j.Limits.MemoryBytes}, {"max-result-bytes", results, &j.Limits.ResultBytes}} {
				n, err := parseBytes(l.value)
				if err != nil {
					return usagef("--%s %q: %v", l.flag, l.value, err)
				}
				*l.to = n
			}
			if err := checkJob(&j); err != nil {
				return err
			}
			h, _, err := findHome()
			if err != nil {
				return err
			}
			services := a.err
			if os.Getenv("ASSAY_DEBUG") == "" {
				services = nil
			}
			s, err := launch.Start(cmd.Context(), h, launch.Options{Runs: true, Log: services, Wait: 10 * time.Minute})
			if err != nil {
				return err
			}
			defer s.Close()
			v := newRunView(a, quiet)
			j.Line = v.line
			res, err := s.Run(cmd.Context(), j)
			v.done()
			if cerr := s.Close(); err == nil {
				err = cerr
			}
			return a.ran(res, err)
		},
	}
	f := c.Flags()
	f.StringArrayVarP(&j.Files, "file", "f", nil, "file or folder with Tekton objects (repeatable)")
	f.StringVar(&j.Run, "run", "", "which run, when the files hold several")
	f.StringArrayVarP(&j.Params, "param", "p", nil, "a parameter, NAME=VALUE; arrays and objects as JSON (repeatable)")
	f.StringArrayVarP(&workspaces, "workspace", "w", nil, "a workspace, NAME=FOLDER[:ro], or NAME= for an empty one (repeatable)")
	f.StringArrayVar(&j.Forwards, "forward", nil, "[PORT=]HOST:PORT that tasks with an open network reach as localhost:PORT (repeatable)")
	f.StringVar(&j.Runtime, "runtime", "", "OCI runtime to run steps with (default: the runc beside assay)")
	f.StringVar(&j.Format, "format", "in-toto", "provenance: in-toto (SLSA v0.2), slsa/v2alpha3 or slsa/v2alpha4 (SLSA v1)")
	f.IntVar(&j.Parallel, "parallel", 0, "how many tasks run at once (default: as many as there are processors)")
	f.StringVar(&writeBytes, "max-write", "8Gi", "bound on what one task may write: root file systems, workspaces, results")
	f.StringVar(&memory, "max-memory", "0", "bound on the memory of one step, where cgroups allow; 0: none")
	f.StringVar(&results, "max-result-bytes", "1Mi", "bound on the results of one task")
	f.Int64Var(&pids, "max-pids", 4096, "bound on the processes of one task")
	f.BoolVarP(&quiet, "quiet", "q", false, "do not print what steps print")
	return c
}

// formats are those that the observer states runs in.
var formats = []string{"in-toto", "slsa/v1", "slsa/v2alpha3", "slsa/v2alpha4"}

// checkJob refuses flags that would only fail when the run is under way, or,
// as for the format, when it is over.
func checkJob(j *launch.Job) error {
	if !slices.Contains(formats, j.Format) {
		return usagef("--format %q: want one of %s", j.Format, strings.Join(formats, ", "))
	}
	for _, f := range j.Forwards {
		port, addr, named := strings.Cut(f, "=")
		if !named {
			addr = f
		}
		_, p, err := net.SplitHostPort(addr)
		if !named {
			port = p
		}
		n, perr := strconv.Atoi(port)
		if err != nil || perr != nil || n < 1 || n > 65535 {
			return usagef("--forward %q: want HOST:PORT or PORT=HOST:PORT", f)
		}
	}
	if j.Runtime != "" {
		if st, err := os.Stat(j.Runtime); err != nil || st.IsDir() || st.Mode()&0o111 == 0 {
			return usagef("--runtime %s: no program is there; name the OCI runtime by its path", j.Runtime)
		}
	}
	for _, f := range j.Files {
		if _, err := os.Stat(f); errors.Is(err, fs.ErrNotExist) {
			return usagef("--file %s: there is no such file or folder; name Tekton YAML, such as examples/run/hello.yaml", f)
		}
	}
	return nil
}

// ran prints how a run ended.
func (a *app) ran(res *launch.Result, err error) error {
	var in *launch.InputError
	if errors.As(err, &in) {
		return &exit{exitUsage, err}
	}
	if res == nil {
		return err
	}
	switch a.output {
	case "json":
		if jerr := a.json(res); jerr != nil {
			return jerr
		}
	case "yaml":
		raw, jerr := json.Marshal(res)
		if jerr != nil {
			return jerr
		}
		y, jerr := yaml.JSONToYAML(raw)
		if jerr != nil {
			return jerr
		}
		a.out.Write(y) //nolint:errcheck // nobody to tell
	default:
		a.printRan(res)
	}
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted; the run was cancelled and recorded")
	}
	if err != nil && res.Succeeded && res.Stated == nil {
		err = fmt.Errorf("%w\nthe run is in the ledger and not signed; when the cause is gone: assay runs attest %s", err, res.Run)
	}
	if err != nil {
		return err
	}
	if !res.Succeeded {
		return &exit{code: exitFailed}
	}
	return nil
}

func (a *app) printRan(res *launch.Result) {
	word := "succeeded"
	if !res.Succeeded {
		word = "failed"
	}
	fmt.Fprintf(a.out, "run %s %s (%s): %s\n", res.Run, word, res.Reason, res.Message)
	if res.Unsigned != "" {
		fmt.Fprintf(a.out, "nothing was signed: %s\n", res.Unsigned)
	}
	if res.Stated == nil {
		return
	}
	for _, c := range res.Stated.Claims {
		if c.Status != observe.Checked {
			fmt.Fprintf(a.out, "%s: %s %s: %s\n", c.Status, c.Field, c.Value, c.Reason)
		}
	}
	for _, s := range res.Stated.Subjects {
		fmt.Fprintf(a.out, "attested %s\n", s)
	}
}

// runView shows a run while it goes on: on a terminal with a line that tells
// what is running, elsewhere as plain lines.
type runView struct {
	a        *app
	quiet    bool
	live     bool
	running  map[string]time.Time
	finished int
	partial  map[string][]byte
	shown    bool
}

func newRunView(a *app, quiet bool) *runView {
	v := &runView{a: a, quiet: quiet, running: map[string]time.Time{}, partial: map[string][]byte{}}
	if f, ok := a.err.(*os.File); ok {
		v.live = term.IsTerminal(int(f.Fd()))
	}
	return v
}

func (v *runView) line(l launch.Line) {
	v.clear()
	defer v.status()
	for _, w := range l.Warnings {
		fmt.Fprintf(v.a.err, "assay: warning: %s\n", w)
	}
	who := l.PipelineTask
	if who == "" {
		who = l.TaskRun
	}
	switch l.Type {
	case "run":
		fmt.Fprintf(v.a.err, "run %s opened at the observer (key separation: %s)\n", l.Name, l.KeySeparation)
	case "task":
		switch l.State {
		case "running":
			v.running[l.TaskRun] = time.Now()
			fmt.Fprintf(v.a.err, "%-11s %s\n", "started", l.TaskRun)
		case "succeeded", "failed", "retrying":
			took := ""
			if at, ok := v.running[l.TaskRun]; ok {
				took = time.Since(at).Round(10 * time.Millisecond).String()
			}
			delete(v.running, l.TaskRun)
			v.finished++
			v.flush(l.TaskRun + "/")
			why := ""
			if l.State != "succeeded" {
				why = "  " + l.Reason + ": " + l.Message
			}
			fmt.Fprintf(v.a.err, "%-11s %s  %s%s\n", l.State, l.TaskRun, took, why)
		}
	case "log":
		if v.quiet {
			return
		}
		key := l.TaskRun + "/" + l.Step
		data := append(v.partial[key], l.Data...)
		for {
			i := strings.IndexByte(string(data), '\n')
			if i < 0 && len(data) < 64<<10 {
				break
			}
			if i < 0 {
				i = len(data) - 1
			}
			fmt.Fprintf(v.a.err, "[%s : %s] %s\n", l.TaskRun, l.Step, printable(data[:i]))
			data = data[i+1:]
		}
		v.partial[key] = data
	}
}

// printable keeps a step's output from steering the terminal.
func printable(b []byte) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '·'
		}
		return r
	}, strings.TrimRight(string(b), "\r"))
}

func (v *runView) clear() {
	if v.live && v.shown {
		fmt.Fprint(v.a.err, "\r\x1b[K")
		v.shown = false
	}
}

func (v *runView) status() {
	if !v.live || len(v.running) == 0 {
		return
	}
	fmt.Fprintf(v.a.err, "%d done, running: %s", v.finished, strings.Join(sortedKeys(v.running), ", "))
	v.shown = true
}

func (v *runView) done() {
	v.clear()
	v.flush("")
}

// flush prints what steps printed last without an end of line.
func (v *runView) flush(prefix string) {
	for _, key := range sortedKeys(v.partial) {
		rest := v.partial[key]
		if len(rest) == 0 || !strings.HasPrefix(key, prefix) {
			continue
		}
		fmt.Fprintf(v.a.err, "[%s] %s\n", strings.ReplaceAll(key, "/", " : "), printable(rest))
		delete(v.partial, key)
	}
}
